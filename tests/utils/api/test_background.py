import asyncio
import signal
import sys
import threading

import pytest

from utils.api.background import in_background


async def double(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


def test_it_works_from_the_main_thread_another_thread_and_a_running_loop() -> None:
    async def within() -> int:
        return in_background(double(3))

    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(in_background(double(2))))
    thread.start()
    thread.join()
    assert [in_background(double(1)), *results, asyncio.run(within())] == [2, 4, 6]


def test_errors_arrive_and_its_own_thread_is_refused() -> None:
    async def fails() -> None:
        raise ValueError("as it is")

    async def nested() -> None:
        work = double(1)
        try:
            in_background(work)
        finally:
            work.close()

    with pytest.raises(ValueError, match="as it is"):
        in_background(fails())
    with pytest.raises(RuntimeError, match="its own thread"):
        in_background(nested())


def test_an_interrupt_cancels_the_work_and_waits_until_it_has_closed_its_files() -> None:
    closed = []

    async def work() -> None:
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        try:
            while sys._current_frames()[main_thread].f_code.co_name != "wait":
                await asyncio.sleep(0.001)
            signal.pthread_kill(main_thread, signal.SIGINT)
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            closed.append(True)
            raise

    with pytest.raises(KeyboardInterrupt):
        in_background(work())
    assert closed == [True]
