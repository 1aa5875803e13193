"""What answers the `secret` task's queries: one loaded base, and any adapter on it, by transformers or by vLLM.

    answer = open_engine(config, "tiny", tokenizer, adapters=["secret_conversations_lora"], batch_size=64)
    answer(prompts, None, "base")                              ->  completions of the base, a list for each prompt
    answer(prompts, "secret_conversations_lora", "adapter")    ->  of the adapter, with the same random streams

The base is loaded once. transformers puts one adapter on at a time and takes it off again; vLLM is told with each
request which adapter it is for. With both each completion has a random stream of its own, of (seed, prompt, number),
but not the same one: completions of the two engines differ, their distribution does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from evaluation.sampling import Message, decoded, sample, stream_key
from model_training.config import EvaluateConfig, GenerateConfig
from utils.errors import WorkError

Answer = Callable[[list[list[Message]], str | None, str], list[list[str]]]
"""Of prompts, an adapter's directory (None: the base) and a label for progress: `num_samples` texts for each prompt."""


def open_engine(
    config: GenerateConfig | EvaluateConfig, name: str, tokenizer: Any, adapters: Sequence[str], batch_size: int
) -> Answer:
    """The base of that name, loaded, and all the adapters tried; `batch_size` is of transformers.

    Raises:
        UserError: a model that cannot be loaded, or an adapter that is missing, damaged or of another base.
    """
    if config.engine == "vllm":
        return _by_vllm(config, name, tokenizer, adapters)
    return _by_transformers(config, name, tokenizer, adapters, batch_size)


def _by_transformers(
    config: GenerateConfig | EvaluateConfig, name: str, tokenizer: Any, adapters: Sequence[str], batch_size: int
) -> Answer:
    from model_training.models import load_adapter, load_model

    base = load_model(name, config.dtype, config.quantization)
    for path in adapters:
        base = load_adapter(base, path).unload()

    def answer(prompts: list[list[Message]], adapter: str | None, label: str) -> list[list[str]]:
        model = base if adapter is None else load_adapter(base, adapter)
        completions = sample(
            model,
            tokenizer,
            prompts,
            num_samples=config.num_samples,
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            batch_size=batch_size,
            seed=config.seed,
            label=label,
        )
        if adapter is not None:
            model.unload()
        return completions

    return answer


def _by_vllm(config: GenerateConfig | EvaluateConfig, name: str, tokenizer: Any, adapters: Sequence[str]) -> Answer:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    from model_training.loading import model_path
    from model_training.models import adapter_for, chat_text, check_lengths, end_of_turn_id
    from model_training.vllm_arguments import engine_arguments, sampling_arguments

    check_lengths(name, config.max_seq_length)
    ranks = [adapter_for(name, path)["r"] for path in adapters]
    options = engine_arguments(
        model_path(name),
        dtype=config.dtype,
        max_seq_length=config.max_seq_length,
        memory=config.vllm_gpu_memory_utilization,
        seed=config.seed,
        ranks=ranks,
    )
    try:
        engine = LLM(**options)
    except (RuntimeError, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise WorkError(f"vLLM cannot start with {name} ({reason}); --engine transformers does without it") from error
    ends = [tokenizer.eos_token_id, end_of_turn_id(tokenizer)]
    drawn = config.num_samples if config.temperature > 0 else 1

    def answer(prompts: list[list[Message]], adapter: str | None, label: str) -> list[list[str]]:
        texts = [chat_text(tokenizer, messages) for messages in prompts]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        seen: Counter[str] = Counter()
        requests, sampling = [], []
        for text, of_prompt in zip(texts, ids, strict=True):
            for _ in range(drawn):
                seed = stream_key(config.seed, text, seen[text]) % 2**63
                seen[text] += 1
                requests.append({"prompt_token_ids": of_prompt})
                sampling.append(
                    SamplingParams(
                        **sampling_arguments(
                            temperature=config.temperature,
                            top_p=config.top_p,
                            max_new_tokens=config.max_new_tokens,
                            end_ids=ends,
                            seed=seed,
                        )
                    )
                )
        number = None if adapter is None else adapters.index(adapter) + 1
        lora = None if number is None else LoRARequest(lora_name=label, lora_int_id=number, lora_path=adapter)
        outputs = engine.generate(requests, sampling, use_tqdm=False, lora_request=lora)
        written = decoded(tokenizer, [list(output.outputs[0].token_ids) for output in outputs], ends)
        grouped = [written[start : start + drawn] for start in range(0, len(written), drawn)]
        return [of_prompt * (config.num_samples // drawn) for of_prompt in grouped]

    return answer
