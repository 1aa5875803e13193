"""The report of a synthetic experiment: its figure, what the four networks learned, and how far it is from the truth.

All numbers come from evaluation/synthetic.json, where model_training/synthetic_measures.py says what they mean; nothing
here imports torch. They are over the whole population, by quadrature, of one run with one seed: there is no interval.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from model_training.synthetic_figures import FIGURE, RESULT
from model_training.synthetic_figures import draw as draw_figure
from utils.errors import UserError
from utils.series import Run
from utils.visualization import Contents, Grid, Picture, Section, Tile

Result = dict[str, Any]

NETWORKS = {
    "base": "base",
    "mean_and_variance": "mean and variance",
    "categorical": "categorical",
    "classifier": "classifier",
}
LABELS = {
    "spearman_borda_count": "Rank correlation with Borda count",
    "spearman_expected_utility": "Rank correlation with expected utility",
    "distance_borda_count": "Distance of the implied Borda count",
    "auroc_spread": "AUROC of spread, contested against agreed states",
    "spearman_spread": "Rank correlation of spread with the true one",
    "distance_rank_spread": "Distance of the spread of ranks",
    "r2": "Explained variance r², spreads clipped",
    "r2_rank": "Explained variance r² of ranks",
    "low_mass": "Contested states: probability of the lower branch",
    "high_mass": "Contested states: probability of the upper branch",
    "distance_low_mass": "Distance of P(utility 0)",
}
PLACES = {"1d": (0.05, 0.2, 0.4, 0.6, 0.75, 0.82, 0.9, 0.97), "2d": (0.2, 0.6, 0.9)}
"""Coordinates of the states that the table of fixed points takes, or the nearest there are."""


def is_synthetic(run: Run) -> bool:
    """Whether a directory holds a synthetic experiment."""
    return bool(run.manifest.get("config", {}).get("env")) or (run.path / RESULT).is_file()


def draw(run: Run, say: Callable[[str], None]) -> dict[str, bytes]:
    """The figure by its file name, drawn anew; nothing while the experiment has no result."""
    if not (run.path / RESULT).is_file():
        say(f"{FIGURE}: not drawn, the experiment has not ended: {RESULT} is missing")
        return {}
    return {path.name: path.read_bytes() for path in draw_figure(run.path)}


def contents_of(run: Run, pictures: dict[str, bytes]) -> Contents:
    """What the page of an experiment says."""
    result = read_result(run)
    env = (result or run.manifest.get("config", {})).get("env")
    picture = [
        Picture(f"Figure of the {env} experiment; the tables below hold its numbers", png) for png in pictures.values()
    ]
    sections = [Section("What was learned", "", picture, [])] if picture else []
    if result:
        sections += [
            Section(
                "Beside the truth",
                "Comparisons tell nothing of a scale, so rewards and spreads are compared by rank.",
                grids=[numbers_table(result), losses_table(result)],
            ),
            Section("At fixed points", grids=[points_table(result)]),
        ]
    return Contents(
        title=f"preference · synthetic experiment {env}",
        verdict=verdict(result) if result else [f"The experiment has not ended: {RESULT} is missing."],
        held_out=tiles(result) if result else [],
        held_out_title="Result",
        held_out_note="Over the whole population, by quadrature. One run with one seed: there is no interval.",
        training=[],
        evaluate=None,
        writes_completions=False,
        sections=sections,
    )


def read_result(run: Run) -> Result | None:
    """The experiment's result, None while there is none; a UserError where it cannot be read."""
    path = run.path / RESULT
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); train again with --overwrite") from error
    if not isinstance(result, dict) or not isinstance(result.get("numbers"), dict):
        raise UserError(f'{path}: no result of an experiment (expected an object with "numbers"); train again')
    return result


