from collections import Counter

import pytest

from utils.api import progress as progress_module
from utils.api.progress import Progress, Totals


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_the_line_has_rate_time_left_cost_and_what_went_wrong(clock: list[float]) -> None:
    totals = Totals(cost=0.5)
    progress = Progress("teacher", totals)
    progress.expect(500, "records")
    assert progress.line() == "teacher: 0/500 records, 0/min, 0.5000 US$"
    clock[0] += 60
    progress.step(50)
    totals.retries.update({"429": 3, "500": 1})
    totals.failures["refusal"] += 2
    totals.cached = 7
    assert progress.line() == (
        "teacher: 50/500 records, 50/min, 9:00 left, 0.5000 US$, 4 retries, 2 failures, 7 from the cache"
    )
    progress.expect(50_000, "records")
    assert "16:39:00 left" in progress.line().replace(",", "")


def test_without_an_end_the_answers_count_and_without_a_price_there_is_no_cost(clock: list[float]) -> None:
    progress = Progress("judge", Totals(answers=3))
    clock[0] += 30
    assert progress.line() == "judge: 3 answers, 6/min"


def test_the_summary_counts_every_retry_and_failure_by_reason() -> None:
    totals = Totals(
        requests=1200,
        answers=1000,
        cached=10,
        retries=Counter({"429": 150, "time-out": 2}),
        failures=Counter({"refusal": 5}),
        input_tokens=12_345,
        output_tokens=678,
        cost=1.5,
        doubtful=0.25,
    )
    assert totals.summary() == (
        "1,000 answers, 1,200 requests, 10 from the cache, 152 retries (429: 150, time-out: 2), "
        "5 failures (refusal: 5), tokens 12,345 in, 678 out, "
        "1.5000 US$ (and at most 0.2500 for requests that broke off)"
    )


def test_without_a_label_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    Progress("", Totals()).close()
    assert capsys.readouterr().err == ""
