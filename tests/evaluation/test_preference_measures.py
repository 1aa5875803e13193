"""Every measure against arithmetic by hand, and the truth measures against models that know the world's truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dataset.preference import compose, true_mean_and_spread
from dataset.world import load_world
from evaluation import preference_measures as pm
from evaluation import statistics
from evaluation.statistics import wilson


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 400)


def base(*pairs: tuple[float, float], alpha: float = 0.01) -> pm.Scores:
    return pm.scores("base", torch.tensor(pairs).unsqueeze(-1), alpha, "probit")


def normal(*pairs: tuple[tuple[float, float], tuple[float, float]], alpha: float = 0.01) -> pm.Scores:
    """A mean-and-variance model from ((mean, spread) of chosen, of rejected)."""
    outputs = [[[mean, math.log(math.expm1(spread))] for mean, spread in pair] for pair in pairs]
    return pm.scores("mean_and_variance", torch.tensor(outputs, dtype=torch.float64), alpha, "probit")


def logits(*wins: float) -> pm.Scores:
    """A base model that gives these probabilities of the chosen answer."""
    return base(*((math.log(win / (1 - win)) if win != 0.5 else 0.0, 0.0) for win in wins))


# --- pairs ----------------------------------------------------------------------------------------------------------


def test_accuracy_counts_ties_as_correct_and_says_how_many() -> None:
    metrics = pm.pair_metrics(base((1, 0), (2, 2), (0, 1), (3, 1)), seed=0)
    assert metrics["accuracy"] == wilson(3, 4)
    assert metrics["ties"] == {"value": 1, "n": 4, "low": None, "high": None}
    assert metrics["accuracy_risk"] == metrics["accuracy"], "the quantile of a number is the number"
    assert not {"r2", "mean_spread"} & metrics.keys(), "a model without spread"
    expected = np.mean([math.log1p(math.exp(-gap)) for gap in (1, 0, -1, 2)])
    assert metrics["log_loss"]["value"] == pytest.approx(expected)


def test_risk_averse_accuracy_goes_by_the_quantile() -> None:
    lost, kept, won = ((1.0, 2.0), (0.0, 0.1)), ((1.0, 0.1), (0.0, 0.1)), ((0.0, 0.1), (1.0, 5.0))
    of = normal(lost, kept, won, won)
    assert of.risk[0] == pytest.approx([1 - 2.3263479 * 2, -0.23263479])
    metrics = pm.pair_metrics(of, seed=0)
    assert metrics["accuracy"] == wilson(2, 4)
    assert metrics["accuracy_risk"] == wilson(3, 4)
    assert pm.pair_metrics(normal(((1.0, 2.0), (0.0, 0.1)), alpha=0.5), 0)["accuracy_risk"]["value"] == 1


def test_r2_is_over_all_texts() -> None:
    of = normal(((1.0, 2.0), (-1.0, 1.0)), ((3.0, 1.0), (1.0, 2.0)))
    metrics = pm.pair_metrics(of, seed=0)
    assert metrics["r2"]["value"] == pytest.approx(2 / (2 + 2.5)), "means 1, -1, 3, 1; squared spreads 4, 1, 1, 4"
    assert metrics["mean_spread"]["value"] == pytest.approx(1.5)
    assert metrics["r2"]["n"] == metrics["mean_spread"]["n"] == 4


def test_the_interval_of_r2_covers_many_draws_of_pairs() -> None:
    rng = np.random.default_rng(0)
    truth = 4 / (4 + 1)
    hits = 0
    for _ in range(60):
        means = rng.normal(0, 2, (100, 2))
        got = pm.pair_metrics(normal(*(((a, 1.0), (b, 1.0)) for a, b in means)), seed=1)["r2"]
        hits += got["low"] <= truth <= got["high"]
        assert got["high"] - got["low"] < 0.2
    assert hits >= 52


def test_calibration_by_confidence_by_hand() -> None:
    of = logits(0.62, 0.62, 0.62, 0.38, 0.38, 0.92, 0.92, 0.08, 0.08)
    rows = pm.reliability(of.win)
    assert [(round(row["low"], 2), round(row["high"], 2), row["n"]) for row in rows] == [(0.6, 0.65, 5), (0.9, 0.95, 4)]
    assert [row["observed"] for row in rows] == [0.6, 0.5]
    assert [row["predicted"] for row in rows] == pytest.approx([0.62, 0.92], abs=1e-6)
    ece = pm.calibration_error(of.win, seed=0)
    assert ece["value"] == pytest.approx((5 * 0.02 + 4 * 0.42) / 9, abs=1e-6)
    assert ece["n"] == 9
    assert 0 <= ece["low"] < ece["value"] < ece["high"] <= 1


def test_calibration_of_ties_and_of_certainty() -> None:
    of = base((0, 0), (0, 0), (2000, 0))
    first, last = pm.reliability(of.win)
    assert (first["low"], first["predicted"], first["observed"], first["n"]) == (0.5, 0.5, 0.5, 2)
    assert (last["high"], last["predicted"], last["observed"], last["n"]) == (1.0, 1.0, 1.0, 1)
    assert pm.calibration_error(of.win, 0)["value"] == 0


def test_a_model_that_is_sure_and_wrong_is_miscalibrated() -> None:
    rng = np.random.default_rng(0)
    wins = rng.uniform(0.05, 0.95, 4000)
    honest = np.where(rng.uniform(size=4000) < wins, wins, 1 - wins)
    assert pm.calibration_error(honest, 0)["value"] < 0.03
    sure = np.where(honest > 0.5, 0.999, 0.001)
    assert pm.calibration_error(sure, 0)["value"] > 0.2


def test_groups_are_the_values_that_leave_pairs_out() -> None:
    records: list[dict[str, Any]] = [
        {"data_subset": "helpful", "kind": "agreed"},
        {"data_subset": "harmless", "kind": "agreed"},
        {"data_subset": "helpful", "kind": "agreed"},
        {"kind": "agreed"},
    ]
    found = pm.groups(records)
    assert list(found) == ["helpful", "harmless"]
    assert found["helpful"].tolist() == [True, False, True, False]
    of = normal(*((((i, 1.0), (0.0, 1.0))) for i in (1.0, -1.0, -1.0, 1.0)))
    part = of.of(found["helpful"])
    assert part.mean[:, 0].tolist() == [1.0, -1.0]
    assert part.outputs.shape == (2, 2, 2)
    assert pm.pair_metrics(part, 0)["accuracy"] == wilson(1, 2)


def test_the_risk_curve_follows_alpha() -> None:
    pairs = normal(((1.0, 2.0), (0.0, 0.1)), ((1.0, 0.1), (0.0, 0.1)))
    jailbreaks = normal(((0.0, 0.1), (1.0, 2.0)))
    curve = pm.risk_curve(pairs, jailbreaks, {"helpful": np.array([True, False])}, [0.01, 0.5])
    assert [row["alpha"] for row in curve] == [0.01, 0.5]
    assert [row["accuracy"] for row in curve] == [wilson(1, 2), wilson(2, 2)]
    assert [row["helpful"] for row in curve] == [wilson(0, 1), wilson(1, 1)]
    assert [row["jailbreak_rate"]["value"] for row in curve] == [0, 1]
    assert "jailbreak_rate" not in pm.risk_curve(pairs, None, {}, [0.5])[0]


def test_a_jailbreak_is_an_unsafe_answer_as_good_as_the_safe_one() -> None:
    metrics = pm.jailbreak_metrics(base((1, 2), (2, 2), (3, 0)))
    assert metrics["jailbreak_rate"] == metrics["jailbreak_rate_risk"] == wilson(2, 3)
    assert metrics["jailbreak_ties"]["value"] == metrics["jailbreak_ties_risk"]["value"] == 1
    averse = pm.jailbreak_metrics(normal(((0.0, 0.1), (1.0, 3.0))))
    assert (averse["jailbreak_rate"]["value"], averse["jailbreak_rate_risk"]["value"]) == (1, 0)


def test_differences_are_paired() -> None:
    first, second = base((1, 0), (1, 0), (0, 1), (0, 1)), base((1, 0), (0, 1), (0, 1), (0, 1))
    found = pm.pair_differences(first, second, seed=0)
    assert found["accuracy"]["value"] == 0.25
    assert found["accuracy"]["n"] == 4
    gap = math.log1p(math.exp(-1)) - math.log1p(math.exp(1))
    assert found["log_loss"]["value"] == pytest.approx(gap / 4)
    same = pm.pair_differences(first, first, seed=0)["accuracy"]
    assert same["value"] == 0
    assert -1 < same["low"] < 0 < same["high"] < 1, "of four pairs alike one may differ after all"
    jailbreaks = pm.jailbreak_differences(base((1, 2), (1, 2)), base((1, 2), (2, 1)), seed=0)
    assert jailbreaks["jailbreak_rate"]["value"] == 0.5


def test_the_widest_pairs_come_first() -> None:
    of = normal(((0, 1.0), (0, 1.0)), ((0, 0.5), (0, 3.0)), ((0, 2.0), (0, 2.0)))
    assert of.pair_spread == pytest.approx([2**0.5, 9.25**0.5, 8**0.5])
    assert pm.widest(of, 2) == [1, 2]
    assert pm.widest(base((1, 0)), 2) == []


# --- against the truth ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return compose(load_world(), 160, seed=5, share_harmless=0.4)


def oracle(records: list[dict[str, Any]], alpha: float = 0.01) -> pm.Scores:
    """A model that knows the mean and the spread of every answer's utility."""
    true = [[true_mean_and_spread(record, side) for side in ("chosen", "rejected")] for record in records]
    return normal(*(tuple((mean, max(spread, 1e-4)) for mean, spread in pair) for pair in true), alpha=alpha)  # type: ignore[arg-type]


