"""One event loop for the process, in a thread of its own, for code that has none.

    result = in_background(coroutine())

Made at its first use, so that asynchronous work can be done from any thread: the main one, a training loop's, or one
that runs a loop itself. The calling thread waits. Ctrl-C in it cancels the work, which gets GRACE_S to close its files.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

GRACE_S = 10.0
THREAD = "subtext-api"

_loops: dict[int, asyncio.AbstractEventLoop] = {}
"""By the process's id: a forked child inherits the entry of its parent, but not the thread."""
_making = threading.Lock()


def in_background(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, run in the process's own loop."""
    loop = _loop()
    if threading.current_thread().name == THREAD:
        raise RuntimeError("in_background is called in its own thread: await the work there")
    over = threading.Event()

    async def whole() -> T:
        try:
            return await work
        finally:
            over.set()

    waiting = asyncio.run_coroutine_threadsafe(whole(), loop)
    try:
        return waiting.result()
    except BaseException:
        waiting.cancel()
        over.wait(GRACE_S)
        raise


def _loop() -> asyncio.AbstractEventLoop:
    with _making:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name=THREAD, daemon=True).start()
    return loop
