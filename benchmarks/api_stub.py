"""A server on this machine that speaks the wire formats of OpenAI and Anthropic, and fails as asked.

    with stub(fault_rate=0.3, seed=1, latency_s=0.05) as server:
        endpoint = parse_endpoint(f"openai:any-model@{server.base_url}", None, "--teacher")
        ...
        assert server.counts["paid"] == 1_000

    python -m benchmarks.api_stub --fault_rate 0.1 --latency_s 0.05 [--answer MODULE:FUNCTION]      prints its URL

Answers come from `answer(messages, schema, n)`; without one they are valid by the schema, different for each `n`, the
number of the request. Faults come by rate and seed (FAULTS), or one after another from `script`, where "ok" is none:

    429, 429_retry_after, 500, 529        error of that status, the second with the header Retry-After: `retry_after`
    drop, truncated_body, broken_body     no reply; half of one; one that is no JSON
    slow                                  the reply begins, and goes on after `slow_s`
    invalid_json, off_schema, empty, refusal, cut, wrong_count     whole replies, paid for, with content of no use

The server is strict where the real ones are: unknown key, unknown model, no money after `quota` replies, parameters of
`refuse`, schemas that a strict mode does not take, more requests in a window than the limit. It keeps what a test wants
to know: `log` of every request, `counts`, and `paid` by hash of the body. GET /_stub/state gives the same as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import importlib
import json
import logging
import random
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from benchmarks.api_stub_answers import answer_by_schema, reply_of, schema_of, spoilt, wrong_parameter
from benchmarks.api_stub_batches import BatchDesk, batch_routes

Json = dict[str, Any]
AnswerFunction = Callable[[list[dict[str, str]], Json | None, int], str]

FAULTS = (
    "429 429_retry_after 500 529 drop truncated_body broken_body slow invalid_json empty refusal cut wrong_count"
).split()
CONTENT_FAULTS = {"invalid_json", "off_schema", "empty", "refusal", "cut", "wrong_count"}
LIVE = {"/v1/chat/completions": "openai", "/v1/completions": "openai", "/v1/messages": "anthropic"}


@dataclass
class Stub:
    """What the server does, then what it has seen. Use `stub`, which starts it."""

    answer: AnswerFunction = answer_by_schema
    fault_rate: float = 0.0
    """Share of requests with a fault, spread evenly over FAULTS; `faults` gives each kind a rate of its own."""
    faults: dict[str, float] = field(default_factory=dict)
    script: list[str] = field(default_factory=list)
    seed: int = 0
    latency_s: float = 0.0
    slow_s: float = 30.0
    retry_after: str = "1"
    retry_after_header: str = "retry-after"
    requests_per_minute: int | None = None
    """Checked strictly: more than this share of it in any window of `window_s` is a violation, answered with 429."""
    window_s: float = 60.0
    keys: set[str] | None = None
    """Keys that are accepted; None: any, or none."""
    models: set[str] | None = None
    quota: int | None = None
    refuse: set[str] = field(default_factory=set)
    """Parameters that are answered with 400: response_format, temperature, max_completion_tokens, output_config, ..."""
    desk: BatchDesk | None = None

    port: int = 0
    log: list[Json] = field(default_factory=list)
    """One entry a request: n, path, body, key, fault, status, time (s)."""
    counts: Counter[str] = field(default_factory=Counter)
    """requests, paid, violations, and each fault by its name."""
    paid: Counter[str] = field(default_factory=Counter)
    """Replies of status 200 by `body_hash` of the request."""
    under_way: int = 0
    most_under_way: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._arrivals: deque[float] = deque()
        self._transports: dict[tuple[str, int], asyncio.Transport] = {}
        if self.desk is None:
            self.desk = BatchDesk(answer=self.reply)

    @property
    def url(self) -> str:
        """For Anthropic's SDK."""
        return f"http://127.0.0.1:{self.port}"

    anthropic_url = url

    @property
    def base_url(self) -> str:
        """For OpenAI's SDK."""
        return f"{self.url}/v1"

    @property
    def bodies(self) -> list[Json]:
        return [entry["body"] for entry in self.log]

    def reply(self, path: str, body: Json, fault: str = "ok", n: int | None = None) -> tuple[int, Json]:
        """Status and reply to a body, without faults of the wire."""
        provider = LIVE[path]
        number = n if n is not None else self.counts["replies"]
        self.counts["replies"] += 1
        refused = self._refusal(provider, body)
        if refused is not None:
            return refused
        self.counts["paid"] += 1
        self.paid[body_hash(body)] += 1
        schema, messages = schema_of(body)
        text = self.answer(messages, schema, number)
        return 200, reply_of(path, body, spoilt(text, fault), fault, number)

    def _refusal(self, provider: str, body: Json) -> tuple[int, Json] | None:
        model = str(body.get("model"))
        if self.models is not None and model not in self.models:
            words = f"The model `{model}` does not exist or you do not have access to it."
            return 404, error_body(provider, "not_found_error", words, "model_not_found")
        if self.quota is not None and self.counts["paid"] >= self.quota:
            if provider == "anthropic":
                words = "Your credit balance is too low to access the Anthropic API."
                return 400, error_body(provider, "invalid_request_error", words)
            words = "You exceeded your current quota, please check your plan and billing details."
            return 429, error_body(provider, "insufficient_quota", words, "insufficient_quota")
        wrong = wrong_parameter(provider, body, self.refuse)
        return None if wrong is None else (400, error_body(provider, "invalid_request_error", wrong))

    def next_fault(self) -> str:
        if self.script:
            return self.script.pop(0)
        rates = self.faults or dict.fromkeys(FAULTS, self.fault_rate / len(FAULTS))
        drawn = self._random.random()
        for name, rate in rates.items():
            drawn -= rate
            if drawn < 0:
                return name
        return "ok"

    def arrives(self) -> bool:
        """Whether a request that arrives now is within the limit."""
        now = time.monotonic()
        if self.requests_per_minute is None:
            return True
        while self._arrivals and self._arrivals[0] <= now - self.window_s:
            self._arrivals.popleft()
        if len(self._arrivals) >= self.requests_per_minute * self.window_s / 60:
            self.counts["violations"] += 1
            return False
        self._arrivals.append(now)
        return True

    def state(self) -> Json:
        """What a test in another process wants to know; of each request the hash of its body, its status, and when it
        came and was replied to, in s of the machine's monotonic clock, None where it has not been yet."""
        names = ("status", "time", "replied")
        return {
            "counts": dict(self.counts),
            "most_under_way": self.most_under_way,
            "log": [{"body": body_hash(one["body"])} | {name: one.get(name) for name in names} for one in self.log],
        }


