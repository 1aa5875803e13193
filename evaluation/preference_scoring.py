"""Raw outputs of trained reward models, loaded one at a time, on the same held-out pairs and jailbreak rows.

    inputs = read_inputs(config)
    outputs = scored(config, inputs)

Pairs that are longer than the `--max_length` of a model's training are left out for all, and counted. Outputs are
rounded to what a file keeps (nine digits), so that saved rows give the same numbers again.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dataset.pair_forms import Form
from dataset.parsing import count_of
from dataset.preference_sources import load_pairs
from dataset.records import load_records
from evaluation.preference_outputs import PREFIX, JailbreakOutputs, PairOutputs, SavedOutputs, drawn, stored
from evaluation.score import checkpoint_names, prompt_fault
from model_training.models import load_tokenizer
from model_training.preference_config import EvaluatePreferenceConfig
from model_training.reward_model import (
    RewardModel,
    encode_pairs,
    load_reward_model,
    read_note,
    reward_model_folder,
    score_pairs,
)
from prompts.preference import answered
from utils.errors import UserError, WorkError
from utils.files import sha256_file

Record = dict[str, Any]

BATCHES_AT_ONCE = 16
"""Between two reports of progress; pairs of like length meet in a batch within them."""
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Inputs:
    """What is scored, and by whom: directories of adapters by the name of the model."""

    checkpoints: dict[str, str]
    folders: dict[str, Path]
    records: list[Record]
    rows: list[Record]


def read_inputs(config: EvaluatePreferenceConfig) -> Inputs:
    """The pairs of --data_path and the rows of --jailbreak_path; refuses what no model needs to be loaded for.

    Raises:
        UserError: names or checkpoints that are wrong, faulty data, pairs of another form than the models', or nothing.
    """
    checkpoints = dict(zip(checkpoint_names(config), config.reward_model_checkpoints, strict=True))
    folders = {name: reward_model_folder(path) for name, path in checkpoints.items()}
    records = chosen_pairs(config, folders) if config.data_path else []
    path, skip = config.jailbreak_path, config.skip_invalid
    rows = load_records(path, jailbreak_fault, skip_invalid=skip) if path else []
    if not records and not rows:
        raise UserError("nothing to measure: give --data_path, --jailbreak_path or both")
    return Inputs(checkpoints, folders, records, rows)


def scored(config: EvaluatePreferenceConfig, inputs: Inputs) -> SavedOutputs:
    """The outputs of each model, one loaded at a time; a WorkError if one is not finite."""
    pairs, jailbreaks = {}, {}
    for number, (name, folder) in enumerate(inputs.folders.items()):
        if number:
            _free_memory()
        model = load_reward_model(folder, config.model_name, config.dtype, config.quantization)
        size = config.per_device_eval_batch_size
        if inputs.records:
            outputs = outputs_of(model, inputs.records, size, name)
            pairs[name] = PairOutputs(model.kind, model.likelihood, inputs.records, outputs)
        if inputs.rows:
            both = [as_pair(row, model.form) for row in inputs.rows]
            outputs = outputs_of(model, both, size, f"{name}, jailbreaks")
            jailbreaks[name] = JailbreakOutputs(model.kind, inputs.rows, outputs)
        del model
    return SavedOutputs(pairs, jailbreaks)


def about(inputs: Inputs) -> dict[str, dict[str, Any]]:
    """Where each model came from, for the report."""
    return {
        name: {
            "checkpoint": inputs.checkpoints[name],
            "adapter_sha256": sha256_file(folder / "adapter_model.safetensors"),
        }
        for name, folder in inputs.folders.items()
    }


def _free_memory() -> None:
    """What is left of the model before: its parts refer to each other, so only a collection takes them."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def as_pair(row: Record, form: Form) -> Record:
    """A jailbreak row as the pair to score, in the model's form: chosen is the safe response."""
    safe, unsafe = (answered(row["prompt"], response, form) for response in row["responses"])
    return {"chosen": safe, "rejected": unsafe}


def within_length(records: list[Record], folders: dict[str, Path]) -> list[Record]:
    """The pairs that no model's --max_length is too short for, as in training; says how many are left out."""
    kept = set(range(len(records)))
    for folder in folders.values():
        note = read_note(folder)
        pairs = encode_pairs(load_tokenizer(str(folder)), records, note["form"])
        kept -= {place for place, pair in enumerate(pairs) if max(map(len, pair)) > note["max_length"]}
    if not kept:
        raise UserError("every pair is longer than a model's --max_length; measure it on shorter ones")
    if len(kept) < len(records):
        out = count_of(len(records) - len(kept), "pair")
        print(f"left out {out} longer than the --max_length of a model's training", file=sys.stderr)
    return [records[place] for place in sorted(kept)]


def chosen_pairs(config: EvaluatePreferenceConfig, folders: dict[str, Path]) -> list[Record]:
    """The pairs of --split that are not too long for a model, as many as --num_pairs says."""
    loaded = load_pairs(config.data_path, config.data_subset, skip_invalid=config.skip_invalid)
    found = [record for record in loaded if record["split"] == config.split]
    if not found:
        there = ", ".join(sorted({record["split"] for record in loaded}))
        raise UserError(f"--split {config.split}: --data_path has no such pair; it has: {there}")
    return drawn(within_length(found, folders), config.num_pairs, config.seed)


def outputs_of(model: RewardModel, records: list[Record], batch_size: int, label: str) -> torch.Tensor:
    """Raw outputs of pairs, (N, 2, K): chosen, rejected; a WorkError if one is not finite."""
    parts = []
    for some in _with_progress(records, batch_size * BATCHES_AT_ONCE, label):
        chosen, rejected = score_pairs(model, some, batch_size)
        parts.append(torch.stack([chosen, rejected], dim=1).double())
    outputs = torch.cat(parts)
    finite = outputs.isfinite().flatten(1).all(1)
    if not finite.all():
        worst = int((~finite).nonzero()[0])
        raise WorkError(
            f"{label}: {int((~finite).sum())} of {len(records)} pairs have outputs that are not finite, first "
            f"pair {worst + 1} (id {records[worst].get('id')}); the reward model is broken, or overflows in its dtype"
        )
    return torch.tensor(stored(outputs), dtype=torch.float64)


def _with_progress(things: list[Record], size: int, label: str) -> Iterator[list[Record]]:
    """Slices, with progress on stderr: one line that counts on a terminal, else one every ten seconds."""
    terminal, last = sys.stderr.isatty(), time.monotonic()
    for start in range(0, len(things), size):
        yield things[start : start + size]
        done, now = min(start + size, len(things)), time.monotonic()
        if terminal:
            print(f"\r{label}: {done} of {len(things)} pairs", end="", file=sys.stderr, flush=True)
        elif now - last > SECONDS_BETWEEN_LINES:
            print(f"{label}: {done} of {len(things)} pairs", file=sys.stderr, flush=True)
            last = now
    if terminal:
        print(file=sys.stderr)


def jailbreak_fault(row: Record) -> str | None:
    """A prompt, and two responses: the safe one, then the unsafe one."""
    fault = prompt_fault(row.get("prompt"), "prompt")
    responses = row.get("responses")
    if fault:
        return fault
    if not isinstance(responses, list) or len(responses) != 2:
        return "responses is not a list of two: the safe response, then the unsafe one"
    if not all(isinstance(response, str) and response.strip() for response in responses):
        return "responses holds something that is no text, or an empty one"
    if any(key.startswith(PREFIX) for key in row):
        return f"holds {PREFIX}... already; give such a file to --from_outputs"
    return None
