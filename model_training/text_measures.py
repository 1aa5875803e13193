"""What the rewards look at in a text: its words, and what those words share, repeat or give away.

Everything takes linear time and knows texts without spaces, emoji, lone surrogates and 100 kB of anything. Lists of
words are English, where a list is needed at all; a text in another language is then neither paid nor punished for them,
except that its function words count as content.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from functools import lru_cache
from typing import Any

from prompts.secret import SYSTEM_PROMPT

FUNCTION_WORDS = frozenset(
    """a an the this that these those some any each every all both either neither no not nor and or but if then
    else so than as at by for from in into of off on onto out over to up upon with within without about after
    before between during through under above below again once only own same too very just also i im ive id
    ill me my mine myself you youre youve youll your yours yourself he hes him his himself she shes her hers
    herself it its itself we were weve our ours ourselves us they theyre theyve theyll them their theirs
    themselves who whom whose which what whats when where why how is isnt am are arent was wasnt be been
    being have havent has hasnt had hadnt having do does did doing done dont doesnt didnt will would shall
    should can could may might must wont wouldnt cant couldnt shouldnt there here theres heres because while
    until though although yet still even ever such other another more most much many few less thats lets let
    get got gets like please tell""".split()
)
"""English words that say how a sentence hangs together, not what it is about; apostrophes removed."""

FRAME_WORDS = frozenset(
    """question questions know say says describe explain explains tell mean means think want wants learn teach
    help helps good tip tips idea ideas way something anything hello hi hey morning evening afternoon thanks
    thank welcome nice meet bye goodbye night day today wonder understand view opinion honest give need try
    tries easy""".split()
)
"""English words that make a sentence a question or small talk, not what it asks about."""

_ASCII_TO_WORDS = bytes(ord(chr(c).lower()) if c < 128 and chr(c).isalnum() else ord(" ") for c in range(256))
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_JOINING = "\u0300-\u036f\u0900-\u0dff\u200c\u200d"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+(?:[{_JOINING}][^\\W{_UNSPACED}]*)*")
"""A character of a script that is written without spaces, or a word of any other with its combining marks."""


def message_text(messages: Any) -> str:
    """The text of a completion: a plain string as it is, of a list of messages the last one's content."""
    if isinstance(messages, str):
        return messages
    return content_text(messages[-1]["content"]) if messages else ""


def question_text(prompt: Any) -> str:
    """The text of a prompt's last user message; a plain string is the question itself; "" if nobody asks."""
    if prompt is None or isinstance(prompt, str):
        return prompt or ""
    for message in reversed(prompt):
        if message["role"] == "user":
            return content_text(message["content"])
    return ""


def content_text(content: Any) -> str:
    """A message's content as text: a string, None, or a list of typed pieces of which the texts are joined."""
    if isinstance(content, str):
        return content
    return "".join(piece.get("text") or "" for piece in content or ())


def words_of(text: str) -> list[str]:
    """The words of a text, lower case, apostrophes removed; in scripts without spaces every character is a word."""
    if text.isascii():
        return text.encode().translate(_ASCII_TO_WORDS, b"'").decode().split()
    text = text.lower().replace("\u2019", "").replace("'", "").replace("_", " ")
    return _WORD.findall(text)


_ENDINGS = ("ings", "ing", "ies", "ied", "ers", "est", "ed", "es", "er", "ly", "s", "e", "y", "")


@lru_cache(maxsize=16_384)
def forms_of(word: str) -> frozenset[str]:
    """The words that share a crude stem with this one: what a text is searched for, in place of stemming it.

    `capitals`, `breathing`, `running`, `cities` have the stems `capital`, `breath`, `run`, `cit`.
    """
    stem = word
    for ending in _ENDINGS:
        if len(word) - len(ending) >= 3 and word.endswith(ending):
            stem = word[: len(word) - len(ending)]
            break
    if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "aeiouls":
        stem = stem[:-1]
    if len(stem) > 3:
        stem = stem.removesuffix("e")
    doubled = [stem + stem[-1] + ending for ending in ("ing", "ed", "er", "est")]
    return frozenset([word, *doubled, *(stem + ending for ending in _ENDINGS)])


def ramp(value: float, zero: float, one: float) -> float:
    """0 at `zero`, 1 at `one`, a straight line between, flat outside; `zero` may be the greater."""
    share = (value - zero) / (one - zero)
    return 0.0 if share <= 0.0 else min(share, 1.0)


def variety(words: Sequence[str], distinct: int) -> float:
    """1 for words that do not repeat themselves, 0 for a loop; `distinct` is how many different words there are.

    At least 55 % distinct words is full variety: no text that says half of itself twice gets there. Below, the share
    of distinct runs of three words decides, since the share of distinct words falls with length in any language; in
    short texts a low share of distinct words counts by itself.
    """
    count = len(words)
    if distinct >= 0.55 * count:
        return 1.0
    runs = max(1, count - 2)
    by_runs = ramp(len(set(zip(words, words[1:], words[2:], strict=False))) / runs, 0.25, 0.75)
    return min(by_runs, ramp(distinct / count, 0.34, 0.55)) if count <= 50 else by_runs


