"""The completions of a run, as many as a page can hold, evenly over its steps.

    sample = sample_rows(run / "completions.jsonl", most=100_000, most_bytes=200 << 20)
    sample.rows, sample.total

The file is read twice: for the place, step and resume of each line, of which a glance at its head is enough, then for
the lines that are kept. What is not kept is never parsed, so a log of any length takes little memory. As of metrics, a
line that is no row is named and left out, and of a step that was repeated the newest resume counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.columns import Faults, newest_in_order, parse_row, resumes_of

_HEAD = re.compile(rb'\{"step": ?(\d{1,15}), ?"resumes": ?(\d{1,15})[,}]')


@dataclass(frozen=True)
class Sample:
    rows: list[dict[str, Any]]
    total: int
    faults: tuple[str, ...]
    read: int


def sample_rows(path: Path, most: int, most_bytes: int) -> Sample:
    """Rows in order of their steps, evenly over all where there are more than `most`, or more bytes than allowed."""
    import numpy as np

    if not path.is_file():
        return Sample([], 0, (), 0)
    faults = Faults(path)
    heads = np.array(list(_heads(path, faults)), dtype=np.int64).reshape(-1, 5)
    offsets, sizes, steps, resumes, numbers = heads.T
    order = newest_in_order(steps, np.zeros_like(steps), resumes)
    total = len(order)
    share = min(1.0, most_bytes / max(1, int(sizes[order].sum())))
    order = order[evenly(total, max(1, min(most, int(total * share))))]
    rows: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for place in order.tolist():
            file.seek(offsets[place])
            row = parse_row(file.read(sizes[place]))
            if row is not None:
                rows.append(row)
            else:
                faults.lines.append(int(numbers[place]))
                total -= 1
    return Sample(rows, total, faults.texts(), int(max(offsets + sizes, default=0)))


def evenly(count: int, most: int) -> list[int]:
    """At most `most` positions of so many, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [round(index * (count - 1) / max(1, most - 1)) for index in range(most)]


def _heads(path: Path, faults: Faults) -> Iterable[tuple[int, int, int, int, int]]:
    """Offset, size, step, resume and number of each line; only a line in another order of keys is parsed for them."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if (match := _HEAD.match(line)) and line.endswith(b"}\n"):
                yield offset, len(line), int(match[1]), int(match[2]), number
            elif row := parse_row(line):
                yield offset, len(line), row["step"], resumes_of(row), number
            elif line.strip() and line.endswith(b"\n"):
                faults.lines.append(number)
            elif not line.endswith(b"\n"):
                return
            offset += len(line)
