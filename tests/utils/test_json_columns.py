"""What polars may read for a log: everything that the lines say, or nothing."""

from __future__ import annotations

import json

import pytest

from utils.json_columns import Types, count, learn, metric, read_columns

ROW = {"step": 1, "loss": 0.5, "split": "grpo", "flag": True}


def types_of(*rows: dict[str, object]) -> Types:
    types: Types = {}
    learn(types, rows)
    return types


def lines(*rows: dict[str, object]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_rows_with_different_keys_are_read_whole() -> None:
    rows: list[dict[str, object]] = [ROW, {"step": 2, "loss": 12345678901234567890}, {"step": 3, "kl": -1.5e-300}]
    frame = read_columns(lines(*rows), types_of(*rows))
    assert frame.to_dict(as_series=False) == {
        "step": [1, 2, 3], "loss": [0.5, 1.2345678901234567e19, None], "split": ["grpo", None, None],
        "flag": [True, None, None], "kl": [None, None, -1.5e-300],
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        '{"step": 2, "new": 1}', '{"step": 2, "loss": null}', '{"step": 2, "loss": 1, "loss": 2}',
        '{"step": 2, "loss": "0.5"}', '{"step": 2, "loss": true}', '{"step": 2, "loss": [1]}', '{"step": 2.0}',
        '{"step": 2, "loss": NaN}', '{"step": 2, "loss": 1e400}', '{"step": 2}{"step": 3}', '{"step": 2', "[2]",
        '{"step": 2, "flag": 1}', '{"step": 2, "split": 1}', '{"step": 2, "split": null}',
    ],
)  # fmt: skip
def test_what_would_be_lost_or_changed_is_not_read(text: str) -> None:
    assert read_columns(lines(ROW), types_of(ROW)) is not None
    assert read_columns(lines(ROW) + text.encode() + b"\n", types_of(ROW)) is None


def test_the_first_value_of_a_column_gives_its_type() -> None:
    found = types_of({"step": 1, "gap": None, "text_gap": "NaN", "note": "x", "deep": {}, "alarm": "x"}, {"note": 1})
    assert {name: str(kind) for name, kind in found.items()} == {
        "step": "Int64", "gap": "Float64", "text_gap": "Float64", "note": "String",
    }  # fmt: skip


def test_count() -> None:
    assert count(b'{"a": "b"}\n\n', b'"') == 4 and count(b"\n\n", b"\n") == 2 and count(b"", b"x") == 0


@pytest.mark.parametrize(("value", "number"), [(1, 1.0), ("text", None), (True, None), ([], None), (1e309, "gap")])
def test_metric(value: object, number: object) -> None:
    found = metric(value)
    assert found == number if number != "gap" else found != found
