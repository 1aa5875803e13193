from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.utils.test_columns import Row, write
from utils.completion_rows import sample_rows


def text(step: int, text: str = "x", resumes: int = 0) -> Row:
    return {"step": step, "resumes": resumes, "prompt": text}


@pytest.mark.parametrize(("count", "most"), [(10, 100), (1000, 100), (1000, 999), (1000, 1)])
def test_completions_are_kept_evenly_over_the_steps(tmp_path: Path, count: int, most: int) -> None:
    rows: list[Row | str | bytes] = [text(step) for step in range(count)]
    sample = sample_rows(write(tmp_path / "completions.jsonl", rows), most, 1 << 30)
    steps = [row["step"] for row in sample.rows]
    assert sample.total == count and len(steps) == min(count, most)
    if 1 < len(steps) < count:
        assert (steps[0], steps[-1]) == (0, count - 1) and set(np.diff(steps)) <= {count // most, count // most + 1}


def test_so_many_bytes_of_completions_at_most(tmp_path: Path) -> None:
    rows: list[Row | str | bytes] = [text(step, "x" * 1000) for step in range(100)]
    sample = sample_rows(write(tmp_path / "completions.jsonl", rows), 1000, 25_000)
    assert sample.total == 100 and 20 <= len(sample.rows) <= 25


def test_completions_of_a_resumed_run_and_foreign_ones(tmp_path: Path) -> None:
    rows: list[Row | str | bytes] = [
        text(1, "a"), text(2, "old"), text(3, "b"), text(2, "new", resumes=1), {"prompt": "c", "step": 4},
        "{broken}", '{"step": 5, "resumes": 0, broken}', {"prompt": "no step"},
    ]  # fmt: skip
    path = write(tmp_path / "completions.jsonl", rows)
    path.write_bytes(path.read_bytes() + b'{"step": 9, "resu')
    sample = sample_rows(path, 100, 1 << 20)
    assert [row["prompt"] for row in sample.rows] == ["a", "new", "b", "c"]
    assert sample.total == 4 and "3 lines left out, no row with a step (line 6, 7, 8)" in sample.faults[0]


def test_no_completions(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    for name in ("empty.jsonl", "absent.jsonl"):
        sample = sample_rows(tmp_path / name, 10, 1 << 20)
        assert (sample.rows, sample.total, sample.faults, sample.read) == ([], 0, (), 0)
