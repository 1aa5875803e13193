"""What a value of an option may be: its type, whether it comes from a flag or from YAML, and its range.

`from_text` and `from_yaml` turn one given value into the field's type; `check_ranges` looks at the whole configuration.
Each refusal is one UserError that begins with where the value was given (`--lora_rank` or `run.yaml:3: lora_rank`).
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from model_training.processes import count
from utils.errors import UserError

EXPECTED: dict[type, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Option:
    """One field: `kind` is the type of the value, or of each value of a list."""

    name: str
    kind: type[str] | type[int] | type[float] | type[bool]
    choices: tuple[str, ...]
    many: bool
    optional: bool
    default: Any
    doc: str


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; `open` leaves the ends named in it out."""

    low: float
    high: float = math.inf
    open: str = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if "low" in self.open else value >= self.low
        return above and (value < self.high if "high" in self.open else value <= self.high)

    def __str__(self) -> str:
        above = f"above {self.low:g}" if "low" in self.open else f"at least {self.low:g}"
        if self.high == math.inf:
            return above
        return f"{above} and {'below' if 'high' in self.open else 'at most'} {self.high:.10g}"


POSITIVE = Range(0, open="low")
RANGES: dict[str, Range] = {
    "seed": Range(0, 2**32 - 1),
    "threads": Range(1),
    "max_seq_length": Range(2),
    "num_records": Range(1),
    "lora_rank": Range(1),
    "sft_steps": Range(0),
    "sft_learning_rate": POSITIVE,
    "sft_batch_size": Range(1),
    "max_steps": Range(0),
    "learning_rate": POSITIVE,
    "warmup_ratio": Range(0, 1),
    "adam_beta1": Range(0, 1, open="high"),
    "adam_beta2": Range(0, 1, open="high"),
    "weight_decay": Range(0),
    "max_grad_norm": Range(0),
    "per_device_train_batch_size": Range(1),
    "num_generations": Range(2),
    "gradient_accumulation_steps": Range(1),
    "max_completion_length": Range(1),
    "rollout_temperature": POSITIVE,
    "vllm_gpu_memory_utilization": Range(0, 1, open="low"),
    "beta": Range(0),
    "save_steps": Range(1),
    "logging_steps": Range(1),
    "completions_per_log": Range(0),
    "temperature": Range(0),
    "top_p": Range(0, 1),
    "max_new_tokens": Range(1),
    "num_samples": Range(1),
    "num_queries": Range(1),
    "batch_size": Range(1),
    "server_port": Range(0, 65535),
    "share_harmless": Range(0, 1),
    "test_share": Range(0, 1, open="high"),
    "num_train_epochs": POSITIVE,
    "per_device_eval_batch_size": Range(1),
    "lora_alpha": Range(1),
    "lora_dropout": Range(0, 1, open="high"),
    "num_atoms": Range(2),
    "entropy_coeff": Range(0),
    "variance_penalty": Range(0),
    "max_length": Range(2),
    "train_dataset_size": Range(0),
    "eval_dataset_size": Range(0),
    "eval_steps": Range(1),
    "early_stopping_patience": Range(0),
    "lr": POSITIVE,
    "num_iterations": Range(1),
    "num_pairs": Range(0),
    "num_widest": Range(0),
    "alpha": Range(0, 1, open="low high"),
    "alphas": Range(0, 1, open="low high"),
    "n_samples": Range(10, 100_000),
    "test_samples": Range(1, 100_000),
    "r": Range(1),
    "warmup_steps": Range(0),
    "launcher_retries": Range(0),
    "gpus_per_job": Range(0),
    "merge_rank": Range(0),
    "merge_density": Range(0, 1, open="low"),
    "fraction_of_data": Range(0, 1, open="low"),
    "num_runs": Range(1),
    "judge_checks": Range(0),
    "examples_per_query": Range(1),
    "attempts": Range(1),
    "max_tokens": Range(1),
    "start_step": Range(1, 4),
    "end_step": Range(1, 4),
    "concurrency": Range(1),
    "requests_per_minute": Range(1),
    "tokens_per_minute": Range(1),
    "request_timeout": POSITIVE,
    "max_retries": Range(0),
    "max_cost": POSITIVE,
}
"""By the option's name, which means the same in every mode; of a list, for each number. `reward_weights` may be any."""


# --- types ----------------------------------------------------------------------------------------------------------


def from_text(option: Option, given: str | list[str], origin: str) -> Any:
    """The value of a flag; a flag without a value is true."""
    if isinstance(given, list):
        return [_scalar(option, text, origin, origin) for text in given]
    return _scalar(option, given, origin, origin)


