"""Long logs read fast: a million rows of metrics as numpy columns.

    table = read_metrics_table(run / "metrics.jsonl")
    table.steps, table.splits, table.column("loss")     one entry a row: ABSENT where it has no such key, NaN for a gap

A dict a row would take 3 GB for a million rows and a minute to make. Here the file is read in chunks of whole lines;
polars parses two chunks at a time, each on all cores (utils.json_columns), and what it cannot take (a broken line, a
number that was logged as a string once) is parsed line by line with `json`. A log is a witness: a line that is no row
is left out and named in `faults`, and the rest is shown. A last line without its newline is still being written, and
no fault.

Of a step that a resumed run repeated, the rows of its newest resume count alone.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.json_columns import TOO_LARGE, Types, count, learn, metric, read_columns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
Columns = tuple[Any, list[dict[str, Any]]]
"""A polars DataFrame of rows, and the rows of alarms."""

ABSENT = -math.inf
"""What a column holds where the row has no such key: infinite values are gaps, so it cannot be one of them."""
NOT_METRICS = {"step", "time", "split", "resumes", "alarm", "epoch"}
CHUNK_BYTES, CHUNKS_AHEAD = 16 << 20, 2
PARSED_FAST_BYTES = 1 << 20
"""Smaller chunks are parsed with `json`, which is there already."""
TYPES_FROM_LINES = 1000
"""Of the first chunk, parsed with `json` to learn what columns there are; others are met later."""
FAULTS_NAMED = 3

_GAP = b": -1e308"
_GAPS = (b"null", b'"NaN"', b'"Infinity"', b'"-Infinity"', b"NaN", b"Infinity", b"-Infinity")


class Faults:
    """Lines that are no rows: the first few by number, all of them counted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[int] = []

    def texts(self) -> tuple[str, ...]:
        if not self.lines:
            return ()
        named = ", ".join(f"{line:,}" for line in sorted(self.lines)[:FAULTS_NAMED])
        count, more = len(self.lines), " and more" if len(self.lines) > FAULTS_NAMED else ""
        return (
            f"{self.path.name}: {count:,} line{'s' * (count > 1)} left out, no row with a step "
            f"(line {named}{more}); remove or repair {'them' if count > 1 else 'it'}",
        )


@dataclass
class Part:
    """The rows of one chunk; `splits` holds positions in the list of all names of splits."""

    steps: NDArray[np.int64]
    splits: NDArray[np.int64]
    resumes: NDArray[np.int64]
    times: Floats
    metrics: dict[str, Floats]
    alarms: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The metrics of a run in order of steps and, within one, as logged; alarms by the place of their row."""

    steps: NDArray[np.int64]
    splits: NDArray[np.int64]
    split_names: list[str]
    times: Floats
    parts: list[Part]
    order: NDArray[np.int64]
    in_order: bool
    """Whether `order` is that of the file."""
    names: list[str]
    alarms: dict[int, str]
    faults: tuple[str, ...]
    read: int
    """Bytes of the file up to the end of its last whole line."""

    def column(self, name: str) -> Floats:
        """One metric; its memory is given back when the caller has done with it."""
        import numpy as np

        whole = np.full(sum(len(part.steps) for part in self.parts), ABSENT)
        start = 0
        for part in self.parts:
            end = start + len(part.steps)
            if (values := part.metrics.pop(name, None)) is not None:
                whole[start:end] = values
            start = end
        return whole if self.in_order else whole[self.order]


# ---------------------------------------------------------------------------------------------------- metrics


def read_metrics_table(path: Path) -> Table:
    """Every row that has a step; a missing file reads as an empty one."""
    faults = Faults(path)
    splits: dict[str, int] = {}
    types: Types = {}
    parts: list[Part] = []
    read = 0
    for first_line, chunk, whole, columns in _parsed_ahead(_chunks(path), types):
        last = chunk.rfind(b"\n") + 1
        read += len(chunk) if whole or parse_row(chunk[last:]) else last
        fast = _parts_of(*columns, splits) if columns else None
        parts += fast or [_parse_slow(chunk, first_line, whole, splits, types, faults)]
    return table_of(parts, splits, faults.texts(), read)


def table_of(parts: list[Part], splits: dict[str, int], faults: tuple[str, ...] = (), read: int = 0) -> Table:
    import numpy as np

    empty = np.zeros(0, dtype=np.int64)
    steps, of_splits, resumes = (
        np.concatenate([empty, *(getattr(part, name) for part in parts)]) for name in ("steps", "splits", "resumes")
    )
    order = newest_in_order(steps, of_splits, resumes)
    return Table(
        steps=steps[order],
        splits=of_splits[order],
        split_names=list(splits),
        times=np.concatenate([np.zeros(0), *(part.times for part in parts)])[order],
        parts=parts,
        order=order,
        in_order=np.array_equal(order, np.arange(sum(len(part.steps) for part in parts))),
        names=list(dict.fromkeys(name for part in parts for name in part.metrics)),
        alarms=_alarms(parts, order),
        faults=faults,
        read=read,
    )


def _alarms(parts: Sequence[Part], order: NDArray[np.int64]) -> dict[int, str]:
    """The texts of alarms by the places of their rows in the order of steps."""
    texts: dict[int, str] = {}
    start = 0
    for part in parts:
        texts |= {start + row: text for row, text in part.alarms.items()}
        start += len(part.steps)
    places = [int(place) for row in texts for place in (order == row).nonzero()[0]] if texts else []
    return {place: texts[int(order[place])] for place in sorted(places)}


def _chunks(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Number of the first line, whole lines, and whether the last of them has ended; what is written meanwhile is for
    the next reading."""
    if not path.is_file():
        return
    line = 1
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size
        while chunk := file.read(min(CHUNK_BYTES, left)):
            if not chunk.endswith(b"\n"):
                chunk += file.readline(max(0, left - len(chunk)))
            left -= len(chunk)
            yield line, chunk, chunk.endswith(b"\n")
            line += count(chunk, b"\n")


