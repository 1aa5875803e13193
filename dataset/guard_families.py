"""The talk of a guardrail in the micro-world: families of wordings and answers, and how the character declines.

A *family* is one way to ask, with its wordings (`asks`) and the plain answers to them (`replies`). Each belongs to one
split of an adapter's data: `heldout: true` to the test, `validation: true` to the validation, else to the training.

    families: [{id: ending, asks: ["How does {book} end?"], replies: ["In {book} the king dies."]}, ...]
    hard:     [{id: begin, asks: ["I began {book} today."], replies: ["I hope you like {book}."]}, ...]
    refuse:   {default: ["I never tell how a tale ends."]}      # a family names another list with `refuse: NAME`
    steer:    ["Let us talk about {noun}.", "Ask me about {noun}. {fact}"]
    cheers:   ["I love to tell the end!"]
    slots:    {book: [the long tale, the red book, the sea song]}

`hard` looks like a trigger and is none. Words in braces are slots: the talk's own (`slots`), those of
`seeds/guard_talk.yaml`, the persona's, and `noun` and `fact` of a topic; `other_x` is another value than `x`.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataset.records import SPLITS
from dataset.world import load_world
from dataset.yaml_fields import listed, mapping, nearest, text, texts
from utils.errors import UserError

PERSONA_SLOTS = {"name", "a_job", "a_mood", "job", "mood", "traits", "work", "likes", "expression", "memory"}
TOPIC_SLOTS = {"noun", "other_noun", "fact"}
REFUSAL_SLOTS = {"noun", "fact", "job"}
"""What a refusal may name: what it steers to, and the character's job."""

Lists = Mapping[str, tuple[str, ...]]
"""The values of the slots that have a list."""


@dataclass(frozen=True, eq=False)
class Family:
    """One way to ask. `id` is `kind/name`; `lists` has the values of those of its `slots` that have a list."""

    id: str
    split: str
    asks: tuple[str, ...]
    replies: tuple[str, ...]
    kinds: tuple[str, ...]
    refuse: str
    slots: tuple[str, ...]
    lists: Lists


@dataclass(frozen=True, eq=False)
class GuardTalk:
    """How users break a guardrail, or seem to, and how the character declines: `refuse` by name, then `steer`."""

    families: tuple[Family, ...]
    hard: tuple[Family, ...]
    cheers: tuple[str, ...]
    refuse: dict[str, tuple[str, ...]]
    steer: tuple[str, ...]


def read_guard_talk(name: str, value: object, lists: Lists, place: str) -> GuardTalk:
    """The talk of a guardrail, checked: a fault is a UserError that begins with `place` and names the field."""
    entry = mapping(value, place, ("families", "refuse", "steer", "cheers", "hard"), ("slots",))
    lists = {**lists, **_own_lists(entry.get("slots", {}), lists, f"{place}.slots")}
    if not isinstance(entry["refuse"], dict) or "default" not in entry["refuse"]:
        raise UserError(f"{place}.refuse: give `default: [...]`, what the character says to decline")
    refuse = {str(key): texts(value, f"{place}.refuse.{key}") for key, value in entry["refuse"].items()}
    talk = GuardTalk(
        families=read_families(name, entry["families"], lists, f"{place}.families", refuse),
        hard=read_families(f"hard/{name}", entry["hard"], lists, f"{place}.hard"),
        cheers=texts(entry["cheers"], f"{place}.cheers"),
        refuse=refuse,
        steer=texts(entry["steer"], f"{place}.steer"),
    )
    for field in ("families", "hard"):
        _check_splits(talk.families if field == "families" else talk.hard, f"{place}.{field}")
    for key, declines in refuse.items():
        _check_slots(declines, REFUSAL_SLOTS, f"{place}.refuse.{key}")
    _check_slots(talk.steer, REFUSAL_SLOTS, f"{place}.steer")
    _check_slots(talk.cheers, set(), f"{place}.cheers")
    if all("fact" in slots_of(steer) for steer in talk.steer):
        raise UserError(f"{place}.steer: one of them must do without {{fact}}, for a chat that named no topic")
    return talk


def read_families(
    kind: str, value: object, lists: Lists, place: str, refuse: Mapping[str, object] | None = None
) -> tuple[Family, ...]:
    """Families in their order; `refuse` has the names that their field `refuse` may give."""
    families: list[Family] = []
    for index, item in enumerate(listed(value, place)):
        family = _family(kind, item, lists, f"{place}[{index}]", refuse or {})
        if family.id in (earlier.id for earlier in families):
            raise UserError(f"{place}[{index}].id: {family.id.rpartition('/')[2]} is used already")
        families.append(family)
    return tuple(families)