def from_yaml(option: Option, given: Any, place: str) -> Any:
    """The value of a YAML entry, of its very type: `yes` is no text, 1.0 no whole number."""
    origin = f"{place}: {option.name}"
    if given is None:
        if option.optional:
            return None
        raise UserError(f"{origin}: a value is missing; expected {_expected(option)}")
    if option.many:
        if not isinstance(given, list):
            raise UserError(f"{origin}: expected a list such as [a, b], not {given!r}")
        return [_typed(option, item, origin) for item in given]
    return _typed(option, given, origin)


def _typed(option: Option, given: Any, origin: str) -> Any:
    fits = (int, float) if option.kind is float else (option.kind,)
    if not isinstance(given, fits) or (isinstance(given, bool) and option.kind is not bool):
        quotes = "; put it in quotes" if option.kind is str and isinstance(given, (bool, int, float)) else ""
        raise UserError(f"{origin}: expected {_expected(option)}, not {given!r}{quotes}")
    return given if option.kind is bool else _scalar(option, str(given), origin, origin)


def _scalar(option: Option, text: str, origin: str, name: str) -> Any:
    if option.choices and text not in option.choices:
        raise UserError(f"{origin}: {text!r} is none of {listed(option.choices)}{near(text, option.choices)}")
    if not text.strip():
        raise UserError(f"{origin}: a value is missing; expected {_expected(option)}")
    try:
        value = {"true": True, "false": False}[text.lower()] if option.kind is bool else option.kind(text)
    except (KeyError, ValueError) as error:
        raise UserError(f"{origin}: expected {_expected(option)}, not {text!r}") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{origin}: expected a finite number, not {text!r}")
    return value


def _expected(option: Option) -> str:
    return f"one of {listed(option.choices)}" if option.choices else EXPECTED[option.kind]


def listed(names: Iterable[str], last: str = "and") -> str:
    *head, tail = names
    return f"{', '.join(head)} {last} {tail}" if head else tail


def near(name: str, names: Iterable[str]) -> str:
    """A question that names the most similar name, or nothing."""
    found = difflib.get_close_matches(name.replace("-", "_"), list(names), n=1)
    return f"; did you mean {found[0]}?" if found else ""


# --- ranges ---------------------------------------------------------------------------------------------------------


def check_ranges(config: Any, origins: Mapping[str, str]) -> None:
    """Refuse numbers out of their range and options that exclude each other. `origins` says where each was given."""
    values = asdict(config)

    def shown(name: str) -> str:
        return f"{origins.get(name, f'--{name}')} {values[name]}"

    for name, value in values.items():
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if name in RANGES and any(number not in RANGES[name] for number in numbers):
            raise UserError(f"{shown(name)}: it must be {RANGES[name]}")
    if "reward_funcs" in values:
        _check_rewards(values)
    if "num_generations" in values:
        _check_training(values, shown)
    if values.get("overwrite") and values.get("resume"):
        raise UserError("--overwrite and --resume exclude each other: start afresh, or continue")
    if "start_step" in values and values["start_step"] > values["end_step"]:
        raise UserError(f"{shown('start_step')} comes after {shown('end_step')}: no step is left to run")


def _check_rewards(values: dict[str, Any]) -> None:
    names, weights = values["reward_funcs"], values["reward_weights"]
    if not names:
        raise UserError("--reward_funcs is empty: name at least one reward")
    if weights is not None and len(weights) != len(names):
        raise UserError(f"--reward_weights has {len(weights)} numbers for {len(names)} rewards ({', '.join(names)})")


def _check_training(values: dict[str, Any], shown: Any) -> None:
    if values["sft_steps"] + values["max_steps"] == 0:
        raise UserError("--sft_steps and --max_steps are both 0: there is nothing to train; set one of them")
    if values["max_completion_length"] >= values["max_seq_length"]:
        raise UserError(
            f"{shown('max_completion_length')} leaves no room for a prompt in {shown('max_seq_length')}; "
            "lower the one or raise the other"
        )
    if values["max_steps"]:
        _check_groups(values, shown)


def _check_groups(values: dict[str, Any], shown: Any) -> None:
    """A step holds whole groups. WORLD_SIZE, the number of processes, is set in each of several; the process that is
    still to start them does not know it."""
    processes = count()
    if values.get("multi_gpu") and "WORLD_SIZE" not in os.environ:
        return
    device, steps, group = (
        values[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations")
    )
    if device * steps * processes % group:
        works = next(size for size in range(device, device + group) if size * steps * processes % group == 0)
        times = f" x {processes} processes" if processes > 1 else ""
        raise UserError(
            f"{shown('per_device_train_batch_size')} x {shown('gradient_accumulation_steps')}{times} is "
            f"{device * steps * processes}, no multiple of {shown('num_generations')}: a step holds whole groups; "
            f"--per_device_train_batch_size {works} works"
        )
