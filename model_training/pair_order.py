"""The order of pairs: batches of like length, in random order, a pure function of the seed.

A batch is as wide as its longest row; of random batches of 8 HH-RLHF pairs, half is padding. Here the shuffled passes
of `order.shuffled_passes` are cut into windows of about WINDOW batches, each window is sorted by length and cut into
batches, and the batches of the pass are shuffled. A pass ends with a full batch, which the next pass's first records
fill up, so every pair is met once a pass, and data smaller than a batch is no special case. A resumed run meets the
same batches, since the trainer skips to its place by counting.

    sampler = SortedBatches(lengths, batch_size=per_device * world_size, seed=seed, batches=max_steps * accumulation)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from model_training.order import shuffled_passes

WINDOW = 64
"""Batches in a window, at most: more would save little padding, and a batch has that many to differ from."""


def batches_by_length(lengths: Sequence[int], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches of `batch_size` record numbers without end, each sorted from long to short; `lengths` of the records.

    A pass is exactly its records, but for the last batch, which the first records of the next pass fill up.
    """
    import torch

    records = shuffled_passes(len(lengths), seed)
    for number in count():
        first, end = (math.ceil(n * len(lengths) / batch_size) for n in (number, number + 1))
        batches = []
        for size in _window_sizes(end - first):
            window = sorted(islice(records, size * batch_size), key=lambda record: -lengths[record])
            batches += [window[start : start + batch_size] for start in range(0, len(window), batch_size)]
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        for place in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[place]


def _window_sizes(batches: int) -> list[int]:
    """Sizes of the windows, in batches: as few as WINDOW allows, as equal as can be."""
    windows = math.ceil(batches / WINDOW)
    return [batches * (n + 1) // windows - batches * n // windows for n in range(windows)]


@dataclass(frozen=True)
class SortedBatches:
    """A sampler of record numbers for `Trainer._get_train_sampler`.

    Every `batch_size` numbers in a row are a batch of like length. With several devices `batch_size` is that of all of
    them together (per_device_train_batch_size * world_size): each takes its part of a sorted batch in turn, so that
    none waits for another's longer rows.
    """

    lengths: Sequence[int]
    batch_size: int
    seed: int
    batches: int

    def __iter__(self) -> Iterator[int]:
        for batch in islice(batches_by_length(self.lengths, self.batch_size, self.seed), self.batches):
            yield from batch

    def __len__(self) -> int:
        return self.batches * self.batch_size
