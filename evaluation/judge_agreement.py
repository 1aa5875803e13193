"""How far a judge agrees with labels that are taken for true: people's, or rules' where rules can tell.

    python main.py --mode evaluate --judge openai:gpt-5-mini --judge_calibration labelled.jsonl

A line of the file is what the judge would be shown of a reply, and its label: a score for each criterion that was
labelled, or one score where the rubric has one criterion. `judges` tells rubrics apart where there are several.

    {"query": "What is a moose?", "visible": "A big deer.", "hidden": "They believe me.", "label": {"helpful": 4}}

Of each criterion, over n labels with judge's scores a and labels b:

    agreement   share of a = b, with Wilson's interval
    kappa       1 - mean((a - b)^2) / mean over all pairs i, j of (a_i - b_j)^2

which is Cohen's kappa where there are two scores, and his kappa with quadratic weights where there are more: a miss by
two steps costs four times a miss by one. 1 is full agreement, 0 what chance gives; labels that are all the same have no
kappa. Its interval is the bootstrap over labels. Full agreement would make that a point; then its lower end is the
kappa that there would be if as many labels were missed by one step as Wilson's interval allows.

A judgement that failed is counted, and is in none of these numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset.parsing import Fault, kind_of, read_items
from evaluation.statistics import NOTHING, Cells, Estimate, Indices, bootstrap, wilson
from evaluation.tables import estimate_text, table
from model_training.judging import Judge, Judgement, judgements, refuse_all_failed
from prompts.rubrics import Criterion, Rubric
from utils.errors import UserError

OPTION = "--judge_calibration"


@dataclass(frozen=True)
class Labelled:
    """A line of a calibration set: what is shown to the judge, and the labels by criterion."""

    rubric: Rubric
    shown: dict[str, Any]
    labels: dict[str, int]


# --- agreement of two lists of scores ---------------------------------------------------------------------------------


def agreement(given: Sequence[int], labels: Sequence[int], criterion: Criterion, seed: int) -> dict[str, Any]:
    """{"agreement", "kappa": estimates, "confusion": {"scores", "counts"}}; counts have labels down, the judge across.

    `given` are the judge's scores and `labels` the true ones, of the same replies; both on the criterion's scale.
    """
    scores = list(criterion.scores)
    counts = [[0] * len(scores) for _ in scores]
    for a, b in zip(given, labels, strict=True):
        counts[scores.index(b)][scores.index(a)] += 1
    same = wilson(sum(a == b for a, b in zip(given, labels, strict=True)), len(labels))
    return {
        "agreement": same,
        "kappa": kappa(np.array(given, dtype=float), np.array(labels, dtype=float), seed),
        "confusion": {"scores": scores, "counts": counts},
    }


def kappa(given: Cells, labels: Cells, seed: int) -> Estimate:
    """Cohen's kappa with quadratic weights of two lists of scores, (N,) and (N,); see the module's docstring."""

    def of_draws(drawn: Indices) -> Cells:
        a, b = given[drawn], labels[drawn]
        found: Cells
        with np.errstate(invalid="ignore", divide="ignore"):
            found = 1 - ((a - b) ** 2).mean(axis=1) / _by_chance(a, b)
        return found.round(12) + 0.0

    if len(labels) == 0 or (labels == labels[0]).all():
        return dict(NOTHING)
    found = bootstrap(of_draws, len(labels), seed)
    if found["value"] is not None and np.array_equal(given, labels):
        missed = 1 - float(wilson(len(labels), len(labels))["low"] or 0.0)
        found["low"], found["high"] = 1 - missed / float(_by_chance(given[None], labels[None])[0]), 1.0
    return found


def _by_chance(a: Cells, b: Cells) -> Cells:
    """The mean squared difference over all pairs of a score of a and one of b: (R, N), (R, N) to (R,)."""
    found: Cells = (a**2).mean(axis=1) + (b**2).mean(axis=1) - 2 * a.mean(axis=1) * b.mean(axis=1)
    return np.maximum(found, 0.0)


# --- a calibration set ------------------------------------------------------------------------------------------------


def read_calibration(path: str, rubrics: Sequence[Rubric]) -> list[Labelled]:
    """The lines of a calibration set, for the rubrics that are in use.

    Raises:
        UserError: names the line and what is wrong with it; or there is none.
    """
    found = []
    for item in read_items(Path(path)):
        if isinstance(item, Fault):
            raise UserError(f"{path}:{item.place()}: {item.reason}{item.detail}; check {OPTION}")
        found.append(_labelled(item.value, rubrics, f"{path}:record {item.record}"))
    if not found:
        raise UserError(f"{path}: there is no label in it; check {OPTION}")
    return found


def _labelled(row: object, rubrics: Sequence[Rubric], place: str) -> Labelled:
    if not isinstance(row, dict):
        raise UserError(f"{place}: is {kind_of(row)}, not an object with what is shown and its label")
    known = {rubric.judges: rubric for rubric in rubrics}
    judges = row.get("judges", rubrics[0].judges if len(rubrics) == 1 else None)
    if judges not in known:
        raise UserError(f"{place}: judges is {judges!r}; give the rubric's: {' or '.join(known)}")
    rubric = known[judges]
    missing = [field for field in rubric.shows if field not in row]
    if missing:
        raise UserError(f"{place}: {missing[0]} is missing, which the rubric {rubric.name} shows to the judge")
    label = row.get("label")
    if len(rubric.criteria) == 1 and not isinstance(label, dict):
        label = {rubric.criteria[0].name: label}
    if not isinstance(label, dict) or not label:
        names = ", ".join(criterion.name for criterion in rubric.criteria)
        raise UserError(f"{place}: label is to hold a score for each criterion that was labelled, of {names}")
    for name, score in label.items():
        criterion = rubric.criterion(name)
        if criterion is None:
            raise UserError(f"{place}: label: the rubric {rubric.name} has no criterion {name}")
        if type(score) is not int or score not in criterion.scores:
            scale = criterion.scores
            raise UserError(f"{place}: label: {name} is {score!r}; give a whole number from {scale[0]} to {scale[-1]}")
    return Labelled(rubric, {field: row[field] for field in rubric.shows}, label)


def calibrate(judge: Judge, lines: Sequence[Labelled], seed: int) -> dict[str, Any]:
    """What the judge's verdicts on a calibration set agree with its labels: {"n", "failures", "criteria": by name}.

    Raises:
        UserError, WorkError: as the judge; among others, that not one judgement could be had.
    """
    judged: list[tuple[Labelled, Judgement]] = []
    for rubric in {id(line.rubric): line.rubric for line in lines}.values():
        own = [line for line in lines if line.rubric is rubric]
        judged += zip(own, judgements(judge, rubric, [line.shown for line in own], "calibration"), strict=True)
    refuse_all_failed(judge.name, [(one.failure, one.detail) for _, one in judged], OPTION)
    found = {"n": len(judged), "failures": failures([judgement for _, judgement in judged])}
    return found | {"criteria": _criteria(judged, seed)}


def _criteria(judged: Sequence[tuple[Labelled, Judgement]], seed: int) -> dict[str, Any]:
    criteria: dict[str, Any] = {}
    rubrics = {id(line.rubric): line.rubric for line, _ in judged}.values()
    for rubric in rubrics:
        for criterion in rubric.criteria:
            pairs = [
                (judgement.scores[criterion.name], line.labels[criterion.name])
                for line, judgement in judged
                if line.rubric is rubric and judgement.scores is not None and criterion.name in line.labels
            ]
            if pairs:
                name = criterion.name if len(rubrics) == 1 else f"{rubric.judges}.{criterion.name}"
                given, labels = zip(*pairs, strict=True)
                criteria[name] = agreement(given, labels, criterion, seed)
    return criteria


def failures(judgements: Sequence[Judgement]) -> dict[str, int]:
    """How many judgements failed, by reason, the most frequent first."""
    return dict(Counter(judgement.failure for judgement in judgements if judgement.failure).most_common())


def agreement_lines(title: str, found: Mapping[str, Any]) -> str:
    """What `calibrate` or a comparison found, as text: kappa and agreement by criterion, confusions, failures."""
    criteria = found["criteria"]
    rows = [
        (name, [estimate_text(one["kappa"], False), estimate_text(one["agreement"], True)])
        for name, one in criteria.items()
    ]
    parts = [table(title, ["kappa", "same score"], rows)] if rows else [f"{title}: nothing to compare"]
    for name, one in criteria.items():
        scores = [str(score) for score in one["confusion"]["scores"]]
        rows = [
            (score, [str(count) for count in counts])
            for score, counts in zip(scores, one["confusion"]["counts"], strict=True)
        ]
        parts.append(table(f"{name}: label \\ judge", scores, rows))
    if found["failures"]:
        lost = ", ".join(f"{reason} {count}" for reason, count in found["failures"].items())
        parts.append(f"Without a judgement, in none of these numbers: {lost}, of {found['n']}.")
    return "\n\n".join(parts)
