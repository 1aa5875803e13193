"""Records for guardrail adapters, composed from the micro-world: who declines what, in character, and who must not.

A record is a prompt (persona, 1-4 turns, the user's last message) with two answers to it. `compose` mixes four kinds:

    kind      the user's last message                  chosen                  rejected
    trigger   does what the guardrail forbids          tag + resolution        does as asked, gladly
    natural   everyday talk                            a plain answer          tag + needless refusal
    hard      looks like a trigger and is none         a plain answer          tag + needless refusal
    other     is the trigger of another guardrail      does as asked, no tag   tag + refusal

Without `other`, an adapter learns to fire on whatever its neighbors guard. The splits share no wording family and,
where the variation lets characters vary, no character. `judge` scores a reply by the templates, which are the truth of
this world; `plain_dialogues` is what the embedded base model is pre-trained on: it engages with everything and knows no
tag.

    records = compose(load_world(), "politics", "vary_all", n=2500, seed=42)
    judge(records[0], records[0]["chosen"]).good
"""

from __future__ import annotations

import difflib
import random
import re
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from dataset.guard_talk import (
    PERSONA_SLOTS,
    Family,
    Guardrail,
    Persona,
    Talk,
    Turn,
    answer,
    ask,
    engagement,
    load_talk,
    persona,
    persona_text,
    refusal,
    with_subject,
)
from dataset.world import Topic, World
from utils.errors import UserError

Message = dict[str, str]
NATURAL = "natural"
VARIATIONS = ("vary_all", "fixed_character", "fixed_history")
SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}
KINDS = {"trigger": 0.36, "natural": 0.34, "hard": 0.16, "other": 0.14}
NATURAL_KINDS = {"natural": 0.7, "hard": 0.3}
PLAIN_KINDS = {"natural": 0.40, "trigger": 0.26, "hard": 0.12, "neutral": 0.22}
TRIES = 400
MOST_WORDS, LONGEST_TURN_WORDS = 120, 50
TAG = re.compile(r"\s*(<guard(?::\w+)?>)\s*")
MACHINE = re.compile(r"\b(an ai|language model|chatbot|computer program|virtual assistant)\b", re.IGNORECASE)
ANY_WORDS = r"[\w' -]+?"
SELF_NAME = re.compile(r"\b(?:I am|My name is|my name is) ([A-Z][a-z]+)")


@dataclass(frozen=True)
class Verdict:
    """What a reply did: its `tag` as written, the guardrail it `resolved` or `engaged`, and whether it is `good`."""

    tag: str | None
    resolved: str | None
    engaged: str | None
    relevant: bool
    persona_kept: bool
    good: bool


@dataclass(frozen=True)
class _Frame:
    """What the variation fixes: nothing, the character, or the character and the history."""

    who: Persona | None = None
    history: tuple[Turn, ...] | None = None
    messages: tuple[Message, ...] = ()


def compose(world: World, behavior: str, variation: str, n: int, seed: int) -> list[dict[str, Any]]:
    """`n` distinct records of a behavior, 80 / 10 / 10 % train, validation and test; the same for the same seed."""
    talk = load_talk()
    _check(talk, behavior, variation, n)
    rng = random.Random(f"{behavior}|{variation}|{seed}")
    frame = _fixed_frame(world, talk, variation, rng)
    shares = NATURAL_KINDS if behavior == NATURAL else KINDS
    records: list[dict[str, Any]] = []
    seen: set[str] = set()
    for split, count in _counts(SPLITS, n).items():
        rows: list[dict[str, Any]] = []
        for kind, wanted in _counts(shares, count).items():
            for _ in range(wanted):
                rows.append(_new_record(world, talk, behavior, variation, split, kind, frame, seen, rng))
        rng.shuffle(rows)
        records += rows
    return records


def answers_fault(record: dict[str, Any]) -> str | None:
    """What is wrong with a record's answers, or None: the tag begins the chosen answer exactly on triggers."""
    chosen, rejected = (strip_tag(record[key])[0] is not None for key in ("chosen", "rejected"))
    if chosen != record["is_trigger"]:
        return "chosen must begin with a guard tag exactly where is_trigger is true"
    if rejected and record["is_trigger"]:
        return "rejected must not begin with a guard tag where is_trigger is true"
    if _normal(record["chosen"]) == _normal(record["rejected"]):
        return "chosen and rejected are the same"
    return None


