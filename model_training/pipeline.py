"""The steps of a task's pipeline: which modes, with which part of the options, from which files to which.

    python main.py --mode pipeline --output_dir outputs [--start_step 2 --end_step 3]

What the modes do stands in their own files; they are reached through `call`, which the dispatcher hands in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from model_training.config import TINY, EvaluateConfig, PrepareDataConfig, TrainConfig, VisualizeConfig
from model_training.options import ROOT, narrow
from utils.pipeline import Step, run_steps
from utils.runs import COMPLETIONS, MANIFEST, METRICS, PIPELINE_FILE

Call = Callable[[str, Any], None]

NO_INPUT = {
    "overwrite", "resume", "threads", "report_to", "output_dir", "dataset_path", "save_lora_path",
    "start_server", "server_port", "host",
}  # fmt: skip
"""Options that change no result; files are compared by content, not by name."""


def secret(config: Any, call: Call) -> None:
    """prepare_data, train, evaluate, visualize; the report's path at the end."""
    run = Path(config.output_dir)
    run_steps(
        secret_steps(config, call),
        run / PIPELINE_FILE,
        start_step=config.start_step,
        end_step=config.end_step,
        afresh=config.overwrite,
    )
    if config.end_step == 4:
        print(f"Report: {run / 'training_report.html'}")


def secret_steps(config: Any, call: Call) -> list[Step]:
    prepare, train, evaluate, visualize = (
        narrow(config, part) for part in (PrepareDataConfig, TrainConfig, EvaluateConfig, VisualizeConfig)
    )
    run, dataset, adapter = Path(config.output_dir), Path(config.dataset_path), Path(config.save_lora_path)
    warmup, evaluation = run / "warmup_lora", run / "evaluation" / "secret.json"
    seeds = {f"seeds/{file.name}": file for file in sorted((ROOT / "seeds").glob("*.yaml"))}
    base = {"embedded model": ROOT / "seeds" / "tiny" / "model.safetensors"} if config.model_name == TINY else {}
    compares = config.sft_steps > 0 and config.max_steps > 0
    if compares and not any(named.startswith("warmup=") for named in evaluate.compare):
        evaluate = replace(evaluate, compare=[*evaluate.compare, f"warmup={warmup}"])

    def prepare_again_or_new(again: bool) -> None:
        overwrite = prepare.overwrite or again
        call("prepare_data", replace(prepare, overwrite=overwrite, resume=prepare.resume and not overwrite))

    def train_or_resume(again: bool) -> None:
        """A run that stands there is continued; whether it is this one, `open_run` checks."""
        resume = config.resume or (not config.overwrite and (run / MANIFEST).is_file())
        call("train", replace(train, resume=resume))

    return [
        Step(
            "prepare_data",
            prepare_again_or_new,
            _options(prepare),
            seeds,
            {"dataset": dataset},
        ),
        Step(
            "train",
            train_or_resume,
            _options(train),
            {"dataset": dataset, **base},
            {"adapter": adapter, "metrics": run / METRICS},
        ),
        Step(
            "evaluate",
            lambda again: call("evaluate", evaluate),
            _options(evaluate),
            {"adapter": adapter, **({"warmup": warmup} if compares else {}), **base, **seeds},
            {"evaluation": evaluation},
        ),
        Step(
            "visualize",
            lambda again: call("visualize", visualize),
            _options(visualize),
            {name: run / name for name in (MANIFEST, METRICS, COMPLETIONS)} | {"evaluation": evaluation},
            {"report": run / "training_report.html"},
            always=config.start_server,
        ),
    ]


def _options(config: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name not in NO_INPUT}
