"""Train a reward model on preference pairs; with --env, the small networks of the synthetic experiments.

    python main.py --task preference --mode train --data_path preference_pairs.jsonl --output_dir runs/mv \
        --reward_model_type mean_and_variance

    config -> pairs -> tokens -> model (reward_model.py) -> Trainer (pair_trainer.py) -> OUTPUT_DIR/reward_model/

Pairs of split `test` are never met. Those of split `validation` are held out for early stopping; where there are none,
whole prompts of `train` are, at most a tenth of its pairs. Pairs with a text longer than `max_length` tokens are left
out and counted: a cut answer is not the one that was judged.

Every step is a function of the options, the pairs and the seed, so `--resume` continues from whatever a killed run left
and ends with the same reward model.
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_training import processes
from model_training.option_values import check_ranges
from model_training.options import resolve_model_name
from model_training.preference_config import TrainPreferenceConfig
from model_training.stage import (
    card_rows,
    check_tracker,
    digest,
    is_finished,
    open_stage,
    set_environment,
    stage_status,
)
from utils.errors import UserError

if TYPE_CHECKING:
    from model_training.logs import Interrupt
    from model_training.pairs import Pair

Record = dict[str, Any]
CHECKPOINTS = "checkpoints"
SYNTHETIC = ("env", "batch_size", "lr", "num_iterations", "estimator", "shared_context", "out_dir")
"""Options of the synthetic experiments."""


def train(config: TrainPreferenceConfig) -> None:
    """Run the stage; see the module's docstring for its order."""
    check_ranges(config, {})
    if config.env and config.dry_run:
        raise UserError("--dry_run measures the training of a language model; leave it out with --env")
    if config.env:
        if config.multi_gpu or processes.count() > 1:
            raise UserError("--env trains small networks in one process; start it without a launcher or --multi_gpu")
        from model_training.synthetic_preferences import train_synthetic

        train_synthetic(config)
        return
    set_environment(Path(config.output_dir), config.report_to)
    check_tracker(config.report_to)
    processes.start(config.multi_gpu)
    from model_training import models
    from model_training.backends import settle
    from model_training.reward_model import FOLDER
    from model_training.unsloth_backend import OF_PAIRS

    name = resolve_model_name(config.model_name)
    config = settle(replace(config, model_name=name), not_unsloth=OF_PAIRS)
    models.set_threads(config.threads)
    training, held_out, form = choose_pairs(config)
    tokenizer = models.load_tokenizer(name)
    models.check_lengths(name, config.max_length, "--max_length")
    pairs, held_out_pairs = encoded(tokenizer, training, form, config), encoded(tokenizer, held_out, form, config)
    if not pairs:
        raise UserError(f"none of {len(training)} pairs is short enough; raise --max_length {config.max_length}")
    _report(len(training), len(pairs), len(held_out), len(held_out_pairs), config.max_length)
    if config.dry_run:
        _rehearse(config, tokenizer, pairs, held_out_pairs)
        return
    finished = is_finished(config, Path(config.output_dir) / FOLDER)
    run = open_stage("preference", config, " ".join(config.data_path), digest([training, held_out]))
    with stage_status(run) as interrupt:
        if finished:
            print(f"Nothing to do: the run in {run} is done, its reward model is in {run / FOLDER}.")
            return
        model = _trained(config, tokenizer, pairs, held_out_pairs, run, interrupt)
        _save(model, tokenizer, config, form, held_out_pairs, run)
        print(f"Reward model: {run / FOLDER}   Run: {run}")


# --- pairs ----------------------------------------------------------------------------------------------------------


