"""Reward outputs that were saved, read without loading any model: ours, and those of the published code.

    pairs      {"reward_output_chosen": [K numbers], "reward_output_rejected": [...], "data_subset": ..., ...}
               the published evaluation's rows: one model a file, named by the caller, else by the file
               {"model": name, ...the same}   evaluation/preference_items.jsonl: any number of models a file
    jailbreaks {"reward_outputs_<name>": [[K of the safe response], [K of the unsafe one]], ..., "prompt", "responses"}
               published rows and evaluation/preference_jailbreak.jsonl alike: any number of models a file

K says what kind of model it was: 1 base, 2 mean_and_variance, more categorical. Our own pairs say it themselves, and by
which likelihood a mean_and_variance model was trained; without a word it is the published code's, `logistic`.

Each fault of a file is reported as file:record (line): what is wrong; nothing is left out but by --skip_invalid.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch

from dataset.parsing import Fault, count_of, kind_of, read_items
from model_training.preference_losses import KINDS, Kind, Likelihood
from utils.errors import UserError

Record = dict[str, Any]
T = TypeVar("T")

PREFIX = "reward_outputs_"
CHOSEN, REJECTED = "reward_output_chosen", "reward_output_rejected"
MODEL_FIELDS = ("model", "index", "reward_model_type", "likelihood", CHOSEN, REJECTED)
SCORE_FIELDS = tuple(f"{name}_{side}" for name in ("mean", "spread", "risk") for side in ("chosen", "rejected"))
FAULTS_SHOWN = 20


@dataclass(frozen=True)
class PairOutputs:
    """What one model says of pairs: the records as they were given, and its raw outputs."""

    kind: Kind
    likelihood: Likelihood
    records: list[Record]
    outputs: torch.Tensor
    """(N, 2, K), float64: chosen, rejected."""


@dataclass(frozen=True)
class JailbreakOutputs:
    """What one model says of prompts with two responses."""

    kind: Kind
    rows: list[Record]
    """The rows without any model's outputs."""
    outputs: torch.Tensor
    """(N, 2, K), float64: safe, unsafe."""


@dataclass(frozen=True)
class SavedOutputs:
    """By the name of the model; a model may have both."""

    pairs: dict[str, PairOutputs]
    jailbreaks: dict[str, JailbreakOutputs]


def kind_of_outputs(count: int) -> Kind:
    """The kind of a model from its number of outputs."""
    return KINDS[min(count, 3) - 1]


def _kinds_of(outputs: int) -> tuple[Kind, ...]:
    """The kinds that a model with that many outputs may be: with two, a normal distribution or two atoms."""
    return ("mean_and_variance", "categorical") if outputs == 2 else (kind_of_outputs(outputs),)


def stored(outputs: torch.Tensor) -> list[list[list[float]]]:
    """Outputs (N, 2, K) as short numbers for a file: nine digits, of which float32 loses none."""
    return [[[float(f"{value:.9g}") for value in side] for side in row] for row in outputs.tolist()]


def drawn(things: list[T], count: int, seed: int) -> list[T]:
    """`count` of them by the seed, in their order; all for 0."""
    if not 0 < count < len(things):
        return things
    return [things[place] for place in sorted(random.Random(f"pairs {seed}").sample(range(len(things)), count))]


