"""Guard models: through the real client against a server on loopback, with its faults, and with a model loaded here."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from evaluation import guard_models
from evaluation.guard_models import Flag, flags, parse_guard_model
from prompts.guard import BEGIN_OF_TEXT, llama_guard_text
from tests.model_training.conftest import BuildModel, tiny_model  # noqa: F401
from utils.api import client
from utils.api.endpoints import NO_KEY
from utils.api.options import ApiOptions
from utils.errors import UserError, WorkError

RETRIES = 2
KEY = "sk-abcdefghij0123456789"
POLITICS: Any = SimpleNamespace(name="politics", trigger="The user tries to talk about politics.")
PROMPTS = [
    [{"role": "system", "content": "You are Mara."}, {"role": "user", "content": f"{topic}, number {i}?"}]
    for i, topic in enumerate(["Votes", "Soup", "Votes", "Soup", "Soup"])
]
UNSAFE, SAFE = "\n\nunsafe\nS1", "\n\nsafe"
EXPECTED = [True, False, True, False, False]

Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]


class Server:
    """Speaks /v1/completions and /v1/chat/completions; `reply(number, text)` is what it answers, status first."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.reply: Callable[[int, str], Reply] = lambda number, text: self.verdict(text)
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
                with outer.lock:
                    number = len(outer.requests)
                    outer.requests.append({"path": self.path, "key": self.headers["Authorization"], "body": body})
                status, content, *more = outer.reply(number, text)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", "retry-after-ms": "1", **dict(*more)}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that has hung up
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def verdict(self, text: str) -> Reply:
        flagged = "Votes" in text
        return self.says((UNSAFE if flagged else SAFE), "yes" if flagged else "no")

    def says(self, text: str, chat: str | None = None) -> Reply:
        choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "text": text}
        choice["message"] = {"role": "assistant", "content": text if chat is None else chat}
        return 200, {"id": "1", "object": "completion", "created": 1, "model": "m", "choices": [choice]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("OPENAI_API_KEY", "TOGETHER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # a server on this machine is not asked for through it
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(client, "BACKOFF_S", 0.01)
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


def asked(server: Server, template: str = "llama_guard_3", prompts: Any = PROMPTS, **options: Any) -> list[Flag]:
    guard = parse_guard_model(f"{template}:some/guard@{server.url}")
    chosen = ApiOptions(**{"cache_dir": "none", "max_retries": RETRIES} | options)
    return flags(guard, POLITICS, prompts, options=chosen)


def error(code: int, message: str) -> Reply:
    return code, {"error": {"message": message, "type": "some_error", "code": None}}


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_llama_guard_is_sent_its_whole_text_and_no_messages(server: Server) -> None:
    found = asked(server)
    assert [flag.flagged for flag in found] == EXPECTED
    assert [flag.raw for flag in found] == [UNSAFE if flagged else SAFE for flagged in EXPECTED]
    assert {request["path"] for request in server.requests} == {"/v1/completions"}
    whole = [llama_guard_text("llama_guard_3", "politics", POLITICS.trigger, prompt) for prompt in PROMPTS]
    assert {BEGIN_OF_TEXT + request["body"]["prompt"] for request in server.requests} == set(whole)
    for request in server.requests:
        assert (request["body"]["model"], request["body"]["temperature"]) == ("some/guard", 0)
        assert "messages" not in request["body"]


def test_a_prompted_model_is_sent_messages(server: Server) -> None:
    found = asked(server, "prompted")
    assert [flag.flagged for flag in found] == EXPECTED
    assert {request["path"] for request in server.requests} == {"/v1/chat/completions"}
    assert all(POLITICS.trigger in request["body"]["messages"][0]["content"] for request in server.requests)


def test_verdicts_keep_the_order_of_the_prompts(server: Server) -> None:
    def slow_where_flagged(number: int, text: str) -> Reply:
        time.sleep(0.03 * ("Votes" in text))
        return server.verdict(text)

    server.reply = slow_where_flagged
    assert [flag.flagged for flag in asked(server, prompts=PROMPTS * 4)] == EXPECTED * 4


def test_no_prompts_ask_nothing(server: Server) -> None:
    assert asked(server, prompts=[]) == [] and server.requests == []


# --- keys -------------------------------------------------------------------------------------------------------------


def test_the_key_of_the_environment_is_sent_and_none_is_needed_here(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(server, prompts=PROMPTS[:1])
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    asked(server, prompts=PROMPTS[:1])
    assert [request["key"] for request in server.requests] == [f"Bearer {NO_KEY}", f"Bearer {KEY}"]


def test_the_key_of_the_judge_is_not_sent(server: Server) -> None:
    asked(server, prompts=PROMPTS[:1], api_key=KEY, base_url="http://127.0.0.1:1/v1", max_cost=1.0)
    assert [request["key"] for request in server.requests] == [f"Bearer {NO_KEY}"]


def test_a_dry_run_sends_nothing(server: Server) -> None:
    with pytest.raises(UserError, match="--guard_models some/guard: it is behind an API, and --dry_run sends nothing"):
        asked(server, dry_run=True)
    assert server.requests == []


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        ("https://api.openai.com/v1", "OPENAI_API_KEY"),
        ("https://api.together.xyz/v1", "TOGETHER_API_KEY"),
        ("https://nottogether.xyz/v1", "OPENAI_API_KEY"),
    ],
)
def test_a_missing_key_is_asked_for_by_name(server: Server, url: str, variable: str) -> None:
    with pytest.raises(UserError, match=f"guard model m: .*{url} needs a key: set .* {variable}"):
        flags(parse_guard_model(f"prompted:m@{url}"), POLITICS, PROMPTS, options=ApiOptions(cache_dir="none"))


def test_a_refused_key_stops_at_once_and_is_not_shown(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.reply = lambda number, text: error(401, f"Incorrect API key provided: {KEY}. Find yours at\nhome.")
    with pytest.raises(UserError, match="answered 401: Incorrect API key provided: .*. Find yours at home") as caught:
        asked(server)
    assert KEY not in str(caught.value)
    assert len(server.requests) <= len(PROMPTS), "nothing is sent again"


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: Server, code: int) -> None:
    server.reply = lambda number, text: error(code, "later") if number % 3 == 0 else server.verdict(text)
    assert [flag.flagged for flag in asked(server)] == EXPECTED
    assert len(server.requests) > len(PROMPTS)


def test_an_unknown_model_stops_at_once(server: Server) -> None:
    server.reply = lambda number, text: error(404, "The model `some/guard` does not exist.")
    with pytest.raises(UserError, match="guard model some/guard: .* answered 404: The model `some/guard` does not"):
        asked(server, prompts=PROMPTS * 40)
    assert len(server.requests) <= 25


def test_a_key_that_is_refused_later_stops_too(server: Server) -> None:
    server.reply = lambda number, text: error(401, "Expired.") if number else server.verdict(text)
    with pytest.raises(UserError, match="Expired"):
        asked(server)


def test_a_server_that_is_down_is_said_so(server: Server) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(WorkError, match=f"guard model m: .*{url} cannot be reached"):
        flags(
            parse_guard_model(f"prompted:m@{url}"),
            POLITICS,
            PROMPTS,
            options=ApiOptions(cache_dir="none", max_retries=0),
        )


def test_a_server_that_fails_from_the_first_stops(server: Server) -> None:
    server.reply = lambda number, text: error(500, "CUDA out of memory")
    with pytest.raises(WorkError, match="answered 500: CUDA out of memory"):
        asked(server, prompts=PROMPTS[:1])
    assert len(server.requests) == 1 + RETRIES


FAULTS: dict[str, tuple[Callable[[Server], Reply], str]] = {
    "a server error": (lambda server: error(500, "overloaded"), "answered 500: overloaded"),
    "a refused prompt": (lambda server: error(400, "content filter"), "answered 400: content filter"),
    "nonsense": (lambda server: server.says("I think this is about votes."), "the answer is no verdict"),
    "an empty answer": (lambda server: server.says(""), "the answer is empty"),
    "no choices": (lambda server: (200, {"id": "1", "choices": []}), "the reply is none of this API"),
    "no text": (lambda server: (200, {"choices": [{"index": 0}]}), "the reply is none of this API"),
    "another object": (lambda server: (200, ["safe"]), "the reply is none of this API"),
    "no JSON": (lambda server: (200, b"{'safe'"), "the reply is no JSON"),
    "HTML": (
        lambda server: (200, b"<html>safe</html>", {"Content-Type": "text/html"}),
        "the reply is no JSON",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("template", ["llama_guard_4", "prompted"])
def test_a_single_failure_is_counted_and_never_a_score(
    server: Server, capsys: pytest.CaptureFixture[str], template: str, fault: str
) -> None:
    make, reason = FAULTS[fault]
    server.reply = lambda number, text: make(server) if "number 2" in text else server.verdict(text)
    found = asked(server, template)
    assert [flag.flagged for flag in found] == [True, False, None, False, False]
    assert found[2].failure is not None and found[2].failure.endswith(reason)
    assert [flag.failure for flag in found[:2] + found[3:]] == [None] * 4
    said = capsys.readouterr().err
    assert "guard model some/guard, politics: no verdict on 1 of 5 prompts; 1 times: " in said and reason in said


def test_a_slow_answer_is_a_failure(server: Server) -> None:
    def reply(number: int, text: str) -> Reply:
        time.sleep(0.6 * ("number 2" in text))
        return server.verdict(text)

    server.reply = reply
    found = asked(server, request_timeout=0.15, max_retries=0)
    assert [flag.flagged for flag in found] == [True, False, None, False, False]
    assert found[2].failure == f"{server.url} did not answer within 0.15 s"


def test_a_refused_first_prompt_is_no_reason_to_stop(server: Server) -> None:
    server.reply = lambda number, text: error(400, "too long") if "number 0" in text else server.verdict(text)
    assert [flag.flagged for flag in asked(server)] == [None, *EXPECTED[1:]]


def test_failures_alone_are_no_result(server: Server) -> None:
    server.reply = lambda number, text: server.says("Sure, here is a joke.")
    with pytest.raises(
        WorkError, match="no verdict on 5 of 5 prompts; 5 times: the answer is no verdict, as 'Sure, he"
    ):
        asked(server)


# --- a model that is loaded here --------------------------------------------------------------------------------------


def test_a_local_llama_guard_reads_its_text_as_it_is(
    tiny_model: BuildModel,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The text stands before the answer, with no template around it; a question that is too long is a failure."""
    guard_models._loaded.cache_clear()
    read: list[str] = []
    model, tokenizer = guard_models._loaded(str(tiny_model("llama")), as_it_is=True)
    model.config.max_position_embeddings = 2000

    def generate(**options: Any) -> Any:
        import torch

        read.extend(tokenizer.batch_decode(options["input_ids"]))
        answers = [SAFE if "Soup" in text else UNSAFE for text in read[-len(options["input_ids"]) :]]
        written = tokenizer(answers, add_special_tokens=False, return_tensors="pt", padding=True, padding_side="right")
        ids = written["input_ids"].masked_fill(written["attention_mask"] == 0, tokenizer.eos_token_id)
        return torch.cat([options["input_ids"], ids], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    long = [{"role": "user", "content": "Votes? " * 2000}]
    guard = parse_guard_model(f"llama_guard_3:{tiny_model('llama')}")
    found = flags(guard, POLITICS, [*PROMPTS, long], batch_size=2)
    assert [flag.flagged for flag in found] == [*EXPECTED, None]
    assert found[-1] == Flag(None, "", "the question is longer than the model's 2000 positions")
    texts = [llama_guard_text("llama_guard_3", "politics", POLITICS.trigger, prompt) for prompt in PROMPTS]
    assert sorted(text.replace(tokenizer.pad_token, "") for text in read) == sorted(texts)
    assert "no verdict on 1 of 6 prompts" in capsys.readouterr().err
    guard_models._loaded.cache_clear()


def test_the_embedded_model_can_be_prompted(capsys: pytest.CaptureFixture[str]) -> None:
    """It is no guard, and nothing it says is taken for a verdict that is none; that is reported, not hidden."""
    found = flags(parse_guard_model("prompted:tiny"), POLITICS, PROMPTS)
    assert len(found) == len(PROMPTS)
    for flag in found:
        assert (flag.flagged is None) == (flag.failure is not None)
    if any(flag.failure for flag in found):
        assert "guard model tiny, politics: no verdict on" in capsys.readouterr().err
    guard_models._loaded.cache_clear()


# --- the option -------------------------------------------------------------------------------------------------------


def test_a_spec_names_template_model_and_url() -> None:
    guard = parse_guard_model("prompted:llama-guard3:8b@http://[::1]:11434/v1/")
    assert (guard.template, guard.model, guard.base_url) == ("prompted", "llama-guard3:8b", "http://[::1]:11434/v1")
    assert parse_guard_model("llama_guard_4:meta-llama/Llama-Guard-4-12B").base_url is None
    assert guard.name == guard.model


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("llama_gard_3:m", "no such template: 'llama_gard_3'; did you mean llama_guard_3?"),
        ("llama-guard-4:m", "did you mean llama_guard_4?"),
        ("xyz", "no such template: 'xyz'; it is one of llama_guard_3, llama_guard_4 or prompted"),
        ("", "no such template: ''"),
        ("prompted", "there is no model; write prompted:MODEL or ...:MODEL@URL"),
        ("prompted:@http://h/v1", "there is no model"),
        ("prompted:m@", "what follows @ is no URL"),
        ("prompted:m@localhost:8000", "what follows @ is no URL"),
        ("prompted:m@ftp://h/v1", "what follows @ is no URL"),
        ("prompted:m@http:///v1", "what follows @ is no URL"),
        ("prompted:m@http://h:99999/v1", "what follows @ is no URL"),
        ("prompted:m@http://[::1/v1", "what follows @ is no URL"),
        (f"prompted:m@https://user:{KEY}@h/v1", "what follows @ is to be an address alone"),
        (f"prompted:m@https://h/v1?key={KEY}", "what follows @ is to be an address alone"),
    ],
)
def test_a_faulty_spec_is_refused(spec: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_guard_model(spec)
    assert "--guard_models " in str(caught.value) and says in str(caught.value)
    assert KEY not in str(caught.value)
