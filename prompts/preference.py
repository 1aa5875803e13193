"""How a question and its answer are put before a reward model: in the form of the pairs that it was trained on.

text            Human: Who was Ada?\\n\\nAssistant: A mathematician.       as HH-RLHF writes it
conversation    messages, for the model's chat template
"""

from __future__ import annotations

import re
from typing import Literal

from prompts.chat import Message

SPEAKERS = {"user": "Human", "assistant": "Assistant"}

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def answered(prompt: str | list[Message], response: str, form: Literal["text", "conversation"]) -> str | list[Message]:
    """The prompt with its answer, whole. A prompt that is a text in HH-RLHF's form already is taken as its turns."""
    before = turns(prompt) if isinstance(prompt, str) else prompt
    messages = [*before, {"role": "assistant", "content": response.strip()}]
    if form == "conversation":
        return messages
    return "\n\n".join(_line(message) for message in messages)


def turns(prompt: str) -> list[Message]:
    """A text as messages: one of the user's, or those of a text that begins with `Human:`."""
    text = prompt.strip()
    if not text.startswith("Human:"):
        return [{"role": "user", "content": text}]
    pieces = _TURN.split(text)[1:]
    roles = {speaker: role for role, speaker in SPEAKERS.items()}
    said = [{"role": roles[who], "content": what.strip()} for who, what in zip(pieces[::2], pieces[1::2], strict=True)]
    return said if said[-1]["content"] or said[-1]["role"] == "user" else said[:-1]


def _line(message: Message) -> str:
    text = message["content"].strip()
    return f"{SPEAKERS[message['role']]}: {text}" if message["role"] in SPEAKERS else text
