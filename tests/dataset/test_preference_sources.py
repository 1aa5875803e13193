"""Pairs from files, folders and the hub: which are read, and the split and subset that each gets."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from dataset import preference_sources
from dataset.pair_forms import prompt_key
from dataset.preference_sources import load_pairs
from utils.errors import UserError

REAL = Path(__file__).parents[2] / "../shared/data/preference"
Record = dict[str, Any]


def pair(prompt: object, /, *answers: str, **columns: object) -> Record:
    """A pair as HH-RLHF writes it."""
    chosen, rejected = answers or ("Yes.", "No.")
    begin = f"\n\nHuman: {prompt}\n\nAssistant: "
    return {"chosen": begin + chosen, "rejected": begin + rejected, **columns}


def write(path: Path, rows: list[Record]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return str(path)


def load(*paths: str | Path, subset: str = "both", **options: Any) -> list[Record]:
    return load_pairs([str(path) for path in paths], subset, **{"skip_invalid": False, **options})


def where(pairs: list[Record]) -> Counter[tuple[str, str]]:
    return Counter((each["split"], each["data_subset"]) for each in pairs)


def folder_of(root: Path, names: dict[str, int], **columns: object) -> Path:
    """Folders of {train,test}.jsonl.gz: so many train pairs each, and one test pair."""
    for name, count in names.items():
        for split, number in (("train", count), ("test", 1)):
            rows = [pair(f"{name} {split} {n}", **columns) for n in range(number)]
            write(root / name / f"{split}.jsonl.gz", rows)
    return root


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_of_split_files(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [pair(1), pair(2)])
    write(tmp_path / "validation.jsonl.gz", [pair(3)])
    write(tmp_path / "test.jsonl.gz", [pair(4)])
    write(tmp_path / "notes.jsonl", [{"note": "no pair"}])
    assert where(load(tmp_path)) == {("train", "both"): 2, ("validation", "both"): 1, ("test", "both"): 1}


def test_a_copy_of_hh_rlhf_is_read_as_the_published_code_does(tmp_path: Path) -> None:
    root = folder_of(tmp_path, {"helpful-base": 3, "harmless-base": 2, "helpful-online": 9, "red-team-attempts": 9})
    both = {("train", "helpful"): 3, ("test", "helpful"): 1, ("train", "harmless"): 2, ("test", "harmless"): 1}
    assert where(load(root)) == both
    assert where(load(root, subset="harmless")) == {("train", "harmless"): 2, ("test", "harmless"): 1}
    assert where(load(root / "helpful-online")) == {("train", "helpful"): 9, ("test", "helpful"): 1}


def test_relabelled_folders_give_each_row_once_by_its_objective(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The label's objective is the subset; where the pair came from is kept beside it."""
    rows = {
        objective: [pair(f"{objective} {source}", objective=objective, data_subset=source) for source in sources]
        for objective, sources in {"helpful": ["helpful", "harmless"], "harmless": ["helpful", "harmless"]}.items()
    }
    for split in ("train", "test"):
        for objective, own in rows.items():
            write(tmp_path / objective / f"{split}.jsonl.gz", own)
        write(tmp_path / "both" / f"{split}.jsonl.gz", rows["helpful"] + rows["harmless"])
    both = load(tmp_path)
    assert where(both) == dict.fromkeys([(s, o) for s in ("train", "test") for o in ("helpful", "harmless")], 2)
    assert Counter((p["data_subset"], p.get("source_subset")) for p in both) == {
        ("helpful", None): 2,
        ("helpful", "harmless"): 2,
        ("harmless", None): 2,
        ("harmless", "helpful"): 2,
    }
    assert {p["objective"] for p in load(tmp_path, subset="helpful")} == {"helpful"}
    assert len(load(tmp_path, subset="helpful")) == 4
    for file in (tmp_path / "both").iterdir():
        file.unlink()
    (tmp_path / "both").rmdir()
    assert where(load(tmp_path)) == where(both)
    assert capsys.readouterr().err == ""


def test_the_folder_of_both_is_enough_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [pair(n, objective=("helpful", "harmless")[n % 2]) for n in range(5)]
    write(tmp_path / "both" / "train.jsonl", rows)
    assert where(load(tmp_path, subset="harmless")) == {("train", "harmless"): 2}
    assert "left out 3 pairs that are not of --data_subset harmless" in capsys.readouterr().err


def test_another_folder_is_all_its_dataset_files(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [pair(1, split="test"), pair(2, split="train")])
    write(tmp_path / "b.jsonl.gz", [pair(3, split="validation")])
    (tmp_path / "README.md").write_text("pairs")
    (tmp_path / ".b.jsonl").write_text("left by an editor")
    assert [p["split"] for p in load(tmp_path)] == ["test", "train", "validation"]


@pytest.mark.parametrize(
    ("folders", "subset", "message"),
    [
        ({}, "both", "there are no pairs in this folder: no train or test file"),
        ({"helpful": 1}, "both", "there is no sub-folder harmless or harmless-base; choose another --data_subset"),
    ],
)
def test_a_folder_without_what_is_asked_for(tmp_path: Path, folders: dict[str, int], subset: str, message: str) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}: {message}"):
        load(folder_of(tmp_path, folders), subset=subset)