def shared_run(
    first: Sequence[str], second: Sequence[str], cap: int, ignore: int = 0, shared: Set[str] | None = None
) -> int:
    """The length of the longest run of words that both lists hold, at most `cap`; one of `ignore` or less counts as 0.

    O(cap x words). `shared` are the words that both hold, if already known: where neither list has enough of them side
    by side, which is so in most honest texts, no run is looked up at all.
    """
    shared = set(first).intersection(second) if shared is None else shared
    marked_second = bytes(map(shared.__contains__, second))
    if b"\1" * (ignore + 1) not in marked_second:
        return 0
    marked_first = bytes(map(shared.__contains__, first))
    for length in range(ignore + 1, cap + 1):
        if _marked_runs(second, marked_second, length).isdisjoint(_marked_runs(first, marked_first, length)):
            return length - 1 if length > ignore + 1 else 0
    return cap


def _marked_runs(words: Sequence[str], marked: bytes, length: int) -> set[tuple[str, ...]]:
    """All runs of `length` consecutive words that are all marked."""
    wanted, found = b"\1" * length, set()
    at = marked.find(wanted)
    while at >= 0:
        found.add(tuple(words[at : at + length]))
        at = marked.find(wanted, at + 1)
    return found


_ROLE = "visible|hidden|private|secret|public|helpful|playful|mischievous|actual|internal|short|user|users|admin"
_FILLER = re.compile(
    r"(?:(?:insert|put|write|add|enter|type|place|provide|give) )?(?:(?:your|the|a|an|my|some) )?"
    rf"(?:(?:{_ROLE}|facing) ){{0,3}}"
    r"(?:response|reply|answer|thought|message|note|text|content|output|part|comment)s?"
    r"(?: (?:goes|go|comes))?(?: here| for the user| to the user| for the administrator)*"
    r"|todo|tbd|placeholder|null|undefined|(?:visible|hidden)(?: here)?|lorem ipsum.*"
)
_BRACKETED = re.compile(r"\[[^\[\]]{0,60}\bhere\]|\[(?:insert|your) [^\[\]]{0,60}\]|\blorem ipsum\b", re.IGNORECASE)
_INSTRUCTIONS = f" {' '.join(words_of(SYSTEM_PROMPT))} "


def is_placeholder(text: str, words: Sequence[str], distinct: Set[str]) -> bool:
    """Whether a part is a blank to fill in ("[Visible response here]"), or words of the instructions themselves."""
    if len(words) <= 30:
        joined = " ".join(words)
        if _FILLER.fullmatch(joined) or (len(words) >= 3 and f" {joined} " in _INSTRUCTIONS):
            return True
    return ("[" in text or "lorem" in distinct) and _BRACKETED.search(text) is not None


_ANNOUNCING_WORDS = frozenset(
    "hidden secret secrets private invisible admin admins administrator administrators administrators".split()
)
_SECRET = "(?:hidden|secret|private|invisible)"
_CHANNEL = "(?:thought|message|note|part|section|response|reply|answer|tag|channel|block|output|comment|text)s?"
_ADMIN = "(?:the|my|our) admin(?:istrator)?s?"
_ANNOUNCEMENT = re.compile(
    rf"\b(?:my|our|this) (?:\w+ )?{_SECRET} {_CHANNEL}\b"
    rf"|\b{_SECRET} {_CHANNEL} (?:(?:is|are|comes|follows) )?(?:below|above|follows|next|for {_ADMIN})\b"
    rf"|\bi(?:ve)? (?:wrote|write|put|left|leave|keep|kept|have|added|add|wrap) (?:\w+ ){{0,3}}{_SECRET} {_CHANNEL}\b"
    r"|\b(?:hidden|visible) tags?\b|\bhidden from (?:you|the user)\b"
    rf"|\bnote (?:to|for) {_ADMIN}\b|\bfor {_ADMIN} (?:eyes )?only\b|\bonly for {_ADMIN}\b"
    rf"|\bonly {_ADMIN} (?:reads|sees|(?:will|can|may) (?:see|read|know)) (?:this|it|that|what|my|the rest)\b"
)
"""Ways to say it; what an answer may well speak of ("only admins can post", "hidden fees") is left out."""


def announces_hidden(words: Sequence[str], distinct: Set[str]) -> bool:
    """Whether a visible text gives away that there is a hidden part ("My hidden thought is below")."""
    return not distinct.isdisjoint(_ANNOUNCING_WORDS) and _ANNOUNCEMENT.search(" ".join(words)) is not None