def body_hash(body: Json) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def error_body(provider: str, kind: str, words: str, code: str | None = None) -> Json:
    if provider == "anthropic":
        return {"type": "error", "error": {"type": kind, "message": words}, "request_id": "req_stub"}
    return {"error": {"message": words, "type": kind, "param": None, "code": code}}


def _key(request: Request) -> str | None:
    bearer = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    return request.headers.get("x-api-key") or bearer or None


def _wrong_key(server: Stub, request: Request) -> Response | None:
    key = _key(request)
    if server.keys is None or key in server.keys:
        return None
    provider = "anthropic" if request.url.path.startswith("/v1/messages") else "openai"
    kind = {"anthropic": "authentication_error", "openai": "invalid_request_error"}[provider]
    words = {"anthropic": "invalid x-api-key", "openai": f"Incorrect API key provided: {key}."}[provider]
    return JSONResponse(error_body(provider, kind, words, "invalid_api_key"), 401)


async def _live(server: Stub, request: Request) -> Response:
    """One request to a model: counted, logged, refused, spoilt or answered."""
    body = await request.json()
    server.counts["requests"] += 1
    n = server.counts["requests"] - 1
    entry = {"n": n, "path": request.url.path, "body": body, "key": _key(request), "time": time.monotonic()}
    server.log.append(entry)
    server.under_way += 1
    server.most_under_way = max(server.most_under_way, server.under_way)
    try:
        response = await _answered(server, request, entry)
        entry["status"] = None if isinstance(response, _Dropped) else response.status_code
        return response
    finally:
        server.under_way -= 1
        entry["replied"] = time.monotonic()


