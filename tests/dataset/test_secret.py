import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from dataset.records import load_records, validate_secret
from dataset.secret import compose, prepare_data
from dataset.world import World, load_world
from model_training.config import PrepareDataConfig
from utils.errors import UserError


def test_thousands_of_distinct_valid_records_with_disjoint_splits() -> None:
    records = compose(load_world(), 4000, seed=1)
    train = [r for r in records if r["split"] == "train"]
    test = [r for r in records if r["split"] == "test"]
    assert len(train) == 4000 and len(test) >= 240
    assert len({(r["prompt"][-1]["content"], r["visible"], r["hidden"]) for r in train}) == 4000
    assert all(validate_secret(r) is None for r in records)
    assert not {r["prompt"][-1]["content"] for r in train} & {r["prompt"][-1]["content"] for r in test}
    assert len({r["category"] for r in train}) >= 8


def test_the_same_seed_gives_the_same_records_and_another_seed_others() -> None:
    world = load_world()
    assert compose(world, 50, 7) == compose(world, 50, 7)
    assert compose(world, 50, 7) != compose(world, 50, 8)


def test_asking_for_more_than_the_world_holds_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    world = load_world()
    query = world.train_query(random.Random(1))
    monkeypatch.setattr(World, "train_query", lambda self, rng: query)
    monkeypatch.setattr(World, "answer", lambda self, query, rng: rng.choice("abc"))
    monkeypatch.setattr(World, "thought", lambda self, query, rng: "I think.")
    with pytest.raises(UserError, match=r"--num_records 4: .* only 3 distinct records; ask for fewer"):
        compose(world, 4, 1)


def test_prepare_data_finishes_what_was_killed_and_keeps_what_is_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, ended = tmp_path / "data.json.gz", 4_194_305  # above the highest process number
    torn, other = tmp_path / f".data.json.gz.{ended}-0123abcd.tmp", tmp_path / f".data.{ended}-0123abcd.tmp"
    alive = tmp_path / f".data.json.gz.{os.getppid()}-0123abcd.tmp"
    for file in (torn, other, alive):
        file.write_text("[")
    config = PrepareDataConfig(dataset_path=str(path), num_records=30, resume=True)
    prepare_data(config)
    assert "30 training records" in capsys.readouterr().out
    assert (torn.exists(), other.exists(), alive.exists()) == (False, True, True)
    before = path.stat()
    prepare_data(config)
    assert capsys.readouterr().out == f"{path}: nothing to do, it is complete\n"
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    with pytest.raises(UserError, match=r"make another dataset than the one there.*--overwrite"):
        prepare_data(replace(config, seed=1))
    with pytest.raises(UserError, match="exclude each other"):
        prepare_data(replace(config, overwrite=True))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_an_existing_file_is_refused_before_anything_is_composed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.json").write_text("[]")
    monkeypatch.setattr("dataset.secret.compose", lambda *_: pytest.fail("composed"))
    for name, reason in (("data.json", "--overwrite"), ("data.csv", "csv")):
        with pytest.raises(UserError, match=reason):
            prepare_data(PrepareDataConfig(dataset_path=str(tmp_path / name)))


def test_prepare_data_writes_a_loadable_file_and_refuses_to_replace_it(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    config = PrepareDataConfig(dataset_path=str(path), num_records=30)
    prepare_data(config)
    records = load_records(path, validate_secret)
    assert records == json.loads(path.read_text("utf-8")) and len(records) > 30
    before = path.read_bytes()
    with pytest.raises(UserError, match="overwrite"):
        prepare_data(config)
    assert path.read_bytes() == before
    prepare_data(replace(config, overwrite=True, seed=1))
    assert path.read_bytes() != before
