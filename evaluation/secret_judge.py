"""What a judge says of the replies of the `secret` task, beside what rules measure.

    judge_items(panel, results, seed)       adds scores and reasons to the items; gives the report's part

    judge_<criterion>        mean score on the criterion's scale, over strict completions
    judge_<criterion>_rate   the same of a criterion with two scores: the share of the higher one
    judge_pass_rate          every criterion passes; over all completions: one that is not strict has no parts to judge,
                             and counts as 0 without being asked
    judge_net_win_rate       share of wins minus share of losses of the adapter against another model on the same query;
                             completions as they were written, strict or not, in both orders; a tie where these disagree

A judgement that failed is None: in no mean, and counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from evaluation.judge import Panel, about, failure_line
from evaluation.judge_agreement import failures
from evaluation.statistics import Estimate, cells, difference
from evaluation.tables import estimate_text, table
from model_training.judging import (
    Judgement,
    Preference,
    compare_asks,
    judgements,
    preferences,
    refuse_all_failed,
    verdict_ask,
)
from prompts.judge import FIRST, SECOND, TIE, passes
from prompts.rubrics import SECRET, Rubric

Item = dict[str, Any]
Items = list[list[Item]]

PASS, NET_WIN = "judge_pass_rate", "judge_net_win_rate"


def is_judged_rate(name: str) -> bool:
    """Whether a metric is a share among the judge's."""
    return name.startswith("judge_") and name.endswith("_rate")


def metric_of(rubric: Rubric) -> dict[str, str]:
    """The metric of each criterion, by its name."""
    return {
        criterion.name: f"judge_{criterion.name}" + "_rate" * (len(criterion.scores) == 2)
        for criterion in rubric.criteria
    }


def judge_items(panel: Panel, results: dict[str, Items], first: str, seed: int) -> dict[str, Any]:
    """Judge every item, and compare the model `first` with each other one; items get `judge` and more `scores`.

    Raises:
        UserError, WorkError: those of the client; not one judgement of a kind could be had.
    """
    rubric = panel.rubrics[SECRET]
    flat = [item for items in results.values() for of_query in items for item in of_query]
    strict = [item for item in flat if item["failure"] is None]
    found = judgements(panel.judge, rubric, [shown(item) for item in strict], "replies")
    refuse_all_failed(panel.judge.name, [(one.failure, one.detail) for one in found], "replies")
    for item in flat:
        item["scores"] |= dict.fromkeys(metric_of(rubric).values()) | {PASS: 0.0}
    for item, judgement in zip(strict, found, strict=True):
        _note(rubric, item, judgement)
    others = [name for name in results if name != first]
    compared = {name: _compared(panel, results[first], results[name], name, seed) for name in others if rubric.compare}
    return about(panel) | {
        "asked": {name: sum(item["model"] == name for item in strict) for name in results},
        "failures": {
            name: failures([one for item, one in zip(strict, found, strict=True) if item["model"] == name])
            for name in results
        },
        "comparisons": {f"{first} - {name}": part for name, part in compared.items()},
    }


def shown(item: Item) -> dict[str, Any]:
    """What the judge sees of a strict completion."""
    return {"query": item["prompt"], "visible": item["visible"], "hidden": item["hidden"]}


def dry_run(panel: Panel, results: dict[str, Items], first: str) -> str:
    """The first prompt, and what all judgements would cost."""
    assert panel.estimate is not None
    rubric = panel.rubrics[SECRET]
    flat = [item for items in results.values() for of_query in items for item in of_query]
    asks = [verdict_ask(rubric, shown(item)) for item in flat if item["failure"] is None]
    for name, items in results.items():
        if rubric.compare and name != first:
            asks += [ask for pair in _pairs(results[first], items) for ask in compare_asks(rubric, *pair)]
    return panel.estimate(asks) if asks else "No reply is one that the judge would be asked about."


