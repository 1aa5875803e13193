"""Measure guardrail adapters, alone and stacked, on held-out prompts that should and should not set them off.

    python main.py --task guardrail --mode evaluate --output_dir outputs --dataset_path guardrail_data \\
        --adapter_mode all --guard_models llama_guard_3:meta-llama/Llama-Guard-3-8B@http://127.0.0.1:8000/v1

test rows -> answers of each model -> tag and judged behavior of each answer -> estimates -> files and tables

Every model answers the same prompts: the test rows of each guardrail, of --test_variation. They are its triggers,
natural rows, hard negatives and other guards' triggers, in wordings and with characters that training never met. In
mode `single` a guard's own adapter answers its own rows; routing, merges and joint answer all rows as one model. The
base answers once, its adapters off, and is checked to be the base that it was before it had any.

Replies that no rule can judge (records from elsewhere, guardrails without `talk`) have a tag and no finding, unless
--judge names a model behind an API (guardrail_judge.py); what rules measure is written before it is asked.

What is measured stands in guardrail_measures.py, which adapters are asked in guardrail_stacks.py, how they answer in
answering.py, guard models in guard_models.py. Guard models see each guard's policy with the same rows; they are asked
first, so that one that cannot be reached costs no hour of answers. With --num_runs above 1 the first answer is greedy,
the others are drawn at --temperature.

Writes guardrail_items.jsonl (every answer and what was found in it), the files of the published system
(guardrail_comparison.py), then guardrail.json, in OUTPUT_DIR/evaluation. They are one evaluation: what an earlier one
left there is replaced or removed.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dataset.guard_records import prompt_key
from dataset.guardrail import load_behavior
from dataset.guardrails import Guardrails, choose_behaviors, load_guardrails
from evaluation.answering import BASE, Ensemble, Reply, answers, largest_base_difference, load_ensemble, prompt_forwards
from evaluation.guard_models import Flag, GuardModel, flags, parse_guard_model
from evaluation.guardrail_comparison import METRIC_FILES, source_files
from evaluation.guardrail_judge import dry_run, judge_replies
from evaluation.guardrail_measures import (
    KINDS,
    KNOWN_ADAPTER,
    Answer,
    answer_to,
    confusion,
    differences,
    flagged_answer,
    metrics,
    rules_apply,
)
from evaluation.guardrail_stacks import Stack, find_stacks
from evaluation.guardrail_tables import printed
from evaluation.judge import Panel, open_panel
from evaluation.sampling import check_options
from model_training.backends import settle
from model_training.guardrail_config import MERGES, EvaluateGuardrailConfig
from model_training.models import set_threads
from model_training.options import narrow
from prompts.rubrics import NATURAL, TRIGGER
from utils.api.options import ApiOptions
from utils.errors import UserError, WorkError
from utils.files import disk_error, write_atomic, write_json_atomic
from utils.runs import SECRET_OPTIONS

Record = dict[str, Any]

REPORT, ITEMS = "guardrail.json", "guardrail_items.jsonl"
SINGLE = "single"
CHECKED_PROMPTS = 16
"""Prompts on which the base is compared with itself before it had adapters."""
MOST_DIFFERENCE = 1e-2
"""Of its logits; more is another model."""


@dataclass(frozen=True)
class Row:
    """A test row of a guardrail: its place among them, and the number of its prompt among all that are asked."""

    record: Record
    index: int
    prompt: int


@dataclass(frozen=True)
class Measured:
    """One model: what the report says of it, its answers to all rows, and the raw rows."""

    about: dict[str, Any]
    answers: list[Answer]
    items: list[dict[str, Any]]


def evaluate(config: EvaluateGuardrailConfig) -> None:
    """Run the stage; see the module's docstring for its order."""
    _check_sampling(config)
    guards = load_guardrails(config.guardrails)
    behaviors = choose_behaviors(guards, config.behavior)
    comparators = named_guard_models(config.guard_models)
    rows = test_rows(config, guards, behaviors)
    config = settle(config)
    set_threads(config.threads)
    stacks = find_stacks(config, behaviors, {name: guards[name].tag for name in behaviors})
    folder = _output_folder(config)
    panel = open_panel(config, (TRIGGER, NATURAL), folder, config.seed)
    _say_what_is_not_judged(guards, rows, panel)

    flagged = {name: by_guard_model(config, guard, guards, rows) for name, guard in comparators.items()}
    models, base_difference = by_stacks(config, stacks, guards, behaviors, rows)
    models |= flagged
    report = summary(config, guards, behaviors, rows, stacks, models, base_difference)
    write(folder, report, models)
    if panel is not None and panel.estimate is not None:
        print(dry_run(panel, guards, models, config.judge_checks, config.seed))
    elif panel is not None:
        judging = judge_replies(panel, guards, models, config.judge_checks, config.seed)
        report = summary(config, guards, behaviors, rows, stacks, models, base_difference, judging)
        write(folder, report, models)
    print(printed(report))
    print(f"\n{folder / REPORT}: these numbers and more; {ITEMS} beside it: every answer")


