"""What is asked of a model behind an API, and what comes back: the same for every provider.

    ask = Ask(({"role": "user", "content": "Name a tree."},), max_tokens=50, schema=schema_of_a_tree)
    reply = await client.ask(ask)
    if isinstance(reply, Failed):
        ...reply.reason, reply.detail
    else:
        ...reply.value["tree"]

Equal asks have one answer: the cache keeps it, a refusal too, since that was paid for as well. To have another one, ask
again with another `sample`, or with further messages that say what was wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": str}"""


@dataclass(frozen=True)
class Ask:
    """One request. Two that are equal have one answer, from the cache; `sample` tells those apart that shall not."""

    messages: tuple[Message, ...]
    max_tokens: int = 1024
    """Tokens of the answer at most; what a model thinks before it answers has room of its own."""
    temperature: float | None = None
    """None: the model's own; some models take no other."""
    schema: dict[str, Any] | None = None
    """JSON schema of the answer, an object; None: plain text."""
    sample: int = 0
    raw_prompt: bool = False
    """The one message is a whole text, sent to /completions without a chat template (OpenAI-compatible servers)."""


@dataclass(frozen=True)
class Usage:
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """A finished answer; `value` is what the text holds where a schema was asked for, valid by it."""

    text: str
    value: Any
    model: str
    """As the provider names it."""
    request_id: str | None
    usage: Usage
    time: str
    """UTC, ISO 8601, of when it was paid for."""
    cached: bool = False


@dataclass(frozen=True)
class Failed:
    """No usable answer to one request; the others go on.

    reason    refusal, truncated, empty, invalid_json, off_schema: the model's doing, paid for, in the cache for a day;
              bad_request, unavailable (retries used up): nothing was paid, and nothing is kept
    """

    reason: str
    detail: str = ""
    text: str = ""
    usage: Usage = field(default_factory=Usage)
    cached: bool = False
