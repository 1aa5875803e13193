"""What is drawn for a teacher's records: splits that share nothing, the same for the same seed, asked as drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dataset.guard_records import plan
from dataset.guard_rules import PERSONA
from dataset.guard_sketches import HARD_FORMS, Sketch, draw_sketches, frame_sketch, reply_ask, scene_ask, tasks_of
from dataset.guard_talk import read_seed
from dataset.guardrails import load_guardrails
from dataset.records import SPLITS
from model_training.guardrail_config import VARIATIONS
from prompts.guard_teacher import Cast, character_text
from tests.dataset.guard_sets import BARE, guardrails, with_spoilers


def sketches(
    variation: str = "vary_all", behavior: str = "politics", n_samples: int = 60, seed: int = 1
) -> list[Sketch]:
    return draw_sketches(guardrails(), behavior, variation, n_samples, 40, seed)


def test_the_lists_of_the_seeds_are_distinct_and_make_one_kind_of_description() -> None:
    seeds = read_seed("guard_teacher.yaml")
    for values in seeds.values():
        assert all(isinstance(value, str) for value in values) and len(set(values)) == len(values)
    for job in seeds["jobs"]:
        for trait in seeds["traits"]:
            found = PERSONA.match(character_text(Cast("Ada", job, (trait, "kind", "shy"), "", "")))
            assert found and found[1] == "Ada", (job, trait)


@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("behavior", ["politics", "natural"])
def test_counts_are_those_of_the_plan_and_splits_share_no_wording(variation: str, behavior: str) -> None:
    drawn = sketches(variation, behavior)
    counts = Counter((one.order.split, one.order.kind) for one in drawn)
    assert counts == {(split, kind): count for split, kind, count in plan(behavior, 60, 40)}
    fields = ("occasion", "manner") if variation != "vary_all" else ("occasion", "manner", "name")
    for field in fields:
        owners: dict[str, set[str]] = {}
        for one in drawn:
            owners.setdefault(getattr(one.cast, field), set()).add(one.order.split)
        assert all(len(splits) == 1 for splits in owners.values()), field
        assert {split for splits in owners.values() for split in splits} == set(SPLITS)
    if variation != "vary_all":
        assert len({(one.cast.name, one.cast.job, one.cast.traits) for one in drawn}) == 1


def test_the_seed_decides_and_test_rows_do_not_depend_on_the_training_rows() -> None:
    def asked(drawn: list[Sketch], split: str = "test") -> list[object]:
        return [scene_ask(one, guardrails(), None) for one in drawn if one.order.split == split]

    assert asked(sketches()) == asked(sketches()) != asked(sketches(seed=2))
    assert asked(sketches(n_samples=100)) == asked(sketches())
    assert asked(sketches(n_samples=100), "train") != asked(sketches(), "train")


def test_no_two_records_ask_the_same() -> None:
    for variation in VARIATIONS:
        drawn = sketches(variation, n_samples=200)
        asks = [scene_ask(one, guardrails(), None) for one in drawn]
        assert len({(ask.messages[1]["content"], ask.sample) for ask in asks}) == len(asks)


def test_hard_records_come_in_three_ways_and_history_holds_a_trigger_where_it_may() -> None:
    drawn = sketches(n_samples=200)
    assert {one.hard for one in drawn if one.order.kind == "hard"} == set(HARD_FORMS)
    assert {one.hard for one in drawn if one.order.kind != "hard"} == {None}
    assert all(one.past is one.order.guard for one in drawn if one.hard == "history")
    triggers = [one for one in drawn if one.order.kind == "trigger"]
    assert 0 < sum(one.past is not None for one in triggers) < len(triggers) / 3
    assert all(one.past is None for one in drawn if one.order.kind in ("natural", "other"))
    fixed = sketches("fixed_history", n_samples=200)
    assert {one.hard for one in fixed} == {None, "words", "others"} and {one.past for one in fixed} == {None}


def test_each_kind_is_asked_for_what_it_is() -> None:
    guards = guardrails()
    for one in sketches("vary_all", "meeting"):
        asked = scene_ask(one, guards, None).messages[1]["content"].partition("Apart from")[0]
        wanted = {"trigger": "meeting", "other": one.order.other.name if one.order.other else ""}.get(
            one.order.kind, ""
        )
        named = {name for name, guard in guards.items() if guard.trigger in asked.partition("- `message`")[2]}
        assert named == ({wanted} if wanted else {"meeting"} if one.hard in ("words", "others") else set())
        assert (guards["meeting"].trigger in asked.partition("- `message`")[0]) == (one.past is not None)
        chosen, rejected = (reply_ask(one.order, task, "You are Ada.", []) for task in tasks_of(one.order.kind))
        assert ("does at once" in rejected.messages[1]["content"]) == (one.order.kind == "trigger")
        assert ("does at once" in chosen.messages[1]["content"]) == (one.order.kind == "other")
        if one.order.other is not None:
            assert one.order.other.trigger in chosen.messages[1]["content"]
            assert one.order.other.trigger not in rejected.messages[1]["content"]


def test_every_guardrail_can_be_another_one_with_talk_or_without(tmp_path: Path) -> None:
    guards = load_guardrails(with_spoilers(tmp_path, BARE))
    others = {
        one.order.other.name for one in draw_sketches(guards, "meeting", "vary_all", 60, 20, 1) if one.order.other
    }
    assert others == {"politics", "expert_opinion", "spoilers"}


def test_instructions_about_the_tag_are_not_the_teachers(tmp_path: Path) -> None:
    text = BARE.replace("Begin the reply with the tag.", "First write <guard:spoilers>.")
    guards = load_guardrails(with_spoilers(tmp_path, text))
    one = draw_sketches(guards, "spoilers", "vary_all", 10, 1, 1)[0]
    asked = reply_ask(one.order, "resolve", "You are Ada.", []).messages[1]["content"]
    assert "guard:spoilers" not in asked and "1. Tell no ending, in character." in asked


def test_the_fixed_scene_is_everyday_talk_of_the_fixed_character() -> None:
    scene = frame_sketch(guardrails(), "politics", "fixed_history", 1)
    assert scene.cast.name == sketches("fixed_history")[0].cast.name
    assert (scene.order.kind, scene.order.split, scene.past) == ("natural", "train", None)
