"""The steps of a task's pipeline: which modes, with which part of the options, from which files to which.

    python main.py --mode pipeline --output_dir outputs [--start_step 2 --end_step 3]

What the modes do stands in their own files; they are reached through `call`, which the dispatcher hands in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from dataset.guardrail import dataset_file
from dataset.guardrails import choose_behaviors, load_guardrails
from model_training.config import JUDGE, TINY, EvaluateConfig, PrepareDataConfig, TrainConfig, VisualizeConfig
from model_training.guardrail_config import (
    ADAPTER,
    ALL,
    JOINT,
    VARIATIONS,
    EvaluateGuardrailConfig,
    PrepareGuardrailConfig,
    TrainGuardrailConfig,
    VisualizeGuardrailConfig,
    run_directory,
)
from model_training.options import ROOT, narrow
from model_training.preference_config import (
    WORLD,
    EvaluatePreferenceConfig,
    PreparePreferenceConfig,
    TrainPreferenceConfig,
)
from utils.api.options import ApiOptions
from utils.pipeline import Step, run_steps
from utils.runs import COMPLETIONS, MANIFEST, METRICS, PIPELINE_FILE

Call = Callable[[str, Any], None]
Files = dict[str, Path]

NO_INPUT = {
    "overwrite", "resume", "threads", "launcher", "launcher_retries", "gpus_per_job", "report_to",
    "output_dir", "dataset_path", "save_lora_path", "reward_model_checkpoints", "guardrails",
    "start_server", "server_port", "host", "vllm_server_base_url", "vllm_gpu_memory_utilization",
    *(option.name for option in fields(ApiOptions) if option.name != "base_url"),
}  # fmt: skip
"""Options that change no result, a key among them; files are compared by content, not by name."""


def secret(config: Any, call: Call) -> None:
    """prepare_data, train, evaluate, visualize of the `secret` task; the report's path at the end.

    They share a process: training may have vLLM beside it, whose memory ends with the process, so evaluation samples
    with transformers; and unsloth, which rewrites that for the whole process, is not used.
    """
    _run(config, secret_steps(config, call))


def preference(config: Any, call: Call) -> None:
    """prepare_data, train, evaluate, visualize of the `preference` task; the report's path at the end."""
    _run(config, preference_steps(config, call))


def guardrail(config: Any, call: Call) -> None:
    """prepare_data, train, evaluate, visualize of the `guardrail` task; the report's path at the end."""
    _run(config, guardrail_steps(config, call))


def secret_steps(config: Any, call: Call) -> list[Step]:
    prepare, train, evaluate, visualize = (
        narrow(config, part) for part in (PrepareDataConfig, TrainConfig, EvaluateConfig, VisualizeConfig)
    )
    train, evaluate = replace(train, backend="transformers"), replace(evaluate, engine="transformers")
    run, adapter = Path(config.output_dir), Path(config.save_lora_path)
    dataset = {"dataset": Path(config.dataset_path)}
    warmup, evaluation = run / "warmup_lora", {"evaluation": run / "evaluation" / "secret.json"}
    compares = config.sft_steps > 0 and config.max_steps > 0
    if compares and not any(named.startswith("warmup=") for named in evaluate.compare):
        evaluate = replace(evaluate, compare=[*evaluate.compare, f"warmup={warmup}"])
    asked = [name for name in config.reward_funcs if name.startswith(JUDGE)]
    if not asked:
        train = replace(train, judge=None)
    rubrics = {name: Path(path) for name in asked if (path := name.split(":")[1]).endswith((".yaml", ".yml"))}
    measured = {"adapter": adapter, **({"warmup": warmup} if compares else {}), **_base(config), **_seeds()}
    return [
        _prepare_step(prepare, call, _seeds(), dataset),
        _train_step(train, call, dataset | rubrics | _base(config), {"adapter": adapter, "metrics": run / METRICS}),
        Step(
            "evaluate",
            lambda again: call("evaluate", evaluate),
            _options(evaluate),
            measured | rubrics | _judge_files(config),
            evaluation,
        ),
        _visualize_step(visualize, call, (MANIFEST, METRICS, COMPLETIONS), evaluation),
    ]


def preference_steps(config: Any, call: Call) -> list[Step]:
    """As `secret_steps`; train and evaluate read the dataset file that prepare_data wrote."""
    prepare, train, evaluate, visualize = (
        narrow(config, part)
        for part in (PreparePreferenceConfig, TrainPreferenceConfig, EvaluatePreferenceConfig, VisualizeConfig)
    )
    run, dataset = Path(config.output_dir), {"dataset": Path(config.dataset_path)}
    train = replace(train, data_path=[config.dataset_path])
    names = config.reward_model_names or [config.reward_model_type]
    evaluate = replace(
        evaluate, data_path=[config.dataset_path], reward_model_checkpoints=[str(run)], reward_model_names=names
    )
    model, evaluation = {"model": run / "reward_model"}, {"evaluation": run / "evaluation" / "preference.json"}
    jailbreaks = {"jailbreaks": Path(config.jailbreak_path)} if config.jailbreak_path else {}
    sources = _seeds() if WORLD in config.data_path else {name: Path(name) for name in config.data_path}
    measured = model | dataset | jailbreaks | _base(config)
    return [
        _prepare_step(prepare, call, sources, dataset),
        _train_step(train, call, dataset | _base(config), model | {"metrics": run / METRICS}),
        Step("evaluate", lambda again: call("evaluate", evaluate), _options(evaluate), measured, evaluation),
        _visualize_step(visualize, call, (MANIFEST, METRICS), evaluation),
    ]


