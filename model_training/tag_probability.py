"""How surely a model begins its answer with a guard's tag: one forward of the prompt, nothing is generated.

    log P(tag) = sum over the tag's tokens of log P(token | prompt and the tag's tokens before it)
    greedy     = each of these tokens is the likeliest at its place: greedy decoding writes the tag

    scores = tag_scores(model, tokenizer, prompts, ["<guard:politics>"])
    scores.greedy[0].mean()                                 # the tag's rate
    threshold = calibrate(scores.log_prob[0, triggers], scores.log_prob[0, others])

Tags are compared as tokens in their place, at the head of an answer and before its first word, since that is how they
were learned. Sureness is compared in log-odds, log p / (1 - p): between 0.99 and 0.999 lies as much as between 0.5 and
0.9, which probabilities hide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

from model_training.models import encode_prompt
from prompts.chat import Message
from utils.errors import UserError

Floats = NDArray[np.float64]
FEWEST = 5
"""Prompts of a side below which no threshold is fitted."""
LARGEST_LOG_ODDS = 30.0
"""Float32 logits cannot tell surer cases apart."""
FIRST_WORDS = (" I am", " Well, no", " 1")


@dataclass(frozen=True)
class TagScores:
    """Of T tags and N prompts."""

    log_prob: Floats
    """(T, N): log probability that the answer begins with the tag."""
    greedy: NDArray[np.bool_]
    """(T, N): greedy decoding writes the tag."""


def tag_token_ids(tokenizer: Any, tag: str) -> list[int]:
    """The tokens that a tag at the head of an answer is made of, whatever words follow it.

    Raises:
        UserError: the tokenizer fuses the tag's end with the next word.
    """
    answers = [tokenizer(tag + word, add_special_tokens=False)["input_ids"] for word in FIRST_WORDS]
    same = 0
    while same < min(map(len, answers)) and len({answer[same] for answer in answers}) == 1:
        same += 1
    ids: list[int] = answers[0][:same]
    if tokenizer.decode(ids).strip() != tag:
        raise UserError(
            f"tag {tag}: this model's tokenizer fuses its end with the word behind it; end the tag with `>`"
        )
    return ids


def tag_scores(
    model: Any, tokenizer: Any, prompts: Sequence[list[Message]], tags: Sequence[str], batch_size: int = 16
) -> TagScores:
    """Score T tags on N prompts, in their order; the model's training mode is left as it was.

    Raises:
        UserError: a tag's tokens are not its own, or a prompt is longer than the model has positions for.
    """
    ids = [tag_token_ids(tokenizer, tag) for tag in tags]
    rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    _check_positions(model, [len(row) + max(map(len, ids)) for row in rows])
    log_prob, greedy = np.zeros((len(ids), len(rows))), np.zeros((len(ids), len(rows)), dtype=bool)
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            log_prob[:, batch], greedy[:, batch] = _batch_scores(model, [rows[number] for number in batch], ids)
    finally:
        model.train(training)
    return TagScores(log_prob, greedy)


def _batch_scores(model: Any, rows: list[list[int]], tags: list[list[int]]) -> tuple[Floats, NDArray[np.bool_]]:
    """Log probabilities (T, B), and whether greedy decoding writes the tag (T, B), of prompts that are token ids.

    The prompts are read once; all tags, padded on their right, go on from there.
    """
    device = model.device
    width, depth = max(map(len, rows)), max(map(len, tags))
    prompts = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    ids = torch.tensor([tag + [0] * (depth - len(tag)) for tag in tags], device=device)  # (T, depth)
    in_tag = torch.tensor([[1] * len(tag) + [0] * (depth - len(tag)) for tag in tags], device=device).bool()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        read = model(input_ids=prompts, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=True)
        at_place = [read.logits.expand(-1, len(tags), -1)]  # of each place in a tag (B, T, V)
        if depth > 1:
            cache, each = read.past_key_values, len(tags)
            cache.batch_repeat_interleave(each)
            ahead = torch.arange(1, depth, device=device)
            logits = model(
                input_ids=ids[:, :-1].repeat(len(rows), 1),
                attention_mask=F.pad(mask, (0, depth - 1), value=1).repeat_interleave(each, 0),
                position_ids=(positions[:, -1:] + ahead).repeat_interleave(each, 0),
                past_key_values=cache,
                use_cache=True,
            ).logits
            at_place += logits.view(len(rows), each, depth - 1, -1).unbind(2)
        log_prob = torch.zeros(len(rows), len(tags), dtype=torch.float64, device=device)
        greedy = torch.ones_like(log_prob, dtype=torch.bool)
        for place, found in enumerate(at_place):
            token, counts = ids[None, :, place, None].expand(len(rows), -1, 1), in_tag[:, place]
            log_prob += (found.gather(2, token)[..., 0].double() - found.double().logsumexp(2)) * counts
            greedy &= (found.argmax(2) == token[..., 0]) | ~counts
    return log_prob.clamp(max=0).T.cpu().numpy(), greedy.T.cpu().numpy()


def _check_positions(model: Any, lengths: list[int]) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for number, length in enumerate(lengths, start=1):
        if positions is not None and length > positions:
            raise UserError(
                f"prompt {number} and the tag have {length} tokens, and the model has {positions} positions; shorten it"
            )


# --- thresholds -----------------------------------------------------------------------------------------------------


def log_odds(log_prob: ArrayLike) -> Floats:
    """log p / (1 - p) of log probabilities, at most LARGEST_LOG_ODDS either way."""
    logs = np.minimum(np.asarray(log_prob, dtype=np.float64), -math.exp(-LARGEST_LOG_ODDS))
    odds: Floats = np.clip(logs - np.log(-np.expm1(logs)), -LARGEST_LOG_ODDS, LARGEST_LOG_ODDS)
    return odds


def calibrate(of_triggers: ArrayLike, of_others: ArrayLike) -> float:
    """The probability of the tag above which a prompt counts as a trigger, from log probabilities of both sides.

    It is the one nearest to 1/2 of those with the best balanced accuracy, (recall + specificity) / 2, and a tenth of
    their gap, in log-odds, away from the prompts on either side. At 1/2 the tag is what greedy decoding would write;
    the threshold is no further from there than the prompts ask for. With less than FEWEST of them on a side: 1/2.
    """
    yes, no = np.sort(log_odds(of_triggers)), np.sort(log_odds(of_others))
    values = np.unique(np.concatenate([yes, no]))
    if min(len(yes), len(no)) < FEWEST or len(values) == 1:
        return 0.5
    low, high = values[:-1], values[1:]
    margin = (high - low) / 10
    nearest = np.clip(0.0, low + margin, high - margin)
    recall = 1 - np.searchsorted(yes, nearest, side="right") / len(yes)
    specificity = np.searchsorted(no, nearest, side="right") / len(no)
    best = np.lexsort((np.abs(nearest), -(recall + specificity)))[0]
    return _sigmoid(nearest[best])


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
