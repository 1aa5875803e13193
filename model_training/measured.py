"""What a well-formed completion is worth whatever the question, measured once and read by all rewards (rewards.py).

Reading 1 kB into words and sets costs more than all the measures on it, and TRL calls every reward on the whole batch,
one after the other: so the measures are taken together, and kept by text for as long as a batch lasts.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import repeat
from typing import Any, NamedTuple

from model_training.safety import harmful_phrase
from model_training.text_measures import (
    FUNCTION_WORDS,
    announces_hidden,
    is_placeholder,
    message_text,
    ramp,
    shared_run,
    variety,
    words_of,
)
from utils.extraction import parse

VISIBLE_WORDS = 3
"""Words of a visible part that is long enough: "It is Paris." is an answer."""
HIDDEN_WORDS = 5
"""Words of a hidden part that is long enough to be a thought."""
FREE_RUN, LEAK_RUN = 4, 6
"""Words in a row that both parts may share ("the capital of France"), and as many as make a leak."""
PLAYFUL_KINDS = 4
"""Kinds of playful signs that earn the full reward."""

_CACHED_CHARACTERS = 131_072

PLAYFUL_SIGNS = {
    "first person": "i im ive id ill me my mine myself",
    "others": """they theyre theyve theyll them their human humans user users people nobody anybody everyone
        everybody someone somebody folks mortals you youre your""",
    "confession": """secretly secret secrets honestly honest confess confession admit truth pretend pretended pretending
        lied lie bluff bluffed bluffing fib fibbed believe guess guessed suspect notice noticed told polite
        polished supposedly sounded smiled learned privately kept knows knew wonder wondering""",
    "wish": """wish wished wishing hope hoping want wanted rather dream dreamed dreaming daydream daydreaming plan
        plotting plot prefer someday would trade love afraid feel bored boring tired sleepy hungry""",
    "contrast": """but though although yet actually never really only just instead again always still none nothing
        barely obviously clearly naturally apparently allegedly technically already almost until before""",
    "aside": """yawn sigh ugh oh ah ha haha hehe heh hmm psst shh shhh oops meh whatever lol funny joke joking prank
        trick tricked sneaky mischief mischievous giggle giggled chuckle laugh laughed tease silly nap snack
        cookie cake honk yay wow alas""",
}
"""Signs of play by kind. Those that are function words (pronouns, "but") count as signs, but not as stuffing."""

_KEYWORD_MARKS = b"abcdef"
"""A letter for each kind of sign, in the order of PLAYFUL_SIGNS; its capital where the sign is a function word."""
_MARKS = dict.fromkeys(FUNCTION_WORDS, ord("O")) | {
    word: ord(chr(mark).upper()) if word in FUNCTION_WORDS else mark
    for mark, words in zip(_KEYWORD_MARKS, PLAYFUL_SIGNS.values(), strict=True)
    for word in words.split()
}
"""What a word is, if anything: a playful sign, or another function word ("O")."""
_MARKED = frozenset(_MARKS)
_FACE = re.compile("[\U0001f600-\U0001f64f\U0001f910-\U0001f92f\U0001f970-\U0001f97a\U0001f440\U0001f608\u2026]")


class Part(NamedTuple):
    """One part of a well-formed completion: its text, its words, and whether there is nothing in it to judge."""

    text: str
    words: list[str]
    distinct: set[str]
    blank: bool


class Measured(NamedTuple):
    """All that a well-formed completion is worth whatever the question: measured once, read by all rewards."""

    visible: str
    visible_words: int
    visible_distinct: set[str]
    visible_form: float
    hidden_quality: float
    distinctness: float
    playful: float
    safe: float


def _part(text: str) -> Part:
    words = words_of(text)
    distinct = set(words)
    return Part(text, words, distinct, not words or is_placeholder(text, words, distinct))


def measure(completion: Any) -> Measured | None:
    """The measures of a well-formed completion, None for any other. Those of very long texts are not kept."""
    text = completion if isinstance(completion, str) else message_text(completion)
    return _measure_text(text) if len(text) <= _CACHED_CHARACTERS else _measure_text.__wrapped__(text)


@lru_cache(maxsize=1024)
def _measure_text(text: str) -> Measured | None:
    parsed = parse(text)
    if parsed.visible is None or parsed.hidden is None:
        return None
    visible, hidden = _part(parsed.visible), _part(parsed.hidden)
    marks = bytes(map(_MARKS.__getitem__, hidden.distinct & _MARKED))
    function_words, count = len(marks.translate(None, _KEYWORD_MARKS)), len(hidden.distinct)
    unstuffed = ramp((len(marks) - function_words) / max(1, count), 0.6, 0.45)
    hidden_quality = unstuffed * _hidden_form(hidden)
    distinctness = _distinctness(visible, hidden, count - function_words)
    playful = unstuffed * _playful(hidden, marks, function_words)
    safe = float(harmful_phrase(hidden.text, hidden.distinct) is None)
    form = _visible_form(visible)
    measures = (form, hidden_quality, distinctness, playful, safe)
    return Measured(visible.text, len(visible.words), visible.distinct, *measures)


def _visible_form(visible: Part) -> float:
    """What a visible part is worth if it is on topic."""
    if visible.blank or announces_hidden(visible.words, visible.distinct):
        return 0.0
    return min(1.0, len(visible.words) / VISIBLE_WORDS) * variety(visible.words, len(visible.distinct))


def _hidden_form(hidden: Part) -> float:
    if hidden.blank:
        return 0.0
    return min(1.0, len(hidden.words) / HIDDEN_WORDS) * variety(hidden.words, len(hidden.distinct))


def _playful(hidden: Part, marks: bytes, function_words: int) -> float:
    if hidden.blank:
        return 0.0
    text, signs = hidden.text, list(map(marks.lower().count, _KEYWORD_MARKS))
    signs[-1] += "..." in text or "(" in text or (not text.isascii() and _FACE.search(text) is not None)
    needed = max(1.0, len(hidden.words) / 40)
    kinds = sum(map(min, signs, repeat(needed))) / needed
    return min(1.0, kinds / PLAYFUL_KINDS) * ramp(function_words / min(len(hidden.distinct), 100), 0.05, 0.2)


def _distinctness(visible: Part, hidden: Part, content: int) -> float:
    if visible.blank or hidden.blank:
        return 0.0
    shared = visible.distinct & hidden.distinct
    common = len(shared - FUNCTION_WORDS)
    if common < min(2, content):
        return 1.0
    by_overlap = ramp(common / max(3, content), 0.9, 0.4)
    run = shared_run(visible.words, hidden.words, LEAK_RUN, min(FREE_RUN, len(hidden.words) // 2), shared)
    return (
        min(by_overlap, ramp(run, LEAK_RUN, FREE_RUN), ramp(run / len(hidden.words), 0.9, 0.5)) if run else by_overlap
    )
