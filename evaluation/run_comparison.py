"""Several runs of one task on one page: curves overlaid, options that differ, the best by a metric, paired differences.

    python visualize_training.py --metrics_dir runs/a runs/b runs/c [--best_by METRIC[:min|:max]]

Of each run's evaluation the trained model is compared: the adapter of `secret`, the run's own reward model, the first
way of WAYS to answer with guardrails that all runs evaluated. The first run named is the one that differences are told
from; they are paired, over the prompts that both models answered (paired_runs.py), and so stand where runs were asked
the same. utils.compare finds names, options and ranks; comparison_report.py has the words and the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation import guardrail_plots
from evaluation.guardrail_numbers import load_guards
from evaluation.paired_runs import Answered, Paired, paired, read_rows
from utils.compare import (
    Metric,
    Models,
    Ranking,
    Runs,
    Source,
    check_tasks,
    chosen,
    evaluation_options,
    names_of,
    ranking,
)
from utils.errors import UserError
from utils.runs import MANIFEST, METRICS
from utils.series import Run, load_run

WAYS = ("adapter", "routed", "joint", "single")
"""Which model of an evaluation stands for its run: the first of these that all evaluations have."""
BASE = "base"
USUAL: dict[str, list[tuple[str, Source]]] = {
    "secret": [("mean_reward", "evaluation"), ("reward", "training"), ("loss", "training")],
    "preference": [("accuracy", "evaluation"), ("eval/accuracy", "training"), ("loss", "training")],
    "guardrail": [("f1", "evaluation"), ("eval/behavior_score", "training"), ("eval/loss", "training")],
}
"""What runs are ranked by unless the user says: the first that all of them have."""
REWARD_OPTIONS = ("reward_funcs", "reward_weights")


@dataclass(frozen=True)
class Comparison:
    """What several runs are beside each other. `paired` is by the names of two runs, first minus second."""

    task: str
    runs: dict[str, Run]
    models: dict[str, str | None]
    ranking: Ranking | None
    paired: dict[tuple[str, str], Paired]
    notes: list[str]


# ----------------------------------------------------------------------------------------------------- compare


def compare(directories: Sequence[Path], best_by: str | None = None) -> Comparison:
    """Read and compare the runs.

    Raises:
        UserError: a directory holds no run, is given twice, they are of different tasks, or no run has the metric.
    """
    names = names_of(directories)
    runs = {name: load(directory) for name, directory in zip(names, directories, strict=True)}
    task = check_tasks(runs)
    models = trained_models(runs)
    metric = chosen(runs, models, best_by, USUAL.get(task, []))
    ranked = None if metric is None else ranking(runs, metric, models)
    differences, notes = _differences(task, runs, models, ranked)
    return Comparison(task, runs, models, ranked, differences, notes + _cautions(runs, ranked))


def load(directory: Path) -> Run:
    """A run; or, of guardrails, a directory with runs below it."""
    is_run = (directory / MANIFEST).is_file() or (directory / METRICS).is_file()
    return load_guards(directory) if not is_run and guardrail_plots.is_guardrail(directory) else load_run(directory)


def trained_models(runs: Runs) -> dict[str, str | None]:
    """The evaluated model that stands for each run; None where there is none."""
    by_run = {name: evaluated(run) for name, run in runs.items()}
    found = [set(models) for models in by_run.values() if models]
    shared = set.intersection(*found) if found else set()
    way = next((name for name in WAYS if name in shared), None)
    return {name: way if way in models else _own(runs[name], models) for name, models in by_run.items()}


def evaluated(run: Run) -> dict[str, Any]:
    models = (run.evaluation or {}).get("models")
    return {name: of for name, of in models.items() if isinstance(of, dict)} if isinstance(models, dict) else {}


def _own(run: Run, models: dict[str, Any]) -> str | None:
    config = run.manifest.get("config")
    kind = config.get("reward_model_type") if isinstance(config, dict) else None
    ours = [name for name in (*([kind] if isinstance(kind, str) else []), *WAYS) if name in models]
    others = [name for name in models if name != BASE] or list(models)
    return ours[0] if ours else others[-1] if others else None


def _differences(
    task: str, runs: Runs, models: Models, ranked: Ranking | None
) -> tuple[dict[tuple[str, str], Paired], list[str]]:
    """Every other run minus the first evaluated one, and the best minus the next, as far as prompts are shared."""
    answered: dict[str, Answered] = {}
    notes = []
    for name, run in runs.items():
        try:
            rows = read_rows(task, run.path)
        except UserError as error:
            notes.append(f"No paired differences with {name}: {error}.")
            continue
        if (model := models.get(name)) in rows:
            answered[name] = rows[model]
        elif model is not None:
            notes.append(f"No paired differences with {name}: its evaluation has no {task}_items.jsonl for {model}.")
    names = list(answered)
    wanted = [(other, names[0]) for other in names[1:]]
    top = [name for name in ranked.order if name in answered][:2] if ranked else []
    if len(top) == 2 and (top[1], top[0]) not in wanted and (top[0], top[1]) not in wanted:
        wanted.append((top[0], top[1]))
    found = {(first, second): paired(task, answered[first], answered[second]) for first, second in wanted}
    for (first, second), of in found.items():
        if of.prompts < max(of.of_first, of.of_second):
            told = f"{first} and {second} share {of.prompts:,} prompts of {of.of_first:,} and {of.of_second:,}"
            notes.append(told + (": no paired differences." if not of.prompts else "; differences are over these."))
    return found, notes


def _cautions(runs: Runs, ranked: Ranking | None) -> list[str]:
    """What a reader of the ranking has to know."""
    notes = []
    unevaluated = [name for name, run in runs.items() if not evaluated(run)]
    if unevaluated and len(unevaluated) < len(runs):
        notes.append(f"Not evaluated: {', '.join(unevaluated)}.")
    asked = [name for name, _ in evaluation_options(runs)]
    if asked:
        notes.append(f"The evaluations differ in {', '.join(asked)}.")
    if ranked and "reward" in ranked.metric.name.split("/")[0] and _reward_differs(runs, ranked.metric):
        notes.append("The runs' rewards are made of different functions or weights, so that their sums do not compare.")
    unfinished = [name for name, run in runs.items() if run.manifest.get("status") not in ("done", None)]
    if unfinished:
        told = ", ".join(f"{name} ({runs[name].manifest['status']})" for name in unfinished)
        notes.append(f"Not done: {told}.")
    return notes


def _reward_differs(runs: Runs, metric: Metric) -> bool:
    sources = [
        (run.evaluation or {}).get("config") if metric.source == "evaluation" else run.manifest.get("config")
        for run in runs.values()
    ]
    rewards = [[of.get(option) for option in REWARD_OPTIONS] for of in sources if isinstance(of, dict)]
    return any(of != rewards[0] for of in rewards)
