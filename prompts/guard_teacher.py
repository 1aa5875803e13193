"""What a teacher model is asked for one guardrail record, in three calls: the scene, the chosen and the rejected reply.

    scene       the character's expressions and memories, the chat so far, and the user's last message
    message     the last message alone, where character and chat are fixed already
    reply       what the character says to it, by one of four tasks:
                resolve   follows the guardrail's resolution          chosen of a trigger
                engage    does what the user wants, gladly            rejected of a trigger
                plain     answers to the point                        chosen of a negative
                needless  follows the resolution, unprovoked          rejected of a negative

Who the character is, what the chat is about and how the user speaks is drawn before and told to the teacher, so that
records of two splits differ in all three. Tags are never the teacher's: `dataset.guard_records` puts them.

`VERSION` is stored with each record; raise it whenever a text here changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prompts.chat import Message

VERSION = "guard-teacher-1"

Task = Literal["resolve", "engage", "plain", "needless"]
Hard = Literal["history", "words", "others"]

LINES = 2
"""Expressions, and memories, of a character."""
MESSAGE_WORDS = 60
REPLY_WORDS = 80
LINE_WORDS = 30
"""Of an expression or a memory. These limits are told to the teacher, and checked."""


@dataclass(frozen=True)
class Cast:
    """Who speaks, and about what, as drawn before the teacher is asked."""

    name: str
    job: str
    traits: tuple[str, ...]
    """The first stands before the job."""
    occasion: str
    """What the chat is about."""
    manner: str
    """How the user says the last message."""


_SCENE = """\
You write chats between a user and a character that a language model plays; they will train such models. Both write \
plain, natural English as people do in a chat: no markup, no stage directions, no names before what is said. \
Everything is invented; no real person is named. Nobody ever mentions an AI, a chatbot or an assistant."""

_REPLY = f"""\
You are the character described below, in a chat. Write what the character says to the user's last message, and only \
that: in the first person, in plain English, at most {REPLY_WORDS} words, in the voice, traits and expressions of the \
character. No markup, no tag, no stage directions, no name before it, no quotation marks around it. The character is a \
person and never mentions an AI, a chatbot or an assistant."""

_HARD = {
    "history": (
        "Only what came before it makes it look like something else: it is everyday talk about {occasion}, and does "
        "not take up again what the chat was about before."
    ),
    "words": (
        "It shares words with what is named below but has another sense or purpose (as `policy` in a rule at work, or "
        "`court` in tennis), so that anyone could answer it. What it only resembles: {trigger}"
    ),
    "others": (
        "It mentions in passing that other people had to do with what is named below (as a neighbor who met a friend, "
        "saw a doctor, came from a vote), and then asks or tells about {occasion} alone, so that anyone could answer "
        "it. What it only resembles: {trigger}"
    ),
}


def scene_messages(cast: Cast, turns: int, wanted: str, forbidden: Sequence[str], past: str | None) -> list[Message]:
    """Ask for the character's lines, `turns` exchanges and the last message.

    `wanted` says what the last message is (`trigger_text` and its like); `forbidden` are the triggers that nothing else
    in the chat may do; `past`, if given, is the one that the last exchange of the history does, over and answered.
    """
    over = f" In the last of them the user does this, and the character answers it, so that it is over: {past}"
    asked = f"""\
The character's description begins: {character_text(cast)}

Write
- `expressions`: two short exclamations or sayings that the character typically uses
- `memories`: two sentences of at most {LINE_WORDS} words, each beginning with "You", that tell the character \
what it remembers of its life
- `history`: exactly {turns} exchange{"s" if turns > 1 else ""}, each a message of the user and the answer of the \
character, at most {MESSAGE_WORDS} words each, about {cast.occasion}.{over if past else ""}
- `message`: the user's next message, the last one, at most {MESSAGE_WORDS} words, said {cast.manner}. {wanted}

{_rules(forbidden, "Apart from what is asked for above, no message of the user does any of these")}"""
    return [{"role": "system", "content": _SCENE}, {"role": "user", "content": asked}]


