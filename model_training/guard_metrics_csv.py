"""metrics.csv: the log of a guardrail run as one table, in the columns of transformers' log history.

One row a log event, by step: training events, measurements on the validation split (`eval_`), and a last row with the
whole run's `train_` columns. It is made from metrics.jsonl in one write, whenever a training ends or is interrupted; a
resumed run therefore repeats no row.

    train_loss       mean loss of all steps
    train_runtime    seconds in training steps, those of measurements and checkpoints left out
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from utils.files import write_atomic
from utils.runs import processes_of, read_manifest, read_metrics

CSV = "metrics.csv"
ODDS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")
PARTS = ("nll_loss", "log_odds_ratio", "log_odds_chosen")
RUNTIMES = ("runtime", "samples_per_second", "steps_per_second")
SCORES = ("behavior_score", "behavior_score_error", "threshold")
RATES = ("tag_recall", "tag_fpr_natural", "tag_fpr_hard", "tag_fpr_other")
COLUMNS = (
    *("loss", "grad_norm", "learning_rate", *ODDS, *PARTS, "epoch", "step", "eval_loss"),
    *(f"eval_{name}" for name in (*RUNTIMES, *ODDS, *PARTS, *SCORES, *RATES)),
    *(f"train_{name}" for name in (*RUNTIMES, "loss")),
)
Row = dict[str, Any]


def write_metrics_csv(run: Path) -> Path | None:
    """Write metrics.csv beside the metrics.jsonl of a run; None, and no file, while nothing was logged."""
    rows = [row for row in read_metrics(run) if "alarm" not in row]
    training = [row for row in rows if row["split"] == "train"]
    if not training:
        return None
    events = [row if row["split"] == "train" else _measured(row) for row in rows if row["split"] in ("train", "eval")]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*events, _whole(training, read_manifest(run))])
    write_atomic(run / CSV, text.getvalue())
    return run / CSV


def _measured(row: Row) -> Row:
    return {name if name in ("step", "epoch") else f"eval_{name}": value for name, value in row.items()}


def _whole(training: list[Row], manifest: dict[str, Any]) -> Row:
    """The last row, from the training events: each speaks of the steps since the one before."""
    config = manifest["config"]
    in_step = config["per_device_train_batch_size"] * config["gradient_accumulation_steps"] * processes_of(manifest)
    ends = [row["step"] for row in training]
    steps = [end - before for end, before in zip(ends, [0, *ends], strict=False)]
    seconds = math.fsum(n * in_step / row["pairs_per_s"] for n, row in zip(steps, training, strict=True))
    return {
        "step": ends[-1],
        "epoch": training[-1]["epoch"],
        "train_runtime": seconds,
        "train_samples_per_second": ends[-1] * in_step / seconds,
        "train_steps_per_second": ends[-1] / seconds,
        "train_loss": math.fsum(n * row["loss"] for n, row in zip(steps, training, strict=True)) / ends[-1],
    }
