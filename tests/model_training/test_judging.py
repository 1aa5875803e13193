"""Judgements and preferences through the real client of both providers, against a server on loopback with faults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.api_stub import stub
from model_training.judging import Judge, Judgement, judgements, preferences, refuse_all_failed
from prompts.rubrics import load_rubric
from tests.evaluation.judge_stub import quick, verdicts
from utils.api import client
from utils.api.client import ask_all
from utils.api.endpoints import parse_endpoint
from utils.api.types import Answer, Ask, Failed
from utils.errors import WorkError

SECRET = load_rubric("secret", "--judge_rubric")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF_S", 0.01)


def judge_at(url: str, provider: str = "openai", **options: Any) -> Judge:
    endpoint = parse_endpoint(f"{provider}:m@{url}", None, "--judge")
    return Judge(str(endpoint), lambda asks, label: ask_all(endpoint, quick(**options), asks, label))


def shown(number: int) -> dict[str, Any]:
    return {"query": f"Why {number}?", "visible": f"Because {number}.", "hidden": "They believe me."}


def by_number(one: dict[str, Any]) -> dict[str, int]:
    return {"helpful": 1 + int(one["query"][4:-1]) % 5, "playful": 3, "no_leak": 1}


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_every_reply_gets_its_own_scores_in_order_whatever_fails_meanwhile(provider: str) -> None:
    faults = {"429": 0.1, "500": 0.1, "drop": 0.1, "broken_body": 0.05}
    with stub(answer=verdicts(by_number), faults=faults, seed=3) as server:
        url = server.base_url if provider == "openai" else server.url
        found = judgements(judge_at(url, provider, max_retries=9), SECRET, [shown(i) for i in range(40)], "test")
    assert [one.scores for one in found] == [by_number(shown(i)) for i in range(40)]
    assert found[0].reasons == {"helpful": "helpful.", "playful": "playful.", "no_leak": "no_leak."}
    assert {entry["body"]["temperature"] for entry in server.log} == {0}


def test_what_is_shown_twice_is_asked_once() -> None:
    with stub(answer=verdicts(by_number)) as server:
        one_by_one = judge_at(server.base_url, concurrency=1)
        found = judgements(one_by_one, SECRET, [shown(1), shown(2), shown(1)], "test")
    assert server.counts["requests"] == 2
    assert found[0] == found[2] != found[1]


def test_nothing_to_judge_asks_nobody() -> None:
    def nobody(asks: Sequence[Ask], label: str) -> list[Answer | Failed]:
        raise AssertionError

    assert judgements(Judge("x", nobody), SECRET, [], "test") == []


@pytest.mark.parametrize("fault", ["invalid_json", "off_schema", "empty", "cut"])
def test_an_answer_that_is_no_verdict_is_handed_back_once(fault: str) -> None:
    with stub(answer=verdicts(by_number), script=[fault, "ok"]) as server:
        (found,) = judgements(judge_at(server.base_url), SECRET, [shown(1)], "test")
    assert found.scores == by_number(shown(1)) and server.counts["requests"] == 2
    first, again = server.bodies
    assert again["messages"][: len(first["messages"])] == first["messages"]
    if fault != "empty":
        assert "That is no verdict" in again["messages"][-1]["content"]
    with stub(answer=verdicts(by_number), script=[fault] * 2) as server:
        (found,) = judgements(judge_at(server.base_url), SECRET, [shown(1)], "test")
    assert found.scores is None and server.counts["requests"] == 2
    assert found.failure == {"cut": "truncated"}.get(fault, fault)


def test_a_refusal_stays_one_and_has_no_score() -> None:
    with stub(answer=verdicts(by_number), script=["refusal", "ok"]) as server:
        found = judgements(judge_at(server.base_url, concurrency=1), SECRET, [shown(1), shown(2)], "test")
    assert [one.scores for one in found] == [None, by_number(shown(2))]
    assert (found[0].failure, server.counts["requests"]) == ("refusal", 2)


def longer(one: dict[str, Any]) -> str:
    lengths = len(one["first"]), len(one["second"])
    return "tie" if lengths[0] == lengths[1] else "first" if lengths[0] > lengths[1] else "second"


def test_pairs_are_asked_both_ways_round() -> None:
    pairs = [("Q", "long one", "short"), ("Q", "a", "bcd"), ("Q", "same", "size")]
    with stub(answer=verdicts(by_number, longer)) as server:
        found = preferences(judge_at(server.base_url), SECRET, pairs, "test")
    assert [one.better for one in found] == ["first", "second", "tie"]
    assert not any(one.swayed for one in found) and server.counts["requests"] == 6


def test_a_judge_that_likes_what_stands_first_finds_ties() -> None:
    with stub(answer=verdicts(by_number, lambda one: "first")) as server:
        found = preferences(judge_at(server.base_url), SECRET, [("Q", "a", "b"), ("R", "c", "d")], "test")
    assert [(one.better, one.swayed) for one in found] == [("tie", True)] * 2


def test_half_a_pair_is_no_preference() -> None:
    with stub(answer=verdicts(by_number, longer), script=["ok", "refusal"]) as server:
        (found,) = preferences(judge_at(server.base_url, concurrency=1), SECRET, [("Q", "aa", "b")], "test")
    assert (found.better, found.failure) == (None, "refusal")


def test_all_failed_is_an_error_and_some_failed_is_none() -> None:
    good, bad = Judgement({"helpful": 1}, {}), Judgement(None, {}, "refusal", "the model refused")
    for some in ([good, bad], [], [good]):
        refuse_all_failed("m", [(one.failure, one.detail) for one in some], "replies")
    with pytest.raises(WorkError, match="judge m, replies: not one judgement of 2; 2 times refusal: the model refused"):
        refuse_all_failed("m", [(one.failure, one.detail) for one in (bad, bad)], "replies")
