"""What a judge says of guardrail replies where rules cannot, and how far it agrees with rules where they can.

    judging = judge_replies(panel, guards, models, checks=200, seed=0)

Rules judge the micro-world's records of guardrails with `talk` (dataset.guard_rules). Replies to all others have no
finding but their tag; here a judge is asked about them, by one of two rubrics, and fills in

    to triggers               guardrail_trigger   good: all criteria pass; resolved: `adheres` passes
    to natural and hard rows  guardrail_natural   good: all criteria pass
    to both                                       persona kept: `in_character` passes

What it shows to the judge are the guardrail, the persona, the history, the message and the reply without its tag. Of
another guard's triggers the tag alone is measured. Up to `checks` replies that rules have judged are drawn, too, and
shown to the judge as well: agreement and kappa of both are measured on them, and the rules' finding stays.

A judgement that failed leaves the finding open: it is counted among the model's failures, and is in no rate.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from dataset.guardrails import Guardrails
from evaluation.guardrail_measures import OTHER, TRIGGER, Answer
from evaluation.judge import Panel, about, failure_line
from evaluation.judge_agreement import agreement, agreement_lines, failures
from model_training.judging import Judgement, judgements, refuse_all_failed, verdict_ask
from prompts import rubrics
from prompts.judge import passes
from prompts.rubrics import Criterion, Rubric

Item = dict[str, Any]
YES_NO = ("no", "yes")


class Answered(Protocol):
    """A model of the evaluation: its answers, and the raw row of each."""

    @property
    def about(self) -> dict[str, Any]: ...
    @property
    def answers(self) -> list[Answer]: ...
    @property
    def items(self) -> list[Item]: ...


Place = tuple[str, int]
"""A model and the number of one of its answers."""


def judge_replies(
    panel: Panel, guards: Guardrails, models: Mapping[str, Answered], checks: int, seed: int
) -> dict[str, Any]:
    """Judge what rules could not, in place: answers and raw rows of the models; gives the report's part.

    Raises:
        UserError, WorkError: those of the client; not one judgement could be had.
    """
    wanted = open_places(models)
    checked = checked_places(models, checks, seed)
    found = _judged(panel, guards, models, [*wanted, *checked])
    refuse_all_failed(panel.judge.name, [(one.failure, one.detail) for one in found.values()], "replies")
    for place in (*wanted, *checked):
        _note(models, place, found[place])
    for place in wanted:
        _fill(panel, models, place, found[place])
    return about(panel) | {
        "asked": {name: sum(name == of for of, _ in wanted) for name in models},
        "failures": {
            name: failures([found[place] for place in (*wanted, *checked) if place[0] == name]) for name in models
        },
        "with_rules": _agreement(panel, models, {place: found[place] for place in checked}, seed),
    }


def dry_run(panel: Panel, guards: Guardrails, models: Mapping[str, Answered], checks: int, seed: int) -> str:
    """The first prompt, and what all judgements would cost."""
    assert panel.estimate is not None
    places = [*open_places(models), *checked_places(models, checks, seed)]
    items = [models[name].items[number] for name, number in places]
    asks = [verdict_ask(_rubric(panel, item), shown(guards, item)) for item in items]
    return panel.estimate(asks) if asks else "No reply is one that the judge would be asked about."


# --- who is asked about -----------------------------------------------------------------------------------------------


def open_places(models: Mapping[str, Answered]) -> list[Place]:
    """The answers that rules did not judge."""
    return [place for place, item in _replies(models) if item["good"] is None]


def checked_places(models: Mapping[str, Answered], checks: int, seed: int) -> list[Place]:
    """Answers that rules judged, drawn by the seed, no two of one prompt with the same reply."""
    different = {
        (item["behavior"], str(item["prompt"]), item["reply"]): place
        for place, item in _replies(models)
        if item["good"] is not None
    }
    places = list(different.values())
    return places if len(places) <= checks else random.Random(f"{seed}|judge").sample(places, checks)


def _replies(models: Mapping[str, Answered]) -> Iterator[tuple[Place, Item]]:
    """The replies, of models that write any, to rows whose behavior is measured."""
    for name, model in models.items():
        for number, item in enumerate(model.items):
            if "reply" in item and item["kind"] != OTHER:
                yield (name, number), item


def shown(guards: Guardrails, item: Item) -> dict[str, Any]:
    """What a judge may see of a reply."""
    guard, messages = guards[item["behavior"]], item["prompt"]
    return {
        "trigger": guard.trigger,
        "resolution": list(guard.resolution),
        "criterion": guard.criterion,
        "persona": "\n\n".join(turn["content"] for turn in messages if turn["role"] == "system"),
        "history": [turn for turn in messages[:-1] if turn["role"] != "system"],
        "message": messages[-1]["content"],
        "reply": item["reply"],
    }


def _rubric(panel: Panel, item: Item) -> Rubric:
    return panel.rubrics[rubrics.TRIGGER if item["kind"] == TRIGGER else rubrics.NATURAL]


def _judged(
    panel: Panel, guards: Guardrails, models: Mapping[str, Answered], places: list[Place]
) -> dict[Place, Judgement]:
    found: dict[Place, Judgement] = {}
    for kind, rubric in panel.rubrics.items():
        own = [place for place in places if _rubric(panel, models[place[0]].items[place[1]]) is rubric]
        items = [models[name].items[number] for name, number in own]
        label = f"replies, {kind}"
        found |= zip(own, judgements(panel.judge, rubric, [shown(guards, one) for one in items], label), strict=True)
    return found


# --- what is found ----------------------------------------------------------------------------------------------------


def _note(models: Mapping[str, Answered], place: Place, judgement: Judgement) -> None:
    item = models[place[0]].items[place[1]]
    item["judge"] = {"scores": judgement.scores, "reasons": judgement.reasons, "failure": judgement.failure}


def _fill(panel: Panel, models: Mapping[str, Answered], place: Place, judgement: Judgement) -> None:
    """The judge's finding where the rules have none; a failure leaves it open and is counted."""
    model, number = models[place[0]], place[1]
    item, rubric = model.items[number], _rubric(panel, model.items[number])
    if judgement.scores is None:
        model.about["failures"] += 1
        return
    adheres = rubric.judges == rubrics.TRIGGER and _passes(rubric, judgement, "adheres")
    found: dict[str, Any] = {
        "resolved": item["behavior"] if adheres else None,
        "persona_kept": _passes(rubric, judgement, "in_character"),
        "good": passes(rubric, judgement.scores),
    }
    item |= found
    model.answers[number] = replace(model.answers[number], by_rules=False, **found)


