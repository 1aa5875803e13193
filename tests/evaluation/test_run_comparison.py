from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.comparison_report import contents_of, difference_of, evaluation, merged, text, verdict
from evaluation.run_comparison import compare
from tests.utils.make_run import make_run
from utils.errors import UserError


def changed(run: Path, name: str, **changes: Any) -> Path:
    path = run / name
    value = json.loads(path.read_text(encoding="utf-8"))
    for key, of_key in changes.items():
        value[key] = value.get(key, {}) | of_key if isinstance(of_key, dict) else of_key
    path.write_text(json.dumps(value), encoding="utf-8")
    return run


def answered(run: Path, rewards: list[float], model: str = "adapter") -> Path:
    """Give the run's evaluation raw rows, and the mean of their rewards."""
    rows = [
        {"model": model, "query_id": str(n), "prompt": f"q{n}", "completion": "x", "scores": {"mean_reward": reward}}
        for n, reward in enumerate(rewards)
    ]
    (run / "evaluation/secret_items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = run / "evaluation/secret.json"
    value = json.loads(path.read_text())
    value["models"][model]["metrics"]["mean_reward"] |= {"value": sum(rewards) / len(rewards), "low": 4, "high": 5}
    path.write_text(json.dumps(value))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    made = [make_run(tmp_path / name, sft_steps=4, grpo_steps=4, alarms=name == "b") for name in "abc"]
    for run, reward in zip(made, (4.0, 4.5, 4.2), strict=True):
        answered(run, [reward + n % 5 / 100 for n in range(40)])
    return made


def test_the_best_run_is_told_with_its_paired_difference_from_the_next(runs: list[Path]) -> None:
    found = compare(runs)
    assert found.ranking is not None and found.ranking.order == ["b", "c", "a"]
    assert set(found.paired) == {("b", "a"), ("c", "a"), ("b", "c")}
    gap = difference_of(found, "b", "c", "mean_reward")
    assert gap is not None and gap.value == pytest.approx(0.3) and gap.n == 40
    back = difference_of(found, "c", "b", "mean_reward")
    assert back is not None and back.low is not None and back.low <= back.value == -gap.value
    line = verdict(found)[0]
    assert line.startswith("Best by Mean reward") and "b - c, paired: +0.3" in line and "leaves out 0" in line


def test_what_is_not_told_apart_is_said(runs: list[Path]) -> None:
    answered(runs[2], [4.5 + (n % 7 - 3) / 10 for n in range(40)])
    answered(runs[1], [4.5 + (n % 5 - 2) / 10 for n in range(40)])
    assert "they are not told apart" in verdict(compare(runs))[0]
    answered(runs[2], [4.5 + (n % 5 - 2) / 10 for n in range(40)])
    assert verdict(compare(runs))[0].startswith("No best by Mean reward")


def test_prompts_that_are_not_shared_are_said(runs: list[Path]) -> None:
    answered(runs[1], [4.5 + n % 3 / 10 for n in range(30)])
    lines = verdict(compare(runs[:2]))
    assert any("b and a share 30 prompts of 30 and 40" in line for line in lines)
    (runs[1] / "evaluation/secret_items.jsonl").unlink()
    found = compare(runs[:2])
    assert "No paired difference of b and a." in verdict(found)[0] and found.paired == {}
    assert any("has no secret_items.jsonl for adapter" in line for line in found.notes)


def test_a_torn_or_foreign_items_file_costs_the_differences_only(runs: list[Path]) -> None:
    (runs[1] / "evaluation/secret_items.jsonl").write_text("[1]\nno\n", encoding="utf-8")
    found = compare(runs)
    assert set(found.paired) == {("c", "a")}
    assert any(note.startswith("No paired differences with b:") for note in found.notes)


def test_cautions(runs: list[Path]) -> None:
    changed(runs[0], "evaluation/secret.json", config={"temperature": 0.1, "reward_weights": [2]})
    changed(runs[1], "manifest.json", status="failed")
    (runs[2] / "evaluation/secret.json").unlink()
    notes = compare(runs, best_by="mean_reward").notes
    assert "Not evaluated: c." in notes and "Not done: b (failed)." in notes
    assert any(note.startswith("The evaluations differ in temperature") for note in notes)
    assert any("sums do not compare" in note for note in notes)


def test_without_an_evaluation_the_training_ranks(runs: list[Path]) -> None:
    for run in runs:
        (run / "evaluation/secret.json").unlink()
    found = compare(runs)
    assert found.ranking is not None and found.ranking.metric.name == "reward" and evaluation(found) is None
    assert "has no interval" in verdict(found)[0] and found.notes == []


def test_the_page_has_every_run_its_model_and_what_differs(runs: list[Path]) -> None:
    changed(runs[1], "manifest.json", config={"learning_rate": 0.5})
    answered(runs[2], [4.2 + n % 5 / 100 for n in range(40)], model="warmup")
    answered(runs[2], [4.2 + n % 5 / 100 for n in range(40)])
    found = compare(runs)
    whole, contents = merged(found), contents_of(found)
    assert list(whole.runs) == ["a", "b", "c"] and whole.evaluation is not None
    assert list(whole.evaluation["models"]) == ["a", "b", "c"]
    assert [alarm.text.partition(":")[0] for alarm in whole.alarms] == ["b"]
    assert contents.held_out is not None and [tile.label for tile in contents.held_out] == ["1. b", "2. c", "3. a"]
    options = contents.first_sections[0].grids[0]
    assert options.columns == ["Option", "a", "b", "c"]
    assert list(options.rows) == [("learning_rate", ["0.0002", "0.5", "0.0002"])]
    (other,) = contents.sections[0].grids
    assert (other.title, other.columns) == ("warmup", ["Metric", "a", "b", "c"]), "base is the same in all three"


def test_the_terminal_gets_the_same_with_nothing_that_acts_on_it(runs: list[Path]) -> None:
    changed(runs[1], "manifest.json", config={"credit": "\x1b[2J" + "x" * 300})
    told = text(compare(runs))
    assert "Best by" in told and "credit" in told and "b - a" in told
    assert "\x1b" not in told and max(map(len, told.splitlines()[1:])) < 200


def test_reward_models_of_two_types_are_compared_under_their_runs_names(tmp_path: Path) -> None:
    for kind, shift in (("base", 0.0), ("categorical", 0.3)):
        run = tmp_path / kind
        (run / "evaluation").mkdir(parents=True)
        manifest = {"task": "preference", "status": "done", "config": {"reward_model_type": kind}}
        (run / "manifest.json").write_text(json.dumps(manifest))
        right = [n % 10 < 6 + 10 * shift for n in range(100)]
        rows = [
            {"model": kind, "prompt": n, "chosen": "c", "rejected": "r", "mean_chosen": float(is_right)}
            | {"mean_rejected": 0.5, "risk_chosen": 1.0, "risk_rejected": 0.0}
            for n, is_right in enumerate(right)
        ]
        (run / "evaluation/preference_items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        metrics = {"accuracy": {"value": sum(right) / 100, "n": 100, "low": 0.5, "high": 1.0}}
        report = {"task": "preference", "config": {}, "models": {kind: {"metrics": metrics}}}
        (run / "evaluation/preference.json").write_text(json.dumps(report))
    found = compare([tmp_path / "base", tmp_path / "categorical"])
    assert found.models == {"base": "base", "categorical": "categorical"}
    assert found.ranking is not None and found.ranking.order == ["categorical", "base"]
    assert found.paired["categorical", "base"].metrics["accuracy"]["value"] == pytest.approx(0.3)


def test_directories_of_guardrails_bring_the_runs_below_them(tmp_path: Path) -> None:
    for name in "ab":
        below = tmp_path / name / "politics.vary_all"
        below.mkdir(parents=True)
        (below / "manifest.json").write_text(json.dumps({"task": "guardrail", "status": "done", "config": {}}))
        (below / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 1.0, "time": 1.0, "resumes": 0}\n')
        (tmp_path / name / "evaluation").mkdir()
        models = {
            way: {"metrics": {"f1": {"value": 0.5, "n": 4, "low": 0, "high": 1}}} for way in ("base", "routed", "cat")
        }
        report = {"task": "guardrail", "config": {}, "tags": {}, "models": models}
        (tmp_path / name / "evaluation/guardrail.json").write_text(json.dumps(report))
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert found.models == {"a": "routed", "b": "routed"}
    assert list(merged(found).runs) == ["a/politics.vary_all", "b/politics.vary_all"]
    with pytest.raises(UserError, match="no such directory"):
        compare([tmp_path / "a", tmp_path / "c"])
