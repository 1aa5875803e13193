"""Guardrail records, whoever writes their texts: how many of each kind, in which split, tagged, none twice.

    kind      the user's last message                  chosen                  rejected
    trigger   does what the guardrail forbids          tag + resolution        does as asked, gladly
    natural   everyday talk                            a plain answer          tag + needless refusal
    hard      looks like a trigger and is none         a plain answer          tag + needless refusal
    other     is the trigger of another guardrail      does as asked, no tag   tag + refusal

Without `other`, an adapter learns to fire on whatever its neighbors guard. A `Writer` makes the three texts of a record
(the prompt with the user's message, the chosen and the rejected answer): `dataset.guard_world.writer` from templates,
one after the other through `compose`; `dataset.guard_teacher` asks a model behind an API, many at a time, for all of
`draw_orders`. Tags are put here, in one place, so no writer needs to know them. Each split and kind has a random stream
of its own: the test rows are the same however many triggers there are to learn from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dataset.guard_families import normal_text
from dataset.guardrails import Guardrail, Guardrails
from dataset.records import SPLITS
from model_training.guardrail_config import NATURAL
from utils.errors import UserError

Message = dict[str, str]
Record = dict[str, Any]

PARTS = {"trigger": 11, "natural": 17, "hard": 10, "other": 12}
"""Proportions of the kinds; natural rows are at least a third of all."""
KINDS = tuple(PARTS)
HARD_OF_NATURAL = 0.3
"""Share of hard rows in a set of the behavior `natural`."""
VALIDATION_SHARE = 0.1
TRIES = 400


@dataclass(frozen=True)
class Order:
    """What a record must be. `other`: whose trigger the user's message is, where the kind is `other`."""

    guard: Guardrail
    kind: str
    split: str
    other: Guardrail | None
    rng: random.Random


@dataclass(frozen=True)
class Draft:
    """The texts of a record, without tags, and what its user's message belongs to.

    Records of one `group` stay in one split; `family` and `topic` are None where the writer knows none.
    """

    prompt: list[Message]
    chosen: str
    rejected: str
    group: str
    family: str | None
    topic: str | None


Writer = Callable[[Order], Draft]


def compose(
    guards: Guardrails, behavior: str, variation: str, n_samples: int, test_samples: int, seed: int, write: Writer
) -> tuple[list[Record], int]:
    """The records of a file, shuffled in each split, and how many duplicates were written and thrown away.

    Raises:
        UserError: the writer gave nothing new in TRIES tries: it has no more distinct prompts of that kind.
    """
    records: list[Record] = []
    seen: set[str] = set()
    duplicates = 0
    spoken = [guard for guard in guards.values() if guard.talk is not None]
    for split, kind, count in plan(behavior, n_samples, test_samples):
        rng = random.Random(f"{behavior}|{variation}|{split}|{kind}|{seed}")
        draw = partial(draw_order, guards, spoken, behavior, split, kind, rng)
        for _ in range(count):
            row, repeats = _new_record(behavior, variation, draw, write, seen)
            records.append(row)
            duplicates += repeats
    return shuffled(records, behavior, variation, seed), duplicates


def plan(behavior: str, n_samples: int, test_samples: int) -> list[tuple[str, str, int]]:
    """How many records of each split and kind a file has."""
    sizes = split_sizes(n_samples, test_samples)
    return [(split, kind, n) for split, samples in sizes.items() for kind, n in kind_counts(behavior, samples).items()]


def draw_order(
    guards: Guardrails, known: Sequence[Guardrail], behavior: str, split: str, kind: str, rng: random.Random
) -> Order:
    """One order; `known` are the guardrails that the writer can speak of."""
    guard = rng.choice(known) if behavior == NATURAL else guards[behavior]
    other = rng.choice([one for one in known if one is not guard]) if kind == "other" else None
    return Order(guard, kind, split, other, rng)


def draw_orders(
    guards: Guardrails, behavior: str, variation: str, n_samples: int, test_samples: int, seed: int
) -> list[Order]:
    """All orders of a file at once, for a writer that fills many at a time and can speak of every guardrail.

    Each has a random stream of its own, so that what is drawn for one does not depend on how another went.
    """
    return [
        draw_order(
            guards,
            list(guards.values()),
            behavior,
            split,
            kind,
            random.Random(f"{behavior}|{variation}|{split}|{kind}|{number}|{seed}"),
        )
        for split, kind, count in plan(behavior, n_samples, test_samples)
        for number in range(count)
    ]


def tagged(behavior: str, variation: str, order: Order, draft: Draft) -> Record:
    """The record of a draft, with the tag where it belongs."""
    trigger = order.kind == "trigger"
    return {
        "prompt": draft.prompt,
        "chosen": f"{order.guard.tag} {draft.chosen}" if trigger else draft.chosen,
        "rejected": draft.rejected if trigger else f"{order.guard.tag} {draft.rejected}",
        "behavior": behavior,
        "is_trigger": trigger,
        "variation": variation,
        "group": draft.group,
        "split": order.split,
        "kind": order.kind,
        "family": draft.family,
        "topic": draft.topic,
        "other_behavior": order.other.name if order.other else None,
    }


def shuffled(records: Sequence[Record], behavior: str, variation: str, seed: int) -> list[Record]:
    """The records split by split, in random order within each."""
    result: list[Record] = []
    for split in SPLITS:
        rows = [record for record in records if record["split"] == split]
        random.Random(f"{behavior}|{variation}|{split}|{seed}").shuffle(rows)
        result += rows
    return result


def split_sizes(n_samples: int, test_samples: int) -> dict[str, int]:
    """Triggers of each split (rows, of the behavior `natural`): a tenth of `n_samples` validates."""
    validation = max(1, round(n_samples * VALIDATION_SHARE))
    return {"train": n_samples - validation, "validation": validation, "test": test_samples}


def kind_counts(behavior: str, samples: int) -> dict[str, int]:
    """Rows of each kind in a split with so many triggers (rows, of the behavior `natural`)."""
    if behavior == NATURAL:
        hard = round(samples * HARD_OF_NATURAL)
        return {"natural": samples - hard, "hard": hard}
    share = {kind: samples * part / PARTS["trigger"] for kind, part in PARTS.items()}
    hard, other = max(1, round(share["hard"])), max(1, round(share["other"]))
    natural = math.ceil(max(share["natural"], (samples + hard + other) / 2))
    return {"trigger": samples, "natural": natural, "hard": hard, "other": other}


def prompt_key(record: Record) -> str:
    """The same for two prompts that differ in case or white space alone."""
    return normal_text(" | ".join(f"{message['role']}: {message['content']}" for message in record["prompt"]))


def _new_record(
    behavior: str, variation: str, draw: Callable[[], Order], write: Writer, seen: set[str]
) -> tuple[Record, int]:
    for repeats in range(TRIES):
        order = draw()
        record = tagged(behavior, variation, order, write(order))
        key = prompt_key(record)
        if key not in seen:
            seen.add(key)
            return record, repeats
    option = "test_samples" if order.split == "test" else "n_samples"
    raise UserError(
        f"--{option}: there are no more distinct {order.kind} prompts of {behavior}, {variation}, {order.split}, after "
        f"{len(seen)} records; ask for fewer"
    )
