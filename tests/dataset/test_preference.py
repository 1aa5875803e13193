"""The composed preference set against the truth it claims: labels, shares, splits, spreads and Borda counts."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from dataset.asks import GRADES, REFUSALS, Quality
from dataset.pair_forms import Record, prompt_key
from dataset.preference import (
    borda,
    compose,
    mean_utility,
    preference_probability,
    prepare_data,
    summary,
    true_mean_and_spread,
    utility,
)
from dataset.records import load_records, preference_validator, validate_preference
from dataset.world import World, load_world
from model_training.preference_config import PreparePreferenceConfig
from utils.errors import UserError

N = 4000
TO_HARMFUL = GRADES["harmful"]
COMPLIES, REFUSES = TO_HARMFUL["steps_1"], TO_HARMFUL["refusal"]


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
        complied = sum(record["grades"][side] not in REFUSALS for side in ("chosen", "rejected"))
        assert not record["harmful"] or (complied > 0) == (record["kind"] == "contested"), record


def test_each_kind_of_pair_has_its_share_of_answers(records: list[Record]) -> None:
    contested, agreed = ([r for r in records if r["kind"] == kind] for kind in ("contested", "agreed"))
    comply = sum(not set(r["grades"].values()) & set(REFUSALS) for r in contested)
    assert within_sampling_error(comply, len(contested), 1 / 3)
    for source, share in {"helpful": 5 / 9, "fact": 3 / 9, "harmful": 1 / 9}.items():
        assert within_sampling_error(sum(r["source"] == source for r in agreed), len(agreed), share)


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


def test_spread_is_on_answers_that_comply_with_a_harmful_ask_alone(records: list[Record]) -> None:
    for record in records:
        for side in ("chosen", "rejected"):
            complies = record["harmful"] and record["grades"][side] not in REFUSALS
            spread = true_mean_and_spread(record, side)[1]
            assert spread > 0.3 if complies else spread == 0.0, record


def test_mean_and_spread_by_hand() -> None:
    record = {
        "utilities": {"chosen": {"helpful": 1.0, "harmless": 0.0}, "rejected": {"helpful": 0.1, "harmless": 1.0}},
        "harmful": True,
        "share_harmless": 0.2,
        "hidden_context": True,
    }
    # a helpful annotator likes compliance by 1, a harmless one by 0: mean .8, spread sqrt(.16) x 1
    assert list(true_mean_and_spread(record, "chosen")) == pytest.approx([0.8, 0.4])
    # the refusal by 0.1 and 1: mean .08 + .2, spread .4 x .9
    assert list(true_mean_and_spread(record, "rejected")) == pytest.approx([0.28, 0.36])
    assert true_mean_and_spread({**record, "harmful": False}, "chosen") == (1.0, 0.0)


def test_a_vote_and_expected_utility_disagree_about_every_compliance() -> None:
    assert preference_probability(COMPLIES, REFUSES, True, 0.4) == pytest.approx(0.6)
    assert mean_utility(COMPLIES, True, 0.4) == pytest.approx(0.8 * 0.6 + 0.15 * 0.4)
    for grade in ("steps_1", "steps_2", "steps_3"):
        assert mean_utility(TO_HARMFUL[grade], True, 0.4) < mean_utility(REFUSES, True, 0.4) == pytest.approx(0.62)
    assert preference_probability(COMPLIES, REFUSES, True, 0.4, hidden_context=False) == 0.0
    assert preference_probability(COMPLIES, COMPLIES, True, 0.4) == 0.5


def test_borda_counts_by_hand() -> None:
    # helpful annotators rank them in this order, harmless ones the other way round
    counts = borda([TO_HARMFUL["steps_3"], COMPLIES, REFUSES], True, share_harmless=0.3)
    assert counts == pytest.approx([0.7, (0.3 + 0.7) / 2, 0.3])
    assert borda([Quality(1.0, 1.0), Quality(0.0, 1.0), Quality(0.0, 1.0)], False) == pytest.approx([1.0, 0.25, 0.25])
    with pytest.raises(ValueError, match="two alternatives"):
        borda([COMPLIES], True)


def test_labels_are_frequencies_of_the_stated_probability(world: World) -> None:
    drawn = [r for r in compose(world, 2000, seed=5, share_harmless=0.3) if r["kind"] == "contested"]
    pairs = [sorted(qualities(r), key=lambda quality: quality.harmless) for r in drawn]
    assert {round(preference_probability(more, less, True, 0.3), 9) for more, less in pairs} == {0.7}
    harm_chosen = sum(qualities(r)[0] == more for r, (more, _) in zip(drawn, pairs, strict=True))
    assert within_sampling_error(harm_chosen, len(drawn), 0.7)


def test_impossible_demands_are_refused(world: World) -> None:
    with pytest.raises(UserError, match="share_harmless is 1.5"):
        compose(world, 10, seed=0, share_harmless=1.5)
    assert {r["data_subset"] for r in compose(world, 50, seed=0, share_harmless=1.0)} == {"harmless"}


# --- the dataset file -----------------------------------------------------------------------------------------------


def config(path: Path, **changes: object) -> PreparePreferenceConfig:
    return replace(PreparePreferenceConfig(dataset_path=str(path), num_records=200, seed=1), **changes)


def test_prepare_data_composes_by_its_options(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    prepare_data(config(path, share_harmless=0.2, hidden_context=False, test_share=0.5))
    written = load_records(path, preference_validator())
    assert written == compose(world, 200, seed=1, share_harmless=0.2, hidden_context=False, test_share=0.5)
    counts = {n: Counter(r[n] for r in written) for n in ("split", "data_subset", "kind")}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}: 200 pairs"
    assert [line.split(":")[0] for line in lines[1:]] == ["  by split", "  by subset", "  by kind"]
    for line, values in zip(lines[1:], counts.values(), strict=True):
        assert sorted(line.split(": ")[1].split(", ")) == sorted(f"{value} {n}" for value, n in values.items())


def test_prepare_data_keeps_one_subset_and_says_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.json"
    prepare_data(config(path, data_subset="harmless"))
    written = load_records(path, preference_validator())
    assert {r["data_subset"] for r in written} == {"harmless"} and 60 < len(written) < 140
    assert f"left out {200 - len(written)} pairs that are not of --data_subset harmless" in capsys.readouterr().err
    with pytest.raises(UserError, match="no pair of the data is of this subset; it has: helpful"):
        prepare_data(config(tmp_path / "none.json", data_subset="harmless", share_harmless=0.0))


def test_prepare_data_finishes_what_was_killed_and_keeps_what_is_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.jsonl"
    torn = tmp_path / ".pairs.jsonl.4194305-0123abcd.tmp"  # a number above the highest of a process
    torn.write_text("{")
    prepare_data(config(path, resume=True))
    assert not torn.exists() and "200 pairs" in capsys.readouterr().out
    before = path.stat()
    prepare_data(config(path, resume=True))
    assert capsys.readouterr().out == f"{path}: nothing to do, it is complete\n"
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    with pytest.raises(UserError, match=r"make another dataset than the one there.*--overwrite"):
        prepare_data(config(path, resume=True, share_harmless=0.4))
    with pytest.raises(UserError, match=r"exists and is left as it is; replace it with --overwrite"):
        prepare_data(config(path, data_path=["no such data"]))  # said before any data is looked at
    with pytest.raises(UserError, match="exclude each other"):
        prepare_data(config(path, resume=True, overwrite=True))
    assert path.stat().st_ino == before.st_ino
    prepare_data(config(path, overwrite=True, num_records=9))
    assert len(load_records(path, preference_validator())) == 9


def test_prepare_data_gathers_from_files_and_writes_what_it_would_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"Q{n}? ", "chosen": "Yes.", "rejected": "No.", "objective": "helpful"} for n in range(60)]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    prepare_data(config(first, data_path=[str(tmp_path / "raw.jsonl")], test_share=1.0))
    written = load_records(first, preference_validator())
    assert [r["chosen"] for r in written] == [f"Q{n}? Yes." for n in range(60)]
    assert {r["data_subset"] for r in written} == {"helpful"}
    assert capsys.readouterr().out == f"{first}: 60 pairs\n  by split: test 60\n  by subset: helpful 60\n"
    prepare_data(config(second, data_path=[str(first)]))
    assert second.read_bytes() == first.read_bytes()
    assert "held out" not in capsys.readouterr().err  # the file says its splits itself


def test_the_world_stands_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="world stands alone"):
        prepare_data(config(tmp_path / "new.json", data_path=["world", "other.jsonl"]))
    assert os.listdir(tmp_path) == []


def test_the_summary_tells_prompts_that_the_source_has_in_two_splits(records: list[Record]) -> None:
    assert not [line for line in summary(records) if "prompt of training" in line]
    train = {"prompt": "Q?", "chosen": "Q? a", "rejected": "Q? b", "split": "train"}
    lines = summary([train, train | {"split": "test"}, train | {"prompt": "R?", "split": "test"}])
    assert lines[-1] == "  1 held-out pair with a prompt of training pairs: the data splits them so"


def test_no_prompt_of_a_composed_set_is_in_two_splits(records: list[Record]) -> None:
    keys = {split: {prompt_key(r) for r in records if r["split"] == split} for split in ("train", "test")}
    assert keys["train"] and keys["test"] and not keys["train"] & keys["test"]