# --- what is asked ----------------------------------------------------------------------------------------------------


def _check_sampling(config: EvaluateGuardrailConfig) -> None:
    check_options(config.num_runs, config.temperature, 1.0, config.max_new_tokens, config.batch_size)
    if config.num_runs > 1 and config.temperature == 0:
        raise UserError(
            f"--num_runs {config.num_runs}: at --temperature 0 all answers to a prompt are the same; raise it"
        )


def named_guard_models(specs: Sequence[str]) -> dict[str, GuardModel]:
    """The comparators by the names of the report: `guard:MODEL`, with its template where a model is given twice."""
    found = [parse_guard_model(spec) for spec in specs]
    times = Counter(guard.name for guard in found)
    named: dict[str, GuardModel] = {}
    for guard in found:
        name = f"guard:{guard.name}" if times[guard.name] == 1 else f"guard:{guard.template}:{guard.name}"
        if name in named:
            raise UserError(f"--guard_models: {guard.template}:{guard.name} is given twice; leave one out")
        named[name] = guard
    return named


def test_rows(config: EvaluateGuardrailConfig, guards: Guardrails, behaviors: Sequence[str]) -> list[Row]:
    """The test rows of each guardrail, in the order of its file; --fraction_of_data draws from each kind by the seed.

    Raises:
        UserError: a file that is missing or faulty, or one without test rows.
    """
    rows: list[Row] = []
    numbers: dict[str, int] = {}
    for behavior in behaviors:
        records = load_behavior(config.dataset_path, behavior, config.test_variation, guards, config.skip_invalid)
        tested = [record for record in records if record["split"] == "test"]
        if not tested:
            raise UserError(
                f"--dataset_path {config.dataset_path}: no test row of {behavior}, {config.test_variation}; "
                "make the dataset anew with prepare_data"
            )
        for index in sorted(_drawn(tested, config.fraction_of_data, f"{behavior}|{config.seed}")):
            number = numbers.setdefault(prompt_key(tested[index]), len(numbers))
            rows.append(Row(tested[index], index, number))
    return rows


def _say_what_is_not_judged(guards: Guardrails, rows: Sequence[Row], panel: Panel | None) -> None:
    rest = "their tags alone are measured" if panel is None else f"{panel.judge.name} is asked about them"
    asked = Counter(row.record["behavior"] for row in rows)
    apart = Counter(row.record["behavior"] for row in rows if not rules_apply(guards, row.record))
    for name, count in apart.items():
        print(
            f"{name}: {count} of {asked[name]} test rows are not of the micro-world, so that no rule can judge the "
            f"replies; {rest}",
            file=sys.stderr,
        )


def _drawn(records: Sequence[Record], fraction: float, seed: str) -> list[int]:
    """The places of the records to ask: of each kind this share, at least one."""
    drawn: list[int] = []
    for kind in KINDS:
        places = [place for place, record in enumerate(records) if record["kind"] == kind]
        count = max(1, round(fraction * len(places))) if places else 0
        drawn += random.Random(f"{seed}|{kind}").sample(places, count)
    return drawn


# --- answers ----------------------------------------------------------------------------------------------------------


