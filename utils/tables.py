"""An evaluation read into tables; nothing here draws, and nothing here is heavy to import.

evaluation_table(run.evaluation)         metrics down, models across
category_tables(run.evaluation)          one table a model: categories down, metrics across
paired_table(run.evaluation)             metrics down, comparisons of two models across
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from utils.series import finite


@dataclass(frozen=True)
class Cell:
    value: float
    n: int | None
    low: float | None
    high: float | None

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Table:
    columns: list[str]
    rows: list[tuple[str, list[Cell | None]]]


def evaluation_table(evaluation: dict[str, Any]) -> Table:
    """Metrics down, models across."""
    models = evaluation["models"]
    return _table({name: model.get("metrics", {}) for name, model in models.items()})


def category_tables(evaluation: dict[str, Any]) -> list[tuple[str, Table]]:
    """One table a model: categories down, metrics across."""
    tables = []
    for name, model in evaluation["models"].items():
        categories = {
            category: metrics.get("metrics", metrics) for category, metrics in (model.get("by_category") or {}).items()
        }
        across = list(dict.fromkeys(metric for metrics in categories.values() for metric in metrics))
        rows = [(category, [cell(metrics.get(key)) for key in across]) for category, metrics in categories.items()]
        if rows:
            tables.append((name, Table(across, rows)))
    return tables


def paired_table(evaluation: dict[str, Any]) -> Table:
    """Metrics down, comparisons across: mean difference on the same prompts."""
    return _table(evaluation.get("paired") or {})


def failure_table(evaluation: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """Reasons for which the strict grammar refused a completion: models, and counts by reason."""
    failures = {name: model.get("failures") for name, model in evaluation["models"].items()}
    counts = {name: reasons if isinstance(reasons, dict) else {} for name, reasons in failures.items()}
    reasons = sorted({reason for of_model in counts.values() for reason in of_model})
    return list(counts), [
        (reason, [int(of_model.get(reason, 0)) for of_model in counts.values()]) for reason in reasons
    ]


def _table(columns: dict[str, dict[str, Any]]) -> Table:
    metrics = list(dict.fromkeys(metric for column in columns.values() for metric in column))
    return Table(
        list(columns), [(metric, [cell(column.get(metric)) for column in columns.values()]) for metric in metrics]
    )


def cell(raw: object) -> Cell | None:
    """An estimate as a cell; None where nothing was measured."""
    if not isinstance(raw, dict) or (value := finite(raw.get("value"))) is None:
        return None
    n = raw.get("n")
    return Cell(value, n if isinstance(n, int) else None, finite(raw.get("low")), finite(raw.get("high")))
