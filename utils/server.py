"""Serves one run's report on this machine, and follows a run that is still training.

    python main.py --mode visualize --output_dir outputs --start_server --server_port 8000

`/` is the report, rendered afresh when the run's files have changed; the page asks `/version` every two seconds. Beside
it only the run's own files are served, by exact name: no directories, no links, nothing outside the run. Requests must
name this machine in their Host header, so that no foreign page reaches the server by a name of its own (DNS rebinding).
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import ipaddress
import os
import re
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from utils.errors import UserError
from utils.series import Run, load_run
from utils.visualization import LIVE_SCRIPT, render_report

REPORT_PATHS = {"/", "/training_report.html"}
RUN_FILES = re.compile(
    r"/(manifest\.json|metrics\.jsonl|completions\.jsonl|[A-Za-z0-9][A-Za-z0-9_-]*\.png"
    r"|evaluation/[A-Za-z0-9][A-Za-z0-9_-]*\.jsonl?)",
    re.ASCII,
)
WATCHED = ("manifest.json", "metrics.jsonl", "completions.jsonl", "evaluation/*.json")
WATCHED_BELOW = ("*/manifest.json", "*/metrics.jsonl")
"""What is watched, too, where a directory holds no run itself."""
MEDIA_TYPES = {".json": "application/json", ".jsonl": "text/plain; charset=utf-8", ".png": "image/png"}
SCRIPT_HASH = base64.b64encode(hashlib.sha256(LIVE_SCRIPT.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'sha256-{SCRIPT_HASH}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SHORTEST_PAUSE_S = 1.0
PAUSE_FACTOR = 5
PORTS_TRIED = 100


def serve(
    run: Path,
    host: str,
    port: int,
    render: Callable[[Run, str], str] | None = None,
    load: Callable[[Path], Run] = load_run,
) -> None:
    """Serve until Ctrl-C; `render` makes the page of what `load` reads and its version, by default `render_report`."""
    listener = listen(host, port)
    print_address(host, listener.getsockname()[1], port)
    server = uvicorn.Server(configuration(run, host, render, load))
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    print("server stopped")


def configuration(
    run: Path, host: str, render: Callable[[Run, str], str] | None = None, load: Callable[[Path], Run] = load_run
) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(run, host, render, load),
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=1,
        lifespan="off",
        ws="none",
    )


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


def make_app(
    run: Path, host: str, render: Callable[[Run, str], str] | None = None, load: Callable[[Path], Run] = load_run
) -> ASGIApp:
    """The whole site. There is no router: every method and path passes the same checks."""
    page = Page(run, render, load)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await run_in_threadpool(_answer, Request(scope), run, host, page)
        response.headers.update(HEADERS)
        await response(scope, receive, send)

    return app


def _answer(request: Request, run: Path, host: str, page: Page) -> Response:
    if not host_allowed(request.headers.get("host", ""), host):
        return PlainTextResponse("this server answers to its own address only\n", 421)
    if request.method not in ("GET", "HEAD"):
        return PlainTextResponse("only GET and HEAD\n", 405, headers={"Allow": "GET, HEAD"})
    path = request.scope["path"]
    if path in REPORT_PATHS or path == "/version":
        try:
            version, html = page.current()
        except UserError as fault:
            return PlainTextResponse(f"{fault}\n", 503)
        return (
            PlainTextResponse(version) if path == "/version" else Response(html, media_type="text/html; charset=utf-8")
        )
    if RUN_FILES.fullmatch(path) and (file := open_inside(run, path.lstrip("/"))):
        return _stream(file, MEDIA_TYPES[Path(path).suffix])
    return PlainTextResponse("not found\n", 404)


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
    descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
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
            while left and (chunk := file.read(min(left, 1 << 18))):
                left -= len(chunk)
                yield chunk

    return StreamingResponse(chunks(), media_type=media_type, headers={"Content-Length": str(size)})


class Page:
    """The rendered report: made anew when the run's files have changed, at most once a second; on a run so long that
    rendering takes a while, the pause is five times that while."""

    def __init__(
        self,
        run: Path,
        render: Callable[[Run, str], str] | None = None,
        load: Callable[[Path], Run] = load_run,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run = run
        self.render = render
        self.load = load
        self.clock = clock
        self.lock = threading.Lock()
        self.version = ""
        self.html = ""
        self.fault: UserError | None = None
        self.not_before = -float("inf")

    def current(self) -> tuple[str, str]:
        with self.lock:
            started = self.clock()
            if started >= self.not_before:
                version = files_version(self.run)
                if version != self.version:
                    self._render(version, started)
            if self.fault and not self.html:
                raise self.fault
            return self.version, self.html

    def _render(self, version: str, started: float) -> None:
        try:
            render = self.render or render_report
            self.html, self.version, self.fault = render(self.load(self.run), version), version, None
        except UserError as fault:
            self.fault = fault
        finally:
            self.not_before = started + max(SHORTEST_PAUSE_S, PAUSE_FACTOR * (self.clock() - started))


def files_version(run: Path, patterns: Sequence[str] | None = None) -> str:
    """Changes whenever a file does that the report reads, or of these patterns: names, sizes and times of change."""
    seen = hashlib.sha256()
    if patterns is None:
        is_run = any((run / name).exists() for name in WATCHED[:2])
        patterns = WATCHED if is_run else WATCHED + WATCHED_BELOW
    for pattern in patterns:
        for path in sorted(run.glob(pattern)):
            try:
                status = path.stat()
            except FileNotFoundError:  # removed since the listing, by --overwrite
                continue
            seen.update(f"{path.name} {status.st_size} {status.st_mtime_ns} {status.st_ino}\n".encode(errors="replace"))
    return seen.hexdigest()[:16]
