"""The journal of a run that pays for its records: one row a finished job, so that a killed run goes on where it was.

    with open_journal(Path("out.json"), {"--model": "gpt-5-mini", "--seed": 1}) as journal:
        if "job-7" not in journal.done:
            journal.append("job-7", records, [])
        journal.assemble(list_of_records, validate_secret, overwrite=False)

`out.json.journal.jsonl` lies beside the output. Its first row holds the options that shape the data: a later run with
others is refused, with the option named. Each further row is one job: its id, its records, and why there are not more.
A row is one write of one line, and a torn last line does not count (`utils.files`), so a process may be killed at any
moment. The journal is locked while it is open; a second process is refused, and a killed one leaves no lock behind.
`assemble` writes the output in one move and then removes the journal.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset.records import Validator, check_target, file_bytes
from utils.errors import UserError
from utils.files import append_jsonl, open_locked, read_jsonl, remove_leftovers, sha256_file, write_atomic

Record = dict[str, Any]

FORMAT = 1
"""Of the journal's rows; a journal of another is refused."""


@dataclass(frozen=True)
class Row:
    """One finished job."""

    records: list[Record]
    reasons: list[str]
    """Why there are fewer records than were asked for; empty: there are not."""


@dataclass
class Journal:
    """An open journal; `done` holds the finished jobs by id."""

    path: Path
    output: Path
    done: dict[str, Row] = field(default_factory=dict)

    @property
    def batch_state(self) -> Path:
        """Where `--batch_api` keeps the ids of its batches: `OUTPUT.batches.json`."""
        return self.output.with_name(f"{self.output.name}.batches.json")

    def append(self, job: str, records: list[Record], reasons: list[str]) -> None:
        """Keep a finished job. Raises WorkError if the disk refuses it."""
        append_jsonl(self.path, {"job": job, "records": records, "reasons": reasons})
        self.done[job] = Row(records, reasons)

    def assemble(self, records: list[Record], validate: Validator, *, overwrite: bool = False) -> None:
        """Write the output, whole or not at all, and remove the journal. An output of these very bytes stays.

        Raises:
            UserError: the output exists with other contents and may not be replaced, or a record is invalid.
        """
        data = file_bytes(self.output, records, validate)
        digest = hashlib.sha256(data).hexdigest()
        if not _holds(self.output, digest):
            check_target(self.output, overwrite)
            append_jsonl(self.path, {"assembling": digest})
            write_atomic(self.output, data)
        self.discard()

    def discard(self) -> None:
        """Remove the journal and the state of its batches."""
        self.batch_state.with_name(f"{self.batch_state.name}.lock").unlink(missing_ok=True)
        self.batch_state.unlink(missing_ok=True)
        self.path.unlink()


def journal_path(output: Path) -> Path:
    """The journal's name: that of the file the output really is, so that a link to it has the same one."""
    target = Path(os.path.realpath(output))
    return target.with_name(f"{target.name}.journal.jsonl")


@contextlib.contextmanager
def open_journal(output: Path, options: dict[str, Any], *, overwrite: bool = False) -> Iterator[Journal]:
    """The journal of an output file, begun or gone on with; locked until the block ends.

    `options` are those that shape the data, named as the user gives them ("--model"), as JSON values; never a key.
    A journal that holds nothing yet leaves with the block.

    Raises:
        UserError: the output exists and may not be replaced; another process has the journal open; it was begun with
            other options; it is no journal.
    """
    path = journal_path(output)
    if not path.exists():
        check_target(output, overwrite)
    in_use = f"{path}: another process is writing it; wait until it has ended, or give another output file"
    descriptor = open_locked(path, in_use, required=False)
    try:
        remove_leftovers(output)
        journal = Journal(path, output)
        written = _read(journal, options)
        if not _holds(output, written):  # it does where a process was killed before it could remove its journal
            check_target(output, overwrite)
        try:
            yield journal
        finally:
            if not journal.done and not journal.batch_state.exists():
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _read(journal: Journal, options: dict[str, Any]) -> str:
    """Check the header against the options, and read the finished jobs; an empty journal gets its header. The sha256
    of the output that was being written last, if any, is returned."""
    written = ""
    rows = read_jsonl(journal.path)
    if (not rows or (len(rows) == 1 and "journal" in rows[0])) and not journal.batch_state.exists():
        os.truncate(journal.path, 0)
        rows = []
    if not rows:
        append_jsonl(journal.path, {"journal": FORMAT, "options": options})
    else:
        _check_header(journal.path, rows[0], options)
    for row in rows[1:]:
        if isinstance(row.get("assembling"), str):
            written = row["assembling"]
            continue
        if not isinstance(row.get("job"), str) or not isinstance(row.get("records"), list):
            raise UserError(f"{journal.path}: a row is no finished job: {str(row)[:80]}; remove or repair it")
        journal.done[row["job"]] = Row(row["records"], row.get("reasons", []))
    return written


def _check_header(path: Path, header: dict[str, Any], options: dict[str, Any]) -> None:
    way_out = f"give the same options to go on, another output file, or remove {path.name} to give up what it holds"
    if header.get("journal") != FORMAT or not isinstance(header.get("options"), dict):
        raise UserError(f"{path}: its first row is not the header of a journal of this version; {way_out}")
    before = header["options"]
    for name in [*options, *(name for name in before if name not in options)]:
        if before.get(name) != options.get(name):
            raise UserError(
                f"{path} was begun with {name} {before.get(name)}, and this is {options.get(name)}; {way_out}"
            )


def _holds(path: Path, digest: str) -> bool:
    """Whether the file is there with these very bytes."""
    return path.is_file() and sha256_file(path) == digest
