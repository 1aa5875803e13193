"""Limits of a client: requests and tokens a minute, and money.

Pace hands out times to begin at, evenly, at 99 % of the limit: a server that counts the requests of any minute sees no
more than the limit, although they do not arrive as evenly as they were sent. What was late is made up for if it was
a quarter of a second at most: more would be a burst.

Budget lets a request begin only if the most that it can cost fits beside what is spent and the most that the requests
under way can cost. One that does not fit waits for those: most cost less than their most.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from utils.errors import WorkError

SHARE = 0.99
CATCH_UP_S = 0.25


class Pace:
    """So many units (requests, tokens) a minute; None: no limit."""

    def __init__(self, per_minute: int | None) -> None:
        self.per_s = None if per_minute is None else per_minute * SHARE / 60
        self.next = 0.0

    def reserve(self, units: float) -> float:
        """Seconds until so many units may be begun; later ones come after them."""
        if self.per_s is None:
            return 0.0
        now = time.monotonic()
        begin = max(now - CATCH_UP_S, self.next)
        self.next = begin + units / self.per_s
        return max(0.0, begin - now)

    def give_back(self, units: float) -> None:
        """Units that were reserved and not used; negative: more were used."""
        if self.per_s is not None:
            self.next -= units / self.per_s


class Budget:
    """US$ that may be spent, `max_cost`; None: no limit. `spent` tells what is gone."""

    def __init__(self, max_cost: float | None, spent: Callable[[], float]) -> None:
        self.max_cost = max_cost
        self.spent = spent
        self.under_way = 0
        self.reserved_usd = 0.0
        self._changed = asyncio.Event()

    async def reserve(self, worst_usd: float) -> None:
        """Wait until a request that costs this at most may begin; `release` it when it is over.

        Raises:
            WorkError: it does not fit, and nothing is under way that could make room.
        """
        while self.max_cost is not None and self.spent() + self.reserved_usd + worst_usd > self.max_cost:
            if not self.under_way:
                raise WorkError(
                    f"--max_cost {self.max_cost:g} US$ reached: {self.spent():.4f} US$ are spent (requests that broke "
                    f"off included), and the next one can cost {worst_usd:.4f}; what is done is kept: give more, and "
                    "run the same command again"
                )
            await self._changed.wait()
        self.under_way += 1
        self.reserved_usd += worst_usd

    def release(self, worst_usd: float) -> None:
        self.under_way -= 1
        self.reserved_usd = self.reserved_usd - worst_usd if self.under_way else 0.0
        self.wake()

    def wake(self) -> None:
        """Let who waits look again."""
        self._changed.set()
        self._changed = asyncio.Event()
