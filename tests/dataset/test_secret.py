import json
from dataclasses import replace
from pathlib import Path

import pytest

from dataset.records import load_records, validate_secret
from dataset.secret import compose, prepare_data
from dataset.world import load_world
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


def test_asking_for_more_than_the_world_holds_is_an_error() -> None:
    world = replace(load_world(), themes={"hello": load_world().themes["hello"]}, topics=load_world().topics[:1])
    with pytest.raises(UserError, match="--num_records"):
        compose(world, 100_000, 1)


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
