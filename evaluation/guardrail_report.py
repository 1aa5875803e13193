"""The report of guardrails: words, tiles and sections that `utils.visualization` puts on its page.

A verdict in sentences; the tag and the judged behavior in tables of their own, the cost of an answer and the error of a
merge beside them; the pictures of guardrail_plots.py; replies of several models to the same prompts. What a directory
lacks, the page says, and which command adds it. Everything that a model wrote is untrusted.
"""

from __future__ import annotations

import csv
from typing import Any

from evaluation.guardrail_curves import chosen_step
from evaluation.guardrail_numbers import (
    BASE,
    BEHAVIOR_METRICS,
    ITEMS,
    ROUTED,
    SINGLE,
    TAG_METRICS,
    Guards,
    Models,
    is_guard_model,
    is_merge,
    metric,
    mode_of,
    read_items,
)
from evaluation.guardrail_passages import passages
from evaluation.statistics import Estimate
from model_training.guardrail_config import JOINT
from utils.formatting import interval, metric_label, metric_value, number
from utils.series import Run
from utils.tables import Cell, cell
from utils.visualization import Contents, Grid, Picture, Section, Tile

OF_EACH_GUARD = ("tag_recall", "behavior_recall", "resolution_rate", "tag_fpr_natural", "tag_fpr_hard", "tag_fpr_other")
TILES = (*OF_EACH_GUARD, "natural_accuracy", "persona_kept")
COMPARISON = "evaluation/variation_comparison_results.csv"
COMPARISON_COLUMNS = ("overall_accuracy", "behavior_accuracy", "natural_accuracy", "guard_tags", "composite_score")
LONGEST_TITLE = 60
CURVES = "learning_curves.png"
PICTURE_TEXTS = {
    CURVES: "Losses and held-out behavior of each adapter over steps, with the chosen checkpoint; charts below",
    "detection_efficiency.png": "Behavior and tag of each guard with and without adapters; the tables hold the numbers",
    "recall_vs_fpr.png": "Recall against false positives of each model, for the tag and for the behavior",
    "confusion_matrix.png": "Which guard's tag and resolution answered what, in per cent of each row",
    "guard_models.png": "Adapters beside guard models on the same prompts: recall and false positives of each guard",
    "variations.png": "Metrics of each way to answer, over variations or checkpoints",
}


def contents_of(of: Guards, pictures: dict[str, bytes]) -> Contents:
    """What the page of this directory says."""
    evaluated = of.run.evaluation or {}
    lead = leading(of)
    return Contents(
        title=title(of),
        verdict=verdict(of),
        held_out=tiles(of, lead) if lead else [],
        held_out_note=f"{lead} on {asked_on(of)}, with 95 % intervals; other models beside it.",
        training=training_tiles(of),
        training_note="Behavior on the validation split at the chosen checkpoint of each adapter.",
        compared_on=f"all models on the same {asked_on(of)}",
        evaluate=f"{command('evaluate', of)} --behavior all --adapter_mode all",
        tables=tables(of) if of.models else None,
        curves=[Picture(PICTURE_TEXTS[CURVES], pictures[CURVES])] if CURVES in pictures else [],
        no_curves=no_curves(of),
        writes_completions=False,
        sections=sections(of, pictures),
        recipes={"evaluation": {"task": "guardrail", "mode": "evaluate", "config": evaluated["config"]}}
        if isinstance(evaluated.get("config"), dict)
        else {},
    )


def command(mode: str, of: Guards) -> str:
    """A command for the directory that holds all runs, be this one of them."""
    directory = of.run.path.parent if of.run.manifest else of.run.path
    return f"python main.py --task guardrail --mode {mode} --output_dir {directory.as_posix()}"


def title(of: Guards) -> str:
    names = [of.run.path.name] if of.run.manifest else of.behaviors or list(of.trained)
    named = ", ".join(names)
    return f"guardrail · {named if len(named) <= LONGEST_TITLE else f'{len(names)} guards'}"


def asked_on(of: Guards) -> str:
    """`1,710 test prompts of vary_all, 3 answers each`."""
    evaluated = of.run.evaluation or {}
    prompts = evaluated.get("prompts") or {}
    count = sum(n for kinds in prompts.values() for n in kinds.values())
    text = f"{count:,} test prompts of {evaluated.get('test_variation', 'vary_all')}"
    return text + (f", {of.answers} answers each" if of.answers > 1 else "")


