"""A judge as a reward of the `secret` task: a model behind an API scores each completion by a rubric.

    --reward_funcs format judge:secret --judge openai:gpt-5-mini               all criteria of a rubric, weighed
    --reward_funcs format judge:secret:helpful judge:secret:playful ...        criteria one by one, each on its part
    --reward_funcs format judge:my_rubric.yaml ...                             a rubric of your own

    value = (score - lowest) / (highest - lowest) of a criterion, or the rubric's weighted mean of these, in [0, 1]

A rubric whose criteria speak of different parts is a reward of both parts; a criterion's own reward moves the tokens of
its part alone, and asks no more: all rewards of one rubric read one verdict. A malformed completion has no parts to
judge and is worth 0, as for the other rewards; nobody is asked about it.

The completions of a step are judged together, --concurrency at once, through one client for the whole run, so that its
limits of rate and money hold across steps; each of several processes has a client of its own with its share of them,
for the completions that it sampled. A judgement that failed is None:
the completion is left out of that reward's comparison within its group (credit.without_gaps), and never 0.
`judge/failed_rate` is the share of the asked that failed; `judge/cost_usd` what was spent so far. A step of which every
judgement failed ends the run, which --resume continues: what was judged is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from model_training import processes
from model_training.config import JUDGE, JudgeOptions, RewardJudgeOptions
from model_training.judging import Judge, Judgement, judgements, refuse_all_failed
from model_training.options import narrow
from model_training.text_measures import message_text, question_text
from prompts.judge import overall
from prompts.rubrics import SECRET, Criterion, Part, Rubric, load_rubric
from utils.api.endpoints import Endpoint, key_of, parse_endpoint
from utils.api.options import ApiOptions, share
from utils.api.progress import Totals
from utils.api.types import Answer, Ask, Failed
from utils.errors import UserError
from utils.extraction import parse

FEWEST = 4
"""Judgements of a step from which on it ends the run that all failed: fewer may all have met one refusal."""


@dataclass
class Bench:
    """What the judge's rewards of one run share: its client, once one was needed, and its newest verdicts."""

    endpoint: Endpoint
    options: ApiOptions
    totals: Totals = field(default_factory=Totals)
    client: Any = None
    manager: Any = None
    newest: dict[str, tuple[list[Any], list[Judgement]]] = field(default_factory=dict)
    """By rubric, what was judged last, and how."""


def open_bench(config: RewardJudgeOptions | JudgeOptions) -> Bench | None:
    """The judge of --judge, for rewards; None where there is none. Nothing is sent yet.

    Raises:
        UserError: a faulty endpoint, or no key for it.
    """
    if config.judge is None:
        return None
    options = share(narrow(config, ApiOptions), processes.count())
    endpoint = parse_endpoint(config.judge, config.base_url, "--judge")
    if not options.dry_run:
        key_of(endpoint, options)
    return Bench(endpoint, options)


def judge_reward(given: str, bench: Bench | None) -> tuple[str, Callable[..., list[float | None]], Part]:
    """Name, function and part of the reward `judge:RUBRIC[:CRITERION]`.

    Raises:
        UserError: no such rubric or criterion, one that does not judge `secret`; no judge, or one for a dry run alone.
    """
    rubric, criterion = named(given)
    if bench is None:
        raise UserError(f"--reward_funcs {given}: name the judge, as --judge openai:MODEL or anthropic:MODEL")
    if bench.options.dry_run:
        raise UserError(
            f"--reward_funcs {given}: it asks the judge, and --dry_run sends nothing; leave one of them out"
        )

    def value(judgement: Judgement) -> float | None:
        if judgement.scores is None:
            return None
        if criterion is None:
            return overall(rubric, judgement.scores)
        return criterion.share(judgement.scores[criterion.name])

    def function(
        completions: Sequence[Any], prompts: Sequence[Any], log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:  # fmt: skip
        parts = [parse(message_text(completion)) for completion in completions]
        strict = [i for i, part in enumerate(parts) if part.failure is None]
        shown = [
            {"query": question_text(prompts[i]), "visible": parts[i].visible, "hidden": parts[i].hidden} for i in strict
        ]
        judged = _judged(bench, rubric, shown)
        values: list[float | None] = [0.0] * len(completions)
        for i, judgement in zip(strict, judged, strict=True):
            values[i] = value(judgement)
        if log_metric is not None and judged:
            log_metric("judge/failed_rate", sum(one.failure is not None for one in judged) / len(judged))
            if bench.totals.cost is not None:
                log_metric("judge/cost_usd", bench.totals.cost * processes.count())  # the mean over them is logged
        return values

    parts = {one.part for one in rubric.criteria}
    part = criterion.part if criterion else parts.pop() if len(parts) == 1 else "both"
    return f"judge_{rubric.name}" + (f"_{criterion.name}" if criterion else ""), function, part


def named(given: str) -> tuple[Rubric, Criterion | None]:
    """The rubric and the criterion of `judge:RUBRIC[:CRITERION]`."""
    name, colon, criterion_name = given.removeprefix(JUDGE).partition(":")
    if not name or (colon and not criterion_name):
        raise UserError(f"--reward_funcs {given}: write {JUDGE}RUBRIC or {JUDGE}RUBRIC:CRITERION, as {JUDGE}{SECRET}")
    rubric = load_rubric(name, "--reward_funcs")
    if rubric.judges != SECRET:
        raise UserError(
            f"--reward_funcs {given}: it judges {rubric.judges}; a reward needs a rubric that judges {SECRET}"
        )
    criterion = rubric.criterion(criterion_name)
    if criterion_name and criterion is None:
        names = ", ".join(one.name for one in rubric.criteria)
        raise UserError(f"--reward_funcs {given}: the rubric has no criterion {criterion_name}; it has {names}")
    return rubric, criterion


# --- one verdict for all rewards of a rubric --------------------------------------------------------------------------


def _judged(bench: Bench, rubric: Rubric, shown: list[Any]) -> list[Judgement]:
    """The judgements; those of the newest step are kept, since each criterion's reward asks for the same."""
    before, found = bench.newest.get(rubric.name, ([], []))
    if before == shown:
        return found
    found = judgements(Judge(str(bench.endpoint), lambda asks, label: _ask(bench, asks)), rubric, shown, "reward")
    failed = [(one.failure, one.detail) for one in found]
    if len(failed) >= FEWEST or all(failure == "unavailable" for failure, _ in failed):
        refuse_all_failed(str(bench.endpoint), failed, f"reward {rubric.name}")
    bench.newest[rubric.name] = shown, found
    return found


def _ask(bench: Bench, asks: Sequence[Ask]) -> list[Answer | Failed]:
    """The replies, through the one client of the run; it stays open until the process ends."""
    from utils.api.background import in_background
    from utils.api.client import open_client
    from utils.api.workers import each

    async def replies() -> list[Answer | Failed]:
        if bench.client is None:
            bench.manager = open_client(bench.endpoint, bench.options, totals=bench.totals)
            bench.client = await bench.manager.__aenter__()

        async def one(index: int) -> tuple[int, Answer | Failed]:
            return index, await bench.client.ask(asks[index])

        async with aclosing(each(range(len(asks)), one, bench.options.concurrency)) as results:
            found = {index: reply async for index, reply in results}
        return [found[index] for index in range(len(asks))]

    return in_background(replies())
