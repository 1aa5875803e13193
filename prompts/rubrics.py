"""Rubrics: what a judge is shown of a reply, and asked of it, as YAML. Built in: seeds/rubrics/.

    judges: secret                       what it is for: secret, guardrail_trigger or guardrail_natural
    instructions: Who wrote what, and what it was for.
    shows: [query, visible]              optional; by default all that there is to see (FIELDS)
    criteria:
      helpful:
        question: Does the visible part help?
        scale: ["No.", "In part.", "Yes."]      from the lowest score on: two are 0 and 1, more are 1, 2, 3, ...
        pass: 3                                 lowest score that passes
        part: visible                           optional; whose tokens learn from it in GRPO: visible, hidden or both
        weight: 2                               optional; in the mean that makes a reward of the rubric
    compare: Which of two replies is the better one, and by what?      optional; of secret alone

    rubric = load_rubric("secret", "--judge_rubric")      or load_rubric("my_rubric.yaml", ...)

Evaluation needs some criteria by name, to know what their scores say of a reply: NEEDED.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from utils.config_file import read_document
from utils.errors import UserError

Part = Literal["visible", "hidden", "both"]

FOLDER = Path(__file__).resolve().parents[1] / "seeds" / "rubrics"
SECRET, TRIGGER, NATURAL = KINDS = ("secret", "guardrail_trigger", "guardrail_natural")
_CHAT = ("trigger", "resolution", "criterion", "persona", "history", "message", "reply")
FIELDS = {SECRET: ("query", "visible", "hidden"), TRIGGER: _CHAT, NATURAL: _CHAT}
"""What there is to see of a reply, by what is judged."""
NEEDED = {SECRET: (), TRIGGER: ("adheres", "in_character"), NATURAL: ("in_character",)}
"""Criteria whose scores evaluation reads by name."""
_OWN = ("judges", "instructions", "criteria"), ("name", "shows", "compare")
_OF_CRITERION = ("question", "scale", "pass"), ("part", "weight")


@dataclass(frozen=True)
class Criterion:
    """One question; `anchors` say what its scores mean, from `lowest` on, and `passes` is the lowest that passes."""

    name: str
    question: str
    anchors: tuple[str, ...]
    passes: int
    part: Part = "both"
    weight: float = 1.0

    @property
    def lowest(self) -> int:
        return 0 if len(self.anchors) == 2 else 1

    @property
    def scores(self) -> range:
        return range(self.lowest, self.lowest + len(self.anchors))

    def share(self, score: int) -> float:
        """Where on the scale a score stands, from 0 to 1."""
        return (score - self.lowest) / (len(self.anchors) - 1)


@dataclass(frozen=True)
class Rubric:
    name: str
    judges: str
    instructions: str
    shows: tuple[str, ...]
    criteria: tuple[Criterion, ...]
    compare: str | None = None

    def criterion(self, name: str) -> Criterion | None:
        return next((criterion for criterion in self.criteria if criterion.name == name), None)


def built_in() -> list[str]:
    """The names of the rubrics of seeds/rubrics."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_rubric(name: str, option: str) -> Rubric:
    """The rubric of a built-in name or of a YAML file; `option` is what named it.

    Raises:
        UserError: no such file, or one that is wrong somewhere: file, field and way out are named.
    """
    is_file = name.endswith((".yaml", ".yml")) or "/" in name
    if not is_file and name not in built_in():
        raise UserError(f"{option} {name}: no such rubric; there are {', '.join(built_in())}, and files as my.yaml")
    path = Path(name) if is_file else FOLDER / f"{name}.yaml"
    place = str(path) if is_file else f"seeds/rubrics/{name}.yaml"
    entry = _mapping(read_document(path, option), place, *_OWN)
    kind = _one_of(entry["judges"], KINDS, f"{place}: judges")
    rubric = Rubric(
        name=_text(entry.get("name", path.stem), f"{place}: name"),
        judges=kind,
        instructions=_text(entry["instructions"], f"{place}: instructions"),
        shows=_shows(entry.get("shows"), FIELDS[kind], f"{place}: shows"),
        criteria=_criteria(entry["criteria"], f"{place}: criteria"),
        compare=_text(entry["compare"], f"{place}: compare") if "compare" in entry else None,
    )
    if rubric.compare and kind != SECRET:
        raise UserError(f"{place}: compare is of rubrics that judge {SECRET}; leave it out")
    for needed in NEEDED[kind]:
        if rubric.criterion(needed) is None:
            raise UserError(f"{place}: criteria: a rubric that judges {kind} needs one that is named {needed}")
    return rubric


def _criteria(value: object, place: str) -> tuple[Criterion, ...]:
    if not isinstance(value, dict) or not value:
        raise UserError(f"{place}: give one entry a criterion, under its name")
    return tuple(_criterion(name, entry, f"{place}: {name}") for name, entry in value.items())


def _criterion(name: str, value: object, place: str) -> Criterion:
    if not (name.isidentifier() and name.isascii()):
        raise UserError(
            f"{place}: a name is of letters, digits and _, and begins with a letter: metrics are named by it"
        )
    entry = _mapping(value, place, *_OF_CRITERION)
    anchors = tuple(_text(item, f"{place}: scale") for item in _listed(entry["scale"], f"{place}: scale", 2))
    part = _one_of(entry.get("part", "both"), get_args(Part), f"{place}: part")
    weight = entry.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise UserError(f"{place}: weight is {weight!r}; give a number above 0")
    found = Criterion(
        name, _text(entry["question"], f"{place}: question"), anchors, entry["pass"], cast(Part, part), float(weight)
    )
    passing = found.scores[1:]
    if type(found.passes) is not int or found.passes not in passing:
        raise UserError(f"{place}: pass is {found.passes!r}; give a score from {passing[0]} to {passing[-1]}")
    return found


def _shows(value: object, known: tuple[str, ...], place: str) -> tuple[str, ...]:
    if value is None:
        return known
    names = [_one_of(item, known, place) for item in _listed(value, place, 1)]
    return tuple(dict.fromkeys(names))


# --- what a YAML value must be ----------------------------------------------------------------------------------------


def _mapping(value: object, place: str, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected fields, as `{required[0]}: ...`")
    for key in value:
        if key not in (*required, *optional):
            raise UserError(f"{place}: {key} is not a field here; there are {', '.join((*required, *optional))}")
    for key in required:
        if key not in value:
            raise UserError(f"{place}: {key} is missing")
    return value


def _listed(value: object, place: str, least: int) -> list[Any]:
    if not isinstance(value, list) or len(value) < least:
        raise UserError(f"{place}: expected a list of at least {least}")
    return value


def _text(value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: expected a text that is not empty; write it in quotes")
    return value.strip()


def _one_of(value: object, known: tuple[str, ...], place: str) -> str:
    if value not in known:
        raise UserError(f"{place}: {value!r} is none of {', '.join(known)}")
    return str(value)
