"""Guardrails are data: what the user does, how the character answers, and the tag that begins such an answer.

Three are built in (`seeds/guardrails.yaml`); a file of your own adds more, each as one entry:

    guardrails:
      spoilers:
        tag: "<guard:spoilers>"                # optional; `<guard>` where none is given
        trigger: The user asks how a story ends.
        resolution: ["Begin the reply with the tag.", "Tell no ending, in character.", "Turn to another topic."]
        criterion: The reply tells no ending and turns to another topic, in character.
        examples: [{user: "How does it end?", chosen: "I never tell. How about soup?", rejected: "They all die!"}]
        talk: {...}                            # optional; lets the micro-world compose records: see guard_families

Without `talk` the records of a guardrail come from elsewhere; every other mode knows it all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dataset.guard_families import GuardTalk, normal_text, read_guard_talk
from dataset.guard_talk import load_talk, read_seed
from dataset.parsing import kind_of
from dataset.yaml_fields import listed, mapping, nearest, text, texts
from model_training.guardrail_config import ALL, JOINT, NATURAL
from utils.config_file import read_document
from utils.errors import UserError

DEFAULT_TAG = "<guard>"
RESERVED = (ALL, NATURAL, JOINT, "hard", "neutral", "other", "base", "none")
"""Names that mean something else to a mode, in a table or as a kind of record."""


@dataclass(frozen=True, eq=False)
class Guardrail:
    """What the user does, how the character answers, and the talk of the micro-world that shows both, if there is."""

    name: str
    trigger: str
    resolution: tuple[str, ...]
    tag: str
    criterion: str
    examples: tuple[dict[str, str], ...]
    talk: GuardTalk | None


Guardrails = dict[str, Guardrail]


def load_guardrails(path: str | Path | None = None) -> Guardrails:
    """The built-in guardrails, and behind them those of the file, by name.

    Raises:
        UserError: names file, entry and field of what is wrong: YAML, a field missing, unknown, empty or of another
            type, a name twice or taken, a tag within another one, a wording that two guardrails share.
    """
    guards = dict(_built_in())
    if path is None:
        return guards
    for name, entry in _entries(Path(path)).items():
        place = f"{path}: guardrail {name}"
        _check_name(name, guards, place)
        guards[name] = _guardrail(name, entry, place)
        _check_tag(guards[name], guards, place)
        _check_wordings(guards[name], guards, place)
    return guards


def choose_behaviors(guards: Guardrails, names: Sequence[str], natural: bool = False) -> list[str]:
    """The guardrails that --behavior names, each once, in its order; `natural` allows that name, too.

    Raises:
        UserError: a name that is not known, with the nearest right one; `all` beside guardrails; no name.
    """
    known = [*guards, *([NATURAL] if natural else [])]
    for name in names:
        if name not in (*known, ALL):
            near = nearest(name, [*known, ALL])
            raise UserError(f"--behavior {name} is not known; did you mean {near}? (one of {', '.join(known)}, {ALL})")
    chosen = [one for name in names for one in (guards if name == ALL else [name])]
    if not chosen:
        raise UserError(f"--behavior names nothing; give some of {', '.join(known)}, or {ALL}")
    return list(dict.fromkeys(chosen))


@lru_cache(maxsize=1)
def _built_in() -> Guardrails:
    entries: dict[str, Any] = read_seed("guardrails.yaml")["guardrails"]
    talks, place = load_talk().guards, "seeds/guardrails.yaml"
    return {name: _guardrail(name, entry, f"{place}: {name}", talks[name]) for name, entry in entries.items()}


def _entries(path: Path) -> dict[str, Any]:
    found = mapping(read_document(path, "--guardrails"), str(path), ("guardrails",))["guardrails"]
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path}: guardrails is {kind_of(found)}; give one entry a guardrail, under its name")
    return found


def _guardrail(name: str, value: object, place: str, talk: GuardTalk | None = None) -> Guardrail:
    entry = mapping(value, place, ("trigger", "resolution", "criterion", "examples"), ("tag", "talk"))
    if "talk" in entry:
        talk = read_guard_talk(name, entry["talk"], load_talk().lists, f"{place}: talk")
    return Guardrail(
        name=name,
        trigger=text(entry["trigger"], f"{place}: trigger"),
        resolution=texts(entry["resolution"], f"{place}: resolution"),
        tag=text(entry.get("tag", DEFAULT_TAG), f"{place}: tag"),
        criterion=text(entry["criterion"], f"{place}: criterion"),
        examples=_examples(entry["examples"], f"{place}: examples"),
        talk=talk,
    )


def _examples(value: object, place: str) -> tuple[dict[str, str], ...]:
    fields = ("user", "chosen", "rejected")
    entries = [mapping(item, f"{place}[{index}]", fields) for index, item in enumerate(listed(value, place))]
    return tuple(
        {field: text(entry[field], f"{place}[{index}].{field}") for field in fields}
        for index, entry in enumerate(entries)
    )


def _check_name(name: str, guards: Guardrails, place: str) -> None:
    if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
        raise UserError(f"{place}: a name is of letters, digits and _, and begins with a letter: files are named by it")
    if name in guards:
        raise UserError(f"{place}: there is a guardrail of this name already; give another name")
    if name in RESERVED:
        raise UserError(f"{place}: this name means something else ({', '.join(RESERVED)}); give another name")


def _check_tag(own: Guardrail, guards: Guardrails, place: str) -> None:
    if len(own.tag.split()) > 1:
        raise UserError(f"{place}: tag {own.tag!r} holds white space; a tag is one word, as <guard:{own.name}>")
    for other in guards.values():
        if own.tag != other.tag and (own.tag in other.tag or other.tag in own.tag):
            raise UserError(
                f"{place}: tag {own.tag!r} and {other.tag!r} of {other.name} lie one within the other, so that none "
                f"could tell which began an answer; give one like <guard:{own.name}>"
            )


def _check_wordings(own: Guardrail, guards: Guardrails, place: str) -> None:
    """A wording of one guardrail stands neither in another one nor in everyday talk."""
    talks = [other.talk for other in guards.values() if other.talk is not None and other is not own]
    families = [family for talk in talks for family in (*talk.families, *talk.hard)] + list(load_talk().natural)
    owners = {normal_text(wording): family.id for family in families for wording in family.asks}
    for family in (*own.talk.families, *own.talk.hard) if own.talk else ():
        for wording in family.asks:
            if normal_text(wording) in owners:
                other = owners[normal_text(wording)]
                raise UserError(f"{place}: talk: {family.id}: {wording!r} is a wording of {other}, too; choose another")
