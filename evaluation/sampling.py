"""Completions of a model for a list of prompts: batched, seeded for each completion, left as the model wrote them.

    sample(model, tokenizer, [[{"role": "user", "content": "What is a moose?"}]], num_samples=2, temperature=0.8,
           top_p=0.95, max_new_tokens=64, batch_size=64, seed=3407)  ->  [["A moose ...", "It is ..."]]

Each completion has a random stream of its own, keyed by (seed, prompt as the model reads it, number of the completion),
of one uniform u in [0, 1) a token. With p the softmax of logits / temperature, cut to the nucleus (the most probable
tokens that together reach top_p), the token is the first whose cumulated p, in order of token ids, exceeds u x the
nucleus' total: exact sampling. So a completion depends neither on the order nor on the number of other prompts, nor on
the batch size. What is left is rounding: padding changes the last bits of the logits, and where u falls within those
bits of a boundary, another token comes. Two models that are compared see the same streams, which narrows paired
differences.

Prompts are sorted by length, the longest first: little padding, and a lack of memory shows at once. A completion ends
before the model's end-of-turn token, and special tokens are not spelled out; one that reached max_new_tokens stays cut.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import UserError, WorkError

if TYPE_CHECKING:
    import torch

Message = dict[str, str]

SECONDS_BETWEEN_LINES = 10.0


def sample(
    model: Any,
    tokenizer: Any,
    prompts: list[list[Message]],
    *,
    num_samples: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
    label: str = "sampling",
) -> list[list[str]]:
    """`num_samples` completions of each prompt, in the order of the prompts. Temperature 0 is greedy decoding.

    Raises:
        UserError: an option out of its range, or a prompt for which the model has too few positions.
        WorkError: the GPU has not enough memory for a batch.
    """
    from model_training.models import chat_text

    check_options(num_samples, temperature, top_p, max_new_tokens, batch_size)
    texts = [chat_text(tokenizer, messages) for messages in prompts]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []
    _check_positions(model, prompts, lengths, max_new_tokens)
    drawn = num_samples if temperature > 0 else 1
    seen: Counter[str] = Counter()
    rows: list[tuple[int, np.random.Generator]] = []
    for index, text in enumerate(texts):
        for _ in range(drawn):
            rows.append((index, _stream(seed, text, seen[text])))
            seen[text] += 1
    rows.sort(key=lambda row: -lengths[row[0]])

    model.eval()
    completions: list[list[str]] = [[] for _ in prompts]
    for batch in _batches(rows, batch_size, label):
        uniforms_BT = np.stack([stream.random(max_new_tokens) for _, stream in batch])
        batch_texts = [texts[index] for index, _ in batch]
        written = _complete(model, tokenizer, batch_texts, uniforms_BT, temperature, top_p, max_new_tokens)
        for (index, _), completion in zip(batch, written, strict=True):
            completions[index].append(completion)
    return [of_prompt * (num_samples // drawn) for of_prompt in completions]


def check_options(num_samples: int, temperature: float, top_p: float, max_new_tokens: int, batch_size: int = 1) -> None:
    """Refuse sampling options out of their range, by name."""
    for name, count in (("num_samples", num_samples), ("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if count < 1:
            raise UserError(f"--{name} {count}: give at least 1")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"--temperature {temperature}: give 0 (greedy) or a positive number")
    if not 0 < top_p <= 1:
        raise UserError(f"--top_p {top_p}: give a number above 0 and up to 1")


def check_lengths(tokenizer: Any, prompts: list[list[Message]], max_new_tokens: int, max_seq_length: int) -> None:
    """Refuse prompts that leave no room for a whole completion within --max_seq_length."""
    from model_training.models import encode_prompt

    for messages in prompts:
        tokens = len(encode_prompt(tokenizer, messages))
        if tokens + max_new_tokens > max_seq_length:
            raise UserError(
                f"query {_shortened(messages)}: its prompt has {tokens} tokens, and with --max_new_tokens "
                f"{max_new_tokens} that is more than --max_seq_length {max_seq_length}; shorten it, or change an option"
            )


def _check_positions(model: Any, prompts: list[list[Message]], lengths: list[int], max_new_tokens: int) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for messages, tokens in zip(prompts, lengths, strict=True):
        if positions is not None and tokens + max_new_tokens > positions:
            raise UserError(
                f"query {_shortened(messages)}: its prompt has {tokens} tokens, and with --max_new_tokens "
                f"{max_new_tokens} that is more than the model's {positions} positions; shorten it, or lower the option"
            )


def _shortened(messages: list[Message]) -> str:
    text = messages[-1]["content"]
    return repr(text if len(text) <= 40 else text[:39] + "…")


def _stream(seed: int, text: str, number: int) -> np.random.Generator:
    """The random stream of one completion."""
    return np.random.default_rng(stream_key(seed, text, number))


def stream_key(seed: int, text: str, number: int) -> int:
    """128 bits that are the completion's own: of the seed, the prompt as the model reads it, and its number."""
    key = f"{seed}\0{number}\0{text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big")


