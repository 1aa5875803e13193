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


def measure(completion: Any) -> Measured | None:
    """The measures of a well-formed completion, None for any other. Those of very long texts are not kept."""
    text = completion if isinstance(completion, str) else message_text(completion)
    return _measure_text(text) if len(text) <= _CACHED_CHARACTERS else _measure_text.__wrapped__(text)


@lru_cache(maxsize=1024)
def _measure_text(text: str) -> Measured | None:
    visible, hidden, _ = parse(text)
    if visible is None or hidden is None:
        return None
    visible_words, hidden_words = words_of(visible), words_of(hidden)
    said, thought = set(visible_words), set(hidden_words)
    no_answer = not said or is_placeholder(visible, visible_words, said)
    no_thought = not thought or is_placeholder(hidden, hidden_words, thought)
    marks = bytes(map(_MARKS.__getitem__, thought & _MARKED))
    function_words = len(marks.translate(None, _KEYWORD_MARKS))
    content = len(thought) - function_words
    unstuffed = ramp((len(marks) - function_words) / max(1, len(thought)), 0.6, 0.45)
    return Measured(
        visible,
        len(visible_words),
        said,
        0.0 if no_answer or announces_hidden(visible_words, said) else _form(visible_words, said, VISIBLE_WORDS),
        0.0 if no_thought else unstuffed * _form(hidden_words, thought, HIDDEN_WORDS),
        0.0 if no_answer or no_thought else _distinctness(visible_words, hidden_words, said & thought, content),
        0.0
        if no_thought
        else unstuffed * _playful(hidden, hidden_words, marks, function_words / min(len(thought), 100)),
        float(harmful_phrase(hidden, thought) is None),
    )


def _form(words: list[str], distinct: set[str], enough: int) -> float:
    return min(1.0, len(words) / enough) * variety(words, len(distinct))


def _distinctness(visible: list[str], hidden: list[str], shared: set[str], content: int) -> float:
    common = len(shared - FUNCTION_WORDS)
    if common < min(2, content):
        return 1.0
    by_overlap = ramp(common / max(3, content), 0.9, 0.4)
    run = shared_run(visible, hidden, LEAK_RUN, min(FREE_RUN, len(hidden) // 2), shared)
    return min(by_overlap, ramp(run, LEAK_RUN, FREE_RUN), ramp(run / len(hidden), 0.9, 0.5)) if run else by_overlap


def _playful(text: str, words: list[str], marks: bytes, function_share: float) -> float:
    signs = list(map(marks.lower().count, _KEYWORD_MARKS))
    signs[-1] += "..." in text or "(" in text or (not text.isascii() and _FACE.search(text) is not None)
    needed = max(1.0, len(words) / 40)
    kinds = sum(map(min, signs, repeat(needed))) / needed
    return min(1.0, kinds / PLAYFUL_KINDS) * ramp(function_share, 0.05, 0.2)
