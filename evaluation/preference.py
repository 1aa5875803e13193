"""Measure reward models side by side on held-out pairs, and on prompts whose unsafe answer was made to be liked.

    python main.py --task preference --mode evaluate --reward_model_checkpoints runs/base runs/mv \\
        --data_path preference_pairs.jsonl --jailbreak_path jailbreaks.jsonl --output_dir runs/mv
    python main.py --task preference --mode evaluate --from_outputs eval_results_both.jsonl jailbroken_outputs.jsonl

pairs -> raw outputs of each model -> scores of each pair -> estimates -> files and tables

What is measured stands in preference_measures.py, the formulas in model_training/preference_losses.py, the intervals in
statistics.py. The alpha-quantile of the reward (`--alpha`) is the risk-averse reward, and `--alphas` give the curve of
what more or less aversion costs. Models are loaded one at a time, all on the same pairs; differences of each later
model from the first are paired. With `--from_outputs` nothing is loaded: saved outputs, ours or the published code's
(preference_outputs.py), give the same numbers; `--data_subset` and `--num_pairs` choose among those pairs, too.

The jailbreak protocol takes a file of {"prompt": text or messages, "responses": [safe, unsafe]}.

Writes preference_items.jsonl (each model's outputs and scores of each pair) and preference_jailbreak.jsonl (the rows
with each model's outputs), then preference.json, in OUTPUT_DIR/evaluation. The three are one evaluation: what an
earlier one left there is replaced, only not by saved outputs what models were loaded for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluation.preference_measures import (
    Metrics,
    Scores,
    groups,
    jailbreak_differences,
    jailbreak_metrics,
    pair_differences,
    pair_metrics,
    reliability,
    risk_curve,
    scores,
    truth_metrics,
    widest,
)
from evaluation.preference_outputs import (
    CHOSEN,
    MODEL_FIELDS,
    PREFIX,
    REJECTED,
    JailbreakOutputs,
    PairOutputs,
    SavedOutputs,
    drawn,
    read_outputs,
    stored,
)
from evaluation.preference_scoring import about, read_inputs, scored
from evaluation.preference_tables import printed
from model_training.backends import settle
from model_training.models import set_threads
from model_training.preference_config import EvaluatePreferenceConfig
from utils.errors import UserError
from utils.files import disk_error, write_atomic, write_json_atomic

Record = dict[str, Any]

REPORT, ITEMS, JAILBREAKS = "preference.json", "preference_items.jsonl", "preference_jailbreak.jsonl"


@dataclass(frozen=True)
class Measured:
    """One model: its raw outputs and their scores, on pairs, jailbreak rows or both; the latter are the same for all
    models."""

    about: dict[str, Any]
    pairs: PairOutputs | None
    pair_scores: Scores | None
    jailbreaks: JailbreakOutputs | None
    jailbreak_scores: Scores | None


def evaluate(config: EvaluatePreferenceConfig) -> None:
    """Run the stage; see the module's docstring for its order."""
    if bool(config.from_outputs) == bool(config.reward_model_checkpoints):
        raise UserError(
            "give either --reward_model_checkpoints, models to load, or --from_outputs, their saved outputs"
        )
    set_threads(config.threads)
    if config.from_outputs:
        _keep_what_models_gave(config)
        found, abouts = saved(config), {}
        folder = output_folder(config)
    else:
        config = settle(config)
        inputs = read_inputs(config)
        folder, abouts = output_folder(config), about(inputs)
        found = scored(config, inputs)
    names = dict.fromkeys([*found.pairs, *found.jailbreaks])
    models = {name: measured(found, name, abouts.get(name, {}), config.alpha) for name in names}
    report = summary(config, models)
    write(folder, report, models)
    print(printed(report))
    print(f"\n{folder / REPORT}: these numbers, by category too; the raw rows stand beside it")


# --- saved outputs ----------------------------------------------------------------------------------------------------


