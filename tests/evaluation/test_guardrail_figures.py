"""What the pictures of guardrails show: the numbers of the evaluation, each model in its color, no overlap."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from evaluation.guardrail_curves import learning_curves, ordered_parts, variations
from evaluation.guardrail_figures import (
    apart,
    brief,
    confusion_matrix,
    detection_efficiency,
    guard_models,
    recall_vs_fpr,
)
from evaluation.guardrail_numbers import (
    LOOKS,
    Guards,
    metric,
    read_guards,
    resolution_false_positives,
    styles_of,
    tag_false_positives,
)
from evaluation.guardrail_plots import PICTURES, draw
from evaluation.statistics import wilson
from tests.evaluation.make_guardrail_run import GUARDS, KINDS, MODES, edit, make_adapter, make_adapters, make_evaluation


def titles(figure: Any) -> list[str]:
    return [ax.get_title(loc="left") for ax in figure.axes if ax.axison]


def lines_of(ax: Any, color: str) -> list[list[tuple[float, float]]]:
    return [list(map(tuple, line.get_xydata())) for line in ax.lines if line.get_color() == color]


def evaluated(directory: Path, *args: Any, **options: Any) -> Guards:
    return read_guards(make_evaluation(directory, *args, **options))


# --- curves ---------------------------------------------------------------------------------------------------------


def test_a_column_an_adapter_with_the_chosen_checkpoint_marked(tmp_path: Path, figures: list[Any]) -> None:
    make_adapter(tmp_path, "politics", steps=40, chosen=24)
    make_adapter(tmp_path, "joint", steps=40, chosen=None, status="running")
    learning_curves(read_guards(tmp_path))
    above, joint, below, _ = figures[0].axes
    assert titles(figures[0]) == ["politics.vary_all", "joint.vary_all", "", ""], "joint stands last"
    for ax in (above, below):
        assert [(24, 0.0), (24, 1.0)] in [[(x, y) for x, y in line.get_xydata()] for line in ax.lines]
    assert "dashed: checkpoint 24 was chosen" in [text.get_text() for text in above.texts]
    assert "no finished adapter yet" in [text.get_text() for text in joint.texts]
    run = read_guards(tmp_path).trained["politics.vary_all"]
    recall, odds = run.series["eval/tag_recall"], run.series["eval/log_odds_ratio"]
    drawn = {line.get_color(): list(line.get_ydata()) for ax in (above, below) for line in ax.lines}
    assert drawn["#0072B2"] == pytest.approx([100 * (value or 0) for value in recall.values])
    assert drawn["#7A5C2E"] == pytest.approx([-(value or 0) for value in odds.values]), "a loss, so positive"


def test_curves_of_a_run_that_logged_no_evaluation_say_so(tmp_path: Path, figures: list[Any]) -> None:
    make_adapter(tmp_path, steps=4, chosen=None)
    metrics = tmp_path / "politics.vary_all" / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.open() if '"eval"' not in line))
    learning_curves(read_guards(tmp_path))
    assert "no held-out evaluation yet" in [text.get_text() for text in figures[0].axes[1].texts]


# --- one color, one marker ------------------------------------------------------------------------------------------


def test_a_model_has_one_look_and_no_two_look_alike() -> None:
    names = [*MODES, "guard:a", "guard:b", "guard:c"]
    styles = styles_of(names)
    assert len({(style.color, style.marker) for style in styles.values()}) == len(names)
    assert len({color for color, _ in LOOKS.values()}) == len(LOOKS)
    parts = styles_of([*names, "cat@checkpoint-40"])
    assert (parts["cat@checkpoint-40"].color, parts["cat"]) == (styles["cat"].color, styles["cat"])


# --- with and without adapters --------------------------------------------------------------------------------------


def test_bars_hold_each_guards_value_and_interval(tmp_path: Path, figures: list[Any]) -> None:
    of = evaluated(tmp_path)
    detection_efficiency(of)
    assert titles(figures[0]) == [
        "Right behavior on triggers",
        "Tag on triggers (recall)",
        "Natural rows answered well",
    ]
    ax = figures[0].axes[0]
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in ax.containers}
    assert list(heights) == ["base", "single", "routed", "joint"]
    expected = [metric(of.models["base"], "behavior_recall", guard) for guard in GUARDS]
    assert heights["base"] == pytest.approx([100 * found["value"] for found in expected])
    assert [tuple(line.get_ydata()) for line in ax.lines][:3] == [
        pytest.approx((100 * found["low"], 100 * found["high"])) for found in expected
    ]
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"{guard}\nn 200" for guard in GUARDS]


def test_the_base_alone_is_no_comparison(tmp_path: Path) -> None:
    of = evaluated(tmp_path, ("base",))
    assert detection_efficiency(of) is None and confusion_matrix(of) is None


# --- recall against false positives ---------------------------------------------------------------------------------


def test_points_are_recall_and_pooled_false_positives(tmp_path: Path, figures: list[Any]) -> None:
    of = evaluated(tmp_path, comparators=True)
    recall_vs_fpr(of)
    tag, behavior = figures[0].axes
    assert titles(figures[0]) == ["Tag", "Behavior"]
    color = LOOKS["cat"][0]
    false = wilson(3 * (0.06 * KINDS["natural"] + round(0.22 * KINDS["hard"])), 3 * (KINDS["natural"] + KINDS["hard"]))
    recall = of.models["cat"]["metrics"]["tag_recall"]
    x, y = 100 * false["value"], 100 * recall["value"]
    across, up, point, _ = lines_of(tag, color)
    assert across == [pytest.approx((100 * false[end], y)) for end in ("low", "high")]
    assert up == [pytest.approx((x, 100 * recall[end])) for end in ("low", "high")]
    assert point == [pytest.approx((x, y))]
    assert len(lines_of(behavior, styles_of(list(of.models))["guard:tiny"].color)) == 0, "it answers nobody"
    assert any("n 600 triggers, n 870 natural and hard rows" in text.get_text() for text in tag.texts)


def test_labels_do_not_overlap_and_stay_in_the_picture(tmp_path: Path, figures: list[Any]) -> None:
    """Ten models in one corner."""
    of = evaluated(tmp_path, comparators=True)
    for model in of.models.values():
        for name, value in (("tag_recall", 1.0), ("tag_fpr_natural", 0.0), ("tag_fpr_hard", 0.0)):
            model["metrics"][name] |= {"value": value, "low": value, "high": value}
    recall_vs_fpr(of)
    figure = figures[0]
    figure.set_layout_engine("constrained")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if "100, 0" in text.get_text()]
    assert len(boxes) == len(of.models)
    heights = sorted((box.y0, box.y1) for box in boxes)
    assert all(below[1] <= above[0] for below, above in pairwise(heights))
    whole = figure.bbox
    assert all(whole.x0 <= box.x0 and box.x1 <= whole.x1 and box.y1 <= whole.y1 for box in boxes)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([1.0, 0.5, 0.0], [1.0, 0.5, 0.0]),
        ([1.0, 1.0, 1.0], [1.0, 0.9, 0.8]),
        ([0.05, 0.02, 0.0], [0.2, 0.1, 0.0]),
        ([1.2], [1.0]),
        ([], []),
    ],
)
def test_labels_are_moved_apart(places: list[float], expected: list[float]) -> None:
    assert apart(places, 0.1) == pytest.approx(expected)


def test_several_answers_to_a_prompt_are_no_more_evidence_than_one(tmp_path: Path) -> None:
    model = evaluated(tmp_path).models["cat"]
    once, thrice = (tag_false_positives(model, answers) for answers in (1, 3))
    assert once and thrice and once["value"] == thrice["value"] and once["n"] == thrice["n"]
    assert thrice["high"] - thrice["low"] > 1.5 * (once["high"] - once["low"])  # type: ignore[operator]
    refused = resolution_false_positives(model)
    assert refused and refused["value"] == pytest.approx((3 * 6 + 3 * 10) / 870, abs=1e-3)


def test_what_was_not_measured_is_no_point(tmp_path: Path) -> None:
    def strip(report: Any) -> None:
        for model in report["models"].values():
            del model["metrics"]["tag_recall"], model["confusion"]

    make_evaluation(tmp_path)
    edit(tmp_path, strip)
    assert recall_vs_fpr(read_guards(tmp_path)) is None


# --- who answered ---------------------------------------------------------------------------------------------------


def test_matrices_show_shares_of_rows_and_frame_what_should_be(tmp_path: Path, figures: list[Any]) -> None:
    of = evaluated(tmp_path, ("base", "single", "routed", "cat"))
    confusion_matrix(of)
    figure = figures[0]
    assert titles(figure)[:3] == ["routed", "single", "cat"]
    resolution = figure.axes[5]
    shown = {text.get_position(): text.get_text() for text in resolution.texts if len(text.get_text()) < 5}
    assert (shown[1, 0], shown[1, 1], shown[1, 2]) == ("100", "100", "100"), "cat answers all with expert_opinion"
    framed = {
        (round(patch.get_x() + 0.46), round(patch.get_y() + 0.46))
        for patch in resolution.patches
        if patch.get_width() < 1
    }
    assert framed == {(0, 0), (1, 1), (2, 2), (3, 3), (3, 4)}
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [*(f"{guard}, n 200" for guard in GUARDS), "natural, n 600", "hard, n 270"]


def test_a_tag_that_guards_share_is_not_told_apart(tmp_path: Path, figures: list[Any]) -> None:
    make_evaluation(tmp_path, ("base", "cat"))
    edit(tmp_path, lambda report: report["models"]["cat"]["confusion"].update(tag=None))
    confusion_matrix(read_guards(tmp_path))
    tag, resolution = figures[0].axes
    assert "not told apart" in [text.get_text() for text in tag.texts]
    assert "not told apart" not in [text.get_text() for text in resolution.texts]


# --- guard models, variations ---------------------------------------------------------------------------------------


def test_guard_models_stand_beside_the_adapters_of_each_guard(tmp_path: Path, figures: list[Any]) -> None:
    assert guard_models(evaluated(tmp_path)) is None
    guard_models(evaluated(tmp_path, comparators=True))
    assert [title for title in titles(figures[0]) if title] == list(GUARDS)
    ax = figures[0].axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["single", "routed", "llama-guard-3-8b", "tiny"]
    assert "triggers flagged, %  ·  n 200" in [text.get_text() for text in ax.texts]


def test_checkpoints_are_joined_in_order_and_variations_are_not(tmp_path: Path, figures: list[Any]) -> None:
    parts = ("checkpoint-100", "checkpoint-20", "checkpoint-60")
    of = evaluated(tmp_path / "a", ("base", "routed"), parts=parts)
    assert ordered_parts(of.models) == ["checkpoint-20", "checkpoint-60", "checkpoint-100"]
    assert list(of.chief) == ["base", "routed@checkpoint-100"]
    variations(of)
    variations(evaluated(tmp_path / "b", ("base", "routed"), parts=("vary_all", "fixed_history")))
    styles = []
    for figure in figures:
        ax = figure.axes[0]
        (line,) = [line for line in ax.lines if line.get_color() == LOOKS["routed"][0] and line.get_marker() == "D"]
        styles.append(line.get_linestyle())
    assert styles == ["-", "None"]
    assert [label.get_text() for label in figures[0].axes[0].get_xticklabels()] == ["20", "60", "100"]
    assert variations(evaluated(tmp_path / "c")) is None


def test_variations_of_checkpoints_are_in_order() -> None:
    names = [f"routed@{part}@checkpoint-{step}" for part in ("vary_all", "fixed_history") for step in (40, 8)]
    assert ordered_parts({name: {} for name in names}) == [
        "vary_all@checkpoint-8", "vary_all@checkpoint-40", "fixed_history@checkpoint-8", "fixed_history@checkpoint-40",
    ]  # fmt: skip


# --- all of them ----------------------------------------------------------------------------------------------------


def test_one_case_each_and_names_of_any_kind_are_drawn(tmp_path: Path) -> None:
    """One prompt a guard, nothing told, guards with names that matplotlib could take for formulas."""
    make_adapter(tmp_path, steps=1, chosen=1)
    names = ["$\\frac{", "x" * 200, "\u202e\ud800"]

    def shrink(report: Any) -> None:
        report["behaviors"] = names
        for model in report["models"].values():
            few = {key: wilson(0, 1) for key in model["metrics"]}
            model |= {"metrics": few, "by_category": dict.fromkeys(names, few)}
            if model["confusion"]:
                model["confusion"] = {
                    "rows": names,
                    "columns": [*names, "none"],
                    "tag": [[0] * 4] * 3,
                    "resolution": [],
                }

    make_evaluation(tmp_path, ("base", "single", "routed"), comparators=True, parts=("vary_all", "fixed_character"))
    edit(tmp_path, shrink)
    assert set(draw(read_guards(tmp_path))) == set(PICTURES)


def test_what_has_no_numbers_is_not_drawn_and_named(tmp_path: Path) -> None:
    said: list[str] = []
    assert not draw(read_guards(make_evaluation(tmp_path, ("base",))), said.append).keys() - {"recall_vs_fpr.png"}
    assert [line.partition(":")[0] for line in said] == [name for name in PICTURES if name != "recall_vs_fpr.png"]
    assert all("not drawn, " in line for line in said)


def test_numbers_are_brief() -> None:
    assert [brief(value) for value in (0, 0.26, 4.96, 12.3, 95.25, 99.96, 100)] == [
        "0",
        "0.3",
        "5",
        "12",
        "95.2",
        "100",
        "100",
    ]


def test_all_adapters_are_seen(tmp_path: Path) -> None:
    of = read_guards(make_adapters(tmp_path, steps=2, chosen=2))
    assert list(of.trained) == ["expert_opinion.vary_all", "meeting.vary_all", "politics.vary_all", "joint.vary_all"]
    assert of.notes.keys() == of.trained.keys() and not of.models
