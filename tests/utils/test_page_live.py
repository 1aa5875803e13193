"""The page that is served, while its run goes on: in Chromium, before the real server."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.utils.browser import CHROMIUM, Tab, browser
from tests.utils.make_run import make_run
from utils.series import load_run
from utils.server import listen, make_server
from utils.visualization import render_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

REWARD = "drawn.find((one) => one.record.key === 'reward').record.lines[0]"


@contextlib.contextmanager
def serving(run: Path, listener: socket.socket) -> Iterator[str]:
    server = make_server(run, "127.0.0.1", render_report)
    thread = Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        opened.resize(1280)
        yield opened


def add(run: Path, name: str, row: dict[str, Any]) -> None:
    with (run / name).open("a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")


def log_step(run: Path, step: int, reward: float) -> None:
    add(run, "metrics.jsonl", {"step": step, "time": 1.0 + step, "split": "grpo", "resumes": 0, "reward": reward})
    text = f"<img src=x onerror=alert({step})>"
    texts = {"prompt": text, "completion": text, "visible": text, "hidden": text, "failure": None}
    add(run, "completions.jsonl", {"step": step, "resumes": 0, **texts, "rewards": {"format": 1.0}, "total": reward})


def test_new_points_and_texts_come_by_themselves_and_choices_stay(tab: Tab, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sft_steps=5, grpo_steps=30, status="running", evaluation=False, alarms=False)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    with serving(run, listener) as address:
        tab.open(f"{address}#sort=step&order=down&zoom=8~20&smooth=0")
        tab.wait("document.getElementById('live').textContent === 'follows the run'")
        assert tab.errors == []
        tab.js("globalThis.first = document.querySelector('main')")
        log_step(run, 36, 4.25)
        tab.wait(f"{REWARD}.steps.includes(36) && onPage[0]?.step === 36")
        assert tab.js(f"{REWARD}.values.at(-1)") == 4.25 and tab.js("order.length") == 61
        assert "<img src=x onerror=alert(36)>" in tab.js("document.querySelector('#rows .part').textContent")
        assert tab.js("state.zoom") == "8~20" and tab.js("drawn[0].plot.scales.x.min") == 8
        assert tab.js("first === document.querySelector('main')"), "the page was not loaded anew"
        tab.wait("document.getElementById('progress').textContent.includes('step 36')")
    tab.wait("document.getElementById('live').textContent.startsWith('connection lost')")
    log_step(run, 37, 4.5)
    log_step(run, 38, 4.75)
    with serving(run, listen("127.0.0.1", port)):
        tab.wait("document.getElementById('live').textContent === 'follows the run'")
        tab.wait(f"{REWARD}.steps.includes(38) && onPage[0]?.step === 38")
        assert tab.js(f"{REWARD}.steps.slice(-3)") == [36, 37, 38], "what was missed came, once"
        assert tab.js("order.length") == 63
        evaluation = make_run(tmp_path / "other", sft_steps=1, grpo_steps=1) / "evaluation"
        evaluation.rename(run / "evaluation")
        tab.wait("document.querySelector('[data-part=evaluation]').textContent.includes('Strict format rate')")
        tab.wait("document.documentElement.dataset.ready && table.loaded && order.length === 63")
        assert tab.js("location.hash") == "#sort=step&order=down&zoom=8~20&smooth=0"
        assert tab.js("onPage[0].step") == 38 and tab.js("drawn[0].plot.scales.x.min") == 8
        assert all(asked.startswith(f"http://127.0.0.1:{port}/") for asked in tab.requests)


def test_behind_a_path_prefix_and_a_proxy_that_has_no_server_yet(tab: Tab, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", sft_steps=2, grpo_steps=3, status="running", evaluation=False, alarms=False)
    html = render_report(load_run(run), version="m")
    asked: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            events = self.path.startswith("/box/7/events")
            self.send_response(503 if events and len(asked) < 3 else 200)
            self.send_header("Content-Type", "text/event-stream" if events else "text/html; charset=utf-8")
            self.end_headers()
            piece = {
                "key": "reward",
                "run": 0,
                "kind": "value",
                "steps": [6],
                "values": [2.5],
                "low": None,
                "high": None,
            }
            news = f"id: n\nevent: append\ndata: {json.dumps({'charts': [piece]})}\n\n"
            self.wfile.write(news.encode() if events else html.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        tab.open(f"http://127.0.0.1:{server.server_port}/box/7/")
        tab.wait(f"{REWARD}.values.at(-1) === 2.5")
    finally:
        server.shutdown()
        server.server_close()
    assert asked[:3] == ["/box/7/", "/box/7/events?last=m", "/box/7/events?last=m"]
    assert all(path.startswith("/box/7/") for path in asked)