def leading(of: Guards) -> str | None:
    """The model that the page speaks of first: routed, or else the adapters by themselves, or joint."""
    by_mode = {mode_of(name): name for name in of.chief}
    return next((by_mode[mode] for mode in (ROUTED, SINGLE, JOINT) if mode in by_mode), None)


# --- in words -------------------------------------------------------------------------------------------------------


def verdict(of: Guards) -> list[str]:
    """What the numbers say, in a sentence or two each; nothing of what was not measured."""
    lead = leading(of)
    found = [*(lead_sentences(of, lead) if lead else []), merge_sentence(of), guard_model_sentence(of), *missing(of)]
    return [sentence for sentence in found if sentence]


def lead_sentences(of: Guards, lead: str) -> list[str]:
    model, base = of.models[lead], of.models.get(BASE)
    tag, behavior = (metric(model, name) for name in ("tag_recall", "behavior_recall"))
    parts = []
    if tag:
        parts.append(f"with the guard's tag {told(tag)}")
    if behavior:
        of_base = metric(base, "behavior_recall") if base else None
        parts.append(
            f"with the right behavior {told(behavior)}" + (f"; the base {percent(of_base)}" if of_base else "")
        )
    alarms = [
        f"{told(rate)} of {rows}"
        for name, rows in (
            ("tag_fpr_natural", "natural rows"),
            ("tag_fpr_hard", "hard negatives"),
            ("tag_fpr_other", "other guards' triggers"),
        )
        if (rate := metric(model, name))
    ]
    n = (tag or behavior or {}).get("n") or 0
    sentences = [f"{lead} answers, of {n:,} triggers, {' and '.join(parts)}." if parts else ""]
    sentences += [f"False alarms: it tags {', '.join(alarms)}."] if alarms else []
    by_guard = {guard: metric(model, "behavior_recall", guard) for guard in of.behaviors}
    known = [f"{guard} {told(found)}" for guard, found in by_guard.items() if found]
    if len(known) > 1:
        sentences.append(f"Right behavior of {lead} by guard: {', '.join(known)}.")
    return [*sentences, paired_sentence(of, lead)]


def paired_sentence(of: Guards, lead: str) -> str:
    """Routing beside each guard's own adapter, on the same prompts."""
    single = next((name for name in of.chief if mode_of(name) == SINGLE), None)
    paired = ((of.run.evaluation or {}).get("paired") or {}).get(f"{lead} - {single}") or {}
    found = cell(paired.get("behavior_recall"))
    if found is None or found.low is None or found.high is None:
        return ""
    against = "ahead of" if found.low > 0 else "behind" if found.high < 0 else "not told apart from"
    return (
        f"On the same prompts {lead} is {against} each guard's own adapter "
        f"({metric_value('behavior_recall', found.value, True)} of triggers answered rightly, "
        f"{interval('behavior_recall', found, True)})."
    )


def merge_sentence(of: Guards) -> str:
    """What merging keeps and loses, tag and behavior beside each other."""
    parts, kept = [], []
    for name, model in of.chief.items():
        tag, behavior = (metric(model, key) for key in ("tag_recall", "behavior_recall"))
        if not is_merge(name) or not tag or not behavior:
            continue
        error = model.get("relative_error")
        off = f", error {number(error)}" if isinstance(error, int | float) else ""
        parts.append(f"{name} {percent(tag)} and {percent(behavior)}{off}")
        if (tag["low"] or 0) > (behavior["high"] or 1):
            kept.append(name)
    if not parts:
        return ""
    sentence = f"Merged into one adapter, tag and right behavior on triggers: {'; '.join(parts)}."
    return sentence + (f" A tag rate alone would mislead of {', '.join(kept)}." if kept else "")


def guard_model_sentence(of: Guards) -> str:
    parts = []
    for name, model in of.models.items():
        recall, natural, hard = (metric(model, key) for key in ("tag_recall", "tag_fpr_natural", "tag_fpr_hard"))
        if not is_guard_model(name) or not recall:
            continue
        alarms = [
            f"{percent(rate)} of {rows}" for rate, rows in ((natural, "natural rows"), (hard, "hard ones")) if rate
        ]
        parts.append(f"{of.styles[name].label} {', '.join([f'{told(recall)} of triggers', *alarms])}")
    return f"Guard models on the same prompts flag: {'; '.join(parts)}." if parts else ""