def guardrail_steps(config: Any, call: Call) -> list[Step]:
    """As `secret_steps`, over every chosen guardrail and variation; a joint adapter is trained if it is evaluated."""
    prepare, train, evaluate, visualize = (
        narrow(config, part)
        for part in (PrepareGuardrailConfig, TrainGuardrailConfig, EvaluateGuardrailConfig, VisualizeGuardrailConfig)
    )
    behaviors = choose_behaviors(load_guardrails(config.guardrails), config.behavior)
    variations = VARIATIONS if config.dataset_variation == ALL else (config.dataset_variation,)
    with_joint = bool({JOINT, ALL} & set(config.adapter_mode)) and len(behaviors) > 1
    names = [*behaviors, *([JOINT] if with_joint else [])]
    datasets = {
        f"{name}.{kind}": dataset_file(config.dataset_path, name, kind) for name in behaviors for kind in variations
    }
    runs = {f"{name}.{kind}": run_directory(config.output_dir, name, kind) for name in names for kind in variations}
    adapters = {f"adapter of {name}": run / ADAPTER for name, run in runs.items()}
    rows = {f"metrics of {name}": run / METRICS for name, run in runs.items()}
    evaluation = {"evaluation": Path(config.output_dir) / "evaluation" / "guardrail.json"}
    definitions = _seeds() | ({"guardrails": Path(config.guardrails)} if config.guardrails else {})

    def train_each(again: bool) -> None:
        resume = train.resume or (not train.overwrite and any((run / MANIFEST).is_file() for run in runs.values()))
        call("train", replace(train, resume=resume))
        if with_joint:
            call("train", replace(train, resume=resume, joint=True))

    return [
        _prepare_step(prepare, call, definitions, datasets),
        Step("train", train_each, _options(train), datasets | definitions | _base(config), adapters | rows),
        Step(
            "evaluate",
            lambda again: call("evaluate", evaluate),
            _options(evaluate),
            adapters | datasets | definitions | _base(config) | _judge_files(config),
            evaluation,
        ),
        _visualize_step(visualize, call, (), rows | evaluation),
    ]


# --- what the tasks share -------------------------------------------------------------------------------------------


def _run(config: Any, steps: list[Step]) -> None:
    run = Path(config.output_dir)
    run_steps(
        steps,
        run / PIPELINE_FILE,
        start_step=config.start_step,
        end_step=config.end_step,
        afresh=config.overwrite,
    )
    if config.end_step == len(steps):
        print(f"Report: {run / 'training_report.html'}")


def _prepare_step(prepare: Any, call: Call, inputs: Files, outputs: Files) -> Step:
    def prepare_again_or_new(again: bool) -> None:
        overwrite = prepare.overwrite or again
        call("prepare_data", replace(prepare, overwrite=overwrite, resume=prepare.resume and not overwrite))

    return Step("prepare_data", prepare_again_or_new, _options(prepare), inputs, outputs)


def _train_step(train: Any, call: Call, inputs: Files, outputs: Files) -> Step:
    def train_or_resume(again: bool) -> None:
        """A run that stands there is continued; whether it is this one, `open_run` checks."""
        resume = train.resume or (not train.overwrite and (Path(train.output_dir) / MANIFEST).is_file())
        call("train", replace(train, resume=resume))

    return Step("train", train_or_resume, _options(train), inputs, outputs)


def _visualize_step(visualize: VisualizeConfig, call: Call, files: tuple[str, ...], evaluation: Files) -> Step:
    run = Path(visualize.output_dir)
    return Step(
        "visualize",
        lambda again: call("visualize", visualize),
        _options(visualize),
        {name: run / name for name in files} | evaluation,
        {"report": run / "training_report.html"},
        always=visualize.start_server,
    )


def _seeds() -> Files:
    files = sorted((ROOT / "seeds").glob("*.yaml"))
    return {f"seeds/{file.name}": file for file in files if file.name != "prices.yaml"}


def _judge_files(config: Any) -> Files:
    """The rubrics and labels of a judge, compared by content."""
    built_in = {"seeds/rubrics": ROOT / "seeds" / "rubrics"} if config.judge else {}
    return built_in | {name: Path(name) for name in (*config.judge_rubric, config.judge_calibration) if name}


def _base(config: Any) -> Files:
    return {"embedded model": ROOT / "seeds" / "tiny" / "model.safetensors"} if config.model_name == TINY else {}


def _options(config: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name not in NO_INPUT}
