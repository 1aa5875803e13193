"""unsloth in the place of transformers and peft, for the `secret` task: what it is told, and where it cannot be used.

It replaces the forward of the whole model and TRL's trainers by faster ones. What rests on how those compute in detail
stays with transformers:

    credit by segment     unsloth's GRPO loss moves the tokens of each row to the left by its padding: advantages by
                          token would meet other tokens than their own
    pairs, guardrails     two texts behind one prompt in a row, with a mask and positions of their own (pairs.py), which
                          a forward made for plain rows does not know

What is trained is an ordinary peft adapter on the base of that very name, and is saved like any other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_training.backends import Obstacle
from model_training.config import TrainConfig
from model_training.vllm_arguments import SHARE_IN_TRAINING, max_lora_rank
from utils.errors import UserError

OF_PAIRS = Obstacle(
    "unsloth's forward does not know rows of two texts behind one prompt, which this task trains on",
    "leave it out",
)
"""What speaks against unsloth in the tasks that learn from pairs."""


def obstacle(config: TrainConfig) -> Obstacle | None:
    """What in these options speaks against unsloth."""
    if config.vllm_mode == "server":
        return Obstacle("unsloth does not send weights to a vLLM server", "use --vllm_mode colocate")
    if config.max_steps == 0:
        return None
    if config.credit == "segment":
        return Obstacle(
            "its GRPO loss moves tokens from the places that --credit segment goes by",
            "use --credit completion, or --max_steps 0 for the warm-up alone",
        )
    if config.per_device_train_batch_size % config.num_generations:
        return Obstacle(
            "it wants whole groups in each forward",
            f"--per_device_train_batch_size {config.num_generations} works",
        )
    return None


def load_arguments(config: TrainConfig, path: str) -> dict[str, Any]:
    """Arguments of FastLanguageModel.from_pretrained, of the model at that path."""
    import torch

    return {
        "model_name": path,
        "use_exact_model_name": True,  # else another repository's copy is loaded, quantized by others
        "max_seq_length": config.max_seq_length,
        "dtype": getattr(torch, config.dtype),
        "load_in_4bit": config.quantization == "4bit",
        "load_in_8bit": config.quantization == "8bit",
        "trust_remote_code": False,
        "use_gradient_checkpointing": "unsloth" if config.gradient_checkpointing else False,
        "random_state": config.seed,
        "fast_inference": config.engine == "vllm",
        "gpu_memory_utilization": config.vllm_gpu_memory_utilization or SHARE_IN_TRAINING,
        "max_lora_rank": max_lora_rank([config.lora_rank]),
    }


def adapter_arguments(config: TrainConfig) -> dict[str, Any]:
    """Arguments of FastLanguageModel.get_peft_model: the adapter that `models.new_adapter` makes."""
    from model_training.models import LLAMA_PROJECTIONS

    return {
        "r": config.lora_rank,
        "lora_alpha": config.lora_rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": LLAMA_PROJECTIONS,
        "use_gradient_checkpointing": "unsloth" if config.gradient_checkpointing else False,
        "random_state": config.seed,
        "max_seq_length": config.max_seq_length,
    }


def load_with_adapter(config: TrainConfig, adapter: Path | None = None) -> Any:
    """The base with a fresh adapter on it, or with the weights of that directory."""
    from unsloth import FastLanguageModel  # first: it rewrites what the others import

    from model_training.checkpoints import restore_weights
    from model_training.loading import model_path
    from model_training.models import ending_turns

    assert config.model_name is not None
    try:
        base, _ = FastLanguageModel.from_pretrained(**load_arguments(config, model_path(config.model_name)))
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"model {config.model_name}: unsloth cannot load it ({reason}); --backend transformers may"
        ) from error
    model = FastLanguageModel.get_peft_model(ending_turns(base, config.model_name), **adapter_arguments(config))
    if adapter is not None:
        restore_weights(model, adapter)
    return model
