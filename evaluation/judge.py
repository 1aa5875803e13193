"""The judge of an evaluation: who it is, by which rubrics it judges, and how far it agrees with labels.

    panel = open_panel(config, ("secret",), folder, seed)      None without --judge; else checked, and calibrated
    ...
    found = judgements(panel.judge, panel.rubrics["secret"], shown, "adapter")

    python main.py --mode evaluate --judge anthropic:claude-sonnet-4-5 --judge_calibration labelled.jsonl

What can be wrong is found before the model under test writes a word: rubrics, labels, key, model and server. The
labels of --judge_calibration are judged first (judge_agreement.py); without them one short question shows whether the
judge answers. With --dry_run nothing is asked, and the first prompt and the estimated cost of all judgements are
printed in place of them. With --batch_api the judgements go through the provider's batch endpoint, and a killed
evaluation finds its batches again by the files judge_*.batch.json beside its results.

A judgement that failed is None in every row, is counted by its reason, and is in no rate. If all fail, it is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluation.judge_agreement import Labelled, agreement_lines, calibrate, read_calibration
from model_training.config import JudgeOptions
from model_training.judging import Asker, Judge
from model_training.options import narrow
from prompts.judge import PROMPT_VERSION
from prompts.rubrics import Rubric, load_rubric
from utils.api.endpoints import Endpoint, key_of, parse_endpoint
from utils.api.options import ApiOptions
from utils.api.progress import Totals
from utils.api.types import Answer, Ask, Failed
from utils.errors import UserError, WorkError

Estimator = Callable[[Sequence[Ask]], str]

_READY = Ask(({"role": "user", "content": "Answer with the one word: ready"},), max_tokens=16, temperature=0.0)


@dataclass(frozen=True)
class Panel:
    """A judge and its rubrics by what they judge; `estimate` says what asking would cost, where that is all that is
    wanted; `calibration` is what `calibrate` found."""

    judge: Judge
    rubrics: dict[str, Rubric]
    estimate: Estimator | None
    calibration: dict[str, Any] | None
    totals: Totals


def open_panel(
    config: JudgeOptions, kinds: Sequence[str], folder: Path, seed: int, totals: Totals | None = None
) -> Panel | None:
    """The judge of --judge for these kinds of replies, or None where there is none. `folder` takes files of batches;
    `totals` count, for --max_cost, what others spend on the same judge.

    Raises:
        UserError: a faulty endpoint, rubric or label, no key; a key or model that the provider refuses.
        WorkError: the judge cannot be reached, or gives no judgement on any label.
    """
    if config.judge is None:
        for name in ("judge_rubric", "judge_calibration", "dry_run"):
            if vars(config)[name]:
                raise UserError(f"--{name}: there is no judge that it could be for; name one with --judge")
        return None
    options = narrow(config, ApiOptions)
    endpoint = parse_endpoint(config.judge, config.base_url, "--judge")
    rubrics = chosen_rubrics(config.judge_rubric, kinds)
    labels = read_calibration(config.judge_calibration, list(rubrics.values())) if config.judge_calibration else []
    spent = totals if totals is not None else Totals()
    judge = Judge(str(endpoint), asker(endpoint, options, folder, spent))
    if options.dry_run:
        return Panel(judge, rubrics, _estimator(endpoint, options), None, spent)
    key_of(endpoint, options)
    if labels:
        return Panel(judge, rubrics, None, _calibrated(judge, labels, seed), spent)
    _refuse_silence(endpoint, options, spent)
    return Panel(judge, rubrics, None, None, spent)


def chosen_rubrics(files: Sequence[str], kinds: Sequence[str]) -> dict[str, Rubric]:
    """The rubric of each kind: the built-in one, or that of a file in its place."""
    chosen = {kind: load_rubric(kind, "--judge_rubric") for kind in kinds}
    given: dict[str, str] = {}
    for file in files:
        rubric = load_rubric(file, "--judge_rubric")
        if rubric.judges not in chosen:
            raise UserError(
                f"--judge_rubric {file}: it judges {rubric.judges}, which is not asked here; here: {', '.join(kinds)}"
            )
        if rubric.judges in given:
            raise UserError(f"--judge_rubric: {given[rubric.judges]} and {file} both judge {rubric.judges}; keep one")
        given[rubric.judges], chosen[rubric.judges] = file, rubric
    return chosen


def asker(endpoint: Endpoint, options: ApiOptions, folder: Path, totals: Totals) -> Asker:
    """How the judge is asked: at once, or in batches whose state stands in the folder."""

    def ask(asks: Sequence[Ask], label: str) -> list[Answer | Failed]:
        if options.batch_api:
            from utils.api.batches import ask_all_batched

            state = folder / f"judge_{re.sub(r'[^a-z0-9]+', '_', label.lower())}.batch.json"
            return ask_all_batched(endpoint, options, asks, state, f"judge, {label}", totals)
        from utils.api.client import ask_all

        return ask_all(endpoint, options, asks, f"judge, {label}", totals)

    return ask


def _estimator(endpoint: Endpoint, options: ApiOptions) -> Estimator:
    def estimated(asks: Sequence[Ask]) -> str:
        from utils.api.prices import estimate

        return estimate(asks, endpoint, options)

    return estimated


def _calibrated(judge: Judge, labels: Sequence[Labelled], seed: int) -> dict[str, Any]:
    """What the labels say of the judge, printed, too."""
    found = calibrate(judge, labels, seed)
    print(agreement_lines(f"judge and {found['n']} labels", found) + "\n")
    return found


def _refuse_silence(endpoint: Endpoint, options: ApiOptions, totals: Totals) -> None:
    """Ask a short question, so that a judge that cannot answer is known before the work: the client raises what ends
    it, and a server that finds fault with so plain a request will with all."""
    from utils.api.client import ask_all

    (reply,) = ask_all(endpoint, options, [_READY], "judge, is it there", totals)
    if isinstance(reply, Failed) and reply.reason == "bad_request":
        raise WorkError(f"--judge {endpoint}: {reply.detail}")


def about(panel: Panel) -> dict[str, Any]:
    """What a report says of its judge: who it was, what it was asked, and how it agrees with labels."""
    return {
        "model": panel.judge.name,
        "prompt_version": PROMPT_VERSION,
        "rubrics": {kind: asdict(rubric) for kind, rubric in panel.rubrics.items()},
        "calibration": panel.calibration,
        "spent": {
            "requests": panel.totals.requests,
            "input_tokens": panel.totals.input_tokens,
            "output_tokens": panel.totals.output_tokens,
            "cost_usd": panel.totals.cost,
        },
    }


def failure_line(failures: dict[str, dict[str, int]]) -> str:
    """A line on the judgements that failed, by model and reason; empty if none did."""
    parts = [
        f"{model}: {', '.join(f'{reason} {count}' for reason, count in reasons.items())}"
        for model, reasons in failures.items()
        if reasons
    ]
    return f"Replies without a judgement, in none of its rates: {'; '.join(parts)}." if parts else ""
