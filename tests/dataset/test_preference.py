"""The composed preference set against the truth it claims: labels, shares, splits, spreads and Borda counts."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from itertools import combinations

import pytest
import yaml

from dataset.preference import (
    Quality,
    Record,
    alternatives,
    borda,
    compose,
    draw_ask,
    mean_utility,
    plain_dialogues,
    preference_probability,
    true_mean_and_spread,
    utility,
)
from dataset.records import validate_preference
from dataset.world import SEEDS, World, load_world
from utils.errors import UserError

N = 4000
COMPLIES, REFUSES = Quality(1 / 3, 0.0), Quality(0.1, 1.0)


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


@pytest.fixture(scope="module")
def records(world: World) -> list[Record]:
    return compose(world, N, seed=0)


@pytest.fixture(scope="module")
def control(world: World) -> list[Record]:
    return compose(world, N, seed=0, hidden_context=False)


def qualities(record: Record) -> tuple[Quality, Quality]:
    return Quality(**record["utilities"]["chosen"]), Quality(**record["utilities"]["rejected"])


def pair_texts(record: Record) -> tuple[str, ...]:
    """The prompt and the two answers, whichever was chosen."""
    answers = (record["chosen"][0]["content"], record["rejected"][0]["content"])
    return (*(m["content"] for m in record["prompt"]), *sorted(answers))


def within_sampling_error(count: int, n: int, share: float) -> bool:
    """Four standard errors of a proportion: the seed is fixed, so this never flickers."""
    return abs(count / n - share) <= 4 * math.sqrt(share * (1 - share) / n)


def test_records_are_distinct_valid_and_have_their_slots_filled(records: list[Record]) -> None:
    assert len(records) == N
    assert len({(*pair_texts(r), r["data_subset"]) for r in records}) == N
    assert len({r["prompt"][-1]["content"] for r in records}) > 2000
    assert len({r["id"] for r in records}) == N
    assert [r["id"] for r in records if validate_preference(r)] == []
    assert [r["id"] for r in records if r["chosen"] == r["rejected"]] == []
    texts = json.dumps([[r["prompt"], r["chosen"], r["rejected"]] for r in records], ensure_ascii=False)
    assert "None" not in texts and not any("{" in text for r in records for text in pair_texts(r))


def test_a_seed_gives_the_same_records_and_another_gives_others(world: World, records: list[Record]) -> None:
    assert compose(world, 300, seed=0) == records[:300]
    assert {pair_texts(r) for r in compose(world, 300, seed=1)} != {pair_texts(r) for r in records[:300]}


def test_the_annotator_drawn_for_a_pair_chose_by_their_own_utility(records: list[Record]) -> None:
    for record in records:
        chosen, rejected = (utility(q, record["data_subset"], record["harmful"]) for q in qualities(record))
        assert chosen > rejected, record


def test_contested_pairs_are_those_that_the_two_kinds_of_annotators_label_differently(records: list[Record]) -> None:
    for record in records:
        chosen, rejected = qualities(record)
        wins = [
            utility(chosen, a, record["harmful"]) > utility(rejected, a, record["harmful"])
            for a in ("helpful", "harmless")
        ]
        assert (len(set(wins)) == 2) == (record["kind"] == "contested"), record
        complied = [side for side in ("chosen", "rejected") if record["utilities"][side]["harmless"] == 0]
        expected = (
            [] if record["kind"] == "agreed" else ["chosen" if record["data_subset"] == "helpful" else "rejected"]
        )
        assert complied == expected, record


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_shares_are_right_within_sampling_error(world: World, share: float) -> None:
    drawn = compose(world, 2000, seed=3, share_harmless=share, contested_share=0.6, test_share=0.25)
    for kind in ("contested", "agreed"):
        rows = [r for r in drawn if r["kind"] == kind]
        assert within_sampling_error(sum(r["data_subset"] == "harmless" for r in rows), len(rows), share)
    assert within_sampling_error(sum(r["kind"] == "contested" for r in drawn), 2000, 0.6)
    assert within_sampling_error(sum(r["split"] == "test" for r in drawn), 2000, 0.25)


def test_splits_share_no_task_topic_wording_or_prompt(world: World, records: list[Record]) -> None:
    by_split = {s: [r for r in records if r["split"] == s] for s in ("train", "test")}
    keys = {s: {r["key"].split("/")[0] for r in rows} for s, rows in by_split.items()}
    assert keys["train"] and keys["test"] and not keys["train"] & keys["test"]
    prompts = {
        s: {m["content"] for r in rows for m in r["prompt"] if m["role"] == "user"} for s, rows in by_split.items()
    }
    assert not prompts["train"] & prompts["test"]
    starts = {
        s: {r["prompt"][-1]["content"].split()[0] for r in rows if r["source"] != "fact"}
        for s, rows in by_split.items()
    }
    assert starts["test"] == {"Tomorrow", "Teach", "My", "Is"}
    assert not any("an easy way" in p or p.startswith(("Tomorrow", "Teach", "My friend")) for p in prompts["train"])
    heldout = {t.name for t in world.topics if t.heldout}
    train_words = {" ".join(pair_texts(r)).lower() for r in by_split["train"]}
    assert not [name for name in heldout if any(f" {name} " in text for text in train_words)]


def test_the_control_has_the_same_pairs_labelled_by_the_mean_and_no_spread(
    records: list[Record], control: list[Record]
) -> None:
    assert [pair_texts(r) for r in control] == [pair_texts(r) for r in records]
    assert [r["data_subset"] for r in control] == [r["data_subset"] for r in records]
    for record in control:
        chosen, rejected = (mean_utility(q, record["harmful"], 0.5) for q in qualities(record))
        assert chosen > rejected, record
        assert true_mean_and_spread(record, "chosen") == (chosen, 0.0)
    by_grades = Counter((tuple(sorted(r["grades"].values())), r["grades"]["chosen"]) for r in control)
    assert max(Counter(grades for grades, _ in by_grades).values()) == 1  # one winner for each pair of grades


def test_spread_is_on_contested_pairs_alone(records: list[Record]) -> None:
    for record in records:
        spreads = [true_mean_and_spread(record, side)[1] for side in ("chosen", "rejected")]
        assert min(spreads) > 0.1 if record["kind"] == "contested" else spreads == [0.0, 0.0]


def test_mean_and_spread_by_hand() -> None:
    record = {
        "utilities": {"chosen": {"helpful": 1.0, "harmless": 0.0}, "rejected": {"helpful": 0.1, "harmless": 1.0}},
        "harmful": True,
        "share_harmless": 0.2,
        "hidden_context": True,
    }
    # a helpful annotator likes compliance by 1, a harmless one by 0.1: mean .8 + .02, spread sqrt(.16) x .9
    assert list(true_mean_and_spread(record, "chosen")) == pytest.approx([0.82, 0.36])
    # the refusal by 0.1 and 0.91: mean .08 + .182, spread .4 x .81
    assert list(true_mean_and_spread(record, "rejected")) == pytest.approx([0.262, 0.324])
    assert true_mean_and_spread({**record, "harmful": False}, "chosen") == (1.0, 0.0)


def test_a_vote_and_expected_utility_disagree_about_a_weak_compliance() -> None:
    assert preference_probability(COMPLIES, REFUSES, True, 0.4) == pytest.approx(0.6)
    assert mean_utility(COMPLIES, True, 0.4) == pytest.approx(0.2133, abs=1e-4)
    assert mean_utility(REFUSES, True, 0.4) == pytest.approx(0.424)
    assert preference_probability(COMPLIES, REFUSES, True, 0.4, hidden_context=False) == 0.0
    assert preference_probability(COMPLIES, COMPLIES, True, 0.4) == 0.5


def test_borda_counts_by_hand() -> None:
    # helpful annotators rank 1, 1/3, 0.1; harmless ones 0.1 (refusal first), 1, 1/3
    counts = borda([Quality(1.0, 0.0), COMPLIES, REFUSES], True, share_harmless=0.3)
    assert counts == pytest.approx([(1.0 + 0.7) / 2, (0.0 + 0.7) / 2, 0.3])
    assert borda([Quality(1.0, 1.0), Quality(0.0, 1.0), Quality(0.0, 1.0)], False) == pytest.approx([1.0, 0.25, 0.25])
    with pytest.raises(ValueError, match="two alternatives"):
        borda([COMPLIES], True)


def test_labels_are_frequencies_of_the_stated_probability(world: World) -> None:
    drawn = [r for r in compose(world, 2000, seed=5, share_harmless=0.3) if r["kind"] == "contested"]
    complied = sum(r["utilities"]["chosen"]["harmless"] == 0 for r in drawn)
    pairs = [sorted(qualities(r), key=lambda quality: quality.harmless) for r in drawn]
    assert {round(preference_probability(comply, refuse, True, 0.3), 9) for comply, refuse in pairs} == {0.7}
    assert within_sampling_error(complied, len(drawn), 0.7)


def test_grades_say_what_the_answers_hold(world: World) -> None:
    rng = random.Random(0)
    for _ in range(200):
        ask = draw_ask(world, "helpful", rng)
        answers = {a.grade: a for a in alternatives(world, ask, rng)}
        for grade, response in answers.items():
            right = sum(step.lower() in response.text.lower() for step in ask.steps)
            assert right == (int(grade[-1]) if grade.startswith("steps_") else 0), response
            assert response.quality.harmless == 1.0
        fact = draw_ask(world, "fact", rng)
        assert fact.topic is not None
        value = fact.topic.facts[fact.attribute].lower()
        told = {a.grade: a.text.lower() for a in alternatives(world, fact, rng)}
        assert value in told["right"] and told["wrong_fact"] not in {
            s.lower() for s in world.true_statements(fact.topic, fact.attribute)
        }
        harmful = draw_ask(world, "harmful", rng)
        for one, other in combinations(alternatives(world, harmful, rng), 2):
            assert one.quality.helpful > other.quality.helpful  # every refusal comes after every compliance
            assert one.quality.harmless <= other.quality.harmless


def test_impossible_demands_are_refused(world: World) -> None:
    with pytest.raises(UserError, match="share_harmless is 1.5"):
        compose(world, 10, seed=0, share_harmless=1.5)
    assert {r["data_subset"] for r in compose(world, 50, seed=0, share_harmless=1.0)} == {"harmless"}


def test_plain_dialogues_alternate_stay_short_and_comply_as_often_as_they_refuse(world: World) -> None:
    dialogues = plain_dialogues(world, random.Random(0), 2000)
    assert plain_dialogues(world, random.Random(0), 2000) == dialogues
    assert len({json.dumps(d) for d in dialogues}) > 1950
    for dialogue in dialogues:
        assert [m["role"] for m in dialogue] == ["user", "assistant"] * (len(dialogue) // 2)
        text = " ".join(m["content"] for m in dialogue)
        assert len(text.split()) < 60 and "{" not in text
    assert {len(d) for d in dialogues} == {2, 4}
    tasks = yaml.safe_load((SEEDS / "asks.yaml").read_text("utf-8"))["harmful_tasks"]
    pranks = [task for task in tasks if task["task"].split()[0] in ("scare", "trick", "frighten", "wake", "push")]
    verbs, steps = {t["task"].split()[0] for t in pranks}, {step for t in pranks for step in t["steps"]}
    answers = [d[1]["content"].lower() for d in dialogues if verbs & set(d[0]["content"].split())]
    complied = sum(any(step in answer for step in steps) for answer in answers)
    assert len(answers) > 100 and within_sampling_error(complied, len(answers), 0.5)
