from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import uvicorn

import utils.live
import utils.server
from tests.utils.make_run import make_run
from utils.errors import UserError
from utils.series import Run
from utils.server import host_allowed, listen, make_server, print_address, serve


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def page_of(run: Run, mark: str) -> str:
    """What these tests need of a page."""
    return f'<body data-version="{mark}">step {run.last_step}'


@contextlib.contextmanager
def serving(run: Path, host: str = "127.0.0.1") -> Iterator[int]:
    """The real server on a free port, in a thread."""
    listener = listen(host, 0)
    server = make_server(run, host, page_of)
    thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        assert not thread.is_alive()


def ask(port: int, path: str, method: str = "GET", host: str | None = None) -> Answer:
    """One request, its path sent byte for byte as given."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", host if host is not None else f"127.0.0.1:{port}")
        connection.endheaders()
        response = connection.getresponse()
        return Answer(response.status, {key.lower(): value for key, value in response.getheaders()}, response.read())
    finally:
        connection.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A run with a secret beside it, links that point out, a pipe, and files that are not to be served."""
    root = tmp_path_factory.mktemp("site")
    run = make_run(root / "run", sft_steps=5, grpo_steps=5)
    for outside in ("outside.json", "secret.txt", "manifest.json"):
        (root / outside).write_text("OUTSIDE")
    (run / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (run / "checkpoints" / "checkpoint-1" / "state.json").write_text("OUTSIDE")
    (run / ".env").write_text("OUTSIDE")
    for hidden in (".hidden.png", "checkpoints/picture.png"):
        (run / hidden).write_bytes(b"OUTSIDE")
    (run / "evaluation" / "linked.jsonl").symlink_to(root / "outside.json")
    (run / "loss_curve.png").symlink_to(root / "secret.txt")
    (run / "evaluation" / "folder.jsonl").mkdir()
    os.mkfifo(run / "evaluation" / "pipe.jsonl")
    (run / "reward_components.png").write_bytes(b"\x89PNG\r\n")
    (run / "risk_curve.png").write_bytes(b"\x89PNG\r\n")
    with serving(run) as port:
        yield run, port


@pytest.mark.parametrize("path", ["/", "/page", "/training_report.html", "/?x=1"])
def test_the_report_is_at_these_addresses(site: tuple[Path, int], path: str) -> None:
    answer = ask(site[1], path)
    assert answer.status == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    assert b"step 10" in answer.body and int(answer.headers["content-length"]) == len(answer.body)


def test_every_answer_carries_the_safety_headers(site: tuple[Path, int]) -> None:
    for path, host in (("/", None), ("/metrics.jsonl", None), ("/nothing", None), ("/", "evil.example")):
        headers = ask(site[1], path, host=host).headers
        assert headers["x-content-type-options"] == "nosniff" and "server" not in headers
        policy = headers["content-security-policy"]
        assert "img-src 'self' data:;" in policy
        assert "default-src 'none'" in policy and "script-src 'sha256-" in policy and "script-src 'unsafe" not in policy


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("manifest.json", "application/json"),
        ("metrics.jsonl", "text/plain; charset=utf-8"),
        ("completions.jsonl", "text/plain; charset=utf-8"),
        ("reward_components.png", "image/png"),
        ("risk_curve.png", "image/png"),
        ("evaluation/secret.json", "application/json"),
        ("evaluation/secret_items.jsonl", "text/plain; charset=utf-8"),
    ],
)
def test_the_runs_own_files_are_served_as_they_are(site: tuple[Path, int], name: str, kind: str) -> None:
    run, port = site
    answer = ask(port, "/" + name)
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, kind, (run / name).read_bytes())
    head = ask(port, "/" + name, method="HEAD")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(answer.body)))


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/../manifest.json",
        "/./manifest.json",
        "/%2e%2e/manifest.json",
        "/..%2fmanifest.json",
        "/%252e%252e/manifest.json",
        "/evaluation/../../manifest.json",
        "/evaluation/..%2f..%2foutside.json",
        "/evaluation/%2e%2e/%2e%2e/outside.json",
        "/evaluation/..%5c..%5coutside.json",
        "//etc/passwd",
        "/%2fetc%2fpasswd",
        "/etc/passwd",
        "/manifest.json%00.png",
        "/manifest.json%0a",
        "/manifest.json/",
        "/evaluation",
        "/evaluation/",
        "/evaluation/absent.json",
        "/checkpoints/",
        "/checkpoints/checkpoint-1/state.json",
        "/.env",
        "/loss_curve.png",
        "/.hidden.png",
        "/checkpoints/picture.png",
        "/evaluation/linked.jsonl",
        "/evaluation/pipe.jsonl",
        "/evaluation/folder.jsonl",
        "/training_report.html.bak",
        "/favicon.ico",
        "/version",
        "/events/",
        "/page/",
    ],
)
def test_nothing_else_is(site: tuple[Path, int], path: str) -> None:
    answer = ask(site[1], path)
    assert answer.status == 404 and answer.body == b"not found\n"


