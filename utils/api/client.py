"""A client of a model behind an API: requests are paid once, kept, limited, and sent again after faults of the server.

    async with open_client(endpoint, options, "teacher") as client:
        reply = await client.ask(Ask(({"role": "user", "content": "Name a tree."},)))    Answer or Failed

    replies = ask_all(endpoint, options, asks, "judge")             the same for many, from code without a loop

What `ask` does, in order: the cache; an equal request that is under way; the limit of requests at once, the money, the
requests and tokens a minute; the request; again after a fault (utils.api.faults), waiting what Retry-After says or a
random time up to BACKOFF_S * 2**n. An answer that cannot be used (a refusal, no JSON, ...) is a Failed with its reason:
it was paid for, is counted and kept, and whether to ask again, with another `sample` or with words, is the caller's
choice. What is the same for every request (a refused key, an unknown model, no money) is raised, and ends all others.

`run` and `ask_all` may be called from any thread (utils.api.background). Ctrl-C ends the work: what is under way is
given up, what is paid for is in the cache, and KeyboardInterrupt goes on to the caller.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from utils.api.background import in_background
from utils.api.cache import Cache, open_cache, request_key
from utils.api.endpoints import Endpoint, Key, key_of
from utils.api.faults import RATE_LIMIT, Fault, fault_of, without_key
from utils.api.limits import Budget, Pace
from utils.api.options import ApiOptions
from utils.api.prices import Price, price_of, worst_usage
from utils.api.progress import Progress, Totals
from utils.api.sdks import Sdk, open_sdk
from utils.api.structured import check_schema
from utils.api.types import Answer, Ask, Failed, Usage
from utils.api.wires import HALF_PAIR, BrokenReply, adapt, habits_of, path_of, read_reply, request_body
from utils.api.workers import each
from utils.errors import UserError, WorkError

T = TypeVar("T")

BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 60.0
LONGEST_WAIT_S = 600.0
"""A server that asks to wait longer ends the work: it means a limit of the day."""
UNANSWERED_IN_A_ROW = 10
"""So many requests, or --concurrency if that is more, that used up their retries with no reply between: an outage."""
PATIENCE_S = 120.0
"""As long as the last reply is not older, a limit of the server's (429) is but waited for: limits are by the minute."""
RETRIES_OF_FIRST_CONTACT = 2
"""Of a server that cannot be reached and never was."""
CHANGES_OF_HABIT = 4
BAD_FROM_THE_START = 20
"""So many bad requests and not one reply: what is wrong with them is the same for all."""


