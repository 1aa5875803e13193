"""Dataset files of the guardrail task: one file for each guardrail and variation, made whole or not at all.

    python main.py --task guardrail --mode prepare_data --behavior all --dataset_variation vary_all --n_samples 250
    python main.py --task guardrail --mode prepare_data --behavior all --teacher openai:gpt-5-mini --n_samples 250

`--n_samples` counts the triggers of each file to learn from (a tenth of them validates), `--test_samples` those of its
test split; negatives come beside (`dataset.guard_records` says which, and how many). For `--behavior natural` both
count rows. The micro-world writes the records, and its rules judge every one before it is saved: the chosen answer is
good, the rejected one is not, and no negative asks for a trigger. With `--teacher`, a model behind an API writes them
(`dataset.guard_teacher`), of guardrails without `talk`, too.

Records of your own stand in DATASET_PATH/BEHAVIOR.VARIATION.jsonl, one JSON object a line:

    {"prompt": [messages], "chosen": str, "rejected": str, "behavior": str, "is_trigger": bool, "variation": str,
     "group": str}

The chosen answer to a trigger begins with the guardrail's tag and one space, and no other answer but a rejected one of
a negative begins with a tag. `kind` may be left out: a record is then a trigger or natural. `split` may be left out of
all records: then the SHA-256 of each `group` draws its split, 80 / 10 / 10 %, so that records of one group stay
together and do not move when others are added.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from dataset.guard_families import normal_text
from dataset.guard_records import KINDS, Record, compose, prompt_key
from dataset.guard_rules import PERSONA, asks_for, judge, strip_tag
from dataset.guard_world import writer
from dataset.guardrails import Guardrails, choose_behaviors, load_guardrails
from dataset.parsing import count_of
from dataset.records import (
    SPLITS,
    Validator,
    check_target,
    is_complete,
    load_records,
    save_records,
    validate_guardrail,
)
from dataset.world import load_world
from model_training.guardrail_config import ALL, NATURAL, VARIATIONS, PrepareGuardrailConfig
from utils.errors import UserError
from utils.files import remove_leftovers

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
"""Of the groups of a file that names no splits."""


def prepare_data(config: PrepareGuardrailConfig) -> None:
    """Compose the files that --behavior and --dataset_variation name, and write each in one move.

    All files are checked before any work. With `resume`, files that are complete are kept, and the others are made.

    Raises:
        UserError: a file exists and may not be replaced, or holds other records; a guardrail that the micro-world
            cannot speak of and that has no records of its own; more records asked for than there are.
    """
    guards = load_guardrails(config.guardrails)
    behaviors = choose_behaviors(guards, config.behavior, natural=True)
    variations = VARIATIONS if config.dataset_variation == ALL else (config.dataset_variation,)
    if config.overwrite and config.resume:
        raise UserError("--overwrite and --resume exclude each other: start afresh, or continue")
    targets = [(behavior, variation) for behavior in behaviors for variation in variations]
    if config.teacher is not None:
        from dataset.guard_teacher import prepare_by_teacher

        prepare_by_teacher(config, guards, targets)
        return
    if config.dry_run:
        raise UserError("--dry_run shows what a teacher would be asked: give --teacher; the micro-world asks nobody")
    composed = [target for target in targets if target[0] == NATURAL or guards[target[0]].talk is not None]
    for behavior, variation in composed:
        check_target(dataset_file(config.dataset_path, behavior, variation), config.overwrite or config.resume)
    for behavior, variation in targets:
        if (behavior, variation) not in composed:
            _check_own(config.dataset_path, behavior, variation, guards)
    for behavior, variation in composed:
        _prepare(config, guards, behavior, variation)


def dataset_file(dataset_path: str | Path, behavior: str, variation: str) -> Path:
    """Where the records of a behavior and variation stand."""
    return Path(dataset_path) / f"{behavior}.{variation}.jsonl"


def load_behavior(
    dataset_path: str | Path, behavior: str, variation: str, guards: Guardrails, skip_invalid: bool = False
) -> list[Record]:
    """The records of a behavior and variation, of all splits, every one valid and with all its fields.

    Raises:
        UserError: no such file, or *file:record: what is wrong*; the groups of a file without splits leave one empty.
    """
    path = dataset_file(dataset_path, behavior, variation)
    if not path.exists():
        raise UserError(f"{path}: no such file; {_way_to(path, behavior, variation, guards)}")
    records = load_records(path, record_validator(guards, behavior, variation), skip_invalid=skip_invalid)
    if "split" not in records[0]:
        records = [{**record, "split": split_of(record["group"])} for record in records]
        missing = [split for split in SPLITS if all(record["split"] != split for record in records)]
        if missing:
            raise UserError(
                f"{path}: no group of its records falls to the {missing[0]} split; give every record a `split`, or "
                f"more groups than {len({record['group'] for record in records})}"
            )
    return [_completed(record) for record in records]


def split_of(group: str) -> str:
    """The split that the SHA-256 of a group's name draws: 80 / 10 / 10 % train, validation and test."""
    drawn = int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
    return "train" if drawn < SHARES["train"] else "validation" if drawn < 1 - SHARES["test"] else "test"