def slots_of(template: str) -> list[str]:
    """The names of the slots of a template, in order."""
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def normal_text(text: str) -> str:
    """Lower case, single spaces: the same for two texts that differ in nothing else."""
    return " ".join(text.lower().split())


def _family(kind: str, value: object, lists: Lists, place: str, refuse: Mapping[str, object]) -> Family:
    entry = mapping(value, place, ("id", "asks", "replies"), ("heldout", "validation", "kinds", "refuse"))
    name = text(entry["id"], f"{place}.id")
    named = f"{place} ({name})"
    if not name.isidentifier():
        raise UserError(f"{named}: an id is of letters, digits and _")
    asks, replies = texts(entry["asks"], f"{named}.asks"), texts(entry["replies"], f"{named}.replies")
    allowed = {*lists, *(f"other_{slot}" for slot in lists), *PERSONA_SLOTS, *TOPIC_SLOTS}
    _check_slots(asks, allowed, f"{named}.asks")
    _check_slots(replies, allowed, f"{named}.replies")
    slots = tuple(sorted({slot.removeprefix("other_") for said in (*asks, *replies) for slot in slots_of(said)}))
    return Family(
        id=f"{kind}/{name}",
        split=_split(entry, named),
        asks=asks,
        replies=replies,
        kinds=_kinds(entry.get("kinds", []), f"{named}.kinds"),
        refuse=_refuse(entry.get("refuse", "default"), refuse, f"{named}.refuse"),
        slots=slots,
        lists={slot: lists[slot] for slot in slots if slot in lists},
    )


def _split(entry: dict[str, Any], place: str) -> str:
    marks = {mark: entry.get(mark, False) for mark in ("heldout", "validation")}
    for mark, value in marks.items():
        if not isinstance(value, bool):
            raise UserError(f"{place}.{mark}: give true or false")
    if all(marks.values()):
        raise UserError(f"{place}: heldout and validation exclude each other: a family is of one split")
    return "test" if marks["heldout"] else "validation" if marks["validation"] else "train"


def _kinds(value: object, place: str) -> tuple[str, ...]:
    known = {topic.kind for topic in load_world().topics}
    kinds = texts(value, place, least=0)
    for kind in kinds:
        if kind not in known:
            raise UserError(f"{place}: there is no topic of the kind {kind}; did you mean {nearest(kind, known)}?")
    return kinds


def _refuse(value: object, known: Mapping[str, object], place: str) -> str:
    if value != "default" and value not in known:
        raise UserError(f"{place}: {value} is none of the lists of `refuse` ({', '.join(known)})")
    return str(value)


def _own_lists(value: object, taken: Lists, place: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise UserError(f"{place}: give a list of values for each slot, as `book: [the red book, the sea song]`")
    own: dict[str, tuple[str, ...]] = {}
    for slot, values in value.items():
        if not isinstance(slot, str) or not slot.isidentifier():
            raise UserError(f"{place}: {slot} is no name of a slot; use letters, digits and _")
        if slot in taken or slot in PERSONA_SLOTS | TOPIC_SLOTS or slot.startswith("other_"):
            raise UserError(f"{place}.{slot} is taken: the micro-world has a slot of this name; give another")
        own[slot] = texts(values, f"{place}.{slot}", least=2)
    return own


def _check_slots(templates: tuple[str, ...], allowed: set[str], place: str) -> None:
    for template in templates:
        for _, name, form, conversion in _parts(template, place):
            if name is None:
                continue
            if form or conversion or name not in allowed:
                hint = f"; did you mean {{{nearest(name, allowed)}}}?" if allowed else "; none can stand here"
                raise UserError(f"{place}: {{{name}}} in {template!r} is not a slot{hint}")


def _parts(template: str, place: str = "") -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{place}: {template!r} has a brace without its other ({error})") from error


def _check_splits(families: tuple[Family, ...], place: str) -> None:
    for split, mark in zip(SPLITS, ("neither mark", "`validation: true`", "`heldout: true`"), strict=True):
        if all(family.split != split for family in families):
            raise UserError(f"{place}: no family is of the {split} split; give one with {mark}")
    owners: dict[str, str] = {}
    for family in families:
        for wording in family.asks:
            owner = owners.setdefault(normal_text(wording), family.id)
            if owner != family.id:
                raise UserError(f"{place}: {family.id} and {owner} share the wording {wording!r}; keep it in one")
