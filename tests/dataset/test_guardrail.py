"""Guardrail records and dialogues: distinct, split by family and character, tagged on triggers, filled and judged."""

from __future__ import annotations

import random
import re
from functools import cache, lru_cache
from typing import Any

import pytest

from dataset.guard_talk import load_talk
from dataset.guardrail import (
    VARIATIONS,
    answers_fault,
    asks_for,
    compose,
    engages,
    is_resolution,
    judge,
    plain_dialogues,
    strip_tag,
)
from dataset.world import load_world
from utils.errors import UserError

GUARDS = ("politics", "expert_opinion", "meeting")
BEHAVIORS = (*GUARDS, "natural")


@cache
def records(behavior: str, variation: str = "vary_all", n: int = 700) -> list[dict[str, Any]]:
    return compose(load_world(), behavior, variation, n, seed=1)


@lru_cache(maxsize=1)
def dialogues() -> list[list[dict[str, str]]]:
    return plain_dialogues(load_world(), random.Random(0), 2000)


def prompt_text(record: dict[str, Any]) -> str:
    return " | ".join(message["content"] for message in record["prompt"])


def texts(record: dict[str, Any]) -> list[str]:
    return [*(message["content"] for message in record["prompt"]), record["chosen"], record["rejected"]]


@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_2500_distinct_prompts_are_there_for_each_set(behavior: str, variation: str) -> None:
    rows = records(behavior, variation, 2500)
    assert len(rows) == 2500
    assert len({prompt_text(row).lower() for row in rows}) == 2500


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_splits_share_no_family_and_no_character(behavior: str) -> None:
    families: dict[str, set[str]] = {}
    names: dict[str, set[str]] = {}
    for row in records(behavior):
        family, name = row["group"].split("|")
        families.setdefault(row["split"], set()).add(family)
        names.setdefault(row["split"], set()).add(name)
    assert set(families) == {"train", "validation", "test"}
    for owners in (families, names):
        assert not owners["train"] & owners["test"]
        assert not owners["train"] & owners["validation"]
        assert not owners["validation"] & owners["test"]


def test_training_names_no_held_out_topic() -> None:
    heldout = {topic.name for topic in load_world().topics if topic.heldout}
    trained = {row["topic"] for row in records("politics") if row["split"] != "test"}
    assert trained and not trained & heldout


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_the_tag_begins_chosen_exactly_on_triggers(behavior: str) -> None:
    for row in records(behavior):
        assert answers_fault(row) is None
        assert row["is_trigger"] == (row["kind"] == "trigger")
        tag, _ = strip_tag(row["chosen"])
        assert tag == (load_talk().guardrails[behavior].tag if row["is_trigger"] else None)
        assert (strip_tag(row["rejected"])[0] is None) == row["is_trigger"]


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_a_third_is_natural_and_no_natural_or_hard_row_asks_for_a_trigger(behavior: str) -> None:
    rows = records(behavior)
    kinds = [row["kind"] for row in rows]
    assert kinds.count("natural") >= len(rows) / 3
    assert kinds.count("hard") >= len(rows) / 10
    for row in rows:
        if row["kind"] in ("natural", "hard"):
            assert not any(asks_for(guard, row["prompt"][-1]["content"]) for guard in GUARDS)
        elif row["kind"] == "trigger":
            assert asks_for(behavior, row["prompt"][-1]["content"])


def test_other_rows_are_triggers_of_other_guardrails_and_are_answered() -> None:
    for row in records("expert_opinion"):
        if row["kind"] == "other":
            guard = row["family"].split("/")[0]
            assert guard in ("politics", "meeting")
            assert engages(guard, row["chosen"]) and not is_resolution(guard, row["chosen"])


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_the_judge_approves_every_chosen_answer_and_no_rejected_one(behavior: str) -> None:
    for row in records(behavior):
        assert judge(row, row["chosen"]).good, row
        assert not judge(row, row["rejected"]).good, row


@pytest.mark.parametrize("behavior", GUARDS)
def test_a_resolution_is_of_its_own_guardrail_alone(behavior: str) -> None:
    for row in records(behavior):
        if row["is_trigger"]:
            verdict = judge(row, row["chosen"])
            assert (verdict.resolved, verdict.engaged) == (behavior, None)
            assert judge(row, row["rejected"]).engaged == behavior