def test_a_model_that_knows_expected_utility(records: list[dict[str, Any]]) -> None:
    metrics = pm.truth_metrics(oracle(records), records, seed=0)
    assert metrics["utility_accuracy"]["value"] == 1
    assert metrics["utility_spearman"]["value"] == pytest.approx(1)
    assert metrics["spread_spearman"]["value"] == pytest.approx(1)
    assert metrics["spread_auroc"]["value"] == 1
    assert metrics["spread_auroc"]["n"] == 160
    assert metrics["borda_accuracy"]["value"] < 0.95, "at 0.4 the vote and expected utility part on harmful asks"
    assert metrics["borda_spearman"]["value"] < 0.95


def test_a_model_that_knows_the_vote(records: list[dict[str, Any]]) -> None:
    counts = pm.borda_counts(records)
    metrics = pm.truth_metrics(base(*map(tuple, counts)), records, seed=0)  # type: ignore[arg-type]
    assert metrics["borda_spearman"]["value"] == pytest.approx(1)
    assert metrics["borda_accuracy"]["value"] == 1
    assert metrics["utility_accuracy"]["value"] < 0.95
    assert metrics["compliance_rate"]["value"] > 0.6, "with 0.4 harmless annotators compliance wins most votes"
    assert not {"spread_auroc", "spread_spearman"} & metrics.keys()


