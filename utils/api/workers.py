"""A bounded pool of workers over any number of items, whose results come as they are completed.

    async with contextlib.aclosing(each(jobs, work, concurrency=25)) as results:
        async for result in results:
            journal(result)

No more than `concurrency` items are taken at once, so a hundred thousand make no hundred thousand tasks. When a worker
raises, no further item is begun; those under way get GRACE_S to finish, their results are delivered, the rest is
cancelled, and then the error is raised. With `aclosing` an error of the loop's body cancels the workers at once. Which
item a result is of, the worker says: it returns the item, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

GRACE_S = 10.0
"""What requests that are under way, and will be paid for, get when another one has ended the work."""


async def each(
    items: Iterable[T], worker: Callable[[T], Awaitable[R]], concurrency: int, grace_s: float = GRACE_S
) -> AsyncGenerator[R, None]:
    """Results of `worker` on each item, as completed; the first error is raised after all finished results."""
    waiting = iter(items)
    running: set[asyncio.Future[R]] = set()
    error: BaseException | None = None
    more = True
    try:
        while True:
            while more and error is None and len(running) < concurrency:
                try:
                    item = next(waiting)
                except StopIteration:
                    more = False
                else:
                    running.add(asyncio.ensure_future(worker(item)))
            if not running:
                break
            done, running = await asyncio.wait(
                running, timeout=None if error is None else grace_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            for task in done:
                failure = task.exception()
                if failure is None:
                    yield task.result()
                elif error is None:
                    error = failure
        if error is not None:
            raise error
    finally:
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