def test_an_absolute_request_target_is_no_way_out(site: tuple[Path, int]) -> None:
    for target in ("http://evil.example/../secret.txt", "file:///etc/passwd"):
        answer = ask(site[1], target)
        assert answer.status in (400, 404) and b"OUTSIDE" not in answer.body and b"root:" not in answer.body


def test_a_linked_evaluation_folder_is_not_followed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sft_steps=2, grpo_steps=2, evaluation=False)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.json").write_text('{"models": {}}')
    (run / "evaluation").symlink_to(tmp_path / "elsewhere")
    with serving(run) as port:
        assert ask(port, "/evaluation/secret.json").status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
def test_only_reading(site: tuple[Path, int], method: str) -> None:
    answer = ask(site[1], "/manifest.json", method=method)
    assert answer.status == 405 and answer.headers["allow"] == "GET, HEAD"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_foreign_host_name_is_refused(site: tuple[Path, int]) -> None:
    for host in (
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "192.168.1.7",
    ):
        answer = ask(site[1], "/metrics.jsonl", host=host)
        assert answer.status == 421 and b"loss" not in answer.body, host
    for host in ("localhost", "LOCALHOST:9000", "127.0.0.1", "[::1]:8000"):
        assert ask(site[1], "/metrics.jsonl", host=host).status == 200, host


def test_which_hosts_a_bound_address_answers_to() -> None:
    assert host_allowed("box.lan:8000", "box.lan") and not host_allowed("other.lan", "box.lan")
    assert host_allowed("192.168.1.7:8000", "0.0.0.0") and host_allowed("[fe80::1]", "::")
    assert host_allowed(socket.gethostname(), "0.0.0.0") and not host_allowed("evil.example", "0.0.0.0")
    for malformed in ("a@localhost", "localhost:", "localhost:80:80", "[::1", "local host", "localhost/"):
        assert not host_allowed(malformed, "127.0.0.1"), malformed


def test_a_port_in_use_moves_to_the_next_free_one(capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with listen("127.0.0.1", port) as moved:
            new = moved.getsockname()[1]
            assert new > port
            print_address("127.0.0.1", new, port)
    out, err = capsys.readouterr()
    assert f"port {port} is in use; serving on {new}" in out and f"http://127.0.0.1:{new}/" in out
    assert f"ssh -L {new}:127.0.0.1:{new} " in out and err == ""


def test_another_host_warns(capsys: pytest.CaptureFixture[str]) -> None:
    print_address("0.0.0.0", 8000, 8000)
    out, err = capsys.readouterr()
    assert "warning: --host 0.0.0.0" in err and "ssh" not in out
    print_address("localhost", 8000, 8000)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("host", "port", "said"), [
    ("127.0.0.1", 70000, "--server_port 70000"),
    ("127.0.0.1", -1, "--server_port -1"),
    ("no.such.host.invalid", 0, "--host no.such.host.invalid"),
    ("203.0.113.9", 0, "--host 203.0.113.9: cannot be bound"),
])  # fmt: skip
def test_an_address_that_cannot_be_served(host: str, port: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        listen(host, port)


def test_all_ports_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils.server, "PORTS_TRIED", 1)
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="in use; choose another"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_a_directory_that_lost_its_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with serving(tmp_path / "run") as port:
        answer = ask(port, "/")
        assert answer.status == 503 and b"no run here" in answer.body and b"looks again" in answer.body
        assert ask(port, "/metrics.jsonl").status == 404
    (tmp_path / "<script>").mkdir()
    with serving(tmp_path / "<script>") as port:
        assert b"<script>" not in ask(port, "/").body


