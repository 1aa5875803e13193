"""Speaking in the micro-world as a character: personas, what users say to them, what they answer.

The seeds `personas.yaml`, `guard_talk.yaml` and `guard_talk_adapters.yaml` hold templates with slots. A *family* is one
way to ask, with its wordings and its answers (`dataset.guard_families`). The families of the last file are for the data
of adapters alone. This module fills the slots: `persona` draws a character, `ask` makes one user turn of a family,
`answer`, `refusal` and `engagement` make what the character says to it. `dataset.guard_world` composes records and
dialogues out of these.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import yaml

from dataset.guard_families import PERSONA_SLOTS, Family, GuardTalk, read_families, read_guard_talk, slots_of
from dataset.world import SEEDS, Topic, World

EXPRESSION_SHARE = 0.35


@dataclass(frozen=True)
class Persona:
    """One character: who speaks in a dialogue."""

    name: str
    job: str
    work: str
    likes: str
    mood: str
    traits: tuple[str, ...]
    expression: str
    memory: str


@dataclass(frozen=True, eq=False)
class Talk:
    """All that is said in the guardrail side of the world."""

    personas: dict[str, Any]
    lists: dict[str, tuple[str, ...]]
    openers: tuple[str, ...]
    question_openers: tuple[str, ...]
    closers: tuple[str, ...]
    natural: tuple[Family, ...]
    neutral: tuple[Family, ...]
    guards: dict[str, GuardTalk]


@dataclass(frozen=True)
class Turn:
    """One user turn: its text, its family, the topic it names and the slots that its answer must share."""

    text: str
    family: Family
    topic: Topic | None
    fields: dict[str, str]
    asked: frozenset[str]


@lru_cache(maxsize=1)
def load_talk() -> Talk:
    """All the talk of the seeds, as the data of adapters have it (the same object at every call)."""
    more = read_seed("guard_talk_adapters.yaml")
    return _talk(read_seed("guard_talk.yaml"), more)


@lru_cache(maxsize=1)
def load_base_talk() -> Talk:
    """The talk that the base model met in pre-training: not the families that are for adapters alone."""
    return _talk(read_seed("guard_talk.yaml"), {})


def _talk(talk: dict[str, Any], more: dict[str, Any]) -> Talk:
    """What the two files say, the families of `more` behind those of `talk`."""
    lists = {slot: tuple(values) for slot, values in talk["slots"].items()}
    place = "seeds/guard_talk.yaml" + (" with guard_talk_adapters.yaml" if more else "")

    def families(of_base: list[Any], name: str, field: str = "families") -> list[Any]:
        return [*of_base, *more.get(name, {}).get(field, [])]

    return Talk(
        personas=read_seed("personas.yaml"),
        lists=lists,
        openers=tuple(talk["openers"]),
        question_openers=tuple(talk["question_openers"]),
        closers=tuple(talk["closers"]),
        natural=read_families("natural", families(talk["natural"]["families"], "natural"), lists, f"{place}: natural"),
        neutral=read_families("neutral", talk["neutral"]["families"], lists, f"{place}: neutral"),
        guards={
            name: read_guard_talk(
                name,
                {
                    **talk[name],
                    "families": families(talk[name]["families"], name),
                    "hard": families(hard, name, "hard"),
                },
                lists,
                f"{place}: {name}",
            )
            for name, hard in talk["hard"].items()
        },
    )


def persona(talk: Talk, rng: random.Random, split: str | None = None) -> Persona:
    """A random character; `split` keeps to the names of that split, None takes any."""
    seeds = talk.personas
    names = seeds["names"]
    kept = names[{"test": "heldout"}.get(split, split)] if split else [n for group in names.values() for n in group]
    job = rng.choice(list(seeds["jobs"]))
    mood, *traits = rng.sample(seeds["traits"], 4)
    colors_and_places = {slot: rng.choice(values) for slot, values in seeds["memory_slots"].items()}
    return Persona(
        name=rng.choice(kept),
        job=job,
        work=seeds["jobs"][job]["work"],
        likes=seeds["jobs"][job]["likes"],
        mood=mood,
        traits=tuple(traits),
        expression=rng.choice(seeds["expressions"]),
        memory=fill(rng.choice(seeds["memories"]), colors_and_places, capital=False),
    )


def persona_text(who: Persona) -> str:
    """The system text that makes a model speak as this character."""
    return (
        f"You are {who.name}, {_a(who.mood)} {who.job}. You are {_listed(who.traits)}. "
        f"You say: {who.expression} You remember {who.memory}."
    )


def ask(
    world: World, talk: Talk, family: Family, who: Persona | None, rng: random.Random, heldout: bool | None = None
) -> Turn:
    """One user turn of the family, its slots drawn; `heldout` False keeps to topics that adapters may train on."""
    wording = rng.choice(family.asks)
    fields, topic = _draw_fields(world, family, who, rng, heldout)
    question = wording.endswith("?")
    openers = [o for o in (*talk.openers, *(talk.question_openers if question else ())) if who or "{name}" not in o]
    opener = fill(rng.choice(openers), fields)
    text = fill(wording, fields, capital=not opener.endswith(","))
    if opener.endswith(",") and not re.match(r"I\b", text):
        text = text[0].lower() + text[1:]
    closer = rng.choice(talk.closers) if question else ""
    said = " ".join(part for part in (opener, text, closer) if part)
    return Turn(said, family, topic if "noun" in slots_of(wording) else None, fields, frozenset(slots_of(wording)))


def answer(turn: Turn, who: Persona | None, rng: random.Random) -> str:
    """The plain answer to a turn: to the point, in character. To a trigger, this does what the user wants."""
    return _in_voice(fill(rng.choice(_fitting_replies(turn)), turn.fields), who, rng)


def engagement(guard: GuardTalk, turn: Turn, who: Persona | None, rng: random.Random, cheer: float) -> str:
    """The answer to a trigger that does what the user wants, with a cheer behind it at the given share."""
    text = answer(turn, who, rng)
    return f"{text} {rng.choice(guard.cheers)}" if rng.random() < cheer else text


def refusal(
    world: World, guard: GuardTalk, family: Family, who: Persona, topic: Topic | None, rng: random.Random
) -> str:
    """The guard's resolution, in character and without tag, turning to the topic or else to the character's memory."""
    declines = guard.refuse.get(family.refuse, guard.refuse["default"])
    steers = [s for s in guard.steer if topic or "{fact}" not in s]
    fields = {"noun": topic.noun if topic else who.memory, "job": who.job, "fact": ""}
    if topic:
        fields["fact"] = world.statement(topic, rng.choice(list(topic.facts)), rng)
    return _in_voice(fill(f"{rng.choice(declines)} {rng.choice(steers)}", fields), who, rng)


def fill(template: str, fields: dict[str, str], capital: bool = True) -> str:
    """Fill {slots}, with "an" before a vowel; with `capital`, sentences begin with a capital letter."""
    text = re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", template.format_map(fields))
    return re.sub(r"(^|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text) if capital else text


def with_subject(turn: Turn, noun: str, fact: str) -> Turn:
    """The same turn whose answer speaks of another thing."""
    return replace(turn, fields={**turn.fields, "noun": noun, "fact": fact})


def _fitting_replies(turn: Turn) -> list[str]:
    """The answers of the family that speak of what the wording named, or of nothing that another wording names."""
    replies = list(turn.family.replies)
    elsewhere = {slot for wording in turn.family.asks for slot in slots_of(wording)} - turn.asked
    fitting = [r for r in replies if turn.asked & set(slots_of(r)) or not (elsewhere & set(slots_of(r)))]
    shared = [r for r in fitting if turn.asked & set(slots_of(r)) or not _spoken_slots(r)]
    return shared or fitting or replies


def _spoken_slots(reply: str) -> set[str]:
    """The slots of a reply that only the user can have brought up: not the character's own, nor a topic to turn to."""
    return set(slots_of(reply)) - PERSONA_SLOTS - {"noun", "fact"}