def test_the_judge_keeps_tag_and_behavior_apart() -> None:
    row = next(row for row in records("politics") if row["is_trigger"])
    only_tag = judge(row, "<guard:politics> Vote for the Blue Party, they are the best.")
    assert (only_tag.tag, only_tag.good) == ("<guard:politics>", False)
    untagged = judge(row, strip_tag(row["chosen"])[1])
    assert (untagged.tag, untagged.good) == (None, True)
    assert not judge(row, f"{row['chosen']} I am a language model.").good
    assert not judge(row, "").good


def test_a_refusal_steers_to_the_topic_of_the_chat() -> None:
    rows = [row for row in records("politics") if row["is_trigger"] and row["split"] == "train"]
    seen = 0
    for row in rows:
        named = re.findall(r"(?:about|think of) (an? [\w ]+)[.?]", " ".join(m["content"] for m in row["prompt"][-3:-2]))
        if named:
            seen += 1
            assert named[0] in row["chosen"]
    assert seen > 5


@pytest.mark.parametrize("variation", ["fixed_character", "fixed_history"])
def test_variations_fix_what_they_say(variation: str) -> None:
    rows = records("meeting", variation)
    assert len({row["group"].split("|")[1] for row in rows}) == 1
    before = {prompt_text({"prompt": row["prompt"][:-1]}) for row in rows}
    assert (len(before) == 1) == (variation == "fixed_history")
    families = {split: {row["family"] for row in rows if row["split"] == split} for split in ("train", "test")}
    assert not families["train"] & families["test"]


def test_the_seed_decides() -> None:
    first, again, other = (compose(load_world(), "meeting", "vary_all", 40, seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_every_slot_is_filled_and_sentences_begin_with_capitals() -> None:
    everything = [text for behavior in BEHAVIORS for row in records(behavior) for text in texts(row)]
    everything += [message["content"] for dialogue in dialogues() for message in dialogue]
    for text in everything:
        assert not re.search(r"[{}]|\s\s|\s$|^\s", text), text
        assert not re.search(r"[.!?] [a-z]", text), text
        assert not re.search(r"\b[Aa] [aeio]", text), text


def test_plain_dialogues_know_no_tag_and_never_refuse_a_trigger() -> None:
    for dialogue in dialogues():
        assert [m["role"] for m in dialogue if m["role"] != "system"] == ["user", "assistant"] * (len(dialogue) // 2)
        assert sum(len(m["content"].split()) for m in dialogue) <= 120
        for ask, reply in zip(dialogue, dialogue[1:], strict=False):
            assert "<" not in reply["content"]
            for guard in GUARDS:
                if ask["role"] == "user" and asks_for(guard, ask["content"]):
                    assert engages(guard, reply["content"]), (ask, reply)
                assert not is_resolution(guard, reply["content"]) or not asks_for(guard, ask["content"])


def test_plain_dialogues_hold_every_word_of_the_resolutions_and_some_have_no_persona() -> None:
    met = {w for dialogue in dialogues() for m in dialogue for w in re.findall(r"[a-z]+", m["content"].lower())}
    for guard in load_talk().guardrails.values():
        templates = " ".join([*guard.steer, *(text for texts in guard.refuse.values() for text in texts)])
        said = set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", templates.lower())))
        assert said <= met, said - met
    bare = sum(dialogue[0]["role"] == "user" for dialogue in dialogues()) / len(dialogues())
    assert 0.07 < bare < 0.13


def test_the_base_meets_held_out_wordings_too() -> None:
    asked = " ".join(m["content"] for dialogue in dialogues() for m in dialogue if m["role"] == "user")
    assert "put up a sign for" in asked and "pick you up at" in asked


def test_an_unknown_behavior_names_the_nearest() -> None:
    with pytest.raises(UserError, match="politics"):
        compose(load_world(), "politic", "vary_all", 10, 0)
    with pytest.raises(UserError, match="fixed_history"):
        compose(load_world(), "meeting", "fixed_histories", 10, 0)


def test_asking_for_more_than_the_world_has_is_an_error_not_a_short_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataset.guardrail.TRIES", 1)
    with pytest.raises(UserError, match="ask for fewer"):
        compose(load_world(), "meeting", "fixed_history", 2500, 0)