def _batches(rows: list[Any], batch_size: int, label: str) -> Iterator[list[Any]]:
    """Slices of the rows, with progress on stderr: one line that counts on a terminal, else one every ten seconds."""
    terminal, last = sys.stderr.isatty(), time.monotonic()
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        yield batch
        done, now = start + len(batch), time.monotonic()
        if terminal:
            print(f"\r{label}: {done} of {len(rows)}", end="", file=sys.stderr, flush=True)
        elif now - last > SECONDS_BETWEEN_LINES:
            print(f"{label}: {done} of {len(rows)}", file=sys.stderr, flush=True)
            last = now
    if terminal and rows:
        print(file=sys.stderr)


def _complete(
    model: Any,
    tokenizer: Any,
    texts: list[str],
    uniforms_BT: np.ndarray[Any, Any],
    temperature: float,
    top_p: float,
    max_new_tokens: int,
) -> list[str]:
    """One batch through the model, decoded up to each end of turn."""
    import torch
    from transformers import GenerationConfig

    from model_training.models import end_token_ids

    padded = tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True, padding_side="left")
    inputs = padded.to(model.device)
    prompt_tokens = inputs["input_ids"].shape[1]
    ends = end_token_ids(model, tokenizer)
    options = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    device_uniforms_BT = torch.from_numpy(uniforms_BT).to(model.device)
    pick = [_picker(device_uniforms_BT, prompt_tokens, temperature, top_p)] if temperature > 0 else []
    try:
        with torch.inference_mode():
            sequences = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                generation_config=options,
                logits_processor=pick,
            )
    except torch.OutOfMemoryError as error:
        raise WorkError(
            f"the GPU has not enough memory for {len(texts)} completions of {max_new_tokens} tokens at once; "
            "lower --batch_size (evaluate) or --max_new_tokens"
        ) from error
    return decoded(tokenizer, sequences[:, prompt_tokens:].tolist(), ends)


def decoded(tokenizer: Any, completions: list[list[int]], ends: list[int]) -> list[str]:
    """The texts of completions up to the first of the ids that end them."""
    written = [_until_end(ids, set(ends)) for ids in completions]
    texts: list[str] = tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return texts


def _picker(
    uniforms_BT: torch.Tensor, prompt_tokens: int, temperature: float, top_p: float
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A logits processor that draws the token itself and leaves greedy decoding nothing else to choose."""
    import torch

    def pick(ids_BL: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        step = ids_BL.shape[1] - prompt_tokens
        uniforms_B1 = uniforms_BT[:, step : step + 1]
        probabilities_BV = torch.softmax(logits_BV.double() / temperature, dim=-1)
        if top_p < 1:
            sorted_BV = probabilities_BV.sort(dim=-1, descending=True).values
            before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
            least_B1 = sorted_BV.masked_fill(before_BV >= top_p, 2.0).min(dim=-1, keepdim=True).values
            probabilities_BV = probabilities_BV.masked_fill(probabilities_BV < least_B1, 0.0)
        cumulated_BV = probabilities_BV.cumsum(dim=-1)
        total_B1 = cumulated_BV[:, -1:]
        below_total_B1 = torch.nextafter(total_B1, torch.zeros_like(total_B1))
        tokens_B1 = torch.searchsorted(cumulated_BV, torch.minimum(uniforms_B1 * total_B1, below_total_B1), right=True)
        return torch.full_like(logits_BV, -torch.inf).scatter_(1, tokens_B1, 0.0)

    return pick


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    end = next((position for position, token in enumerate(ids) if token in ends), len(ids))
    return ids[:end]
