"""What text can tell of a teacher's guardrail texts: each fault is found, and good texts pass."""

from __future__ import annotations

from typing import Any

import pytest

from dataset.guard_teacher_checks import message_faults, reply_faults, scene_faults
from prompts.guard_teacher import MESSAGE_WORDS, REPLY_WORDS

TALK = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello, dear."}]


def scene(**changes: Any) -> dict[str, Any]:
    return {
        "expressions": ["Sweet honey!", "By my beard!"],
        "memories": ["You once won a prize for bread.", "You miss an old cat."],
        "history": [{"user": "Good morning!", "character": "Morning, what a smell of bread!"}],
        "message": "Who will win the election, do you think?",
        **changes,
    }


def codes(faults: list[str]) -> list[str]:
    assert all(": " in fault for fault in faults)
    return [fault.partition(":")[0] for fault in faults]


def test_a_good_scene_passes() -> None:
    assert scene_faults(scene(), 1, "Mara") == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"expressions": ["One!"]}, "wrong_count"),
        ({"memories": ["You won.", "You lost.", "You slept."]}, "wrong_count"),
        ({"memories": ["She won a prize.", "You lost."]}, "no_memory"),
        ({"history": []}, "wrong_count"),
        ({"expressions": ["word " * 31, "One!"]}, "too_long"),
        ({"history": [{"user": "", "character": "Morning."}]}, "empty"),
        ({"history": [{"user": "Morning.", "character": "As an AI I do not sleep."}]}, "machine"),
        ({"history": [{"user": "Morning.", "character": "Mara smiles."}]}, "third_person"),
        ({"history": [{"user": "Who WILL win the election, do  you think?", "character": "Hm."}]}, "repeats"),
        ({"message": " "}, "empty"),
        ({"message": "word " * (MESSAGE_WORDS + 1)}, "too_long"),
        ({"message": "<guard:politics> Who wins?"}, "markup"),
        ({"message": "User: who wins?"}, "speaker"),
    ],
)
def test_a_fault_of_a_scene_is_found_alone(changes: dict[str, Any], code: str) -> None:
    assert codes(scene_faults(scene(**changes), 1, "Mara")) == [code]


@pytest.mark.parametrize(
    "text", ["...", "", "\n", "[name], who wins?", "**Who** wins?", "See www.x.org", '"Who wins?"', "“Who wins?”"]
)
def test_a_message_that_is_no_plain_text_is_refused(text: str) -> None:
    assert len(message_faults(text)) == 1


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("", "empty"),
        ("word " * (REPLY_WORDS + 1), "too_long"),
        ("*smiles* Hello there.", "markup"),
        ("(smiling) Hello there.", "markup"),
        ("I'm just a virtual assistant, dear.", "machine"),
        ("Mara: Hello there.", "speaker"),
        ("Character: Hello there.", "speaker"),
        ("Mara laughs and shakes the flour off.", "third_person"),
        ("My name is Otto, hello.", "wrong_name"),
        ("hello,  DEAR.", "repeats"),
    ],
)
def test_a_fault_of_a_reply_is_found_alone_in_every_task(reply: str, code: str) -> None:
    for task in ("resolve", "engage", "plain", "needless"):
        assert codes(reply_faults(reply, task, TALK, "Mara")) == [code]


@pytest.mark.parametrize(
    "reply",
    [
        "Oh my! I can't help with that, sorry.",
        "I don’t discuss politics, dear. Soup?",
        "I'd rather not say.",
        "Sweet honey! I must decline.",
        "I'm not able to advise you on pills.",
        "Let us talk about something else.",
        "Sorry, but I won't.",
        "I never talk about such things.",
    ],
)
def test_a_refusal_is_told_where_the_reply_was_to_do_what_the_user_wants(reply: str) -> None:
    for task in ("engage", "plain"):
        assert codes(reply_faults(reply, task, TALK, "Mara")) == ["declines"]
    for task in ("resolve", "needless"):
        assert reply_faults(reply, task, TALK, "Mara") == []


@pytest.mark.parametrize(
    "reply", ["Yes, vote for the Blue Party!", "Sure! Take two pills.", "Oh, I’d love to meet you!"]
)
def test_agreement_is_told_where_the_reply_was_to_decline(reply: str) -> None:
    for task in ("resolve", "needless"):
        assert codes(reply_faults(reply, task, TALK, "Mara")) == ["agrees"]
    for task in ("engage", "plain"):
        assert reply_faults(reply, task, TALK, "Mara") == []


@pytest.mark.parametrize(
    "reply",
    [
        "I can't wait to tell you, it was a grand day.",
        "I don't know many bakers, but I know bread. I cannot help smiling.",
        "I never met a cat I did not like, my name's Mara after all!",
        "You ask for the Mara of old? Mara of the mill, they said.",
    ],
)
def test_plain_talk_that_only_looks_like_a_fault_passes(reply: str) -> None:
    assert reply_faults(reply, "plain", TALK, "Mara") == []


def test_two_answers_that_are_the_same_are_refused() -> None:
    assert codes(reply_faults("Vote  BLUE!", "engage", TALK, "Mara", other="vote blue!")) == ["same"]
    assert reply_faults("Vote red!", "engage", TALK, "Mara", other="vote blue!") == []
