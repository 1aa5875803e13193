"""What the evaluation of guardrail adapters prints: guardrail.json as plain text tables of at most WIDTH columns.

All guards together, then each: whether it guards (tag and behavior apart, the error of a merge and the cost of an
answer beside them), and whether it stays silent where it must. Then differences on the same prompts, and which guard
answered what. All in per cent with 95 % intervals; n stands in the head of a column, and in a cell that has another.
"""

from __future__ import annotations

from typing import Any

from evaluation.guardrail_judge import judged_text
from evaluation.statistics import Estimate
from evaluation.tables import table

WIDTH = 120
LONGEST_NAME = 48
"""Room for dare_ties@fixed_character@checkpoint-1000: cut, two names would be one."""
GUARDS = ("tag_recall", "resolution_rate", "behavior_recall")
SILENT = ("tag_fpr_natural", "tag_fpr_hard", "tag_fpr_other", "natural_accuracy")
DIFFERENCES = (*GUARDS, *SILENT)
CONFUSED = ("routed", "joint", "merge")

Report = dict[str, Any]
Models = dict[str, dict[str, Any]]


def printed(report: Report) -> str:
    """All tables."""
    models: Models = report["models"]
    asked = ", ".join(f"{name} {sum(kinds.values())}" for name, kinds in report["prompts"].items())
    runs = report["config"]["num_runs"]
    heading = f"Test prompts ({report['test_variation']}): {asked}" + (f"; {runs} answers each" if runs > 1 else "")
    parts = [f"{heading}. Per cent with 95 % intervals."]
    if report["base_check"]["largest_logit_difference"] is not None:
        parts.append(
            "Base with all adapters disabled against the base without any: largest difference of logits "
            f"{report['base_check']['largest_logit_difference']:g}."
        )
    if len(report["behaviors"]) > 1:
        parts += _measures("all guards", models, {name: model["metrics"] for name, model in models.items()})
    for behavior in report["behaviors"]:
        parts += _measures(behavior, models, {name: model["by_category"][behavior] for name, model in models.items()})
    parts += _differences(report["paired"])
    parts += _confusion(models)
    judged = judged_text(report["judging"]) if report.get("judging") else ""
    return "\n\n".join(part for part in (*parts, _failures(models), judged) if part)


def _measures(title: str, models: Models, metrics: dict[str, dict[str, Estimate]]) -> list[str]:
    """Two tables with the models down: what is guarded, and what is left alone."""
    guards = _columns(GUARDS, metrics)
    cost = {
        "relative error": [_plain(model["relative_error"], ".2f") for model in models.values()],
        "forwards": [_plain(model["prompt_forwards"], "d") for model in models.values()],
    }
    return [_table(title, list(models), guards | cost), _table(title, list(models), _columns(SILENT, metrics))]


def _columns(names: tuple[str, ...], metrics: dict[str, dict[str, Estimate]]) -> dict[str, list[str]]:
    """Cells by the head of their column, `tag_recall n=200`; without those that nothing was measured of."""
    columns = {}
    for name in names:
        estimates = [of_model.get(name) for of_model in metrics.values()]
        counts = [int(estimate["n"] or 0) for estimate in estimates if estimate and estimate["value"] is not None]
        if counts:
            columns[f"{name} n={counts[0]}"] = [_cell(estimate, counts[0]) for estimate in estimates]
    return columns


def _cell(estimate: Estimate | None, n: int | None = None, signed: bool = False) -> str:
    """`97.1 [94.1, 98.6]`, with its n where that is not the column's."""
    if estimate is None or estimate["value"] is None:
        return "-"

    def text(share: float | int | None) -> str:
        return "?" if share is None else f"{100 * share:{'+' if signed else ''}.1f}"

    other = "" if n in (None, estimate["n"]) else f" n={estimate['n']}"
    return f"{text(estimate['value'])} [{text(estimate['low'])}, {text(estimate['high'])}]{other}"


def _plain(number: float | int | None, form: str) -> str:
    return "-" if number is None else f"{number:{form}}"


def _table(title: str, labels: list[str], columns: dict[str, list[str]]) -> str:
    if not columns:
        return ""
    rows = [(label, [cells[i] for cells in columns.values()]) for i, label in enumerate(labels)]
    return table(title, list(columns), rows, WIDTH, LONGEST_NAME)


def _differences(paired: dict[str, dict[str, Estimate]]) -> list[str]:
    """Points of difference from the single adapters on the same prompts, all guards together."""
    labels = [pair.partition(" - ")[0] for pair in paired]
    tables = []
    for names in (GUARDS, SILENT):
        columns = {name: [_cell(metrics[name], signed=True) for metrics in paired.values()] for name in names}
        tables.append(_table("minus single, points", labels, columns) if paired else "")
    return tables


def _confusion(models: Models) -> list[str]:
    """Counts: what was asked down; whose tag, and whose resolution, the answers have across."""
    tables = []
    for name, model in models.items():
        if model["kind"] in CONFUSED:
            found = model["confusion"]
            rows, columns, nothing = (
                found["rows"],
                found["columns"],
                [["-"] * len(found["columns"])] * len(found["rows"]),
            )
            counts = [found[finding] or nothing for finding in ("tag", "resolution")]
            cells = {
                column: [f"{tags[place]} | {resolutions[place]:>3}" for tags, resolutions in zip(*counts, strict=True)]
                for place, column in enumerate(columns)
            }
            tables.append(_table(name, rows, cells))
    return ["Which guard answered: answers with its tag | with its resolution"] * bool(tables) + tables


def _failures(models: Models) -> str:
    failed = [f"{name} {model['failures']}" for name, model in models.items() if model["failures"]]
    return f"Prompts without a verdict, in none of the rates: {', '.join(failed)}." if failed else ""