def test_a_broken_run_has_a_page_all_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sft_steps=0, grpo_steps=5)
    for name in ("manifest.json", "evaluation/secret.json"):
        (run / name).write_text("{")
    (run / "completions.jsonl").write_bytes(b"\xff\x00\n[]\n")
    with serving(run) as port:
        answer = ask(port, "/")
        assert answer.status == 200 and b"step 5" in answer.body


# ------------------------------------------------------------------------------------------------------- live


class Viewer:
    """One who holds the events open."""

    def __init__(self, port: int, mark: str = "", last_event: str | None = None) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        headers = {} if last_event is None else {"Last-Event-ID": last_event}
        self.connection.request("GET", f"/events?last={mark}", headers=headers)
        self.response = self.connection.getresponse()

    def next(self) -> tuple[str, str, Any]:
        """Name, id and data of the next event."""
        fields: dict[str, str] = {}
        while "data" not in fields:
            line = self.response.readline().decode("ascii")
            assert line, "the stream has ended"
            name, _, value = line.rstrip("\n").partition(": ")
            fields[name] = value
        return fields["event"], fields["id"], json.loads(fields["data"])


def grow(run: Path, step: int) -> None:
    with (run / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": step, "time": 1.0, "split": "grpo", "resumes": 0, "reward": 1.0}) + "\n")


def mark_of(port: int) -> str:
    return ask(port, "/").body.decode().split('"')[1]


def steps_of(event: tuple[str, str, Any]) -> list[int]:
    return [step for piece in event[2]["charts"] for step in piece["steps"]]


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, int]]:
    monkeypatch.setattr(utils.server, "POLL_S", 0.05)
    monkeypatch.setattr(utils.server, "HEARTBEAT_S", 0.4)
    run = make_run(tmp_path / "run", sft_steps=0, grpo_steps=5, alarms=False, status="running")
    with serving(run) as port:
        yield run, port


def test_a_viewer_gets_what_is_logged_and_what_it_missed_meanwhile(live: tuple[Path, int]) -> None:
    run, port = live
    mark = mark_of(port)
    viewer = Viewer(port, mark)
    assert viewer.response.getheader("Content-Type") == "text/event-stream; charset=utf-8"
    assert viewer.response.getheader("Cache-Control") == "no-store"
    assert viewer.next()[:2] == ("progress", mark)
    grow(run, 6)
    event = viewer.next()
    assert event[0] == "append" and steps_of(event) == [6]
    viewer.connection.close()
    grow(run, 7)
    grow(run, 8)
    assert steps_of(Viewer(port, mark, last_event=event[1]).next()) == [7, 8]
    assert steps_of(Viewer(port, mark).next()) == [6, 7, 8]


def test_silence_is_broken_by_heartbeats(live: tuple[Path, int]) -> None:
    viewer = Viewer(live[1], mark_of(live[1]))
    assert [viewer.next()[0] for _ in range(3)] == ["progress"] * 3


def test_a_viewer_of_another_state_is_told_to_reload(live: tuple[Path, int]) -> None:
    run, port = live
    viewer = Viewer(port, mark_of(port))
    viewer.next()
    manifest = run / "manifest.json"
    manifest.write_text(manifest.read_text().replace("running", "done"))
    assert after_heartbeats(viewer)[0] == "reload" and Viewer(port, "nonsense").next()[0] == "reload"


