from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from model_training.checkpoints import (
    LOOP_STATE,
    disk_errors,
    list_checkpoints,
    newest_checkpoint,
    publish_directory,
    remove_partial,
)
from model_training.order import Stream, shuffled_passes
from utils.errors import WorkError


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "file").write_text(text, encoding="utf-8")
    return folder


def test_publishing_replaces_a_directory_whole(tmp_path: Path) -> None:
    target = write(tmp_path / "target", "old")
    (target / "only in the old").touch()
    publish_directory(write(tmp_path / ".partial-1" / "checkpoint", "new"), target)
    assert [path.name for path in target.iterdir()] == ["file"]
    assert (target / "file").read_text(encoding="utf-8") == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".partial-1", "target"]


def test_half_written_checkpoints_are_ignored_and_removed(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", ".partial-11/checkpoint-11", "sft", "checkpoint-x"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / LOOP_STATE).write_text("{}")
    (tmp_path / "checkpoint-11").mkdir()
    found = [path.name for path in list_checkpoints(tmp_path)]
    assert found == ["checkpoint-9", "checkpoint-10", "checkpoint-11"], "the last one has weights, but no state"
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "checkpoint-10"
    remove_partial(tmp_path)
    assert not (tmp_path / ".partial-11").exists() and (tmp_path / "checkpoint-10").exists()
    assert newest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file data/1")],
)
def test_a_full_disk_is_one_line_that_names_what_was_written(error: Exception) -> None:
    with pytest.raises(WorkError, match="cannot write checkpoint x.*disk"), disk_errors("checkpoint x"):
        raise error


def test_other_errors_pass_the_disk_guard() -> None:
    with pytest.raises(RuntimeError, match="shapes"), disk_errors("checkpoint x"):
        raise RuntimeError("shapes differ")


def test_the_order_is_pass_after_pass_and_a_function_of_the_seed() -> None:
    order = list(islice(shuffled_passes(5, seed=3), 15))
    passes = [order[:5], order[5:10], order[10:]]
    assert [sorted(one) for one in passes] == [[0, 1, 2, 3, 4]] * 3
    assert passes[0] != passes[1]
    assert order == list(islice(shuffled_passes(5, seed=3), 15))
    assert order != list(islice(shuffled_passes(5, seed=4), 15))


def test_a_round_repeats_each_prompt_in_groups_and_the_block_for_each_micro_batch() -> None:
    stream = Stream(num_records=3, seed=1, rounds=2, prompts_per_round=2, group=2, repeats=3)
    a, b, c, d = islice(shuffled_passes(3, seed=1), 4)
    assert list(stream) == [a, a, b, b] * 3 + [c, c, d, d] * 3
    assert len(stream) == len(list(stream))