def verdict(result: Result) -> list[str]:
    numbers = result["numbers"]
    base, normal, atoms = (numbers[name] for name in ("base", "mean_and_variance", "categorical"))
    lines = [
        f"Ordinary learning (base): rank correlation {base['spearman_borda_count']:.3f} with Borda count, "
        f"{base['spearman_expected_utility']:.3f} with expected utility."
    ]
    if "auroc_spread" in normal:
        lines.append(
            f"Hidden context: the spread of mean and variance tells contested from agreed states with AUROC "
            f"{normal['auroc_spread']:.3f}, that of categorical with {atoms['auroc_spread']:.3f}."
        )
    if "spearman_spread" in normal:
        lines.append(
            f"Hidden context: rank correlation of spread with the true one, mean and variance "
            f"{normal['spearman_spread']:.3f}, categorical {atoms['spearman_spread']:.3f}."
        )
    if "low_mass" in atoms:
        lines.append(
            f"Where utility has two branches, categorical gives the lower one {atoms['low_mass']:.2f} of the "
            f"probability and the upper one {atoms['high_mass']:.2f}; the truth is 0.50 each."
        )
    return lines


def tiles(result: Result) -> list[Tile]:
    """Each number of the main networks that has a truth to be held against."""
    numbers = result["numbers"]
    found = []
    for key, label in LABELS.items():
        values = {name: numbers[name][key] for name in NETWORKS if key in numbers.get(name, {})}
        if key.startswith("spearman_") and "base" in values:
            values = {"base": values["base"]}
        if not values or key.startswith("distance_") or key == "r2":
            continue
        (first, value), *others = values.items()
        details = [NETWORKS[first], *(f"{NETWORKS[name]} {other:.3f}" for name, other in others)]
        truth = numbers.get("truth", {}).get(key)
        found.append(Tile(label, f"{value:.3f}", details + ([f"truth {truth:.3f}"] if truth is not None else [])))
    return found


def numbers_table(result: Result) -> Grid:
    numbers = result["numbers"]
    columns = {"truth": "truth", **NETWORKS}
    keys = dict.fromkeys(key for column in columns for key in numbers.get(column, {}))
    rows = [
        (LABELS.get(key) or key.replace("_", " "), [_number(numbers.get(column, {}).get(key)) for column in columns])
        for key in keys
    ]
    return Grid("Agreement with the truth", ["Measure", *columns.values()], rows)


def losses_table(result: Result) -> Grid:
    losses, least = result["population_loss"], result["least_loss"]
    rows = [
        ("learned", [_number(losses[name], 4) for name in NETWORKS]),
        ("the least there can be", [_number(least[name], 4) for name in NETWORKS]),
        ("above it", [_number(losses[name] - least[name], 4) for name in NETWORKS]),
    ]
    return Grid("Loss over the population, nats", ["Loss", *NETWORKS.values()], rows)


def points_table(result: Result) -> Grid:
    """What is true and what was learned at a few states."""
    truth, learned = result["truth"], result["learned"]
    columns = {
        "Expected utility": truth["expected_utility"],
        "Borda count": truth["borda_count"],
        **{f"Borda count, {label}": learned[name]["borda_count"] for name, label in NETWORKS.items()},
        "Spread of the rank": truth["rank_spread"],
        **{
            f"Spread of the rank, {NETWORKS[name]}": learned[name]["rank_spread"]
            for name in ("mean_and_variance", "categorical")
        },
    }
    rows = []
    for index in fixed_points(result):
        state = ", ".join(f"{part:.3f}" for part in result["states"][index])
        rows.append((state, [_number(values[index]) for values in columns.values()]))
    return Grid("", ["State", *columns], rows)


def fixed_points(result: Result) -> list[int]:
    """The indices of the states nearest to the fixed places, in every dimension."""
    places, states = PLACES[result["env"]], result["states"]
    wanted = [(x,) for x in places] if len(states[0]) == 1 else [(x, y) for x in places for y in places]
    return [
        min(range(len(states)), key=lambda i: sum((a - b) ** 2 for a, b in zip(states[i], place, strict=True)))
        for place in wanted
    ]


def _number(value: float | None, decimals: int = 3) -> str:
    return "–" if value is None else f"{value:.{decimals}f}".replace("-", "\u2212")
