"""Estimates as plain text tables of at most WIDTH columns: rates in per cent, differences of rates in points.

A model whose columns no longer fit goes to a further table below, so nothing is cut but over-long names.
"""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.statistics import Estimate

WIDTH = 100
LONGEST_LABEL = 28


def estimate_text(estimate: Estimate, percent: bool, signed: bool = False) -> str:
    """`97.1 % [94.1, 98.6]`, `+4.21 [+3.98, +4.44]` or `-`, then n."""
    value, low, high = (estimate[key] for key in ("value", "low", "high"))
    if value is None:
        return "-"

    def text(number: float) -> str:
        sign = "+" if signed else ""
        if percent:
            return f"{100 * number:{sign}.1f}"
        return f"{number:{sign}.3f}" if abs(number) < 1 else f"{number:{sign}.2f}"

    unit = (" pp" if signed else " %") if percent else ""
    bounds = "no interval" if low is None or high is None else f"[{text(low)}, {text(high)}]"
    return f"{text(value)}{unit} {bounds} n={estimate['n']}"


def table(
    title: str,
    heads: Sequence[str],
    rows: Sequence[tuple[str, Sequence[str]]],
    width: int = WIDTH,
    longest_label: int = LONGEST_LABEL,
) -> str:
    """Rows of a label and one text a head, every column as wide as it must be, right-aligned."""
    labels = [title, *(label for label, _ in rows)]
    label_width = min(longest_label, max(map(len, labels)))
    widths = [max(len(head), *(len(cells[i]) for _, cells in rows)) for i, head in enumerate(heads)] if rows else []
    blocks, first = [], 0
    while first < len(widths):
        last, used = first, label_width
        while last < len(widths) and (last == first or used + 2 + widths[last] <= width):
            used += 2 + widths[last]
            last += 1
        lines = [(title, heads[first:last]), *((label, cells[first:last]) for label, cells in rows)]
        blocks.append("\n".join(_line(label, cells, label_width, widths[first:last]) for label, cells in lines))
        first = last
    return "\n\n".join(blocks)


def _line(label: str, cells: Sequence[str], label_width: int, widths: Sequence[int]) -> str:
    short = label if len(label) <= label_width else label[: label_width - 1] + "…"
    return short.ljust(label_width) + "".join("  " + cell.rjust(w) for cell, w in zip(cells, widths, strict=True))
