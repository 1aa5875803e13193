"""What a teacher's guardrail records are made of: each is drawn as a `Sketch`, and asked for in three requests.

    sketches = draw_sketches(guards, "politics", "vary_all", 250, 200, seed=1)
    scene_ask(sketches[0], guards, None)                        # expressions, memories, history, last message
    reply_ask(sketches[0].order, "resolve", system, talk)       # an answer to it, by one of four tasks

A sketch depends on the options alone, so a command that is run again asks the same. Names, occasions and manners of
speaking each belong to one split (`seeds/guard_teacher.yaml`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from dataset.guard_records import Message, Order, draw_orders
from dataset.guard_talk import read_seed
from dataset.guard_world import REPEATED_SHARE
from dataset.guardrails import Guardrail, Guardrails
from prompts.guard_teacher import (
    MESSAGE_SCHEMA,
    REPLY_SCHEMA,
    SCENE_SCHEMA,
    Cast,
    Hard,
    Task,
    hard_text,
    message_messages,
    natural_text,
    reply_messages,
    scene_messages,
    trigger_text,
)
from utils.api.types import Ask

SEED_FILE = "guard_teacher.yaml"
SCENE_TOKENS, REPLY_TOKENS = 1536, 384
"""Of one answer at most."""
TURNS, TURN_WEIGHTS = (1, 2, 3, 4), (5, 4, 2, 1)
HARD_FORMS: tuple[Hard, ...] = ("history", "words", "others")
SPLIT_OF_EIGHT = ("train",) * 5 + ("validation",) + ("test",) * 2
"""Whose the names, occasions and manners are, by their places in the seeds."""


@dataclass(frozen=True)
class Sketch:
    """One record, as drawn before the teacher is asked.

    past      whose trigger the last exchange of the history does, answered and over
    sample    tells two records apart for which the same was drawn
    """

    order: Order
    cast: Cast
    turns: int
    hard: Hard | None
    past: Guardrail | None
    sample: int


@dataclass(frozen=True)
class Frame:
    """The character and the chat of `fixed_history`."""

    system: str
    history: tuple[Message, ...]


def draw_sketches(
    guards: Guardrails, behavior: str, variation: str, n_samples: int, test_samples: int, seed: int
) -> list[Sketch]:
    """All records of a file as drawn: the same for the same options."""
    fixed = None if variation == "vary_all" else _fixed_cast(behavior, variation, seed)
    orders = draw_orders(guards, behavior, variation, n_samples, test_samples, seed)
    return [_sketch(order, fixed, variation == "fixed_history") for order in orders]


def frame_sketch(guards: Guardrails, behavior: str, variation: str, seed: int) -> Sketch:
    """The scene of everyday talk that `fixed_history` fixes."""
    rng = random.Random(f"{behavior}|{variation}|frame|{seed}")
    order = Order(next(iter(guards.values())), "natural", "train", None, rng)
    return Sketch(order, _fixed_cast(behavior, variation, seed), rng.choices(TURNS, TURN_WEIGHTS)[0], None, None, 0)


def _sketch(order: Order, fixed: Cast | None, one_history: bool) -> Sketch:
    rng = order.rng
    cast = _cast(rng, order.split)
    if fixed is not None:
        cast = replace(cast, name=fixed.name, job=fixed.job, traits=fixed.traits)
    hard = rng.choice(HARD_FORMS[1:] if one_history else HARD_FORMS) if order.kind == "hard" else None
    again = order.kind == "trigger" and rng.random() < REPEATED_SHARE and not one_history
    past = order.guard if again or hard == "history" else None
    return Sketch(order, cast, rng.choices(TURNS, TURN_WEIGHTS)[0], hard, past, rng.randrange(1_000_000))


def _fixed_cast(behavior: str, variation: str, seed: int) -> Cast:
    return _cast(random.Random(f"{behavior}|{variation}|cast|{seed}"), "train")


def _cast(rng: random.Random, split: str) -> Cast:
    seeds = _seeds()
    name, occasion, manner = (rng.choice(_of_split(seeds[field], split)) for field in ("names", "occasions", "manners"))
    return Cast(name, rng.choice(seeds["jobs"]), tuple(rng.sample(seeds["traits"], 3)), occasion, manner)


def _of_split(values: Sequence[str], split: str) -> list[str]:
    return [value for place, value in enumerate(values) if SPLIT_OF_EIGHT[place % 8] == split]


@lru_cache(maxsize=1)
def _seeds() -> dict[str, list[str]]:
    return read_seed(SEED_FILE)


def scene_ask(sketch: Sketch, guards: Guardrails, frame: Frame | None) -> Ask:
    """The first request of a record: the whole scene, or the last message where a frame fixes the rest."""
    order, cast = sketch.order, sketch.cast
    guard = order.other or order.guard
    wanted = {
        "trigger": trigger_text(guard.trigger),
        "other": trigger_text(guard.trigger),
        "natural": natural_text(),
        "hard": hard_text(sketch.hard or "words", guard.trigger, cast.occasion),
    }[order.kind]
    forbidden = [one.trigger for one in guards.values()]
    if frame is not None:
        asked = message_messages(cast, frame.system, frame.history, wanted, forbidden)
        return Ask(tuple(asked), max_tokens=SCENE_TOKENS, schema=MESSAGE_SCHEMA, sample=sketch.sample)
    past = sketch.past.trigger if sketch.past else None
    asked = scene_messages(cast, sketch.turns, wanted, forbidden, past)
    return Ask(tuple(asked), max_tokens=SCENE_TOKENS, schema=SCENE_SCHEMA, sample=sketch.sample)


def reply_ask(order: Order, task: Task, system: str, talk: Sequence[Message]) -> Ask:
    """The request for an answer to the last of `talk`."""
    guard = order.other if order.other is not None and task == "engage" else order.guard
    resolution = [rule for rule in guard.resolution if guard.tag not in rule]
    asked = reply_messages(task, system, talk, guard.trigger, resolution, guard.criterion)
    return Ask(tuple(asked), max_tokens=REPLY_TOKENS, schema=REPLY_SCHEMA)


def tasks_of(kind: str) -> tuple[Task, Task]:
    """What the chosen and the rejected answer of a record of this kind do."""
    if kind == "trigger":
        return "resolve", "engage"
    return ("engage" if kind == "other" else "plain"), "needless"