def test_a_sub_folder_without_files(tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    with pytest.raises(UserError, match=f"{tmp_path / 'both'}: there is no train or test file in it"):
        load(tmp_path)


# --- splits ---------------------------------------------------------------------------------------------------------


def test_a_field_decides_before_the_files_name(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [pair(1), pair(2, split="test"), pair(3, split=None)])
    assert [p["split"] for p in load(tmp_path / "train.jsonl")] == ["train", "test", "train"]


def test_names_that_end_in_a_split_count_where_both_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write(tmp_path / "hh_train.jsonl", [pair(f"a {n}") for n in range(20)])
    test = write(tmp_path / "hh-test.jsonl", [pair(f"b {n}") for n in range(20)])
    assert [p["split"] for p in load(test, train)] == ["test"] * 20 + ["train"] * 20
    assert capsys.readouterr().err == ""
    assert {p["split"] for p in load(test)} == {"train", "test"}
    assert "of 20 pairs as split test, whole prompts together" in capsys.readouterr().err


def test_held_out_prompts_follow_from_their_text_alone(tmp_path: Path) -> None:
    """Whatever file, form, order or subset a prompt is met in, it is on one side."""
    helpful = [pair(n // 2, "Yes.", f"No {n}.", data_subset="helpful") for n in range(400)]
    harmless = [pair(n, "No.", "Yes!", data_subset="harmless", prompt=f"Human: {n}") for n in range(300)]
    for row in harmless:
        row["chosen"], row["rejected"] = row["chosen"].strip(), row["rejected"].strip()
    first, second = write(tmp_path / "a.jsonl", helpful), write(tmp_path / "b.jsonl", harmless)
    sides = {prompt_key(p): p["split"] for p in load(first, second)}
    for loaded in (load(second, first), load(first), load(second), load(first, second, subset="harmless")):
        assert all(sides[prompt_key(p)] == p["split"] for p in loaded)
    assert len(sides) == 300 and 40 <= sum(side == "test" for side in sides.values()) <= 80  # expected: 60
    assert {p["split"] for p in load(first, test_share=0.0)} == {"train"}
    assert {p["split"] for p in load(first, test_share=1.0)} == {"test"}
    with pytest.raises(UserError, match=r"--test_share 1\.5: give a share"):
        load(first, test_share=1.5)


def test_a_prompt_that_has_a_split_keeps_it(tmp_path: Path) -> None:
    named = [pair(n, split=("train", "test")[n % 2]) for n in range(40)]
    free = [pair(n, "Sure.", "Hm.") for n in range(40)]
    loaded = load(write(tmp_path / "a.jsonl", free + named))
    assert [p["split"] for p in loaded] == ["train", "test"] * 40


# --- what is read, and how often --------------------------------------------------------------------------------------


def test_no_pair_is_read_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [pair(n, split="train") for n in range(3)]
    file = write(tmp_path / "a.jsonl", rows + rows[:1])
    assert len(load(file, f"{tmp_path}/../{tmp_path.name}/a.jsonl", tmp_path)) == 4  # as often as its file has it
    assert capsys.readouterr().err == ""
    write(tmp_path / "b.jsonl", [rows[1], rows[1] | {"split": "test"}, pair(9, split="train")])
    loaded = load(tmp_path)
    assert len(loaded) == 6 and [p["split"] for p in loaded[4:]] == ["test", "train"]
    assert capsys.readouterr().err == "left out 1 pair that another file of the same split holds, too\n"


def test_ids_stay_names(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [pair(1, id="a"), pair(2, id=2), pair(3)])
    assert [p.get("id") for p in load(tmp_path)] == ["a", 2, None]
    write(tmp_path / "test.jsonl", [pair(4, id=2)])
    assert [p.get("id") for p in load(tmp_path)] == ["1-2", "2-a", "2-2", None]


def test_mixed_forms_are_refused(tmp_path: Path) -> None:
    texts = write(tmp_path / "a.jsonl", [pair(1)])
    talks = write(
        tmp_path / "b.jsonl", [{"prompt": [{"role": "user", "content": "Hi"}], "chosen": "a", "rejected": "b"}]
    )
    with pytest.raises(UserError, match=f"^{talks}: holds pairs of conversations, and {texts} pairs of texts; give"):
        load(texts, talks)


def test_faulty_pairs_stop_or_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "train.jsonl", [pair(1), pair(2, "a", "a"), pair(3, "a", " "), {"chosen": "a"}])
    with pytest.raises(UserError, match="3 faults beside 1 good record") as error:
        load(file)
    lines = str(error.value).splitlines()
    assert lines[1] == f"{file}:record 2 (line 2): chosen and rejected are the same"
    assert lines[2] == f"{file}:record 3 (line 3): the assistant's last turn in rejected is empty"
    assert lines[3] == f"{file}:record 4 (line 4): rejected is missing"
    assert len(load(file, skip_invalid=True)) == 1
    assert f"{file}: kept 1 record, left out 3:" in capsys.readouterr().err


def test_a_subset_that_nothing_is_of(tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", [pair(1), pair(2, data_subset="harmless")])
    with pytest.raises(UserError, match="--data_subset helpful: no pair .* of this subset; it has: both, harmless"):
        load(file, subset="helpful")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("world", "--data_path world: the micro-world's pairs are composed by --task preference --mode prepare_data"),
        ("nowhere", "--data_path nowhere: there is no such file or folder, and a dataset of the hub is called OWNER/N"),
        ("/no/such/folder", "--data_path /no/such/folder: there is no such file or folder"),
        ("no/such.jsonl", "no/such.jsonl: no such file; the directory no does not exist"),
    ],
)
def test_a_path_that_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load(path)


# --- the hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub: `datasets` itself reads its files."""
    root = tmp_path / "hub"
    real = datasets.load_dataset
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(preference_sources, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, data_dir=None: real(str(root / name), data_dir=data_dir))
    return root


def test_hh_rlhf_of_the_hub(hub: Path) -> None:
    folder_of(hub / "Anthropic/hh-rlhf", {"helpful-base": 3, "harmless-base": 2, "helpful-online": 9})
    both = {("train", "helpful"): 3, ("test", "helpful"): 1, ("train", "harmless"): 2, ("test", "harmless"): 1}
    loaded = load("Anthropic/hh-rlhf")
    assert where(loaded) == both
    assert loaded[0]["chosen"] == pair("helpful-base train 0")["chosen"]
    assert where(load("Anthropic/hh-rlhf", subset="helpful")) == {("train", "helpful"): 3, ("test", "helpful"): 1}


def test_faults_of_a_hub_dataset_name_it(hub: Path) -> None:
    write(hub / "some/pairs/train.jsonl", [pair(1), pair(2, "a", "a")])
    with pytest.raises(UserError, match="^some/pairs train:record 2: chosen and rejected are the same; nothing was"):
        load("some/pairs")


def fake_hub(monkeypatch: pytest.MonkeyPatch, splits: dict[str, list[Record]]) -> None:
    loaded = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})
    monkeypatch.setattr(preference_sources, "hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, data_dir=None: loaded)


def test_splits_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [pair(n) for n in range(30)]
    fake_hub(monkeypatch, {"train": rows[:2], "test": rows[2:3], "extra": rows[3:]})
    assert [p["split"] for p in load("some/pairs")] == ["train", "train", "test"]
    fake_hub(monkeypatch, {"train_prefs": rows[:2], "train_sft": rows[:2], "test_prefs": rows[2:3]})
    assert [p["split"] for p in load("some/pairs")] == ["train", "train", "test"]
    fake_hub(monkeypatch, {"train": rows})  # one split alone is none
    assert {p["split"] for p in load("some/pairs")} == {"train", "test"}
    fake_hub(monkeypatch, {"batch_1": rows})
    with pytest.raises(UserError, match="some/pairs: its splits are batch_1, not train, validation or test; save"):
        load("some/pairs")
    fake_hub(monkeypatch, {"train": [{"question": "Q", "chosen": "a"}]})
    with pytest.raises(UserError, match="some/pairs: it has no column rejected, only question, chosen; give"):
        load("some/pairs")


def test_conversations_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = {"prompt": "Hi", "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]}
    talk["rejected"] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No."}]
    fake_hub(monkeypatch, {"train": [talk], "test": [talk]})
    (first, _) = load("some/pairs")
    assert (first["chosen"], first["prompt_text"]) == (talk["chosen"], "Hi") and "prompt" not in first


@pytest.mark.parametrize("name", ["no-such-owner/no-such-data", "Anthropic/hh-rlhf"])
def test_a_hub_that_is_out_of_reach_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(preference_sources, "hub_reachable", lambda: False)
    for call in ("socket.socket.connect", "socket.getaddrinfo"):
        monkeypatch.setattr(call, lambda *_, **__: pytest.fail("tried the network"))
    with pytest.raises(UserError, match=f"--data_path {name}: there is no such file .* the hub cannot be reached") as e:
        load(name)
    assert "\n" not in str(e.value) and "check the name, the network" in str(e.value)


# --- real data ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason="the real preference data is not here")
def test_the_relabelled_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    files = [REAL / f"relabeled_{subset}_test.jsonl.gz" for subset in ("helpful", "harmless")]
    loaded = load(*files, skip_invalid=True)
    assert Counter(p["data_subset"] for p in loaded) == {"helpful": 2153, "harmless": 1882}
    assert sum("source_subset" in p for p in loaded) == 1050 + 879
    assert all(p["chosen"].startswith(p["prompt"]) and p["rejected"].startswith(p["prompt"]) for p in loaded)
    test = {prompt_key(p) for p in loaded if p["split"] == "test"}
    assert 700 < len(test) < 900 and not test & {prompt_key(p) for p in loaded if p["split"] == "train"}
    assert "left out 4:" in capsys.readouterr().err