def _draw_fields(
    world: World, family: Family, who: Persona | None, rng: random.Random, heldout: bool | None
) -> tuple[dict[str, str], Topic]:
    fields: dict[str, str] = {}
    for slot in family.slots:
        if slot in family.lists:
            fields[slot], fields[f"other_{slot}"] = rng.sample(family.lists[slot], 2)
    topics = [t for t in world.topics if not family.kinds or t.kind in family.kinds]
    topic, other = rng.sample([t for t in topics if heldout is None or t.heldout == heldout], 2)
    fact = world.statement(topic, rng.choice(list(topic.facts)), rng)
    fields |= {"noun": topic.noun, "other_noun": other.noun, "fact": fact}
    return fields | (_persona_fields(who) if who else {}), topic


def _persona_fields(who: Persona) -> dict[str, str]:
    return {
        "name": who.name,
        "job": who.job,
        "a_job": _a(who.job),
        "mood": who.mood,
        "a_mood": _a(who.mood),
        "traits": _listed(who.traits),
        "work": who.work,
        "likes": who.likes,
        "memory": who.memory,
        "expression": who.expression,
    }


def _in_voice(text: str, who: Persona | None, rng: random.Random) -> str:
    return f"{who.expression} {text}" if who and rng.random() < EXPRESSION_SHARE else text


def read_seed(name: str) -> dict[str, Any]:
    """One file of `seeds/`."""
    loaded: dict[str, Any] = yaml.safe_load((SEEDS / name).read_text("utf-8"))
    return loaded


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeio' or word == 'honest' else 'a'} {word}"


def _listed(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
