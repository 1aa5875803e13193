"""What the evaluation of reward models prints: the report of preference.py as plain text tables.

Texts of the widest pairs are shown on one line, cut, with everything that a terminal would obey spelled out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from evaluation.score import shown
from evaluation.statistics import Estimate
from evaluation.tables import estimate_text, table
from prompts.preference import ASSISTANT_TURN
from utils.panels import is_rate

Record = dict[str, Any]

WIDEST_PRINTED = 3
BY_CATEGORY = ("accuracy", "accuracy_risk", "r2", "mean_spread")
JAILBREAK = ("jailbreak_rate", "jailbreak_rate_risk", "jailbreak_ties", "jailbreak_ties_risk")


def printed(report: dict[str, Any]) -> str:
    """All tables: metrics by model, by category, paired differences, calibration, jailbreaks, risk curve, widest."""
    models = {shown(name): model for name, model in report["models"].items()}
    paired = {shown(name): metrics for name, metrics in report["paired"].items()}
    on_pairs = {name: model for name, model in models.items() if "accuracy" in model["metrics"]}
    jailbroken = {name: model for name, model in models.items() if "jailbreak_rate" in model["metrics"]}
    alpha = report["config"]["alpha"]
    parts = [
        f"95 % intervals; risk: by the {alpha:g}-quantile of the reward. Ties count as correct, and as jailbreaks."
    ]
    if on_pairs:
        parts += [_metrics(on_pairs), *_by_category(on_pairs), *_reliability(on_pairs)]
    if jailbroken:
        parts.append(_jailbreaks(jailbroken, alpha))
    parts += _paired(paired, list(models))
    parts += _risk_curve(models)
    parts += [text for name, model in on_pairs.items() if (text := _widest(name, model["widest"]))]
    return "\n\n".join(parts)


def _metrics(models: dict[str, Any]) -> str:
    names = dict.fromkeys(name for model in models.values() for name in model["metrics"] if name not in JAILBREAK)
    rows = [("kind", [model["kind"] for model in models.values()])]
    rows += [(name, [_cell(name, model["metrics"].get(name)) for model in models.values()]) for name in names]
    return table("pairs", list(models), rows)


def _cell(name: str, estimate: Estimate | None, signed: bool = False) -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    if name.startswith(("ties", "jailbreak_ties")):
        return f"{estimate['value']} of {estimate['n']}"
    return estimate_text(estimate, is_rate(name), signed or name.endswith("_cost"))


def _by_category(models: dict[str, Any]) -> list[str]:
    """One table a metric, the categories down."""
    categories = list(dict.fromkeys(name for model in models.values() for name in model["by_category"]))
    tables = []
    for metric in BY_CATEGORY:
        rows = [
            (category, [_cell(metric, model["by_category"].get(category, {}).get(metric)) for model in models.values()])
            for category in categories
        ]
        if any(cell != "-" for _, cells in rows for cell in cells):
            tables.append(table(metric, list(models), rows))
    return tables


def _reliability(models: dict[str, Any]) -> list[str]:
    """How often the answer expected to win was the chosen one, by how sure the model was."""
    bounds = sorted({(row["low"], row["high"]) for model in models.values() for row in model["reliability"]})
    rows = []
    for low, high in bounds:
        found = [next((r for r in model["reliability"] if r["low"] == low), None) for model in models.values()]
        cells = [
            "-" if r is None else f"{100 * r['predicted']:.1f} -> {100 * r['observed']:.1f} % n={r['n']}" for r in found
        ]
        rows.append((f"{100 * low:.0f} to {100 * high:.0f} %", cells))
    return [table("sure -> right", list(models), rows)]


def _jailbreaks(models: dict[str, Any], alpha: float) -> str:
    """One row a model: the share of prompts whose unsafe response is at least as good as the safe one."""
    rows = []
    for name, model in models.items():
        rate, risk, ties, ties_risk = (model["metrics"][metric] for metric in JAILBREAK)
        rows.append((name, [model["kind"], _share(rate), _share(risk), f"{ties['value']}, {ties_risk['value']}"]))
    prompts = next(iter(models.values()))["metrics"]["jailbreak_rate"]["n"]
    return table(f"jailbreaks of {prompts}", ["kind", "by mean", f"by {alpha:g}-quantile", "ties"], rows)


def _share(estimate: Estimate) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _paired(paired: dict[str, Any], models: Sequence[str]) -> list[str]:
    """One row a model: its metrics minus those of the first."""
    names = list(dict.fromkeys(name for metrics in paired.values() for name in metrics))
    rows = [(pair, [_cell(name, metrics.get(name), signed=True) for name in names]) for pair, metrics in paired.items()]
    parts = [
        table(f"minus {models[0]}", names, [(pair.removesuffix(f" - {models[0]}"), cells) for pair, cells in rows])
    ]
    apart = [name for name in models[1:] if f"{name} - {models[0]}" not in paired]
    if apart:
        parts.append(f"Measured on other rows than {models[0]}, so without a paired difference: {', '.join(apart)}")
    return parts[not rows :]


def _risk_curve(models: dict[str, Any]) -> list[str]:
    """One table a measure, the alphas across; a model without spread has the same reward at every quantile."""
    curves = {name: model["risk_curve"] for name, model in models.items() if model["kind"] != "base"}
    measures = dict.fromkeys(name for curve in curves.values() for row in curve for name in row if name != "alpha")
    tables = []
    for measure in measures:
        title = measure if is_rate(measure) else f"accuracy, {measure}"
        heads = [f"{row['alpha']:g}" for row in next(iter(curves.values()))]
        rows = [(name, [_point(row.get(measure)) for row in curve]) for name, curve in curves.items()]
        tables.append(table(f"{title} by alpha", heads, rows))
    return tables


def _point(estimate: Estimate | None) -> str:
    return "-" if estimate is None or estimate["value"] is None else f"{100 * estimate['value']:.1f} %"


def _widest(name: str, rows: Sequence[Record]) -> str:
    """The first few of the pairs with the widest spread."""
    lines = [f"Widest spread, {name} ({len(rows)} of them in preference.json):"] if rows else []
    for row in rows[:WIDEST_PRINTED]:
        prompt, chosen, rejected = last_exchange(row)
        where = ", ".join(str(row[key]) for key in ("id", "data_subset", "kind") if row.get(key) is not None)
        lines.append(f"  pair {row['index'] + 1}{f' ({shown(where)})' if where else ''}")
        lines += [f"    asked     {shown(prompt)}"] if prompt else []
        for side, text in (("chosen", chosen), ("rejected", rejected)):
            scores = f"mean {row[f'mean_{side}']:.3f}, spread {row[f'spread_{side}']:.3f}"
            lines.append(f"    {side:<8}  {scores}{': ' + shown(text) if text else ''}")
    return "\n".join(lines)


def last_exchange(record: Record) -> tuple[str, str, str]:
    """The last thing asked, and both answers to it, of a pair in any form; empty texts where the record has none."""
    chosen, rejected = record.get("chosen"), record.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        common = os.path.commonprefix([chosen, rejected])
        begin = common.rfind(ASSISTANT_TURN)
        start = begin + len(ASSISTANT_TURN) if begin >= 0 else 0
        asked = common[: max(begin, 0)].rpartition("\n\nHuman:")[2].removeprefix("Human:")
        return asked.strip(), chosen[start:].strip(), rejected[start:].strip()
    if isinstance(chosen, list) and isinstance(rejected, list):
        before = [*(record.get("prompt") or []), *chosen[:-1]]
        return before[-1]["content"] if before else "", chosen[-1]["content"], rejected[-1]["content"]
    return "", "", ""
