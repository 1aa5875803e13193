"""Long logs read fast: a million rows of metrics as numpy columns.

    table = read_metrics_table(run / "metrics.jsonl")
    table.steps, table.splits, table.column("loss")     one entry a row: ABSENT where it has no such key, NaN for a gap

A dict a row would take 3 GB for a million rows and a minute to make. Here the file is read in chunks of whole lines;
pyarrow parses two chunks at a time, each on all cores, and what it cannot take (a broken line, a number that was logged
as a string once) is parsed line by line with `json`. A log is a witness: a line that is no row is left out and named in
`faults`, and the rest is shown. A last line without its newline is still being written, and no fault.

Of a step that a resumed run repeated, the rows of its newest resume count alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

ABSENT = -math.inf
"""What a column holds where the row has no such key: infinite values are gaps, so it cannot be one of them."""
NOT_METRICS = {"step", "time", "split", "resumes", "alarm", "epoch"}
CHUNK_BYTES, CHUNKS_AHEAD = 16 << 20, 2
PARSED_FAST_BYTES = 1 << 20
"""Smaller chunks are parsed with `json`, which is there already."""
FAULTS_NAMED = 3

_BLOCK_BYTES = 4 << 20
_TOO_LARGE = 1e308
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
        return whole[self.order]


# ---------------------------------------------------------------------------------------------------- metrics


def read_metrics_table(path: Path) -> Table:
    """Every row that has a step; a missing file reads as an empty one."""
    faults = Faults(path)
    splits: dict[str, int] = {}
    parts: list[Part] = []
    read = 0
    for first_line, chunk, whole, columns in _parsed_ahead(_chunks(path)):
        last = chunk.rfind(b"\n") + 1
        read += len(chunk) if whole or parse_row(chunk[last:]) else last
        fast = _parts_of(columns, chunk, splits) if columns else None
        parts += fast or [_parse_slow(chunk, first_line, whole, splits, faults)]
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
            line += chunk.count(b"\n")


def _parsed_ahead(
    chunks: Iterable[tuple[int, bytes, bool]],
) -> Iterator[tuple[int, bytes, bool, dict[str, Any] | None]]:
    """The chunks with their columns, where they are worth it: while one is used, the next are read and parsed."""
    waiting: deque[tuple[tuple[int, bytes, bool], Future[dict[str, Any] | None] | None]] = deque()
    with ThreadPoolExecutor(2) as pool:
        for chunk in chunks:
            worth_it = chunk[2] and len(chunk[1]) >= PARSED_FAST_BYTES
            waiting.append((chunk, pool.submit(_parse_arrow, chunk[1]) if worth_it else None))
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


def _parts_of(columns: dict[str, Any], chunk: bytes, splits: dict[str, int]) -> list[Part] | None:
    """The rows of a chunk, its alarms by themselves; None where pyarrow did not read it faithfully."""
    if "alarm" not in columns:
        part = _part_of(columns, splits)
        return [part] if part else None
    lines = chunk.split(b"\n")
    alarms = [row for line in lines if b'"alarm"' in line and (row := parse_row(line)) and "alarm" in row]
    rest = _parse_arrow(b"\n".join(line for line in lines if b'"alarm"' not in line))
    part = _part_of(rest, splits) if rest else None
    return [part, to_part(alarms, splits)] if part else None


def _parse_arrow(chunk: bytes) -> dict[str, Any] | None:
    """The columns of a chunk by name. To pyarrow, null is the same as a key that is not there; to us it is a gap, so
    where there may be any, gaps are parsed as a number that no metric has."""
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.json as pa_json  # type: ignore[import-untyped]
    except ImportError:
        return None

    def parsed(text: bytes) -> Any:
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            table = pa_json.read_json(pa.BufferReader(text), read_options=pa_json.ReadOptions(block_size=_BLOCK_BYTES))
            return table if table.num_rows == text.count(b"\n") else None
        return None

    table = parsed(_marked(chunk) if b"null" in chunk else chunk)
    if table is None or any(str(column.type) == "string" for column in _but_split(table)):
        table = parsed(_marked(chunk))
    if table is None or len(set(table.column_names)) < len(table.column_names):
        return None
    return dict(zip(table.column_names, table.columns, strict=True))


def _marked(chunk: bytes) -> bytes:
    for gap in _GAPS:
        if gap in chunk:
            chunk = chunk.replace(b": " + gap, _GAP).replace(b":" + gap, _GAP)
    return chunk


def _but_split(table: Any) -> list[Any]:
    return [column for name, column in zip(table.column_names, table.columns, strict=True) if name != "split"]


def _part_of(columns: dict[str, Any], splits: dict[str, int]) -> Part | None:
    import numpy as np

    count = len(columns["step"]) if "step" in columns else 0
    integers = [columns[name] for name in ("step", "resumes") if name in columns]
    if not count or any(str(column.type) != "int64" or column.null_count for column in integers):
        return None
    if "split" in columns and str(columns["split"].type) != "string":
        return None
    numeric = {name: column for name, column in columns.items() if str(column.type) in ("int64", "double")}
    return Part(
        steps=columns["step"].to_numpy(),
        splits=_split_codes(columns.get("split"), count, splits),
        resumes=columns["resumes"].to_numpy() if "resumes" in columns else np.zeros(count, dtype=np.int64),
        times=numeric["time"].to_numpy().astype(np.float64) if "time" in numeric else np.full(count, np.nan),
        metrics={name: _floats(column) for name, column in numeric.items() if name not in NOT_METRICS},
    )


def _floats(column: Any) -> Floats:
    import numpy as np

    values: Floats = column.to_numpy().astype(np.float64)
    gaps = ~(np.abs(values) < _TOO_LARGE)
    if gaps.any():
        values[gaps] = np.nan
        if column.null_count:
            values[column.is_null().to_numpy()] = ABSENT
    return values


def _split_codes(column: Any, count: int, splits: dict[str, int]) -> NDArray[np.int64]:
    import numpy as np

    if column is None:
        return np.full(count, splits.setdefault("train", len(splits)), dtype=np.int64)
    encoded = column.combine_chunks().fill_null("train").dictionary_encode()
    codes = [splits.setdefault(name, len(splits)) for name in encoded.dictionary.to_pylist()]
    result: NDArray[np.int64] = np.array(codes, dtype=np.int64)[encoded.indices.to_numpy()]
    return result


def _parse_slow(chunk: bytes, first_line: int, whole: bool, splits: dict[str, int], faults: Faults) -> Part:
    lines = chunk.split(b"\n")
    rows = []
    for number, line in enumerate(lines, start=first_line):
        row = parse_row(line)
        if row is not None:
            rows.append(row)
        elif line.strip() and (whole or number < first_line + len(lines) - 1):
            faults.lines.append(number)
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


def metric(value: object) -> float | None:
    """The number of a metric, NaN for a gap (null, NaN, infinite), None for what is no metric (text, truth, lists)."""
    if value is None:
        return math.nan
    if isinstance(value, str):
        return math.nan if value.lower() in ("nan", "inf", "-inf", "infinity", "-infinity") else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return math.nan
    return number if abs(number) < _TOO_LARGE else math.nan


def resumes_of(row: dict[str, Any]) -> int:
    value = row.get("resumes", 0)
    return value if type(value) is int and 0 <= value < 1 << 53 else 0


def _time(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
