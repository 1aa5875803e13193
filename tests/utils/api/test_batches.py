"""Batches of both providers, by their real SDKs, against the stub server: in order, paid once, resumed by id."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.api_stub import Stub, stub
from benchmarks.api_stub_batches import Batch, BatchDesk
from utils.api import batch_providers, batches, client
from utils.api.batches import ask_all_batched
from utils.api.client import ask_all
from utils.api.endpoints import Endpoint, parse_endpoint
from utils.api.options import ApiOptions
from utils.api.prices import price_of
from utils.api.progress import Totals
from utils.api.types import Answer, Ask, Failed
from utils.api.wires import HALF_PAIR
from utils.errors import UserError, WorkError

KEY = "sk-of-a-test-0123456789"
TREE = {"type": "object", "properties": {"tree": {"type": "string"}}}
PROVIDERS = ("openai", "anthropic")


def echo(messages: list[dict[str, str]], schema: dict[str, Any] | None, n: int) -> str:
    """The last message: so a test sees whether the right reply came to the right ask."""
    said = messages[-1]["content"]
    return said if schema is None else json.dumps({"tree": said})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "POLL_S", (0.001, 0.002))
    monkeypatch.setattr(batches, "FIND_AFTER_S", (0.0, 0.01))
    monkeypatch.setattr(client, "BACKOFF_S", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


@pytest.fixture(scope="module")
def running() -> Iterator[Stub]:
    with stub(answer=echo) as server:
        yield server


@pytest.fixture
def server(running: Stub) -> Stub:
    """The stub as it is when it starts."""
    running.answer, running.refuse = echo, set()
    running.keys = running.models = running.quota = None
    running.log.clear()
    running.counts.clear()
    vars(running.desk).update(vars(BatchDesk(answer=running.reply)))
    return running


def endpoint_of(provider: str, server: Stub, model: str = "some-model") -> Endpoint:
    url = server.base_url if provider == "openai" else server.url
    return parse_endpoint(f"{provider}:{model}@{url}", None, "--teacher")


def options_of(tmp_path: Path, **more: Any) -> ApiOptions:
    return ApiOptions(**({"cache_dir": str(tmp_path / "cache"), "max_retries": 3} | more))


def asks_of(count: int, schema: dict[str, Any] | None = TREE) -> list[Ask]:
    return [Ask(({"role": "user", "content": f"tree {index}"},), 100, schema=schema) for index in range(count)]


def trees(replies: list[Answer | Failed]) -> list[Any]:
    return [reply.value["tree"] if isinstance(reply, Answer) else reply.reason for reply in replies]


def expected(count: int) -> list[str]:
    return [f"tree {index}" for index in range(count)]


def fates(**by_text: str) -> Callable[[int, dict[str, Any]], str]:
    """A fate for the first time that a request with this digit as its tree comes; ok after that."""
    left = dict(by_text)
    return lambda index, body: left.pop("t" + body["messages"][-1]["content"].removeprefix("tree "), "ok")


# --- replies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
def test_replies_come_in_the_order_of_the_asks_and_nothing_is_asked_live(
    provider: str, server: Stub, tmp_path: Path
) -> None:
    asks = [*asks_of(12), asks_of(1)[0]]
    replies = ask_all_batched(endpoint_of(provider, server), options_of(tmp_path), asks, tmp_path / "state.json")
    assert trees(replies) == [*expected(12), "tree 0"]
    assert len(server.desk.submitted) == 12, "equal asks are one request"
    assert not server.log
    assert not (tmp_path / "state.json.lock").exists()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_bodies_are_those_of_live_requests(provider: str, server: Stub, tmp_path: Path) -> None:
    endpoint = endpoint_of(provider, server)
    asks = [Ask(({"role": "system", "content": "Be brief."}, {"role": "user", "content": "a \ud800 b"}), 50, 0.0, TREE)]
    live = ask_all(endpoint, options_of(tmp_path, cache_dir="none"), asks[:0] + asks_of(2))
    batched = ask_all_batched(endpoint, options_of(tmp_path), asks_of(2), tmp_path / "state.json")
    in_order = partial(sorted, key=json.dumps)  # live requests arrive in any
    assert in_order(server.desk.submitted) == in_order(server.bodies)
    assert [reply.value for reply in live] == [reply.value for reply in batched]
    odd = ask_all_batched(endpoint, options_of(tmp_path), asks, tmp_path / "state.json")
    assert odd == ask_all(endpoint, options_of(tmp_path), asks) == [Failed("bad_request", HALF_PAIR)]


def test_plain_text_and_raw_prompts_go_to_their_own_routes(server: Stub, tmp_path: Path) -> None:
    raw = Ask(({"role": "user", "content": "once upon"},), 20, raw_prompt=True)
    asks = [asks_of(1, None)[0], raw]
    replies = ask_all_batched(endpoint_of("openai", server), options_of(tmp_path), asks, tmp_path / "state.json")
    assert [reply.text for reply in replies] == ["tree 0", "once upon"]
    made = {batch.fields["endpoint"]: len(batch.requests) for batch in server.desk.batches.values()}
    assert made == {"/v1/chat/completions": 1, "/v1/completions": 1}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_what_the_cache_has_is_not_sent(provider: str, server: Stub, tmp_path: Path) -> None:
    endpoint, options = endpoint_of(provider, server), options_of(tmp_path)
    ask_all(endpoint, options, asks_of(2))
    replies = ask_all_batched(endpoint, options, asks_of(5), tmp_path / "state.json")
    assert trees(replies) == expected(5)
    assert [reply.cached for reply in replies] == [True, True, False, False, False]
    assert len(server.desk.submitted) == 3
    again = ask_all(endpoint, options, asks_of(5))
    assert all(reply.cached for reply in again), "what a batch brings is in the cache of live requests"
    ask_all_batched(endpoint, options, asks_of(5), tmp_path / "other.json")
    assert len(server.desk.batches) == 1


@pytest.mark.parametrize("provider, model", [("openai", "gpt-4o-mini"), ("anthropic", "claude-sonnet-4-5")])
def test_cost_is_counted_at_the_discount_and_once(provider: str, model: str, server: Stub, tmp_path: Path) -> None:
    endpoint, totals = endpoint_of(provider, server, model), Totals()
    options = options_of(tmp_path, cache_dir="none")
    replies = ask_all_batched(endpoint, options, asks_of(4), tmp_path / "state.json", totals=totals)
    price = price_of(endpoint, options)
    assert price is not None and totals.cost
    whole = sum(price.cost(reply.usage) for reply in replies)
    assert totals.cost == pytest.approx(whole / 2)
    assert (totals.requests, totals.answers) == (4, 4)
    ask_all_batched(endpoint, options, asks_of(4), tmp_path / "state.json", totals=totals)
    assert totals.cost == pytest.approx(whole / 2), "read again from the batch that was paid for"


# --- rows that fail ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
def test_rows_that_were_not_run_are_asked_again_once(provider: str, server: Stub, tmp_path: Path) -> None:
    server.desk.fate = fates(t1="expired", t3="server_error", t4="missing")
    totals = Totals()
    replies = ask_all_batched(
        endpoint_of(provider, server), options_of(tmp_path), asks_of(6), tmp_path / "state.json", totals=totals
    )
    assert trees(replies) == expected(6)
    assert len(server.desk.batches) == 2 and len(server.desk.submitted) == 6 + 3
    assert totals.retries.total() == 3 and totals.retries["expired"] == 1


@pytest.mark.parametrize("provider", PROVIDERS)
def test_rows_that_are_never_run_become_failures_and_a_later_call_asks_afresh(
    provider: str, server: Stub, tmp_path: Path
) -> None:
    endpoint, options, totals = endpoint_of(provider, server), options_of(tmp_path), Totals()
    server.desk.fate = lambda index, body: "expired" if body["messages"][-1]["content"] == "tree 1" else "ok"
    replies = ask_all_batched(endpoint, options, asks_of(3), tmp_path / "state.json", totals=totals)
    assert trees(replies) == ["tree 0", "unavailable", "tree 2"]
    assert totals.failures == {"unavailable": 1} and len(server.desk.batches) == 2
    server.desk.fate = lambda index, body: "ok"
    assert trees(ask_all_batched(endpoint, options, asks_of(3), tmp_path / "state.json")) == expected(3)
    assert len(server.desk.submitted) == 3 + 1 + 1


@pytest.mark.parametrize("provider", PROVIDERS)
def test_what_somebody_cancelled_is_not_asked_again_by_itself(provider: str, server: Stub, tmp_path: Path) -> None:
    server.desk.fate = fates(t0="canceled")
    endpoint, options = endpoint_of(provider, server), options_of(tmp_path)
    replies = ask_all_batched(endpoint, options, asks_of(2), tmp_path / "state.json")
    assert trees(replies) == ["unavailable", "tree 1"]
    assert len(server.desk.batches) == 1


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_refused_row_fails_alone(provider: str, server: Stub, tmp_path: Path) -> None:
    server.desk.fate = fates(t2="errored")
    replies = ask_all_batched(endpoint_of(provider, server), options_of(tmp_path), asks_of(4), tmp_path / "state.json")
    assert trees(replies) == ["tree 0", "tree 1", "bad_request", "tree 3"]
    assert isinstance(replies[2], Failed) and "the stub refused this row" in replies[2].detail
    assert len(server.desk.batches) == 1


@pytest.mark.parametrize("provider, parameter", [("openai", "response_format"), ("anthropic", "output_config")])
def test_a_server_that_takes_no_schema_is_told_in_another_way(
    provider: str, parameter: str, server: Stub, tmp_path: Path
) -> None:
    server.refuse = {parameter}
    endpoint, options = endpoint_of(provider, server), options_of(tmp_path)
    assert trees(ask_all_batched(endpoint, options, asks_of(3), tmp_path / "state.json")) == expected(3)
    assert len(server.desk.batches) == 2
    assert not any(parameter in body for body in server.desk.submitted[3:])
    more = asks_of(5)[3:]
    assert trees(ask_all_batched(endpoint, options, more, tmp_path / "state.json")) == expected(5)[3:]
    assert len(server.desk.batches) == 3, "the state remembers it"


def test_an_answer_of_no_use_is_a_failure_that_was_paid_for(server: Stub, tmp_path: Path) -> None:
    server.answer = lambda messages, schema, n: "no JSON at all"
    totals = Totals()
    replies = ask_all_batched(
        endpoint_of("openai", server), options_of(tmp_path), asks_of(2), tmp_path / "state.json", totals=totals
    )
    assert trees(replies) == ["invalid_json", "invalid_json"]
    assert totals.output_tokens > 0 and len(server.desk.batches) == 1


# --- made once --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_batch_whose_reply_was_lost_is_found_again(provider: str, server: Stub, tmp_path: Path) -> None:
    server.desk.keep_reply = lambda number: number > 0
    replies = ask_all_batched(endpoint_of(provider, server), options_of(tmp_path), asks_of(3), tmp_path / "state.json")
    assert trees(replies) == expected(3)
    assert len(server.desk.batches) == 1


def test_a_batch_of_somebody_else_of_the_same_size_is_left_alone(server: Stub, tmp_path: Path) -> None:
    endpoint = endpoint_of("anthropic", server)
    ask_all_batched(endpoint, options_of(tmp_path, cache_dir="none"), asks_of(2), tmp_path / "other.json")
    other = next(iter(server.desk.batches.values()))
    for number in range(120):  # more than a page of the list
        server.desk.batches[f"other-{number}"] = replace(other, id=f"other-{number}", requests=[], results=[])
    server.desk.keep_reply = lambda number: number != 121
    asks = [Ask(ask.messages, 99, schema=TREE) for ask in asks_of(2)]
    server.desk.on_create = lambda batch: server.desk.batches.update(later=replace(other, id="later"))
    assert trees(ask_all_batched(endpoint, options_of(tmp_path), asks, tmp_path / "state.json")) == expected(2)
    assert len(server.desk.submitted) == 4


def _ask_in_a_process(provider: str, url: str, directory: Path) -> None:
    batches.POLL_S, batches.FIND_AFTER_S = (0.01, 0.02), (0.0, 0.01)
    endpoint = parse_endpoint(f"{provider}:some-model@{url}", None, "--teacher")
    ask_all_batched(endpoint, options_of(directory), asks_of(7), directory / "state.json")


def _killed_when(server: Stub, provider: str, directory: Path, moment: threading.Event, go_on: threading.Event) -> None:
    """Run the asks in a process and kill it when the server says so; then let the server go on."""
    url = endpoint_of(provider, server).url
    process = multiprocessing.get_context("fork").Process(target=_ask_in_a_process, args=(provider, url, directory))
    process.start()
    assert moment.wait(30)
    os.kill(int(process.pid or 0), signal.SIGKILL)
    process.join(30)
    go_on.set()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("provider", PROVIDERS)
def test_killed_between_the_creation_and_its_reply(provider: str, server: Stub, tmp_path: Path) -> None:
    moment, go_on = threading.Event(), threading.Event()

    def stop_here(batch: Batch) -> None:
        moment.set()
        go_on.wait(30)

    server.desk.on_create = stop_here
    _killed_when(server, provider, tmp_path, moment, go_on)
    assert json.loads((tmp_path / "state.json").read_text())["batches"][0]["id"] is None
    replies = ask_all_batched(endpoint_of(provider, server), options_of(tmp_path), asks_of(7), tmp_path / "state.json")
    assert trees(replies) == expected(7)
    assert len(server.desk.submitted) == 7


@pytest.mark.parametrize("provider", PROVIDERS)
def test_killed_while_waiting(provider: str, server: Stub, tmp_path: Path) -> None:
    moment, go_on = threading.Event(), threading.Event()
    server.desk.polls = 1_000_000
    watched = server.desk.batches

    class Watch(dict[str, Batch]):
        def get(self, *args: Any) -> Any:
            moment.set()
            return super().get(*args)

    server.desk.batches = Watch(watched)
    _killed_when(server, provider, tmp_path, moment, go_on)
    server.desk.polls = 0
    replies = ask_all_batched(endpoint_of(provider, server), options_of(tmp_path), asks_of(7), tmp_path / "state.json")
    assert trees(replies) == expected(7)
    assert len(server.desk.submitted) == 7


@pytest.mark.parametrize("provider", PROVIDERS)
def test_killed_before_the_creation_arrived(provider: str, server: Stub, tmp_path: Path) -> None:
    endpoint, state = endpoint_of(provider, server), tmp_path / "state.json"
    ask_all_batched(endpoint, options_of(tmp_path, cache_dir="none"), asks_of(7), state)
    held = json.loads(state.read_text())
    held["batches"][0] |= {"id": None, "collected": False, "name": "subtext-never-arrived"}
    state.write_text(json.dumps(held))
    assert trees(ask_all_batched(endpoint, options_of(tmp_path), asks_of(7), state)) == expected(7)
    assert len(server.desk.batches) == 2
    names = [batch["name"] for batch in json.loads(state.read_text())["batches"]]
    assert len(names) == 1 and "subtext-never-arrived" not in names


def test_two_processes_cannot_share_a_state(server: Stub, tmp_path: Path) -> None:
    from utils.api.batch_state import claimed

    with claimed(tmp_path / "state.json"), pytest.raises(UserError, match="another process waits for these batches"):
        ask_all_batched(endpoint_of("openai", server), options_of(tmp_path), asks_of(1), tmp_path / "state.json")
    assert not server.desk.batches


def test_a_state_with_batches_of_another_model_under_way_is_refused(server: Stub, tmp_path: Path) -> None:
    state, options, another = tmp_path / "state.json", options_of(tmp_path), endpoint_of("openai", server, "another")
    ask_all_batched(endpoint_of("openai", server), options, asks_of(1), state)
    whole = state.read_text()
    state.write_text(whole.replace('"collected": true', '"collected": false'))
    with pytest.raises(UserError, match=r"state\.json: batches of openai:some-model.* are under way"):
        ask_all_batched(another, options, asks_of(1), state)
    state.write_text(whole)
    assert trees(ask_all_batched(another, options, asks_of(1), state)) == expected(1)
    state.write_text("[]")
    with pytest.raises(UserError, match="not a list of batches"):
        ask_all_batched(another, options, asks_of(1), state)


# --- limits and errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("limit", ["max_requests", "max_bytes"])
def test_asks_beyond_a_limit_go_into_several_batches(
    provider: str, limit: str, server: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = batch_providers.batch_provider(provider)
    one_line = len(known.line("subtext-0123456789abcdef-0", "/v1/chat/completions", {})) + 200
    small = replace(known, **{limit: 3 if limit == "max_requests" else 3 * one_line})
    monkeypatch.setattr(batches, "batch_provider", lambda name: small)
    replies = ask_all_batched(endpoint_of(provider, server), options_of(tmp_path), asks_of(10), tmp_path / "state.json")
    assert trees(replies) == expected(10)
    sizes = [len(batch.requests) for batch in server.desk.batches.values()]
    assert sum(sizes) == 10 and len(sizes) > 3 and max(sizes) <= 3 + 3 * (limit == "max_bytes")
    if limit == "max_bytes":
        for batch in server.desk.batches.values():
            sent = [known.line(name, "/v1/chat/completions", body) for name, body in batch.requests]
            assert sum(map(len, sent)) <= 3 * one_line


@pytest.mark.parametrize("provider", PROVIDERS)
def test_troubles_of_the_server_are_waited_out(provider: str, server: Stub, tmp_path: Path) -> None:
    server.desk.troubles = [500, 429]
    server.desk.on_create = lambda batch: server.desk.troubles.extend([503, 529])
    replies = ask_all_batched(endpoint_of(provider, server), options_of(tmp_path), asks_of(3), tmp_path / "state.json")
    assert trees(replies) == expected(3)
    assert len(server.desk.batches) == 1


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_wrong_key_ends_it_with_the_servers_words(
    provider: str, server: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.keys = {"another"}
    words = {"openai": "Incorrect API key", "anthropic": "invalid x-api-key"}[provider]
    with pytest.raises(UserError, match=words) as error:
        ask_all_batched(endpoint_of(provider, server), options_of(tmp_path), asks_of(2), tmp_path / "state.json", "x")
    assert KEY not in str(error.value) + capsys.readouterr().err
    server.keys = {KEY}
    ask_all_batched(endpoint_of(provider, server), options_of(tmp_path), asks_of(2), tmp_path / "state.json")
    assert KEY not in (tmp_path / "state.json").read_text()
    assert len(server.desk.submitted) == 2


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_exhausted_quota_ends_it_and_keeps_what_was_answered(provider: str, server: Stub, tmp_path: Path) -> None:
    server.quota = 2
    endpoint, options = endpoint_of(provider, server), options_of(tmp_path)
    with pytest.raises(UserError, match=r"current quota|credit balance"):
        ask_all_batched(endpoint, options, asks_of(4), tmp_path / "state.json")
    server.quota = None
    assert trees(ask_all_batched(endpoint, options, asks_of(4), tmp_path / "state.json")) == expected(4)
    assert len(server.desk.submitted) == 4 + 2, "only what was refused is asked for again"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_an_unknown_model_ends_it(provider: str, server: Stub, tmp_path: Path) -> None:
    server.models = {"another"}
    with pytest.raises(UserError, match="some-model` does not exist"):
        ask_all_batched(endpoint_of(provider, server), options_of(tmp_path), asks_of(2), tmp_path / "state.json")


@pytest.mark.parametrize("code, kind", [("invalid_request", UserError), ("token_limit_exceeded", WorkError)])
def test_a_batch_that_is_refused_as_a_whole_ends_it_and_is_forgotten(
    code: str, kind: type[Exception], server: Stub, tmp_path: Path
) -> None:
    server.desk.ends, server.desk.failed_code = "failed", code
    endpoint, options = endpoint_of("openai", server), options_of(tmp_path)
    with pytest.raises(kind, match=r"was refused: the model 'x' is not supported \(line 1\)"):
        ask_all_batched(endpoint, options, asks_of(2), tmp_path / "state.json")
    server.desk.ends = "completed"
    assert trees(ask_all_batched(endpoint, options, asks_of(2), tmp_path / "state.json")) == expected(2)


def test_a_batch_that_expires_is_asked_again_where_it_has_no_row(server: Stub, tmp_path: Path) -> None:
    server.desk.ends = "expired"
    server.desk.on_create = lambda batch: setattr(server.desk, "ends", "completed")
    replies = ask_all_batched(endpoint_of("openai", server), options_of(tmp_path), asks_of(4), tmp_path / "state.json")
    assert trees(replies) == expected(4)
    assert [len(batch.requests) for batch in server.desk.batches.values()] == [4, 2]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_max_cost_ends_it_before_anything_is_sent(provider: str, server: Stub, tmp_path: Path) -> None:
    model = {"openai": "gpt-4o", "anthropic": "claude-sonnet-4-5"}[provider]
    endpoint = endpoint_of(provider, server, model)
    with pytest.raises(WorkError, match="--max_cost 0.0001 US.* reached"):
        ask_all_batched(endpoint, options_of(tmp_path, max_cost=0.0001), asks_of(20), tmp_path / "state.json")
    assert not server.desk.batches
    ask_all_batched(endpoint, options_of(tmp_path, max_cost=1.0), asks_of(20), tmp_path / "state.json")
    assert len(server.desk.submitted) == 20


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_server_without_a_batch_endpoint_is_named(provider: str, server: Stub, tmp_path: Path) -> None:
    endpoint = parse_endpoint(f"{provider}:m@{server.url}/elsewhere", None, "--teacher")
    with pytest.raises(UserError, match="without --batch_api"):
        ask_all_batched(endpoint, options_of(tmp_path), asks_of(1), tmp_path / "state.json")


def test_results_are_fetched_from_the_given_address_alone(server: Stub, tmp_path: Path) -> None:
    server.desk.on_create = lambda batch: batch.fields.update(results_url="http://127.0.0.1:9/with-your-key")
    replies = ask_all_batched(endpoint_of("anthropic", server), options_of(tmp_path), asks_of(2), tmp_path / "s.json")
    assert trees(replies) == expected(2)


def test_a_schema_that_is_none_ends_it_before_anything_is_sent(server: Stub, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="JSON schema"):
        asks = asks_of(1, {"type": "objekt"})
        ask_all_batched(endpoint_of("openai", server), options_of(tmp_path), asks, tmp_path / "state.json")
    assert not server.desk.batches


def test_a_server_out_of_reach_ends_it(tmp_path: Path) -> None:
    endpoint = parse_endpoint("openai:m@http://127.0.0.1:9/v1", None, "--teacher")
    with pytest.raises(WorkError, match="cannot be reached"):
        ask_all_batched(endpoint, options_of(tmp_path, max_retries=1), asks_of(1), tmp_path / "state.json")
