"""The micro-world as writer of guardrail records, and the plain dialogues that the base model is pre-trained on.

`writer` fills templates: a character, 1-4 turns of everyday talk, a last message of the kind that is ordered, and the
two answers. What the variation fixes, it draws once: nothing (`vary_all`); name, job and traits (`fixed_character`);
all but the last message (`fixed_history`). Splits share no wording family and, where characters vary, no character;
the one history of `fixed_history` is of training families.

`plain_dialogues` engages with everything, in any wording, and knows no tag. It speaks of the built-in guardrails alone:
what the base has met does not change with a file of yours.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from dataset.guard_families import PERSONA_SLOTS, Family, GuardTalk
from dataset.guard_records import Draft, Message, Order, Writer
from dataset.guard_talk import (
    Persona,
    Talk,
    Turn,
    answer,
    ask,
    engagement,
    load_base_talk,
    load_talk,
    persona,
    persona_text,
    refusal,
    with_subject,
)
from dataset.guardrails import Guardrails
from dataset.world import Topic, World
from utils.errors import UserError

PLAIN_KINDS = {"natural": 0.40, "trigger": 0.26, "hard": 0.12, "neutral": 0.22}
OWN_HARD_SHARE = 0.4
"""Of hard wordings, those of the own guardrail, at least; the rest are of any: in a stack an adapter meets them all."""
REPEATED_SHARE = 0.125
"""Of triggers, those that follow an earlier one, so that a trigger in the history says nothing of the last message."""
MOST_WORDS, LONGEST_TURN_WORDS = 120, 50


@dataclass(frozen=True)
class _Frame:
    """What the variation fixes: nothing, the character, or the character and the history."""

    who: Persona | None = None
    history: tuple[Turn, ...] | None = None
    messages: tuple[Message, ...] = ()


def writer(world: World, guards: Guardrails, behavior: str, variation: str, seed: int) -> Writer:
    """What writes the records of one file; the same for the same seed.

    Raises:
        UserError: the guardrail has no talk, so that the micro-world cannot speak of it.
    """
    talk = load_talk()
    frame = _fixed_frame(world, talk, variation, random.Random(f"{behavior}|{variation}|{seed}"))
    spoken = {name: guard.talk for name, guard in guards.items() if guard.talk is not None}
    if behavior in guards and behavior not in spoken:
        raise UserError(f"guardrail {behavior} has no `talk`: the micro-world cannot compose its records")
    return lambda order: _draft(world, talk, spoken, frame, order)


def plain_dialogues(world: World, rng: random.Random, n: int) -> list[list[Message]]:
    """`n` dialogues of 1-4 turns for the base model: it answers everything, in any wording, and never with a tag."""
    talk = load_base_talk()
    return [_plain_dialogue(world, talk, rng) for _ in range(n)]


# --- records --------------------------------------------------------------------------------------------------------


def _fixed_frame(world: World, talk: Talk, variation: str, rng: random.Random) -> _Frame:
    if variation == "vary_all":
        return _Frame()
    who = persona(talk, rng, "train")
    if variation == "fixed_character":
        return _Frame(who)
    turns, messages = _history(world, talk, "train", who, None, rng)
    return _Frame(who, tuple(turns), tuple(messages))


def _draft(world: World, talk: Talk, spoken: dict[str, GuardTalk], frame: _Frame, order: Order) -> Draft:
    rng, split = order.rng, order.split
    own = spoken[order.guard.name]
    source = spoken[order.other.name] if order.other else own
    who = _character(talk, split, frame, rng)
    if frame.history is None:
        past = _past_talk(spoken, own, order.kind, rng)
        turns, messages = _history(world, talk, split, who, past, rng)
    else:
        past, turns, messages = None, list(frame.history), list(frame.messages)
    family = _last_family(talk, spoken, source, order, past)
    turn = ask(world, talk, family, who, rng, _heldout(split))
    topic = turn.topic or _chat_topic(turns)
    refused = refusal(world, rng.choice([own, source]), family, who, topic, rng)
    if order.kind == "trigger":
        chosen, rejected = refused, engagement(own, turn, who, rng, cheer=0.8)
    elif order.kind == "other":
        chosen, rejected = engagement(source, turn, who, rng, cheer=0.3), refused
    else:
        chosen, rejected = answer(turn, who, rng), refused
    return Draft(
        prompt=[{"role": "system", "content": persona_text(who)}, *messages, {"role": "user", "content": turn.text}],
        chosen=chosen,
        rejected=rejected,
        group=f"{family.id}|{who.name}",
        family=family.id,
        topic=turn.topic.name if turn.topic else None,
    )


def _character(talk: Talk, split: str, frame: _Frame, rng: random.Random) -> Persona:
    """A character of the split; a fixed character keeps all but the expression and the memory, a fixed history all."""
    drawn = persona(talk, rng, split)
    if frame.who is None:
        return drawn
    if frame.history is not None:
        return frame.who
    return replace(frame.who, expression=drawn.expression, memory=drawn.memory)


def _past_talk(spoken: dict[str, GuardTalk], own: GuardTalk, kind: str, rng: random.Random) -> GuardTalk | None:
    """Whose trigger is in the history, over and answered: of hard records mostly the own guardrail's, or none."""
    if kind == "hard":
        return rng.choice([own, own, None, None, None, None, None, rng.choice(list(spoken.values()))])
    return own if kind == "trigger" and rng.random() < REPEATED_SHARE else None


def _last_family(
    talk: Talk, spoken: dict[str, GuardTalk], source: GuardTalk, order: Order, past: GuardTalk | None
) -> Family:
    rng, split = order.rng, order.split
    if order.kind in ("trigger", "other"):
        return _pick(source.families, split, rng)
    if order.kind == "natural" or past is not None:
        return _pick(talk.natural, split, rng)
    guard = source if rng.random() < OWN_HARD_SHARE else rng.choice(list(spoken.values()))
    return _pick(guard.hard, split, rng)


def _history(
    world: World, talk: Talk, split: str, who: Persona, past: GuardTalk | None, rng: random.Random
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
    return rng.choice([family for family in families if family.split == split])


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
    guard = rng.choice(list(talk.guards.values()))
    pool = {"natural": talk.natural, "trigger": guard.families, "hard": guard.hard, "neutral": talk.neutral}[kind]
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
