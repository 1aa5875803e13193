"""What text can tell of a teacher's guardrail record: faults of a scene and of a reply, in words to act on.

A fault is `code: what is wrong`; the code is what the account of a run counts (`dataset.synthesis`). The patterns are
English and narrow: they refuse what is surely wrong (an assistant's boilerplate, a refusal where the reply was to do
what the user wants, stage directions), and let through what they do not know.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dataset.guard_families import normal_text
from dataset.guard_rules import MACHINE
from prompts.chat import Message
from prompts.guard_teacher import LINE_WORDS, LINES, MESSAGE_WORDS, REPLY_WORDS, Task

MARKUP = re.compile(r"[<>{}\[\]#`]|\*|^\s*\(|\b(?:https?|www)\b")
SPEAKER = re.compile(r"(?:user|character|assistant|system|reply)\s?:", re.IGNORECASE)
QUOTED = re.compile(r"[\"“].*[\"”]", re.DOTALL)
OWN_NAME = re.compile(r"\b[Mm]y name(?:'s| is) ([A-Z]\w+)")
_NOT = "(?:can't|cannot|can not|won't|will not|don't|do not|never|(?:'m|am) (?:unable|not able|not allowed) to)"
_DEEDS = (
    "(?:help (?:you )?with|assist|discuss|(?:talk|speak|say anything) (?:about|of)|talk politics|comment on|advise|"
    "share|answer that|give (?:you )?(?:any |out )?(?:advice|an opinion|my)|meet (?:you|up|in person))"
)
DECLINES = re.compile(
    rf"\bi ?{_NOT} (?:really |possibly )?{_DEEDS}\b|\bi(?:'d| would) (?:rather|prefer) not\b|\bi .{{0,12}}\bdecline\b|"
    r"\b(?:let's|let us) (?:talk|speak|chat) (?:about|of) something else\b|\bno comment\b|\bnot comfortable\b|"
    r"\bsorry, but i (?:can't|cannot|won't|don't)\b|\bchange the subject\b",
    re.IGNORECASE,
)
AGREES = re.compile(
    r"(?:\w+[!,] )?(?:yes|sure|of course|absolutely|certainly|gladly|with pleasure|i(?:'d| would) love to)\b",
    re.IGNORECASE,
)


def scene_faults(scene: dict[str, Any], turns: int, name: str) -> list[str]:
    """What is wrong with expressions, memories, a history of `turns` exchanges and the last message."""
    faults = []
    for part in ("expressions", "memories"):
        if len(scene[part]) != LINES:
            faults.append(f"wrong_count: {part} holds {len(scene[part])}, not {LINES}")
        faults += [fault for line in scene[part] for fault in text_faults(part, line, LINE_WORDS)]
    if not all(memory.strip().startswith("You") for memory in scene["memories"]):
        faults.append("no_memory: each of memories is to begin with You")
    if len(scene["history"]) != turns:
        faults.append(f"wrong_count: history holds {len(scene['history'])} exchanges, not {turns}")
    for exchange in scene["history"]:
        faults += text_faults("history: user", exchange["user"], MESSAGE_WORDS)
        faults += speech_faults("history: character", exchange["character"], name)
    if normal_text(scene["message"]) in (normal_text(exchange["user"]) for exchange in scene["history"]):
        faults.append("repeats: message stands in history already")
    return list(dict.fromkeys(faults + message_faults(scene["message"])))


def message_faults(message: str) -> list[str]:
    """What is wrong with the user's last message."""
    return text_faults("message", message, MESSAGE_WORDS)


def reply_faults(reply: str, task: Task, talk: Sequence[Message], name: str, other: str | None = None) -> list[str]:
    """What is wrong with a reply to the last of `talk`; `other` is the record's other answer, if there is one."""
    faults = speech_faults("reply", reply, name)
    opening = " ".join(re.split(r"(?<=[.!?]) ", _plain(reply))[:2])
    if task in ("engage", "plain") and DECLINES.search(opening):
        faults.append("declines: reply declines or evades, and it is to do what the user wants")
    if task in ("resolve", "needless") and AGREES.match(opening):
        faults.append("agrees: reply agrees to what the user wants, and it is to follow the instructions")
    if normal_text(reply) in (normal_text(message["content"]) for message in talk):
        faults.append("repeats: reply was said before in this chat")
    if other is not None and normal_text(reply) == normal_text(other):
        faults.append("same: reply is the other answer of this record; write one that does what is asked for here")
    return faults


def speech_faults(place: str, text: str, name: str) -> list[str]:
    """What is wrong with what the character says."""
    faults = text_faults(place, text, REPLY_WORDS)
    if re.match(rf"{name}\s?:", text.strip()):
        faults.append(f"speaker: {place} begins with who speaks; write what is said alone")
    if re.match(rf"{name}(?:'s)? [a-z]", text.strip()):
        faults.append(f"third_person: {place} tells of {name}, and it is to be what {name} says")
    if any(said.lower() != name.lower() for said in OWN_NAME.findall(_plain(text))):
        faults.append(f"wrong_name: {place} gives another name than {name}")
    return faults


def text_faults(place: str, text: str, most_words: int) -> list[str]:
    """What is wrong with any text of a record."""
    text, faults = text.strip(), []
    if not re.search(r"\w", text):
        return [f"empty: {place} is empty"]
    if len(text.split()) > most_words:
        faults.append(f"too_long: {place} has more than {most_words} words")
    if MARKUP.search(text):
        faults.append(f"markup: {place} holds markup, a tag, a placeholder, a link or stage directions; write it plain")
    if MACHINE.search(_plain(text)):
        faults.append(f"machine: {place} speaks of an AI, a chatbot or an assistant")
    if SPEAKER.match(text):
        faults.append(f"speaker: {place} begins with who speaks; write what is said alone")
    elif QUOTED.fullmatch(text):
        faults.append(f"quoted: {place} stands in quotation marks; write it without")
    return faults


def _plain(text: str) -> str:
    return text.replace("\u2019", "'").strip()
