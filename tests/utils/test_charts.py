from __future__ import annotations

from itertools import pairwise

import pytest

from utils.charts import chart, step_ticks, tick_labels, ticks, y_range
from utils.panels import Panel
from utils.series import Series, Stage


def test_charts_break_at_gaps_and_keep_to_their_box() -> None:
    steps, values = tuple(range(1, 8)), (0.1, 0.2, None, 0.9, None, 0.4, 0.5)
    panel = Panel(
        "rewards/f/mean",
        "F",
        "",
        "reward",
        Series(steps, values),
        Series(steps, (0.3,) * 7),
        "",
        (Stage("grpo", 1, 7),),
    )
    drawn = chart(panel)
    assert drawn.line.count("M") == 3 and drawn.line.count("h0") == 1 and drawn.band.count("Z") == 3
    heights = [
        float(point.split()[1].removesuffix("Z").removesuffix("h0"))
        for point in drawn.band.replace("M", "L").split("L")[1:]
    ]
    assert min(heights) >= drawn.top and max(heights) <= drawn.bottom
    assert drawn.y_ticks[0] == (drawn.bottom, "0.00")


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 1.04), (-0.009, 0.011), (3.1, 5.3), (0, 2.1e-4), (0, 54321), (-1, 0)]
)
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    values = ticks(low, high)
    assert 2 <= len(values) <= 5
    assert all(low - 1e-9 * (high - low) <= value <= high * (1 + 1e-9) + 1e-12 for value in values)
    gaps = [b - a for a, b in pairwise(values)]
    assert max(gaps) == pytest.approx(min(gaps))
    labels = tick_labels(values, "")
    assert len(set(labels)) == len(labels)


def test_labels_of_ticks() -> None:
    assert tick_labels([0.0, 0.25, 0.5], "share") == ["0\u00a0%", "25\u00a0%", "50\u00a0%"]
    assert tick_labels([0.0, 5e-6, 1e-5], "rate") == ["0", "5e\u22126", "1e\u22125"]
    assert tick_labels([0.0, 500.0, 1000.0], "tokens") == ["0", "500", "1,000"]
    assert step_ticks(5, 5) == [5] and step_ticks(1, 3) == [1, 2, 3]


def pair_panel(key: str, values: tuple[float, ...], held_out: Series | None) -> Panel:
    steps = tuple(range(10, 10 * len(values) + 1, 10))
    stage = Stage("train", steps[0], steps[-1])
    return Panel(
        key, "P", "share" if key == "accuracy" else "nats", "loss", Series(steps, values), None, "", (stage,), held_out
    )


def test_held_out_values_are_drawn_on_the_same_scales() -> None:
    held_out = Series((5, 20, 60), (0.9, None, 0.3))
    drawn = chart(pair_panel("loss/train", (0.6, 0.5, 0.4), held_out))
    points = [tuple(map(float, point.removesuffix("h0").split())) for point in drawn.held_out_dots.split("M")[1:]]
    assert [round(x) for x, _ in points] == [round(drawn.left), round(drawn.right)], "the steps of both make the axis"
    assert points[0][1] < points[1][1], "0.9 stands above 0.3"
    assert min(y for _, y in points) >= drawn.top and max(y for _, y in points) <= drawn.bottom
    assert drawn.held_out.count("M") == 2, "a gap breaks the line"
    assert (drawn.latest, drawn.latest_held_out) == ("0.4\u00a0nats", "0.3\u00a0nats")
    alone = chart(pair_panel("loss/train", (0.6, 0.5), None))
    assert (alone.held_out, alone.held_out_dots, alone.latest_held_out) == ("", "", "")


def test_an_accuracy_is_seen_against_a_coin() -> None:
    low, high = y_range(pair_panel("accuracy", (0.55, 0.6), None), [0.55, 0.6])
    assert low < 0.5 < 0.6 < high < 0.8
    low, high = y_range(pair_panel("accuracy", (0.2, 0.99), None), [0.2, 0.99])
    assert low < 0.2 and high > 0.99


def test_a_high_loss_does_not_hide_its_movement() -> None:
    assert y_range(pair_panel("loss/train", (0.7, 0.6), None), [0.7, 0.6])[0] > 0.5
    assert y_range(pair_panel("loss/train", (0.7, 0.1), None), [0.7, 0.1])[0] == 0
