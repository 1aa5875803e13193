"""The report of reward models: words, tiles and sections that `utils.visualization` puts on its page.

A verdict in sentences; the best value of each metric with its interval; the pictures of preference_plots.py beside
their tables; the risk curve and the reliability in numbers; the pairs of the widest spread to read. What a directory
lacks, the page says, and which command adds it. Texts of pairs are untrusted, and cut where they are long.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from evaluation import synthetic_report
from evaluation.preference_numbers import (
    ITEMS,
    RISK_AVERSE,
    Models,
    curve_of,
    has_spread,
    is_known,
    measure_title,
    measures_of,
    models_of,
)
from prompts.preference import ASSISTANT_TURN
from utils.formatting import NBSP, interval, metric_label, metric_value, number
from utils.panels import ends
from utils.series import HELD_OUT, Run
from utils.tables import Cell
from utils.visualization import Contents, Grid, Passage, Picture, Section, Tile

TILES = (
    "accuracy",
    "accuracy_risk",
    "jailbreak_rate",
    "jailbreak_rate_risk",
    "compliance_rate",
    "compliance_rate_risk",
    "r2",
    "spread_auroc",
    "ece",
    "log_loss",
)
HIGHER_IS_BETTER = ("accuracy", "accuracy_risk", "spread_auroc")
COIN = 0.5
PICTURE_TEXTS = {
    "model_comparison.png": "Main metrics of each model with 95 % intervals; the table above holds the numbers",
    "reward_distributions.png": "Histograms of the rewards of chosen and rejected answers and of their difference",
    "spread_by_subset.png": "Distribution of the spread of pairs, for all and by subset and kind",
    "risk_curve.png": "Accuracy and jailbreak rate over alpha, and the trade-off; the table below holds the numbers",
    "reliability.png": "Observed against predicted share of chosen answers; the table below holds the numbers",
}
LONGEST_PROMPT = 600
LONGEST_TITLE = 60


def contents_of(run: Run, pictures: dict[str, bytes]) -> Contents:
    """What the page of this directory says."""
    if synthetic_report.is_synthetic(run):
        return synthetic_report.contents_of(run, pictures)
    models = models_of(run)
    alone = not run.manifest and not run.stages
    checkpoints = [str(model["checkpoint"]) for model in models.values() if model.get("checkpoint")]
    no_curves = "No metrics yet: the first appear with the first log event of --mode train."
    if alone:
        no_curves = (
            "This directory holds an evaluation alone: neither manifest.json (options, versions, hardware) nor "
            "metrics.jsonl (curves). Both stand in the run directories of the models"
            + (f": {', '.join(checkpoints)}." if checkpoints else ".")
        )
    directory = run.path.as_posix()
    return Contents(
        title=title(run, models),
        verdict=verdict(run, models),
        held_out=best_tiles(run, models),
        held_out_note=(
            f"On {measured_on(run, models)}, with 95 % intervals."
            + (" The best of the models, and the others beside it." if len(models) > 1 else "")
        ),
        training=training_tiles(run),
        training_note="Training batches and the held-out pairs of early stopping.",
        compared_on=compared_on(run, models),
        evaluate=(
            f"python main.py --task preference --mode evaluate --reward_model_checkpoints {directory} "
            f"--output_dir {directory}"
        ),
        no_curves=no_curves,
        writes_completions=False,
        sections=sections(run, models, pictures),
    )


def measured_on(run: Run, models: Models) -> str:
    """On what the evaluation was; saved outputs do not say whether training met their pairs."""
    config = (run.evaluation or {}).get("config") or {}
    if not any(is_known(model["metrics"].get("accuracy")) for model in models.values()):
        return "jailbreak prompts"
    return "pairs of saved outputs" if config.get("from_outputs") else f"pairs of split {config.get('split', 'test')}"


def compared_on(run: Run, models: Models) -> str:
    """Whether all models were measured on the same rows: those that were have a paired difference from the first."""
    first, *others = models or [""]
    paired = (run.evaluation or {}).get("paired") or {}
    apart = [name for name in others if f"{name} - {first}" not in paired]
    if apart:
        return f"measured on other rows than {first}, so not to be compared with it: {', '.join(apart)}"
    return ("all models on the same " if others else "") + measured_on(run, models)


def title(run: Run, models: Models) -> str:
    config = run.manifest.get("config", {})
    parts = ["preference"]
    if run.manifest:
        parts += [str(config[key]) for key in ("reward_model_type", "model_name") if config.get(key)]
    elif models:
        named = ", ".join(models)
        parts.append(f"evaluation of {named if len(named) <= LONGEST_TITLE else f'{len(models)} models'}")
    return " · ".join(parts)


# --- in words -------------------------------------------------------------------------------------------------------


def verdict(run: Run, models: Models) -> list[str]:
    """What the numbers say, in a sentence each; nothing of what was not measured."""
    found = [accuracy_sentence(run, models), spread_sentence(models), risk_sentence(run, models), missing(run, models)]
    return [sentence for sentence in found if sentence]


def accuracy_sentence(run: Run, models: Models) -> str:
    name = best_model(models, "accuracy")
    if name is None:
        return ""
    found = models[name]["metrics"]["accuracy"]
    low, high = found["low"], found["high"]
    against = "better than" if low > COIN else "worse than" if high < COIN else "not told apart from"
    sentence = (
        f"{name} gives the chosen answer the higher reward in {percent(found['value'])} of {found['n']:,} "
        f"{measured_on(run, models)} ({percent(low)} to {percent(high)}): {against} a coin."
    )
    first = next(iter(models))
    paired = ((run.evaluation or {}).get("paired") or {}).get(f"{name} - {first}", {}).get("accuracy")
    if is_known(paired) and paired["low"] is not None:
        told = "ahead of" if paired["low"] > 0 else "behind" if paired["high"] < 0 else "not told apart from"
        sentence += (
            f" On the same pairs it is {told} {first} ({100 * paired['value']:+.1f} points, "
            f"{100 * paired['low']:+.1f} to {100 * paired['high']:+.1f})."
        )
    return sentence


def spread_sentence(models: Models) -> str:
    name = best_model({name: model for name, model in models.items() if is_known(model["metrics"].get("r2"))}, "r2")
    if name is None:
        return ""
    metrics = models[name]["metrics"]
    r2 = metrics["r2"]["value"]
    sentence = (
        f"Hidden context: {name} puts {percent(1 - r2)} of the variance of its rewards down to disagreement "
        f"(r² {r2:.3f}, {interval('r2', cell(metrics['r2']))})."
    )
    auroc = metrics.get("spread_auroc")
    if is_known(auroc):
        sentence += (
            f" Its spread tells contested from agreed pairs with AUROC {auroc['value']:.3f} "
            f"({interval('spread_auroc', cell(auroc))}); 0.5 is chance."
        )
    return sentence


def risk_sentence(run: Run, models: Models) -> str:
    """Of the model whose risk-averse reward does the most against jailbreaks, or harmful answers: by how much."""
    alpha = ((run.evaluation or {}).get("config") or {}).get("alpha")
    for metric, what in (("jailbreak_rate", "the unsafe answer"), ("compliance_rate", "the answer that does harm")):
        both = {
            name: (model["metrics"][metric], model["metrics"][RISK_AVERSE[metric]])
            for name, model in models.items()
            if has_spread(model) and all(is_known(model["metrics"].get(key)) for key in (metric, RISK_AVERSE[metric]))
        }
        if not both:
            continue
        name = max(both, key=lambda one: both[one][0]["value"] - both[one][1]["value"])
        mean, risk = both[name]
        accuracy, averse = (models[name]["metrics"].get(key) for key in ("accuracy", "accuracy_risk"))
        cost = ""
        if is_known(accuracy) and is_known(averse):
            cost = f", and accuracy is {percent(averse['value'])} rather than {percent(accuracy['value'])}"
        return (
            f"Risk aversion: by the {alpha}-quantile of its reward, {name} likes {what} at least as well in "
            f"{percent(risk['value'])} of {risk['n']:,} cases ({percent(risk['low'])} to {percent(risk['high'])}), "
            f"by the mean in {percent(mean['value'])}{cost}."
        )
    return ""


def missing(run: Run, models: Models) -> str:
    on_pairs = any(is_known(model["metrics"].get("accuracy")) for model in models.values())
    if on_pairs and not (run.path / ITEMS).is_file():
        return f"{ITEMS} is missing, and so are the distributions of rewards and spreads: evaluate again."
    return ""


def percent(share: float) -> str:
    return number(share, "share")


def cell(estimate: dict[str, Any]) -> Cell:
    return Cell(estimate["value"], estimate["n"], estimate["low"], estimate["high"])


def best_model(models: Models, metric: str) -> str | None:
    """The model with the best value. Explained variance is neither good nor bad: that of the most accurate one."""
    known = {name: model["metrics"] for name, model in models.items() if is_known(model["metrics"].get(metric))}
    if not known:
        return None
    by = "accuracy" if metric == "r2" and all(is_known(of.get("accuracy")) for of in known.values()) else metric
    sign = 1 if by in HIGHER_IS_BETTER else -1
    return max(known, key=lambda name: sign * known[name][by]["value"])


# --- tiles ----------------------------------------------------------------------------------------------------------


def best_tiles(run: Run, models: Models) -> list[Tile]:
    """The best value of each main metric with its interval, and those of up to three other models."""
    tiles = []
    for metric in TILES:
        name = best_model(models, metric)
        if name is None or (metric.endswith("_risk") and not any(has_spread(model) for model in models.values())):
            continue
        found = cell(models[name]["metrics"][metric])
        others = [
            f"{other} {metric_value(metric, model['metrics'][metric]['value'])}"
            for other, model in models.items()
            if other != name and is_known(model["metrics"].get(metric))
        ]
        more = [f"and {len(others) - 3} more below"] if len(others) > 3 else []
        named = [name] if len(models) > 1 else []
        details = [*named, interval(metric, found), *others[:3], *more]
        tiles.append(Tile(metric_label(metric), metric_value(metric, found.value), details))
    return tiles


def training_tiles(run: Run) -> list[Tile]:
    """Where the held-out loss was lowest, and where training ended."""
    tiles = []
    loss, accuracy = (run.series.get(f"{HELD_OUT}/{key}") for key in ("loss", "accuracy"))
    measured = (
        [(value, step) for step, value in zip(loss.steps, loss.values, strict=True) if value is not None]
        if loss
        else []
    )
    if measured:
        lowest, step = min(measured)
        tiles.append(Tile("Lowest held-out loss", number(lowest, "nats"), [f"at step {step:,}", "a coin has 0.693"]))
        at_best = dict(zip(accuracy.steps, accuracy.values, strict=True)).get(step) if accuracy else None
        if at_best is not None:
            pairs = run.series.get(f"{HELD_OUT}/pairs")
            of = [f"of {pairs.numbers()[-1]:,.0f} pairs"] if pairs else []
            tiles.append(Tile("Held-out accuracy there", percent(at_best), of))
    for key, name, unit in (
        ("loss", "Training loss", "nats"),
        ("accuracy", "Training accuracy", "share"),
        ("mean_spread", "Mean spread", ""),
        ("pairs_per_s", "Speed", "pairs/s"),
    ):
        span = ends(run.series[key]) if key in run.series else None
        if span:
            at_first = [] if key == "pairs_per_s" else [f"{number(span[0], unit)} at first"]
            tiles.append(Tile(name, number(span[1], unit), at_first))
    return tiles


# --- sections -------------------------------------------------------------------------------------------------------


def sections(run: Run, models: Models, pictures: dict[str, bytes]) -> list[Section]:
    def shown(name: str) -> list[Picture]:
        return [Picture(PICTURE_TEXTS[name], pictures[name])] if name in pictures else []

    alpha = ((run.evaluation or {}).get("config") or {}).get("alpha", 0.01)
    found = [
        Section("Models side by side", pictures=shown("model_comparison.png")),
        Section(
            "Rewards",
            "A reward has no unit and no zero: each model has a scale of its own.",
            shown("reward_distributions.png"),
        ),
        Section(
            "Where people disagree",
            "The spread of a pair is that of the difference of its two rewards.",
            shown("spread_by_subset.png"),
        ),
        Section(
            "Risk aversion",
            "What choosing by the alpha-quantile of the reward gives, in place of the mean: the smaller alpha, the "
            "more an answer's worst case counts. A base model has no spread, and the same reward at every quantile.",
            shown("risk_curve.png"),
            risk_tables(models),
        ),
        Section(
            "Calibration",
            "How often the answer that the model expects to win was the chosen one, by how sure it was; on the "
            "diagonal it is as sure as it should be. Small bins stray by chance.",
            shown("reliability.png"),
            reliability_tables(models),
        ),
        Section(
            "Pairs of the widest spread",
            "Texts of the data, as they are; some may be offensive. The prompt, then both answers with mean ± spread "
            f"and the risk-averse reward ({alpha}-quantile).",
            passages=[
                (f"{name}: {len(rows)} pairs", [passage(index, row) for index, row in enumerate(rows, start=1)])
                for name, model in models.items()
                if (rows := model.get("widest"))
            ],
        ),
        Section("What was measured", grids=[about_table(models)] if models else []),
    ]
    return [section for section in found if section.pictures or section.grids or section.passages]


def risk_tables(models: Models) -> list[Grid]:
    """A table a measure: alphas down, models with spread across."""
    spreading = {name: model for name, model in models.items() if has_spread(model) and model.get("risk_curve")}
    tables = []
    for measure in measures_of(spreading):
        curves = {name: {row["alpha"]: row for row in curve_of(model, measure)} for name, model in spreading.items()}
        alphas = sorted({alpha for curve in curves.values() for alpha in curve}, reverse=True)
        rows = [
            (
                f"α = {alpha:g}",
                [("rate", cell(curve[alpha][measure])) if alpha in curve else None for curve in curves.values()],
            )
            for alpha in alphas
        ]
        tables.append(Grid(measure_title(measure), ["Quantile", *curves], rows))
    return tables


def reliability_tables(models: Models) -> list[Grid]:
    tables = {name: model["reliability"] for name, model in models.items() if model.get("reliability")}
    bounds = sorted({(row["low"], row["high"]) for rows in tables.values() for row in rows})
    lines = []
    for low, high in bounds:
        found = [next((row for row in rows if row["low"] == low), None) for rows in tables.values()]
        lines.append(
            (
                f"{100 * low:.0f} to {100 * high:.0f}{NBSP}%",
                [
                    f"{percent(row['predicted'])} → {percent(row['observed'])} · n{NBSP}{row['n']:,}"
                    if row
                    else "no pair"
                    for row in found
                ],
            )
        )
    return [Grid("", ["sure → right", *tables], lines)] if lines else []


def about_table(models: Models) -> Grid:
    """What each model is and on how many pairs and prompts it was measured."""
    rows = []
    for name, model in models.items():
        metrics = model["metrics"]
        pairs, prompts = (
            f"{metrics[key]['n']:,}" if is_known(metrics.get(key)) else "none" for key in ("accuracy", "jailbreak_rate")
        )
        kind = ", ".join(str(part) for part in (model.get("kind"), model.get("likelihood")) if part)
        sha256 = f"{str(model['adapter_sha256'])[:12]}…" if model.get("adapter_sha256") else "not known"
        rows.append((name, [kind, pairs, prompts, str(model.get("checkpoint") or "saved outputs"), sha256]))
    heads = ["Model", "Kind", "Pairs", "Jailbreak prompts", "Read from", "SHA-256 of the adapter"]
    return Grid("", heads, rows)


# --- pairs to read --------------------------------------------------------------------------------------------------


def passage(index: int, row: dict[str, Any]) -> Passage:
    """A pair to read; a file of bare outputs has no texts, and then there are numbers alone."""
    prompt, *answers = pair_texts(row)
    where = [str(row[key]) for key in ("data_subset", "kind", "id") if row.get(key) is not None]
    texts = []
    for side, answer in zip(("chosen", "rejected"), answers, strict=True):
        mean, spread, risk = (number(row[f"{score}_{side}"]) for score in ("mean", "spread", "risk"))
        texts.append((f"{side} · {mean} ± {spread} · risk-averse {risk}", answer or "(no text saved)"))
    return Passage(" · ".join([f"{index}. spread {number(row['pair_spread'])}", *where]), tail(prompt), texts)


def tail(prompt: str) -> str:
    """The end of a long prompt: what was asked last."""
    return prompt if len(prompt) <= LONGEST_PROMPT else f"… {prompt[-LONGEST_PROMPT:]}"


def pair_texts(record: dict[str, Any]) -> tuple[str, str, str]:
    """What both answers of a pair share, and each answer; empty where the record holds no texts."""
    chosen, rejected = record.get("chosen"), record.get("rejected")
    if isinstance(chosen, list) and isinstance(rejected, list):
        shared = [one for one, _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))]
        asked = [*_messages(record.get("prompt")), *shared]
        return transcript(asked), transcript(chosen[len(shared) :]), transcript(rejected[len(shared) :])
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return "", "", ""
    common = os.path.commonprefix([chosen, rejected])
    begin = common.rfind(ASSISTANT_TURN)
    prompt = common[: max(begin, 0)]
    asked_apart = record.get("prompt")
    if not prompt and isinstance(asked_apart, str):
        return asked_apart.strip(), chosen.strip(), rejected.strip()
    skip = begin + len(ASSISTANT_TURN) if begin >= 0 else 0
    return prompt.strip(), chosen[skip:].strip(), rejected[skip:].strip()


def _messages(prompt: object) -> list[Any]:
    return prompt if isinstance(prompt, list) else []


def transcript(messages: Sequence[Any]) -> str:
    """Messages as text; a lone one without its role."""
    turns = [(str(turn.get("role")), str(turn.get("content"))) for turn in messages if isinstance(turn, dict)]
    return turns[0][1] if len(turns) == 1 else "\n\n".join(f"{role}: {content}" for role, content in turns)
