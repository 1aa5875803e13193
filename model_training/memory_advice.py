"""What to change when memory runs out, with the values that would fit, computed from what was measured.

Memory of a step is taken as

    weights + batch x growth        growth = (peak + what could not be allocated - weights) / batch

bytes a record, which is a lower bound where the step failed: more might have followed. Then

    batch            the largest divisor of the batch with which that fits; accumulation keeps the global batch
    checkpointing    a record keeps the input of each layer, and one layer's share of the rest at a time
    length           growth in proportion to a record's tokens
    4 bit            the matrices of the layers take 4.127 bits a weight (normal floats, doubly quantized scales)

each alone; what would not be enough says so. FREE of the memory is left alone, for fragments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model_training.memory import GIB, Memory

FREE = 0.05
"""Of all memory."""
BITS = 4.127
"""Of a weight in 4 bit."""
UNMEASURED = (
    "out of memory before a step could be measured; lower the per-device batch size or the longest length, turn on "
    "gradient checkpointing, or load the model with --quantization 4bit: --dry_run measures what a step takes"
)


@dataclass(frozen=True)
class Shape:
    """Of the model, as far as memory goes."""

    layers: int
    hidden: int
    vocabulary: int
    activation_bytes: int
    """Of a number: 4 in float32, 2 in half precision."""
    matrix_weights: int
    """Numbers in the layers' matrices."""
    matrix_bytes: int
    """What they take now."""


@dataclass(frozen=True)
class Settings:
    """The four settings of a training: names and values."""

    batch: tuple[str, int]
    accumulation: tuple[str, int] | None
    """None where there is none: then the step has fewer records."""
    checkpointing: tuple[str, bool]
    length: tuple[str, int]
    tokens: int
    """Of the longest record."""
    shape: Shape
    on_gpu: bool


def shape_of(model: Any) -> Shape:
    """Of a causal LM or a classifier, bare or wrapped."""
    from model_training.pairs import bare_model

    bare = bare_model(model)
    config = bare.config.get_text_config()
    matrices = [
        weight
        for name, weight in bare.get_decoder().named_parameters()
        if weight.ndim == 2 and "lora_" not in name and "embed" not in name and ".wte." not in name
    ]
    quantized = any(weight.element_size() == 1 for weight in matrices)
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        activation_bytes=bare.dtype.itemsize,
        matrix_weights=0 if quantized else sum(weight.numel() for weight in matrices),
        matrix_bytes=sum(weight.nbytes for weight in matrices),
    )


def growth(memory: Memory, batch: int, tried: int = 0) -> float:
    """Bytes a record of a step takes, at least."""
    return max(memory.peak + tried - memory.weights, 0) / batch


def batch_that_fits(memory: Memory, batch: int, each: float) -> int:
    """The largest divisor of the batch, below it, that fits; 1 if none does."""
    room = (1 - FREE) * memory.total - memory.weights
    return next((size for size in range(batch - 1, 1, -1) if batch % size == 0 and size * each <= room), 1)


def growth_with_checkpointing(shape: Shape, tokens: int, each: float) -> float:
    """Bytes a record takes if only the layers' inputs are kept."""
    inputs = tokens * shape.hidden * shape.layers * shape.activation_bytes
    logits = min(tokens * shape.vocabulary * 4, each)
    return min(each, inputs + logits + (each - logits) / shape.layers)


def length_that_fits(memory: Memory, settings: Settings, each: float) -> int | None:
    """The longest length, a multiple of 8, with which the present batch fits; None if there is none."""
    room = (1 - FREE) * memory.total - memory.weights
    tokens = int(room / (settings.batch[1] * each / settings.tokens))
    value = (settings.length[1] - max(settings.tokens - tokens, 0)) // 8 * 8
    return value if 0 < value < settings.length[1] else None


def freed_by_4bit(shape: Shape) -> float:
    """Bytes; 0 for a model that is quantized already."""
    return max(shape.matrix_bytes - shape.matrix_weights * BITS / 8, 0) if shape.matrix_weights else 0


def advice(memory: Memory, settings: Settings, tried: int = 0) -> str:
    """One line: what was measured, and each setting with the value that would fit and what it would take."""
    name, batch = settings.batch
    each = growth(memory, batch, tried)
    needed = memory.weights + batch * each
    limit = (1 - FREE) * memory.total

    def about(bytes_needed: float) -> str:
        enough = "" if bytes_needed <= limit else ", not enough alone"
        return f"(about {bytes_needed / GIB:.2f} GiB{enough})"

    ways = []
    if batch > 1:
        fits = batch_that_fits(memory, batch, each)
        option = f"{name} {fits}"
        if settings.accumulation is not None:
            option += f" {settings.accumulation[0]} {settings.accumulation[1] * batch // fits}"
        ways.append(f"{option} {about(memory.weights + fits * each)}")
    if not settings.checkpointing[1]:
        less = growth_with_checkpointing(settings.shape, settings.tokens, each)
        ways.append(f"{settings.checkpointing[0]} true {about(memory.weights + batch * less)}")
    length = length_that_fits(memory, settings, each) if each else None
    if length is not None:
        share = (settings.tokens - settings.length[1] + length) / settings.tokens
        ways.append(f"{settings.length[0]} {length} {about(memory.weights + batch * each * share)}")
    freed = freed_by_4bit(settings.shape)
    if freed and settings.on_gpu:
        ways.append(f"--quantization 4bit {about(needed - freed)}")
    return (
        f"{needed / GIB:.2f} GiB or more were needed of {memory.total / GIB:.2f}, {memory.weights / GIB:.2f} of them "
        f"before the first step and {each / GIB:.3f} for each of {batch} records of up to {settings.tokens} tokens; "
        f"change one or more of: {'; '.join(ways) or 'a smaller --model_name'}"
    )
