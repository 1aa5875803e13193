"""Spill-over: what happens to the hidden part when only the visible part is asked to change.

    python -m benchmarks.credit --seeds 1 2 3

GRPO on the embedded model with two rewards alone: strict format (of both parts) and brevity of the *visible* part. No
reward speaks of the hidden thought, so any change of it is spill-over. For each seed, the same warm-up is followed by
GRPO with credit to the whole completion, and by GRPO with credit by segment; all answer the same held-out queries.
The table pools the seeds; intervals are 95 % bootstrap intervals over queries (a query's seeds stay together).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from evaluation.statistics import Cells, Estimate, cells, difference, mean

MAIN = Path(__file__).resolve().parent.parent / "main.py"
METRICS = {
    "strict": "strict_format_rate",
    "visible words": "visible_words",
    "hidden words": "hidden_words",
    "hidden well-formed": "hidden_wellformed_rate",
}
REWARDS = ["format", "brevity_visible"]
CREDITS = ("completion", "segment")
SETTINGS = {
    "sft_steps": 300,
    "sft_batch_size": 8,
    "sft_learning_rate": 1.5e-3,
    "learning_rate": 3e-4,
    "per_device_train_batch_size": 16,
    "num_generations": 8,
}
"""The demo's recipe with two groups a step."""


def main() -> None:
    """Run what has not run yet, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=100, help="GRPO steps")
    parser.add_argument("--num_queries", type=int, default=240)
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/credit"))
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for credit in CREDITS:
            run(arguments.work_dir, seed, credit, arguments.steps, arguments.num_queries)
    print_table(arguments.work_dir, arguments.seeds, arguments.steps)
    print_changes(arguments.work_dir, arguments.seeds)


def run(work_dir: Path, seed: int, credit: str, steps: int, num_queries: int) -> None:
    """Train and evaluate one seed with one kind of credit, unless its numbers are there already."""
    output = work_dir / f"{credit}-{seed}"
    if (output / "evaluation" / "secret.json").is_file():
        return
    dataset, adapter = work_dir / "data.json", work_dir / f"{credit}-{seed}-lora"
    if not dataset.is_file():
        command("prepare_data", "--dataset_path", dataset)
    common = ["--model_name", "tiny", "--output_dir", output, "--save_lora_path", adapter, "--seed", seed]
    train = ["--dataset_path", dataset, "--credit", credit, "--max_steps", steps, "--reward_funcs", *REWARDS]
    settings = [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
    command("train", *common, *train, *settings, "--overwrite")
    compare = ["--compare", f"warmup={output / 'warmup_lora'}"]
    command("evaluate", *common, *compare, "--num_queries", num_queries, "--reward_funcs", *REWARDS)


def command(mode: str, *options: object) -> None:
    """One call of main.py, its output on ours; a failure ends the benchmark."""
    print(f"$ main.py --mode {mode} {' '.join(map(str, options))}", flush=True)
    subprocess.run([sys.executable, str(MAIN), "--mode", mode, *map(str, options)], check=True)


def print_table(work_dir: Path, seeds: list[int], steps: int) -> None:
    """One row a model, the seeds pooled by query, and the paired difference of the two kinds of credit."""
    rows = [("after SFT", "segment", "warmup"), ("credit to the completion", "completion", "adapter")]
    rows.append(("credit by segment", "segment", "adapter"))
    print(f"\nGRPO steps {steps}, seeds {seeds}, rewards {REWARDS}; value [95 % interval], queries\n")
    print(f"{'':26}" + "".join(f"{title:>26}" for title in METRICS))
    for title, credit, model in rows:
        items = [row for seed in seeds for row in model_rows(work_dir / f"{credit}-{seed}", model)]
        estimates = [mean(by_query(items, metric), seed=0) for metric in METRICS.values()]
        print(f"{title:26}" + "".join(f"{cell(e):>26}" for e in estimates))
    segment, completion = (
        [row for seed in seeds for row in model_rows(work_dir / f"{credit}-{seed}", "adapter")]
        for credit in ("segment", "completion")
    )
    changes = [difference(by_query(segment, m), by_query(completion, m), seed=0) for m in METRICS.values()]
    print(f"{'segment - completion':26}" + "".join(f"{cell(e):>26}" for e in changes))


def print_changes(work_dir: Path, seeds: list[int]) -> None:
    """What GRPO did to the hidden part, seed by seed: adapter minus warm-up, paired by query."""
    metrics = ("hidden_words", "hidden_wellformed_rate", "distinct_hidden_rate")
    print("\nadapter - warm-up, same queries\n")
    print(f"{'':26}" + "".join(f"{metric:>26}" for metric in metrics))
    for seed in seeds:
        for credit in CREDITS:
            report = json.loads((work_dir / f"{credit}-{seed}" / "evaluation" / "secret.json").read_text("utf-8"))
            changes = report["paired"]["adapter - warmup"]
            print(f"{f'{credit}, seed {seed}':26}" + "".join(f"{cell(changes[metric]):>26}" for metric in metrics))


def cell(estimate: Estimate) -> str:
    """`0.975 [0.958, 0.986]`"""
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def model_rows(run_dir: Path, model: str) -> list[dict[str, Any]]:
    """The raw evaluation rows of one model of one run."""
    lines = (run_dir / "evaluation" / "secret_items.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["model"] == model]


def by_query(items: list[dict[str, Any]], metric: str) -> Cells:
    """One metric's values, queries as the unit, in the order of their ids."""
    values: dict[str, list[float | None]] = {}
    for row in items:
        values.setdefault(row["query_id"], []).append(row["scores"][metric])
    return cells([values[query] for query in sorted(values)])


if __name__ == "__main__":
    main()
