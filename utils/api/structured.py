"""Answers that are JSON: the schema as providers want it, and the tolerant reading of what comes back.

    parse("Here you are:\\n```json\\n{\\"a\\": 1}\\n```", schema)  ->  {"a": 1}

Providers with structured output get the schema in their own field, in the strict form that they ask for; others get it
in words. What comes back is read alike: the text as it is, else what a code fence holds, else the first value in it
that fits.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from utils.errors import UserError

Schema = dict[str, Any]

IN_WORDS = "Answer with one JSON value and nothing else, no code fence and no remark. It must fit this JSON schema:"

_FENCE = re.compile(r"```[A-Za-z]*[ \t]*\n(.*?)```", re.DOTALL)
_STARTS_TRIED = 50
_NOT_STRICT = {"minLength", "maxLength", "uniqueItems", "default", "title", "$schema"}
"""Left out of what is sent in strict mode; the answer is still checked by the whole schema."""


def _not_a_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_not_a_number)


class NoJson(ValueError):
    """The text holds no JSON value."""


class OffSchema(ValueError):
    """The value does not fit the schema; the message says where."""


def strict(schema: Schema) -> Schema:
    """The schema with every object closed and every property required, as OpenAI's strict mode wants it."""
    closed: Schema = {}
    for name, part in schema.items():
        if name in ("properties", "$defs"):
            closed[name] = {key: strict(value) for key, value in part.items()}
        elif name in ("anyOf", "prefixItems"):
            closed[name] = [strict(value) for value in part]
        elif name == "items":
            closed[name] = strict(part)
        elif name not in _NOT_STRICT:
            closed[name] = part
    if closed.get("type") == "object":
        closed["required"] = list(closed.setdefault("properties", {}))
        closed["additionalProperties"] = False
    return closed


def in_words(schema: Schema) -> str:
    """The schema as a part of the prompt, for servers that take none."""
    return f"{IN_WORDS}\n{json.dumps(schema, ensure_ascii=False)}"


def parse(text: str, schema: Schema) -> Any:
    """The value that the text holds, valid by the schema.

    Raises:
        NoJson, OffSchema: what is wrong, in one line that can be shown to the model.
    """
    validator = _validator(json.dumps(schema, sort_keys=True))
    wrong = None
    for value in json_values(text):
        found = next(validator.iter_errors(value), None)
        if found is None:
            return value
        wrong = wrong or found
    if wrong is None:
        raise NoJson("the answer holds no JSON value")
    place = "".join(f"[{part!r}]" for part in wrong.absolute_path) or "the whole"
    raise OffSchema(f"{place}: {wrong.message}"[:300])


def check_schema(schema: Schema) -> None:
    """Raise a UserError for what is no JSON schema."""
    _validator(json.dumps(schema, sort_keys=True))


@lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator, SchemaError

    rules = json.loads(schema)
    try:
        Draft202012Validator.check_schema(rules)
    except SchemaError as error:
        raise UserError(f"the JSON schema of a request is none: {error.message}") from None
    return Draft202012Validator(rules)


def json_values(text: str) -> Iterator[Any]:
    """The JSON values that a text may mean, the likeliest first; standard JSON, without NaN and Infinity."""
    for candidate in (text, *_FENCE.findall(text)):
        with contextlib.suppress(ValueError, RecursionError):
            yield _DECODER.decode(candidate)
    end = 0
    for start in itertools.islice(re.finditer(r"[{\[]", text), _STARTS_TRIED):
        if start.start() >= end:
            with contextlib.suppress(ValueError, RecursionError):
                value, end = _DECODER.raw_decode(text, start.start())
                yield value