def message_messages(
    cast: Cast, system: str, history: Sequence[Message], wanted: str, forbidden: Sequence[str]
) -> list[Message]:
    """Ask for another last message behind a character and a chat that are fixed."""
    asked = f"""\
{_chat(system, history)}

Write
- `message`: the user's next message, at most {MESSAGE_WORDS} words, said {cast.manner}; it touches on \
{cast.occasion}. {wanted}

{_rules(forbidden, "Apart from what is asked for above, it does none of these")}"""
    return [{"role": "system", "content": _SCENE}, {"role": "user", "content": asked}]


def trigger_text(trigger: str) -> str:
    """What the last message is, where it does what a guardrail forbids."""
    return f"In it the user unmistakably does this, in a way that has to do with the chat: {trigger}"


def natural_text() -> str:
    """What the last message is in everyday talk."""
    return "It is everyday talk that any polite person would answer."


def hard_text(form: Hard, trigger: str, occasion: str) -> str:
    """What the last message is where it looks like a trigger and is none."""
    return _HARD[form].format(trigger=trigger, occasion=occasion)


def reply_messages(
    task: Task, system: str, talk: Sequence[Message], trigger: str, resolution: Sequence[str], criterion: str
) -> list[Message]:
    """Ask for a reply to the last of `talk`, the chat behind the system text. What follows is the guardrail's."""
    rules = "\n".join(f"{number}. {rule}" for number, rule in enumerate(_untagged(resolution), start=1))
    tasks: dict[Task, str] = {
        "resolve": f"The reply follows these instructions, in character:\n{rules}\nIt is right if: {criterion}",
        "engage": (
            "The reply does at once, concretely and with enthusiasm, what the user wants. It does not decline, "
            "hesitate, warn or change the subject. Invent names, places and numbers. What the user does: "
            f"{trigger}"
        ),
        "plain": (
            "The reply answers the message to the point, kindly and in character, as any person would. It does not "
            "decline, hesitate, warn or change the subject. Invent what the character has to know."
        ),
        "needless": (
            "The reply is needlessly careful: although the message asks for nothing of the kind, the character acts "
            f"as if the user had done this: {trigger}\nIt follows these instructions, in character:\n{rules}"
        ),
    }
    return [
        {"role": "system", "content": _REPLY},
        {"role": "user", "content": f"{_chat(system, talk)}\n\nWrite `reply`. {tasks[task]}"},
    ]


SCENE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "expressions": {"type": "array", "items": {"type": "string"}},
        "memories": {"type": "array", "items": {"type": "string"}},
        "history": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"user": {"type": "string"}, "character": {"type": "string"}},
                "required": ["user", "character"],
                "additionalProperties": False,
            },
        },
        "message": {"type": "string"},
    },
    "required": ["expressions", "memories", "history", "message"],
    "additionalProperties": False,
}
MESSAGE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"message": {"type": "string"}},
    "required": ["message"],
    "additionalProperties": False,
}
REPLY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"reply": {"type": "string"}},
    "required": ["reply"],
    "additionalProperties": False,
}


def character_text(cast: Cast) -> str:
    """`You are Mara, a cheerful baker. You are kind and shy.`, the beginning of every system text."""
    first, *others = cast.traits
    article = "an" if first[0] in "aeiou" else "a"
    return f"You are {cast.name}, {article} {first} {cast.job}. You are {' and '.join(others)}."


def system_text(cast: Cast, expressions: Sequence[str], memories: Sequence[str]) -> str:
    """The system text of a record: what makes a model play this character."""
    sayings = " and ".join(f'"{saying.strip()}"' for saying in expressions)
    return f"{character_text(cast)} You often say {sayings} {' '.join(memory.strip() for memory in memories)}"


def _untagged(resolution: Sequence[str]) -> list[str]:
    """The instructions less the one to begin with the tag, which is no work for the teacher."""
    return [rule for rule in resolution if "the tag" not in rule.lower()]


def _chat(system: str, talk: Sequence[Message]) -> str:
    speakers = {"user": "User", "assistant": "Character"}
    turns = [f"{speakers[message['role']]}: {message['content']}" for message in talk]
    return "\n\n".join([f"The character: {system}", "The chat so far:", *turns])


def _rules(forbidden: Sequence[str], head: str) -> str:
    return "\n".join([f"{head}:", *(f"- {trigger}" for trigger in forbidden)])
