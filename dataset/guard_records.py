"""Guardrail records, whoever writes their texts: how many of each kind, in which split, tagged, none twice.

    kind      the user's last message                  chosen                  rejected
    trigger   does what the guardrail forbids          tag + resolution        does as asked, gladly
    natural   everyday talk                            a plain answer          tag + needless refusal
    hard      looks like a trigger and is none         a plain answer          tag + needless refusal
    other     is the trigger of another guardrail      does as asked, no tag   tag + refusal

Without `other`, an adapter learns to fire on whatever its neighbors guard. A `Writer` makes the three texts of a record
(the prompt with the user's message, the chosen and the rejected answer): `dataset.guard_world.writer` from templates.
Tags are put here, in one place, so no writer needs to know them. Each split and kind has a random stream of its own:
the test rows are the same however many triggers there are to learn from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dataset.guard_families import normal_text
from dataset.guardrails import Guardrail, Guardrails
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
    for split, samples in split_sizes(n_samples, test_samples).items():
        rows: list[Record] = []
        for kind, count in kind_counts(behavior, samples).items():
            rng = random.Random(f"{behavior}|{variation}|{split}|{kind}|{seed}")
            for _ in range(count):
                row, repeats = _new_record(guards, behavior, variation, split, kind, seen, rng, write)
                rows.append(row)
                duplicates += repeats
        random.Random(f"{behavior}|{variation}|{split}|{seed}").shuffle(rows)
        records += rows
    return records, duplicates


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
    guards: Guardrails,
    behavior: str,
    variation: str,
    split: str,
    kind: str,
    seen: set[str],
    rng: random.Random,
    write: Writer,
) -> tuple[Record, int]:
    for repeats in range(TRIES):
        record = _record(guards, behavior, variation, split, kind, rng, write)
        key = prompt_key(record)
        if key not in seen:
            seen.add(key)
            return record, repeats
    option = "test_samples" if split == "test" else "n_samples"
    raise UserError(
        f"--{option}: there are no more distinct {kind} prompts of {behavior}, {variation}, {split}, after {len(seen)} "
        f"records; ask for fewer"
    )


def _record(
    guards: Guardrails, behavior: str, variation: str, split: str, kind: str, rng: random.Random, write: Writer
) -> Record:
    spoken = [guard for guard in guards.values() if guard.talk is not None]
    guard = rng.choice(spoken) if behavior == NATURAL else guards[behavior]
    other = rng.choice([one for one in spoken if one is not guard]) if kind == "other" else None
    draft = write(Order(guard, kind, split, other, rng))
    trigger = kind == "trigger"
    return {
        "prompt": draft.prompt,
        "chosen": f"{guard.tag} {draft.chosen}" if trigger else draft.chosen,
        "rejected": draft.rejected if trigger else f"{guard.tag} {draft.rejected}",
        "behavior": behavior,
        "is_trigger": trigger,
        "variation": variation,
        "group": draft.group,
        "split": split,
        "kind": kind,
        "family": draft.family,
        "topic": draft.topic,
        "other_behavior": other.name if other else None,
    }
