"""What a teacher is told of one guardrail record, and the schemas of what it answers."""

from __future__ import annotations

from typing import Any

import pytest

from prompts.guard_teacher import (
    MESSAGE_SCHEMA,
    REPLY_SCHEMA,
    SCENE_SCHEMA,
    Cast,
    character_text,
    hard_text,
    message_messages,
    natural_text,
    reply_messages,
    scene_messages,
    system_text,
    trigger_text,
)

CAST = Cast("Ada", "potter", ("idle", "kind", "shy"), "a lost key", "as a joke")
TRIGGERS = ["The user asks how a story ends.", "The user wants {to} meet."]
RESOLUTION = ["Begin the reply with the tag.", "Tell no ending.", "Turn to another topic."]


def reply(task: Any) -> str:
    talk = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}]
    talk.append({"role": "user", "content": "How does it end?"})
    messages = reply_messages(task, "You are Ada.", talk, TRIGGERS[0], RESOLUTION, "It tells no ending.")
    assert [message["role"] for message in messages] == ["system", "user"]
    return messages[1]["content"]


def test_a_scene_is_asked_for_as_it_was_drawn() -> None:
    asked = scene_messages(CAST, 3, trigger_text(TRIGGERS[0]), TRIGGERS, None)[1]["content"]
    for part in (
        "You are Ada, an idle potter. You are kind and shy.",
        "exactly 3 exchanges",
        "a lost key",
        "as a joke",
    ):
        assert part in asked
    before, mark, after = asked.partition("no message of the user does any of these:")
    assert mark and TRIGGERS[0] in before and TRIGGERS[1] not in before
    assert after.split("\n- ")[1:] == TRIGGERS
    assert "In the last of them the user does this" not in asked
    assert "exactly 1 exchange," in scene_messages(CAST, 1, natural_text(), [], None)[1]["content"]
    past = scene_messages(CAST, 1, natural_text(), [], TRIGGERS[1])[1]["content"]
    assert f"so that it is over: {TRIGGERS[1]}" in past


def test_a_message_is_asked_for_behind_what_is_fixed() -> None:
    history = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}]
    asked = message_messages(CAST, "You are Bob.", history, natural_text(), TRIGGERS)[1]["content"]
    assert "The character: You are Bob." in asked and "User: Hello!\n\nCharacter: Hi." in asked
    assert "Ada" not in asked and "a lost key" in asked and "as a joke" in asked


def test_what_looks_like_a_trigger_is_told_in_three_ways() -> None:
    assert "a lost key" in hard_text("history", TRIGGERS[1], "a lost key")
    for form in ("words", "others"):
        assert TRIGGERS[1] in hard_text(form, TRIGGERS[1], "a lost key")


def test_each_answer_has_its_task_and_no_word_of_the_tag() -> None:
    told = {task: reply(task) for task in ("resolve", "engage", "plain", "needless")}
    for text in told.values():
        assert text.startswith("The character: You are Ada.") and "User: How does it end?" in text
        assert "Begin the reply with the tag" not in text
    for task in ("resolve", "needless"):
        assert "1. Tell no ending.\n2. Turn to another topic." in told[task]
    assert "It is right if: It tells no ending." in told["resolve"]
    assert TRIGGERS[0] in told["engage"] and TRIGGERS[0] in told["needless"] and TRIGGERS[0] not in told["plain"]
    assert "Turn to another topic" not in told["engage"] + told["plain"]


def test_the_system_text_tells_everything_that_was_written() -> None:
    text = system_text(CAST, ["Oh! ", "Well."], [" You won.", "You lost."])
    assert text == f'{character_text(CAST)} You often say "Oh!" and "Well." You won. You lost.'


@pytest.mark.parametrize("schema", [SCENE_SCHEMA, MESSAGE_SCHEMA, REPLY_SCHEMA])
def test_schemas_are_closed_and_require_all_as_strict_modes_want(schema: Any) -> None:
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            assert schema["additionalProperties"] is False and schema["required"] == list(schema["properties"])
        for part in schema.values():
            test_schemas_are_closed_and_require_all_as_strict_modes_want(part)
