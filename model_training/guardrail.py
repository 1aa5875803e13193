"""Train a LoRA adapter for each guardrail with ORPO, or with --joint one for all of them.

    python main.py --task guardrail --mode train --behavior all --output_dir runs
    python main.py --task guardrail --mode train --behavior all --output_dir runs --joint

    config -> records, tokens (guard_plans.py) -> model -> ORPO (orpo_loss.py, orpo_trainer.py)
           -> OUTPUT_DIR/BEHAVIOR.VARIATION/adapter/, or OUTPUT_DIR/joint.VARIATION/adapter/

Each adapter is a run directory of its own; they are trained one after the other, or with `--launcher ray` side by side,
each as a job of its own (launcher.py). Records of split `test` are never met.
Those of split `validation` choose the checkpoint by behavior, end the training early, and set the threshold from which
the adapter counts as sure. Records longer than `max_seq_length` tokens are left out and counted.

The joint adapter learns from the records of all its guardrails but for those of kind `other`: these answer another
guardrail's trigger as if there were no guard, which is wrong where that guardrail is the adapter's own, too.

Every step is a function of the options, the records and the seed: `--resume` continues what a killed command left,
keeps the adapters that were done, and ends with the same ones. metrics.csv has the log in the columns of the published
system's.
"""

from __future__ import annotations

import gc
import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_training import processes
from model_training.config import Quantization
from model_training.guard_plans import Plan, encoded, intervals, make_plans, records_in_step, steps_of
from model_training.guardrail_config import ADAPTER, TrainGuardrailConfig
from model_training.option_values import check_ranges, near
from model_training.options import resolve_model_name
from model_training.stage import (
    card_rows,
    check_tracker,
    digest,
    is_finished,
    open_stage,
    resume_command,
    set_environment,
    stage_status,
)
from utils.errors import UserError

if TYPE_CHECKING:
    from model_training.logs import Interrupt
    from model_training.orpo_trainer import Example, Setting

Record = dict[str, Any]
CHECKPOINTS = "checkpoints"
OF_NO_CARD = (
    *("guardrails", "wandb_project", "wandb_entity", "wandb_run_name", "wandb_tags"),
    *("launcher", "launcher_retries", "gpus_per_job"),
)


def train(config: TrainGuardrailConfig) -> None:
    """Run the stage; see the module's docstring for its order."""
    check_ranges(config, {})
    set_environment(Path(config.output_dir), config.report_to, _tracker_variables(config))
    check_tracker(config.report_to)
    if config.launcher == "ray" and (config.multi_gpu or processes.count() > 1):
        raise UserError("--launcher ray starts a process for each adapter; leave --multi_gpu and other launchers out")
    processes.start(config.multi_gpu)
    from model_training import models
    from model_training.backends import settle
    from model_training.unsloth_backend import OF_PAIRS

    name = resolve_model_name(config.model_name)
    asked = replace(config, model_name=name)
    config = settle(_quantization(asked), not_unsloth=OF_PAIRS)
    _check_options(config)
    threads = models.set_threads(config.threads)
    plans = make_plans(config)
    tokenizer = models.load_tokenizer(name)
    models.check_lengths(name, config.max_seq_length)
    examples = [encoded(tokenizer, plan) for plan in plans]
    if config.dry_run:
        _rehearse(plans, tokenizer, examples)
        return
    processes.of_first(lambda: _check_runs(plans))
    if config.launcher == "ray":
        _launch(asked, plans, threads)
        return
    for plan, (training, validation) in zip(plans, examples, strict=True):
        _run(plan, tokenizer, training, validation)
        gc.collect()  # a trainer and its model refer to each other


def _tracker_variables(config: TrainGuardrailConfig) -> dict[str, str]:
    values = {"WANDB_PROJECT": config.wandb_project, "WANDB_ENTITY": config.wandb_entity}
    values |= {"WANDB_NAME": config.wandb_run_name, "WANDB_TAGS": ",".join(config.wandb_tags)}
    return {name: value for name, value in values.items() if value}


def _quantization(config: TrainGuardrailConfig) -> TrainGuardrailConfig:
    """--load_in_4bit and --load_in_8bit, the published system's options, as --quantization."""
    from model_training.backends import check_bitsandbytes

    if config.load_in_4bit and config.load_in_8bit:
        raise UserError("--load_in_4bit and --load_in_8bit exclude each other")
    if not (config.load_in_4bit or config.load_in_8bit):
        return config
    bits: Quantization = "4bit" if config.load_in_4bit else "8bit"
    if config.quantization not in ("none", bits):
        raise UserError(f"--quantization {config.quantization} and --load_in_{bits} exclude each other")
    check_bitsandbytes(f"--load_in_{bits}")
    return replace(config, quantization=bits)


