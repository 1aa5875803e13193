"""The order in which records are met: a pure function of the seed, so that a resumed run meets the same ones.

The trainers' own samplers draw each epoch's order from a generator whose state no checkpoint keeps: from the second
epoch on, a resumed run would meet other records. Here the whole training is one long epoch: pass after pass over the
data, each a fresh permutation seeded by (seed, number of the pass), joined without gaps, so that a data set smaller
than a batch, or not a multiple of one, is no special case either. The trainer skips to its place by counting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice


def shuffled_passes(num_records: int, seed: int) -> Iterator[int]:
    """Record numbers without end; every `num_records` of them are a permutation."""
    import torch

    for number in count():
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        yield from torch.randperm(num_records, generator=generator).tolist()


@dataclass(frozen=True)
class Stream:
    """A sampler of `rounds` rounds: each takes `prompts_per_round` records, every one `group` times in a row, and
    yields that block `repeats` times (TRL fetches a generation batch again for each of its micro-batches)."""

    num_records: int
    seed: int
    rounds: int
    prompts_per_round: int
    group: int = 1
    repeats: int = 1

    def __iter__(self) -> Iterator[int]:
        records = shuffled_passes(self.num_records, self.seed)
        for _ in range(self.rounds):
            block = [record for record in islice(records, self.prompts_per_round) for _ in range(self.group)]
            for _ in range(self.repeats):
                yield from block

    def __len__(self) -> int:
        return self.rounds * self.prompts_per_round * self.group * self.repeats
