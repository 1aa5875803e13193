"""The settings that fit, from given numbers and by hand."""

from __future__ import annotations

import pytest
import torch

from model_training.memory import Memory, is_out_of_memory, tried_bytes
from model_training.memory_advice import (
    Settings,
    Shape,
    advice,
    batch_that_fits,
    freed_by_4bit,
    growth,
    growth_with_checkpointing,
    length_that_fits,
    shape_of,
)
from model_training.models import load_model, new_adapter
from tests.model_training.conftest import BuildModel

GIB = 2**30
SHAPE = Shape(
    layers=32, hidden=4096, vocabulary=128_000, activation_bytes=2, matrix_weights=7 * 10**9, matrix_bytes=14 * 10**9
)
MEMORY = Memory(weights=16 * GIB, peak=40 * GIB, total=40 * GIB, reserved=40 * GIB)
SETTINGS = Settings(
    batch=("--per_device_train_batch_size", 8),
    accumulation=("--gradient_accumulation_steps", 2),
    checkpointing=("--gradient_checkpointing", False),
    length=("--max_completion_length", 512),
    tokens=1024,
    shape=SHAPE,
    on_gpu=True,
)


def test_growth_is_of_a_record_and_counts_what_could_not_be_allocated() -> None:
    assert growth(MEMORY, 8) == 3 * GIB
    assert growth(MEMORY, 8, tried=8 * GIB) == 4 * GIB


def test_the_batch_is_the_largest_divisor_that_fits() -> None:
    assert batch_that_fits(MEMORY, 8, 4 * GIB) == 4  # 16 + 16 of 38
    assert batch_that_fits(MEMORY, 8, 6 * GIB) == 2
    assert batch_that_fits(MEMORY, 6, 6 * GIB) == 3
    assert batch_that_fits(MEMORY, 8, 30 * GIB) == 1


def test_checkpointing_keeps_a_layer_s_inputs_and_one_layer() -> None:
    inputs, logits = 1024 * 4096 * 32 * 2, 1024 * 128_000 * 4
    expected = inputs + logits + (4 * GIB - logits) / 32
    assert growth_with_checkpointing(SHAPE, 1024, 4 * GIB) == pytest.approx(expected)
    assert growth_with_checkpointing(SHAPE, 1024, 1000) == 1000, "it never takes more"


def test_the_length_loses_the_tokens_that_do_not_fit() -> None:
    # 22 GiB for 8 records of 4 GiB / 1024 tokens: 704 tokens each, 320 fewer
    assert length_that_fits(MEMORY, SETTINGS, 4 * GIB) == 512 - 320
    assert length_that_fits(MEMORY, SETTINGS, 40 * GIB) is None, "the prompt alone is too long"
    assert length_that_fits(MEMORY, SETTINGS, 1 * GIB) is None, "it fits as it is"


def test_4_bit_frees_what_the_matrices_take_more() -> None:
    assert freed_by_4bit(SHAPE) == pytest.approx(14e9 - 7e9 * 4.127 / 8)
    quantized = Shape(32, 4096, 128_000, 2, matrix_weights=0, matrix_bytes=4 * 10**9)
    assert freed_by_4bit(quantized) == 0


def test_the_line() -> None:
    assert advice(MEMORY, SETTINGS, tried=8 * GIB) == (
        "48.00 GiB or more were needed of 40.00, 16.00 of them before the first step and 4.000 for each of 8 records "
        "of up to 1024 tokens; change one or more of: "
        "--per_device_train_batch_size 4 --gradient_accumulation_steps 4 (about 32.00 GiB); "
        "--gradient_checkpointing true (about 22.78 GiB); "
        "--max_completion_length 192 (about 38.00 GiB); "
        "--quantization 4bit (about 38.32 GiB, not enough alone)"
    )


def test_what_is_done_already_or_cannot_be_done_is_not_named() -> None:
    from dataclasses import replace

    alone = replace(
        SETTINGS,
        batch=("--sft_batch_size", 1),
        accumulation=None,
        checkpointing=("--gradient_checkpointing", True),
        on_gpu=False,
    )
    line = advice(Memory(39 * GIB, 40 * GIB, 40 * GIB), alone)
    assert "--sft_batch_size" not in line and "4bit" not in line and "checkpointing" not in line
    assert line.endswith("change one or more of: a smaller --model_name")


def test_the_shape_of_a_model(tiny_model: BuildModel) -> None:
    shape = shape_of(new_adapter(load_model(str(tiny_model("llama"))), 4, seed=0))
    weights = 2 * (4 * 32 * 32 + 3 * 32 * 64)
    assert shape == Shape(2, 32, 400, 4, matrix_weights=weights, matrix_bytes=4 * weights)


def test_which_errors_are_out_of_memory_and_what_they_tried() -> None:
    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 40")
    cpu = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error code 12")
    assert is_out_of_memory(cuda) and tried_bytes(cuda) == int(2.5 * GIB)
    assert is_out_of_memory(cpu) and tried_bytes(cpu) == 4096
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory")) and tried_bytes(RuntimeError("other")) == 0
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and not is_out_of_memory(
        ValueError("out of memory")
    )
