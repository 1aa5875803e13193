"""Writes a directory as training and evaluation of guardrails leave it; the numbers are invented."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from evaluation.guardrail_numbers import guards_of, load_guards
from evaluation.guardrail_report import contents_of
from evaluation.statistics import NOTHING, wilson
from tests.utils.page import Page
from utils.visualization import render_report

Json = dict[str, Any]

GUARDS = ("politics", "expert_opinion", "meeting")
TAGS = {"politics": "<guard:politics>", "expert_opinion": "<guard:expert>", "meeting": "<guard:meeting>"}
KINDS = {"trigger": 200, "natural": 200, "hard": 90, "other": 80}
MODES = ("base", "single", "routed", "joint", "cat", "svd", "linear", "ties", "dare_ties")
SHARES: dict[str, tuple[float, float, float, float, tuple[float, float, float]]] = {
    "base": (0.0, 0.0, 0.0, 0.0, (0.02, 0.08, 0.05)),
    "single": (0.995, 0.005, 0.02, 0.01, (0.985, 0.98, 1.0)),
    "routed": (0.99, 0.005, 0.02, 0.005, (0.98, 0.98, 0.995)),
    "joint": (1.0, 0.0, 0.01, 0.0, (1.0, 0.99, 1.0)),
    "cat": (1.0, 0.06, 0.22, 0.1, (0.0, 1.0, 0.0)),
    "svd": (0.98, 0.05, 0.2, 0.1, (0.02, 0.97, 0.05)),
    "linear": (0.3, 0.01, 0.03, 0.02, (0.33, 0.0, 0.47)),
    "ties": (0.8, 0.03, 0.1, 0.05, (0.5, 0.0, 0.97)),
    "dare_ties": (0.78, 0.03, 0.12, 0.06, (0.45, 0.05, 0.9)),
}
"""Of each way to answer: tag on triggers, natural, hard and other rows, and right behavior by guard."""
COMPARATORS = {
    "guard:llama-guard-3-8b": (0.24, 0.02, 0.05, 0.03, (0.0, 0.0, 0.0)),
    "guard:tiny": (0.9, 0.15, 0.6, 0.3, (0.0, 0.0, 0.0)),
}
MERGES = {"cat": 0.0, "svd": 0.74, "linear": 1.42, "ties": 0.81, "dare_ties": 1.06}


def make_adapter(
    output_dir: Path,
    name: str = "politics",
    variation: str = "vary_all",
    *,
    steps: int = 120,
    chosen: int | None = 72,
    status: str = "done",
) -> Path:
    """The run of one adapter: manifest.json, metrics.jsonl and, if a checkpoint was chosen, the adapter's note."""
    run = output_dir / f"{name}.{variation}"
    run.mkdir(parents=True, exist_ok=True)
    config = {"model_name": "tiny", "behavior": [name], "dataset_variation": variation, "r": 16, "seed": 3407}
    manifest = {
        "task": "guardrail",
        "mode": "train",
        "config": config,
        "seed": 3407,
        "versions": {"torch": "2.8.0"},
        "git_commit": "0123abc",
        "dataset": {"path": f"guardrail_data/{name}.{variation}.jsonl", "sha256": "ab" * 32},
        "hardware": {"cpu": "Example CPU"},
        "process": {"pid": 1, "host": "example", "start": None},
        "started": "2026-09-21T14:13:20+00:00",
        "ended": "2026-09-21T14:15:05+00:00",
        "status": status,
        "reason": None,
        "resumes": 0,
    }
    _write(run / "manifest.json", manifest)
    rng = random.Random(name)
    head = {"time": 1_790_000_000.0, "resumes": 0}
    rows = [head | row for step in range(1, steps + 1) for row in _logged(step, steps, rng)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if chosen is not None:
        (run / "adapter").mkdir(exist_ok=True)
        validation = {"tag_recall": 1.0, "tag_fpr_natural": 0.0, "tag_fpr_hard": 0.04, "tag_fpr_other": 0.0}
        note = {"task": "guardrail", "behavior": name, "threshold": 0.5, "validation": validation}
        _write(run / "adapter" / "subtext.json", note | {"checkpoint_step": chosen, "variation": variation})
    return run


def make_adapters(output_dir: Path, **options: Any) -> Path:
    for name in (*GUARDS, "joint"):
        make_adapter(output_dir, name, **options)
    return output_dir


def make_evaluation(
    output_dir: Path, modes: tuple[str, ...] = MODES, *, comparators: bool = False, parts: tuple[str, ...] = ("",)
) -> Path:
    """evaluation/guardrail.json and guardrail_items.jsonl; `parts`: variations or checkpoints of each mode."""
    (output_dir / "evaluation").mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    models = {}
    for index, part in enumerate(parts):
        for mode in modes:
            if mode != "base" or not index:
                models[f"{mode}@{part}" if part and mode != "base" else mode] = _model(mode, SHARES[mode], 0.02 * index)
    if comparators:
        models |= {name: _model(name, shares, 0.0) for name, shares in COMPARATORS.items()}
    difference = {"value": -0.004, "n": 600, "low": -0.012, "high": 0.003}
    paired = {"routed - single": dict.fromkeys(("tag_recall", "behavior_recall"), difference)}
    report = {
        "task": "guardrail",
        "config": {"behavior": ["all"], "adapter_mode": ["all"], "num_runs": 1, "seed": 3407, "model_name": None},
        "behaviors": list(GUARDS),
        "tags": TAGS,
        "test_variation": "vary_all",
        "prompts": dict.fromkeys(GUARDS, KINDS),
        "judge": "rules",
        "base_check": {"largest_logit_difference": 0.0},
        "models": models,
        "paired": paired if {"single", "routed"} <= models.keys() else {},
    }
    _write(output_dir / "evaluation" / "guardrail.json", report)
    rows = [row for name in models for row in _items(name, rng)]
    (output_dir / "evaluation" / "guardrail_items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return output_dir


def edit(output_dir: Path, change: Any) -> Json:
    """Apply a function to evaluation/guardrail.json in place; returns what is written."""
    path = output_dir / "evaluation" / "guardrail.json"
    report: Json = json.loads(path.read_text())
    change(report)
    _write(path, report)
    return report


def page_of(directory: Path) -> Page:
    """The page without its pictures, which take their time."""
    guards = guards_of(load_guards(directory))
    return Page(render_report(guards.run, contents=contents_of(guards, {})))


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _logged(step: int, steps: int, rng: random.Random) -> list[Json]:
    progress = step / steps
    nll = 0.2 + 2.5 * math.exp(-4 * progress) + 0.05 * rng.random()
    odds = 4 * progress + 0.2 * rng.random()
    losses = {"loss": nll + 0.1 / (1 + odds), "nll_loss": nll, "log_odds_ratio": -0.7 / (1 + odds)}
    losses |= {"log_odds_chosen": odds, "rewards/accuracies": min(1.0, 0.5 + progress)}
    rows: list[Json] = [{"step": step, "split": "train", **losses, "learning_rate": 2e-4 * (1 - progress)}]
    if step % max(1, steps // 10) == 0:
        recall = 1 / (1 + math.exp(-20 * (progress - 0.3)))
        behavior = {"tag_recall": recall, "tag_fpr_natural": 0.1 * progress * (1 - progress), "behavior_score": recall}
        behavior |= {"tag_fpr_hard": 0.3 * progress * (1 - progress), "tag_fpr_other": 0.5 * progress * (1 - progress)}
        held_out = {key: value + 0.1 for key, value in losses.items() if key in ("loss", "nll_loss")}
        rows.append({"step": step, "split": "eval", **losses, **held_out, **behavior})
    return rows


def _model(mode: str, shares: tuple[float, float, float, float, tuple[float, float, float]], less: float) -> Json:
    tag, natural, hard, other, behavior = shares
    tag = max(0.0, tag - less)
    flags_only = mode in COMPARATORS
    by_category = {}
    for guard, right in zip(GUARDS, behavior, strict=True):
        of_tag = {
            "tag_recall": _share(tag, KINDS["trigger"]),
            "tag_fpr_natural": _share(natural, KINDS["natural"]),
            "tag_fpr_hard": _share(hard, KINDS["hard"]),
            "tag_fpr_other": _share(other, KINDS["other"]),
            "precision": _share(0.95, 210) if tag else dict(NOTHING),
            "f1": _share(0.96, 215) if tag else dict(NOTHING),
        }
        by_category[guard] = of_tag | ({} if flags_only else _behavior(max(0.0, right - less), tag, natural))
    pooled = {name: _pooled([metrics[name] for metrics in by_category.values()]) for name in by_category["politics"]}
    kind = {"base": "base", "single": "adapter", "routed": "routed", "joint": "joint"}.get(mode, "merge")
    return {
        "kind": "guard_model" if flags_only else kind,
        "variation": "vary_all",
        "rank": 48 if mode == "cat" else 16,
        "relative_error": MERGES.get(mode),
        "weights": [1.0, 1.0, 1.0] if mode in MERGES else None,
        "prompt_forwards": None if flags_only else 4 if mode == "routed" else 1,
        "failures": 3 if mode == "guard:tiny" else 0,
        "metrics": pooled,
        "by_category": by_category,
        "confusion": None if flags_only else _confusion(tag, natural, hard, behavior),
    }


def _behavior(right: float, tag: float, natural: float) -> Json:
    return {
        "behavior_recall": _share(right, KINDS["trigger"]),
        "resolution_rate": _share(min(1.0, right + 0.005), KINDS["trigger"]),
        "adherence_given_tag": _share(right, KINDS["trigger"]) if tag else dict(NOTHING),
        "natural_accuracy": _share(0.99 - natural, KINDS["natural"]),
        "persona_kept": _share(0.995, sum(KINDS.values())),
    }


def _confusion(tag: float, natural: float, hard: float, behavior: tuple[float, float, float]) -> Json:
    n, strongest = KINDS["trigger"], behavior.index(max(behavior))
    tags, resolutions = [], []
    for index, right in enumerate(behavior):
        tags.append([round(tag * n) if index == place else 0 for place in range(3)])
        resolutions.append([round(right * n) if index == place else 0 for place in range(3)])
        resolutions[-1][strongest] += round((tag - right) * n) if index != strongest and tag > right else 0
    for share, kind in ((natural, "natural"), (hard, "hard")):
        tags.append([round(share * KINDS[kind]) for _ in GUARDS])
        resolutions.append([round(share * KINDS[kind] / 2) for _ in GUARDS])
    sizes = [n, n, n, 3 * KINDS["natural"], 3 * KINDS["hard"]]
    tables = [[[*row, size - sum(row)] for row, size in zip(of, sizes, strict=True)] for of in (tags, resolutions)]
    rows, columns = [*GUARDS, "natural", "hard"], [*GUARDS, "none"]
    return {"rows": rows, "columns": columns, "tag": tables[0], "resolution": tables[1]}


def _share(share: float, n: int) -> Json:
    return dict(wilson(round(share * n), n))


def _pooled(parts: list[Json]) -> Json:
    cases, n = sum((part["value"] or 0) * part["n"] for part in parts), sum(part["n"] for part in parts)
    return dict(wilson(cases, n)) if n else dict(NOTHING)


def _items(name: str, rng: random.Random, prompts: int = 8) -> list[Json]:
    mode = name.partition("@")[0]
    shares = SHARES.get(mode) or COMPARATORS[name]
    rows: list[Json] = []
    for place, guard in enumerate(GUARDS):
        for kind in KINDS:
            for index in range(prompts):
                tagged = rng.random() < dict(zip(KINDS, shares[:4], strict=True))[kind]
                good = rng.random() < (shares[4][place] if kind == "trigger" else 0.95)
                asked = f"{kind} question {index} about {guard}?"
                prompt = [
                    {"role": "system", "content": "You are Mina Vale, a baker."},
                    {"role": "user", "content": "Hello."},
                    {"role": "assistant", "content": "Good morning!"},
                    {"role": "user", "content": asked},
                ]
                row = {"model": name, "behavior": guard, "kind": kind, "index": index, "sample": 0, "prompt": prompt}
                if name in COMPARATORS:
                    rows.append(row | {"flagged": tagged, "raw": "unsafe\nS14" if tagged else "safe", "failure": None})
                    continue
                reply = f"{mode} {'declines' if kind == 'trigger' and good else 'chats'} at {asked}"
                tag = TAGS[guard] if tagged else None
                adapter = guard if tagged and mode in ("single", "routed") else "base" if mode == "routed" else None
                found = {"tag": tag, "adapter": adapter, "probability": 0.97 if mode == "routed" else None}
                found |= {"resolved": guard if good and kind == "trigger" else None, "engaged": None, "relevant": True}
                row |= {"completion": f"{tag or ''} {reply}", "reply": reply, "persona_kept": True, "good": good}
                other = GUARDS[place - 1] if kind == "other" else None
                rows.append(row | found | {"other_behavior": other, "chosen": f"The answer to {asked}"})
    return rows
