"""A judge: a model behind an API that scores replies by a rubric, or says which of two is better.

    judge = Judge("openai:gpt-5-mini", asker)                  asker(asks, label) -> an Answer or Failed for each
    judgements(judge, rubric, shown, "adapter")                -> [Judgement(scores={"helpful": 4, ...}, ...), ...]
    preferences(judge, rubric, pairs, "adapter, base")         -> [Preference(better="first", ...), ...]

Rubrics are prompts.rubrics', the words prompts.judge's, the requests utils.api's: temperature 0 where the model takes
it, answers by JSON schema, from the cache where the same was asked before. What is shown twice is asked once. An answer
that is no verdict is handed back once with what is wrong with it. A judgement that fails all the same has no score: it
is None with the reason, and it is for the caller to count it. That all fail is an error (`refuse_all_failed`).

A pair is asked both ways round, and is a tie where the two answers disagree.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prompts.judge import COMPARE_SCHEMA, TIE, agreed, compare_messages, judge_messages, read_scores, verdict_schema
from prompts.rubrics import Rubric
from utils.api.types import Answer, Ask, Failed
from utils.errors import WorkError

Asker = Callable[[Sequence[Ask], str], "list[Answer | Failed]"]

MAX_TOKENS = 1024
"""Of a verdict; the room for what a model thinks before it is the client's."""
ASKED_AGAIN = ("empty", "truncated", "invalid_json", "off_schema")
"""Failures that are handed back once; a refusal stays one, and what is unavailable was retried by the client."""


@dataclass(frozen=True)
class Judge:
    """A model by its name, and how it is asked."""

    name: str
    ask: Asker


@dataclass(frozen=True)
class Judgement:
    """Scores and reasons by criterion; of one that failed, `scores` is None and `failure` the reason, as `refusal`."""

    scores: dict[str, int] | None
    reasons: dict[str, str]
    failure: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class Preference:
    """Which of two is better: `first`, `second` or `tie`, by both orders; None if a request of the two failed."""

    better: str | None
    swayed: bool
    """The two orders gave different answers."""
    reasons: tuple[str, ...]
    failure: str | None = None
    detail: str = ""


def judgements(judge: Judge, rubric: Rubric, shown: Sequence[Mapping[str, Any]], label: str) -> list[Judgement]:
    """The judgement of each reply, of which `shown` holds the fields that the rubric shows."""
    return [_judgement(rubric, reply) for reply in _verdicts(judge, [verdict_ask(rubric, one) for one in shown], label)]


def preferences(judge: Judge, rubric: Rubric, pairs: Sequence[tuple[str, str, str]], label: str) -> list[Preference]:
    """The better of two replies for each (query, first, second)."""
    asks = [ask for query, first, second in pairs for ask in compare_asks(rubric, query, first, second)]
    replies = iter(_verdicts(judge, asks, label))
    return [_preference(forward, backward) for forward, backward in zip(replies, replies, strict=True)]


def refuse_all_failed(judge: str, failures: Sequence[tuple[str | None, str]], label: str) -> None:
    """Raise a WorkError if there are judgements and all of them failed; each as (failure, detail)."""
    if failures and all(failure is not None for failure, _ in failures):
        reason, times = Counter(failure for failure, _ in failures).most_common(1)[0]
        detail = next((detail for failure, detail in failures if failure == reason and detail), "")
        words = f"judge {judge}, {label}: not one judgement of {len(failures)}; {times} times {reason}"
        raise WorkError(words + (f": {detail}" if detail else ""))


# --- requests ---------------------------------------------------------------------------------------------------------


def verdict_ask(rubric: Rubric, shown: Mapping[str, Any]) -> Ask:
    """The request for a judgement."""
    return Ask(
        messages=tuple(judge_messages(rubric, shown)),
        max_tokens=MAX_TOKENS,
        temperature=0.0,
        schema=verdict_schema(rubric),
    )


def compare_asks(rubric: Rubric, query: str, first: str, second: str) -> tuple[Ask, Ask]:
    """The requests for a preference: first before second, and the other way round."""
    forward, backward = (
        Ask(
            messages=tuple(compare_messages(rubric, query, *order)),
            max_tokens=MAX_TOKENS,
            temperature=0.0,
            schema=COMPARE_SCHEMA,
        )
        for order in ((first, second), (second, first))
    )
    return forward, backward


def _verdicts(judge: Judge, asks: Sequence[Ask], label: str) -> list[Answer | Failed]:
    """A reply to each ask; equal ones are asked once, and what is no verdict once more."""
    keys = [json.dumps(ask.messages) for ask in asks]
    unique = dict(zip(keys, asks, strict=True))
    replies = dict(zip(unique, judge.ask(list(unique.values()), label), strict=True)) if unique else {}
    again = {
        key: _handed_back(unique[key], reply)
        for key, reply in replies.items()
        if isinstance(reply, Failed) and reply.reason in ASKED_AGAIN
    }
    if again:
        replies |= zip(again, judge.ask(list(again.values()), f"{label}, again"), strict=True)
    return [replies[key] for key in keys]


def _handed_back(ask: Ask, failed: Failed) -> Ask:
    """The ask with the answer that was no verdict and what is wrong with it; where nothing was said, another sample."""
    if not failed.text.strip():
        return replace(ask, sample=ask.sample + 1)
    fault = f"{failed.reason}: {failed.detail}" if failed.detail else failed.reason
    wrong = f"That is no verdict ({fault}). Give it again, in short."
    turns = ({"role": "assistant", "content": failed.text}, {"role": "user", "content": wrong})
    return replace(ask, messages=(*ask.messages, *turns))


def _judgement(rubric: Rubric, reply: Answer | Failed) -> Judgement:
    if isinstance(reply, Failed):
        return Judgement(None, {}, reply.reason, reply.detail)
    reasons = {criterion.name: str(reply.value[criterion.name]["reason"]) for criterion in rubric.criteria}
    return Judgement(read_scores(rubric, reply.value), reasons)


def _preference(forward: Answer | Failed, backward: Answer | Failed) -> Preference:
    for reply in (forward, backward):
        if isinstance(reply, Failed):
            return Preference(None, False, (), reply.reason, reply.detail)
    assert isinstance(forward, Answer) and isinstance(backward, Answer)
    found = [str(reply.value["better"]) for reply in (forward, backward)]
    better = agreed(*found)
    reasons = tuple(str(reply.value["reason"]) for reply in (forward, backward))
    return Preference(better, better == TIE and set(found) != {TIE}, reasons)
