"""The order of pairs: complete passes, batches of like length, the same after a resume."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler
from transformers import Trainer, TrainingArguments

from model_training.pair_order import WINDOW, SortedBatches, batches_by_length

LENGTHS = [random.Random(n).randrange(10, 1000) for n in range(1000)]


def first_batches(count: int, batch_size: int, seed: int = 0, records: int = len(LENGTHS)) -> list[list[int]]:
    return list(islice(batches_by_length(LENGTHS[:records], batch_size, seed), count))


def padding(batches: list[list[int]]) -> float:
    """Share of the tokens that are padding."""
    computed = sum(max(LENGTHS[n] for n in batch) * len(batch) for batch in batches)
    return 1 - sum(LENGTHS[n] for batch in batches for n in batch) / computed


def test_a_pass_meets_every_record_once() -> None:
    batches = first_batches(250, batch_size=8)
    for start in (0, 125):
        assert sorted(n for batch in batches[start : start + 125] for n in batch) == list(range(1000))


@pytest.mark.parametrize(("records", "batch_size"), [(1000, 7), (13, 8), (3, 8), (1, 4), (8, 8)])
def test_passes_of_any_size(records: int, batch_size: int) -> None:
    one_pass = -(-records // batch_size)
    batches = first_batches(4 * one_pass, batch_size, records=records)
    assert all(len(batch) == batch_size for batch in batches)
    assert {n for batch in batches[:one_pass] for n in batch} == set(range(records))
    met = Counter(n for batch in batches[: -(-4 * records // batch_size)] for n in batch)
    assert max(met.values()) - min(met[n] for n in range(records)) <= 1


def test_little_padding_though_batches_come_in_any_order() -> None:
    batches = first_batches(125, batch_size=8)
    assert padding(batches) < 0.05
    assert padding([list(range(n, n + 8)) for n in range(0, 1000, 8)]) > 0.3
    widths = [max(LENGTHS[n] for n in batch) for batch in batches]
    rising = sum(later > earlier for earlier, later in zip(widths, widths[1:], strict=False))
    assert 40 < rising < 85


def test_a_record_meets_others_in_the_next_pass() -> None:
    assert len(LENGTHS) > WINDOW * 8
    batches = first_batches(250, batch_size=8)
    company = [{n for batch in batches[start : start + 125] if 0 in batch for n in batch} for start in (0, 125)]
    assert len(company[0] & company[1]) < 8


def test_the_seed_decides() -> None:
    assert first_batches(300, 8, seed=3) == first_batches(300, 8, seed=3)
    company = [{frozenset(batch) for batch in first_batches(125, 8, seed=seed)} for seed in (3, 4)]
    assert len(company[0] & company[1]) < 5


def test_the_seed_decides_the_order_of_batches_too() -> None:
    distinct = list(range(8 * WINDOW))
    one, other = (list(islice(batches_by_length(distinct, 8, seed), WINDOW)) for seed in (3, 4))
    assert sorted(one) == sorted(other)
    assert one != other


def test_a_longer_training_begins_alike() -> None:
    short, long = (list(SortedBatches(LENGTHS, 8, seed=1, batches=count)) for count in (60, 300))
    assert long[: len(short)] == short
    assert len(short) == len(SortedBatches(LENGTHS, 8, seed=1, batches=60)) == 480


def test_devices_share_a_sorted_batch() -> None:
    sampler = SortedBatches(LENGTHS, batch_size=4 * 2, seed=0, batches=50)
    shards = [BatchSamplerShard(BatchSampler(sampler, 4, drop_last=False), 2, rank) for rank in range(2)]
    together = [first + second for first, second in zip(*shards, strict=True)]
    assert together == first_batches(50, batch_size=8)


class Recorder(torch.nn.Module):
    """A model of one weight that keeps the records it has met."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.met: list[list[int]] = []

    def forward(self, record: Any) -> dict[str, Any]:
        self.met.append(record.tolist())
        return {"loss": (self.weight - record.float().mean()) ** 2}


def recorded(folder: Path, resume: str | None) -> list[list[int]]:
    """The batches that a training of 12 steps meets, saved after 5; over three passes of 13 records."""

    class Ordered(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SortedBatches(LENGTHS[:13], batch_size=4, seed=0, batches=12)

    options = {"max_steps": 12, "save_steps": 5, "per_device_train_batch_size": 4, "report_to": [], "use_cpu": True}
    model = Recorder()
    data = [{"record": n} for n in range(13)]
    args = TrainingArguments(output_dir=str(folder), disable_tqdm=True, logging_strategy="no", **options)
    Ordered(model, args, train_dataset=data).train(resume_from_checkpoint=resume)
    return model.met


def test_a_resumed_training_meets_the_same_batches(tmp_path: Path) -> None:
    whole = recorded(tmp_path, None)
    assert whole == first_batches(12, batch_size=4, records=13)
    assert recorded(tmp_path, str(tmp_path / "checkpoint-5")) == whole[5:]