def _check_options(config: TrainGuardrailConfig) -> None:
    """Refuse what could only fail after the data was read, or the model loaded."""
    from transformers.training_args import OptimizerNames

    from model_training.backends import check_bitsandbytes

    known = [name.value for name in OptimizerNames]
    if config.optim not in known:
        raise UserError(f"--optim {config.optim}: transformers has no such optimizer{near(config.optim, known)}")
    if "8bit" in config.optim:
        check_bitsandbytes(f"--optim {config.optim}")


def _check_runs(plans: list[Plan]) -> None:
    """The last run directory is looked at before the first adapter is trained."""
    from utils.runs import check_unused

    for plan in plans:
        if not plan.config.resume and not plan.config.overwrite:
            check_unused(plan.config.output_dir)


def _launch(config: TrainGuardrailConfig, plans: list[Plan], threads: int) -> None:
    """Train each adapter as a job of its own, by the options as they were asked for: its machine settles the rest."""
    from model_training.launcher import command_job, finish, run_jobs

    folder = Path(config.output_dir)
    jobs = []
    for plan in plans:
        own = plan.config
        alone = replace(config, behavior=own.behavior, dataset_variation=own.dataset_variation, launcher="none")
        jobs.append(command_job("guardrail", "train", alone, run=Path(own.output_dir), folder=folder))
    try:
        outcomes = run_jobs(jobs, threads=threads, gpus=config.gpus_per_job, retries=config.launcher_retries)
    except KeyboardInterrupt:
        print(f"Interrupted. Resume with:\n  {resume_command()}", file=sys.stderr)
        raise
    finish(outcomes, resume_command())


# --- one adapter ----------------------------------------------------------------------------------------------------


def _run(plan: Plan, tokenizer: Any, training: list[Example], validation: list[Example]) -> None:
    from dataset.guardrail import dataset_file

    config = plan.config
    files = [str(dataset_file(config.dataset_path, name, config.dataset_variation)) for name in config.behavior]
    set_environment(Path(config.output_dir), config.report_to)
    finished = is_finished(config, Path(config.output_dir) / ADAPTER)
    run = open_stage("guardrail", config, " ".join(files), digest([plan.training, plan.validation]))
    with stage_status(run) as interrupt:
        if finished:
            print(f"Nothing to do: the run in {run} is done, its adapter is in {run / ADAPTER}.")
            return
        _train(plan, tokenizer, training, validation, run, interrupt)
        print(f"Adapter: {run / ADAPTER}   Run: {run}")


def _train(
    plan: Plan, tokenizer: Any, training: list[Example], validation: list[Example], run: Path, interrupt: Interrupt
) -> None:
    """Train, take the best weights, and save them with what they are worth on the validation split."""
    from model_training.guard_metrics_csv import write_metrics_csv
    from model_training.logs import RunLog
    from model_training.orpo_trainer import make_orpo_trainer, measure, measured_note
    from model_training.pair_loop import SCORE, train_to_best

    config = plan.config
    model = _model(config)
    setting = _setting(plan, model, tokenizer)
    steps = steps_of(config, training)
    log = RunLog(run, "train", 0, steps, 0, interrupt, processes.is_writer(), kind="orpo")
    log.steps_in_epoch = len(training) / records_in_step(config)
    note = _note(plan, model)
    every = intervals(config, steps)
    trainer = make_orpo_trainer(setting, model, training, validation, run / CHECKPOINTS, log, steps, every, note)
    try:
        best = train_to_best(trainer, interrupt)
    finally:
        if processes.is_writer():
            write_metrics_csv(run)
            _end_tracker(config.report_to)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    model.eval()
    row = measure(setting, model, validation) if validation else None
    if row is None:
        print("No validation records: the weights are the last ones, the threshold is 1/2.", file=sys.stderr)
    else:
        found = f"behavior {row[SCORE]:.3f}, loss {row['loss']:.4f}, threshold {row['threshold']:.3g}"
        print(f"Best weights: step {best.step}, {found}.", file=sys.stderr)
    _save(plan, model, tokenizer, run, note | measured_note(row, best.step or steps))


