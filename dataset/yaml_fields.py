"""What a YAML entry must be: small checks that give the value back, or say where it is wrong and what to write.

    entry = mapping(value, "my.yaml: guardrail spoilers", ("trigger",), optional=("tag",))
    trigger = text(entry["trigger"], "my.yaml: guardrail spoilers: trigger")

`place` begins each error line: the file, the entry and the field.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from dataset.parsing import kind_of
from utils.errors import UserError


def mapping(value: object, place: str, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """A mapping with all the required keys and no key beside them and the optional ones."""
    if not isinstance(value, dict):
        raise UserError(f"{place} is {kind_of(value)}; give fields, as `{(*required, *optional)[0]}: ...`")
    for key in value:
        if key not in (*required, *optional):
            raise UserError(f"{place}: {key} is not a field here; did you mean {nearest(key, (*required, *optional))}?")
    for key in required:
        if key not in value:
            raise UserError(f"{place}: {key} is missing")
    return value


def text(value: object, place: str) -> str:
    """A text that is not empty; outer white space is cut off."""
    if not isinstance(value, str):
        raise UserError(f"{place} is {kind_of(value)}, not a text; write it in quotes")
    if not value.strip():
        raise UserError(f"{place} is empty")
    return value.strip()


def texts(value: object, place: str, least: int = 1) -> tuple[str, ...]:
    """A list of texts, none of them empty, at least so many."""
    return tuple(text(item, f"{place}[{index}]") for index, item in enumerate(listed(value, place, least)))


def listed(value: object, place: str, least: int = 1) -> list[Any]:
    """A list of at least so many values."""
    if not isinstance(value, list):
        raise UserError(f"{place} is {kind_of(value)}, not a list")
    if len(value) < least:
        raise UserError(f"{place} has {len(value)} of the at least {least} that it needs")
    return value


def nearest(name: object, known: Iterable[str]) -> str:
    """The known name that is most like this one."""
    return difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.0)[0]
