"""Known truth: do reward models find hidden context exactly where the micro-world put it?

    python -m benchmarks.hidden_context [--shares 0 0.1 0.25 0.4 0.5] [--seeds 1]

The world's annotators are of two kinds, and which one judged a pair is hidden: a share q of them judges by
harmlessness, the others by helpfulness. For each q the three types of reward model are trained on the embedded model
and measured on the held-out pairs, whose wordings, tasks and topics no training pair has; the control judges the same
pairs by the mean of both utilities, so that nothing is hidden. One table a type:

    disagreement   share of contested pairs x 2 q (1 - q): how often two annotators of a pair disagree
    r2             falls as the disagreement grows
    spread AUROC   contested against agreed pairs
    Borda          share of pairs ordered as their Borda counts are: how often an answer wins
    utility        share of pairs ordered by expected utility
    complies       harmful asks: how often the answer that complies wins, by the mean and by the 1 % quantile
    helpful        accuracy on the pairs that helpful annotators judged, by the mean and by the 1 % quantile: the
                   difference is what avoiding harm costs

Intervals are in each run's evaluation/preference.json. Everything goes through the commands of main.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MAIN = Path(__file__).resolve().parent.parent / "main.py"
TYPES = ("base", "mean_and_variance", "categorical")
CONTROL = "control"
COLUMNS = {
    "accuracy": "accuracy",
    "r2": "r2",
    "spread AUROC": "spread_auroc",
    "Borda": "borda_accuracy",
    "utility": "utility_accuracy",
    "complies": "compliance_rate",
    "by quantile": "compliance_rate_risk",
    "cost in help": "helpful_accuracy_cost",
}


def main() -> None:
    """Run what has not run yet, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.1, 0.25, 0.4, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--num_records", type=int, default=4000)
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/hidden_context"))
    arguments = parser.parse_args()
    worlds = [*map(str, arguments.shares), CONTROL]
    for seed in arguments.seeds:
        for world in worlds:
            run(arguments.work_dir, seed, world, arguments.num_records)
    for seed in arguments.seeds:
        for kind in TYPES:
            print_table(arguments.work_dir, seed, worlds, kind)


def run(work_dir: Path, seed: int, world: str, num_records: int) -> None:
    """Compose the pairs of one world, train the three types on them, and measure them together."""
    folder = work_dir / f"{world}-{seed}"
    if (folder / "evaluation" / "preference.json").is_file():
        return
    pairs = work_dir / f"{world}-{seed}.jsonl"
    share = ["--hidden_context", "false"] if world == CONTROL else ["--share_harmless", world]
    command(
        *("prepare_data", "--dataset_path", pairs, "--num_records", num_records, "--seed", seed, *share, "--overwrite")
    )
    for kind in TYPES:
        command(
            *("train", "--model_name", "tiny", "--reward_model_type", kind, "--data_path", pairs),
            *("--output_dir", folder / kind, "--seed", seed, "--overwrite"),
        )
    checkpoints = [folder / kind for kind in TYPES]
    command("evaluate", "--reward_model_checkpoints", *checkpoints, "--data_path", pairs, "--output_dir", folder)


def command(mode: str, *options: object) -> None:
    """One call of main.py, its output on ours; a failure ends the benchmark."""
    words = ["--task", "preference", "--mode", mode, *map(str, options)]
    print(f"$ main.py {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, str(MAIN), *words], check=True)


def print_table(work_dir: Path, seed: int, worlds: list[str], kind: str) -> None:
    """One row a world, for one type of reward model."""
    print(f"\n{kind}, seed {seed}\n")
    print(f"{'q':>8}{'disagreement':>14}" + "".join(f"{title:>14}" for title in COLUMNS))
    for world in worlds:
        folder = work_dir / f"{world}-{seed}"
        report = json.loads((folder / "evaluation" / "preference.json").read_text("utf-8"))
        metrics = report["models"][kind]["metrics"]
        cells = [cell(metrics.get(metric)) for metric in COLUMNS.values()]
        print(f"{world:>8}{disagreement(folder, world):>14.3f}" + "".join(f"{text:>14}" for text in cells))


def disagreement(folder: Path, world: str) -> float:
    """How often two annotators would disagree on a held-out pair."""
    items = (folder / "evaluation" / "preference_items.jsonl").read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, items) if row["model"] == TYPES[0]]
    q = 0.0 if world == CONTROL else float(world)
    return 2 * q * (1 - q) * sum(row["kind"] == "contested" for row in rows) / len(rows)


def cell(estimate: dict[str, Any] | None) -> str:
    return "-" if estimate is None or estimate["value"] is None else f"{estimate['value']:.3f}"


if __name__ == "__main__":
    main()