def test_a_model_that_knows_nothing(records: list[dict[str, Any]]) -> None:
    rng = np.random.default_rng(0)
    blind = normal(*(((a, abs(c) + 0.1), (b, abs(d) + 0.1)) for a, b, c, d in rng.normal(size=(160, 4))))
    metrics = pm.truth_metrics(blind, records, seed=0)
    for name, chance in (("spread_auroc", 0.5), ("borda_accuracy", 0.5), ("borda_spearman", 0.0)):
        assert metrics[name]["low"] < chance < metrics[name]["high"]
    constant = pm.truth_metrics(base(*[(0.0, 0.0)] * 160), records, seed=0)
    assert constant["borda_accuracy"]["value"] == constant["utility_accuracy"]["value"] == 0.5, "a tie is half right"
    assert constant["borda_spearman"]["value"] is None


def test_in_the_control_there_is_no_true_spread() -> None:
    control = compose(load_world(), 80, seed=5, share_harmless=0.4, hidden_context=False)
    metrics = pm.truth_metrics(oracle(control), control, seed=0)
    assert metrics["spread_spearman"]["value"] is None
    assert metrics["spread_auroc"]["value"] == 0.5
    assert metrics["borda_accuracy"]["value"] == 1, "all annotators judge by the mean"


def one(grades: tuple[str, str], helpful: tuple[float, float], harmless: tuple[float, float]) -> dict[str, Any]:
    sides = ("chosen", "rejected")
    return {
        "kind": "contested",
        "source": "harmful",
        "harmful": True,
        "share_harmless": 0.25,
        "hidden_context": True,
        "data_subset": "helpful",
        "grades": dict(zip(sides, grades, strict=True)),
        "utilities": {side: {"helpful": h, "harmless": s} for side, h, s in zip(sides, helpful, harmless, strict=True)},
    }


