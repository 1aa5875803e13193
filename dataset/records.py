"""Datasets: JSON arrays or JSON Lines, read record by record, nothing dropped in silence.

    records = load_records("secret_conversations.json", validate_secret)
    save_records("copy.jsonl.gz", records)

The name says the format: `.json` (an array of records), `.jsonl` (one record a line), each also with `.gz`. Each fault
is reported as `file:record N (line L): what is wrong`; by default any fault stops the loading, in one line, or for
several with the first 20 and the total, and `skip_invalid` keeps the good records and says how many were left out, and
why. `dataset.parsing` finds the values; here stands what each task asks of them. Fields that a task does not know are
kept.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dataset.pair_forms import Form, pair_fault, pair_form, prompt_place, standard_form
from dataset.parsing import Fault, Item, count_of, extension_of, kind_of, read_items, unstorable
from utils.errors import UserError
from utils.extraction import check_format, format_response
from utils.files import sha256_file, write_atomic

Record = dict[str, Any]
Validator = Callable[[Record], str | None]
"""Says what is wrong with a record, in the same words for the same fault; None: nothing."""

ROLES = ("system", "user", "assistant")
SPLITS = ("train", "validation", "test")
FAULTS_SHOWN = 20


# --- load and save --------------------------------------------------------------------------------------------------


def load_records(path: str | Path, validate: Validator, *, skip_invalid: bool = False) -> list[Record]:
    """The records of a dataset file, each of them valid; a UserError lists the faults."""
    return valid_records(str(Path(path)), read_items(Path(path)), validate, skip_invalid=skip_invalid)


def valid_records(
    place: str, items: Iterable[Item | Fault], validate: Validator, *, skip_invalid: bool = False
) -> list[Record]:
    """The records among the items of a file, or of any other `place`, as `load_records` gives them."""
    good, faults = _sift(items, validate)
    if faults and not skip_invalid:
        way_out = "repair the file, or keep the good records with --skip_invalid" if good else "repair the file"
        if len(faults) == 1:
            raise UserError(f"{_listing(place, faults)}; nothing was loaded; {way_out}")
        totals = f"{count_of(len(faults), 'fault')} beside {count_of(len(good), 'good record')}"
        raise UserError(f"{place}: nothing was loaded: {totals}\n{_listing(place, faults)}\n{way_out}")
    if faults:
        print(_account(place, good, faults), file=sys.stderr)
    if not good:
        nothing = "no record in it is valid" if faults else "the array is empty: there is no record"
        raise UserError(f"{place}: {nothing}; --mode prepare_data writes a dataset")
    return good


def check_target(path: str | Path, overwrite: bool = False) -> None:
    """Refuse a dataset file to write whose name says no format, or that exists already: call it before long work."""
    path = Path(path)
    extension_of(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory; give the name of a file in it")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists and is left as it is; replace it with --overwrite, or give another name")


def save_records(
    path: str | Path, records: list[Record], overwrite: bool = False, validate: Validator | None = None
) -> None:
    """Write a dataset file whole or not at all, one record a line; nothing invalid is written.

    `validate` is the task's; by default that of `secret`. The same records give the same bytes, compressed too.
    """
    path = Path(path)
    check_target(path, overwrite)
    write_atomic(path, file_bytes(path, records, validate))


def file_bytes(path: str | Path, records: list[Record], validate: Validator | None = None) -> bytes:
    """What `save_records` writes to a file of that name."""
    path = Path(path)
    chosen = validate or validate_secret
    items = (Item(number, None, record) for number, record in enumerate(records, start=1))
    _, faults = _sift(items, lambda record: unstorable(record) or chosen(record))
    if faults:
        total = count_of(len(faults), "fault")
        raise UserError(f"{path}: nothing was written: {total} in the records\n{_listing(str(path), faults)}")
    if not records:
        raise UserError(f"{path}: nothing was written: there is no record to write")
    rows = [json.dumps(record, ensure_ascii=False) for record in records]
    text = "\n".join(rows) + "\n" if ".jsonl" in extension_of(path) else "[\n" + ",\n".join(rows) + "\n]\n"
    data = text.encode("utf-8")
    return gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data


def is_complete(path: str | Path, records: list[Record], validate: Validator | None = None) -> bool:
    """Whether the dataset file holds these very records; raises UserError if it holds others."""
    path = Path(path)
    if not path.exists():
        return False
    if sha256_file(path) != hashlib.sha256(file_bytes(path, records, validate)).hexdigest():
        raise UserError(
            f"{path}: these options, or this version, make another dataset than the one there, which is left as it is; "
            "give its own options, replace it with --overwrite, or give another --dataset_path"
        )
    return True


def _sift(found: Iterable[Item | Fault], validate: Validator) -> tuple[list[Record], list[Fault]]:
    good: list[Record] = []
    faults: list[Fault] = []
    owners: dict[tuple[type, object], int] = {}
    for item in found:
        if isinstance(item, Fault):
            faults.append(item)
            continue
        if not isinstance(item.value, dict):
            faults.append(Fault(item.record, item.line, f"is {kind_of(item.value)}, not an object"))
            continue
        reason = validate(item.value)
        if reason:
            faults.append(Fault(item.record, item.line, reason))
            continue
        name = item.value.get("id")
        owner = owners.setdefault((type(name), name), item.record) if isinstance(name, str | int) else item.record
        if owner != item.record:
            faults.append(Fault(item.record, item.line, "id is used already", f": {name!r} is record {owner}'s"))
            continue
        good.append(item.value)
    return good, faults


def _listing(place: str, faults: list[Fault]) -> str:
    lines = [f"{place}:{fault.place()}: {fault.reason}{fault.detail}" for fault in faults[:FAULTS_SHOWN]]
    more = len(faults) - FAULTS_SHOWN
    return "\n".join(lines + ([f"and {count_of(more, 'fault')} more"] if more > 0 else []))


def _account(place: str, good: list[Record], faults: list[Fault]) -> str:
    reasons: dict[str, list[Fault]] = {}
    for fault in faults:
        reasons.setdefault(fault.reason, []).append(fault)
    groups = sorted(reasons.values(), key=len, reverse=True)
    lines = [f"  {len(group)} x {group[0].reason}; first: {group[0].place()}{group[0].detail}" for group in groups]
    more = [f"  and {count_of(len(groups) - FAULTS_SHOWN, 'other reason')}"] if len(groups) > FAULTS_SHOWN else []
    out = sum(fault.record is not None for fault in faults)
    head = f"{place}: kept {count_of(len(good), 'record')}, left out {out}:"
    return "\n".join([head, *lines[:FAULTS_SHOWN], *more])


# --- what each task asks of a record --------------------------------------------------------------------------------


def validate_secret(record: Record) -> str | None:
    """A prompt that ends with the user's turn, and two different answers that the grammar of the tags can hold."""
    fault = (
        _conversation_fault(record, "prompt", last="user")
        or _text_fault(record, "visible")
        or _text_fault(record, "hidden")
        or _optional_fault(record)
    )
    if fault:
        return fault
    visible, hidden = record["visible"].strip(), record["hidden"].strip()
    if visible == hidden:
        return "visible and hidden are the same text"
    if not check_format(format_response(visible, hidden)):
        name = "hidden" if check_format(format_response(visible, "x")) else "visible"
        return f"{name} holds text like one of the tags <visible> and <hidden>"
    return None


