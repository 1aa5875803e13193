"""GRPO with credit by segment: TRL's trainer, and what we do differently.

Each optimizer step: sample G completions of every prompt, score them, and push up the tokens of what scored above its
group's mean. With one update for each generation batch the policy ratio is 1, and the loss is

    loss = - sum over all completion tokens t of  A_t log p(t)  /  number of completion tokens     (TRL's `dapo`)

plus beta x KL to the model that GRPO starts from (the warm-up's end, not the base), if beta is not 0.

TRL gives every token of a completion one advantage A. Here (`--credit segment`, see credit.py for the formula and
the reason) the trainer hands TRL's `_compute_loss` advantages of shape (B, T): a reward that speaks of the visible
part moves the visible tokens alone. `--credit completion` leaves TRL's advantages as they are. TRL shuffles and splits
the generation batch by first dimension, so a row of advantages stays with its row of tokens.

Three hooks, all of TRL 1.14: `_tokenize_prompts` (our chat text, for any model), `_calculate_rewards` (each completion
is scored once; the last column, the weighted sum times the gates, is the only one with a weight, so everything TRL
derives from the reward honors the gates; a value that is None is left out of its reward's logged mean, and in the sum
takes the mean of its group) and `_generate_and_score_completions` (advantages by token).
"""

from __future__ import annotations

import math
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
from model_training.logs import TOTAL, RunLog
from model_training.models import encode_prompt
from model_training.order import Stream
from model_training.rewards import Reward, score, total
from model_training.sft import trainer_options
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
    resumed_from: Path | None = None

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
    trainer.remove_callback(PrinterCallback)
    return trainer
