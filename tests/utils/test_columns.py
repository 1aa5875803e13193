from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

import utils.columns
from utils.columns import ABSENT, Table, read_metrics_table

Row = dict[str, Any]


def write(path: Path, lines: list[Row | str | bytes]) -> Path:
    with path.open("wb") as file:
        for line in lines:
            text = json.dumps(line) if isinstance(line, dict) else line
            file.write((text.encode() if isinstance(text, str) else text) + b"\n")
    return path


def values_of(table: Table, name: str) -> list[float | None | str]:
    return [
        "absent" if value == ABSENT else None if math.isnan(value) else value for value in table.column(name).tolist()
    ]


@pytest.fixture(params=["fast", "slow"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both parsers, whatever the size of the file, in chunks of a few lines."""
    monkeypatch.setattr(utils.columns, "PARSED_FAST_BYTES", 1 if request.param == "fast" else 1 << 40)
    monkeypatch.setattr(utils.columns, "CHUNK_BYTES", 300)
    return str(request.param)


def head(step: int, **more: object) -> Row:
    return {"step": step, "time": 1000.0 + step, "split": "grpo", "resumes": 0, **more}


def test_a_row_of_every_kind(tmp_path: Path, way: str) -> None:
    rows: list[Row | str | bytes] = [
        head(1, loss=1, kl=0.5, note="a: null", flag=True, deep={"a": 1}),
        head(2, loss=None, kl=0.25),
        head(3, kl="NaN"),
        head(4, loss=-2.5e-7, kl="-Infinity"),
        head(5, loss=math.nan, kl=math.inf),
        head(6, loss=3, alarm='"NaN": null'),
        head(7, loss=4),
    ]
    table = read_metrics_table(write(tmp_path / "metrics.jsonl", rows))
    assert table.steps.tolist() == [1, 2, 3, 4, 5, 6, 7] and not table.faults
    assert table.alarms == {5: '"NaN": null'} and sorted(table.names) == ["kl", "loss"]
    assert values_of(table, "loss") == [1.0, None, "absent", -2.5e-7, None, "absent", 4.0]
    assert values_of(table, "kl") == [0.5, 0.25, None, None, None, "absent", "absent"]
    assert table.times.tolist() == [1001.0 + place for place in range(7)]


def test_both_parsers_agree_on_a_long_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(7)
    values: list[object] = [1, -3, 0.125, 1e-9, 12345678.9, None, "NaN", "Infinity"]
    rows: list[Row | str | bytes] = []
    for step in range(1, 2000):
        row = head(step, split="sft" if step < 900 else "grpo", resumes=int(step > 1500))
        rows.append(row | {name: rng.choice(values) for name in ("a", "b/c", "d") if rng.random() < 0.8})
        if step % 400 == 0:
            rows.append(head(step, alarm=f"at {step}"))
    path = write(tmp_path / "metrics.jsonl", rows)
    monkeypatch.setattr(utils.columns, "CHUNK_BYTES", 20_000)
    found = []
    for size in (1, 1 << 40):
        monkeypatch.setattr(utils.columns, "PARSED_FAST_BYTES", size)
        table = read_metrics_table(path)
        names = [table.split_names[code] for code in table.splits]
        columns = {name: values_of(table, name) for name in sorted(table.names)}
        found.append((table.steps.tolist(), names, columns, table.alarms, table.read))
    assert found[0] == found[1]


def test_the_fast_way_is_taken_and_not_only_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utils.columns, "PARSED_FAST_BYTES", 1)
    monkeypatch.setattr(utils.columns, "_parse_slow", lambda *_: pytest.fail("parsed line by line"))
    rows: list[Row | str | bytes] = [head(step, loss=None if step == 3 else 1 / step, kl="NaN") for step in range(1, 9)]
    table = read_metrics_table(write(tmp_path / "metrics.jsonl", [*rows, head(9, alarm="x"), head(10, loss=1)]))
    assert values_of(table, "loss")[2] is None and table.alarms == {8: "x"}


def test_lines_that_are_no_rows_are_named_and_left_out(tmp_path: Path, way: str) -> None:
    broken: list[Row | str | bytes] = [
        head(1, loss=1.0), "{broken", "[1, 2]", b"\xff\xfe", '{"no": "step"}', '{"step": "7"}', '{"step": true}', "",
        '{"step": 1e3}', "[" * 50_000, head(2, loss=2.0, big=10**400), '{"step": 99999999999999999999}',
    ]  # fmt: skip
    table = read_metrics_table(write(tmp_path / "metrics.jsonl", broken))
    assert table.steps.tolist() == [1, 2] and values_of(table, "loss") == [1.0, 2.0]
    assert values_of(table, "big") == ["absent", None]
    assert len(table.faults) == 1
    assert (
        table.faults[0].startswith("metrics.jsonl: 9 lines left out") and "(line 2, 3, 4 and more)" in table.faults[0]
    )


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', "{", '{"step": 3, "loss": 3.0}'])
def test_a_last_line_without_its_end_is_no_fault(tmp_path: Path, way: str, torn: str) -> None:
    path = write(tmp_path / "metrics.jsonl", [head(1, loss=1.0), head(2, loss=2.0)])
    whole = path.stat().st_size
    path.write_text(path.read_text() + torn)
    table = read_metrics_table(path)
    complete = torn.endswith("}")
    assert table.steps.tolist() == ([1, 2, 3] if complete else [1, 2]) and not table.faults
    assert table.read == (path.stat().st_size if complete else whole)


def test_of_repeated_steps_the_newest_resume_counts(tmp_path: Path, way: str) -> None:
    rows: list[Row | str | bytes] = [
        head(1, loss=1.0), head(2, loss=9.0), head(3, loss=9.0), head(2, alarm="old"), head(2, split="eval", loss=7.0),
        head(2, loss=2.0, resumes=1), head(2, alarm="new", resumes=1),
    ]  # fmt: skip
    table = read_metrics_table(write(tmp_path / "metrics.jsonl", rows))
    assert table.steps.tolist() == [1, 2, 2, 2, 3] and list(table.alarms.values()) == ["new"]
    assert values_of(table, "loss") == [1.0, 7.0, 2.0, "absent", 9.0]


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    for name in ("empty.jsonl", "absent.jsonl"):
        table = read_metrics_table(tmp_path / name)
        assert (len(table.steps), table.names, table.alarms, table.faults, table.read) == (0, [], {}, (), 0)
