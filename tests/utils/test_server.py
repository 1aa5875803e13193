from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest
import uvicorn

import utils.server
from tests.utils.make_run import make_run
from utils.errors import UserError
from utils.series import Run
from utils.server import Page, configuration, host_allowed, listen, print_address, serve
from utils.visualization import render_report

CHROMIUM = shutil.which("chromium")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@contextlib.contextmanager
def serving(run: Path, host: str = "127.0.0.1") -> Iterator[int]:
    """The real server on a free port, in a thread."""
    listener = listen(host, 0)
    server = uvicorn.Server(configuration(run, host))
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


@pytest.mark.parametrize("path", ["/", "/training_report.html", "/?x=1"])
def test_the_report_is_at_both_addresses(site: tuple[Path, int], path: str) -> None:
    answer = ask(site[1], path)
    assert answer.status == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    assert b"secret \xc2\xb7 tiny" in answer.body and b"/version" in answer.body


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


def grow(run: Path, step: int) -> None:
    with (run / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": step, "time": 1.0, "split": "grpo", "resumes": 0, "reward": 1.0}) + "\n")


def test_the_page_follows_the_run_once_a_change_and_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, sft_steps=0, grpo_steps=5, alarms=False, status="running")
    rendered: list[str] = []

    def counted(run: Run, version: str) -> str:
        rendered.append(version)
        return render_report(run, version)

    monkeypatch.setattr(utils.server, "render_report", counted)
    now = [100.0]
    page = Page(run, clock=lambda: now[0])
    first, html = page.current()
    assert f'data-version="{first}"' in html
    now[0] += 5
    assert page.current()[0] == first and len(rendered) == 1
    grow(run, 6)
    second, html = page.current()
    assert second != first and "1\u20136" in html and len(rendered) == 2
    grow(run, 7)
    now[0] += 0.9
    assert page.current()[0] == second and len(rendered) == 2
    now[0] += 0.2
    assert page.current()[0] != second and len(rendered) == 3


def test_a_torn_or_broken_file_keeps_the_last_good_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sft_steps=0, grpo_steps=5)
    now = [0.0]
    page = Page(run, clock=lambda: now[0])
    good = page.current()
    (run / "evaluation" / "secret.json").write_text("{")
    now[0] += 10
    assert page.current() == good
    broken = Page(run, clock=lambda: now[0])
    for _ in range(2):
        with pytest.raises(UserError, match=r"secret\.json"):
            broken.current()


def test_a_directory_that_lost_its_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with serving(tmp_path / "run") as port:
        for path in ("/", "/version"):
            answer = ask(port, path)
            assert answer.status == 503 and b"no run here" in answer.body


def test_version_is_that_of_the_page(site: tuple[Path, int]) -> None:
    version = ask(site[1], "/version").body.decode()
    assert version and f'data-version="{version}"'.encode() in ask(site[1], "/").body


def test_serve_ends_quietly_on_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        sockets[0].close()
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    serve(make_run(tmp_path, sft_steps=1, grpo_steps=1), "127.0.0.1", 0)
    assert capsys.readouterr().out.endswith("server stopped\n")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_in_a_browser_the_page_takes_up_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", sft_steps=0, grpo_steps=5, alarms=False, status="running")

    def render_then_grow(read: Run, version: str) -> str:
        html = render_report(read, version)
        if "1\u20135" in html:
            grow(run, 6)
        return html

    monkeypatch.setattr(utils.server, "render_report", render_then_grow)
    monkeypatch.setattr(utils.server, "SHORTEST_PAUSE_S", 0.0)
    monkeypatch.setattr(utils.server, "PAUSE_FACTOR", 0.0)
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --dump-dom "
        f"--virtual-time-budget=9000 --user-data-dir={tmp_path}/profile"
    )
    with serving(run) as port:
        command = [str(CHROMIUM), *flags.split(), f"http://127.0.0.1:{port}/"]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "1\u20136" in dom and "1\u20135" not in dom
