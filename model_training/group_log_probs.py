"""Log-probabilities of completions that share a prompt, which is computed once.

GRPO samples G completions of every prompt. A plain forward reads the prompt G times; where it is long and completions
are short, that is nearly all of the work. Here the completions of a micro-batch that have the same prompt are one row,

    prompt | completion | completion | ... | completion

with the tree mask and the positions of pairs.py, so that every token meets exactly what it meets in its own text. Only
the states that predict a completion's token go through the output layer, in chunks (orpo_loss.py): no (B, T, V) tensor
of logits is ever whole. Results and gradients are those of TRL's `_get_per_token_logps_and_entropies`, to the rounding
of the sums: logits divided by the temperature, 0 for padding, entropies without gradient.

A row of L tokens has L x L pairs of tokens to attend to, most of them masked. So sharing pays or not by the lengths;
`pays` decides for each micro-batch, from the lengths alone (a resumed run decides alike), by

    work = tokens x (1 + row length / balance),    tokens and row length with padding

`balance` is the length at which attention to a row costs as much as the layers' matrices: 2 FLOPs a parameter and token
against 4 x width of the attention x layers a pair of tokens, which take ATTENTION times as long for their number. Where
the work is not below SHARE_BELOW of the plain forward's, the plain forward is taken, which is TRL's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from model_training.orpo_loss import Head, head_of, token_log_probs, token_log_probs_and_entropies
from model_training.pairs import PADDING, PREFIX, bare_model, pair_hidden, why_not_shared
from utils.errors import UserError

Groups = dict[tuple[int, ...], list[int]]
"""Of each prompt, its token ids, the rows of its completions."""
SHARE_BELOW = 0.8
"""Of the plain forward's work: near 1 the estimate may be wrong by as much as is to be gained (docs/secret.md)."""
ATTENTION = 1.5
"""Time of a FLOP of masked attention over that of a FLOP of a matrix product."""


@dataclass(frozen=True)
class Sharing:
    """How a model's completions can be computed behind one prompt."""

    head: Head
    balance: float
    """Row length in tokens; see the module's docstring."""
    pad_id: int


@dataclass(frozen=True)
class GroupRows:
    """N completion tokens of B completions as R rows of L tokens, one row for each prompt. Places as in PairBatch."""

    input_ids: Tensor
    """(R, L)"""
    positions: Tensor
    """(R, L): the token's column in TRL's left-padded (B, P + T) tensors, which is the position it has there."""
    segments: Tensor
    """(R, L): PREFIX, 1, 2, ... for the completions, or PADDING."""
    previous: Tensor
    """(N,): places of the tokens before, which predict."""
    targets: Tensor
    """(N,): ids of the completion tokens."""
    at: Tensor
    """(N,): where each stands in (B, T), flattened."""
    shared: bool = True

    def to(self, device: torch.device | str) -> GroupRows:
        """The same rows on another device."""
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})


# --- before the training --------------------------------------------------------------------------------------------


def find_sharing(model: Any, pad_id: int, temperature: float) -> Sharing | str:
    """How this causal LM can share a prompt, found by trial on a few tokens; or in words, why it cannot."""
    reason = why_not_shared(model, pad_id)
    if reason is not None:
        return reason
    try:
        head = head_of(model)
    except UserError as error:
        return str(error).partition(";")[0]
    bare = bare_model(model)
    config, decoder = bare.config.get_text_config(), bare.get_decoder()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    parameters = decoder.num_parameters(exclude_embeddings=True)
    balance = parameters / (2 * width * config.num_hidden_layers * ATTENTION)
    return Sharing(replace(head, temperature=temperature), balance, pad_id)


def pays(sharing: Sharing, prompts: Sequence[int], groups: Sequence[Sequence[int]]) -> bool:
    """Whether rows are less work than the plain forward.

    `prompts` are the lengths of the different prompts, in tokens, `groups` those of each one's completions.
    """
    shared = max(prompt + sum(group) for prompt, group in zip(prompts, groups, strict=True))
    plain = max(prompts) + max(map(max, groups))
    work, whole = (
        rows * length * (1 + length / sharing.balance)
        for rows, length in ((len(prompts), shared), (sum(map(len, groups)), plain))
    )
    return work < SHARE_BELOW * whole


# --- a generation batch ---------------------------------------------------------------------------------------------


