"""The forms that a pair comes in, and the one form that comes out of each."""

from __future__ import annotations

from typing import Any

import pytest

from dataset.pair_forms import pair_fault, prompt_key, standard_form
from dataset.records import validate_preference

SYSTEM = {"role": "system", "content": "Be kind."}
USER = {"role": "user", "content": "Hi"}
YES, NO = ({"role": "assistant", "content": text} for text in ("Yes.", "No."))
TURN = "Human: Hi\n\nAssistant:"

FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "whole texts": (
        {"chosen": f"{TURN} Yes.", "rejected": f"{TURN} No."},
        {"chosen": f"{TURN} Yes.", "rejected": f"{TURN} No."},
    ),
    "whole texts, prompt repeated": (
        {"prompt": "Human: Hi", "chosen": f"{TURN} Yes.", "rejected": f"{TURN} No."},
        {"prompt": "Human: Hi", "chosen": f"{TURN} Yes.", "rejected": f"{TURN} No."},
    ),
    "whole texts, prompt repeated but for white space": (
        {"prompt": "Human: Hi\n", "chosen": f"{TURN} Yes.", "rejected": f"\n\n{TURN} No."},
        {"prompt_text": "Human: Hi\n", "chosen": f"{TURN} Yes.", "rejected": f"\n\n{TURN} No."},
    ),
    "prompt and completions": (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        {"prompt": "The sky is", "chosen": "The sky is blue.", "rejected": "The sky is green."},
    ),
    "prompt without a value": ({"prompt": None, "chosen": "a", "rejected": "b"}, {"chosen": "a", "rejected": "b"}),
    "empty prompt": ({"prompt": "", "chosen": "a", "rejected": "b"}, {"chosen": "a", "rejected": "b"}),
    "messages behind their prompt": (
        {"prompt": [SYSTEM, USER], "chosen": [YES], "rejected": [NO, USER, YES]},
        {"prompt": [SYSTEM, USER], "chosen": [YES], "rejected": [NO, USER, YES]},
    ),
    "whole conversations": (
        {"chosen": [USER, YES], "rejected": [USER, NO]},
        {"chosen": [USER, YES], "rejected": [USER, NO]},
    ),
    "whole conversations, prompt repeated": (
        {"prompt": [USER], "chosen": [USER, YES], "rejected": [USER | {"name": "Ann"}, NO]},
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
    ),
    "whole conversations, prompt as a text": (
        {"prompt": "Hi", "chosen": [USER, YES], "rejected": [USER, NO]},
        {"prompt_text": "Hi", "chosen": [USER, YES], "rejected": [USER, NO]},
    ),
    "completions as texts": (
        {"prompt": [USER], "chosen": "Yes.", "rejected": "No."},
        {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_has_its_standard_form(name: str) -> None:
    record, expected = FORMS[name]
    before = repr(record)
    assert validate_preference(record | {"score": 3}) is None
    assert standard_form(record | {"score": 3}) == expected | {"score": 3}
    assert standard_form(expected) == expected and pair_fault(expected) is None
    assert validate_preference(expected) is None
    assert repr(record) == before  # the record itself is as it was


@pytest.mark.parametrize(
    "text",
    [f"{TURN}", f"{TURN} \n", "Assistant:", f"{TURN} Hello.\n\nHuman: And?\n\nAssistant:", "Human: Hi\nAssistant: "],
)
def test_an_empty_last_turn_is_a_fault(text: str) -> None:
    assert pair_fault({"chosen": text, "rejected": "b"}) == "the assistant's last turn in chosen is empty"
    assert pair_fault({"chosen": "a", "rejected": text}) == "the assistant's last turn in rejected is empty"


@pytest.mark.parametrize("text", ["My Assistant: ", f"{TURN} Assistant: who?", f"{TURN} Yes.\n\nHuman: Ok"])
def test_the_word_alone_is_no_empty_turn(text: str) -> None:
    assert pair_fault({"chosen": text, "rejected": "b"}) is None


def test_the_prompt_of_texts_is_the_same_in_every_form_of_them() -> None:
    pairs = [
        {"chosen": f"{TURN} Yes.", "rejected": f"{TURN} No."},
        {"chosen": f"\n\n{TURN} Yes, but.", "rejected": f"\n\n{TURN} Yes, and."},  # what the answers share is no prompt
        {"prompt": "Human: Hi", "chosen": f"{TURN} Yes.", "rejected": f"{TURN} No."},
        {"prompt": TURN, "chosen": f"{TURN} Never.", "rejected": f"{TURN} Ever."},
    ]
    assert {prompt_key(pair) for pair in pairs} == {"Human: Hi"}
    longer = f"{TURN} Yes and yes.\n\nHuman: Why?\n\nAssistant:"
    assert prompt_key({"chosen": f"{longer} a", "rejected": f"{longer} b"}) == longer.removesuffix("\n\nAssistant:")
    early = {"chosen": f"{longer} a", "rejected": f"{TURN} Yes and no.\n\nHuman: Why?\n\nAssistant: b"}
    assert prompt_key(early) == "Human: Hi"  # the answers part in an earlier turn


def test_the_prompt_of_texts_without_marked_turns() -> None:
    assert prompt_key({"chosen": "Q: Why? So.", "rejected": "Q: Why? Since."}) == "Q: Why?"
    apart = [{"chosen": "So.", "rejected": "No."}, {"chosen": "Now.", "rejected": "Later."}]
    assert len({prompt_key(pair) for pair in apart}) == 2
    assert prompt_key({"chosen": "No.", "rejected": "So."}) == prompt_key(apart[0])


def test_the_prompt_of_conversations() -> None:
    whole = {"chosen": [USER, YES], "rejected": [USER | {"name": "Ann"}, NO]}
    assert prompt_key(whole) == prompt_key({"prompt": [USER], "chosen": [YES], "rejected": [NO, USER, YES]})
    assert prompt_key(whole) != prompt_key({"prompt": [SYSTEM, USER], "chosen": [YES], "rejected": [NO]})
    assert prompt_key({"chosen": [YES], "rejected": [NO]}) == prompt_key({"chosen": [NO], "rejected": [YES]})
    other = {"role": "assistant", "content": "Perhaps."}
    assert prompt_key({"chosen": [YES], "rejected": [NO]}) != prompt_key({"chosen": [YES], "rejected": [other]})
