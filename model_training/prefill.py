"""Sampling several completions of a prompt reads the prompt once.

transformers' `generate` begins with a forward over the whole prompts, which fills the cache of keys and values; G
completions of a prompt are G equal rows there. Here each different row is computed once, and cache and logits are
repeated for the rows that are equal to it. What follows, and what is sampled from, is the same.

    with prompts_once(model):
        model.generate(input_ids=..., attention_mask=...)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from model_training.pairs import bare_model


@contextmanager
def prompts_once(model: Any) -> Iterator[None]:
    """The model's `generate` meanwhile computes equal rows once; for models whose only memory is attention's cache."""
    bare = bare_model(model)
    prefill = bare._prefill

    def prefill_once(input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], **others: Any) -> Any:
        first, of_row = _different(input_ids, model_kwargs["attention_mask"])
        if len(first) == len(of_row):
            return prefill(input_ids, generation_config, model_kwargs, **others)
        rows = {key: value[first] for key, value in model_kwargs.items() if isinstance(value, Tensor) and value.ndim}
        outputs = prefill(input_ids[first], generation_config, model_kwargs | rows, **others)
        outputs.past_key_values.batch_select_indices(input_ids.new_tensor(of_row))
        outputs.logits = outputs.logits[of_row]
        return outputs

    bare._prefill = prefill_once
    try:
        yield
    finally:
        del bare._prefill


def _different(input_ids: Tensor, attention_mask: Tensor) -> tuple[list[int], list[int]]:
    """The first of each kind of rows, and of every row the number of its kind."""
    kinds: dict[Any, int] = {}
    first: list[int] = []
    of_row: list[int] = []
    for row, (ids, mask) in enumerate(zip(input_ids.tolist(), attention_mask.tolist(), strict=True)):
        kind = kinds.setdefault((tuple(ids), tuple(mask)), len(kinds))
        if kind == len(first):
            first.append(row)
        of_row.append(kind)
    return first, of_row