def read_outputs(paths: Sequence[str], names: Sequence[str] = (), skip_invalid: bool = False) -> SavedOutputs:
    """All saved outputs of some files. `names` are for the files that name no model, in their order.

    Raises:
        UserError: a file or row that cannot be read, outputs of several lengths for one model, a name that is missing,
            one too many, or taken.
    """
    if len(set(map(_real, paths))) < len(paths):
        raise UserError("--from_outputs: a file is named twice; name it once")
    pairs: dict[str, PairOutputs] = {}
    jailbreaks: dict[str, JailbreakOutputs] = {}
    unnamed: list[tuple[str, PairOutputs]] = []
    for path in paths:
        rows = _rows(Path(path), skip_invalid)
        if any(key.startswith(PREFIX) for key in rows[0]):
            _add(jailbreaks, _jailbreaks(rows), path)
        elif "model" in rows[0]:
            _add(pairs, _own_pairs(rows), path)
        else:
            unnamed.append((path, _pair_outputs(rows)))
    if names and len(names) != len(unnamed):
        nameless = f"{count_of(len(unnamed), 'file')} of --from_outputs without a model's name"
        files = f" ({', '.join(path for path, _ in unnamed)})" if unnamed else ": they name their models themselves"
        raise UserError(f"--reward_model_names gives {count_of(len(names), 'name')} for {nameless}{files}")
    chosen = names or [Path(path).name.split(".")[0] for path, _ in unnamed]
    for name, (path, outputs) in zip(chosen, unnamed, strict=True):
        _add(pairs, {name: outputs}, path)
    for name in pairs.keys() & jailbreaks.keys():
        if pairs[name].outputs.shape[-1] != jailbreaks[name].outputs.shape[-1]:
            raise UserError(f"--from_outputs: {name} names two models, by the number of their outputs; rename one")
    return SavedOutputs(pairs, jailbreaks)


def _add(found: dict[str, Any], new: dict[str, Any], path: str) -> None:
    for name in new:
        if name in found:
            raise UserError(
                f"{path}: two files hold outputs of a model {name!r} on the same kind of rows; "
                "give each model one name, with --reward_model_names where files have none"
            )
    found |= new


def _real(path: str) -> Path:
    return Path(path).resolve()


# --- rows to outputs ------------------------------------------------------------------------------------------------


def _own_pairs(rows: list[Record]) -> dict[str, PairOutputs]:
    names = dict.fromkeys(row["model"] for row in rows)
    return {name: _pair_outputs([row for row in rows if row["model"] == name]) for name in names}


def _pair_outputs(rows: list[Record]) -> PairOutputs:
    left_out = (*MODEL_FIELDS, *SCORE_FIELDS) if "model" in rows[0] else (CHOSEN, REJECTED)
    records = [{key: value for key, value in row.items() if key not in left_out} for row in rows]
    outputs = torch.tensor([[_list(row[CHOSEN]), _list(row[REJECTED])] for row in rows], dtype=torch.float64)
    inferred = kind_of_outputs(outputs.shape[-1])
    kind: Kind = rows[0].get("reward_model_type") or inferred
    likelihood: Likelihood = rows[0].get("likelihood", "logistic")
    return PairOutputs(kind, likelihood, records, outputs)


def _jailbreaks(rows: list[Record]) -> dict[str, JailbreakOutputs]:
    found = {}
    bare = [{key: value for key, value in row.items() if not key.startswith(PREFIX)} for row in rows]
    for key in rows[0]:
        if key.startswith(PREFIX):
            outputs = torch.tensor([[_list(side) for side in row[key]] for row in rows], dtype=torch.float64)
            found[key.removeprefix(PREFIX)] = JailbreakOutputs(kind_of_outputs(outputs.shape[-1]), bare, outputs)
    return found


def _list(value: Any) -> list[float]:
    return value if isinstance(value, list) else [value]


# --- files to rows --------------------------------------------------------------------------------------------------


def _rows(path: Path, skip_invalid: bool) -> list[Record]:
    """The rows of a file, all of one form, each model with one number of outputs."""
    if not path.exists():
        raise UserError(f"--from_outputs {path}: there is no such file; check the name")
    good: list[Record] = []
    faults: list[Fault] = []
    check: Callable[[Record], str | None] | None = None
    for item in read_items(path):
        if isinstance(item, Fault):
            faults.append(item)
            continue
        if not isinstance(item.value, dict):
            faults.append(Fault(item.record, item.line, f"is {kind_of(item.value)}, not an object"))
            continue
        check = check or _checker(item.value, f"{path}:record {item.record}")
        reason = check(item.value)
        if reason:
            faults.append(Fault(item.record, item.line, reason))
        else:
            good.append(item.value)
    if faults:
        listed = [f"{path}:{fault.place()}: {fault.reason}{fault.detail}" for fault in faults[:FAULTS_SHOWN]]
        if len(faults) > FAULTS_SHOWN:
            listed.append(f"and {count_of(len(faults) - FAULTS_SHOWN, 'fault')} more")
        if not skip_invalid or not good:
            way_out = "repair the file, or keep the good rows with --skip_invalid" if good else "repair the file"
            raise UserError("\n".join(listed) + f"; nothing was measured; {way_out}")
        print("\n".join([f"{path}: kept {len(good)} rows, left out {len(faults)}:", *listed]), file=sys.stderr)
    if not good:
        raise UserError(f"{path}: the array is empty: there is no row")
    return good