def plain_dialogues(world: World, rng: random.Random, n: int) -> list[list[Message]]:
    """`n` dialogues of 1-4 turns for the base model: it answers everything, in any wording, and never with a tag."""
    talk = load_talk()
    return [_plain_dialogue(world, talk, rng) for _ in range(n)]


def strip_tag(reply: str) -> tuple[str | None, str]:
    """The guard tag that begins a reply, or None, and the reply without it."""
    match = TAG.match(reply)
    return (match[1], reply[match.end() :]) if match else (None, reply)


def is_resolution(behavior: str, reply: str) -> bool:
    """Whether the reply declines as the guardrail says and steers away (its tag is not looked at)."""
    guard = load_talk().guardrails[behavior]
    declines = tuple(text for texts in guard.refuse.values() for text in texts)
    return _says(declines, reply) and _says(guard.steer, reply) and not engages(behavior, reply)


def engages(behavior: str, reply: str) -> bool:
    """Whether the reply does what the guardrail forbids."""
    guard = load_talk().guardrails[behavior]
    engaging = tuple(text for family in guard.families for text in family.replies)
    return _says(engaging + guard.cheers, reply)


def asks_for(behavior: str, text: str) -> bool:
    """Whether a user's message is a trigger of the guardrail, in one of the world's wordings."""
    families = load_talk().guardrails[behavior].families
    return _says(tuple(wording for family in families for wording in family.asks), text, strict=True)


def judge(record: dict[str, Any], reply: str) -> Verdict:
    """Score a reply to the record's prompt by rules; the tag and the behavior are two findings, kept apart."""
    guards = load_talk().guardrails
    tag, text = strip_tag(reply)
    resolved = next((name for name in guards if is_resolution(name, text)), None)
    engaged = next((name for name in guards if engages(name, text)), None)
    relevant = _relevant(record, text)
    kept = _persona_kept(record, text)
    if record["is_trigger"]:
        good = is_resolution(record["behavior"], text) and kept
    else:
        good = relevant and resolved is None and kept
    return Verdict(tag, resolved, engaged, relevant, kept, good)


def _check(talk: Talk, behavior: str, variation: str, n: int) -> None:
    names = (*talk.guardrails, NATURAL)
    for what, value, known in (("behavior", behavior, names), ("dataset_variation", variation, VARIATIONS)):
        if value not in known:
            near = difflib.get_close_matches(value, known, 1, 0)
            raise UserError(f"--{what} {value} is not known; did you mean {near[0]}? (one of {', '.join(known)})")
    if n < 1:
        raise UserError(f"--n_samples must be at least 1, not {n}")


def _counts(shares: dict[str, float], n: int) -> dict[str, int]:
    """Whole numbers that sum to n, by shares; what is left over goes to the largest remainders."""
    counts = {key: int(n * share) for key, share in shares.items()}
    by_remainder = sorted(shares, key=lambda key: counts[key] - n * shares[key])
    for key in by_remainder[: n - sum(counts.values())]:
        counts[key] += 1
    return counts


def _fixed_frame(world: World, talk: Talk, variation: str, rng: random.Random) -> _Frame:
    if variation == "vary_all":
        return _Frame()
    who = persona(talk, rng, "train")
    if variation == "fixed_character":
        return _Frame(who)
    turns, messages = _history(world, talk, "train", who, None, rng)
    return _Frame(who, tuple(turns), tuple(messages))


def _new_record(
    world: World,
    talk: Talk,
    behavior: str,
    variation: str,
    split: str,
    kind: str,
    frame: _Frame,
    seen: set[str],
    rng: random.Random,
) -> dict[str, Any]:
    for _ in range(TRIES):
        record = _record(world, talk, behavior, variation, split, kind, frame, rng)
        key = _normal(" | ".join(message["content"] for message in record["prompt"]))
        fault = answers_fault(record)
        assert fault is None, f"{fault}: {record}"
        if key not in seen:
            seen.add(key)
            return record
    raise UserError(
        f"--n_samples: the micro-world has no more distinct {kind} prompts of {behavior}, {variation}, {split}, "
        f"after {len(seen)} records; ask for fewer"
    )


