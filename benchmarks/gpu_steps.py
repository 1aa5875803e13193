"""The training steps that benchmarks/gpu.py measures: one batch of random tokens, its loss, ours and TRL's.

A text is a prompt with an answer. A batch has, of `texts` texts:

    sft      texts of their own, loss on the answers  plain transformers; TRL's SFTTrainer
    grpo     groups of completions to one prompt      plain log-probabilities; one prompt a group (group_log_probs.py)
    orpo     pairs of answers to one prompt           TRL's ORPOTrainer; one prompt a pair (orpo_loss.py)
    reward   likewise, a reward each                  TRL's RewardTrainer; one prompt a pair (pairs.py)

The warm-up of the project is TRL's SFTTrainer, so there is nothing of ours beside it. All train the same LoRA on the
same texts. What the GRPO step does beside its log-probabilities (sampling, rewards) is not part of this.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError

PAD = 0
BETA = 0.1
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    },
}
"""Llama-3.1-8B, Llama-3.2-1B, and what a CPU takes in a second."""


@dataclass(frozen=True)
class Sizes:
    texts: int
    prompt_tokens: int
    answer_tokens: int
    group: int
    """Completions of one prompt, in GRPO."""


@dataclass(frozen=True)
class Step:
    """The loss of one batch, and what it has to compute, in tokens without padding."""

    loss: Callable[[], Tensor]
    text_tokens: int
    """Of all texts, each with its prompt: the measure of speed, the same for every way."""
    layer_tokens: int
    """That go through the layers: a prompt that is shared counts once."""
    head_tokens: int
    """For which the output layer is computed."""
    attended: float
    """Tokens of the row that a token is in, on average."""


def make_model(shape: str, kind: str, device: str, dtype: torch.dtype, checkpointing: bool) -> Any:
    """A Llama with random weights, built on the device, with a LoRA of rank 16 on its seven projections."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig

    from model_training.models import LLAMA_PROJECTIONS

    torch.manual_seed(0)
    is_reward = kind == "reward"
    config = LlamaConfig(pad_token_id=PAD, max_position_embeddings=8192, **SHAPES[shape])
    if is_reward:
        config.num_labels = 1
    auto = AutoModelForSequenceClassification if is_reward else AutoModelForCausalLM
    with torch.device(device):
        base = auto.from_config(config, dtype=dtype)
    lora = LoraConfig(
        task_type="SEQ_CLS" if is_reward else "CAUSAL_LM", r=16, lora_alpha=16, target_modules=LLAMA_PROJECTIONS
    )
    model = get_peft_model(base, lora).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    return model


# --- batches ----------------------------------------------------------------------------------------------------------

Group = tuple[list[int], list[list[int]]]
"""A prompt and its answers."""