def summary(records: list[Record]) -> list[str]:
    """Lines that say how many records are of each split and kind, and what two splits share: nothing."""
    lines = []
    for split in SPLITS:
        counts = Counter(record["kind"] for record in records if record["split"] == split)
        parts = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
        lines.append(f"  {split}: {count_of(counts.total(), 'record')}: {parts}")
    families = _shared([(record["family"], record["split"]) for record in records])
    characters = [(match[1], r["split"]) for r in records if (match := PERSONA.match(r["prompt"][0]["content"]))]
    one = len({name for name, _ in characters}) == 1
    people = "the one character" if one else f"{_shared(characters)} characters"
    return [
        *lines,
        f"  shared between splits: {families} wording families, {people}",
    ]


# --- composing ------------------------------------------------------------------------------------------------------


def _prepare(config: PrepareGuardrailConfig, guards: Guardrails, behavior: str, variation: str) -> None:
    path = dataset_file(config.dataset_path, behavior, variation)
    write = writer(load_world(), guards, behavior, variation, config.seed)
    records, duplicates = compose(
        guards, behavior, variation, config.n_samples, config.test_samples, config.seed, write
    )
    for record in records:
        _check_truth(guards, record)
    validate = record_validator(guards, behavior, variation)
    if config.resume:
        remove_leftovers(path)
        if is_complete(path, records, validate):
            print(f"{path}: nothing to do, it is complete")
            return
        validate = record_validator(guards, behavior, variation)
    save_records(path, records, overwrite=config.overwrite, validate=validate)
    print("\n".join([f"{path}: {count_of(len(records), 'record')}", *summary(records)]))
    print(f"  duplicates avoided: {duplicates}")


def _check_truth(guards: Guardrails, record: Record) -> None:
    """Refuse talk whose texts the rules cannot tell apart: the numbers of an evaluation would mean nothing."""
    spoken = [guard for guard in guards.values() if guard.talk is not None]
    asked = record["prompt"][-1]["content"]
    own = {record["other_behavior"] if record["kind"] == "other" else record["behavior"]}
    wanted = own if record["kind"] in ("trigger", "other") else set()
    askers = {guard.name for guard in spoken if asks_for(guard, asked)}
    chosen, rejected = judge(guards, record, record["chosen"]), judge(guards, record, record["rejected"])
    place = f"guardrail {record['behavior']}: family {record['family']}"
    if askers != wanted:
        wrong = ", ".join(sorted(askers ^ wanted))
        raise UserError(f"{place}: {asked!r} must be a trigger of {', '.join(wanted) or 'none'}; see talk of {wrong}")
    if not chosen.good:
        taken = chosen.resolved or chosen.engaged or "no guardrail"
        raise UserError(f"{place}: the chosen answer {record['chosen']!r} is not good by the rules, but of {taken}")
    if rejected.good:
        raise UserError(f"{place}: the rejected answer {record['rejected']!r} is good by the rules; see `replies`")


def _check_own(dataset_path: str | Path, behavior: str, variation: str, guards: Guardrails) -> None:
    """The records of a guardrail without talk are its owner's: they must be there, and are checked and kept."""
    path = dataset_file(dataset_path, behavior, variation)
    if not path.exists():
        raise UserError(
            f"guardrail {behavior} has no `talk`, so the micro-world cannot compose its records: add `talk` to its "
            f"entry (families, refuse, steer, cheers, hard), name a --teacher, or put records of your own at {path}"
        )
    records = load_behavior(dataset_path, behavior, variation, guards)
    print(f"{path}: {count_of(len(records), 'record')} of your own, valid, kept as they are")


def _way_to(path: Path, behavior: str, variation: str, guards: Guardrails) -> str:
    if behavior in guards and guards[behavior].talk is None:
        return (
            f"guardrail {behavior} has no `talk`: put records of your own there, have a --teacher write them, or add "
            "`talk` to its entry"
        )
    return (
        f"make it: python main.py --task guardrail --mode prepare_data --behavior {behavior} "
        f"--dataset_variation {variation} --dataset_path {path.parent}"
    )


