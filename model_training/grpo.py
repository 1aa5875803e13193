"""GRPO with credit by segment: TRL's trainer, and what we do differently.

Each optimizer step: sample G completions of every prompt, score them, and push up the tokens of what scored above its
group's mean. With one update for each generation batch the policy ratio is 1, and the loss is

    loss = - sum over all completion tokens t of  A_t log p(t)  /  number of completion tokens     (TRL's `dapo`)

plus beta x KL to the model that GRPO starts from (the warm-up's end, not the base), if beta is not 0.

TRL gives every token of a completion one advantage A. Here (`--credit segment`, see credit.py for the formula and
the reason) the trainer hands TRL's `_compute_loss` advantages of shape (B, T): a reward that speaks of the visible
part moves the visible tokens alone. `--credit completion` leaves TRL's advantages as they are. TRL shuffles and splits
the generation batch by first dimension, so a row of advantages stays with its row of tokens.

Hooks, all of TRL 1.14: `_tokenize_prompts` (our chat text, for any model), `_calculate_rewards` (each completion
is scored once; the last column, the weighted sum times the gates, is the only one with a weight, so everything TRL
derives from the reward honors the gates; a value that is None is left out of its reward's logged mean, and in the sum
takes the mean of its group), `_generate_and_score_completions` (advantages by token); and where completions share a
prompt, which is then computed once, `_generate_single_turn` (prefill.py), `_get_per_token_logps_and_entropies` and
`_prepare_inputs` (group_log_probs.py).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from model_training.checkpoints import loop_state, restore_loop_state, save_checkpoint, save_weights
from model_training.config import TrainConfig
from model_training.credit import group_credit, part_rewards, token_advantages, token_places, without_gaps
from model_training.group_log_probs import Sharing, find_sharing, group_log_probs, group_rows, together
from model_training.logs import TOTAL, RunLog
from model_training.memory_advice import Settings, shape_of
from model_training.models import encode_prompt, end_token_ids
from model_training.order import Stream
from model_training.prefill import prompts_once
from model_training.rewards import Reward, score, total
from model_training.sft import trainer_options
from model_training.vllm_arguments import grpo_arguments
from prompts.chat import last_user_text
from utils.extraction import parse

Rewards = Sequence[tuple[Reward, float]]
COLUMNS = ("id", "category", "visible", "hidden")
"""Fields of a record that reward functions receive as columns, where every record has them."""


def _placeholder(name: str) -> Callable[..., list[float]]:
    """TRL takes a metric's name from the function's; the scoring itself is `_calculate_rewards`' below."""

    def function(**kwargs: Any) -> list[float]:
        raise NotImplementedError(name)

    function.__name__ = name
    return function


class SegmentTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer with our prompts, scores, credit, data order and checkpoints."""

    rewards: Rewards
    credit: str
    stream_seed: int
    log_callback: RunLog
    memory_settings: Callable[[bool], Settings]
    """Of a training step, or of sampling: all completions of the step at once, without gradients."""
    sharing: Sharing | None = None
    """None where the model cannot compute several completions behind one prompt."""
    resumed_from: Path | None = None
    _buffered_inputs: Any

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
        ids: list[list[int]] = []
        for i, prompt in enumerate(prompts):
            ids.append(ids[-1] if i and prompt == prompts[i - 1] else encode_prompt(self.processing_class, prompt))
        return ids, None, {}

    def _calculate_rewards(
        self, inputs: list[Any], prompts: list[Any], completions: list[Any], completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        columns = {key: [row[key] for row in inputs] for key in inputs[0] if key != "prompt"}
        scores = score(self.rewards, completions, prompts, log_metric=self._log_metric, **columns)
        columns_FN = [[math.nan if value is None else value for value in scores[one.name]] for one, _ in self.rewards]
        table_NF = torch.tensor(columns_FN, dtype=torch.float64, device=self.accelerator.device).T.contiguous()
        gathered_NF: torch.Tensor = gather(table_NF)
        whole_NF = without_gaps(gathered_NF, self.num_generations)
        by_name = {one.name: column for (one, _), column in zip(self.rewards, whole_NF.T.tolist(), strict=True)}
        totals_N = torch.tensor(total(by_name, self.rewards), dtype=torch.float64, device=whole_NF.device)
        self._scored_NF = torch.cat([whole_NF, totals_N[:, None]], dim=1).float()
        texts = [completion[0]["content"] for completion in completions]
        totals_B = totals_N[self.accelerator.process_index * len(texts) :].tolist()
        self.log_callback.samples = [
            _sample(prompts[i], texts[i], {name: values[i] for name, values in scores.items()}, totals_B[i])
            for i in range(min(self.log_callback.completions_per_log, len(texts)))
        ]
        self._texts, self._token_ids = texts, completion_ids_list
        return torch.cat([gathered_NF, totals_N[:, None]], dim=1).float()

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        metrics = self._metrics["train"]
        totals_KG = self._scored_NF[:, -1].view(-1, self.num_generations)
        metrics["group_reward_std"].append(totals_KG.std(dim=1).mean().item())
        strict = torch.tensor([float(parse(text).failure is None) for text in self._texts])
        metrics["strict_format_rate"].append(gather(strict.to(self.accelerator.device)).mean().item())
        if self.credit == "segment":
            credit_N4, dead_K = group_credit(part_rewards(self._scored_NF[:, :-1], self.rewards), self.num_generations)
            metrics["frac_reward_zero_std"][-1] = dead_K.float().mean().item()
            first = self.accelerator.process_index * len(self._texts)
            credit_B4 = credit_N4[first : first + len(self._texts)]
            places = [
                token_places(self.processing_class, ids, text, self.eos_token_ids)
                for ids, text in zip(self._token_ids, self._texts, strict=True)
            ]
            output["advantages"] = token_advantages(credit_B4, places, output["completion_ids"].shape[1])
        return output

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        theirs: Callable[..., Any] = super()._get_per_token_logps_and_entropies
        size = batch_size or len(input_ids)
        if self.sharing is None or any(value is not None and value is not False for value in others.values()):
            options = others | {"batch_size": size, "compute_entropy": compute_entropy}
            logps, entropies, aux_loss = theirs(model, input_ids, attention_mask, logits_to_keep, **options)
            return logps, entropies, aux_loss
        found = []
        for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            rows = group_rows(self.sharing, ids, mask, logits_to_keep)
            if rows is None:
                found.append(theirs(model, ids, mask, logits_to_keep, compute_entropy=compute_entropy)[:2])
            else:
                shape = len(ids), logits_to_keep
                found.append(group_log_probs(model, self.sharing, rows, shape, compute_entropy))
        logps, entropies = zip(*found, strict=True)
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        if self.sharing is None:
            return super()._generate_single_turn(*args, **kwargs)
        with prompts_once(self.model):
            return super()._generate_single_turn(*args, **kwargs)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        if self.sharing is not None and self._buffered_inputs is not before:
            self._buffered_inputs = together(self.sharing, self._buffered_inputs)
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        args = self.args
        return Stream(
            len(self.train_dataset),
            self.stream_seed,
            rounds=args.max_steps * args.gradient_accumulation_steps // args.steps_per_generation,
            prompts_per_round=args.generation_batch_size // self.num_generations,
            group=self.num_generations,
            repeats=args.steps_per_generation,
        )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.resumed_from is not None:
            restore_loop_state(self, self.resumed_from)
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        save_checkpoint(self, loop_state(self))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_weights(self.model, output_dir or self.args.output_dir, state_dict)


def _sample(prompt: Any, text: str, scores: dict[str, float | None], score_total: float) -> dict[str, Any]:
    parsed = parse(text)
    return {
        "prompt": last_user_text(prompt),
        "completion": text,
        "visible": parsed.visible,
        "hidden": parsed.hidden,
        "failure": parsed.failure,
        "rewards": scores,
        "total": score_total,
    }


def _sharing(model: Any, pad_id: int, temperature: float, is_writer: bool) -> Sharing | None:
    found = find_sharing(model, pad_id, temperature)
    if isinstance(found, Sharing):
        return found
    if is_writer:
        print(f"{found}; prompts are computed for every completion, with the same result.", file=sys.stderr)
    return None


def make_grpo_trainer(
    model: Any,
    tokenizer: Any,
    records: list[dict[str, Any]],
    rewards: Rewards,
    config: TrainConfig,
    folder: Path,
    log: RunLog,
) -> SegmentTrainer:
    """The trainer that continues the model's adapter; `records` are those whose prompts fit."""
    columns = [column for column in COLUMNS if all(column in record for record in records)]
    rows = [{"prompt": record["prompt"]} | {column: record[column] for column in columns} for record in records]
    options = trainer_options(config, folder, config.max_steps, model.device.type == "cuda")
    args = GRPOConfig(
        **options,
        learning_rate=config.learning_rate,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_generations=config.num_generations,
        max_completion_length=config.max_completion_length,
        temperature=config.rollout_temperature,
        beta=config.beta,
        disable_dropout=True,
        reward_weights=[0.0] * len(rewards) + [1.0],
        **grpo_arguments(config, end_token_ids(model, tokenizer)),
    )
    trainer = SegmentTrainer(
        model=model,
        reward_funcs=[_placeholder(name) for name in [*(reward.name for reward, _ in rewards), TOTAL]],
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[log],
    )
    trainer.rewards, trainer.credit, trainer.stream_seed = rewards, config.credit, config.seed
    trainer.log_callback = log
    trainer.memory_settings = lambda sampling: Settings(
        batch=("--per_device_train_batch_size", config.per_device_train_batch_size),
        accumulation=None if sampling else ("--gradient_accumulation_steps", config.gradient_accumulation_steps),
        checkpointing=("--gradient_checkpointing", config.gradient_checkpointing or sampling),
        length=("--max_completion_length", config.max_completion_length),
        tokens=max(len(encode_prompt(tokenizer, record["prompt"])) for record in records)
        + config.max_completion_length,
        shape=shape_of(model),
        on_gpu=model.device.type == "cuda",
    )
    own_forward = config.backend == "unsloth" or trainer.use_liger_kernel
    if not (own_forward or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        trainer.sharing = _sharing(model, tokenizer.pad_token_id, config.rollout_temperature, log.is_writer)
    trainer.remove_callback(PrinterCallback)
    return trainer