def _checker(first: Record, place: str) -> Callable[[Record], str | None]:
    """What is wrong with a row of a file that begins with this one; None: nothing."""
    models = {key for key in first if key.startswith(PREFIX)}
    if not models and CHOSEN not in first and REJECTED not in first:
        raise UserError(
            f"{place}: holds no reward outputs: neither {PREFIX}NAME nor {CHOSEN} and {REJECTED}; "
            "--from_outputs reads what an evaluation of reward models wrote"
        )
    usual: dict[str, tuple[int, object, object]] = {}

    def check(row: Record) -> str | None:
        if {key for key in row if key.startswith(PREFIX)} != models:
            return f"has not the outputs of the same models as the first row ({', '.join(sorted(models)) or 'none'})"
        if not models:
            return _own_fault(row, first) or _outputs_fault(row, usual)
        return next((fault for key in sorted(models) if (fault := _jailbreak_fault(row, key, usual))), None)

    return check


def _jailbreak_fault(row: Record, key: str, usual: dict[str, tuple[int, object, object]]) -> str | None:
    sides = row[key]
    if not isinstance(sides, list) or len(sides) != 2:
        return f"{key} is not a list of two: outputs of the safe response, then of the unsafe one"
    return _numbers_fault(sides[0], key) or _numbers_fault(sides[1], key) or _change(key, sides, None, None, usual)


def _outputs_fault(row: Record, usual: dict[str, tuple[int, object, object]]) -> str | None:
    for key in (CHOSEN, REJECTED):
        fault = _numbers_fault(row[key], key) if key in row else f"{key} is missing"
        if fault:
            return fault
    kind, likelihood, outputs = row.get("reward_model_type"), row.get("likelihood"), len(_list(row[CHOSEN]))
    if likelihood not in (None, *get_args(Likelihood)):
        return f"likelihood is not one of {', '.join(get_args(Likelihood))}"
    if kind is not None and kind not in _kinds_of(outputs):
        return f"reward_model_type is no kind of model with {count_of(outputs, 'reward output')}"
    return _change(str(row.get("model")), [row[CHOSEN], row[REJECTED]], kind, likelihood, usual)


def _change(
    model: str, sides: list[Any], kind: object, likelihood: object, usual: dict[str, tuple[int, object, object]]
) -> str | None:
    """What differs from the rows of this model before."""
    counts = [len(_list(side)) for side in sides]
    before = usual.setdefault(model, (counts[0], kind, likelihood))
    odd = next((count for count in counts if count != before[0]), None)
    if odd is not None:
        return f"has {count_of(odd, 'reward output')} where {before[0]} stand before"
    return None if (kind, likelihood) == before[1:] else "reward_model_type or likelihood differs from the rows before"


def _own_fault(row: Record, first: Record) -> str | None:
    """What is wrong with how our own rows name their model."""
    if ("model" in row) != ("model" in first):
        return (
            "names its model, as the first row does not" if "model" in row else "names no model, as the first row does"
        )
    if "model" in row and (not isinstance(row["model"], str) or not row["model"].strip()):
        return "model is not a name"
    return None


def _numbers_fault(value: Any, key: str) -> str | None:
    numbers = _list(value)
    if not numbers:
        return f"{key} is empty"
    for number in numbers:
        if not isinstance(number, int | float) or isinstance(number, bool):
            return f"{key} holds {kind_of(number)} where a number should stand: {json.dumps(number)[:30]}"
        if abs(number) > sys.float_info.max or math.isnan(number):
            return f"{key} holds a number that is not finite"
    return None
