"""Many requests through the provider's batch endpoint: half the price, answers within a day instead of seconds.

    replies = ask_all_batched(endpoint, options, asks, Path("out.json.batches.json"), "teacher")

The replies are those of `utils.api.client.ask_all`, in the order of the asks. What the cache has is not sent; what
comes back goes into it. Bodies of requests and the reading of replies are those of live requests (utils.api.wires).

A batch is paid for when it is made, so it must not be made twice. The state file (utils.api.batch_state) is written
before a batch is made, and again with its id. A run that is killed anywhere goes on with the same command:

- with an id, the batch is waited for and read;
- without one, the provider is asked whether it has a batch of that name (utils.api.batch_providers): it is taken over
  if so, and made anew if the provider still has none after FIND_AFTER_S.

The same question is asked when a creation's reply is lost. The state file belongs to its caller, who removes it when
the replies are safe: until then, even without a cache, an answer is read again from its batch and not paid again.

Rows that the provider could not run (expired, a fault of the server, no row at all) are asked again once, in another
batch; then they are Failed("unavailable"), as is at once what somebody cancelled. A later call asks for them afresh.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from utils.api.batch_providers import Look, Row, Wanted, batch_provider
from utils.api.batch_state import Batch, State, claimed, read_state
from utils.api.cache import request_key
from utils.api.client import CHANGES_OF_HABIT, ApiClient, run
from utils.api.endpoints import Endpoint
from utils.api.faults import NO_MONEY, Fault, fatal_reason
from utils.api.options import ApiOptions
from utils.api.prices import worst_usage
from utils.api.progress import Totals
from utils.api.structured import check_schema
from utils.api.types import Answer, Ask, Failed
from utils.api.wires import HALF_PAIR, BrokenReply, Habits, adapt, can_be_sent, path_of, read_reply, request_body
from utils.errors import UserError, WorkError

T = TypeVar("T")

POLL_S = (5.0, 60.0)
"""The first and the longest time between two looks at a batch; each is 1.5 times the last."""
SAY_S = 300.0
"""How often a batch that goes on is spoken of."""
FIND_AFTER_S: tuple[float, ...] = (0.0, 10.0, 50.0)
"""When a batch whose creation is in doubt is looked for, each after the last."""
PATIENCE_S = 3600.0
"""How long a provider that has answered before may be out of reach while we wait for a batch."""
ASKED_AGAIN = 1


def ask_all_batched(
    endpoint: Endpoint,
    options: ApiOptions,
    asks: Sequence[Ask],
    state: Path,
    label: str = "",
    totals: Totals | None = None,
) -> list[Answer | Failed]:
    """The replies to all asks, in their order, by way of batches; `state` is made where there is none.

    Raises:
        UserError: the provider refuses the key, the model, the account or the whole batch; `state` has
            batches of another endpoint, or is in use; the server has no batch endpoint.
        WorkError: the provider is out of reach, or the asks may cost more than --max_cost. The same call goes on.
    """

    async def work(client: ApiClient) -> list[Answer | Failed]:
        with claimed(state):
            return await _Run(client, read_state(state, endpoint), label).answers(asks)

    return run(endpoint, options, work, label, totals)


# --- one call ---------------------------------------------------------------------------------------------------------


class _Run:
    """One call: `wanted` are the asks by key, `found` the replies so far."""

    def __init__(self, client: ApiClient, state: State, label: str) -> None:
        self.client = client
        self.endpoint = client.endpoint
        self.provider = batch_provider(client.endpoint.provider)
        self.state = state
        self.label = label
        self.wanted: dict[str, Ask] = {}
        self.found: dict[str, Answer | Failed] = {}
        self.asked_again: Counter[str] = Counter()
        self.fatal: UserError | None = None
        self.reached = False
        if state.batches:
            client.habits = Habits(**state.batches[-1].habits)

    async def answers(self, asks: Sequence[Ask]) -> list[Answer | Failed]:
        keys = [request_key(self.endpoint, ask) for ask in asks]
        self.wanted = dict(zip(keys, asks, strict=True))
        for schema in {json.dumps(ask.schema): ask.schema for ask in asks if ask.schema is not None}.values():
            check_schema(schema)
        self.client.progress.expect(len(self.wanted))
        for key, ask in self.wanted.items():
            kept = self.client.cache.get(key) if can_be_sent(ask) else Failed("bad_request", HALF_PAIR)
            if kept is not None:
                self._take(key, kept)
        await self._settle_doubts()
        for batch in [batch for batch in self.state.batches if batch.collected and self._missing(batch)]:
            await self._collect(batch)
        while self.fatal is None and len(self.found) < len(self.wanted):
            await self._submit_missing()
            await self._collect_open()
        if self.fatal is not None:
            raise self.fatal
        return [self.found[key] for key in keys]

    def _take(self, key: str, reply: Answer | Failed) -> None:
        self.found[key] = reply
        self.client.count(reply)
        self.client.progress.step()

    def _missing(self, batch: Batch) -> list[str]:
        """The keys of a batch that this call wants and does not have yet."""
        return [key for key in batch.keys if key in self.wanted and key not in self.found]

    def _open(self) -> list[Batch]:
        return [batch for batch in self.state.batches if not batch.collected and self._missing(batch)]

    # --- making batches -----------------------------------------------------------------------------------------------

    async def _settle_doubts(self) -> None:
        """Find the batches whose creation an earlier run did not see the end of, or forget them."""
        for batch in [batch for batch in self.state.batches if batch.id is None]:
            self._say(f"looking whether batch {batch.name} was made before the last run ended")
            if not await self._found_again(batch):
                self._forget(batch)

    async def _submit_missing(self) -> None:
        covered = {key for batch in self._open() for key in batch.keys}
        missing = [key for key in self.wanted if key not in self.found and key not in covered]
        self._check_cost(missing)
        for path in dict.fromkeys(path_of(self.endpoint, self.wanted[key]) for key in missing):
            keys = [key for key in missing if path_of(self.endpoint, self.wanted[key]) == path]
            for name, chunk, lines in self._chunks(keys, path):
                await self._submit(Batch(name, chunk, asdict(self.client.habits), time.time()), path, lines)

    def _check_cost(self, keys: list[str]) -> None:
        price, limit = self.client.price, self.client.options.max_cost
        if price is None or limit is None:
            return
        worst = sum(price.cost(worst_usage(self.endpoint, self.wanted[key]), batch=True) for key in keys)
        spent = self.client.totals.cost or 0.0
        if spent + worst > limit:
            raise WorkError(
                f"--max_cost {limit:g} US$ reached: {spent:.4f} US$ are spent, and the next {len(keys):,} requests can "
                f"cost {worst:.4f} as a batch; what is done is kept: give more, and run the same command again"
            )

    def _chunks(self, keys: list[str], path: str) -> Iterator[tuple[str, list[str], list[str]]]:
        """Name, keys and lines of batches within the provider's limits."""
        name, chunk, lines, size = _new_name(), list[str](), list[str](), 0
        for key in keys:
            body = request_body(self.endpoint, self.wanted[key], self.client.habits)
            line = self.provider.line(f"{name}-{len(chunk)}", _batch_path(path), body)
            length = len(line.encode()) + 2
            if chunk and (len(chunk) == self.provider.max_requests or size + length > self.provider.max_bytes):
                yield name, chunk, lines
                name, chunk, lines, size = _new_name(), [], [], 0
                line = self.provider.line(f"{name}-0", _batch_path(path), body)
            chunk.append(key)
            lines.append(line)
            size += length
        if chunk:
            yield name, chunk, lines

    async def _submit(self, batch: Batch, path: str, lines: list[str]) -> None:
        """Make one batch, once."""
        server = self.client.server
        upload = await self._patiently(lambda: self.provider.upload(server, batch.name, lines))
        batch.since = time.time()
        self.state.batches.append(batch)
        self.state.save()
        for faults in range(1, self.client.options.max_retries + 2):
            try:
                batch.id = await self.provider.create(server, batch.name, _batch_path(path), upload)
            except self.client.errors as error:
                fault = self.client.fault_of(error)
                if fault is None:
                    raise
                if fault.kind != "retry":
                    self._forget(batch)
                    raise self._not_taken(fault) from None
                if _may_have_been_made(fault) and await self._found_again(batch):
                    break
                self.client.totals.retries[fault.reason] += 1
                if faults > self.client.options.max_retries:
                    self._forget(batch)
                    raise self._out_of_reach(fault) from None
                await self.client.wait(fault, faults)
            else:
                break
        self.state.save()
        self.client.totals.requests += len(batch.keys)
        self._say(
            f"batch {batch.id} of {len(batch.keys):,} requests is made; it may take up to 24 hours. Stop whenever you "
            "like: it goes on at the provider, and the same command picks it up"
        )

    async def _found_again(self, batch: Batch) -> bool:
        """Whether the provider has this batch after all; its id is kept then."""

        async def pause(batch_id: str) -> None:
            self._say(f"batch {batch_id} may be ours, which shows when it has ended: waiting for it")
            await asyncio.sleep(POLL_S[1])

        known = frozenset(other.id for other in self.state.batches if other.id is not None)
        wanted = Wanted(batch.name, batch.since, len(batch.keys), known, pause)
        for wait_s in FIND_AFTER_S:
            await asyncio.sleep(wait_s)
            batch.id = await self._patiently(lambda: self.provider.find(self.client.server, wanted))
            if batch.id is not None:
                self.state.save()
                return True
        return False

    def _forget(self, batch: Batch) -> None:
        """Take back a batch that was never made, or of which nothing was run."""
        self.state.batches.remove(batch)
        self.state.save()

    # --- waiting and reading ------------------------------------------------------------------------------------------

    async def _collect_open(self) -> None:
        """Wait for all open batches; read each when it has ended."""
        wait_s, said = POLL_S[0], dict[str, tuple[float, Look]]()
        while self.fatal is None and (waiting := self._open()):
            for batch in waiting:
                look = await self._look(batch)
                if look.refused is not None:
                    raise self._refused(batch, look)
                if look.ended:
                    await self._collect(batch)
                else:
                    self._say_now_and_then(batch, look, said)
            if self._open():
                await asyncio.sleep(wait_s * random.uniform(0.8, 1.0))
                wait_s = min(POLL_S[1], wait_s * 1.5)

    async def _look(self, batch: Batch) -> Look:
        return await self._patiently(lambda: self.provider.look(self.client.server, str(batch.id)))

    def _refused(self, batch: Batch, look: Look) -> UserError | WorkError:
        """The error for a batch that the provider would not begin: nothing of it is paid for."""
        self._forget(batch)
        words = f"{self.endpoint}: batch {batch.id} was refused: {look.refused}"
        if "limit" in look.code and look.code not in NO_MONEY:
            return WorkError(f"{words}; run the same command again when other batches have ended")
        return UserError(words)

    async def _collect(self, batch: Batch) -> None:
        """Read the rows of an ended batch: replies to the cache, and what is to be asked again left open."""
        rows = {row.custom_id: row for row in await self._patiently(lambda: self._rows(batch))}
        lost = Row("", "unavailable", detail="the batch ended without a row for it")
        for index, key in enumerate(batch.keys):
            if key in self.wanted and key not in self.found:
                self._read(batch, key, rows.get(batch.custom_id(index), lost))
        batch.collected = True
        self.state.save()

    async def _rows(self, batch: Batch) -> list[Row]:
        return await self.provider.rows(self.client.server, str(batch.id))

    def _read(self, batch: Batch, key: str, row: Row) -> None:
        ask = self.wanted[key]
        reason, words = row.outcome, row.detail
        if row.outcome == "succeeded":
            try:
                reply = read_reply(self.endpoint, ask, row.reply, row.request_id)
            except BrokenReply as error:
                reason, words = "broken reply", str(error)
            else:
                self.client.cache.put(key, reply)
                if batch.collected:
                    reply = replace(reply, cached=True)
                else:
                    self.client.pay(reply.usage, batch=True)
                self._take(key, reply)
                return
        if batch.collected:
            return
        if row.outcome in ("refused", "unavailable") and fatal_reason(row.status, {row.code}, words):
            self.fatal = UserError(f"{self.endpoint}: {self.client.hidden(words)}")
            return
        if reason == "refused":
            may_ask_again = self._is_told_otherwise(batch, ask, words) and self.asked_again[key] < CHANGES_OF_HABIT
        else:
            may_ask_again = reason != "cancelled" and self.asked_again[key] < ASKED_AGAIN
        if may_ask_again:
            self.asked_again[key] += 1
            self.client.totals.retries[reason] += 1
        else:
            self._take(key, Failed("bad_request" if reason == "refused" else "unavailable", self.client.hidden(words)))

    def _is_told_otherwise(self, batch: Batch, ask: Ask, words: str) -> bool:
        """Whether the server is told something in another way now than in this batch, after what it said."""
        change = adapt(self.endpoint, ask, self.client.habits, words)
        if change is not None:
            self._say(f"{self.endpoint}: {change} ({self.client.hidden(words)})")
        before = request_body(self.endpoint, ask, Habits(**batch.habits))
        return request_body(self.endpoint, ask, self.client.habits) != before

    # --- the provider -------------------------------------------------------------------------------------------------

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """What a call that may be repeated returns, whatever passes in between."""
        began, faults = time.monotonic(), 0
        while True:
            try:
                result = await call()
            except self.client.errors as error:
                fault = self.client.fault_of(error)
                if fault is None:
                    raise
                if fault.kind != "retry":
                    raise self._not_taken(fault) from None
                faults += 1
                waited_s = time.monotonic() - began
                if faults > self.client.options.max_retries and (not self.reached or waited_s > PATIENCE_S):
                    raise self._out_of_reach(fault) from None
                self.client.totals.retries[fault.reason] += 1
                await self.client.wait(fault, faults)
            else:
                self.reached = True
                return result

    def _not_taken(self, fault: Fault) -> UserError:
        hint = "" if self.endpoint.is_official else "; a server without a batch endpoint is asked without --batch_api"
        return UserError(f"--batch_api: {fault.words}{hint}")

    def _out_of_reach(self, fault: Fault) -> WorkError:
        return WorkError(f"{self.endpoint}: {fault.words}; what is done is kept: run the same command again later")

    def _say(self, words: str) -> None:
        if self.label:
            self.client.progress.say(f"{self.label}: {words}")

    def _say_now_and_then(self, batch: Batch, look: Look, said: dict[str, tuple[float, Look]]) -> None:
        before = said.get(batch.name)
        if before is None or before[1].status != look.status or time.monotonic() - before[0] > SAY_S:
            said[batch.name] = (time.monotonic(), look)
            self._say(f"batch {batch.id}: {look.status}, {look.done:,} of {len(batch.keys):,} requests done")


def _new_name() -> str:
    return f"subtext-{secrets.token_hex(8)}"


def _batch_path(path: str) -> str:
    return path if path.startswith("/v1/") else f"/v1{path}"


def _may_have_been_made(fault: Fault) -> bool:
    """Whether a batch may exist though its creation ended with this fault."""
    return fault.paid or (fault.reason.isdigit() and fault.reason != "429")
