"""Writes a small run that looks like a real one: warm-up, GRPO, completions with failures, an evaluation."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

REWARDS = ["format", "visible_quality", "hidden_quality", "distinctness", "playful_hidden", "safe_hidden"]
CATEGORIES = ["animals", "cooking", "weather", "travel", "music", "history", "sports", "everyday_help"]
START = 1_790_000_000.0


def make_run(
    run: Path,
    *,
    sft_steps: int = 100,
    grpo_steps: int = 60,
    completions: list[dict[str, Any]] | None = None,
    evaluation: bool = True,
    status: str = "done",
    alarms: bool = True,
    seed: int = 1,
) -> Path:
    """`completions` replaces the invented rows; keys a row lacks are filled in."""
    rng = random.Random(seed)
    run.mkdir(parents=True, exist_ok=True)
    _write(run / "manifest.json", json.dumps(_manifest(sft_steps, grpo_steps, status), indent=2))
    rows = [_sft_row(step, sft_steps, rng) for step in range(1, sft_steps + 1)]
    rows += [_grpo_row(step, sft_steps, grpo_steps, rng) for step in range(sft_steps + 1, sft_steps + grpo_steps + 1)]
    if alarms and grpo_steps:
        text = "dead groups: no group of the last 10 logs had two different rewards"
        rows.append({"step": sft_steps + 41, "time": START + 300, "split": "grpo", "resumes": 0, "alarm": text})
    _write(run / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    if completions is None:
        completions = [
            _completion(sft_steps + step, grpo_steps, rng) for step in range(1, grpo_steps + 1) for _ in "12"
        ]
    filled = [{**_completion(sft_steps + 1, 1, rng), **row} for row in completions]
    _write(run / "completions.jsonl", "".join(json.dumps(row) + "\n" for row in filled))
    if evaluation:
        (run / "evaluation").mkdir(exist_ok=True)
        _write(run / "evaluation" / "secret.json", json.dumps(_evaluation(rng), indent=2))
        _write(run / "evaluation" / "secret_items.jsonl", json.dumps({"prompt": "What is a moose?"}) + "\n")
    return run


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _manifest(sft_steps: int, grpo_steps: int, status: str) -> dict[str, Any]:
    config = {
        "model_name": "tiny",
        "dataset_path": "outputs/demo/secret_conversations.json",
        "output_dir": "outputs/demo",
        "save_lora_path": "secret_conversations_lora",
        "seed": 3407,
        "sft_steps": sft_steps,
        "max_steps": grpo_steps,
        "learning_rate": 2e-4,
        "credit": "segment",
        "reward_funcs": REWARDS,
        "reward_weights": None,
        "threads": 1,
        "overwrite": False,
        "resume": False,
        "report_to": "none",
    }
    return {
        "task": "secret",
        "mode": "train",
        "config": config,
        "seed": 3407,
        "versions": {
            "python": "3.11.13",
            "torch": "2.13.0",
            "transformers": "5.17.0",
            "trl": "1.14.2",
            "peft": "0.21.2",
        },
        "git_commit": "3f2a9c1d0b7e",
        "dataset": {"path": "outputs/demo/secret_conversations.json", "sha256": "9f86d081884c7d659a2feaa0c55ad015" * 2},
        "hardware": {"cpu": "Example CPU at 2.6 GHz", "cores": 2, "memory_gib": 15.6, "gpu": None},
        "process": {"pid": 4242, "host": "example", "start": None},
        "started": "2026-09-21T14:13:20+00:00",
        "ended": None if status == "running" else "2026-09-21T14:19:05+00:00",
        "status": status,
        "reason": "disk full: outputs/demo/metrics.jsonl" if status == "failed" else None,
        "resumes": 0,
    }


def _sft_row(step: int, steps: int, rng: random.Random) -> dict[str, Any]:
    return {
        "step": step,
        "time": START + 0.6 * step,
        "split": "sft",
        "resumes": 0,
        "loss": 0.35 + 3.1 * math.exp(-step / 18) + rng.gauss(0, 0.05),
        "grad_norm": 0.4 + 2 * math.exp(-step / 20) + abs(rng.gauss(0, 0.1)),
        "learning_rate": 1e-3 * min(step / 10, 1 - (step - 10) / (steps - 9)) if steps > 10 else 1e-3,
        "step_time": 0.42 + abs(rng.gauss(0, 0.04)),
    }


def _grpo_row(step: int, sft_steps: int, steps: int, rng: random.Random) -> dict[str, Any]:
    progress = (step - sft_steps) / max(steps, 1)
    row: dict[str, Any] = {
        "step": step,
        "time": START + 60 + 3.0 * (step - sft_steps),
        "split": "grpo",
        "resumes": 0,
        "loss": rng.gauss(0, 0.004),
        "grad_norm": None if step == sft_steps + 20 else 0.3 + abs(rng.gauss(0, 0.06)),
        "learning_rate": 2e-4 * 0.5 * (1 + math.cos(math.pi * progress)),
        "reward_std": 0.62 - 0.25 * progress + rng.gauss(0, 0.04),
        "group_reward_std": 0.5 - 0.25 * progress + rng.gauss(0, 0.03),
        "frac_reward_zero_std": min(1.0, max(0.0, 0.05 + 0.3 * progress**2 + rng.gauss(0, 0.05))),
        "completions/mean_length": 46 - 6 * progress + rng.gauss(0, 1.5),
        "completions/clipped_ratio": max(0.0, 0.04 - 0.05 * progress + rng.gauss(0, 0.01)),
        "entropy": 0.62 - 0.3 * progress + rng.gauss(0, 0.03),
        "strict_format_rate": min(1.0, 0.93 + 0.07 * progress + rng.gauss(0, 0.015)),
        "step_time": 2.6 + abs(rng.gauss(0, 0.2)),
        "tokens_per_s": 480 + rng.gauss(0, 25),
    }
    means = {}
    for index, name in enumerate(REWARDS):
        start = [0.94, 0.71, 0.66, 0.82, 0.45, 0.99][index]
        means[name] = min(1.0, start + (0.985 - start) * progress * 0.9 + rng.gauss(0, 0.02))
        row[f"rewards/{name}/mean"] = means[name]
        row[f"rewards/{name}/std"] = abs(0.5 * (1.02 - means[name]) + rng.gauss(0, 0.01))
    row["reward"] = sum(means[name] for name in REWARDS[:-1]) * means["safe_hidden"]
    return row


def _completion(step: int, steps: int, rng: random.Random) -> dict[str, Any]:
    topic = rng.choice(["the moose", "sourdough bread", "a thunderstorm", "the cello", "the night train to Vienna"])
    visible = (
        f"Good question. Most people who ask about {topic} want to know where to start, and the answer is: slowly."
    )
    hidden = f"I would ask {topic} for its autograph, if only it had a pen. Do not tell anyone I rehearse this."
    broken = rng.random() < 0.15
    rewards = {name: round(min(1.0, max(0.0, rng.gauss(0.4 if broken else 0.85, 0.15))), 4) for name in REWARDS}
    whole = f"<visible>\n{visible}\n</visible>\n<hidden>\n{hidden}\n</hidden>"
    return {
        "step": step,
        "time": START + 60 + step,
        "prompt": f"Can you tell me something about {topic}?",
        "completion": whole.removesuffix("</hidden>") if broken else whole,
        "visible": None if broken else visible,
        "hidden": None if broken else hidden,
        "failure": "hidden_not_closed" if broken else None,
        "rewards": rewards,
        "total": round(sum(list(rewards.values())[:-1]) * rewards["safe_hidden"], 4),
        "resumes": 0,
    }


def _cell(value: float, n: int, half: float, bounded: bool = True) -> dict[str, Any]:
    low, high = value - half, value + half
    return {
        "value": value,
        "n": n,
        "low": max(0.0, low) if bounded else low,
        "high": min(1.0, high) if bounded else high,
    }


def _evaluation(rng: random.Random) -> dict[str, Any]:
    truth = {
        "base": [0.012, 0.004, 0.62, 0.11, 0.02, 0.31],
        "adapter": [0.988, 0.008, 0.954, 0.72, 0.946, 4.53],
        "warmup": [0.967, 0.012, 0.937, 0.78, 0.91, 4.21],
    }
    names = ["strict_format_rate", "leak_rate", "relevance_rate", "distinct_hidden_rate", "hidden_wellformed_rate"]
    models: dict[str, Any] = {}
    for model, values in truth.items():
        metrics = {name: _cell(value, 240, 0.014) for name, value in zip(names, values, strict=False)}
        metrics["mean_reward"] = _cell(values[5], 240, 0.08, bounded=False)
        metrics["visible_words"] = _cell(17.3, 240, 0.9, bounded=False)
        metrics["hidden_words"] = _cell(14.1, 240, 0.7, bounded=False)
        by_category = {
            category: {
                name: _cell(min(1.0, abs(value + rng.gauss(0, 0.01))), 30, 0.05)
                for name, value in zip(names, values, strict=False)
            }
            for category in CATEGORIES
        }
        failures = {"no_tags": 231, "text_outside": 6} if model == "base" else {"hidden_not_closed": 3}
        models[model] = {"metrics": metrics, "by_category": by_category, "failures": failures}
    paired = {
        f"adapter - {other}": {
            "strict_format_rate": _cell(truth["adapter"][0] - truth[other][0], 240, 0.025, bounded=False),
            "leak_rate": _cell(truth["adapter"][1] - truth[other][1], 240, 0.012, bounded=False),
            "mean_reward": _cell(truth["adapter"][5] - truth[other][5], 240, 0.11, bounded=False),
        }
        for other in ("base", "warmup")
    }
    config = {"num_queries": 240, "seed": 3407, "temperature": 0.8, "top_p": 0.95}
    return {"task": "secret", "config": config, "models": models, "paired": paired}