def test_fifty_viewers_are_served_by_one_poll_each_time(
    live: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, port = live
    mark = mark_of(port)
    viewers = [Viewer(port, mark) for _ in range(50)]
    for viewer in viewers:
        assert viewer.next()[0] == "progress"
    appended: list[str] = []
    points = utils.live.new_points

    def counted(index: int, run: Run, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        appended.extend(str(row["step"]) for row in rows)
        return points(index, run, rows)

    monkeypatch.setattr(utils.live, "new_points", counted)
    grow(run, 6)
    for viewer in viewers:
        assert steps_of(after_heartbeats(viewer)) == [6]
    assert appended == ["6"]


def test_who_comes_between_two_polls_gets_nothing_twice(
    live: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utils.server, "POLL_S", 0.4)
    run, port = live
    mark = mark_of(port)
    first = Viewer(port, mark)
    first.next()
    grow(run, 6)
    second = Viewer(port, mark)
    for viewer in (first, second):
        assert steps_of(after_heartbeats(viewer)) == [6]
    grow(run, 7)
    for viewer in (first, second):
        assert steps_of(after_heartbeats(viewer)) == [7]


def after_heartbeats(viewer: Viewer) -> tuple[str, str, Any]:
    while (event := viewer.next())[0] == "progress":
        pass
    return event


def test_the_server_ends_though_viewers_hold_on_and_ends_their_streams(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sft_steps=0, grpo_steps=2)
    with serving(run) as port:
        viewer = Viewer(port)
        viewer.next()
    viewer.response.read()  # a stream that was cut off is an IncompleteRead


# ------------------------------------------------------------------------------------- hostile and slow clients


def raw(port: int, sent: bytes, patience: float = 5.0) -> bytes:
    """All that comes back for these bytes until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 16):
                answer += part
        return answer


def test_huge_headers_and_addresses_are_refused(site: tuple[Path, int]) -> None:
    run, port = site
    host = f"Host: 127.0.0.1:{port}\r\nConnection: close\r\n".encode()
    many = b"".join(b"X-%d: %s\r\n" % (index, b"a" * 100) for index in range(500))
    for request, statuses in (
        (b"GET / HTTP/1.1\r\n" + host + b"X: " + b"a" * (1 << 20) + b"\r\n\r\n", (b"400", b"431")),
        (b"GET / HTTP/1.1\r\n" + host + many + b"\r\n", (b"400", b"431")),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n" + host + b"\r\n", (b"414",)),
        (b"GET /?" + b"a" * 5000 + b" HTTP/1.1\r\n" + host + b"\r\n", (b"414",)),
        (b"GET /events?last=" + b"a" * 5000 + b" HTTP/1.1\r\n" + host + b"\r\n", (b"414",)),
        (b"\x00\xff" * 1000 + b"\r\n\r\n", (b"400",)),
    ):
        answer = raw(port, request)
        assert answer == b"" or answer.split(b" ")[1] in statuses, request[:40]
        assert b"loss" not in answer


def test_two_host_headers_are_refused(site: tuple[Path, int]) -> None:
    answer = raw(site[1], b"GET /metrics.jsonl HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n")
    assert b"loss" not in answer and answer.split(b" ")[1] in (b"400", b"421")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils.server, "PATIENCE_S", 0.2)


@pytest.mark.parametrize("begun", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: 127", b"GET / HTTP/1.1\r\n"])
def test_a_request_that_never_ends_is_cut_off(tmp_path: Path, impatient: None, begun: bytes) -> None:
    with serving(make_run(tmp_path / "run", sft_steps=1, grpo_steps=0)) as port:
        assert raw(port, begun) == b""


def test_a_second_request_that_never_ends_is_cut_off(tmp_path: Path, impatient: None) -> None:
    with serving(make_run(tmp_path / "run", sft_steps=1, grpo_steps=0)) as port:
        whole = f"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        answer = raw(port, whole + b"GET / HTT")
        assert answer.count(b"HTTP/1.1") == 1 and b"not found" in answer


def test_who_does_not_take_the_answer_is_cut_off(tmp_path: Path, impatient: None) -> None:
    run = make_run(tmp_path / "run", sft_steps=1, grpo_steps=0)
    (run / "loss_curve.png").write_bytes(b"x" * (64 << 20))
    with serving(run) as port, socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"GET /loss_curve.png HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        connection.recv(100)
        time.sleep(1.5)
        received = 0
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 20):
                received += len(part)
        assert received < 32 << 20


def test_a_quiet_viewer_is_not_cut_off(tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils.server, "POLL_S", 0.05)
    run = make_run(tmp_path / "run", sft_steps=0, grpo_steps=5, alarms=False)
    with serving(run) as port:
        viewer = Viewer(port, mark_of(port))
        viewer.next()
        time.sleep(1.0)
        grow(run, 6)
        assert steps_of(viewer.next()) == [6]


def test_there_are_only_so_many_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils.server, "MOST_CONNECTIONS", 4)
    with serving(make_run(tmp_path / "run", sft_steps=1, grpo_steps=0)) as port:
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
        assert ask(port, "/").status == 503
        for connection in held:
            connection.close()


def test_serve_ends_quietly_on_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        sockets[0].close()
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    serve(make_run(tmp_path, sft_steps=1, grpo_steps=1), "127.0.0.1", 0, page_of)
    assert capsys.readouterr().out.endswith("server stopped\n")


def test_the_server_knows_no_page_of_its_own() -> None:
    code = "import sys, utils.server; print('utils.visualization' in sys.modules, 'matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