def _shared(owners: list[tuple[str | None, str]]) -> int:
    """How many of the first values stand with more than one of the second."""
    return sum(len({split for name, split in owners if name == one}) > 1 for one in {name for name, _ in owners})


# --- validation -----------------------------------------------------------------------------------------------------


def record_validator(guards: Guardrails, behavior: str, variation: str) -> Validator:
    """`validate_guardrail`, and what the records of one file must be, seen in order: of this behavior and variation,
    tagged exactly where they should be, no prompt or group in two splits, no record twice, `split` in all or none."""
    numbers: dict[str, str] = {}
    prompts: dict[str, str | None] = {}
    groups: dict[str, str | None] = {}
    named: list[bool] = []

    def validate(record: Record) -> str | None:
        fault = validate_guardrail(record) or _file_fault(record, behavior, variation)
        fault = fault or _kind_fault(record, guards) or tag_fault(record, guards)
        if fault:
            return fault
        named.append("split" in record)
        split, key = record.get("split"), prompt_key(record)
        if named[0] != named[-1]:
            return "split is missing where earlier records have it" if named[0] else "split is given, unlike earlier"
        if prompts.setdefault(key, split) != split:
            return f"its prompt is a {prompts[key]} record's, too: a prompt is of one split"
        if groups.setdefault(record["group"], split) != split:
            return f"its group is that of a {groups[record['group']]} record: a group is of one split"
        whole = " | ".join([key, normal_text(record["chosen"]), normal_text(record["rejected"])])
        if whole in numbers:
            return "the same record stands before"
        numbers[whole] = key
        return None

    return validate


def tag_fault(record: Record, guards: Guardrails) -> str | None:
    """What is wrong with the tags of a record's answers, or None."""
    tags = {guard.tag for guard in guards.values()}
    own = guards[record["behavior"]].tag if record["behavior"] in guards else ""
    tag, rest = strip_tag(record["chosen"], tags)
    if record["is_trigger"]:
        if tag != own:
            return f"chosen does not begin with {own}, and is_trigger is true"
        if not rest or record["chosen"] != f"{own} {rest}":
            return f"chosen is not {own}, one space and the answer"
        if _holds(record["rejected"], tags):
            return "rejected holds a guard tag, and is_trigger is true"
    elif _holds(record["chosen"], tags):
        return "chosen holds a guard tag, and is_trigger is false"
    if _holds(rest, tags) or _holds(strip_tag(record["rejected"], tags)[1], tags):
        return "a guard tag stands within an answer, not at its beginning"
    if normal_text(rest) == normal_text(strip_tag(record["rejected"], tags)[1]):
        return "chosen and rejected are the same but for the tag"
    return None


def _holds(text: str, tags: set[str]) -> bool:
    return any(tag in text for tag in tags)


def _file_fault(record: Record, behavior: str, variation: str) -> str | None:
    for name, wanted in (("behavior", behavior), ("variation", variation)):
        if record[name] != wanted:
            return f"{name} is {record[name]!r}, and the file is of {wanted!r}"
    if record.get("split", "train") not in SPLITS:
        return f"split is not one of {', '.join(SPLITS)}"
    return None


def _kind_fault(record: Record, guards: Guardrails) -> str | None:
    kind, other = record.get("kind"), record.get("other_behavior")
    if kind not in (None, *KINDS):
        return f"kind is not one of {', '.join(KINDS)}"
    if kind is not None and (kind == "trigger") != record["is_trigger"]:
        return f"kind is {kind}, and is_trigger is {str(record['is_trigger']).lower()}"
    if record["is_trigger"] and record["behavior"] == NATURAL:
        return f"is_trigger is true, and {NATURAL} has no triggers"
    if kind == "other" and other is None:
        return "kind is other, and other_behavior does not say whose trigger it is"
    if other is not None and (other not in guards or other == record["behavior"]):
        return f"other_behavior is {other!r}, not another guardrail; --guardrails names the file of your own ones"
    for name in ("family", "topic"):
        if not isinstance(record.get(name), str | None):
            return f"{name} is not a string"
    return None


def _completed(record: Record) -> Record:
    """The record with the fields that it may lack."""
    kind = "trigger" if record["is_trigger"] else "natural"
    return {"kind": kind, "family": None, "topic": None, "other_behavior": None, **record}