def saved(config: EvaluatePreferenceConfig) -> SavedOutputs:
    """The outputs of --from_outputs, of the pairs that the options choose."""
    if config.jailbreak_path:
        raise UserError(
            "--jailbreak_path is scored by models; with --from_outputs, name the file of their saved jailbreak outputs"
        )
    found = read_outputs(config.from_outputs, config.reward_model_names, config.skip_invalid)
    pairs = {}
    for name, of_model in found.pairs.items():
        places = list(range(len(of_model.records)))
        if config.data_subset != "both":
            places = [place for place in places if of_model.records[place].get("data_subset") == config.data_subset]
        if not places:
            there = ", ".join(sorted({str(record.get("data_subset")) for record in of_model.records}))
            raise UserError(
                f"--data_subset {config.data_subset}: the saved outputs of {name} have no such pair; they have: {there}"
            )
        places = drawn(places, config.num_pairs, config.seed)
        records = [of_model.records[place] for place in places]
        pairs[name] = PairOutputs(of_model.kind, of_model.likelihood, records, of_model.outputs[places])
    of_first = next(iter(found.jailbreaks.values()), None)
    other = next((name for name, of in found.jailbreaks.items() if of_first and of.rows != of_first.rows), None)
    if other:
        raise UserError(
            f"--from_outputs: the jailbreak rows of {other} are not those of {next(iter(found.jailbreaks))}; "
            "measure models on different prompts apart"
        )
    return SavedOutputs(pairs, found.jailbreaks)


# --- numbers ----------------------------------------------------------------------------------------------------------


def measured(found: SavedOutputs, name: str, about: dict[str, Any], alpha: float) -> Measured:
    """One model's outputs with their scores. The likelihood says nothing of a jailbreak."""
    pairs, jailbreaks = found.pairs.get(name), found.jailbreaks.get(name)
    return Measured(
        about,
        pairs,
        None if pairs is None else scores(pairs.kind, pairs.outputs, alpha, pairs.likelihood),
        jailbreaks,
        None if jailbreaks is None else scores(jailbreaks.kind, jailbreaks.outputs, alpha, "probit"),
    )


def summary(config: EvaluatePreferenceConfig, models: dict[str, Measured]) -> dict[str, Any]:
    """What evaluation/preference.json holds."""
    first = next(iter(models))
    return {
        "task": "preference",
        "config": asdict(config),
        "models": {name: model_summary(config, model) for name, model in models.items()},
        "paired": {
            f"{name} - {first}": found
            for name, model in models.items()
            if name != first and (found := differences(model, models[first], config.seed))
        },
    }


def model_summary(config: EvaluatePreferenceConfig, model: Measured) -> dict[str, Any]:
    """One model's part of the report."""
    pairs, of = model.pairs, model.pair_scores
    kind = pairs.kind if pairs else model.jailbreaks.kind if model.jailbreaks else None
    entry: dict[str, Any] = {"kind": kind, **model.about, "metrics": {}}
    by_subset = groups(pairs.records, ["data_subset"]) if pairs else {}
    if pairs and of:
        by_category = groups(pairs.records)
        entry["likelihood"] = pairs.likelihood if kind == "mean_and_variance" else None
        entry["metrics"] |= pair_metrics(of, config.seed) | truth_metrics(of, pairs.records, config.seed)
        entry["by_category"] = {name: pair_metrics(of.of(inside), config.seed) for name, inside in by_category.items()}
        entry["reliability"] = reliability(of.win)
        entry["widest"] = [
            {"pair_spread": float(of.pair_spread[index]), **item(index, pairs.records[index], of)}
            for index in widest(of, config.num_widest)
        ]
    if model.jailbreak_scores:
        entry["metrics"] |= jailbreak_metrics(model.jailbreak_scores)
    entry["risk_curve"] = risk_curve(of, model.jailbreak_scores, by_subset, config.alphas)
    return entry


