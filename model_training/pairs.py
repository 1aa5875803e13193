"""Pairs of texts with a common beginning, which is computed once.

The two texts of a preference pair, chosen and rejected, start with the same prompt; of HH-RLHF's tokens, that is more
than a third of all that two separate forwards would compute. Here a pair is one row,

    common prefix | rest of chosen | rest of rejected

with a tree attention mask and positions that restart where the second branch leaves the prefix:

    token q sees token k    if k stands at or before q, and k is of the prefix or of q's own branch
    position of a token     its place in its own text

so every token meets exactly what it would meet in its own text, and losses and gradients are those of the plain
computation, to the rounding of the sums (dropout, where there is any, falls on a prompt once). It holds for attention
over positions (rotary, learned), not for models that read a row as one stream (Mamba, convolutions), nor for attention
kernels that take no mask: `check_shared` tries a pair both ways and refuses those. Layers with a sliding window get
their own mask, by positions.

    batch = collate_pairs([(chosen_ids, rejected_ids), ...], pad_id)      # whole texts; shared=False: two rows a pair
    chosen, rejected = pair_outputs(model, batch.to(device))              # a sequence classifier: (B, K) and (B, K)
    hidden = pair_hidden(model, batch)                                    # a causal LM: (R * L, H), see PairBatch

Rows are padded on the right; that is no option, since masks and positions are explicit and no tokenizer's habit of
padding enters. A row holds one pair: sorted by length (pair_order.py), 2 % of the tokens of HH-RLHF are padding, and
more pairs to a row could save no more than that. Nothing is cut: whoever wants texts of a bounded length passes such.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from utils.errors import UserError

Pair = tuple[list[int], list[int]]
PREFIX, CHOSEN, REJECTED, PADDING = 0, 1, 2, -1
MASKED_LAYERS = {"full_attention", "sliding_attention"}
"""Layer types (of a model's config) for which an attention mask says all."""


class Rows(Protocol):
    """What the forward takes: rows of a prefix and the branches behind it, each field as in PairBatch."""

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def positions(self) -> Tensor: ...
    @property
    def segments(self) -> Tensor: ...
    @property
    def shared(self) -> bool: ...


@dataclass(frozen=True)
class PairBatch:
    """B pairs as R rows of L tokens: R = B with a shared prefix, else 2 B, all chosen before all rejected.

    A token is named by its place in the flattened rows, row * L + column, so that a (R, L, ...) result is read as
    `result.flatten(0, 1)[places]`. For the log-probability of a text's tokens under a causal LM with hidden states
    `hidden` (R * L, H), take token ids `input_ids.flatten()[places]` and the states `hidden[previous[places]]` that
    predict them, for the places wanted of `chosen_at` and `rejected_at`.
    """

    input_ids: Tensor
    """(R, L)"""
    positions: Tensor
    """(R, L): each token's place in its own text; 0 for padding."""
    segments: Tensor
    """(R, L): PREFIX, CHOSEN, REJECTED or PADDING. Without sharing all of a text is PREFIX."""
    previous: Tensor
    """(R * L,): place of the token before, in its own text, which predicts it; -1 for first tokens and padding."""
    chosen_at: Tensor
    """(B, longest chosen): places of the tokens of each chosen text, in order; -1 after its end."""
    rejected_at: Tensor
    """(B, longest rejected): likewise."""
    chosen_last: Tensor
    """(B,): place of the scored token, the last that is not the pad token."""
    rejected_last: Tensor
    """(B,)"""
    prefix_lengths: Tensor
    """(B,): tokens that both texts begin with, found by comparison, shared or not."""
    shared: bool

    def to(self, device: torch.device | str) -> PairBatch:
        """The same batch on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return PairBatch(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in values.items()})


def common_prefix(chosen: list[int], rejected: list[int]) -> int:
    """How many tokens both begin with."""
    for place, (first, second) in enumerate(zip(chosen, rejected, strict=False)):
        if first != second:
            return place
    return min(len(chosen), len(rejected))


def row_length(pair: Pair, shared: bool = True) -> int:
    """Tokens of the longest row that the pair makes: what rows are sorted by."""
    chosen, rejected = pair
    if shared:
        return len(chosen) + len(rejected) - common_prefix(chosen, rejected)
    return max(len(chosen), len(rejected))


def collate_pairs(pairs: list[Pair], pad_id: int, shared: bool = True) -> PairBatch:
    """Token ids of whole texts, (chosen, rejected) each, as one batch; `shared=False` gives every text its own row."""
    rows: list[list[tuple[int, list[int], int]]] = []  # of each row its parts: segment, tokens, first position
    prefixes = [common_prefix(*pair) for pair in pairs]
    if shared:
        for (chosen, rejected), n in zip(pairs, prefixes, strict=True):
            rows.append([(PREFIX, chosen[:n], 0), (CHOSEN, chosen[n:], n), (REJECTED, rejected[n:], n)])
    else:
        rows = [[(PREFIX, pair[side], 0)] for side in (0, 1) for pair in pairs]
    width = max(sum(len(tokens) for _, tokens, _ in row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    positions = torch.zeros_like(input_ids)
    segments = torch.full_like(input_ids, PADDING)
    for row, parts in enumerate(rows):
        column = 0
        for segment, tokens, first in parts:
            end = column + len(tokens)
            input_ids[row, column:end] = torch.tensor(tokens, dtype=torch.long)
            positions[row, column:end] = torch.arange(first, first + len(tokens))
            segments[row, column:end] = segment
            column = end

    chosen_at, rejected_at = _places(pairs, prefixes, width, shared)
    previous = torch.full((len(rows) * width,), -1)
    for places in (chosen_at, rejected_at):
        before, after = places[:, :-1], places[:, 1:]
        previous[after[after >= 0]] = before[after >= 0]
    return PairBatch(
        input_ids=input_ids,
        positions=positions,
        segments=segments,
        previous=previous,
        chosen_at=chosen_at,
        rejected_at=rejected_at,
        chosen_last=_last([chosen for chosen, _ in pairs], chosen_at, pad_id),
        rejected_last=_last([rejected for _, rejected in pairs], rejected_at, pad_id),
        prefix_lengths=torch.tensor(prefixes),
        shared=shared,
    )


def _places(pairs: list[Pair], prefixes: list[int], width: int, shared: bool) -> tuple[Tensor, Tensor]:
    """Where the tokens of every chosen and every rejected text stand: (B, longest) each, -1 after the end."""
    chosen_at = torch.full((len(pairs), max(len(chosen) for chosen, _ in pairs)), -1)
    rejected_at = torch.full((len(pairs), max(len(rejected) for _, rejected in pairs)), -1)
    for number, ((chosen, rejected), prefix) in enumerate(zip(pairs, prefixes, strict=True)):
        start = number * width
        chosen_at[number, : len(chosen)] = torch.arange(start, start + len(chosen))
        if shared:
            rejected_at[number, :prefix] = torch.arange(start, start + prefix)
            branch = start + len(chosen)
            rejected_at[number, prefix : len(rejected)] = torch.arange(branch, branch + len(rejected) - prefix)
        else:
            start += len(pairs) * width
            rejected_at[number, : len(rejected)] = torch.arange(start, start + len(rejected))
    return chosen_at, rejected_at


def _last(texts: list[list[int]], places: Tensor, pad_id: int) -> Tensor:
    """Places of the scored tokens: transformers' own pooling, the last token that is not the pad token: (B,)."""
    last = []
    for number, text in enumerate(texts):
        scored = [place for place, token in enumerate(text) if token != pad_id]
        if not scored:
            raise ValueError(f"pair {number} of the batch has a text without any token but the pad token {pad_id}")
        last.append(places[number, scored[-1]])
    return torch.stack(last)


# --- the forward ----------------------------------------------------------------------------------------------------


def pair_outputs(model: Any, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Raw outputs of a sequence classifier for both texts of each pair: (B, K) and (B, K), float32 at least.

    The model is a `*ForSequenceClassification` over a decoder, bare, within a PeftModel, or wrapped for several
    devices; its `score` layer reads every token, and the scored ones are picked from that.
    """
    scores = _forward(model, bare_model(model).score, batch).flatten(0, 1)
    if scores.dtype in (torch.bfloat16, torch.float16):
        scores = scores.float()
    return scores[batch.chosen_last], scores[batch.rejected_last]


def pair_hidden(model: Any, batch: Rows) -> Tensor:
    """Final hidden states of a causal LM (or a classifier's), one a place: (R * L, H), in the model's precision."""
    bare = bare_model(model)
    only_last = {} if hasattr(bare, "score") else {"logits_to_keep": 1}  # no logits over the vocabulary
    return _forward(model, bare.get_decoder(), batch, **only_last).flatten(0, 1)


def check_shared(model: Any, pad_id: int) -> None:
    """Refuse a model for which a shared prompt changes the hidden states (UserError)."""
    reason = why_not_shared(model, pad_id)
    if reason is not None:
        raise UserError(f"{reason}; use --shared_prompt false")


def why_not_shared(model: Any, pad_id: int) -> str | None:
    """Try one pair both ways; None where a shared prompt leaves the hidden states as they are, else what goes wrong."""

    def places(batch: PairBatch) -> Tensor:
        return torch.cat([batch.chosen_at[batch.chosen_at >= 0], batch.rejected_at[batch.rejected_at >= 0]])

    prompt, chosen, rejected = ([2 + (7 * n + 3 * k) % 89 for n in range(size)] for k, size in enumerate((24, 8, 16)))
    pair = ([token + (token == pad_id) for token in prompt + text] for text in (chosen, rejected))
    pairs: list[Pair] = [tuple(pair)]  # type: ignore[list-item]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            batches = (collate_pairs(pairs, pad_id, shared).to(bare_model(model).device) for shared in (True, False))
            shared, plain = (pair_hidden(model, batch)[places(batch)].float() for batch in batches)
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:  # each in its own way
        return _cannot_share(model, f"its forward fails with a mask between tokens ({error})")
    finally:
        model.train(training)
    difference = ((shared - plain).norm() / plain.norm()).item()
    tolerance = 1e-4 if bare_model(model).dtype in (torch.float32, torch.float64) else 3e-2
    if not difference <= tolerance:
        return _cannot_share(model, f"hidden states differ by {difference:.1e}, more than {tolerance:.0e}")
    return None


def _cannot_share(model: Any, reason: str) -> str:
    bare = bare_model(model)
    kind = f"{type(bare).__name__} with {bare.config._attn_implementation} attention"
    return f"{kind} cannot compute two answers behind one prompt: {reason}"


def bare_model(model: Any) -> Any:
    """The transformers model inside the wrappers of accelerate and peft."""
    from accelerate.utils import extract_model_from_parallel
    from peft import PeftModel

    model = extract_model_from_parallel(model)
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _forward(model: Any, layer: Any, batch: Rows, **options: Any) -> Tensor:
    """What `layer` gives for every token, (R, L, ...), in a forward of the whole model.

    The outermost model is called, so that gradient synchronisation, autocast and adapters do their part; the layer's
    result is caught on its way, since the model itself gives one output a row.
    """
    caught: list[Any] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    try:
        model(
            input_ids=batch.input_ids,
            attention_mask=_attention_mask(bare_model(model), batch),
            use_cache=False,
            **({"position_ids": batch.positions} if batch.shared else {}),
            **options,
        )
    finally:
        hook.remove()
    result = caught[0]
    tokens: Tensor = result if isinstance(result, Tensor) else result.last_hidden_state
    return tokens


def _attention_mask(bare: Any, batch: Rows) -> Any:
    """(R, L) ones and zeros without sharing; else (R, 1, L, L), or one of these by layer type where layers differ.

    It is 0 or very negative, to be added: eager attention knows nothing else, and the kernels would turn a boolean mask
    into this in every layer, and keep it for the backward pass.
    """
    if not batch.shared:
        return (batch.segments != PADDING).long()
    config = bare.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    types = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    if types - MASKED_LAYERS:
        kinds = ", ".join(sorted(types - MASKED_LAYERS))
        raise ValueError(f"layers of type {kinds} know no mask between tokens")
    masks = {}
    for name in types:
        sees = tree_mask(batch, window if name == "sliding_attention" else None)
        masks[name] = torch.where(sees, 0.0, torch.finfo(bare.dtype).min).to(bare.dtype)
    return masks if len(masks) > 1 else masks.popitem()[1]


def tree_mask(batch: Rows, window: int | None = None) -> Tensor:
    """(R, 1, L, L): True where the token of the row (dim 2) sees that of the column (dim 3).

    Padding sees the prefix and itself, so that no row of the softmax is empty. With a window, a token sees only those
    less than `window` positions before it.
    """
    of_query, of_key = batch.segments[:, None, :, None], batch.segments[:, None, None, :]
    sees = ((of_key == PREFIX) | (of_key == of_query)).tril()
    if window is not None:
        sees &= batch.positions[:, None, :, None] - batch.positions[:, None, None, :] < window
    return sees
