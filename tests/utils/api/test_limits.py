import asyncio

import pytest

from utils.api import limits
from utils.api.limits import Budget, Pace
from utils.errors import WorkError


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(limits.time, "monotonic", lambda: self.now)


def times(pace: Pace, clock: Clock, count: int, delays: list[float]) -> list[float]:
    """When `count` requests begin, if each asks `delays` (in turn) after the one before has begun."""
    begun = []
    for index in range(count):
        clock.now += pace.reserve(1)
        begun.append(clock.now)
        clock.now += delays[index % len(delays)]
    return begun


@pytest.mark.parametrize("per_minute", [1, 7, 60, 500, 12_000])
@pytest.mark.parametrize("delays", [[0.0], [0.0, 0.0, 0.3], [0.0] * 50 + [5.0]])
def test_no_minute_holds_more_than_the_limit(
    per_minute: int, delays: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = times(Pace(per_minute), Clock(monkeypatch), min(4 * per_minute, 20_000), delays)
    first = 0
    for index, time in enumerate(begun):
        while begun[first] <= time - 60:
            first += 1
        assert index - first + 1 <= per_minute


def test_a_steady_run_keeps_99_percent_of_the_limit_whoever_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    begun = times(Pace(600), clock, 3000, [0.0] * 9 + [0.3])
    assert (len(begun) - 1) / (begun[-1] - begun[0]) * 60 > 0.985 * 600


def test_no_limit_never_waits_and_tokens_that_were_not_used_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    assert [Pace(None).reserve(1e9) for _ in range(3)] == [0.0] * 3
    pace = Pace(6000)
    pace.reserve(600)
    first = pace.reserve(600)
    pace.give_back(540)
    assert pace.reserve(1) == pytest.approx(2 * first + limits.CATCH_UP_S - 540 / 99, abs=1e-6)


def test_the_budget_waits_for_those_under_way_and_ends_the_work_when_nothing_can_make_room() -> None:
    spent = 0.0
    order: list[str] = []

    async def request(budget: Budget, name: str, cost: float) -> None:
        nonlocal spent
        await budget.reserve(0.4)
        order.append(f"{name} begins")
        await asyncio.sleep(0)
        spent += cost
        order.append(f"{name} ends")
        budget.release(0.4)

    async def main() -> None:
        budget = Budget(1.0, lambda: spent)
        await asyncio.gather(*(request(budget, name, 0.1) for name in "abc"))
        assert order.index("c begins") > order.index("a ends")
        await request(budget, "d", 0.4)
        with pytest.raises(WorkError, match=r"--max_cost 1 US\$ reached: 0.7000 US\$ are spent"):
            await request(budget, "e", 0.4)

    asyncio.run(main())
    assert spent == pytest.approx(0.7) and "e begins" not in order