def choose_pairs(config: TrainPreferenceConfig) -> tuple[list[Record], list[Record], Any]:
    """The pairs to train on, those held out for early stopping, and the form of their texts."""
    from dataset.pair_forms import pair_form
    from dataset.preference_sources import load_pairs

    records = load_pairs(config.data_path, config.data_subset, skip_invalid=config.skip_invalid)
    training = [record for record in records if record["split"] == "train"]
    held_out = [record for record in records if record["split"] == "validation"]
    if not training:
        where = " ".join(config.data_path)
        raise UserError(f"{where}: none of its {len(records)} pairs is of the split `train`; there is nothing to learn")
    rng = random.Random(f"pairs {config.seed}")
    if not held_out:
        training, held_out = hold_out(training, min(config.eval_dataset_size, len(training) // 10), rng)
    elif config.eval_dataset_size < len(held_out):
        held_out = [held_out[i] for i in sorted(rng.sample(range(len(held_out)), config.eval_dataset_size))]
    if 0 < config.train_dataset_size < len(training):
        training = [training[i] for i in sorted(rng.sample(range(len(training)), config.train_dataset_size))]
    return training, held_out, pair_form(training[0])


def hold_out(records: list[Record], size: int, rng: random.Random) -> tuple[list[Record], list[Record]]:
    """The records without and with those of as many random prompts as fit into `size`, in their order."""
    from dataset.pair_forms import prompt_key

    prompts = [prompt_key(record) for record in records]
    counts = Counter(prompts)
    chosen: set[str] = set()
    taken = 0
    for prompt in rng.sample(list(counts), len(counts)):
        if taken + counts[prompt] <= size:
            chosen.add(prompt)
            taken += counts[prompt]
    kept = [record for record, prompt in zip(records, prompts, strict=True) if prompt not in chosen]
    return kept, [record for record, prompt in zip(records, prompts, strict=True) if prompt in chosen]


def encoded(tokenizer: Any, records: list[Record], form: Any, config: TrainPreferenceConfig) -> list[Pair]:
    """Token ids of the pairs whose two texts are both short enough."""
    from model_training.reward_model import encode_pairs

    pairs = encode_pairs(tokenizer, records, form)
    return [pair for pair in pairs if max(map(len, pair)) <= config.max_length]


def _report(pairs: int, kept: int, held_out: int, held_out_kept: int, max_length: int) -> None:
    left = pairs - kept + held_out - held_out_kept
    dropped = f"; left out: {left} longer than --max_length {max_length} tokens" if left else ""
    print(f"Pairs: {kept} to train on, {held_out_kept} held out{dropped}.", file=sys.stderr)


# --- training -------------------------------------------------------------------------------------------------------


def _trained(
    config: TrainPreferenceConfig,
    tokenizer: Any,
    pairs: list[Pair],
    held_out: list[Pair],
    run: Path,
    interrupt: Interrupt,
) -> Any:
    """A reward model with the weights that training ends with: the best on the held-out pairs, or the last."""
    from model_training.logs import RunLog
    from model_training.pair_loop import train_to_best
    from model_training.pair_trainer import make_pair_trainer

    model, steps = _model(config, tokenizer), _steps(config, len(pairs))
    folder = run / CHECKPOINTS
    log = RunLog(run, "train", 0, steps, 0, interrupt, processes.is_writer())
    trainer = make_pair_trainer(model, pairs, held_out, tokenizer.pad_token_id, config, folder, log, steps)
    best = train_to_best(trainer, interrupt)
    if best.step:
        print(f"Best weights: step {best.step}, held-out loss {best.loss:.4f}.", file=sys.stderr)
    return model


def _model(config: TrainPreferenceConfig, tokenizer: Any) -> Any:
    """The base as a classifier with a fresh adapter and head."""
    from model_training.pairs import check_shared
    from model_training.preference_losses import num_outputs
    from model_training.reward_model import build

    assert config.model_name is not None
    model = build(
        config.model_name,
        num_outputs(config.reward_model_type, config.num_atoms),
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        seed=config.seed,
        dtype=config.dtype,
        quantization=config.quantization,
    )
    if config.shared_prompt:
        check_shared(model, tokenizer.pad_token_id)
    return model


def _steps(config: TrainPreferenceConfig, pairs: int) -> int:
    """Optimizer steps of the whole training."""
    return config.max_steps or math.ceil(config.num_train_epochs * pairs / pairs_in_step(config))


def pairs_in_step(config: TrainPreferenceConfig) -> int:
    """Of all processes."""
    return config.per_device_train_batch_size * config.gradient_accumulation_steps * processes.count()


def _rehearse(config: TrainPreferenceConfig, tokenizer: Any, pairs: list[Pair], held_out: list[Pair]) -> None:
    """--dry_run: the training on the pairs that take most."""
    from model_training.dry_run import STEPS, longest, quiet_log, rehearse, report
    from model_training.pair_trainer import make_pair_trainer
    from model_training.pairs import row_length

    def widest(pairs: list[Pair], count: int) -> list[Pair]:
        return longest(pairs, lambda pair: row_length(pair, config.shared_prompt), count)

    steps, batch = _steps(config, len(pairs)), config.per_device_eval_batch_size
    chosen = widest(pairs, pairs_in_step(config))
    measured, short = widest(held_out, batch), replace(config, report_to="none")
    model = _model(config, tokenizer)
    with quiet_log() as (folder, log):
        trainer = make_pair_trainer(model, chosen, measured, tokenizer.pad_token_id, short, folder, log, STEPS)
        found = rehearse(trainer, f"reward model, {config.reward_model_type}")
    evaluations = math.ceil(steps / config.eval_steps) * math.ceil(len(held_out) / batch)
    print(report([(found, steps, evaluations)]))


def _save(
    model: Any, tokenizer: Any, config: TrainPreferenceConfig, form: Any, held_out: list[Pair], run: Path
) -> None:
    from model_training.adapter_directory import save_adapter
    from model_training.preference_losses import num_outputs
    from model_training.reward_model import FOLDER, describe, scale_of_rewards

    outputs = num_outputs(config.reward_model_type, config.num_atoms)
    assert config.model_name is not None
    save_adapter(
        model,
        tokenizer,
        run / FOLDER,
        base_name=config.model_name,
        card={"num_outputs": outputs, "form": form} | card_rows(config, run, leave_out=SYNTHETIC),
        note={
            "reward_model_type": config.reward_model_type,
            "num_outputs": outputs,
            "form": form,
            "max_length": config.max_length,
            "likelihood": config.likelihood,
            "shared_prompt": config.shared_prompt,
            "held_out": scale_of_rewards(model, config, held_out, tokenizer.pad_token_id) if held_out else None,
        },
        readme=describe,
    )
