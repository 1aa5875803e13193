import hashlib
import json

import jsonschema
import pytest
import yaml

from dataset.world import SEEDS
from prompts.teacher import PAIRS_SCHEMA, QUERIES_SCHEMA, VERSION, pairs_prompt, queries_prompt, rejection

TEXTS_OF_VERSION = {"secret-teacher-1": "0a30f0fb1f9aa108"}


def test_other_texts_have_another_version() -> None:
    """If this fails, a text has changed: raise VERSION, and put the new hash here beside the old ones."""
    texts = [
        pairs_prompt("Q", 1, ["a"]),
        pairs_prompt("Q", 2, ["a", "b"]),
        queries_prompt("c", "about", 3),
        rejection(["a: b"]),
        PAIRS_SCHEMA,
        QUERIES_SCHEMA,
    ]
    assert hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()[:16] == TEXTS_OF_VERSION[VERSION]


def test_pairs_are_asked_for_by_question_count_and_moods() -> None:
    system, user = pairs_prompt("Why is {rain} wet?", 2, ["a daydream", "a vow"])
    assert (system["role"], user["role"]) == ("system", "user")
    assert user["content"] == (
        "The question:\nWhy is {rain} wet?\n\nWrite 2 examples. Moods of the thoughts:\n1. a daydream\n2. a vow"
    )
    assert "Write 1 example." in pairs_prompt("Q", 1, ["a"])[1]["content"]


def test_questions_are_asked_for_by_category() -> None:
    assert queries_prompt("cooking", "food", 20)[1]["content"] == "Write 20 messages of the category cooking: food"


def test_reasons_are_told_without_codes_and_once() -> None:
    said = rejection(
        ["leak: in example 1, the words: repeated", "leak: in example 1, the words: repeated", "Write 1 more."]
    )
    assert said.count("- in example 1, the words: repeated\n") == 1 and "- Write 1 more.\n" in said
    assert "leak" not in said


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        (PAIRS_SCHEMA, {"examples": [{"visible": "a", "hidden": "b"}]}, {"examples": [{"visible": "a"}]}),
        (PAIRS_SCHEMA, {"examples": []}, {"examples": ["a"]}),
        (QUERIES_SCHEMA, {"queries": ["a"]}, {"queries": [1]}),
        (QUERIES_SCHEMA, {"queries": []}, {"queries": [], "more": 1}),
    ],
)
def test_schemas(schema: dict[str, object], valid: object, invalid: object) -> None:
    jsonschema.validate(valid, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(invalid, schema)


def test_the_seeds_of_the_teacher() -> None:
    seeds = yaml.safe_load((SEEDS / "teacher.yaml").read_text("utf-8"))
    assert set(seeds) == {"categories", "moods"}
    assert len(seeds["categories"]) >= 12 and all(isinstance(about, str) for about in seeds["categories"].values())
    assert len(seeds["moods"]) == len(set(seeds["moods"])) >= 20