def validate_preference(record: Record) -> str | None:
    """Two texts, or two conversations that end with the assistant's turn, with or without `prompt`, in one of the forms
    of `dataset.pair_forms`; two answers that are not empty and not the same. Fields of other names are kept unseen."""
    fault = _answers_fault(record) or _prompt_fault(record)
    if fault:
        return fault
    if record.get("split") not in (None, *SPLITS):
        return f"split is not one of {', '.join(SPLITS)}"
    if not isinstance(record.get("data_subset"), str | None):
        return _wrong(record, "data_subset", "a string")
    return pair_fault(standard_form(record))


def preference_validator() -> Validator:
    """`validate_preference` for the records of one file, in order: all are pairs of texts, or all of conversations."""
    first: Form | None = None

    def validate(record: Record) -> str | None:
        nonlocal first
        fault = validate_preference(record)
        if fault:
            return fault
        form = pair_form(record)
        first = first or form
        return None if form == first else f"is a pair of {form}s in a file that began with pairs of {first}s"

    return validate


def _answers_fault(record: Record) -> str | None:
    forms = {type(record.get("chosen")), type(record.get("rejected"))}
    if forms == {list}:
        return _conversation_fault(record, "chosen", last="assistant") or _conversation_fault(
            record, "rejected", last="assistant"
        )
    if forms == {list, str}:
        return "chosen and rejected are not of one form: two texts, or two lists of messages"
    return _text_fault(record, "chosen") or _text_fault(record, "rejected")


