"""Follow a run that another process writes, in the terminal.

    python visualize_training.py --metrics_dir RUN --follow

RUN is a run directory, or one whose runs lie below it (guardrails): then the newest is followed, and the next after
it. Once a second what was added to metrics.jsonl is read, never the whole file again; of a long file the end, and every
alarm. On a terminal it shows utils.terminal's table, elsewhere plain lines. It ends with the run: one that failed, was
interrupted or was killed is an error, so that `... --follow && next` does what it says.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from utils import machine
from utils.errors import UserError, WorkError
from utils.runs import MANIFEST, METRICS, read_manifest
from utils.sound import unix_time
from utils.terminal import LINE_EVERY, Progress, Row, is_live, line_of, live_view, plain_line, seconds_left, take

POLL_S = 1.0
READ_AT_FIRST = 1 << 20
"""Bytes at the end of a file whose rows are taken up; of what is before them, only alarms."""


@dataclass
class Tail:
    """How far a growing file was read. `rest` is a last line that is still being written."""

    path: Path
    at: int = 0
    rest: bytes = b""
    inode: int | None = None


def new_rows(tail: Tail) -> list[Row]:
    """What was added since the last call, line by line; lines that are no JSON object are passed over."""
    try:
        with tail.path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != tail.inode or status.st_size < tail.at:
                tail.at, tail.rest, tail.inode = 0, b"", status.st_ino
            file.seek(tail.at)
            early = _alarm_lines(file, status.st_size - READ_AT_FIRST) if tail.at == 0 else []
            added = tail.rest + file.read()
            tail.at = file.tell()
    except FileNotFoundError:
        return []
    *lines, tail.rest = added.split(b"\n")
    return [row for line in (*early, *lines) if (row := _row(line)) is not None]


def _alarm_lines(file: Any, until: int) -> list[bytes]:
    """The lines that may hold an alarm, of the whole lines that begin before `until`."""
    found = []
    while file.tell() < until and (line := file.readline()):
        if b'"alarm"' in line:
            found.append(line)
    return found


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


# --------------------------------------------------------------------------------------------------- which run


def newest_run(directory: Path) -> Path:
    """The run in a directory; or, of those below it, the one that was written last.

    Raises:
        UserError: there is none.
    """
    if (directory / MANIFEST).is_file() or (directory / METRICS).is_file():
        return directory
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give --metrics_dir the directory of a run (train writes it)")
    below = [path for path in directory.iterdir() if (path / MANIFEST).is_file()]
    if not below:
        raise UserError(f"{directory}: no run here, nor in a directory below; --mode train writes one")
    return max(below, key=_written)


def _written(run: Path) -> float:
    times = [0.0]
    for name in (MANIFEST, METRICS):
        with contextlib.suppress(OSError):
            times.append((run / name).stat().st_mtime)
    return max(times)


def manifest_of(run: Path) -> dict[str, Any]:
    """The manifest, empty where there is none (yet)."""
    return read_manifest(run) if (run / MANIFEST).is_file() else {}


def planned_steps(manifest: dict[str, Any], row: Row | None) -> int | None:
    """The last step of the stage that a row is from, as far as the manifest tells."""
    config = manifest.get("config")
    config = config if isinstance(config, dict) else {}
    steps = [config.get(key) for key in ("sft_steps", "max_steps")]
    sft, rest = (value if isinstance(value, int) and value > 0 else 0 for value in steps)
    split = (row or {}).get("split")
    if split in ("sft", "grpo") and (known := sft if split == "sft" else sft + rest):
        return known
    planned = manifest.get("planned_steps")
    return planned if isinstance(planned, int) else rest or None


def is_alive(manifest: dict[str, Any]) -> bool | None:
    """Whether the process that opened the run lives; None where this machine cannot tell."""
    process = manifest.get("process")
    if not isinstance(process, dict) or process.get("host") != socket.gethostname():
        return None
    pid, start = process.get("pid"), process.get("start")
    if not isinstance(pid, int):
        return None
    return bool(machine.process_exists(pid) and machine.process_start(pid) == start)


# ------------------------------------------------------------------------------------------------------ follow


@dataclass
class Followed:
    """The run under way, and what of it was read and said in plain lines."""

    run: Path
    tail: Tail
    progress: Progress
    manifest: dict[str, Any] = field(default_factory=dict)
    said_rows: int = 0
    said_held_out: Row = field(default_factory=dict)
    said_alarms: int = 0


def follow(directory: Path, out: TextIO, wait: Callable[[float], None] = time.sleep) -> None:
    """Show the run until it ends; of a directory of runs, one after the other.

    Raises:
        UserError: there is no run.
        WorkError: it failed, was interrupted, or its process is gone.
    """
    run: Path | None = newest_run(directory)
    while run is not None:
        followed = Followed(run, Tail(run / METRICS), Progress(str(run)))
        with _shown(followed, out) as update:
            while not (ended := _poll(followed)):
                update()
                wait(POLL_S)
            update()
        run = _next_run(directory, followed, wait)
        if ended == "done":
            print(f"{line_of(followed.run)}: done at step {followed.progress.step}", file=out, flush=True)
        elif run is None:
            raise WorkError(_how_it_ended(followed, ended))


def _poll(followed: Followed) -> str:
    """Take up what is new; how the run ended, empty while it goes on."""
    progress, manifest = followed.progress, manifest_of(followed.run)
    for row in new_rows(followed.tail):
        take(progress, row)
    followed.manifest = manifest
    progress.task, progress.started = str(manifest.get("task") or ""), unix_time(manifest.get("started"))
    progress.planned_steps = planned_steps(manifest, progress.rows[-1] if progress.rows else None)
    status = str(manifest.get("status") or "running")
    progress.status = "killed" if status == "running" and is_alive(manifest) is False else status
    return "" if progress.status == "running" else progress.status


def _next_run(directory: Path, followed: Followed, wait: Callable[[float], None]) -> Path | None:
    """The run that the process of an ended one begins in the same directory, if it does before it ends itself."""
    if followed.run == directory:
        return None
    while (newest := newest_run(directory)) == followed.run and is_alive(followed.manifest):
        wait(POLL_S)
    return newest if newest != followed.run else None


@contextlib.contextmanager
def _shown(followed: Followed, out: TextIO) -> Iterator[Callable[[], None]]:
    if is_live(out):
        with live_view(followed.progress, out) as refresh:
            yield refresh
    else:
        yield lambda: print("".join(f"{line}\n" for line in _news(followed)), end="", file=out, flush=True)


def _news(followed: Followed) -> list[str]:
    """Lines for what is new: at most one a call for log events, and only if ten of them are new; the newest held-out
    measurement; every alarm."""
    progress, lines = followed.progress, []
    is_first = followed.said_rows == 0 or followed.said_rows > progress.taken
    if progress.rows and (is_first or progress.taken - followed.said_rows >= LINE_EVERY):
        followed.said_rows = progress.taken
        lines.append(plain_line(progress.rows[-1], progress.planned_steps, seconds_left(progress)))
    if progress.held_out and progress.held_out is not followed.said_held_out:
        followed.said_held_out = progress.held_out
        lines.append(plain_line(progress.held_out, progress.planned_steps))
    lines += [f"ALARM at step {step}: {text}" for step, text in progress.alarms[followed.said_alarms :]]
    followed.said_alarms = len(progress.alarms)
    return lines


def _how_it_ended(followed: Followed, ended: str) -> str:
    run = line_of(followed.run)
    if ended == "failed":
        return f"{run} failed: {line_of(followed.manifest.get('reason') or 'no reason was left')}"
    if ended == "killed":
        return f"{run}: its process is gone and left no word; continue the run with --resume"
    return f"{run}: {line_of(ended)} at step {followed.progress.step}; continue the run with --resume"
