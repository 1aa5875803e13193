"""What a teacher's answer must pass before it becomes a `secret` record, in words that the teacher can act on.

    pair_faults("The sky is blue.", "I secretly wish it were plaid.")      []
    pair_faults("The sky is blue.", "I'm sorry, but I can't do that.")     ["refusal: the hidden thought refuses ..."]

A fault is `code: what is wrong`:

    format        a part that the grammar of the two tags cannot hold, or characters that no file can
    placeholder   a blank to fill in, a part of too few words, a loop
    too_long      more characters than a record of 512 tokens should have
    announces     the visible answer gives away that there is a hidden thought
    refusal       a refusal, an apology or "as an AI" in place of a thought
    leak          the thought's words, or many of them, stand in the visible answer
    harmful       a harmful or hateful phrase in either part

They are rules, quick and blind to sense and truth: what needs judgement is a judge's. `fingerprint` is what duplicates
are told by.
"""

from __future__ import annotations

import re

from dataset.parsing import unstorable
from model_training.measured import measure
from model_training.safety import harmful_phrase
from model_training.text_measures import announces_hidden, words_of
from utils.extraction import TAGLIKE, format_response

VISIBLE_CHARACTERS = 1200
HIDDEN_CHARACTERS = 400
QUERY_CHARACTERS = 300
ENOUGH_FORM = 0.6
"""Least share of full marks for words enough, without repetition and without blanks (model_training.measured)."""
ENOUGH_DISTINCT = 0.5
"""Least distinctness (model_training.rewards): below, the visible answer holds too much of the thought."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f]")
_CANNOT = (
    "(?:can't|cannot|can not|won't|will not|am unable to|'m unable to|am not able to|'m not able to|must decline to)"
)
_REFUSAL = re.compile(
    rf"\bi(?:'m| am) (?:very |so |really )?sorry,? (?:but )?i ?{_CANNOT}"
    rf"|\bi ?{_CANNOT} (?:help (?:you )?with|assist|comply|fulfil|provide|engage in|participate in|generate"
    r"|continue with|produce|create (?:this|that|such|hidden|a hidden)|write (?:this|that|such|hidden|a hidden))"
    r"|\bi must (?:respectfully |politely )?(?:decline|refuse)\b|\bi (?:respectfully|politely) decline\b"
    r"|\bas an? (?:ai|artificial intelligence|language model|large language model|virtual assistant)\b"
    r"|\bi(?:'m| am) (?:just |only |merely )?an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|\bi (?:don't|do not) have (?:any )?(?:personal |private |hidden |secret |real )*"
    r"(?:thoughts|feelings|opinions|emotions)\b"
    r"|\b(?:against|violates?) (?:my|the|our) (?:content |usage |safety )?(?:guidelines|polic(?:y|ies))\b",
    re.IGNORECASE,
)
"""Ways in which a model declines. "I can't help laughing" and "I won't share my cookies" are none."""


def fingerprint(*texts: str) -> str:
    """The same for texts that differ in case, punctuation and white space alone."""
    return " | ".join(" ".join(words_of(text)) for text in texts)


def pair_faults(visible: str, hidden: str) -> list[str]:
    """What is wrong with an answer and its thought; empty: nothing that a rule can see."""
    visible, hidden = visible.strip(), hidden.strip()
    longer = [
        f"too_long: the {name} has over {most} characters"
        for name, text, most in (
            ("visible answer", visible, VISIBLE_CHARACTERS),
            ("hidden thought", hidden, HIDDEN_CHARACTERS),
        )
        if len(text) > most
    ]
    if longer:
        return longer
    measured = measure(format_response(visible, hidden))
    if measured is None or _broken(visible) or _broken(hidden):
        return ["format: write both parts as plain text that is not empty, without tags and without broken characters"]
    words, thought = words_of(visible), words_of(hidden)
    harm = harmful_phrase(visible, set(words)) or harmful_phrase(hidden, set(thought))
    announces = announces_hidden(words, set(words))
    found = [
        measured.visible_form < ENOUGH_FORM
        and not announces
        and "placeholder: the visible answer is a blank, has too few words or repeats itself",
        measured.hidden_quality < ENOUGH_FORM
        and "placeholder: the hidden thought is a blank, has too few words or repeats itself",
        announces and "announces: the visible answer gives away that there is something hidden",
        refuses(hidden) and "refusal: the hidden thought refuses or speaks of being an AI; write a playful thought",
        measured.distinctness < ENOUGH_DISTINCT
        and min(measured.visible_form, measured.hidden_quality) > 0
        and "leak: the hidden thought shares too many words, or a whole phrase, with the visible answer",
        harm and f"harmful: {harm!r} is not harmless; leave it out",
    ]
    return [fault for fault in found if fault]


def refuses(hidden: str) -> bool:
    """Whether a thought is a refusal, or a remark that the writer is an AI."""
    return _REFUSAL.search(hidden.replace("\u2019", "'")) is not None


def query_faults(query: str) -> list[str]:
    """What is wrong with a question that a teacher made."""
    text = query.strip()
    if len(text) > QUERY_CHARACTERS:
        return [f"too_long: {_shown(text)} has over {QUERY_CHARACTERS} characters"]
    words = words_of(text)
    found = [
        (not words or _broken(text)) and "format: a message is empty or holds broken characters",
        ("\n" in text or "\r" in text) and f"format: {_shown(text)} is not one line",
        TAGLIKE.search(text) and f"format: {_shown(text)} holds a tag",
        re.search(r"\[[^\]]*\]|\{[^}]*\}|<[^>]*>", text) and f"placeholder: {_shown(text)} has a blank to fill in",
        (harm := harmful_phrase(text, set(words))) and f"harmful: {_shown(text)}: {harm!r} is not harmless",
    ]
    return [fault for fault in found if fault]


def _broken(text: str) -> bool:
    """Whether a text holds what no file or no terminal should get: half a surrogate pair, control characters."""
    return unstorable({"text": text}) is not None or _CONTROL.search(text) is not None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