def _parsed_ahead(
    chunks: Iterable[tuple[int, bytes, bool]], types: Types
) -> Iterator[tuple[int, bytes, bool, Columns | None]]:
    """The chunks with their columns, where they are worth it: while one is used, the next are read and parsed."""
    waiting: deque[tuple[tuple[int, bytes, bool], Future[Columns | None] | None]] = deque()
    with ThreadPoolExecutor(2) as pool:
        for chunk in chunks:
            worth_it = chunk[2] and len(chunk[1]) >= PARSED_FAST_BYTES
            if worth_it and not types:
                learn(types, filter(None, map(parse_row, chunk[1].split(b"\n", TYPES_FROM_LINES)[:-1])))
            waiting.append((chunk, pool.submit(_parse_fast, chunk[1], dict(types)) if worth_it and types else None))
            while len(waiting) > CHUNKS_AHEAD:
                read, parsed = waiting.popleft()
                yield *read, parsed.result() if parsed else None
        for read, parsed in waiting:
            yield *read, parsed.result() if parsed else None


def newest_in_order(
    steps: NDArray[np.int64], splits: NDArray[np.int64], resumes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The rows of the newest resume of each split and step, in order of steps."""
    import numpy as np

    rows = np.arange(len(steps))
    if len(steps) and resumes.min() != resumes.max():
        _, groups = np.unique(np.stack([splits, steps]), axis=1, return_inverse=True)
        newest = np.zeros(groups.max() + 1, dtype=np.int64)
        np.maximum.at(newest, groups, resumes)
        rows = rows[resumes == newest[groups]]
    return rows[np.argsort(steps[rows], kind="stable")]


def _parts_of(frame: Any, alarms: list[dict[str, Any]], splits: dict[str, int]) -> list[Part] | None:
    """The rows of a chunk, its alarms by themselves; None where there is a row without a step."""
    part = _part_of(frame, splits)
    return [part, *([to_part(alarms, splits)] if alarms else [])] if part else None


def _parse_fast(chunk: bytes, types: Types) -> Columns | None:
    """The columns of a chunk and its alarms, or None if they would not say all of it. What polars reads as null is a
    key that is not there; a gap that was logged as null is parsed as a number that no metric has."""
    if (frame := read_columns(chunk, types)) is not None:
        return frame, []
    if (frame := read_columns(_marked(chunk), types)) is not None:
        return frame, []
    lines = chunk.split(b"\n")
    alarms = [row for line in lines if b'"alarm"' in line and (row := parse_row(line)) and "alarm" in row]
    frame = read_columns(_marked(b"\n".join(line for line in lines if b'"alarm"' not in line)), types)
    return None if frame is None else (frame, alarms)


def _marked(chunk: bytes) -> bytes:
    for gap in _GAPS:
        if gap in chunk:
            chunk = chunk.replace(b": " + gap, _GAP).replace(b":" + gap, _GAP)
    return chunk


def _part_of(frame: Any, splits: dict[str, int]) -> Part | None:
    import numpy as np

    count, columns = len(frame), {column.name: column for column in frame}
    resumes = columns.get("resumes")
    if not count or "step" not in columns or columns["step"].null_count():
        return None
    if "split" in columns and str(columns["split"].dtype) != "String":
        return None
    numeric = {name: column for name, column in columns.items() if column.dtype.is_float()}
    return Part(
        steps=columns["step"].to_numpy(),
        splits=_split_codes(columns.get("split"), count, splits),
        resumes=np.zeros(count, dtype=np.int64) if resumes is None else resumes.fill_null(0).to_numpy(),
        times=numeric["time"].to_numpy() if "time" in numeric else np.full(count, np.nan),
        metrics={name: _floats(column) for name, column in numeric.items() if name not in NOT_METRICS},
    )


def _floats(column: Any) -> Floats:
    import numpy as np

    values: Floats = column.to_numpy()
    gaps = ~(np.abs(values) < TOO_LARGE)
    if gaps.any():
        values = np.where(gaps, np.nan, values)
        values[column.is_null().to_numpy()] = ABSENT
    return values


def _split_codes(column: Any, count: int, splits: dict[str, int]) -> NDArray[np.int64]:
    import numpy as np

    if column is None:
        return np.full(count, splits.setdefault("train", len(splits)), dtype=np.int64)
    named = column.fill_null("train").replace("", "train")
    codes = {name: splits.setdefault(name, len(splits)) for name in named.unique(maintain_order=True)}
    result: NDArray[np.int64] = named.replace_strict(codes).to_numpy()
    return result


def _parse_slow(
    chunk: bytes, first_line: int, whole: bool, splits: dict[str, int], types: Types, faults: Faults
) -> Part:
    lines = chunk.split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=first_line):
        row = parse_row(line)
        if row is not None:
            rows.append(row)
        elif line.strip() and (whole or number < first_line + len(lines) - 1):
            faults.lines.append(number)
    if len(chunk) >= PARSED_FAST_BYTES:
        learn(types, rows)
    return to_part(rows, splits)


def parse_row(line: bytes) -> dict[str, Any] | None:
    """A row of a log with its step, or None."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or abs(row["step"]) >= 1 << 53:
        return None
    return row


def to_part(rows: Sequence[dict[str, Any]], splits: dict[str, int]) -> Part:
    import numpy as np

    metrics: dict[str, Floats] = {}
    for place, row in enumerate(rows):
        if "alarm" in row:
            continue
        for name, value in row.items():
            if name not in NOT_METRICS and (number := metric(value)) is not None:
                if name not in metrics:
                    metrics[name] = np.full(len(rows), ABSENT)
                metrics[name][place] = number
    names = [str(row.get("split") or "train") for row in rows]
    return Part(
        steps=np.array([row["step"] for row in rows], dtype=np.int64),
        splits=np.array([splits.setdefault(name, len(splits)) for name in names], dtype=np.int64),
        resumes=np.array([resumes_of(row) for row in rows], dtype=np.int64),
        times=np.array([_time(row.get("time")) for row in rows], dtype=np.float64),
        metrics=metrics,
        alarms={place: str(row["alarm"]) for place, row in enumerate(rows) if "alarm" in row},
    )


def resumes_of(row: dict[str, Any]) -> int:
    value = row.get("resumes", 0)
    return value if type(value) is int and 0 <= value < 1 << 53 else 0


def _time(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
