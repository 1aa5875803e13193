import asyncio
import contextlib

import pytest

from utils.api.workers import each


def test_no_more_than_concurrency_are_under_way_and_every_result_comes() -> None:
    under_way, most, begun = 0, 0, []

    def items():  # type: ignore[no-untyped-def]
        for item in range(40):
            begun.append(item)
            yield item

    async def work(item: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        assert len(begun) <= item + 8
        await asyncio.sleep(0.001 * (item % 3))
        under_way -= 1
        return item * item

    async def all_results() -> list[int]:
        return [result async for result in each(items(), work, 7)]

    assert sorted(asyncio.run(all_results())) == [item * item for item in range(40)]
    assert most == 7


def test_results_come_as_completed() -> None:
    async def main() -> list[str]:
        gate = asyncio.Event()

        async def work(item: str) -> str:
            if item == "first":
                await gate.wait()
            return item

        results = []
        async for result in each(["first", "second", "third"], work, 2):
            results.append(result)
            if result == "third":
                gate.set()
        return results

    assert asyncio.run(main()) == ["second", "third", "first"]


def test_the_first_error_comes_after_what_is_under_way_and_nothing_more_is_begun() -> None:
    begun, cancelled = [], []

    async def work(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise ValueError("the first")
        try:
            await asyncio.sleep(0.02 if item == 0 else 30)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        return item

    async def main() -> list[int]:
        results = []
        with pytest.raises(ValueError, match="the first"):
            async for result in each(range(100), work, 3, grace_s=0.2):
                results.append(result)
        return results

    assert asyncio.run(main()) == [0]
    assert begun == [0, 1, 2] and cancelled == [2]


def test_an_error_of_the_loop_cancels_the_workers() -> None:
    cancelled = []

    async def work(item: int) -> int:
        if item == 0:
            return item
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        return item

    async def main() -> None:
        async with contextlib.aclosing(each(range(5), work, 3)) as results:
            async for _ in results:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        asyncio.run(main())
    assert sorted(cancelled) == [1, 2]
