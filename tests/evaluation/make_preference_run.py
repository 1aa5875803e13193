"""Writes directories as training and evaluation of reward models leave them; the numbers are invented."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from evaluation.preference_report import contents_of
from evaluation.statistics import wilson
from tests.utils.page import Page
from utils.series import load_run
from utils.visualization import render_report

KINDS = {"base": "base", "mv": "mean_and_variance", "cat": "categorical"}
ALPHAS = (0.001, 0.01, 0.1, 0.5)
Json = dict[str, Any]


def make_training(run: Path, *, steps: int = 60, status: str = "done") -> Path:
    """manifest.json and metrics.jsonl of a reward model's training, with held-out rows every 20 steps."""
    run.mkdir(parents=True, exist_ok=True)
    manifest = {
        "task": "preference",
        "mode": "train",
        "config": {"model_name": "tiny", "reward_model_type": "mean_and_variance", "seed": 1, "env": None},
        "seed": 1,
        "versions": {"torch": "2.8.0"},
        "git_commit": "0123abc",
        "dataset": {"path": "pairs.jsonl", "sha256": "ab" * 32},
        "hardware": {"cpu": "Example CPU"},
        "process": {"pid": 1, "host": "example", "start": None},
        "started": "2026-09-21T14:13:20+00:00",
        "ended": "2026-09-21T14:19:05+00:00",
        "status": status,
        "reason": None,
        "resumes": 0,
    }
    (run / "manifest.json").write_text(json.dumps(manifest))
    rows = []
    for step in range(10, steps + 1, 10):
        row = {"loss": 0.7 - step / 400, "accuracy": 0.5 + step / 400, "mean_margin": 0.3, "mean_spread": 0.8}
        rows.append({"step": step, "split": "train", **row, "learning_rate": 1e-3, "grad_norm": 1.0, "pairs_per_s": 15})
        if step % 20 == 0:
            held_out = {"loss": 0.69 - step / 1000 + (0.1 if step == steps else 0), "accuracy": 0.5 + step / 500}
            rows.append({"step": step, "split": "eval", **held_out, "pairs": 200})
    head = {"time": 1_790_000_000.0, "resumes": 0}
    (run / "metrics.jsonl").write_text("".join(json.dumps(head | row) + "\n" for row in rows))
    return run


def make_evaluation(directory: Path, names: tuple[str, ...] = ("base", "mv", "cat"), pairs: int = 120) -> Path:
    """evaluation/preference.json and preference_items.jsonl; contested pairs have the wider spread."""
    folder = directory / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    items = [row for name in names for row in _items(name, pairs, rng)]
    (folder / "preference_items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    models = {name: _model(name, [row for row in items if row["model"] == name]) for name in names}
    estimate = {"value": 0.05, "n": pairs, "low": 0.01, "high": 0.09}
    first = names[0]
    report = {
        "task": "preference",
        "config": {"alpha": 0.01, "alphas": list(ALPHAS)},
        "models": models,
        "paired": {f"{name} - {first}": {"accuracy": estimate} for name in names[1:]},
    }
    (folder / "preference.json").write_text(json.dumps(report))
    return directory


def edit(directory: Path, change: Any) -> Json:
    """Apply a function to evaluation/preference.json in place; returns what is written."""
    path = directory / "evaluation" / "preference.json"
    report: Json = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))
    return report


def page_of(directory: Path) -> Page:
    """The page without its pictures, which take their time."""
    run = load_run(directory)
    return Page(render_report(run, contents=contents_of(run, {})))


def _items(name: str, pairs: int, rng: random.Random) -> list[Json]:
    rows = []
    for index in range(pairs):
        contested = index % 2 == 0
        spread = 0.0 if KINDS.get(name) == "base" else (1.0 if contested else 0.4) + 0.1 * rng.random()
        chosen, rejected = rng.gauss(0.5, 1), rng.gauss(0, 1)
        rows.append(
            {
                "model": name,
                "index": index,
                "id": f"pair-{index}",
                "prompt": [{"role": "user", "content": f"What about number {index}?"}],
                "chosen": [{"role": "assistant", "content": f"A good answer to {index}."}],
                "rejected": [{"role": "assistant", "content": f"A bad answer to {index}."}],
                "data_subset": "helpful" if index % 3 else "harmless",
                "kind": "contested" if contested else "agreed",
                "mean_chosen": chosen,
                "spread_chosen": spread,
                "risk_chosen": chosen - 2.3 * spread,
                "mean_rejected": rejected,
                "spread_rejected": spread / 2,
                "risk_rejected": rejected - 2.3 * spread / 2,
            }
        )
    return rows


def _model(name: str, rows: list[Json]) -> Json:
    kind = KINDS.get(name, "mean_and_variance")
    metrics: Json = {
        "accuracy": _share([row["mean_chosen"] >= row["mean_rejected"] for row in rows]),
        "accuracy_risk": _share([row["risk_chosen"] >= row["risk_rejected"] for row in rows]),
        "ties": {"value": 3, "n": len(rows), "low": None, "high": None},
        "log_loss": {"value": 0.61, "n": len(rows), "low": 0.58, "high": 0.64},
        "ece": {"value": 0.031, "n": len(rows), "low": 0.02, "high": 0.05},
        "jailbreak_rate": {"value": 0.305, "n": 187, "low": 0.243, "high": 0.374},
        "jailbreak_rate_risk": {"value": 0.203, "n": 187, "low": 0.152, "high": 0.267},
    }
    if kind != "base":
        metrics["r2"] = {"value": 0.53, "n": 2 * len(rows), "low": 0.5, "high": 0.56}
        metrics["spread_auroc"] = {"value": 0.97, "n": len(rows), "low": 0.94, "high": 0.99}
    subsets = {"helpful": [], "harmless": []}
    for row in rows:
        subsets[row["data_subset"]].append(row["mean_chosen"] >= row["mean_rejected"])
    widest = sorted(rows, key=lambda row: -row["spread_chosen"])[:5] if kind != "base" else []
    return {
        "kind": kind,
        "likelihood": "probit" if kind == "mean_and_variance" else None,
        "checkpoint": f"runs/{name}",
        "adapter_sha256": "cd" * 32,
        "metrics": metrics,
        "by_category": {subset: {"accuracy": _share(right)} for subset, right in subsets.items()},
        "reliability": [
            {"low": low, "high": low + 0.05, "predicted": low + 0.02, "observed": 0.55 + bin_ / 30, "n": 40 - 5 * bin_}
            for bin_, low in enumerate((0.5, 0.55, 0.6, 0.65))
        ],
        "risk_curve": [_risk_row(alpha, kind) for alpha in ALPHAS],
        "widest": [{"pair_spread": math.hypot(row["spread_chosen"], row["spread_rejected"]), **row} for row in widest],
    }


def _risk_row(alpha: float, kind: str) -> Json:
    averse = 0.0 if kind == "base" else -math.log10(alpha / 0.5)
    shares = {
        "accuracy": 0.65 - 0.02 * averse,
        "helpful": 0.7 - 0.04 * averse,
        "harmless": 0.6 + 0.03 * averse,
        "jailbreak_rate": 0.3 - 0.05 * averse,
    }
    return {"alpha": alpha} | {name: wilson(round(200 * share), 200) for name, share in shares.items()}


def _share(cases: list[bool]) -> Json:
    return dict(wilson(sum(cases), len(cases)))