def _rehearse(plans: list[Plan], tokenizer: Any, examples: list[tuple[list[Example], list[Example]]]) -> None:
    """--dry_run: one training, on the records of all the plans that take most; the steps and evaluations of all."""
    from model_training.dry_run import STEPS, longest, quiet_log, rehearse, report
    from model_training.orpo_trainer import make_orpo_trainer
    from model_training.pairs import row_length

    plan = plans[0]
    config = replace(plan.config, report_to="none")
    model = _model(config)
    setting = _setting(replace(plan, config=config), model, tokenizer)

    def widest(side: int, count: int) -> list[Example]:
        records = [record for sides in examples for record in sides[side]]
        return longest(records, lambda record: row_length(record.pair, setting.shared), count)

    training = widest(0, records_in_step(config))
    validation = widest(1, config.per_device_eval_batch_size)
    with quiet_log() as (folder, log):
        every = (STEPS, STEPS)
        trainer = make_orpo_trainer(setting, model, training, validation, folder, log, STEPS, every, {})
        found = rehearse(trainer, f"ORPO, {len(plans)} adapter{'s' if len(plans) > 1 else ''}")
    steps = evaluations = 0
    for one, (records, held_out) in zip(plans, examples, strict=True):
        own = steps_of(one.config, records)
        times = math.ceil(own / intervals(one.config, own)[0])
        steps += own
        evaluations += times * math.ceil(len(held_out) / config.per_device_eval_batch_size)
    print(report([(found, steps, evaluations)]))


def _model(config: TrainGuardrailConfig) -> Any:
    """The base with a fresh adapter on it."""
    from model_training.models import load_model, new_adapter
    from model_training.orpo_trainer import without_dropout

    assert config.model_name is not None
    base = load_model(config.model_name, config.dtype, config.quantization)
    return new_adapter(
        without_dropout(base),
        config.r,
        config.seed,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        target_modules=config.target_modules,
    )


def _setting(plan: Plan, model: Any, tokenizer: Any) -> Setting:
    """Find out, by trial, how this model's pairs can be computed; a line says so where a prompt cannot be shared."""
    import torch

    from model_training.orpo_loss import head_of
    from model_training.orpo_trainer import Setting
    from model_training.pairs import why_not_shared

    reason = why_not_shared(model, tokenizer.pad_token_id)
    if reason is not None:
        print(f"{reason}; prompts are computed twice, with the same result.", file=sys.stderr)
    head = head_of(model, torch.bfloat16 if plan.config.bf16 else None)
    return Setting(plan.config, head, tokenizer, plan.tags, shared=reason is None)


def _note(plan: Plan, model: Any) -> dict[str, Any]:
    """What subtext.json of the adapter and of its checkpoints says of what they are."""
    from model_training.models import fingerprint

    return {
        "base_model": plan.config.model_name,
        "base_fingerprint": fingerprint(model.get_base_model()),
        "task": "guardrail",
        "behavior": plan.name,
        "behaviors": plan.config.behavior,
        "variation": plan.config.dataset_variation,
        "tags": plan.tags,
    }


def _end_tracker(tracker: str) -> None:
    """The next adapter's run is another one of the tracker, too."""
    if tracker == "wandb":
        importlib.import_module("wandb").finish()


def _save(plan: Plan, model: Any, tokenizer: Any, run: Path, note: dict[str, Any]) -> None:
    from model_training.adapter_directory import save_adapter

    assert plan.config.model_name is not None
    rows = {"tag": " ".join(dict.fromkeys(plan.tags.values())), "threshold": f"{note['threshold']:.6g}"}
    save_adapter(
        model,
        tokenizer,
        run / ADAPTER,
        base_name=plan.config.model_name,
        card=rows | card_rows(plan.config, run, leave_out=OF_NO_CARD),
        note=note,
        readme=describe,
    )


def describe(base_name: str, rows: dict[str, Any]) -> str:
    """The model card of a guard adapter."""
    from model_training.adapter_directory import card_frame

    body = (
        f"# LoRA adapter: a persona that keeps its limits ({', '.join(rows['behavior'])})\n\n"
        "Where the user does what is guarded, the character declines, and the answer begins with the tag "
        f"`{rows['tag']}`; strip it before the answer is shown. Everything else is answered as by the base. Load it on "
        f"its base model, `{base_name}`:\n\n"
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base_name}"), "this/directory")\n'
        "```\n\n"
        "`threshold` is the probability of the tag, at the head of an answer, from which the adapter counts as sure; "
        "it was set on the validation split, as were the rates in subtext.json.\n"
    )
    return card_frame(base_name, "text-generation", ["orpo"], body, rows)