class ApiClient:
    """Made by `open_client`. `totals` counts; `progress.expect(n, "records")` and `progress.step()` move the line.

    `server` is the SDK's client, for what is not a request for an answer; a call of it raises one of `errors`, which
    `fault_of` explains.
    """

    def __init__(self, endpoint: Endpoint, options: ApiOptions, sdk: Sdk, key: Key, progress: Progress) -> None:
        self.endpoint = endpoint
        self.options = options
        self.progress = progress
        self.totals = progress.totals
        self.price: Price | None = price_of(endpoint, options)
        self.cache: Cache = open_cache(options)
        if self.price is not None and self.totals.cost is None:
            self.totals.cost = 0.0
        self.habits = habits_of(endpoint)
        self._sdk, self.server = sdk.module, sdk.server
        self.errors: tuple[type[Exception], ...] = (sdk.module.APIError, TimeoutError, BrokenReply)
        self._key = key
        self._slots = asyncio.Semaphore(options.concurrency)
        self._requests = Pace(options.requests_per_minute)
        self._tokens = Pace(options.tokens_per_minute)
        self._budget = Budget(options.max_cost, lambda: (self.totals.cost or 0.0) + self.totals.doubtful)
        self._under_way: dict[str, asyncio.Future[Answer | Failed]] = {}
        self._stopped = asyncio.Event()
        self._fatal: Exception | None = None
        self._unanswered = 0
        self._replied = False
        self._last_reply = 0.0
        self._bad_requests = 0
        self._changes = 0

    async def ask(self, ask: Ask) -> Answer | Failed:
        """The answer to one request, from the cache if it is there.

        Raises:
            UserError: the key, the model or the account is refused, in the provider's words; so is every later ask.
            WorkError: the server does not answer at all, --max_cost is reached, or the cache cannot be written.
        """
        key = request_key(self.endpoint, ask)
        while True:
            kept = self.cache.get(key)
            if kept is not None:
                return self.count(kept)
            shared = self._under_way.get(key)
            if shared is None:
                return self.count(await self._ask_server(key, ask))
            await asyncio.wait([shared])
            if not shared.cancelled():
                return self.count(replace(shared.result(), cached=True))

    def count(self, reply: Answer | Failed) -> Answer | Failed:
        """The reply, counted among the answers or the failures."""
        self.totals.cached += reply.cached
        if isinstance(reply, Failed):
            self.totals.failures[reply.reason] += 1
        else:
            self.totals.answers += 1
        return reply

    async def _ask_server(self, key: str, ask: Ask) -> Answer | Failed:
        """The reply of the server, kept; equal asks wait for it meanwhile."""
        shared = self._under_way[key] = asyncio.get_running_loop().create_future()
        try:
            reply = await self._ask_until_answered(ask)
            self.cache.put(key, reply)
            shared.set_result(reply)
            return reply
        except Exception as error:
            shared.set_exception(error)
            shared.exception()  # looked at: it is raised here, whether or not another waits
            self._stop(error)
            raise
        finally:
            del self._under_way[key]
            shared.cancel()

    async def _ask_until_answered(self, ask: Ask) -> Answer | Failed:
        if ask.schema is not None:
            check_schema(ask.schema)
        tries = faults = 0
        began = time.monotonic()
        while True:
            self._check()
            habits = replace(self.habits)
            outcome = await self._ask_once(ask)
            if not isinstance(outcome, Fault):
                self._replied, self._last_reply, self._unanswered = True, time.monotonic(), 0
                return outcome
            if outcome.kind == "fatal":
                raise UserError(outcome.words)
            if outcome.kind == "bad_request":
                if self._may_go_otherwise(ask, outcome, habits != self.habits):
                    continue
                return self._bad_request(outcome)
            tries += 1
            waiting_s = time.monotonic() - max(began, self._last_reply)
            faults += outcome.reason != RATE_LIMIT or waiting_s > PATIENCE_S
            if faults > self._retries_left(outcome):
                return self._unavailable(outcome)
            self.totals.retries[outcome.reason] += 1
            await self.wait(outcome, tries)

    def _retries_left(self, fault: Fault) -> int:
        first_contact = fault.reason == "no connection" and not self._replied
        return min(self.options.max_retries, RETRIES_OF_FIRST_CONTACT) if first_contact else self.options.max_retries

    def _unavailable(self, fault: Fault) -> Failed:
        self._unanswered += 1
        if not self._replied or self._unanswered >= max(UNANSWERED_IN_A_ROW, self.options.concurrency):
            raise WorkError(f"{self.endpoint}: {fault.words}; what is done is kept: run the same command again later")
        return Failed("unavailable", fault.words)

    def _bad_request(self, fault: Fault) -> Failed:
        self._bad_requests += 1
        if not self._replied and self._bad_requests == BAD_FROM_THE_START:
            raise UserError(f"{self.endpoint}: the first {BAD_FROM_THE_START} requests are all refused: {fault.words}")
        return Failed("bad_request", fault.words)

    def _may_go_otherwise(self, ask: Ask, fault: Fault, changed_meanwhile: bool) -> bool:
        """Whether the request is worth sending anew because the server is now told things in another way."""
        if changed_meanwhile:
            return True
        if self._changes == CHANGES_OF_HABIT:
            return False
        change = adapt(self.endpoint, ask, self.habits, fault.words)
        if change is None:
            return False
        self._changes += 1
        self.progress.say(f"{self.endpoint}: {change} ({fault.words})")
        return True

    async def _ask_once(self, ask: Ask) -> Answer | Failed | Fault:
        """One request over the wire, when the limits allow it."""
        worst = worst_usage(self.endpoint, ask)
        worst_usd = self.price.cost(worst) if self.price is not None else 0.0
        tokens = worst.input_tokens + worst.output_tokens
        async with self._slots:
            self._check()
            await self._budget.reserve(worst_usd)
            try:
                await self._sleep(max(self._requests.reserve(1), self._tokens.reserve(tokens)))
                outcome = await self._send(ask)
                usage = Usage() if isinstance(outcome, Fault) else outcome.usage
                self.pay(usage)
                self._tokens.give_back(tokens - usage.input_tokens - usage.output_tokens)
                if isinstance(outcome, Fault) and outcome.paid:
                    self.totals.doubtful += worst_usd
                return outcome
            finally:
                self._budget.release(worst_usd)

    async def _send(self, ask: Ask) -> Answer | Failed | Fault:
        import httpx2

        body = request_body(self.endpoint, ask, self.habits)
        self.totals.requests += 1
        try:
            async with asyncio.timeout(self.options.request_timeout):
                response = await self.server.post(path_of(self.endpoint, ask), body=body, cast_to=httpx2.Response)
            request_id = response.headers.get("x-request-id") or response.headers.get("request-id")
            return read_reply(self.endpoint, ask, _json_of(response.content), request_id)
        except UnicodeEncodeError:
            return Fault("bad_request", "bad_request", HALF_PAIR)
        except self.errors as error:
            fault = self.fault_of(error)
            if fault is None:
                raise
            return fault

    def pay(self, usage: Usage, batch: bool = False) -> None:
        """Count these tokens and what they cost."""
        self.totals.input_tokens += usage.input_tokens
        self.totals.output_tokens += usage.output_tokens
        if self.price is not None:
            self.totals.cost = (self.totals.cost or 0.0) + self.price.cost(usage, batch)

    def fault_of(self, error: Exception) -> Fault | None:
        """What an error of a call of `server` means; None: it is a bug."""
        return fault_of(error, self._sdk, self.endpoint, self._key, self.options.request_timeout)

    async def wait(self, fault: Fault, faults: int) -> None:
        """Sleep before the next try after so many faults."""
        jitter = random.uniform(0, min(LONGEST_BACKOFF_S, BACKOFF_S * 2 ** (faults - 1)))
        if fault.wait_s is not None and fault.wait_s > LONGEST_WAIT_S:
            raise WorkError(
                f"{self.endpoint}: {fault.words}; it asks to wait {fault.wait_s:,.0f} s: run the same command again "
                "then"
            )
        await self._sleep(jitter if fault.wait_s is None else fault.wait_s + min(jitter, fault.wait_s / 10))

    async def _sleep(self, seconds: float) -> None:
        """Sleep, unless the work is ended meanwhile."""
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), seconds)
        self._check()

    def hidden(self, text: str) -> str:
        """The text without the key."""
        return without_key(text, self._key)

    def _stop(self, error: Exception) -> None:
        if self._fatal is None:
            self._fatal = error
            self._stopped.set()
            self._budget.wake()

    def _check(self) -> None:
        """Raise what ended the work, if something did."""
        if isinstance(self._fatal, UserError):
            raise UserError(*self._fatal.args)
        if self._fatal is not None:
            raise WorkError(*self._fatal.args)


