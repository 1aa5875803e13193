"""Serves one run's report on this machine, and follows a run that is still training.

    python main.py --mode visualize --output_dir outputs --start_server --server_port 8000

`/` and `/page` are the report, rendered afresh when the run's files have changed; `/events` sends what is logged from
then on (utils.live). Beside them only the run's own files are served, by exact name: no directories, no links, nothing
outside the run. All addresses in the page are relative, so it works behind any path prefix that a proxy takes off.

Requests must name this machine in their Host header, so that no foreign page reaches the server by a name of its own
(DNS rebinding). A connection that does not get its request or its answer through is closed, and there are only so many.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import re
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from html import escape
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qs

import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from utils.errors import UserError
from utils.live import HEARTBEAT_S, POLL_S, Follower
from utils.page import policy
from utils.series import Run, load_run

REPORT_PATHS = {"/", "/page", "/training_report.html"}
RUN_FILES = re.compile(
    r"/(manifest\.json|metrics\.jsonl|completions\.jsonl|[A-Za-z0-9][A-Za-z0-9_-]*\.png"
    r"|evaluation/[A-Za-z0-9][A-Za-z0-9_-]*\.jsonl?)",
    re.ASCII,
)
MEDIA_TYPES = {".json": "application/json", ".jsonl": "text/plain; charset=utf-8", ".png": "image/png"}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
PORTS_TRIED = 100
CHUNK_BYTES = 1 << 18
LONGEST_HEADERS, LONGEST_TARGET = 16 << 10, 4 << 10
MOST_CONNECTIONS = 256
PATIENCE_S = 10.0
"""For a whole request to arrive, and for any byte of an answer to leave."""
NEWS_KEPT = 32
"""Events that wait for a viewer whose line is slow; one that falls further behind is let go, and catches up anew."""


def serve(
    run: Path, host: str, port: int, render: Callable[[Run, str], str], load: Callable[[Path], Run] = load_run
) -> None:
    """Serve until Ctrl-C; `render` makes the page of what `load` reads and the mark it is at."""
    listener = listen(host, port)
    print_address(host, listener.getsockname()[1], port)
    server = make_server(run, host, render, load)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    print("server stopped")


class Server(uvicorn.Server):
    """uvicorn's, which tells those who follow the run before it waits for them to go."""

    def __init__(self, config: uvicorn.Config, audience: Audience) -> None:
        super().__init__(config)
        self.audience = audience

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.audience.send_away()
        await super().shutdown(sockets)