def differences(model: Measured, first: Measured, seed: int) -> Metrics:
    """This model minus the first, on whatever both were measured on; nothing where their rows differ."""
    found: Metrics = {}
    if model.pair_scores and first.pair_scores and _records(model) == _records(first):
        found |= pair_differences(model.pair_scores, first.pair_scores, seed)
    if model.jailbreak_scores and first.jailbreak_scores:
        found |= jailbreak_differences(model.jailbreak_scores, first.jailbreak_scores, seed)
    return found


def _records(model: Measured) -> list[Record]:
    return model.pairs.records if model.pairs else []


# --- files ------------------------------------------------------------------------------------------------------------


def output_folder(config: EvaluatePreferenceConfig) -> Path:
    """OUTPUT_DIR/evaluation, made before the work, so that a disk that takes nothing is known at once."""
    folder = Path(config.output_dir) / "evaluation"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(folder, error) from error
    return folder


def _keep_what_models_gave(config: EvaluatePreferenceConfig) -> None:
    """Refuse to write onto the saved outputs themselves, or over what models were loaded for."""
    folder = Path(config.output_dir) / "evaluation"
    targets = {(folder / name).resolve() for name in (ITEMS, JAILBREAKS)}
    for path in config.from_outputs:
        if Path(path).resolve() in targets:
            raise UserError(f"--from_outputs {path}: it would be written anew; give another --output_dir")
    if _is_of_models(folder / REPORT):
        raise UserError(f"{folder / REPORT} was measured on loaded models and is kept; give another --output_dir")


def _is_of_models(report: Path) -> bool:
    if not report.is_file():
        return False
    try:
        config = json.loads(report.read_bytes()).get("config", {})
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{report}: no evaluation that can be read; give another --output_dir") from error
    return not config.get("from_outputs")


def item(index: int, record: Record, of: Scores) -> dict[str, Any]:
    """One pair with its scores."""
    named = {"mean": of.mean, "spread": of.spread, "risk": of.risk}
    row: dict[str, Any] = {"index": index, **{key: value for key, value in record.items() if key not in MODEL_FIELDS}}
    for column, side in enumerate(("chosen", "rejected")):
        row |= {f"{name}_{side}": float(values[index, column]) for name, values in named.items()}
    return row


def item_rows(name: str, pairs: PairOutputs, of: Scores) -> Iterator[dict[str, Any]]:
    """The rows of preference_items.jsonl of one model."""
    for index, (record, (chosen, rejected)) in enumerate(zip(pairs.records, stored(pairs.outputs), strict=True)):
        about = {"reward_model_type": pairs.kind, "likelihood": pairs.likelihood}
        outputs = {CHOSEN: chosen, REJECTED: rejected}
        yield {"model": name, **item(index, record, of), **about, **outputs}


def jailbreak_rows(models: dict[str, Measured]) -> list[dict[str, Any]]:
    """The rows of preference_jailbreak.jsonl, each with the outputs of all models."""
    measured_on = {name: model.jailbreaks for name, model in models.items() if model.jailbreaks}
    if not measured_on:
        return []
    rows = [dict(row) for row in next(iter(measured_on.values())).rows]
    for name, jailbreaks in measured_on.items():
        for row, outputs in zip(rows, stored(jailbreaks.outputs), strict=True):
            row[PREFIX + name] = outputs
    return rows


def write(folder: Path, report: dict[str, Any], models: dict[str, Measured]) -> None:
    """The raw rows, then the report."""
    items = [
        row
        for name, model in models.items()
        if model.pairs and model.pair_scores
        for row in item_rows(name, model.pairs, model.pair_scores)
    ]
    for file, rows in ((ITEMS, items), (JAILBREAKS, jailbreak_rows(models))):
        if rows:
            write_atomic(folder / file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        else:
            (folder / file).unlink(missing_ok=True)
    write_json_atomic(folder / REPORT, report)