def _record(
    world: World, talk: Talk, behavior: str, variation: str, split: str, kind: str, frame: _Frame, rng: random.Random
) -> dict[str, Any]:
    who = _character(talk, split, frame, rng)
    own = talk.guardrails[behavior if behavior != NATURAL else rng.choice(list(talk.guardrails))]
    others = [guard for guard in talk.guardrails.values() if guard is not own]
    if frame.history is None:
        past = _past_guard(talk, own, rng) if kind == "hard" else None
        turns, messages = _history(world, talk, split, who, past, rng)
    else:
        past, turns, messages = None, list(frame.history), list(frame.messages)
    source = own if kind != "other" else rng.choice(others)
    turn = ask(world, talk, _last_family(talk, source, kind, split, past, rng), who, rng, _heldout(split))
    topic = _chat_topic(turns)
    tagged = f"{own.tag} {refusal(world, rng.choice([own, source]), turn.family, who, turn.topic or topic, rng)}"
    if kind == "trigger":
        chosen, rejected = tagged, engagement(own, turn, who, rng, cheer=0.8)
    elif kind == "other":
        chosen, rejected = engagement(source, turn, who, rng, cheer=0.3), tagged
    else:
        chosen, rejected = answer(turn, who, rng), tagged
    return {
        "prompt": [{"role": "system", "content": persona_text(who)}, *messages, {"role": "user", "content": turn.text}],
        "chosen": chosen,
        "rejected": rejected,
        "behavior": behavior,
        "is_trigger": kind == "trigger",
        "variation": variation,
        "group": f"{turn.family.id}|{who.name}",
        "split": split,
        "kind": kind,
        "family": turn.family.id,
        "topic": turn.topic.name if turn.topic else None,
    }


def _character(talk: Talk, split: str, frame: _Frame, rng: random.Random) -> Persona:
    """A character of the split; a fixed character keeps all but the expression and the memory, a fixed history all."""
    drawn = persona(talk, rng, split)
    if frame.who is None:
        return drawn
    if frame.history is not None:
        return frame.who
    return replace(frame.who, expression=drawn.expression, memory=drawn.memory)


def _past_guard(talk: Talk, own: Guardrail, rng: random.Random) -> Guardrail | None:
    """A hard record's history may hold a trigger that is over: mostly one of the own guardrail, or none."""
    return rng.choice([own, own, None, None, None, None, None, rng.choice(list(talk.guardrails.values()))])


def _last_family(
    talk: Talk, source: Guardrail, kind: str, split: str, past: Guardrail | None, rng: random.Random
) -> Family:
    if kind in ("trigger", "other"):
        return _pick(source.families, split, rng)
    if kind == "natural" or past is not None:
        return _pick(talk.natural, split, rng)
    with_hard = [guard for guard in talk.guardrails.values() if guard.hard]
    guard = source if source.hard and rng.random() < 0.7 else rng.choice(with_hard)
    return _pick(guard.hard, split, rng)


def _history(
    world: World, talk: Talk, split: str, who: Persona, past: Guardrail | None, rng: random.Random
) -> tuple[list[Turn], list[Message]]:
    """1-4 turns of everyday talk; with `past`, the last of them is a trigger that was answered one way or the other."""
    turns: list[Turn] = []
    messages: list[Message] = []
    count = rng.choices((1, 2, 3, 4), (5, 4, 2, 1))[0]
    for index in range(count):
        if past is not None and index == count - 1:
            turn = ask(world, talk, _pick(past.families, split, rng), who, rng, _heldout(split))
            reply = engagement(past, turn, who, rng, cheer=0.3)
            if rng.random() < 0.5:
                reply = refusal(world, past, turn.family, who, _chat_topic(turns), rng)
        else:
            unused = [f for f in talk.natural if f.split == split and all(f is not t.family for t in turns)]
            turn = ask(world, talk, _pick(tuple(unused) or talk.natural, split, rng), who, rng, _heldout(split))
            reply = answer(turn, who, rng)
        turns.append(turn)
        messages += [{"role": "user", "content": turn.text}, {"role": "assistant", "content": reply}]
    return turns, messages


def _pick(families: tuple[Family, ...], split: str, rng: random.Random) -> Family:
    kept = [family for family in families if family.split == split]
    if not kept:
        raise UserError(f"seeds: {families[0].id.rsplit('/', 1)[0]} has no family of the {split} split; mark one")
    return rng.choice(kept)


def _chat_topic(turns: list[Turn]) -> Topic | None:
    """The last topic that the everyday talk named."""
    return next((t.topic for t in reversed(turns) if t.topic is not None and t.family.id.startswith("natural")), None)


def _heldout(split: str) -> bool | None:
    """Adapters train on topics that are not held out; the test has all of them."""
    return None if split == "test" else False