def make_server(
    run: Path, host: str, render: Callable[[Run, str], str], load: Callable[[Path], Run] = load_run
) -> Server:
    audience = Audience(Follower(run, render, load))
    config = uvicorn.Config(
        make_app(run, host, audience),
        http=PatientProtocol,
        log_level="error",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=LONGEST_HEADERS,
        limit_concurrency=MOST_CONNECTIONS,
        lifespan="off",
        ws="none",
    )
    return Server(config, audience)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on `port`, or on the next free one."""
    if not 0 <= port <= 65535:
        raise UserError(f"--server_port {port}: a port is a number from 0 to 65535")
    for candidate in range(port, min(port + PORTS_TRIED, 65536)):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            listener = socket.socket(family, kind, protocol)
        except socket.gaierror as fault:
            raise UserError(f"--host {host}: no such address ({fault.strerror}); leave it out for 127.0.0.1") from fault
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
            return listener
        except OSError as fault:
            listener.close()
            if fault.errno == errno.EACCES:
                raise UserError(f"--server_port {candidate}: not permitted; choose one above 1023") from fault
            if fault.errno != errno.EADDRINUSE:
                raise UserError(
                    f"--host {host}: cannot be bound ({fault.strerror}); leave it out for 127.0.0.1"
                ) from fault
    raise UserError(f"--server_port {port}: this port and all {PORTS_TRIED} after it are in use; choose another")


def print_address(host: str, port: int, wanted: int) -> None:
    if wanted not in (0, port):
        print(f"port {wanted} is in use; serving on {port}")
    if not is_loopback(host):
        print(
            f"warning: --host {host} lets other machines read this run, without password or encryption; "
            "127.0.0.1 with the ssh line is the safe way",
            file=sys.stderr,
        )
    shown = f"[{host}]" if ":" in host else host
    print(f"report: http://{shown}:{port}/  (Ctrl-C stops)")
    if is_loopback(host):
        print(f"from another machine: ssh -L {port}:{shown}:{port} {socket.gethostname()}", flush=True)


def is_loopback(host: str) -> bool:
    address = _ip(host)
    return address.is_loopback if address else host == "localhost"


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


# -------------------------------------------------------------------------------------------------- connections


class PatientProtocol(H11Protocol):
    """uvicorn's connection, looked at every PATIENCE_S: closed if it waits for a request, or for a byte of the answer
    to leave, as it did the last time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.last_look: tuple[object, int] | None = (None, 0)
        self.next_look = self.loop.call_later(PATIENCE_S, self.look)

    def connection_lost(self, exc: Exception | None) -> None:
        self.next_look.cancel()
        super().connection_lost(exc)

    def look(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        waiting = self.cycle is None or self.cycle.response_complete
        look = (self.cycle, unsent) if waiting or unsent else None
        if look is not None and look == self.last_look:
            self.transport.abort()
            return
        self.last_look = look
        self.next_look = self.loop.call_later(PATIENCE_S, self.look)


class Audience:
    """All who follow the run: one task polls for them while there are any, and each has a short queue."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.queues: set[asyncio.Queue[tuple[int, bytes] | None]] = set()
        self.polling: asyncio.Task[None] | None = None

    async def stream(self, mark: str) -> AsyncIterator[bytes]:
        """Events for one viewer, from what it has seen on, until the server ends or the viewer lags behind."""
        queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(NEWS_KEPT)
        self.queues.add(queue)
        self.follower.watched = True
        if self.polling is None or self.polling.done():
            self.polling = asyncio.create_task(self._poll())
        try:
            greeted, events = await run_in_threadpool(self.follower.greeting, mark)
            yield events
            while (news := await queue.get()) is not None:
                number, events = news
                if number == 0 or number > greeted:
                    yield events
        finally:
            self.queues.discard(queue)

    async def _poll(self) -> None:
        since_heartbeat = 0.0
        while self.queues:
            await asyncio.sleep(POLL_S)
            since_heartbeat += POLL_S
            news = await run_in_threadpool(self.follower.poll)
            if not news and since_heartbeat >= HEARTBEAT_S:
                news = [(0, await run_in_threadpool(self.follower.heartbeat))]
            if news:
                since_heartbeat = 0.0
                self._tell(news)
        self.follower.watched = False

    def _tell(self, news: list[tuple[int, bytes]]) -> None:
        for queue in list(self.queues):
            if queue.maxsize - queue.qsize() > len(news):
                for item in news:
                    queue.put_nowait(item)
            else:
                self._dismiss(queue)

    def _dismiss(self, queue: asyncio.Queue[tuple[int, bytes] | None]) -> None:
        self.queues.discard(queue)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)

    def send_away(self) -> None:
        for queue in list(self.queues):
            self._dismiss(queue)


# ------------------------------------------------------------------------------------------------------ answers


def make_app(run: Path, host: str, audience: Audience) -> ASGIApp:
    """The whole site. There is no router: every method and path passes the same checks."""
    headers = HEADERS | {"Content-Security-Policy": policy(live=True)}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        response: Response
        if refusal := _refusal(request, host):
            response = refusal
        elif request.scope["path"] == "/events" and request.method == "GET":
            response = _events(request, audience)
        else:
            response = await run_in_threadpool(_answer, request, run, audience.follower)
        response.headers.update(headers)
        await response(scope, receive, send)

    return app


def _refusal(request: Request, host: str) -> Response | None:
    if not host_allowed(request.headers.get("host", ""), host):
        return PlainTextResponse("this server answers to its own address only\n", 421)
    if request.method not in ("GET", "HEAD"):
        return PlainTextResponse("only GET and HEAD\n", 405, headers={"Allow": "GET, HEAD"})
    if len(request.scope["raw_path"]) + len(request.scope["query_string"]) > LONGEST_TARGET:
        return PlainTextResponse("the address is too long\n", 414)
    if sum(len(name) + len(value) for name, value in request.scope["headers"]) > LONGEST_HEADERS:
        return PlainTextResponse("the headers are too long\n", 431)
    return None


def _events(request: Request, audience: Audience) -> Response:
    asked = parse_qs(request.scope["query_string"].decode("latin-1")).get("last", [""])[-1]
    mark = request.headers.get("last-event-id", asked)
    return StreamingResponse(audience.stream(mark), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _answer(request: Request, run: Path, follower: Follower) -> Response:
    path = request.scope["path"]
    if path in REPORT_PATHS:
        try:
            return _in_chunks(follower.page()[1].encode("utf-8", errors="replace"))
        except UserError as fault:
            return Response(WAITING.format(escape(str(fault))), 503, {"Retry-After": "5"}, "text/html; charset=utf-8")
    if RUN_FILES.fullmatch(path) and (file := open_inside(run, path.lstrip("/"))):
        return _stream(file, MEDIA_TYPES[Path(path).suffix])
    return PlainTextResponse("not found\n", 404)


WAITING = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="5">'
    '<meta name="viewport" content="width=device-width"><title>No run yet</title>'
    "<h1>There is nothing to show yet</h1><p>{}</p><p>This page looks again every five seconds.</p>\n"
)


def host_allowed(header: str, bound: str) -> bool:
    """Does the Host header name this machine? A server bound to every address also answers to its host name and to any
    address in numbers: rebinding needs a name."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/@\s]+)(?::\d{1,5})?", header)
    if not match:
        return False
    name = match[1].strip("[]").lower().removesuffix(".")
    if name in ("localhost", "127.0.0.1", "::1", bound.lower()):
        return True
    everywhere = (address := _ip(bound)) is not None and address.is_unspecified
    return everywhere and (_ip(name) is not None or name in (socket.gethostname().lower(), socket.getfqdn().lower()))


def open_inside(run: Path, name: str) -> BinaryIO | None:
    """A regular file of the run, opened step by step without following any link below the run directory."""
    *folders, leaf = name.split("/")
    try:
        descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        for part, flags in [*((folder, os.O_DIRECTORY) for folder in folders), (leaf, os.O_NONBLOCK)]:
            inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
    except OSError:  # absent, a link, not readable: all of them "not found"
        os.close(descriptor)
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")


def _stream(file: BinaryIO, media_type: str) -> StreamingResponse:
    """As many bytes as the file has now: a log that grows meanwhile must not outrun its Content-Length."""
    size = os.fstat(file.fileno()).st_size

    def chunks() -> Iterator[bytes]:
        left = size
        with file:
            while left and (chunk := file.read(min(left, CHUNK_BYTES))):
                left -= len(chunk)
                yield chunk

    return StreamingResponse(chunks(), media_type=media_type, headers={"Content-Length": str(size)})


def _in_chunks(page: bytes) -> StreamingResponse:
    """A page may be large and a line slow: what is not yet sent is not copied."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(page), CHUNK_BYTES):
            yield page[start : start + CHUNK_BYTES]

    return StreamingResponse(
        chunks(), media_type="text/html; charset=utf-8", headers={"Content-Length": str(len(page))}
    )