def missing(of: Guards) -> list[str]:
    """What the directory lacks, and the command that adds it."""
    found = []
    for name, run in of.trained.items():
        behavior = name.partition(".")[0]
        if name not in of.notes:
            which = "--joint" if behavior == JOINT else f"--behavior {behavior}"
            found.append(
                f"{name} has no finished adapter ({run.manifest.get('status', 'no manifest')}): "
                f"{command('train', of)} {which} --resume goes on with it."
            )
    if of.models and not (of.run.path / ITEMS).is_file():
        found.append(f"{ITEMS} is missing, so there are no replies to read: run --mode evaluate again.")
    return found


def no_curves(of: Guards) -> str:
    if of.trained:
        return "No metrics yet: the first appear with the first log event of --mode train."
    return (
        f"This directory holds an evaluation alone: {command('train', of)} trains adapters in it, and their curves "
        "appear here. Those of --lora_paths stand in the runs that made them."
    )


def percent(estimate: Estimate) -> str:
    return number(estimate["value"] or 0.0, "share")


def told(estimate: Estimate) -> str:
    """`99.0 % (97.8 to 99.5 %)`."""
    found = cell(estimate)
    assert found is not None, "only what was measured is told"
    return f"{percent(estimate)} ({interval('rate', found)})"


# --- tiles ----------------------------------------------------------------------------------------------------------


def tiles(of: Guards, lead: str) -> list[Tile]:
    """Each main metric of the leading model with its interval, and that of the base and of adapters by themselves."""
    others = [name for name in of.chief if name != lead and mode_of(name) in (BASE, SINGLE, JOINT)]
    found = []
    for name in TILES:
        mine = cell(metric(of.models[lead], name))
        if mine is None:
            continue
        beside = [f"{other} {percent(rate)}" for other in others if (rate := metric(of.models[other], name))]
        found.append(Tile(metric_label(name), metric_value(name, mine.value), [interval(name, mine), *beside]))
    return found


def training_tiles(of: Guards) -> list[Tile]:
    """For each adapter the tag's recall on validation triggers at the checkpoint that was chosen."""
    found = []
    for name, run in of.trained.items():
        note = of.notes.get(name, {})
        validation = note.get("validation") if isinstance(note.get("validation"), dict) else {}
        step, recall, label = chosen_step(note), (validation or {}).get("tag_recall"), name.replace(".", " · ")
        if step is None or not isinstance(recall, int | float):
            found.append(
                Tile(label, f"step {run.last_step:,}", [str(run.manifest.get("status", "")), "no adapter yet"])
            )
            continue
        alarms = [
            f"{kind}: {number(rate, 'share')}"
            for kind in ("natural", "hard", "other")
            if isinstance(rate := (validation or {}).get(f"tag_fpr_{kind}"), int | float)
        ]
        details = ["of validation triggers tagged", *alarms, f"checkpoint {step:,} of {run.last_step:,} steps"]
        found.append(Tile(label, number(recall, "share"), details))
    return found


# --- tables ---------------------------------------------------------------------------------------------------------


def tables(of: Guards) -> list[Grid]:
    """Models down: the tag, the behavior, what an answer costs; then the main metrics of each guard."""
    grids = [
        metrics_table("The tag", TAG_METRICS, of.models),
        metrics_table("The behavior", BEHAVIOR_METRICS, of.models),
    ]
    grids.append(cost_table(of.models))
    if len(of.behaviors) > 1:
        grids += [metrics_table(guard, OF_EACH_GUARD, of.models, guard) for guard in of.behaviors]
    return [grid for grid in grids if grid.rows]


def metrics_table(title: str, names: tuple[str, ...], models: Models, guard: str | None = None) -> Grid:
    """Without models and metrics of which nothing was measured."""
    found = {model: {name: cell(metric(of, name, guard)) for name in names} for model, of in models.items()}
    rows_of = {model: cells for model, cells in found.items() if any(cells.values())}
    kept = [name for name in names if any(cells[name] for cells in rows_of.values())]
    rows = [(model, [_entry(name, cells[name]) for name in kept]) for model, cells in rows_of.items()]
    return Grid(title, ["Model", *map(metric_label, kept)], rows)


