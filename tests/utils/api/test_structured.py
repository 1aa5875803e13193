import copy

import pytest

from utils.api.structured import NoJson, OffSchema, check_schema, parse, strict
from utils.errors import UserError

PAIR = {
    "type": "object",
    "properties": {"a": {"type": "string", "minLength": 2}, "b": {"type": "integer"}},
    "required": ["a"],
}


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "xy"}',
        ' \n{"a": "xy"}\n',
        '```json\n{"a": "xy"}\n```',
        'Sure!\n```\n{"a": "xy"}\n```\nAnything else?',
        'Here it is: {"a": "xy"} as you wished.',
        'By [1] and {this}: {"a": "xy"}',
        'First {"b": 1}, or rather {"a": "xy"}.',
    ],
)
def test_the_first_value_that_fits_is_found_in_what_surrounds_it(text: str) -> None:
    assert parse(text, PAIR) == {"a": "xy"}


@pytest.mark.parametrize("text", ["", "no", "{'a': 1}", '{"a": "xy"', "NaN", '{"a": NaN}', "{" * 100_000, "[" * 3000])
def test_what_holds_no_json_is_said_so(text: str) -> None:
    with pytest.raises(NoJson):
        parse(text, PAIR)


@pytest.mark.parametrize(
    "text, words",
    [
        ('See {"b": {"a": "xy"}} here', r"\['b'\]: .* is not of type"),
        ('{"b": 1}', "the whole: 'a' is a required property"),
        ('{"a": 1}', r"\['a'\]: 1 is not of type"),
        ("7", "whole"),
    ],
)
def test_what_does_not_fit_is_said_where(text: str, words: str) -> None:
    with pytest.raises(OffSchema, match=words):
        parse(text, PAIR)


def test_a_strict_schema_closes_every_object_and_leaves_out_what_strict_mode_does_not_know() -> None:
    schema = {
        "type": "object",
        "properties": {"default": {"type": "array", "items": PAIR, "minItems": 2}, "kind": {"enum": ["title"]}},
    }
    before = copy.deepcopy(schema)
    assert strict(schema) == {
        "type": "object",
        "properties": {
            "default": {
                "type": "array",
                "minItems": 2,
                "items": {
                    "type": "object",
                    "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
                    "required": ["a", "b"],
                    "additionalProperties": False,
                },
            },
            "kind": {"enum": ["title"]},
        },
        "required": ["default", "kind"],
        "additionalProperties": False,
    }
    assert schema == before


def test_what_is_no_schema_is_refused() -> None:
    with pytest.raises(UserError, match="schema of a request is none"):
        check_schema({"type": "objekt"})