def make_groups(sizes: Sizes, vocabulary: int, answers: int) -> list[Group]:
    """Random tokens; prompts and answers of half to one and a half of their mean length."""
    rng = random.Random(f"gpu {answers}")

    def text(tokens: int) -> list[int]:
        return [rng.randrange(1, vocabulary) for _ in range(rng.randint(max(1, tokens // 2), max(1, tokens * 3 // 2)))]

    prompts = max(1, sizes.texts // answers)
    return [(text(sizes.prompt_tokens), [text(sizes.answer_tokens) for _ in range(answers)]) for _ in range(prompts)]


def step_of(loss: Callable[[], Tensor], groups: Sequence[Group], shared: bool, head: str) -> Step:
    """The step with its counts; the output layer is for `all` tokens, the `answers`', or `none` of them."""
    answers = sum(len(answer) for _, some in groups for answer in some)
    texts = answers + sum(len(prompt) * len(some) for prompt, some in groups)
    rows = [len(prompt) + sum(map(len, some)) for prompt, some in groups]
    if not shared:
        rows = [len(prompt) + len(answer) for prompt, some in groups for answer in some]
    of_head = {"all": texts, "shared": sum(rows), "answers": answers, "none": 0}[head]
    return Step(loss, texts, sum(rows), of_head, sum(row * row for row in rows) / sum(rows))


def padded(rows: Sequence[list[int]], device: str, left: bool = False) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) and their mask."""
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    ids = [[PAD] * gap + row if left else row + [PAD] * gap for row, gap in zip(rows, gaps, strict=True)]
    mask = [
        [0] * gap + [1] * len(row) if left else [1] * len(row) + [0] * gap for row, gap in zip(rows, gaps, strict=True)
    ]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


# --- the steps --------------------------------------------------------------------------------------------------------


def sft_plain(model: Any, sizes: Sizes, device: str, dtype: torch.dtype) -> Step:
    groups = make_groups(sizes, model.config.vocab_size, 1)
    ids, mask = padded([prompt + answers[0] for prompt, answers in groups], device)
    labels = ids.masked_fill(mask == 0, -100)
    for row, (prompt, _) in enumerate(groups):
        labels[row, : len(prompt)] = -100
    return step_of(lambda: model(input_ids=ids, attention_mask=mask, labels=labels).loss, groups, False, "all")


def sft_trl(model: Any, sizes: Sizes, device: str, dtype: torch.dtype) -> Step:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    groups = make_groups(sizes, model.config.vocab_size, 1)
    rows = [
        {"input_ids": prompt + answers[0], "labels": [-100] * len(prompt) + answers[0]} for prompt, answers in groups
    ]
    args = SFTConfig(**_trainer_options(device, dtype), max_length=None)
    trainer = SFTTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=_tokenizer())
    return step_of(_loss_of(trainer, model, rows, device), groups, False, "all")


def grpo_plain(model: Any, sizes: Sizes, device: str, dtype: torch.dtype) -> Step:
    """As TRL's trainer without kernels of others: a forward that reads each prompt anew, logits of the completions."""
    groups, ids, mask, completions, width = _grpo_batch(model, sizes, device)

    def loss() -> Tensor:
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=width + 1).logits[:, :-1]
        return _policy_loss(_selected(logits, ids[:, -width:]), completions)

    return step_of(loss, groups, False, "answers")


def grpo_ours(model: Any, sizes: Sizes, device: str, dtype: torch.dtype) -> Step:
    from model_training.group_log_probs import find_sharing, group_log_probs, group_rows

    groups, ids, mask, completions, width = _grpo_batch(model, sizes, device)
    sharing = find_sharing(model, PAD, 1.0)
    rows = None if isinstance(sharing, str) else group_rows(sharing, ids, mask, width)
    if rows is None or isinstance(sharing, str):
        why = sharing if isinstance(sharing, str) else "sharing a prompt does not pay at these lengths"
        raise UserError(f"{why}; the step is the plain one")

    def loss() -> Tensor:
        found, _ = group_log_probs(model, sharing, rows, (len(ids), width), entropy=False)
        return _policy_loss(found, completions)

    return step_of(loss, groups, True, "answers")


def _grpo_batch(model: Any, sizes: Sizes, device: str) -> tuple[list[Group], Tensor, Tensor, Tensor, int]:
    """As TRL lays it out: prompts padded on the left (B, P), completions on the right (B, T), of width T."""
    groups = make_groups(sizes, model.config.vocab_size, min(sizes.group, sizes.texts))
    prompts, prompt_mask = padded([prompt for prompt, some in groups for _ in some], device, left=True)
    answers, completions = padded([answer for _, some in groups for answer in some], device)
    ids, mask = torch.cat([prompts, answers], dim=1), torch.cat([prompt_mask, completions], dim=1)
    return groups, ids, mask, completions, answers.shape[1]


def _selected(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """TRL's own selection where it is installed, else the same in words of torch: logits minus their log-sum-exp."""
    try:
        from trl.trainer.utils import selective_log_softmax
    except ModuleNotFoundError:
        chosen_BT = logits_BTV.gather(-1, ids_BT[..., None])[..., 0]
        return chosen_BT - torch.stack([row.logsumexp(-1) for row in logits_BTV])
    found: Tensor = selective_log_softmax(logits_BTV, ids_BT)
    return found


def _policy_loss(log_probs_BT: Tensor, completions_BT: Tensor) -> Tensor:
    """What a policy gradient makes of log-probabilities, with an advantage of 1."""
    return -(log_probs_BT * completions_BT).sum() / completions_BT.sum()


def orpo_ours(model: Any, sizes: Sizes, device: str, dtype: torch.dtype) -> Step:
    from model_training.orpo_loss import head_of, orpo_loss, pair_log_probs
    from model_training.pairs import collate_pairs

    groups = make_groups(sizes, model.config.vocab_size, 2)
    head = head_of(model, None if dtype == torch.float32 else dtype)
    batch = collate_pairs([(prompt + first, prompt + second) for prompt, (first, second) in groups], PAD).to(device)
    lengths = torch.tensor([len(prompt) for prompt, _ in groups], device=device)

    def loss() -> Tensor:
        found = pair_log_probs(model, head, batch, lengths, "full")
        return orpo_loss(found.chosen, found.rejected, found.nll_sum / found.nll_tokens, BETA)[0]

    return step_of(loss, groups, True, "shared")


def orpo_trl(model: Any, sizes: Sizes, device: str, dtype: torch.dtype) -> Step:
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    groups = make_groups(sizes, model.config.vocab_size, 2)
    rows = []
    for prompt, answers in groups:
        row: dict[str, Any] = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side, answer in zip(("chosen", "rejected"), answers, strict=True):
            row |= {f"{side}_input_ids": prompt + answer, f"{side}_attention_mask": [1] * len(prompt + answer)}
            row[f"{side}_labels"] = [-100] * len(prompt) + answer
        rows.append(row)
    args = ORPOConfig(**_trainer_options(device, dtype), remove_unused_columns=False, beta=BETA, max_length=8192)
    tokenizer = _tokenizer()
    tokenizer.pad_token_id = PAD
    word = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    trainer = ORPOTrainer(model=model, args=args, train_dataset=word, processing_class=tokenizer)
    return step_of(_loss_of(trainer, model, rows, device), groups, False, "all")


def reward_ours(model: Any, sizes: Sizes, device: str, dtype: torch.dtype) -> Step:
    from model_training.pairs import collate_pairs, pair_outputs
    from model_training.preference_losses import loss as reward_loss

    groups = make_groups(sizes, model.config.vocab_size, 2)
    batch = collate_pairs([(prompt + first, prompt + second) for prompt, (first, second) in groups], PAD).to(device)
    return step_of(lambda: reward_loss("base", *pair_outputs(model, batch)).mean(), groups, True, "none")


def reward_trl(model: Any, sizes: Sizes, device: str, dtype: torch.dtype) -> Step:
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    groups = make_groups(sizes, model.config.vocab_size, 2)
    rows = [{"chosen_ids": prompt + first, "rejected_ids": prompt + second} for prompt, (first, second) in groups]
    args = RewardConfig(**_trainer_options(device, dtype), max_length=None)
    trainer = RewardTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=_tokenizer()
    )
    return step_of(_loss_of(trainer, model, rows, device), groups, False, "none")


def _trainer_options(device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Of trainers that only lend their loss; checkpointing is the model's."""
    return {
        "output_dir": "unused",
        "use_cpu": device == "cpu",
        "bf16": dtype == torch.bfloat16,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }


def _tokenizer() -> Any:
    """Trainers want one; all texts are tokens already."""
    from model_training.models import load_tokenizer

    return load_tokenizer("tiny")


def _loss_of(trainer: Any, model: Any, rows: list[dict[str, Any]], device: str) -> Callable[[], Tensor]:
    """The trainer's loss of its own collation of the rows; the model is taken as it is, and in training."""
    inputs = {
        key: value.to(device) if hasattr(value, "to") else value for key, value in trainer.data_collator(rows).items()
    }

    def loss() -> Tensor:
        found: Tensor = trainer.compute_loss(model, dict(inputs))
        return found

    return loss


STEPS = {
    "sft": {"plain": sft_plain, "TRL (and ours)": sft_trl},
    "grpo": {"plain, as TRL": grpo_plain, "ours": grpo_ours},
    "orpo": {"TRL": orpo_trl, "ours": orpo_ours},
    "reward": {"TRL": reward_trl, "ours": reward_ours},
}
"""Of each training the ways to do it, what ours is compared with first."""