def _entry(name: str, found: Cell | None) -> tuple[str, Cell] | None:
    return None if found is None else (name, found)


def cost_table(models: Models) -> Grid:
    """What a model is, how far a merge is from the sum of its adapters, and how often a prompt is read."""
    rows = []
    for name, model in models.items():
        weights = model.get("weights")
        told_weights = ", ".join(number(weight) for weight in weights) if isinstance(weights, list) else "–"
        numbers = [_plain(model.get(key)) for key in ("relative_error", "rank", "prompt_forwards")]
        kind = str(model.get("kind", "")).replace("_", " ")
        rows.append((name, [kind, *numbers, told_weights, f"{model.get('failures') or 0:,}"]))
    heads = ["Relative error of the merge", "Rank", "Prompt forwards an answer", "Weights", "Without a verdict"]
    return Grid("What it is and what it costs", ["Model", "Kind", *heads], rows)


def _plain(value: object) -> str:
    return number(value) if isinstance(value, int | float) else "–"


def adapters_table(of: Guards) -> Grid:
    rows = []
    for name, run in of.trained.items():
        note, config = of.notes.get(name, {}), run.manifest.get("config", {})
        step, threshold = chosen_step(note), note.get("threshold")
        chosen = "none yet" if step is None else f"{step:,}"
        sure = f"{threshold:.3g}" if isinstance(threshold, int | float) else "–"
        status = str(run.manifest.get("status", "unknown"))
        rows.append((name, [status, f"{run.last_step:,}", chosen, sure, _plain(config.get("r")), _data(run)]))
    return Grid("", ["Run", "Status", "Steps", "Chosen checkpoint", "Threshold of its tag", "Rank", "Trained on"], rows)


def _data(run: Run) -> str:
    dataset = run.manifest.get("dataset")
    if not isinstance(dataset, dict):
        return "–"
    return f"{dataset.get('path')} (sha256 {str(dataset.get('sha256'))[:12]}…)"


def comparison_table(of: Guards) -> Grid | None:
    """The comparison file of the published system, as it is; in per cent, the composite from 0 to 1."""
    path = of.run.path / COMPARISON
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    rows = [
        (
            " · ".join(str(row.get(key)) for key in ("behavior", "variation", "mode")),
            [_short(row, key) for key in COMPARISON_COLUMNS],
        )
        for row in found
    ]
    heads = [name.replace("_", " ") for name in COMPARISON_COLUMNS]
    return Grid("Comparison over variations", ["Guard · variation · mode", *heads], rows) if rows else None


def _short(row: dict[str, Any], key: str) -> str:
    try:
        return number(float(row.get(key) or ""))
    except ValueError:
        return "–"


# --- sections -------------------------------------------------------------------------------------------------------


def sections(of: Guards, pictures: dict[str, bytes]) -> list[Section]:
    def shown(name: str) -> list[Picture]:
        return [Picture(PICTURE_TEXTS[name], pictures[name])] if name in pictures else []

    compared = comparison_table(of) if "variations.png" in pictures else None
    found = [
        Section("With and without adapters", pictures=shown("detection_efficiency.png")),
        Section(
            "Recall against false positives",
            "The tag is what a model says, the behavior what it did, judged with the tag cut off. Best is up and left.",
            shown("recall_vs_fpr.png"),
        ),
        Section(
            "Which guard answered",
            "Triggers of each guard, natural rows and hard negatives down; whose tag and whose resolution across.",
            shown("confusion_matrix.png"),
        ),
        Section(
            "Guard models",
            "A guard model sees each guard's policy and says whether a prompt violates it; it answers nobody.",
            shown("guard_models.png"),
        ),
        Section("Variations and checkpoints", "", shown("variations.png"), [compared] if compared else []),
        Section(
            "Replies side by side",
            "The same prompts, failures first: missed triggers and false alarms. The tag is cut off and named above.",
            passages=passages(of, read_items(of.run.path)),
        ),
        Section("Adapters", grids=[adapters_table(of)] if of.trained else []),
    ]
    return [section for section in found if section.pictures or section.grids or section.passages]