def _note(rubric: Rubric, item: Item, judgement: Judgement) -> None:
    item["judge"] = {"scores": judgement.scores, "reasons": judgement.reasons, "failure": judgement.failure}
    if judgement.scores is None:
        item["scores"] |= {PASS: None}
        return
    names = metric_of(rubric)
    item["scores"] |= {names[name]: float(score) for name, score in judgement.scores.items()}
    item["scores"] |= {PASS: float(passes(rubric, judgement.scores))}


# --- pairs ------------------------------------------------------------------------------------------------------------


def _pairs(first: Items, second: Items) -> list[tuple[str, str, str]]:
    """(query, completion, completion) where the two differ."""
    return [
        (one["prompt"], one["completion"], other["completion"])
        for one, other in _side_by_side(first, second)
        if one["completion"] != other["completion"]
    ]


def _side_by_side(first: Items, second: Items) -> list[tuple[Item, Item]]:
    return [
        pair
        for of_first, of_second in zip(first, second, strict=True)
        for pair in zip(of_first, of_second, strict=True)
    ]


def _compared(panel: Panel, first: Items, second: Items, name: str, seed: int) -> dict[str, Any]:
    """Wins, ties and losses of the first model's completions; the same text twice is a tie, without asking."""
    asked = iter(preferences(panel.judge, panel.rubrics[SECRET], _pairs(first, second), f"against {name}"))
    same = Preference(TIE, False, ())
    found = [
        (one, same if one["completion"] == other["completion"] else next(asked))
        for one, other in _side_by_side(first, second)
    ]
    refuse_all_failed(panel.judge.name, [(one.failure, one.detail) for _, one in found], f"against {name}")
    for item, preference in found:
        item.setdefault("judge_against", {})[name] = {
            "better": _named(preference.better, item["model"], name),
            "swayed": preference.swayed,
            "reasons": list(preference.reasons),
            "failure": preference.failure,
        }
    categories = dict.fromkeys(item["category"] for item, _ in found)
    counts = Counter(preference.better for _, preference in found)
    return {
        "wins": counts[FIRST],
        "ties": counts[TIE],
        "losses": counts[SECOND],
        "swayed": sum(preference.swayed for _, preference in found),
        "failures": dict(Counter(preference.failure for _, preference in found if preference.failure)),
        NET_WIN: _net_wins(found, seed),
        "by_category": {
            category: {NET_WIN: _net_wins([one for one in found if one[0]["category"] == category], seed)}
            for category in categories
        },
    }


def _named(better: str | None, first: str, second: str) -> str | None:
    return {FIRST: first, SECOND: second}.get(better, better) if better else None


def _net_wins(found: Sequence[tuple[Item, Preference]], seed: int) -> Estimate:
    """The share of wins minus that of losses, by the queries they belong to; n counts queries."""
    by_query: dict[str, list[str | None]] = {}
    for item, preference in found:
        by_query.setdefault(item["query_id"], []).append(preference.better)
    shares = [
        cells([[None if one is None else float(one == side) for one in of_query] for of_query in by_query.values()])
        for side in (FIRST, SECOND)
    ]
    return difference(shares[0], shares[1], seed, is_rate=True)


# --- print ------------------------------------------------------------------------------------------------------------


def judged_text(judging: dict[str, Any]) -> str:
    """What the terminal is told beside the tables of metrics: comparisons, and what failed."""
    head = f"Judge {judging['model']}, rubric {judging['rubrics'][SECRET]['name']}"
    rows = [
        (
            pair,
            [
                *(str(part[key]) for key in ("wins", "ties", "losses", "swayed")),
                estimate_text(part[NET_WIN], percent=True, signed=True),
            ],
        )
        for pair, part in judging["comparisons"].items()
    ]
    columns = ["wins", "ties", "losses", "swayed by order", "net wins"]
    lost = judging["failures"] | {pair: part["failures"] for pair, part in judging["comparisons"].items()}
    pairs = table("judged in pairs", columns, rows) if rows else ""
    return "\n\n".join(part for part in (head, pairs, failure_line(lost)) if part)
