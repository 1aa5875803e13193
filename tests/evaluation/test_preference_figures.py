"""What the pictures of reward models show: the numbers of the evaluation, each model in its color."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.preference_curves import reliability, risk_curve
from evaluation.preference_figures import model_comparison, spread_groups
from evaluation.preference_numbers import COLORS, evaluated, styles_of
from evaluation.preference_plots import PICTURES, draw
from evaluation.statistics import wilson
from tests.evaluation.make_preference_run import ALPHAS, edit, make_evaluation
from utils.series import load_run


def test_the_risk_curve_shows_each_measure_and_the_trade_offs(tmp_path: Path, figures: list[Any]) -> None:
    found = evaluated(load_run(make_evaluation(tmp_path)))
    models = found.models
    risk_curve(found)
    (figure,) = figures
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == [
        "Trade-off as α falls",
        "Trade-off as α falls",
        "Accuracy, all pairs, %",
        "Accuracy, helpful, %",
        "Accuracy, harmless, %",
        "Jailbreak rate, %",
    ]
    curve = {row["alpha"]: row for row in models["mv"]["risk_curve"]}
    points = [(100 * curve[a]["jailbreak_rate"]["value"], 100 * curve[a]["helpful"]["value"]) for a in ALPHAS[::-1]]
    of_mv = [line for line in figure.axes[1].lines if line.get_color() == COLORS[1] and len(line.get_xdata()) == 4]
    assert [list(map(tuple, line.get_xydata())) for line in of_mv] == [[pytest.approx(point) for point in points]]
    assert [text.get_text() for text in figure.legends[0].texts] == ["base", "mv", "cat"]
    (bands,) = {len(ax.collections) for ax in figure.axes[2:]}
    assert bands == 3


def test_a_reliability_diagram_has_intervals_and_counts(tmp_path: Path, figures: list[Any]) -> None:
    found = evaluated(load_run(make_evaluation(tmp_path, names=("mv",))))
    models = found.models
    reliability(found)
    above, below = figures[0].axes
    assert "ECE 0.031 (0.020 to 0.050)" in [text.get_text() for text in above.texts]
    table = models["mv"]["reliability"]
    assert [bar.get_height() for bar in below.patches] == [row["n"] for row in table]
    drawn = [list(line.get_ydata()) for line in above.lines]
    assert drawn[-1] == pytest.approx([100 * row["observed"] for row in table])
    intervals = [wilson(row["observed"] * row["n"], row["n"]) for row in table]
    assert drawn[1:-1] == [pytest.approx([100 * found["low"], 100 * found["high"]]) for found in intervals]


def test_models_side_by_side_hold_their_own_intervals(tmp_path: Path, figures: list[Any]) -> None:
    found = evaluated(load_run(make_evaluation(tmp_path)))
    models = found.models
    model_comparison(found)
    accuracy = next(ax for ax in figures[0].axes if ax.get_title(loc="left") == "Accuracy, %")
    intervals = [
        tuple(line.get_xdata())
        for line in accuracy.lines
        if len(line.get_xdata()) == 2 and line.get_color() == COLORS[1]
    ]
    expected = [models["mv"]["metrics"][name] for name in ("accuracy", "accuracy_risk")]
    assert intervals == [pytest.approx((100 * found["low"], 100 * found["high"])) for found in expected]
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["base", "mv", "cat"]
    assert len([line for line in accuracy.lines if line.get_color() == COLORS[0]]) == 2, (
        "base has no risk-averse reward"
    )


def test_spreads_are_grouped_by_subset_and_kind(tmp_path: Path) -> None:
    found = evaluated(load_run(make_evaluation(tmp_path, names=("mv",), pairs=30)))
    groups = spread_groups(found.items["mv"])
    assert {name: len(values) for name, values in groups.items()} == {
        "all": 30, "harmless": 10, "helpful": 20, "agreed": 15, "contested": 15,
    }  # fmt: skip
    assert list(groups) == ["all", "harmless", "helpful", "agreed", "contested"]
    assert groups["contested"].min() > groups["agreed"].max()


def test_a_model_has_one_color_and_no_two_look_alike() -> None:
    names = [f"model {index}" for index in range(24)]
    styles = styles_of(names)
    assert len({(style.color, style.marker) for style in styles.values()}) == 24
    assert styles_of(names[:5]) == {name: styles[name] for name in names[:5]}


def test_degenerate_numbers_are_drawn(tmp_path: Path) -> None:
    """All rewards and spreads equal, one alpha, one pair in a bin."""
    make_evaluation(tmp_path, names=("mv",), pairs=6)
    items = tmp_path / "evaluation" / "preference_items.jsonl"
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    same = {f"{score}_{side}": 0.0 for score in ("mean", "spread", "risk") for side in ("chosen", "rejected")}
    items.write_text("".join(json.dumps(row | same) + "\n" for row in rows))

    def flatten(report: dict[str, Any]) -> None:
        for model in report["models"].values():
            model["risk_curve"] = model["risk_curve"][:1]
            model["reliability"] = [{"low": 0.5, "high": 0.55, "predicted": 0.5, "observed": 0.5, "n": 1}]

    edit(tmp_path, flatten)
    assert set(draw(load_run(tmp_path))) == {*PICTURES} - {"model_comparison.png", "risk_curve.png"}


def test_pictures_take_any_name(tmp_path: Path) -> None:
    found = evaluated(load_run(make_evaluation(tmp_path, names=("$\\frac{", "x" * 300, "\u202e\ud800"), pairs=8)))
    picture = model_comparison(found)
    assert picture is not None and picture.startswith(b"\x89PNG")
