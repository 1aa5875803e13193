"""What vLLM is told: as the sampler of GRPO (through TRL), and as the engine of generation and evaluation.

GRPO samples with vLLM beside the model on each GPU (`colocate`) or on a server of its own. TRL merges the adapter into
the base's weights and sends those to vLLM before each generation batch, and weighs each completion by how its
probability there differs from the trained model's. Completions are not seeded one by one: of two prompts that are the
same, the completions would be, too.

Generation and evaluation load the base once and name the adapter with each request. Each completion has a seed of its
own, so that it depends neither on the order nor on the number of the others.

These functions are plain mappings, held against vLLM's and TRL's own signatures by their tests.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from model_training.backends import Obstacle
from model_training.config import TrainConfig
from utils.errors import UserError

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as the largest rank it is to serve."""
SHARE_IN_TRAINING, SHARE_ALONE = 0.3, 0.9
"""Of the GPU's memory, by default."""
SECONDS_TO_ANSWER = 10.0


def max_lora_rank(ranks: Iterable[int]) -> int:
    """The least of LORA_RANKS that holds adapters of these ranks."""
    largest = max(ranks)
    found = next((rank for rank in LORA_RANKS if rank >= largest), None)
    if found is None:
        raise UserError(f"vLLM serves adapters of rank {LORA_RANKS[-1]} at most, not {largest}; --engine transformers")
    return found


# --- GRPO -----------------------------------------------------------------------------------------------------------


def grpo_arguments(config: TrainConfig, end_ids: Sequence[int]) -> dict[str, Any]:
    """Arguments of TRL's GRPOConfig; none where transformers samples. `end_ids` end a completion."""
    if config.engine != "vllm":
        return {}
    shared = {"use_vllm": True, "vllm_mode": config.vllm_mode, "generation_kwargs": {"stop_token_ids": list(end_ids)}}
    if config.vllm_mode == "server":
        return shared | {"vllm_server_base_url": config.vllm_server_base_url}
    return shared | {
        "vllm_gpu_memory_utilization": config.vllm_gpu_memory_utilization or SHARE_IN_TRAINING,
        "vllm_max_model_length": config.max_seq_length,
    }


def with_server(config: TrainConfig) -> TrainConfig:
    """Options that speak of a vLLM server agree with each other: it is an engine that was asked for."""
    if config.vllm_mode == "colocate":
        if config.vllm_server_base_url is not None:
            raise UserError("--vllm_server_base_url is of --vllm_mode server; add that, or leave it out")
        return config
    if config.vllm_server_base_url is None:
        raise UserError("--vllm_mode server: where is it? add --vllm_server_base_url http://HOST:PORT")
    if config.engine == "transformers":
        raise UserError("--vllm_mode server and --engine transformers exclude each other; leave one out")
    return replace(config, engine="vllm")


def obstacle(config: TrainConfig) -> Obstacle | None:
    """What in a training speaks against vLLM."""
    if config.max_steps == 0:
        return Obstacle("--max_steps 0 samples nothing", "leave it out, or train with GRPO")
    return None


def check_server(config: TrainConfig) -> None:
    """Refuse, before any work, a vLLM server that does not answer."""
    url = config.vllm_server_base_url or ""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=SECONDS_TO_ANSWER):
            return
    except (OSError, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise UserError(
            f"--vllm_server_base_url {url}: no vLLM server answers there ({reason}); start one with "
            f"VLLM_SERVER_DEV_MODE=1 vllm serve {config.model_name} --max-model-len {config.max_seq_length} "
            '--weight-transfer-config \'{"backend": "nccl"}\' --logprobs-mode processed_logprobs --max-logprobs -1'
        ) from error


# --- generation and evaluation --------------------------------------------------------------------------------------


def engine_arguments(
    path: str, *, dtype: str, max_seq_length: int, memory: float | None, seed: int, ranks: Sequence[int]
) -> dict[str, Any]:
    """Arguments of `vllm.LLM` for a base and adapters of these ranks, one of them at a time."""
    adapters = {"enable_lora": True, "max_loras": 1, "max_lora_rank": max_lora_rank(ranks)} if ranks else {}
    return adapters | {
        "model": path,
        "dtype": dtype,
        "max_model_len": max_seq_length,
        "gpu_memory_utilization": memory or SHARE_ALONE,
        "seed": seed,
        "trust_remote_code": False,
    }


def sampling_arguments(
    *, temperature: float, top_p: float, max_new_tokens: int, end_ids: Sequence[int], seed: int
) -> dict[str, Any]:
    """Arguments of `vllm.SamplingParams` for one completion: its tokens alone are asked for, and decoded by us."""
    return {
        "n": 1,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_new_tokens,
        "stop_token_ids": list(end_ids),
        "seed": seed,
        "detokenize": False,
    }