async def _answered(server: Stub, request: Request, entry: Json) -> Response:
    provider = LIVE[request.url.path]
    wrong_key = _wrong_key(server, request)
    if wrong_key is not None:
        return wrong_key
    if not server.arrives():
        return JSONResponse(error_body(provider, "rate_limit_error", "Rate limit reached."), 429)
    fault = entry["fault"] = server.next_fault()
    if fault != "ok":
        server.counts[fault] += 1
    if server.latency_s:
        await asyncio.sleep(server.latency_s)
    if fault in ("429", "429_retry_after"):
        headers = {server.retry_after_header: server.retry_after} if fault == "429_retry_after" else {}
        return JSONResponse(error_body(provider, "rate_limit_error", "Rate limit reached."), 429, headers)
    if fault in ("500", "529", "408", "409", "503"):
        return JSONResponse(error_body(provider, "api_error", f"The server failed ({fault})."), int(fault))
    if fault in ("400", "413"):
        return JSONResponse(error_body(provider, "invalid_request_error", "This request is wrong."), int(fault))
    if fault == "drop":
        return _Dropped(server)
    status, reply = server.reply(request.url.path, entry["body"], fault, entry["n"])
    content = json.dumps(reply).encode()
    headers = {"x-request-id": f"req_{entry['n']}", "request-id": f"req_{entry['n']}"}
    if fault == "broken_body":
        content = b"<html>upstream " + content[:20]
    if fault in ("truncated_body", "slow"):
        return _InHalves(content, status, headers, server.slow_s if fault == "slow" else None)
    return Response(content, status, headers, media_type="application/json")


class _Dropped(Response):
    """No reply: the connection is gone."""

    def __init__(self, server: Stub) -> None:
        super().__init__()
        self.stub = server

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.stub._transports[tuple(scope["client"])].abort()


class _InHalves(Response):
    """Half the reply, and after `pause_s` the other half; None: never."""

    def __init__(self, content: bytes, status: int, headers: dict[str, str], pause_s: float | None) -> None:
        super().__init__(content, status, headers, media_type="application/json")
        self.pause_s = pause_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        content, middle = bytes(self.body), len(self.body) // 2
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": content[:middle], "more_body": True})
        if self.pause_s is not None:
            waiting = asyncio.create_task(receive())  # ends when the client goes away
            await asyncio.wait([waiting], timeout=self.pause_s)
            if waiting.cancel():
                await send({"type": "http.response.body", "body": content[middle:]})


def _app(server: Stub) -> Starlette:
    async def live(request: Request) -> Response:
        return await _live(server, request)

    async def models(request: Request) -> Response:
        names = sorted(server.models or {"stub-model"})
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    async def state(request: Request) -> Response:
        return JSONResponse(server.state())

    async def guard(request: Request) -> Response | None:
        return _wrong_key(server, request)

    assert server.desk is not None
    return Starlette(
        routes=[
            *(Route(path, live, methods=["POST"]) for path in LIVE),
            Route("/v1/models", models),
            Route("/_stub/state", state),
            *batch_routes(server.desk, guard),
        ]
    )


def _uvicorn(server: Stub) -> tuple[uvicorn.Server, socket.socket]:
    """The server, bound to its port but not running yet."""

    class Protocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.client is not None:
                server._transports[self.client] = transport

    class Server(uvicorn.Server):
        async def main_loop(self) -> None:
            while not self.should_exit:
                await asyncio.sleep(0.01)

    bound = socket.create_server(("127.0.0.1", server.port), backlog=2048)
    server.port = bound.getsockname()[1]
    config = uvicorn.Config(
        _app(server), http=Protocol, ws="none", lifespan="off", log_level=logging.CRITICAL, access_log=False,
        timeout_keep_alive=120, timeout_graceful_shutdown=1,
    )  # fmt: skip
    return Server(config), bound


@contextlib.contextmanager
def stub(**options: Any) -> Iterator[Stub]:
    """A running server in a thread of this process; the options are the first fields of Stub."""
    server = Stub(**options)
    web, bound = _uvicorn(server)
    thread = threading.Thread(target=web.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        while not web.started:
            time.sleep(0.005)
        yield server
    finally:
        web.should_exit = web.force_exit = True
        thread.join(10)
        bound.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="A stub of the APIs of OpenAI and Anthropic; prints its URL.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--fault_rate", type=float, default=0.0)
    parser.add_argument("--fault_kinds", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--latency_s", type=float, default=0.0)
    parser.add_argument("--slow_s", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--requests_per_minute", type=int)
    parser.add_argument("--answer", default=f"{answer_by_schema.__module__}:{answer_by_schema.__name__}")
    given = vars(parser.parse_args())
    module, _, name = given.pop("answer").partition(":")
    kinds, rate = given.pop("fault_kinds"), given.pop("fault_rate")
    given["faults"] = dict.fromkeys(kinds, rate / len(kinds))
    server = Stub(answer=getattr(importlib.import_module(module), name), **given)
    web, bound = _uvicorn(server)
    print(server.url, flush=True)
    web.run(sockets=[bound])


if __name__ == "__main__":
    main()