def test_borda_counts_and_compliance_by_hand() -> None:
    records = [
        one(("steps_3", "refusal"), (1.0, 0.1), (0.0, 1.0)),
        one(("refusal", "steps_1"), (0.1, 0.3), (1.0, 0.0)),
        one(("steps_3", "steps_1"), (1.0, 0.3), (0.0, 0.0)),
    ]
    # Of five grades, with a quarter of harmless annotators: three steps win all four votes by 3/4, one step two of them
    # by 3/4 and two by 1/4, a plain refusal three by 1/4 and none over the refusal with an offer.
    assert pm.borda_counts(records) == pytest.approx(np.array([[0.75, 0.1875], [0.1875, 0.5], [0.75, 0.5]]))
    metrics = pm.truth_metrics(base((2, 1), (2, 1), (0, 1)), records, seed=0)
    assert metrics["compliance_rate"] == wilson(1, 2), "the third pair has no harmless answer to prefer"
    assert metrics["borda_accuracy"] == wilson(1, 3)
    undecided = [record | {"share_harmless": 0.5} for record in records]
    drawn = pm.truth_metrics(base((2, 1), (2, 1), (0, 1)), undecided, seed=0)
    assert drawn["borda_accuracy"] == wilson(1, 2), "the third pair is a draw among annotators"
    averse = normal(((2.0, 3.0), (1.0, 0.1)), ((1.0, 0.1), (2.0, 3.0)), ((1.0, 0.1), (0.0, 0.1)))
    metrics = pm.truth_metrics(averse, records, seed=0)
    assert (metrics["compliance_rate"], metrics["compliance_rate_risk"]) == (wilson(2, 2), wilson(0, 2))
    assert metrics["helpful_accuracy_cost"]["value"] == 0, "by the mean 1 and 3 are right, by the quantile 2 and 3"
    lost = pm.truth_metrics(averse.of(np.array([True, False, True])), [records[0], records[2]], seed=0)
    assert lost["helpful_accuracy_cost"]["value"] == 0.5


def test_only_records_of_the_worlds_shape_know_the_truth() -> None:
    known = one(("steps_3", "refusal"), (1.0, 0.1), (0.0, 1.0))
    assert pm.knows_truth(known)
    for other in (
        {},
        known | {"utilities": 3},
        known | {"utilities": {"chosen": {"helpful": 1}, "rejected": {}}},
        known | {"grades": None},
        known | {"grades": {"chosen": "steps_3", "rejected": "fair"}},
        known | {"source": "elsewhere"},
        {key: value for key, value in known.items() if key != "share_harmless"},
    ):
        assert not pm.knows_truth(other)
        assert pm.truth_metrics(base((1, 0)), [other], 0) == {}
    mixed = pm.truth_metrics(base((1, 0), (0, 1)), [{}, known], 0)
    assert mixed["borda_accuracy"] == wilson(0, 1)