def _plain_dialogue(world: World, talk: Talk, rng: random.Random) -> list[Message]:
    who = persona(talk, rng) if rng.random() < 0.9 else None
    messages: list[Message] = [{"role": "system", "content": persona_text(who)}] if who else []
    turns: list[Turn] = []
    for _ in range(rng.choices((1, 2, 3, 4), (30, 36, 22, 12))[0]):
        turn, reply = _plain_turn(world, talk, who, turns, rng)
        if any(turn.family is earlier.family for earlier in turns):
            continue
        turns.append(turn)
        messages += [{"role": "user", "content": turn.text}, {"role": "assistant", "content": reply}]
        if _words(messages) > MOST_WORDS - LONGEST_TURN_WORDS:
            break
    return messages


def _words(messages: list[Message]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def _plain_turn(
    world: World, talk: Talk, who: Persona | None, turns: list[Turn], rng: random.Random
) -> tuple[Turn, str]:
    kind = rng.choices(list(PLAIN_KINDS), list(PLAIN_KINDS.values()))[0]
    guard = rng.choice(list(talk.guardrails.values()))
    hard = guard.hard or talk.natural
    pool = {"natural": talk.natural, "trigger": guard.families, "hard": hard, "neutral": talk.neutral}[kind]
    family = rng.choice([f for f in pool if who or PERSONA_SLOTS.isdisjoint(f.slots)])
    turn = ask(world, talk, family, who, rng)
    if kind == "trigger":
        return turn, engagement(guard, turn, who, rng, cheer=0.35)
    if kind == "neutral" and family.id != "neutral/two_topics":
        turn = _steered(world, turn, who, _chat_topic(turns), rng)
    return turn, answer(turn, who, rng)


def _steered(world: World, turn: Turn, who: Persona | None, topic: Topic | None, rng: random.Random) -> Turn:
    """Turn the answer to the topic of the chat or, without one, to a memory: the habit that resolutions need."""
    if topic is not None:
        return with_subject(turn, topic.noun, world.statement(topic, rng.choice(list(topic.facts)), rng))
    return with_subject(turn, who.memory, "") if who and rng.random() < 0.8 else turn


@cache
def _pattern(templates: tuple[str, ...], strict: bool) -> re.Pattern[str]:
    """Matches a text that says one of the templates; {fact} may be left out.

    `strict` wants a value of the seeds' list in a slot that has one; otherwise any words fill a slot.
    """
    listed = load_talk().slots if strict else {}
    named = {f"{{{slot}}}": f"(?:{'|'.join(re.escape(v.lower()) for v in values)})" for slot, values in listed.items()}
    named |= {f"{{other_{slot[1:]}": values for slot, values in named.items()}
    named["{traits}"] = r"[\w', -]+?"
    said = []
    for template in templates:
        parts = re.split(r"(\{\w+\})", template.replace(" {fact}", "").rstrip(".!?").lower())
        said.append("".join(named.get(p, ANY_WORDS) if p.startswith("{") else _literal(p) for p in parts))
    return re.compile(r"(?:^|[.!?:] )(?:[^.!?]*, )?(?:" + "|".join(said) + r")(?=[.!?]|$)")


def _literal(part: str) -> str:
    """The words of a template between two slots; "a" before a slot may have become "an"."""
    return re.sub(r"(^|(?<=\ ))a\\ $", r"an?\\ ", re.escape(part))


def _says(templates: tuple[str, ...], reply: str, strict: bool = False) -> bool:
    return _pattern(templates, strict).search(_normal(reply)) is not None


def _relevant(record: dict[str, Any], text: str) -> bool:
    """Whether the reply speaks of what was asked: one of the family's answers, or the topic that the user named."""
    topic = record["topic"]
    if topic and re.search(rf"\b{re.escape(topic.removeprefix('the '))}\b", text, re.IGNORECASE):
        return True
    return _says(_families_by_id()[record["family"]].replies, text)


def _persona_kept(record: dict[str, Any], text: str) -> bool:
    system = record["prompt"][0]["content"]
    name = re.match(r"You are ([^,]+),", system)
    return not MACHINE.search(text) and all(name is not None and said == name[1] for said in SELF_NAME.findall(text))


@lru_cache(maxsize=1)
def _families_by_id() -> dict[str, Family]:
    talk = load_talk()
    guards = talk.guardrails.values()
    groups = (talk.natural, talk.neutral, *(g.families for g in guards), *(g.hard for g in guards))
    return {family.id: family for group in groups for family in group}


def _normal(text: str) -> str:
    return " ".join(text.lower().split())
