from __future__ import annotations

from pathlib import Path

import pytest

from tests.utils.make_run import make_run
from utils.series import load_run
from utils.tables import category_tables, evaluation_table, failure_table, paired_table


def test_evaluation_tables(tmp_path: Path) -> None:
    evaluation = load_run(make_run(tmp_path)).evaluation
    assert evaluation is not None
    table = evaluation_table(evaluation)
    assert table.columns == ["base", "adapter", "warmup"]
    metric, cells = table.rows[0]
    assert metric == "strict_format_rate" and cells[1] is not None
    assert (cells[1].value, cells[1].n) == (0.988, 240) and cells[1].low == pytest.approx(0.974)
    paired = paired_table(evaluation)
    assert paired.columns == ["adapter - base", "adapter - warmup"]
    assert [cell.excludes_zero for cell in paired.rows[0][1] if cell] == [True, False]
    categories = dict(category_tables(evaluation))
    assert len(categories["adapter"].rows) == 8 and categories["adapter"].columns[0] == "strict_format_rate"
    assert failure_table(evaluation) == (
        ["base", "adapter", "warmup"],
        [("hidden_not_closed", [0, 3, 3]), ("no_tags", [231, 0, 0]), ("text_outside", [6, 0, 0])],
    )


def test_a_metric_that_one_model_lacks_is_an_empty_cell() -> None:
    evaluation = {"models": {"a": {"metrics": {"x": {"value": 1, "n": 2}}}, "b": {"metrics": {"x": {"value": None}}}}}
    (_, (mine, other)) = evaluation_table(evaluation).rows[0]
    assert mine is not None and mine.low is None and not mine.excludes_zero and other is None
    assert paired_table(evaluation).rows == []