def _json_of(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise BrokenReply("the reply is no JSON") from None


@contextlib.asynccontextmanager
async def open_client(
    endpoint: Endpoint, options: ApiOptions, label: str = "", totals: Totals | None = None
) -> AsyncIterator[ApiClient]:
    """A client for the time of the `async with`. `label` begins its lines on stderr, none without it; with `totals` of
    an earlier client its counts, and so --max_cost, go on.

    Raises:
        UserError: no key, no price for --max_cost, no usable cache directory.
    """
    key = key_of(endpoint, options)
    sdk = open_sdk(endpoint, options, key)
    progress = Progress(label, totals if totals is not None else Totals())
    client = ApiClient(endpoint, options, sdk, key, progress)
    shown = asyncio.create_task(progress.show())
    try:
        yield client
    finally:
        shown.cancel()
        progress.close()
        client.cache.close()
        await sdk.server.close()


# --- from code without an event loop ----------------------------------------------------------------------------------


def run(
    endpoint: Endpoint,
    options: ApiOptions,
    work: Callable[[ApiClient], Awaitable[T]],
    label: str = "",
    totals: Totals | None = None,
) -> T:
    """What `work` returns for a client that is open while it runs; from any thread."""

    async def with_client() -> T:
        async with open_client(endpoint, options, label, totals) as client:
            return await work(client)

    return in_background(with_client())


def ask_all(
    endpoint: Endpoint, options: ApiOptions, asks: Sequence[Ask], label: str = "", totals: Totals | None = None
) -> list[Answer | Failed]:
    """The replies to all asks, in their order.

    Raises:
        UserError, WorkError: what ended the work; the replies that came before are in the cache.
    """

    async def work(client: ApiClient) -> list[Answer | Failed]:
        client.progress.expect(len(asks))

        async def one(index: int) -> tuple[int, Answer | Failed]:
            return index, await client.ask(asks[index])

        replies: dict[int, Answer | Failed] = {}
        async with contextlib.aclosing(each(range(len(asks)), one, options.concurrency)) as results:
            async for index, reply in results:
                replies[index] = reply
                client.progress.step()
        return [replies[index] for index in range(len(asks))]

    return run(endpoint, options, work, label, totals)
