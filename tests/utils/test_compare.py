from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.utils.make_run import make_run
from utils.compare import Metric, Ranking, check_tasks, chosen, differing, evaluation_options, names_of, ranking
from utils.errors import UserError
from utils.series import Run, Series, load_run

MODELS = {"a": "adapter", "b": "adapter", "c": "adapter"}


def run_of(
    values: dict[str, float] | None = None, series: dict[str, list[float]] | None = None, **manifest: Any
) -> Run:
    """A run whose evaluated adapter has these metrics, and which logged these series."""
    metrics = {name: {"value": value, "n": 10, "low": None, "high": None} for name, value in (values or {}).items()}
    evaluation = {"task": "secret", "config": {}, "models": {"adapter": {"metrics": metrics}}} if values else None
    logged = {name: Series(tuple(range(1, len(points) + 1)), tuple(points)) for name, points in (series or {}).items()}
    return Run(Path("x"), {"task": "secret"} | manifest, logged, (), (), [], evaluation, None, None)


def ranked(runs: dict[str, Run], best_by: str | None, usual: Any = ()) -> Ranking:
    metric = chosen(runs, MODELS, best_by, usual)
    assert metric is not None
    return ranking(runs, metric, MODELS)


# --- names, tasks ---


def test_names_are_as_short_as_they_can_be_and_still_tell_apart(tmp_path: Path) -> None:
    assert names_of([tmp_path / "runs/a", tmp_path / "other/b"]) == ["a", "b"]
    assert names_of([tmp_path / "x/base", tmp_path / "y/base", tmp_path / "y/mv"]) == ["x/base", "y/base", "y/mv"]


def test_one_directory_is_no_comparison_with_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than once"):
        names_of([tmp_path / "a", tmp_path / "b/../a"])


def test_runs_of_different_tasks_are_refused() -> None:
    runs = {"a": run_of(), "b": run_of(task="preference")}
    with pytest.raises(UserError, match="a is of secret, b is of preference"):
        check_tasks(runs)
    with pytest.raises(UserError, match="none of a says"):
        check_tasks({"a": run_of(task=None)})
    assert check_tasks({"a": run_of(), "b": run_of(task=None)}) == "secret"


# --- options ---


def test_only_what_differs_is_listed(tmp_path: Path) -> None:
    directories = [make_run(tmp_path / name) for name in "ab"]
    path = directories[1] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["config"] |= {"learning_rate": 1e-3, "output_dir": "elsewhere", "threads": 8, "beta": 0.1}
    manifest["versions"] |= {"torch": "3.0"}
    manifest["dataset"] = {"path": "elsewhere", "sha256": "f" * 64}
    path.write_text(json.dumps(manifest))
    options, facts = differing({"a": load_run(directories[0]), "b": load_run(directories[1])})
    assert options == [("learning_rate", ["0.0002", "0.001"]), ("beta", ["-", "0.1"])]
    assert [name for name, _ in facts] == ["dataset", "versions.torch"]
    assert facts[0][1][1] == "sha256 ffffffffffff"


def test_two_equal_runs_differ_in_nothing() -> None:
    config = {"lr": 1.0, "names": ["x", {"deep": [1]}]}
    assert differing({"a": run_of(config=config), "b": run_of(config=config)}) == ([], [])


def test_options_of_another_version_or_kind_do_not_fall_over() -> None:
    runs = {"a": run_of(config=None, versions="1.0"), "b": run_of(config={"new": {"deep": None}}, dataset=[1])}
    options, facts = differing(runs)
    assert options == [] and facts == [("versions", ["1.0", "-"])], "absent and null are told alike"


def test_long_values_are_cut() -> None:
    options, _ = differing({"a": run_of(config={"x": "y" * 9999}), "b": run_of(config={"x": "z"})})
    assert len(options[0][1][0]) == 200


def test_options_of_the_evaluations() -> None:
    runs = {"a": run_of({"m": 1}), "b": run_of({"m": 1}), "c": run_of()}
    for run, temperature in ((runs["a"], 0.8), (runs["b"], 0.6)):
        assert run.evaluation is not None
        run.evaluation["config"] = {"temperature": temperature, "top_p": 0.9, "output_dir": str(temperature)}
    assert evaluation_options(runs) == [("temperature", ["0.8", "0.6", "-"])]
    assert evaluation_options({"a": runs["a"], "c": runs["c"]}) == [], "no evaluation is no difference of options"


# --- ranking ---


def test_the_name_says_which_end_is_better_and_the_user_may() -> None:
    runs = {"a": run_of({"leak_rate": 0.1, "r2": 0.5}), "b": run_of({"leak_rate": 0.2, "r2": 0.6}), "c": run_of()}
    assert ranked(runs, "leak_rate").order == ["a", "b"], "a run without the metric is not ranked"
    assert ranked(runs, "leak_rate:max").order == ["b", "a"]
    assert ranked(runs, "r2:min").order == ["a", "b"]
    with pytest.raises(UserError, match="r2:max or r2:min"):
        ranked(runs, "r2")


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean mean_reward"):
        ranked({"a": run_of({"mean_reward": 1.0})}, "mean_rewrad")
    with pytest.raises(UserError, match="they have no metric"):
        ranked({"a": run_of()}, "anything")


def test_the_evaluation_comes_before_the_training_and_everywhere_before_somewhere() -> None:
    usual: Any = [("mean_reward", "evaluation"), ("reward", "training")]
    a, b = run_of({"mean_reward": 4.0}, {"reward": [1.0, 2.0]}), run_of(None, {"reward": [1.0, 3.0]})
    assert ranked({"a": a, "b": b}, None, usual).metric == Metric("reward", "higher", "training")
    assert ranked({"a": a}, None, usual).metric == Metric("mean_reward", "higher", "evaluation")
    assert ranked({"a": a, "b": run_of()}, None, usual).order == ["a"]
    both = run_of({"accuracy": 0.5}, {"accuracy": [0.9]})
    assert ranked({"a": both}, "accuracy").metric.source == "evaluation"
    assert chosen({"a": run_of()}, MODELS, None, usual) is None


def test_values_of_training() -> None:
    rising = [float(value) for value in range(100)]
    run = run_of(None, {"reward": rising, "eval/loss": [3.0, 1.0, 2.0], "eval/accuracy": [0.1, 0.7, 0.4]})
    for metric, value in (("reward", 94.5), ("eval/loss", 1.0), ("eval/accuracy", 0.7)):
        found = ranked({"a": run}, metric).scores["a"]
        assert found is not None and found.value == value, metric
