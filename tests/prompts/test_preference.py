"""A question and its answer in the form of the pairs that a reward model was trained on."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from prompts.preference import answered, turns

PUBLISHED = Path(__file__).parents[2] / "../shared/data/preference"
CONVERSATION = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why?"},
]
TRANSCRIPT = "Human: Hi\n\nAssistant: Yes?\n\nHuman: Why?"


@pytest.mark.parametrize("prompt", [CONVERSATION, f"\n\n{TRANSCRIPT}", f"{TRANSCRIPT}\n\nAssistant:"])
def test_a_question_has_one_meaning_in_every_form(prompt: Any) -> None:
    assert answered(prompt, " So. ", "text") == f"{TRANSCRIPT}\n\nAssistant: So."
    assert answered(prompt, " So. ", "conversation") == [*CONVERSATION, {"role": "assistant", "content": "So."}]


def test_a_plain_question_is_the_users() -> None:
    assert answered("Why, Human: ?", "So.", "text") == "Human: Why, Human: ?\n\nAssistant: So."
    assert turns("Why?\n\nAssistant: x") == [{"role": "user", "content": "Why?\n\nAssistant: x"}]


def test_texts_are_those_of_real_pairs() -> None:
    file = PUBLISHED / "relabeled_helpful_test.jsonl.gz"
    if not file.is_file():
        pytest.skip("the real pairs are not beside this checkout")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][:300]
    for row in rows:
        made = {answered(row["prompt"], response, "text").strip() for response in row["responses"]}
        assert made == {row["chosen"].strip(), row["rejected"].strip()}
