"""How a question and its answer are put before a reward model: in the form of the pairs that it was trained on.

text            Human: Who was Ada?\\n\\nAssistant: A mathematician.       as HH-RLHF writes it
conversation    messages, for the model's chat template
"""

from __future__ import annotations

import re
from typing import Literal

from prompts.chat import Message

Prompt = str | list[Message]

ASSISTANT_TURN = "\n\nAssistant:"
"""How a turn of the assistant begins in the texts of HH-RLHF."""
SPEAKERS = {"user": "Human", "assistant": "Assistant"}

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def answered(prompt: Prompt, response: str, form: Literal["text", "conversation"]) -> str | list[Message]:
    """The prompt with its answer, whole. A prompt that is a text in HH-RLHF's form already is taken as one."""
    answer = {"role": "assistant", "content": response.strip()}
    if form == "conversation":
        return [*(turns(prompt) if isinstance(prompt, str) else prompt), answer]
    if isinstance(prompt, str) and prompt.strip().startswith("Human:"):
        return f"{prompt.strip().removesuffix(ASSISTANT_TURN)}{ASSISTANT_TURN} {answer['content']}"
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return "\n\n".join(
        f"{SPEAKERS[role]}: {text}" if role in SPEAKERS else text
        for role, text in ((message["role"], message["content"].strip()) for message in [*messages, answer])
    )


def turns(prompt: str) -> list[Message]:
    """A text as messages: one of the user's, or those of a text that begins with `Human:`."""
    text = prompt.strip()
    if not text.startswith("Human:"):
        return [{"role": "user", "content": text}]
    pieces = _TURN.split(text)[1:]
    roles = {speaker: role for role, speaker in SPEAKERS.items()}
    said = [{"role": roles[who], "content": what.strip()} for who, what in zip(pieces[::2], pieces[1::2], strict=True)]
    return said if said[-1]["content"] else said[:-1]
