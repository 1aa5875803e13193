"""What a run's numbers say where its task has no words of its own: a sentence each, none of what was not measured.

verdict(run)    ["Held-out, adapter against base: strict format rate 98.8 % (97.4 to 100.0 %, base 1.2 %).", ...]
"""

from __future__ import annotations

from utils.formatting import interval, metric_label, metric_value, number
from utils.panels import ends, is_rate
from utils.series import Run
from utils.tables import Cell, evaluation_table, paired_table

CHIEF = ("strict_format_rate", "leak_rate", "relevance_rate", "mean_reward")
MOST_METRICS = 4


def verdict(run: Run) -> list[str]:
    found = [measured(run), compared(run), rewarded(run), alarmed(run)]
    return [sentence for sentence in found if sentence]


def measured(run: Run) -> str:
    """The trained model's chief numbers with their intervals, beside the base model's."""
    table = evaluation_table(run.evaluation) if run.evaluation else None
    if table is None or not table.columns:
        return ""
    name = "adapter" if "adapter" in table.columns else table.columns[-1]
    rows = {metric: dict(zip(table.columns, cells, strict=True)) for metric, cells in table.rows}
    chosen = [metric for metric in CHIEF if metric in rows] or [metric for metric in rows if is_rate(metric)]
    parts = [
        told(metric, cell, rows[metric].get("base") if name != "base" else None)
        for metric in chosen[:MOST_METRICS]
        if (cell := rows[metric][name]) is not None
    ]
    return f"Held-out, {name} against base: {'; '.join(parts)}." if parts else ""


def told(metric: str, cell: Cell, base: Cell | None) -> str:
    against = f", base {metric_value(metric, base.value)}" if base else ""
    return f"{metric_label(metric).lower()} {metric_value(metric, cell.value)} ({interval(metric, cell)}{against})"


def compared(run: Run) -> str:
    """Whether the gain in reward is told apart from nothing, paired by prompt."""
    table = paired_table(run.evaluation) if run.evaluation else None
    if table is None:
        return ""
    parts = []
    for metric, cells in table.rows:
        if metric != "mean_reward":
            continue
        for comparison, cell in zip(table.columns, cells, strict=True):
            if cell is None or cell.low is None or cell.high is None:
                continue
            told_apart = "a gain" if cell.low > 0 else "a loss" if cell.high < 0 else "not told apart from 0"
            value = metric_value(metric, cell.value, difference=True)
            parts.append(f"{comparison} {value} ({interval(metric, cell, difference=True)}: {told_apart})")
    return f"Mean reward, paired by prompt: {'; '.join(parts)}." if parts else ""


def rewarded(run: Run) -> str:
    """Training, told only where no evaluation speaks for it."""
    span = ends(run.series["reward"]) if "reward" in run.series and not run.evaluation else None
    return (
        f"Total reward while training: {number(span[0])} at first, {number(span[1])} over the last tenth."
        if span
        else ""
    )


def alarmed(run: Run) -> str:
    count = len(run.alarms)
    if not count:
        return ""
    first = run.alarms[0]
    return f"{count:,} alarm{'s' if count > 1 else ''}; the first at step {first.step:,}: {first.text}."