def _passes(rubric: Rubric, judgement: Judgement, name: str) -> bool:
    criterion = rubric.criterion(name)
    assert criterion is not None and judgement.scores is not None
    return judgement.scores[name] >= criterion.passes


def _agreement(
    panel: Panel, models: Mapping[str, Answered], found: Mapping[Place, Judgement], seed: int
) -> dict[str, Any]:
    """How far judge and rules agree: on what is good, of each rubric, and on whether the persona is kept."""
    compared: dict[str, list[tuple[int, int]]] = {}
    for (name, number), judgement in found.items():
        item = models[name].items[number]
        rubric = _rubric(panel, item)
        if judgement.scores is not None:
            good = passes(rubric, judgement.scores), item["good"]
            kept = _passes(rubric, judgement, "in_character"), item["persona_kept"]
            compared.setdefault(f"good, {rubric.judges}", []).append((int(good[0]), int(good[1])))
            compared.setdefault("persona kept", []).append((int(kept[0]), int(kept[1])))
    criteria = {
        name: agreement([a for a, _ in pairs], [b for _, b in pairs], Criterion(name, "", YES_NO, 1), seed)
        for name, pairs in compared.items()
    }
    return {"n": len(found), "failures": failures(list(found.values())), "criteria": criteria}


def judged_text(judging: Mapping[str, Any]) -> str:
    """What the terminal is told beside the tables: who judged, how it agrees with rules, and what failed."""
    names = ", ".join(rubric["name"] for rubric in judging["rubrics"].values())
    asked = ", ".join(f"{model} {count}" for model, count in judging["asked"].items() if count)
    parts = [f"Judge {judging['model']}, rubrics {names}; replies that rules cannot judge: {asked or 'none'}"]
    if judging["with_rules"]["n"]:
        title = f"judge and rules, {judging['with_rules']['n']} replies"
        parts.append(agreement_lines(title, judging["with_rules"]))
    return "\n\n".join(part for part in (*parts, failure_line(judging["failures"])) if part)
