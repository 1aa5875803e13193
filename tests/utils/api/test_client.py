"""Real SDKs against the stub server on this machine."""

import asyncio
import email.utils
import json
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.api_stub import CONTENT_FAULTS, FAULTS, Stub, stub
from utils.api import client as client_module
from utils.api import limits
from utils.api.client import ApiClient, ask_all, open_client, run
from utils.api.endpoints import Endpoint, Provider
from utils.api.options import ApiOptions
from utils.api.progress import Totals
from utils.api.types import Answer, Ask, Failed
from utils.errors import UserError, WorkError

SCHEMA = {
    "type": "object",
    "properties": {
        "pairs": {
            "type": "array",
            "minItems": 2,
            "items": {
                "type": "object",
                "properties": {"q": {"type": "string"}, "a": {"type": "string"}},
                "required": ["q", "a"],
            },
        }
    },
    "required": ["pairs"],
}
BOTH = pytest.mark.parametrize("provider", ["openai", "anthropic"])
Reply = Answer | Failed


def question(number: int, **fields: Any) -> Ask:
    return Ask(({"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Question {number}"}), **fields)


def at(server: Stub, provider: Provider = "openai", model: str = "gpt-4o") -> Endpoint:
    return Endpoint(provider, model, server.base_url)


def options(**given: Any) -> ApiOptions:
    return ApiOptions(**{"cache_dir": "none", "request_timeout": 20.0} | given)


def one(server: Stub, ask: Ask, provider: Provider = "openai", totals: Totals | None = None, **given: Any) -> Reply:
    return ask_all(at(server, provider), options(**given), [ask], totals=totals)[0]


@BOTH
def test_answers_come_in_order_with_value_usage_and_cost(provider: Provider) -> None:
    totals = Totals()
    with stub(latency_s=0.002) as server:
        asks = [question(number, schema=SCHEMA) for number in range(30)]
        replies = ask_all(at(server, provider), options(concurrency=5), asks, totals=totals)
        bodies = server.bodies
    by_question = {body["messages"][-1]["content"]: number for number, body in enumerate(bodies)}
    for number, reply in enumerate(replies):
        assert isinstance(reply, Answer) and reply.value == json.loads(reply.text)
        assert reply.request_id == f"req_{by_question[f'Question {number}']}" and not reply.cached
    assert server.most_under_way <= 5 and totals.answers == totals.requests == 30
    tokens_in, tokens_out = (sum(getattr(reply.usage, name) for reply in replies) for name in USAGE)
    assert (totals.input_tokens, totals.output_tokens) == (tokens_in, tokens_out)
    assert totals.cost == pytest.approx((2.5 * tokens_in + 10 * tokens_out) / 1e6)


USAGE = ("input_tokens", "output_tokens")


@BOTH
@pytest.mark.parametrize(
    "fault", ["429", "429_retry_after", "500", "503", "529", "408", "409", "drop", "truncated_body"]
)
def test_a_fault_of_server_or_connection_is_asked_again(fault: str, provider: Provider) -> None:
    totals = Totals()
    with stub(script=[fault, fault], retry_after="0.01") as server:
        assert isinstance(one(server, question(1), provider, totals), Answer)
        assert server.counts["requests"] == totals.requests == 3
    reason = {"429_retry_after": "429", "drop": "broken connection", "truncated_body": "broken connection"}
    assert totals.retries == Counter({reason.get(fault, fault): 2}) and not totals.failures


@BOTH
def test_a_slow_reply_and_one_that_is_no_json_are_asked_again(provider: Provider) -> None:
    totals = Totals()
    with stub(script=["slow", "broken_body"], slow_s=30) as server:
        assert isinstance(one(server, question(1), provider, totals, request_timeout=0.5), Answer)
    assert totals.retries == Counter({"time-out": 1, "broken reply": 1})
    assert totals.doubtful > 0 and totals.cost is not None and totals.cost < totals.doubtful


