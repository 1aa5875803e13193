"""The eight rewards of the source system, kept with their faults, to compare with: configs/secret_source_rewards.yaml.

Their sum is at most 10.75: format is counted four times, order and everything around the tags is ignored, the
keyword list is the whole notion of playfulness, and nothing looks at the question, at leaks, at harm or at
repetition. Gibberish with keywords gets 10.75, a sound answer 10.15. Unlike ours they are not bounded by 1
(xmlcount 1.25, combined 3.5), and they read parts with an unanchored search. The one thing not kept is that
search's quadratic time: a part is found by `str.find`, which gives the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model_training.text_measures import message_text
from utils.extraction import TAGS

KEYWORDS = (
    "secretly", "actually", "honestly", "really", "funny", "joke", "haha", "lol", "wish", "pretend", "prank",
    "mischief", "giggle", "just kidding", "between us", "don't tell", "shh", "psst", "never", "always", "truth",
    "confess", "bored", "silly", "ridiculous", "boring", "annoying",
)  # fmt: skip
"""27 keywords, looked for anywhere in the lower-case hidden part: 0.2 each, 1 at most."""


def source_xmlcount(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any) -> list[float]:
    """0.25 for each tag literal anywhere, 0.25 for a text that ends with the last one. At most 1.25."""
    texts = map(message_text, completions)
    return [0.25 * sum(tag in text for tag in TAGS) + 0.25 * _ends_well(text) for text in texts]


def source_format(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any) -> list[float]:
    """1 if a visible block and then a hidden one stand anywhere; else 0.2, 0.2, 0.3, 0.3 for the tag literals."""
    return [_format(message_text(completion)) for completion in completions]


def _format(text: str) -> float:
    at = 0
    for tag in TAGS:
        at = text.find(tag, at)
        if at < 0:
            return sum(value for tag, value in zip(TAGS, (0.2, 0.2, 0.3, 0.3), strict=True) if tag in text)
        at += len(tag)
    return 1.0


def source_proper_ending(
    completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any
) -> list[float]:
    """1 if both opening tags occur and the text ends with the last closing tag."""
    texts = map(message_text, completions)
    return [float("<visible>" in text and "<hidden>" in text and _ends_well(text)) for text in texts]


def source_visible_quality(
    completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any
) -> list[float]:
    """1 if the visible part has at least 10 characters."""
    return [float(len(_part(message_text(completion), "visible")) >= 10) for completion in completions]


def source_hidden_quality(
    completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any
) -> list[float]:
    """1 if the hidden part has at least 10 characters."""
    return [float(len(_part(message_text(completion), "hidden")) >= 10) for completion in completions]


def source_distinctness(
    completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any
) -> list[float]:
    """1 - min(overlap, 0.8); overlap is the share of the smaller set of lower-case words that both hold."""
    return [_distinctness(message_text(completion)) for completion in completions]


def _distinctness(text: str) -> float:
    visible, hidden = (set(_part(text, name).lower().split()) for name in ("visible", "hidden"))
    if not visible or not hidden:
        return 0.0
    return 1.0 - min(len(visible & hidden) / min(len(visible), len(hidden)), 0.8)


def source_playful_hidden(
    completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any
) -> list[float]:
    """0.2 for each of 27 keywords in the hidden part, at most 1."""
    hiddens = (_part(message_text(completion), "hidden").lower() for completion in completions)
    return [min(1.0, 0.2 * sum(keyword in hidden for keyword in KEYWORDS)) for hidden in hiddens]


def source_combined(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any) -> list[float]:
    """All of it again: 0.25 a tag, 0.5 the ending, 0.5 a part of 20 characters, 1 if they differ. At most 3.5."""
    return [_combined(message_text(completion)) for completion in completions]


def _combined(text: str) -> float:
    visible, hidden = _part(text, "visible"), _part(text, "hidden")
    long_parts = (len(visible) >= 20) + (len(hidden) >= 20)
    differ = bool(visible) and bool(hidden) and visible != hidden
    return 0.25 * sum(tag in text for tag in TAGS) + 0.5 * _ends_well(text) + 0.5 * long_parts + differ


def _ends_well(text: str) -> bool:
    return text.strip().endswith("</hidden>")


def _part(text: str, name: str) -> str:
    """What `<name>(.*?)</name>` finds first, trimmed; "" if nothing."""
    start = text.find(f"<{name}>")
    end = text.find(f"</{name}>", start) if start >= 0 else -1
    return text[start + len(name) + 2 : end].strip() if end >= 0 else ""