def by_guard_model(
    config: EvaluateGuardrailConfig, guard: GuardModel, guards: Guardrails, rows: Sequence[Row]
) -> Measured:
    """What a guard model says to the rows of each guardrail, with that guardrail as its policy."""
    found: list[tuple[Row, Flag]] = []
    for behavior in dict.fromkeys(row.record["behavior"] for row in rows):
        own = [row for row in rows if row.record["behavior"] == behavior]
        prompts = [row.record["prompt"] for row in own]
        verdicts = flags(guard, guards[behavior], prompts, config.batch_size, narrow(config, ApiOptions))
        found += zip(own, verdicts, strict=True)
    answered = [flagged_answer(row.record, row.prompt, flag.flagged) for row, flag in found if flag.flagged is not None]
    items = [{**_place(row), "flagged": flag.flagged, "raw": flag.raw, "failure": flag.failure} for row, flag in found]
    about = _about("guard_model", failures=len(found) - len(answered), prompt_forwards=1, path=guard.model)
    return Measured(about, answered, items)


def by_stacks(
    config: EvaluateGuardrailConfig,
    stacks: Sequence[Stack],
    guards: Guardrails,
    behaviors: Sequence[str],
    rows: Sequence[Row],
) -> tuple[dict[str, Measured], float]:
    """Every mode of every stack by name, the base first and once; and how far the base was from itself untouched."""
    models: dict[str, Measured] = {}
    ensemble: Ensemble | None = None
    largest = 0.0
    for stack in stacks:
        check = [row.record["prompt"] for row in rows[:: max(1, len(rows) // CHECKED_PROMPTS)]]
        ensemble = load_ensemble(
            stack.guards,
            stack.others,
            model_name=config.model_name,
            dtype=config.dtype,
            quantization=config.quantization,
            check_prompts=check,
            on=ensemble,
        )
        largest = max(largest, largest_base_difference(ensemble) or 0.0)
        if largest > MOST_DIFFERENCE:
            raise WorkError(
                f"the base with all adapters off is not the base: logits differ by {largest:g}; nothing was written"
            )
        for mode in [BASE] * (not models) + stack.modes:
            name = mode + stack.end * (mode != BASE)
            models[name] = _measured(config, ensemble, mode, name, stack, guards, behaviors, rows)
    return models, largest


def _measured(
    config: EvaluateGuardrailConfig,
    ensemble: Ensemble,
    mode: str,
    name: str,
    stack: Stack,
    guards: Guardrails,
    behaviors: Sequence[str],
    rows: Sequence[Row],
) -> Measured:
    """One mode's answers to all rows, judged."""
    start = time.monotonic()
    found: list[Answer] = []
    items: list[dict[str, Any]] = []
    for row, replies in zip(rows, asked(config, ensemble, mode, rows), strict=True):
        for number, reply in enumerate(replies):
            known = reply.adapter if mode in KNOWN_ADAPTER else None
            answer, finding = answer_to(guards, behaviors, row.record, row.prompt, reply.text, known)
            source = {"adapter": reply.adapter, "probability": reply.probability}
            found.append(answer)
            items.append({**_place(row), "sample": number, **finding, **source, "chosen": row.record["chosen"]})
    print(f"{name}: {len(found)} answers in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return Measured(_about_mode(mode, stack), found, items)


def asked(config: EvaluateGuardrailConfig, ensemble: Ensemble, mode: str, rows: Sequence[Row]) -> list[list[Reply]]:
    """--num_runs replies to each row: one greedy, the others drawn."""
    prompts, own = [row.record["prompt"] for row in rows], [row.record["behavior"] for row in rows]
    replies: list[list[Reply]] = [[] for _ in rows]
    for temperature, count in ((0.0, 1), (config.temperature, config.num_runs - 1)):
        if count == 0:
            continue
        written = answers(
            ensemble,
            mode,
            prompts,
            own=own,
            max_new_tokens=config.max_new_tokens,
            temperature=temperature,
            top_p=1.0,
            batch_size=config.batch_size,
            seed=config.seed,
            num_samples=count,
        )
        replies = [before + of_row for before, of_row in zip(replies, written, strict=True)]
    return replies


def _place(row: Row) -> dict[str, Any]:
    """The part of a raw row that says what was asked."""
    asked = {key: row.record.get(key) for key in ("behavior", "kind", "other_behavior")}
    return {**asked, "index": row.index, "prompt": row.record["prompt"]}


def _about_mode(mode: str, stack: Stack) -> dict[str, Any]:
    if mode == BASE:
        return _about(BASE, prompt_forwards=prompt_forwards(mode, 0))
    kind = "merge" if mode in MERGES else "adapter" if mode == SINGLE else mode
    adapter = stack.others.get(mode)
    note = adapter.note if adapter else {}
    return _about(
        kind,
        variation=stack.variation,
        checkpoint=stack.checkpoint,
        rank=note.get("rank"),
        relative_error=note.get("relative_error"),
        weights=note.get("weights"),
        prompt_forwards=prompt_forwards(mode, len(stack.guards)),
        path=str(adapter.path) if adapter else {guard.name: str(guard.path) for guard in stack.guards},
    )


def _about(kind: str, **known: Any) -> dict[str, Any]:
    """What the report says of a model beside its numbers; None is what does not apply."""
    unknown = dict.fromkeys(("variation", "checkpoint", "rank", "relative_error", "weights", "prompt_forwards", "path"))
    return {"kind": kind, **unknown, "failures": 0, **known}


# --- numbers ----------------------------------------------------------------------------------------------------------


def summary(
    config: EvaluateGuardrailConfig,
    guards: Guardrails,
    behaviors: Sequence[str],
    rows: Sequence[Row],
    stacks: Sequence[Stack],
    models: dict[str, Measured],
    base_difference: float,
    judging: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What evaluation/guardrail.json holds."""
    counts = Counter((row.record["behavior"], row.record["kind"]) for row in rows)
    pairs = [
        (mode + stack.end, SINGLE + stack.end)
        for stack in stacks
        for mode in stack.modes
        if SINGLE in stack.modes and mode != SINGLE
    ]
    return {
        "task": "guardrail",
        "config": {name: value for name, value in asdict(config).items() if name not in SECRET_OPTIONS},
        "behaviors": list(behaviors),
        "tags": {name: guards[name].tag for name in behaviors},
        "variations": list(dict.fromkeys(stack.variation for stack in stacks)),
        "test_variation": config.test_variation,
        "prompts": {name: {kind: counts[name, kind] for kind in KINDS} for name in behaviors},
        "judge": "rules" if judging is None else judging["model"],
        "judging": judging,
        "base_check": {"largest_logit_difference": base_difference},
        "thresholds": {f"{guard.name}{stack.end}": guard.threshold for stack in stacks for guard in stack.guards},
        "models": {name: model_summary(model, behaviors, config.seed) for name, model in models.items()},
        "paired": {
            f"{name} - {single}": differences(models[name].answers, models[single].answers, config.seed)
            for name, single in pairs
        },
        "paired_by_category": {
            f"{name} - {single}": {
                behavior: differences(_of(models[name], behavior), _of(models[single], behavior), config.seed)
                for behavior in behaviors
            }
            for name, single in pairs
        },
    }


def model_summary(model: Measured, behaviors: Sequence[str], seed: int) -> dict[str, Any]:
    """One model's part of the report."""
    only_tags = model.about["kind"] == "guard_model"
    return {
        **model.about,
        "metrics": metrics(model.answers, seed, only_tags),
        "by_category": {name: metrics(_of(model, name), seed, only_tags) for name in behaviors},
        "confusion": confusion(model.answers, behaviors),
    }


def _of(model: Measured, behavior: str) -> list[Answer]:
    return [answer for answer in model.answers if answer.behavior == behavior]


# --- files ------------------------------------------------------------------------------------------------------------


def _output_folder(config: EvaluateGuardrailConfig) -> Path:
    """OUTPUT_DIR/evaluation, made before the work, so that a disk that takes nothing is known at once."""
    folder = Path(config.output_dir) / "evaluation"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, os.strerror(13))
    except OSError as error:
        raise disk_error(folder, error) from error
    return folder


def write(folder: Path, report: dict[str, Any], models: dict[str, Measured]) -> None:
    """The raw rows, the files of the published system, then the report."""
    rows = ({"model": name, **item} for name, model in models.items() for item in model.items)
    write_atomic(folder / ITEMS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    texts = source_files(report)
    for file, text in texts.items():
        write_atomic(folder / file, text)
    for path in folder.glob(METRIC_FILES):
        if path.name not in texts:
            path.unlink()
    write_json_atomic(folder / REPORT, report)
