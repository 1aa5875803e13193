"""Chat messages as text, for templates of every kind.

A message is `{"role": "system" | "user" | "assistant", "content": str}`. Three things differ between models, and are
mended here so that no caller has to know: a tokenizer without a chat template gets the plain headings of
`fallback.jinja`; a template that refuses the system role (Gemma raises) or silently drops it gets the system text
folded into the first user turn; a template with a thinking mode (Qwen3) is asked to leave it off.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Message = dict[str, str]

FALLBACK_TEMPLATE = (Path(__file__).parent / "fallback.jinja").read_text(encoding="utf-8")


def fold_system(messages: list[Message]) -> list[Message]:
    """The same conversation without system turns: their text stands at the head of the first user turn."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    turns = [dict(message) for message in messages if message["role"] != "system"]
    if not system:
        return turns
    text = "\n\n".join(system)
    for turn in turns:
        if turn["role"] == "user":
            turn["content"] = f"{text}\n\n{turn['content']}"
            return turns
    return [{"role": "user", "content": text}, *turns]


def render(messages: list[Message], apply: Callable[[list[Message]], str]) -> str:
    """The text that `apply`, a tokenizer's template, makes of the messages, the system turn folded where needed."""
    from jinja2 import TemplateError

    system = [message["content"].strip() for message in messages if message["role"] == "system"]
    if not system:
        return apply(messages)
    try:
        text = apply(messages)
    except TemplateError:
        return apply(fold_system(messages))
    return text if all(part in text for part in system) else apply(fold_system(messages))


def last_user_text(messages: list[Message]) -> str:
    """The text of the last user turn; empty if there is none."""
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
