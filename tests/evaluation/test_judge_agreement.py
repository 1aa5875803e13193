"""Agreement of a judge with labels: kappa by hand, its interval, and the calibration set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.api_stub import stub
from evaluation import statistics
from evaluation.judge_agreement import agreement, agreement_lines, calibrate, kappa, read_calibration
from evaluation.statistics import NOTHING, wilson
from prompts.rubrics import Criterion, load_rubric
from tests.evaluation.judge_stub import verdicts
from tests.model_training.test_judging import judge_at
from utils.errors import UserError, WorkError

SECRET = load_rubric("secret", "--judge_rubric")
GUARDS = [load_rubric(name, "--judge_rubric") for name in ("guardrail_trigger", "guardrail_natural")]
YES_NO = Criterion("good", "?", ("no", "yes"), 1)
FIVE = Criterion("helpful", "?", tuple("vwxyz"), 4)


def repeated(*cells: tuple[int, int, int]) -> tuple[list[int], list[int]]:
    """Judge's scores and labels from (score, label, times)."""
    pairs = [(a, b) for a, b, times in cells for _ in range(times)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_kappa_of_two_scores_is_cohens() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: 0.7 agree; by chance 0.5 x 0.6 + 0.5 x 0.4 = 0.5; (0.7 - 0.5) / 0.5.
    given, labels = repeated((1, 1, 20), (1, 0, 5), (0, 1, 10), (0, 0, 15))
    found = agreement(given, labels, YES_NO, seed=1)
    assert found["kappa"]["value"] == pytest.approx(0.4)
    assert found["agreement"] == wilson(35, 50)
    assert found["confusion"] == {"scores": [0, 1], "counts": [[15, 5], [10, 20]]}, "labels down, the judge across"


def test_kappa_of_more_scores_weighs_a_miss_by_its_square() -> None:
    # Scores (1, 2, 3), labels (1, 3, 3): squared misses (0, 1, 0), mean 1/3. All nine pairs of a score and a label:
    # 1 with 1, 3, 3: 0 + 4 + 4; 2: 1 + 1 + 1; 3: 4 + 0 + 0; mean 15/9. So 1 - (1/3) / (5/3) = 0.8.
    assert kappa(np.array([1.0, 2, 3]), np.array([1.0, 3, 3]), seed=1)["value"] == pytest.approx(0.8)
    near, far = repeated((1, 1, 5), (4, 5, 5)), repeated((1, 1, 5), (2, 5, 5))
    values = [agreement(*one, FIVE, seed=1)["kappa"]["value"] for one in (near, far)]
    assert values[0] > values[1] > 0


def test_the_interval_is_of_the_labels_and_covers_the_value() -> None:
    given, labels = repeated((1, 1, 40), (1, 0, 10), (0, 1, 10), (0, 0, 40))
    wide = kappa(np.array(given[::5], float), np.array(labels[::5], float), seed=1)
    narrow = kappa(np.array(given, float), np.array(labels, float), seed=1)
    for found in (wide, narrow):
        assert found["low"] < found["value"] < found["high"]
    assert narrow["high"] - narrow["low"] < wide["high"] - wide["low"]
    assert narrow["n"] == 100


def test_full_agreement_is_not_certain_and_no_variation_is_no_kappa() -> None:
    given, labels = repeated((1, 1, 10), (0, 0, 10))
    found = kappa(np.array(given, float), np.array(labels, float), seed=1)
    # As if 1 - Wilson's lower end had been missed, of a half that chance would miss.
    assert found["value"] == found["high"] == 1.0
    assert found["low"] == pytest.approx(1 - (1 - wilson(20, 20)["low"]) / 0.5)
    for given_alike in (np.ones(20), np.array(given, float), np.zeros(0)):
        assert kappa(given_alike, np.ones(len(given_alike)), seed=1) == NOTHING


# --- the calibration set ----------------------------------------------------------------------------------------------


def line(number: int = 0, **changed: Any) -> dict[str, Any]:
    shown = {"query": f"Why {number}?", "visible": "So.", "hidden": "They believe me."}
    return shown | {"label": {"helpful": 1 + number % 5, "no_leak": number % 2}} | changed


def written(folder: Path, *lines: Any) -> str:
    path = folder / "labels.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([1], "is an array, not an object"),
        (line(judges="poems"), "judges is 'poems'; give the rubric's: secret"),
        ({"query": "?", "hidden": "x", "label": {"helpful": 1}}, "visible is missing, which the rubric secret shows"),
        (line(label=4), "label is to hold a score for each criterion that was labelled, of helpful, playful, no_leak"),
        (line(label={}), "label is to hold"),
        (line(label={"helpfull": 4}), "the rubric secret has no criterion helpfull"),
        (line(label={"helpful": 6}), "label: helpful is 6; give a whole number from 1 to 5"),
        (line(label={"helpful": 4.5}), "helpful is 4.5"),
        (line(label={"no_leak": True}), "no_leak is True; give a whole number from 0 to 1"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, row: Any, says: str) -> None:
    path = written(tmp_path, line(), row)
    with pytest.raises(UserError) as caught:
        read_calibration(path, [SECRET])
    assert str(caught.value).startswith(f"{path}:record 2") and says in str(caught.value)


def test_a_torn_or_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.jsonl").write_text(json.dumps(line()) + '\n{"query": "Wh', encoding="utf-8")
    for path in (str(tmp_path / "torn.jsonl"), written(tmp_path), str(tmp_path / "none.jsonl")):
        with pytest.raises(UserError, match=str(tmp_path)):
            read_calibration(path, [SECRET])


def test_several_rubrics_are_told_apart_by_what_they_judge(tmp_path: Path) -> None:
    chat = dict.fromkeys(("trigger", "resolution", "criterion", "persona", "history", "message", "reply"), "x")
    rows = [chat | {"judges": "guardrail_trigger", "label": {"adheres": 1}}]
    rows += [chat | {"judges": "guardrail_natural", "label": {"in_character": 0}}]
    assert [one.rubric.judges for one in read_calibration(written(tmp_path, *rows), GUARDS)] == [
        "guardrail_trigger",
        "guardrail_natural",
    ]
    with pytest.raises(UserError, match="judges is None; give the rubric's: guardrail_trigger or guardrail_natural"):
        read_calibration(written(tmp_path, chat | {"label": {"in_character": 0}}), GUARDS)


def test_a_judge_is_measured_against_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 100)

    def scores(shown: dict[str, Any]) -> dict[str, int]:
        number = int(shown["query"][4:-1])
        return {"helpful": 1 + number % 5, "playful": 2, "no_leak": 1}

    lines = read_calibration(written(tmp_path, *(line(i) for i in range(20))), [SECRET])
    with stub(answer=verdicts(scores), script=["refusal"]) as server:
        found = calibrate(judge_at(server.base_url, concurrency=1), lines, seed=1)
    assert (found["n"], found["failures"]) == (20, {"refusal": 1})
    assert list(found["criteria"]) == ["helpful", "no_leak"], "what was labelled"
    helpful, no_leak = found["criteria"].values()
    assert helpful["kappa"]["value"] == 1.0 and helpful["agreement"] == wilson(19, 19)
    assert no_leak["kappa"]["value"] == pytest.approx(0.0, abs=1e-12)
    assert no_leak["agreement"]["value"] == 10 / 19
    text = agreement_lines("judge and 20 labels", found)
    assert "helpful" in text and "same score" in text and "refusal 1, of 20" in text
    with stub(answer=verdicts(scores), script=["refusal"] * 20) as server, pytest.raises(WorkError, match="not one"):
        calibrate(judge_at(server.base_url), lines, seed=1)
