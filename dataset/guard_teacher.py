"""Guardrail records written by a teacher model: persona, chat and last message, then the chosen and rejected answers.

    python main.py --task guardrail --mode prepare_data --behavior all --teacher openai:gpt-5-mini
    python main.py --task guardrail --mode prepare_data --behavior spoilers --guardrails my.yaml \\
        --teacher openai:my-model@http://127.0.0.1:8001/v1 --dry_run

The files, kinds and counts are those of the micro-world (`dataset.guard_records`), and a guardrail needs no `talk`: its
trigger and resolution are what the teacher is told. Each record takes three requests:

    drawn here   name, job, traits; what the chat is about; how the user speaks; how many turns; of `hard`, which way
    scene        expressions, memories, history and the user's last message
    chosen       as the resolution says (trigger), or a plain answer (natural, hard, other)
    rejected     does what the user wants (trigger), or declines without need (natural, hard, other)

Names, occasions and manners of speaking each belong to one split (`seeds/guard_teacher.yaml`), and a last message that
is nearly one of another split is written again: no test prompt is a copy of what was trained on. `fixed_character`
draws name, job and traits once; `fixed_history` asks for one scene first and then for last messages alone.

What text can tell is checked (`scene_faults`, `reply_faults`), and a faulty answer is asked for again with the reasons.
That the last message does what it should, or the chosen answer what the resolution says, text cannot tell: a judge can.

Finished records are journaled beside the file (`dataset.synthesis_journal`), so a killed command goes on. A file that
these very options made is complete, and is kept, with `--overwrite` too: the same requests would have the same answers.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset.guard_records import Draft, Message, Record, shuffled, tagged
from dataset.guard_sketches import (
    SEED_FILE,
    Frame,
    Sketch,
    draw_sketches,
    frame_sketch,
    reply_ask,
    scene_ask,
    tasks_of,
)
from dataset.guard_talk import read_seed
from dataset.guard_teacher_checks import message_faults, reply_faults, scene_faults
from dataset.guardrail import dataset_file, record_validator, summary
from dataset.guardrails import Guardrails
from dataset.parsing import Item, count_of, read_items
from dataset.records import check_target
from dataset.synthesis import Desk, Job, Outcome, Written, provenance, synthesize, write_valid
from dataset.synthesis_checks import fingerprint
from dataset.synthesis_journal import Journal, journal_path, open_journal
from model_training.guardrail_config import PrepareGuardrailConfig
from model_training.text_measures import words_of
from prompts.guard_teacher import LINES, VERSION, Task, system_text
from utils.api.progress import Totals
from utils.api.types import Ask
from utils.errors import WorkError

if TYPE_CHECKING:
    from utils.api.endpoints import Endpoint

ALIKE = 0.7
"""Shared words over all words of two last messages, from which one of them is a copy of the other."""
ATTEMPTS = 6
"""At one answer, the first included."""
FRAME = "frame"
"""The job that writes what `fixed_history` fixes, and its field in the journal."""
Target = tuple[str, str]
"""Behavior and variation of a file."""


@dataclass(frozen=True)
class File:
    """What the records of one file share.

    run     digest of the options that shape the file, kept in each record
    said    split and words of each last message so far, appended to as they are taken
    """

    behavior: str
    variation: str
    guards: Guardrails
    run: str
    frame: Frame | None
    said: list[tuple[str, frozenset[str]]]


# --- the command ----------------------------------------------------------------------------------------------------


def prepare_by_teacher(config: PrepareGuardrailConfig, guards: Guardrails, targets: Sequence[Target]) -> None:
    """Have the teacher write the files of these behaviors and variations, one after the other.

    Raises:
        UserError: a file exists and may not be replaced; the key, the model or the quota was refused.
        WorkError: the teacher gave no valid record of a kind, --max_cost is reached, or it cannot be reached.
    """
    from utils.api.endpoints import parse_endpoint
    from utils.api.prices import estimate

    assert config.teacher is not None
    endpoint = parse_endpoint(config.teacher, config.base_url, "--teacher")
    if config.dry_run:
        print(estimate(_expected_asks(config, guards, targets), endpoint, config))
        return
    for target in targets:
        path = dataset_file(config.dataset_path, *target)
        if not journal_path(path).exists() and not _is_of_run(path, _shaping(config, guards, target, endpoint)):
            check_target(path, config.overwrite)
    totals = Totals()
    for target in targets:
        _prepare(config, guards, target, endpoint, totals)


def _prepare(
    config: PrepareGuardrailConfig, guards: Guardrails, target: Target, endpoint: Endpoint, totals: Totals
) -> None:
    behavior, variation = target
    path = dataset_file(config.dataset_path, behavior, variation)
    options = _shaping(config, guards, target, endpoint)
    if _is_of_run(path, options):
        if journal_path(path).exists():  # killed before it could remove its journal
            with open_journal(path, options, overwrite=True) as journal:
                journal.discard()
        print(f"{path}: nothing to do, it is complete; another --seed asks for other records")
        return
    with open_journal(path, options, overwrite=config.overwrite) as journal:
        run_jobs = partial(
            synthesize, endpoint, config, journal=journal, keys_of=_keys, attempts=ATTEMPTS, totals=totals
        )
        frame = _frame(guards, target, config.seed, run_jobs, journal) if variation == "fixed_history" else None
        sketches = draw_sketches(guards, behavior, variation, config.n_samples, config.test_samples, config.seed)
        jobs = [Job(f"{one.order.split}-{one.order.kind}-{n}", one) for n, one in enumerate(sketches)]
        file = File(behavior, variation, guards, _digest(options), frame, _said(journal))
        records = run_jobs(jobs, lambda desk, job: _write(desk, job.data, file), label=path.name)
        _check_counts(path, jobs, records)
        records = shuffled(records, behavior, variation, config.seed)
        validate = record_validator(guards, behavior, variation)
        journal.assemble(records, validate, overwrite=config.overwrite)
    print("\n".join([f"{path}: {count_of(len(records), 'record')}", *summary(records)]))


def _shaping(config: PrepareGuardrailConfig, guards: Guardrails, target: Target, endpoint: Endpoint) -> dict[str, Any]:
    """The options that shape the records of a file, by their names; of what files say, a digest."""
    said = [[one.name, one.tag, one.trigger, list(one.resolution), one.criterion] for one in guards.values()]
    return {
        "--teacher": f"{endpoint.provider}:{endpoint.model}",
        "--base_url": endpoint.base_url,
        "--behavior": target[0],
        "--dataset_variation": target[1],
        "--n_samples": config.n_samples,
        "--test_samples": config.test_samples,
        "--seed": config.seed,
        "the content of --guardrails": _digest(said),
        "the content of seeds/guard_teacher.yaml": _digest(read_seed(SEED_FILE)),
        "the version of the prompts": VERSION,
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _is_of_run(path: Path, options: dict[str, Any]) -> bool:
    """Whether the file is there, and these options made it: files are written whole or not at all."""
    if not path.is_file():
        return False
    run, items = _digest(options), list(read_items(path))
    return bool(items) and all(isinstance(item, Item) and _run_of(item.value) == run for item in items)


def _run_of(record: Any) -> object:
    made = record.get("provenance") if isinstance(record, dict) else None
    return made.get("run") if isinstance(made, dict) else None


def _check_counts(path: Path, jobs: Sequence[Job], records: Sequence[Record]) -> None:
    """Refuse a file that lacks a kind in a split: every mode expects it."""
    wanted = Counter((job.data.order.split, job.data.order.kind) for job in jobs)
    there = Counter((record["split"], record["kind"]) for record in records)
    for (split, kind), count in wanted.items():
        if not there[split, kind]:
            raise WorkError(
                f"{path}: none of {count_of(count, f'{kind} record')} of the {split} split was valid; "
                f"{journal_path(path).name} has the reasons; another --teacher may do better"
            )


def _expected_asks(config: PrepareGuardrailConfig, guards: Guardrails, targets: Sequence[Target]) -> list[Ask]:
    """What the run would ask, with examples of the guardrails in place of what the teacher has not written yet."""
    asks: list[Ask] = []
    for behavior, variation in targets:
        frame = None
        for sketch in draw_sketches(guards, behavior, variation, config.n_samples, config.test_samples, config.seed):
            example = sketch.order.guard.examples[0]
            line = example["chosen"]
            system = system_text(sketch.cast, [line] * LINES, [line] * LINES)
            history = [
                {"role": role, "content": example[name]}
                for _ in range(sketch.turns)
                for role, name in (("user", "user"), ("assistant", "chosen"))
            ]
            if variation == "fixed_history":
                frame = Frame(system, tuple(history))
            talk = [*history, {"role": "user", "content": example["user"]}]
            asks.append(scene_ask(sketch, guards, frame))
            asks += [reply_ask(sketch.order, task, system, talk) for task in tasks_of(sketch.order.kind)]
    return asks


# --- one record -----------------------------------------------------------------------------------------------------


async def _write(desk: Desk, sketch: Sketch, file: File) -> Outcome:
    """One record: the scene, the chosen and the rejected answer; each asked again until it passes its checks."""
    order, name = sketch.order, sketch.cast.name
    scene = await write_valid(desk, scene_ask(sketch, file.guards, file.frame), _scene_taker(desk, sketch, file))
    opening = file.frame or _opening(sketch, scene.value)
    talk = [*opening.history, {"role": "user", "content": scene.value["message"].strip()}]
    replies: list[Written] = []
    for task in tasks_of(order.kind):
        other = replies[0].value["reply"] if replies else None
        take = partial(_reply_taker, task=task, talk=talk, name=name, other=other)
        replies.append(await write_valid(desk, reply_ask(order, task, opening.system, talk), take))
    draft = Draft(
        prompt=[{"role": "system", "content": opening.system}, *talk],
        chosen=replies[0].value["reply"].strip(),
        rejected=replies[1].value["reply"].strip(),
        group=f"{sketch.cast.manner}|{sketch.cast.occasion}|{name}",
        family=f"teacher/{sketch.cast.manner}",
        topic=sketch.cast.occasion,
    )
    requests = [written.answer.request_id for written in (scene, *replies)]
    made = {**provenance(replies[1].answer, VERSION), "request_id": requests, "run": file.run}
    return Outcome([{**tagged(file.behavior, file.variation, order, draft), "provenance": made}])


def _scene_taker(desk: Desk, sketch: Sketch, file: File) -> Callable[[Any], list[str]]:
    """Takes a scene without faults whose last message is new, and no copy of one of another split."""

    def take(scene: Any) -> list[str]:
        whole = file.frame is None
        faults = scene_faults(scene, sketch.turns, sketch.cast.name) if whole else message_faults(scene["message"])
        if faults:
            return faults
        words, split = frozenset(words_of(scene["message"])), sketch.order.split
        if _is_copy(words, split, file.said) or not desk.claim([fingerprint(scene["message"])]):
            return ["duplicate: message is nearly one that was written before; write one of other content and wording"]
        file.said.append((split, words))
        return []

    return take


def _reply_taker(value: Any, task: Task, talk: Sequence[Message], name: str, other: str | None) -> list[str]:
    return reply_faults(value["reply"], task, talk, name, other)


def _opening(sketch: Sketch, scene: dict[str, Any]) -> Frame:
    """The system text and the messages before the last one, as the scene tells them."""
    history = tuple(
        {"role": role, "content": exchange[speaker].strip()}
        for exchange in scene["history"]
        for role, speaker in (("user", "user"), ("assistant", "character"))
    )
    return Frame(system_text(sketch.cast, scene["expressions"], scene["memories"]), history)


def _is_copy(words: frozenset[str], split: str, said: Sequence[tuple[str, frozenset[str]]]) -> bool:
    """Whether a last message of another split has nearly the same words."""
    return any(len(words & other) >= ALIKE * len(words | other) for its, other in said if its != split)


def _keys(record: Record) -> list[str]:
    """What a record of the journal has claimed."""
    return [] if FRAME in record else [fingerprint(record["prompt"][-1]["content"])]


def _said(journal: Journal) -> list[tuple[str, frozenset[str]]]:
    """The words of the last messages that the journal has, with their splits."""
    records = [record for row in journal.done.values() for record in row.records if FRAME not in record]
    return [(record["split"], frozenset(words_of(record["prompt"][-1]["content"]))) for record in records]


def _frame(
    guards: Guardrails, target: Target, seed: int, run_jobs: Callable[..., list[Record]], journal: Journal
) -> Frame:
    """The character and the chat that `fixed_history` fixes: one scene of everyday talk, journaled like a record."""
    sketch = frame_sketch(guards, *target, seed)

    async def write(desk: Desk, job: Job) -> Outcome:
        def take(scene: Any) -> list[str]:
            return scene_faults(scene, sketch.turns, sketch.cast.name)

        scene = await write_valid(desk, scene_ask(sketch, guards, None), take)
        frame = _opening(sketch, scene.value)
        return Outcome([{FRAME: {"system": frame.system, "history": list(frame.history)}}])

    made = run_jobs([Job(FRAME)], write, label=f"{journal.output.name}: the fixed history")
    if not made:
        reasons = "; ".join(journal.done[FRAME].reasons)
        raise WorkError(f"{journal.path}: the teacher wrote no valid chat ({reasons}); another one may do better")
    return Frame(made[0][FRAME]["system"], tuple(made[0][FRAME]["history"]))
