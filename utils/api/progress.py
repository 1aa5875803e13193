"""How far the work is, on stderr: one line that is rewritten on a terminal, else a line now and then.

teacher: 120/500 records, 61/min, 6:14 left, 0.0312 US$, 9 retries, 2 failures, 14 from the cache
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

TERMINAL_S = 0.5
LOG_S = 30.0


@dataclass
class Totals:
    """What a client did. `requests` went over the wire, those sent again included; `answers` and `failures` are what
    came of the asks, those from the cache included; tokens and cost are of what was paid for here."""

    requests: int = 0
    answers: int = 0
    cached: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    """US$; None: the model has no price."""
    doubtful: float = 0.0
    """US$ at most of requests that broke off: the provider may have counted them."""

    def summary(self) -> str:
        """The totals as one line."""
        parts = [f"{self.answers:,} answers", f"{self.requests:,} requests"]
        if self.cached:
            parts.append(f"{self.cached:,} from the cache")
        for name, counts in (("retries", self.retries), ("failures", self.failures)):
            if counts:
                parts.append(f"{counts.total():,} {name} ({_listed(counts)})")
        parts.append(f"tokens {self.input_tokens:,} in, {self.output_tokens:,} out")
        parts.append("cost unknown (no price)" if self.cost is None else f"{self.cost:.4f} US$")
        if self.cost is not None and self.doubtful:
            parts[-1] += f" (and at most {self.doubtful:.4f} for requests that broke off)"
        return ", ".join(parts)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name}: {times:,}" for name, times in counts.most_common())


class Progress:
    """The line of one client; without a label nothing is shown."""

    def __init__(self, label: str, totals: Totals) -> None:
        self.label = label
        self.totals = totals
        self.done = 0
        self.total: int | None = None
        self.unit = "answers"
        self.began = time.monotonic()
        self._width = 0

    def expect(self, total: int, unit: str = "answers") -> None:
        """The work has so many parts; call `step` for each that is done."""
        self.total, self.unit = total, unit

    def step(self, parts: int = 1) -> None:
        self.done += parts

    def line(self) -> str:
        done = self.done if self.total is not None else self.totals.answers
        per_s = done / max(time.monotonic() - self.began, 1e-9)
        of = f"/{self.total:,}" if self.total is not None else ""
        parts = [f"{self.label}: {done:,}{of} {self.unit}", f"{per_s * 60:,.0f}/min"]
        if self.total is not None and done:
            left = int((self.total - done) / per_s)
            parts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left" if left >= 3600 else _minutes(left))
        if self.totals.cost is not None:
            parts.append(f"{self.totals.cost:.4f} US$")
        for name, number in (("retries", self.totals.retries.total()), ("failures", self.totals.failures.total())):
            if number:
                parts.append(f"{number:,} {name}")
        if self.totals.cached:
            parts.append(f"{self.totals.cached:,} from the cache")
        return ", ".join(parts)

    async def show(self) -> None:
        """Show the line until cancelled."""
        if not self.label:
            return
        on_terminal = sys.stderr.isatty()
        while True:
            await asyncio.sleep(TERMINAL_S if on_terminal else LOG_S)
            if on_terminal:
                line = self.line()
                print(f"\r{line:<{self._width}}", end="", file=sys.stderr, flush=True)
                self._width = len(line)
            else:
                print(self.line(), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line of its own, past the one that is rewritten."""
        if self._width:
            print(f"\r{'':<{self._width}}\r", end="", file=sys.stderr)
            self._width = 0
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.label:
            self.say(f"{self.label}: {self.totals.summary()}")


def _minutes(left_s: int) -> str:
    return f"{left_s // 60}:{left_s % 60:02} left"
