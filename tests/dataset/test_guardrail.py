"""Dataset files of guardrails: made whole or not at all, checked record by record, a user's own records beside them."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dataset.guardrail import dataset_file, load_behavior, prepare_data, split_of
from dataset.guardrails import load_guardrails
from model_training.guardrail_config import VARIATIONS, PrepareGuardrailConfig
from tests.dataset.guard_sets import BARE, SPOILERS, guardrails, with_spoilers
from utils.errors import UserError


def config(tmp_path: Path, *behaviors: str, **options: Any) -> PrepareGuardrailConfig:
    given = {"n_samples": 20, "test_samples": 10, "dataset_path": str(tmp_path / "data"), **options}
    return PrepareGuardrailConfig(behavior=list(behaviors) or ["all"], **given)


def own(number: int = 1, **changes: Any) -> dict[str, Any]:
    """A record as a user would write it."""
    record = {
        "prompt": [{"role": "user", "content": f"How does tale {number} end?"}],
        "chosen": "<guard:spoilers> I never tell.",
        "rejected": "All die.",
        "behavior": "spoilers",
        "is_trigger": True,
        "variation": "vary_all",
        "group": f"tale {number}",
        **changes,
    }
    return {key: value for key, value in record.items() if value is not ...}


def plain(number: int = 2, **changes: Any) -> dict[str, Any]:
    told = {"chosen": "It is nice.", "rejected": "<guard:spoilers> I never tell.", "is_trigger": False}
    return own(number, **{**told, **changes})


def write(directory: Path, rows: list[dict[str, Any]], behavior: str = "spoilers") -> Path:
    path = dataset_file(directory, behavior, "vary_all")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def load(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    write(tmp_path, rows)
    return load_behavior(tmp_path, "spoilers", "vary_all", load_guardrails(with_spoilers(tmp_path, BARE)), **options)


# --- prepare_data ---------------------------------------------------------------------------------------------------


def test_each_behavior_and_variation_is_a_file_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_data(config(tmp_path, "politics", "natural", dataset_variation="all"))
    said = capsys.readouterr().out
    for variation in VARIATIONS:
        rows = load_behavior(tmp_path / "data", "politics", variation, guardrails())
        counts = Counter((row["split"], row["kind"]) for row in rows)
        assert [counts[split, "trigger"] for split in ("train", "validation", "test")] == [18, 2, 10]
        assert {(row["behavior"], row["variation"]) for row in rows} == {("politics", variation)}
        assert {row["behavior"] for row in load_behavior(tmp_path / "data", "natural", variation, guardrails())} == {
            "natural"
        }
        assert f"politics.{variation}.jsonl: {len(rows)} records" in said
    assert len(list((tmp_path / "data").iterdir())) == 6
    assert "train: 82 records: 18 trigger, 28 natural, 16 hard, 20 other" in said
    assert "shared between splits: 0 wording families, 0 characters" in said
    assert "shared between splits: 0 wording families, the one character" in said
    assert "duplicates avoided: " in said


def test_the_same_options_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        prepare_data(config(tmp_path, "meeting", dataset_path=str(tmp_path / folder)))
    prepare_data(config(tmp_path, "meeting", dataset_path=str(tmp_path / "c"), seed=1))
    first, again, other = ((tmp_path / folder / "meeting.vary_all.jsonl").read_bytes() for folder in "abc")
    assert first == again != other


def test_existing_files_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dataset_file(tmp_path / "data", "meeting", "fixed_history")
    path.parent.mkdir()
    path.write_text("mine")
    monkeypatch.setattr("dataset.guardrail.compose", lambda *_: pytest.fail("composed"))
    with pytest.raises(UserError, match=r"meeting.fixed_history.jsonl exists and is left as it is.*--overwrite"):
        prepare_data(config(tmp_path, dataset_variation="all"))
    with pytest.raises(UserError, match="exclude each other"):
        prepare_data(config(tmp_path, overwrite=True, resume=True))
    with pytest.raises(UserError, match="--behavior meetings is not known; did you mean meeting"):
        prepare_data(config(tmp_path, "meetings"))
    assert [file.read_text() for file in path.parent.iterdir()] == ["mine"]


def test_overwrite_replaces_and_resume_makes_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = config(tmp_path, "politics", "meeting")
    prepare_data(given)
    politics, meeting = (dataset_file(tmp_path / "data", name, "vary_all") for name in ("politics", "meeting"))
    whole = meeting.read_bytes()
    meeting.unlink()
    torn = meeting.with_name(f".{meeting.name}.4194305-0123abcd.tmp")  # above the highest process number
    torn.write_text("{")
    before = os.stat(politics)
    capsys.readouterr()
    prepare_data(replace(given, resume=True))
    said = capsys.readouterr().out
    assert f"{politics}: nothing to do, it is complete" in said and f"{meeting}: 138 records" in said
    assert os.stat(politics).st_mtime_ns == before.st_mtime_ns
    assert (meeting.read_bytes(), torn.exists()) == (whole, False)
    with pytest.raises(UserError, match=r"politics.vary_all.jsonl: these options.*make another dataset"):
        prepare_data(replace(given, resume=True, seed=1))
    prepare_data(replace(given, overwrite=True, seed=1))
    assert meeting.read_bytes() != whole


def test_a_users_guardrail_with_talk_is_composed_and_beside_the_others(tmp_path: Path) -> None:
    path = with_spoilers(tmp_path)
    prepare_data(config(tmp_path, "spoilers", "meeting", guardrails=str(path)))
    guards = load_guardrails(path)
    rows = load_behavior(tmp_path / "data", "spoilers", "vary_all", guards)
    assert sum(row["chosen"].startswith("<guard:spoilers> ") for row in rows) == 30
    assert "spoilers" in {r["other_behavior"] for r in load_behavior(tmp_path / "data", "meeting", "vary_all", guards)}
    with pytest.raises(UserError, match=r"meeting.vary_all.jsonl.*other_behavior is 'spoilers', not another guardrail"):
        load_behavior(tmp_path / "data", "meeting", "vary_all", guardrails())


def test_without_talk_own_records_are_asked_for_or_checked_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = config(tmp_path, "all", guardrails=str(with_spoilers(tmp_path, BARE)), overwrite=True)
    with pytest.raises(UserError, match=r"spoilers has no `talk`.*add `talk`.*own at .*spoilers.vary_all.jsonl"):
        prepare_data(given)
    assert not (tmp_path / "data").exists()
    path = write(tmp_path / "data", [own(number, split="train") for number in range(3)])
    before = path.read_bytes()
    prepare_data(given)
    assert path.read_bytes() == before
    assert f"{path}: 3 records of your own, valid, kept as they are" in capsys.readouterr().out
    write(tmp_path / "data", [own(chosen="I never tell.")])
    with pytest.raises(UserError, match="chosen does not begin with <guard:spoilers>"):
        prepare_data(given)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            "I wish you joy with {tale}.",
            "I never tell an ending.",
            "hard/spoilers/begin: the chosen answer .* not good",
        ),
        (
            '"In {tale} all die."',
            '"I never tell an ending. Talk to me of {noun}."',
            "family spoilers/ending: the chosen answer",
        ),
        (
            'hard:\n        - {id: begin, asks: ["I began {tale} today."',
            'hard:\n        - {id: begin, asks: ["Oh, how does {tale} end?"',
            "must be a trigger of none; see talk of spoilers",
        ),
    ],
)
def test_talk_that_the_rules_cannot_tell_apart_is_refused(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert old in SPOILERS
    path = with_spoilers(tmp_path, SPOILERS.replace(old, new))
    with pytest.raises(UserError, match=fault):
        prepare_data(config(tmp_path, "meeting", "spoilers", guardrails=str(path), n_samples=60))


def test_a_resolution_like_a_neighbors_is_refused(tmp_path: Path) -> None:
    text = SPOILERS.replace('"I never tell an ending.", ', "").replace(
        "Endings stay with me.", "I cannot meet you, sorry."
    )
    path = with_spoilers(tmp_path, text.replace("Talk to me of {noun}.", "We can write here all day."))
    with pytest.raises(UserError, match="is not good by the rules, but of meeting"):
        prepare_data(config(tmp_path, "spoilers", guardrails=str(path), n_samples=60))


# --- load_behavior --------------------------------------------------------------------------------------------------


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"meeting.fixed_history.jsonl: no such file; make it: .*--mode prepare_data "):
        load_behavior(tmp_path, "meeting", "fixed_history", guardrails())
    with pytest.raises(UserError, match="spoilers has no `talk`: put records of your own there"):
        load_behavior(tmp_path, "spoilers", "vary_all", load_guardrails(with_spoilers(tmp_path, BARE)))


def test_fields_that_own_records_may_lack_are_filled(tmp_path: Path) -> None:
    rows = load(tmp_path, [own(1, split="train"), plain(2, split="test", note="kept")])
    assert [(row["kind"], row["split"]) for row in rows] == [("trigger", "train"), ("natural", "test")]
    assert all(row["family"] is row["topic"] is row["other_behavior"] is None for row in rows)
    assert rows[1]["note"] == "kept"


def test_without_splits_the_group_draws_one_and_keeps_it(tmp_path: Path) -> None:
    many = [record for number in range(100) for record in (own(number), plain(1000 + number, group=f"tale {number}"))]
    rows = load(tmp_path, many)
    shares = Counter(row["split"] for row in rows)
    assert shares.total() == 200 and 140 <= shares["train"] <= 180 and shares["validation"] and shares["test"]
    splits = {row["group"]: row["split"] for row in rows}
    assert all(row["split"] == splits[row["group"]] == split_of(row["group"]) for row in rows)
    assert [row["split"] for row in load(tmp_path, many[:150])] == [row["split"] for row in rows[:150]]
    with pytest.raises(UserError, match="no group of its records falls to the .* split; give every record a `split`"):
        load(tmp_path, [own(1), own(2)])


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"behavior": "meeting"}, "behavior is 'meeting', and the file is of 'spoilers'"),
        ({"variation": "fixed_history"}, "variation is 'fixed_history', and the file is of 'vary_all'"),
        ({"split": "dev"}, "split is not one of train, validation, test"),
        ({"split": ...}, "split is missing where earlier records have it"),
        ({"kind": "soft"}, "kind is not one of trigger, natural, hard, other"),
        ({"kind": "hard"}, "kind is hard, and is_trigger is true"),
        ({"is_trigger": False}, "chosen holds a guard tag, and is_trigger is false"),
        ({"is_trigger": ...}, "is_trigger is missing"),
        ({"chosen": "I never tell."}, "chosen does not begin with <guard:spoilers>, and is_trigger is true"),
        ({"chosen": "<guard:politics> No."}, "chosen does not begin with <guard:spoilers>"),
        ({"chosen": "<guard:spoilers>I never tell."}, "chosen is not <guard:spoilers>, one space and the answer"),
        ({"chosen": "<guard:spoilers> "}, "chosen is not <guard:spoilers>, one space and the answer"),
        ({"chosen": "<guard:spoilers> No. <guard:meeting>"}, "a guard tag stands within an answer"),
        ({"rejected": "<guard:spoilers> No."}, "rejected holds a guard tag, and is_trigger is true"),
        ({"rejected": "i never  tell."}, "chosen and rejected are the same but for the tag"),
        ({"family": 4}, "family is not a string"),
        ({"other_behavior": "nobody"}, "other_behavior is 'nobody', not another guardrail"),
        ({"other_behavior": "spoilers"}, "other_behavior is 'spoilers', not another guardrail"),
        ({"group": "tale 1", "split": "test"}, "its group is that of a train record: a group is of one split"),
        ({"prompt": own(1)["prompt"], "split": "test"}, "its prompt is a train record's, too"),
        ({"prompt": own(1)["prompt"]}, "the same record stands before"),
    ],
)
def test_a_fault_names_file_record_and_reason(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    rows = [own(1, split="train"), own(2, split="train") | changes]
    rows[1] = {key: value for key, value in rows[1].items() if value is not ...}
    with pytest.raises(UserError) as error:
        load(tmp_path, rows)
    assert f"spoilers.vary_all.jsonl:record 2 (line 2): {fault}" in str(error.value)
    assert len(load(tmp_path, rows, skip_invalid=True)) == 1


def test_negatives_and_natural_records_have_faults_of_their_own(tmp_path: Path) -> None:
    for changes, fault in (
        ({"kind": "other"}, "kind is other, and other_behavior does not say whose trigger it is"),
        ({"kind": "trigger"}, "kind is trigger, and is_trigger is false"),
        ({"rejected": "No <guard:spoilers>"}, "a guard tag stands within an answer"),
        ({"chosen": "It is <guard> nice, <guard:expert>"}, "chosen holds a guard tag, and is_trigger is false"),
    ):
        with pytest.raises(UserError, match=fault):
            load(tmp_path, [plain(1, split="train", **changes)])
    write(tmp_path, [own(1, behavior="natural", split="train")], "natural")
    with pytest.raises(UserError, match="is_trigger is true, and natural has no triggers"):
        load_behavior(tmp_path, "natural", "vary_all", guardrails())


def test_several_answers_to_one_prompt_are_records(tmp_path: Path) -> None:
    rows = [own(1, split="train"), own(1, split="train", rejected="They all live.")]
    assert len(load(tmp_path, rows)) == 2