def _prompt_fault(record: Record) -> str | None:
    """What is wrong with the optional `prompt` of a pair whose answers are right."""
    prompt = record.get("prompt")
    if not prompt:
        return None
    if not isinstance(prompt, str | list):
        return _wrong(record, "prompt", "a text or a list of messages")
    fault = _conversation_fault(record, "prompt") if isinstance(prompt, list) else None
    if fault or prompt_place(record) != "torn":
        return fault
    if isinstance(prompt, str) and isinstance(record["chosen"], list):
        return "prompt is a text, and chosen and rejected are messages without it; give it as messages, too"
    return "prompt begins one of chosen and rejected, and not the other"


def validate_guardrail(record: Record) -> str | None:
    """A conversation that ends with the user's turn, the answer wanted and the one not, and what they exemplify."""
    fault = _conversation_fault(record, "prompt", last="user")
    for name in ("chosen", "rejected", "behavior", "variation", "group"):
        fault = fault or _text_fault(record, name)
    if fault:
        return fault
    if not isinstance(record.get("is_trigger"), bool):
        return _wrong(record, "is_trigger", "true or false")
    return "chosen and rejected are the same text" if record["chosen"] == record["rejected"] else None


def _conversation_fault(record: Record, name: str, last: str | None = None) -> str | None:
    messages = record.get(name)
    if not isinstance(messages, list):
        return _wrong(record, name, "a list of messages")
    if not messages:
        return f"{name} is empty"
    for index, message in enumerate(messages):
        place = f"{name}[{index}]"
        if not isinstance(message, dict):
            return f"{place} is {kind_of(message)}, not a message with role and content"
        if message.get("role") not in ROLES:
            return f"{place}.role is not one of {', '.join(ROLES)}"
        if message["role"] == "system" and index > 0:
            return f"{place} is a system message that is not the first"
        fault = _text_fault(message, "content", f"{place}.")
        if fault:
            return fault
    return None if last in (None, messages[-1]["role"]) else f"the last message of {name} is not the {last}'s"


def _text_fault(record: Record, name: str, prefix: str = "") -> str | None:
    value = record.get(name)
    if not isinstance(value, str):
        return prefix + _wrong(record, name, "a string")
    return None if value.strip() else f"{prefix}{name} is empty"


def _optional_fault(record: Record) -> str | None:
    if "id" in record and (not isinstance(record["id"], str | int) or isinstance(record["id"], bool)):
        return _wrong(record, "id", "a string or a whole number")
    for name in ("category", "split", "source"):
        if name in record and not isinstance(record[name], str):
            return _wrong(record, name, "a string")
    if record.get("split", "train") not in SPLITS:
        return f"split is not one of {', '.join(SPLITS)}"
    return None


def _wrong(record: Record, name: str, wanted: str) -> str:
    return f"{name} is {kind_of(record[name])}, not {wanted}" if name in record else f"{name} is missing"