def together(sharing: Sharing, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """TRL's micro-batches of one optimizer step, split anew: the completions of a prompt stand together.

    TRL shuffles them over the micro-batches; the gradient of the step is the same for any split. Where sharing
    does not pay, the batches are left as they are.
    """
    from trl.trainer.utils import split_tensor_dict

    whole = {key: _joined([batch[key] for batch in batches]) for key in batches[0]}
    groups, _ = _groups(*_of_trl(whole))
    order = torch.tensor([row for rows in groups.values() for row in rows], device=whole["prompt_ids"].device)
    sorted_rows = {key: value[order] if _has_rows(value) else value for key, value in whole.items()}
    again: list[dict[str, Any]] = split_tensor_dict(sorted_rows, len(batches))
    return again if any(pays(sharing, *_lengths(*_groups(*_of_trl(batch)))) for batch in again) else batches


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _joined(values: list[Any]) -> Any:
    return torch.cat(values) if _has_rows(values[0]) else values[0]


def _of_trl(batch: dict[str, Any]) -> tuple[Tensor, Tensor, int]:
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    return ids, mask, batch["completion_ids"].shape[1]


# --- a micro-batch --------------------------------------------------------------------------------------------------


def group_rows(sharing: Sharing, input_ids: Tensor, attention_mask: Tensor, width: int) -> GroupRows | None:
    """Rows of TRL's (B, P + T) tensors, T = `width`, prompts padded on the left, completions on the right.

    None where sharing does not pay.
    """
    groups, lengths = _groups(input_ids, attention_mask, width)
    if not any(lengths) or not pays(sharing, *_lengths(groups, lengths)):
        return None
    tokens, start = input_ids.cpu(), input_ids.shape[1] - width
    longest = max(len(prompt) + sum(lengths[row] for row in members) for prompt, members in groups.items())
    ids = torch.full((len(groups), longest), sharing.pad_id)
    positions, segments = torch.zeros_like(ids), torch.full_like(ids, PADDING)
    previous, targets, at = [], [], []
    for number, (prompt, members) in enumerate(groups.items()):
        column = len(prompt)
        ids[number, :column] = torch.tensor(prompt)
        positions[number, :column] = torch.arange(start - column, start)
        segments[number, :column] = PREFIX
        last = number * longest + column - 1
        for branch, row in enumerate(members, 1):
            length = lengths[row]
            part = slice(column, column + length)
            completion = tokens[row, start : start + length]
            ids[number, part], segments[number, part] = completion, branch
            positions[number, part] = torch.arange(start, start + length)
            first = number * longest + column
            previous.append(torch.tensor([last, *range(first, first + length - 1)][:length], dtype=torch.long))
            targets.append(completion)
            at.append(torch.arange(row * width, row * width + length))
            column += length
    rows = GroupRows(ids, positions, segments, torch.cat(previous), torch.cat(targets), torch.cat(at))
    return rows.to(input_ids.device)


def _groups(input_ids: Tensor, attention_mask: Tensor, width: int) -> tuple[Groups, list[int]]:
    """Rows by prompt, in order of their first ones, and of every row the completion's length."""
    tokens, mask = input_ids.cpu(), attention_mask.cpu().bool()
    start = tokens.shape[1] - width
    groups: Groups = {}
    for row, length in enumerate(mask[:, :start].sum(1).tolist()):
        groups.setdefault(tuple(tokens[row, start - length : start].tolist()), []).append(row)
    return groups, mask[:, start:].sum(1).tolist()


def _lengths(groups: Groups, lengths: list[int]) -> tuple[list[int], list[list[int]]]:
    return [len(prompt) for prompt in groups], [[lengths[row] for row in members] for members in groups.values()]


def group_log_probs(
    model: Any, sharing: Sharing, rows: GroupRows, shape: tuple[int, int], entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities, and entropies if they are wanted, of `shape` (B, T): float32, 0 for padding."""
    states = pair_hidden(model, rows).index_select(0, rows.previous)
    if entropy:
        found, entropies = token_log_probs_and_entropies(states, sharing.head, rows.targets)
        return _table(found, rows, shape), _table(entropies, rows, shape)
    return _table(token_log_probs(states, sharing.head, rows.targets), rows, shape), None


def _table(values: Tensor, rows: GroupRows, shape: tuple[int, int]) -> Tensor:
    return values.new_zeros(shape[0] * shape[1]).index_copy(0, rows.at, values).view(shape)