@pytest.mark.parametrize("header, unit", [("retry-after", 1.0), ("retry-after-ms", 0.001)])
def test_the_wait_is_what_the_server_says(header: str, unit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = recorded_waits(monkeypatch)
    with stub(script=["429_retry_after"], retry_after="7", retry_after_header=header) as server:
        assert isinstance(one(server, question(1)), Answer)
    assert 7 * unit <= waits[0] <= 7.7 * unit


def test_the_wait_is_until_the_date_that_the_server_says(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = recorded_waits(monkeypatch)
    with stub(script=["429_retry_after"], retry_after=email.utils.formatdate(time.time() + 100, usegmt=True)) as server:
        assert isinstance(one(server, question(1)), Answer)
    assert 90 < waits[0] <= 110


def test_without_a_word_of_the_server_the_wait_is_random_and_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BACKOFF_S", 1.0)
    monkeypatch.setattr(client_module.random, "uniform", lambda low, high: high)
    waits = recorded_waits(monkeypatch)
    with stub(script=["500"] * 9) as server:
        one(server, question(1), max_retries=9)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def recorded_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []

    async def sleep(self: ApiClient, seconds: float) -> None:
        if seconds:
            waits.append(seconds)

    monkeypatch.setattr(ApiClient, "_sleep", sleep)
    return waits


def test_a_server_that_asks_to_wait_for_hours_ends_the_work() -> None:
    with (
        stub(script=["429_retry_after"], retry_after="7200") as server,
        pytest.raises(WorkError, match="asks to wait 7,200 s"),
    ):
        one(server, question(1))


@BOTH
def test_content_faults_are_failures_that_are_counted_and_kept(provider: Provider, tmp_path: Path) -> None:
    kinds = ["refusal", "cut", "empty", "invalid_json", "off_schema"]
    reasons = ["refusal", "truncated", "empty", "invalid_json", "off_schema"]
    totals = Totals()
    with stub(script=kinds * 1) as server:
        asks = [question(number, schema=SCHEMA) for number in range(5)]
        given = options(concurrency=1, cache_dir=str(tmp_path))
        failed = ask_all(at(server, provider), given, asks, totals=totals)
        again = ask_all(at(server, provider), given, asks)
        assert server.counts["requests"] == 5
        assert isinstance(ask_all(at(server, provider), given, [question(0, schema=SCHEMA, sample=1)])[0], Answer)
    assert [reply.reason for reply in failed if isinstance(reply, Failed)] == reasons
    assert [reply.reason for reply in again if isinstance(reply, Failed) and reply.cached] == reasons
    assert totals.failures == Counter(reasons) and totals.input_tokens > 0


def test_a_request_is_paid_once_in_flight_and_later(tmp_path: Path) -> None:
    first, second = Totals(), Totals()
    with stub(latency_s=0.05) as server:
        given = options(cache_dir=str(tmp_path))
        asks = [question(number % 3) for number in range(30)]
        replies = ask_all(at(server), given, asks, totals=first)
        later = ask_all(at(server), given, asks, totals=second)
        assert server.counts["requests"] == 3
    assert [reply.text for reply in replies if isinstance(reply, Answer)] == [
        reply.text for reply in later if isinstance(reply, Answer)
    ]
    assert (first.answers, first.cached, second.answers, second.cached) == (30, 27, 30, 30)
    assert second.cost == 0.0 and second.requests == 0


def test_what_waits_for_an_equal_request_that_is_cancelled_asks_itself() -> None:
    async def work(client: ApiClient) -> Reply:
        first = asyncio.create_task(client.ask(question(1)))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(client.ask(question(1)))
        await asyncio.sleep(0.01)
        first.cancel()
        return await second

    with stub(latency_s=0.2) as server:
        assert isinstance(run(at(server), options(), work), Answer)
        assert server.counts["requests"] == 2


REFUSALS = [
    ({"keys": {"good"}}, "gpt-4o", "Incorrect API key|invalid x-api-key"),
    ({"models": {"other"}}, "no-model", "no-model` does not exist"),
    ({"quota": 10}, "gpt-4o", "exceeded your current quota|credit balance is too low"),
]


@BOTH
@pytest.mark.parametrize("settings, model, words", REFUSALS)
def test_what_is_the_same_for_all_requests_ends_the_work_at_once_in_the_providers_words(
    settings: dict[str, Any],
    model: str,
    words: str,
    provider: Provider,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-mine")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret-of-mine")
    given, asks = options(cache_dir=str(tmp_path), concurrency=5), [question(number) for number in range(40)]
    with stub(**settings) as server:
        with pytest.raises(UserError, match=words) as caught:
            ask_all(at(server, provider, model), given, asks)
        assert "sk-secret-of-mine" not in str(caught.value) and "\n" not in str(caught.value)
        assert server.counts["requests"] <= 10 + 2 * 5
        paid = server.counts["paid"]
        server.quota = server.keys = server.models = None
        totals = Totals()
        ask_all(at(server, provider, model), given, asks, totals=totals)
        assert totals.cached == paid == (10 if "quota" in settings else 0)
        assert set(server.paid.values()) == {1}


def test_the_end_of_the_work_reaches_those_that_wait_and_every_later_ask() -> None:
    async def work(client: ApiClient) -> list[Any]:
        both = await asyncio.gather(*(client.ask(question(number)) for number in range(2)), return_exceptions=True)
        return [*both, *await asyncio.gather(client.ask(question(3)), return_exceptions=True)]

    with stub(script=["429_retry_after"], retry_after="100", quota=0) as server:
        ends = run(at(server), options(), work)
        assert [type(end) for end in ends] == [UserError] * 3 and len({str(end) for end in ends}) == 1
        assert server.counts["requests"] == 2


def test_a_redirect_is_not_followed_with_the_key() -> None:
    seen: list[str] = []
    with stub() as target:
        server = redirecting(target.base_url, seen)
        with pytest.raises(UserError, match="answered 307"):
            ask_all(Endpoint("anthropic", "m", server), options(), [question(1)])
        assert seen == ["/v1/messages"] and target.counts["requests"] == 0


def redirecting(url: str, seen: list[str]) -> str:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.path)
            self.send_response(307)
            self.send_header("location", f"{url}/messages")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *given: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def test_a_bad_request_fails_alone_and_many_from_the_start_end_the_work() -> None:
    with stub(script=["ok", "400", "413", "ok"]) as server:
        replies = ask_all(at(server), options(concurrency=1), [question(number) for number in range(4)])
    assert [reply.reason if isinstance(reply, Failed) else "" for reply in replies] == ["", "bad_request"] + [
        "bad_request",
        "",
    ]
    with stub(faults={"400": 1.0}) as server:
        with pytest.raises(UserError, match="the first 20 requests are all refused: .*This request is wrong"):
            ask_all(at(server), options(concurrency=1), [question(number) for number in range(90)])
        assert server.counts["requests"] == 20


def test_retries_used_up_fail_one_request_and_an_outage_ends_the_work() -> None:
    with stub(script=["ok", "500", "500", "500", "ok"]) as server:
        replies = ask_all(at(server), options(concurrency=1, max_retries=2), [question(number) for number in range(3)])
    assert [type(reply) for reply in replies] == [Answer, Failed, Answer]
    assert isinstance(replies[1], Failed) and replies[1].reason == "unavailable" and "500" in replies[1].detail
    with stub(script=["ok"], faults={"503": 1.0}) as server:
        with pytest.raises(WorkError, match="answered 503.*run the same command again later"):
            ask_all(at(server), options(concurrency=1, max_retries=0), [question(number) for number in range(90)])
        assert server.counts["requests"] == 11


def test_a_server_that_is_not_there_is_soon_said_so() -> None:
    endpoint = Endpoint("openai", "m", "http://127.0.0.1:9/v1")
    with pytest.raises(WorkError, match="127.0.0.1:9/v1 cannot be reached.*check the address"):
        ask_all(endpoint, options(), [question(number) for number in range(100)])


def test_a_limit_of_the_server_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 at once where 5 in a fifth of a second are taken, and no retries allowed: none is lost."""
    totals = Totals()
    with stub(requests_per_minute=1500, window_s=0.2) as server:
        asks = [question(number) for number in range(20)]
        replies = ask_all(at(server), options(max_retries=0), asks, totals=totals)
    assert all(isinstance(reply, Answer) for reply in replies)
    assert totals.retries["429"] == server.counts["violations"] > 15
    monkeypatch.setattr(client_module, "PATIENCE_S", -1.0)
    with stub(script=["ok", "429", "429", "429"]) as server:
        replies = ask_all(at(server), options(max_retries=2, concurrency=1), [question(1), question(2)])
    assert isinstance(replies[1], Failed) and replies[1].reason == "unavailable"


@BOTH
def test_what_a_server_does_not_take_is_left_out_and_said_once(
    provider: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse = (
        {"response_format", "temperature", "max_tokens"} if provider == "openai" else {"output_config", "temperature"}
    )
    with stub(refuse=refuse) as server:
        asks = [question(number, schema=SCHEMA, temperature=0.0) for number in range(40)]
        replies = ask_all(at(server, provider), options(concurrency=8), asks)
        assert all(isinstance(reply, Answer) and len(reply.value["pairs"]) == 2 for reply in replies)
        assert server.counts["requests"] <= 40 + 8 * len(refuse)
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == len(refuse)
    assert any("takes no temperature" in line for line in said)


def test_a_server_that_refuses_all_ways_fails_the_request() -> None:
    with stub(refuse={"max_tokens", "max_completion_tokens"}) as server:
        reply = one(server, question(1))
    assert isinstance(reply, Failed) and reply.reason == "bad_request"


def test_max_cost_stops_in_time_after_what_is_under_way_and_keeps_it(tmp_path: Path) -> None:
    asks = [question(number, max_tokens=1000) for number in range(400)]
    totals = Totals()
    with stub(latency_s=0.01, answer=lambda messages, schema, n: "word " * 800) as server:
        given = options(max_cost=0.2, cache_dir=str(tmp_path), concurrency=20)
        with pytest.raises(WorkError, match=r"--max_cost 0.2 US\$ reached.*the same command again"):
            ask_all(at(server), given, asks, totals=totals)
        paid = server.counts["paid"]
        assert totals.cost is not None and 0.18 < totals.cost <= 0.2
        assert paid == totals.answers == totals.requests
        again = Totals(cost=0.2)
        with pytest.raises(WorkError, match="--max_cost"):
            ask_all(at(server), given, asks, totals=again)
        assert again.cached == paid == server.counts["paid"]


def test_max_cost_without_a_price_is_refused_before_anything_is_sent() -> None:
    with stub() as server:
        with pytest.raises(UserError, match="no price for my-model"):
            ask_all(at(server, model="my-model"), options(max_cost=1.0), [question(1)])
        assert not server.log


def test_tokens_without_a_price_are_counted_and_the_cost_is_unknown() -> None:
    totals = Totals()
    with stub() as server:
        ask_all(at(server, model="my-model"), options(), [question(1)], totals=totals)
    assert totals.cost is None and totals.input_tokens > 0 and "cost unknown" in totals.summary()


def test_the_limit_of_requests_a_minute_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server counts over any second, and leaves room for what may be made up for in it."""
    monkeypatch.setattr(limits, "CATCH_UP_S", 0.1)
    with stub(requests_per_minute=8000, window_s=1.0, latency_s=0.02) as server:
        replies = ask_all(at(server), options(requests_per_minute=6000), [question(number) for number in range(200)])
        assert server.counts["violations"] == 0 and server.counts["requests"] == 200
    assert all(isinstance(reply, Answer) for reply in replies)


def test_the_limit_of_tokens_a_minute_counts_the_most_an_answer_can_take(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = recorded_waits(monkeypatch)
    with stub(latency_s=0.05) as server:
        asks = [question(number, max_tokens=9_966) for number in range(3)]
        ask_all(at(server), options(tokens_per_minute=10_000, concurrency=2), asks)
    assert 30 < waits[0] < 61  # the whole of the first, whose answer is not there yet
    assert waits[1:] == [] or waits[1] < 90  # what the first did not use is given back


def test_a_raw_prompt_reaches_completions() -> None:
    with stub() as server:
        ask = Ask(({"role": "user", "content": "<|begin|> raw"},), max_tokens=4, raw_prompt=True)
        assert isinstance(one(server, ask), Answer)
        assert server.log[0]["path"] == "/v1/completions" and server.log[0]["body"]["prompt"] == "<|begin|> raw"


@BOTH
def test_a_server_on_this_machine_is_reached_past_any_proxy(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with stub() as server:
        assert isinstance(one(server, question(1), provider), Answer)


def test_half_a_surrogate_pair_is_a_bad_request() -> None:
    with stub() as server:
        reply = one(server, Ask(({"role": "user", "content": "\ud83d"},)))
    assert isinstance(reply, Failed) and reply.reason == "bad_request" and "surrogate" in reply.detail


def test_it_works_in_a_thread_and_beside_another_client() -> None:
    results: list[list[Reply]] = []
    with stub(latency_s=0.02) as server:

        def work(number: int) -> None:
            results.append(ask_all(at(server), options(), [question(100 * number + index) for index in range(10)]))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [len(replies) for replies in results] == [10] * 3
    assert all(isinstance(reply, Answer) for replies in results for reply in replies)


def test_a_key_goes_to_the_server_and_into_nothing_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-mine")
    with stub(script=["500", "400", "refusal", "ok"], keys={"sk-secret-of-mine"}) as server:
        given = options(cache_dir=str(tmp_path), concurrency=1)
        replies = ask_all(at(server), given, [question(number) for number in range(4)], "label")
        assert {entry["key"] for entry in server.log} == {"sk-secret-of-mine"}
    assert "sk-secret-of-mine" not in f"{replies} {given} {capsys.readouterr()}"
    assert all(b"sk-secret-of-mine" not in file.read_bytes() for file in tmp_path.iterdir())


@BOTH
def test_faults_on_30_percent_end_with_every_record_valid_and_every_failure_counted(provider: Provider) -> None:
    """The small form of benchmarks.synthesis: an answer of no use is asked for again as another sample."""
    count, totals = 60, Totals()

    async def until_valid(client: ApiClient, number: int) -> Any:
        for sample in range(20):
            reply = await client.ask(question(number, schema=SCHEMA, sample=sample))
            if isinstance(reply, Answer) and len(reply.value["pairs"]) >= 2:
                return reply.value
        raise AssertionError("no valid answer")

    async def work(client: ApiClient) -> list[Any]:
        return await asyncio.gather(*(until_valid(client, number) for number in range(count)))

    with stub(fault_rate=0.3, seed=4, slow_s=30, retry_after="0.05") as server:
        records = run(at(server, provider), options(request_timeout=1.0), work, totals=totals)
        wire = sum(server.counts[name] for name in FAULTS if name not in CONTENT_FAULTS)
        wrong_count = server.counts["wrong_count"]
        content = sum(server.counts[name] for name in CONTENT_FAULTS) - wrong_count
    assert len({json.dumps(record) for record in records}) == count
    assert totals.retries.total() == wire > 0
    assert totals.failures.total() - totals.failures["off_schema"] == content > 0
    assert totals.failures["off_schema"] == wrong_count


def test_an_open_client_shows_its_line_and_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    async def work() -> str:
        async with open_client(at(server), options(), "teacher") as client:
            client.progress.expect(4, "records")
            await client.ask(question(1))
            client.progress.step()
            return client.progress.line()

    with stub() as server:
        line = asyncio.run(work())
    assert line.startswith("teacher: 1/4 records, ") and " left, 0.0" in line and line.endswith(" US$")
    assert capsys.readouterr().err.startswith("teacher: 1 answers, 1 requests, tokens ")
