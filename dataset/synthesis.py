"""What every data set written by a teacher model shares: jobs, checks, asking again, the journal, the account.

A job is the work on one record or a few. Its `write` is a coroutine that asks the teacher, through `write_valid`, which
gives each answer to a `take` function: no reason back and it is taken; reasons, and the teacher is asked again with its
answer and the reasons as further turns, up to `attempts` times. What all jobs share (the way to ask, what is taken
already, counts) is the `Desk`.

    async def write(desk: Desk, job: Job) -> Outcome:
        def take(value: Any) -> list[str]:
            if len(value["text"]) > 200:
                return ["too_long: the text has more than 200 characters"]
            return [] if desk.claim([fingerprint(value["text"])]) else ["duplicate: this text was written already"]

        written = await write_valid(desk, Ask(messages=..., schema=...), take)
        return Outcome([{"text": written.value["text"], "provenance": provenance(written.answer, VERSION)}])

    with open_journal(Path("out.json"), {"--model": "gpt-5-mini", "--seed": 1}) as journal:
        records = synthesize(endpoint, options, jobs, write, journal, keys_of=keys_of, label="records")
        journal.assemble(records, validate)

A reason is `code: what is wrong, told to the teacher`; the account counts codes. A job that is given up after its
attempts is final and stays in the journal with its reasons. A job without an answer (the provider is down) is not: the
run ends with a WorkError, and the same command goes on with those jobs alone.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import coroutine
from typing import TYPE_CHECKING, Any

from dataset.parsing import count_of
from dataset.synthesis_journal import Journal, Row, open_journal
from prompts.teacher import rejection
from utils.api.types import Answer, Ask, Failed
from utils.errors import WorkError

if TYPE_CHECKING:
    from utils.api.client import ApiClient
    from utils.api.endpoints import Endpoint
    from utils.api.options import ApiOptions
    from utils.api.progress import Totals

__all__ = [
    "Desk",
    "GivenUp",
    "Job",
    "Journal",
    "Outcome",
    "Unanswered",
    "Written",
    "ask_until",
    "open_journal",
    "provenance",
    "synthesize",
    "write_valid",
]

Record = dict[str, Any]
Take = Callable[[Any], list[str]]
"""Looks at one answer's value and takes it, whole or in part; says what is still wrong or missing. Called once for each
answer, and never between two turns of another job: it may keep what is good, and claim keys."""

ATTEMPTS = 4
"""How often one answer is asked for before its job is given up, the first time included."""
REASONS_SHOWN = 12
_REPEAT = 1_000_000
"""Added to an ask's `sample` where the same words are asked again, for another answer than the cached one."""


@dataclass(frozen=True)
class Job:
    """The work on one record or a few. `id` names it in the journal: the same in every run with the same options."""

    id: str
    data: Any = None
    """What `write` needs to know; never in the journal."""


@dataclass(frozen=True)
class Outcome:
    """What a finished job gives: its records, and why there are fewer than were wanted."""

    records: list[Record]
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Written:
    """An answer that was taken: its value (the schema's object, or the text), and the answer itself."""

    value: Any
    answer: Answer


class GivenUp(Exception):
    """No valid answer after all attempts. `synthesize` keeps it as the job's end, unless `write` handles it.

    reasons    those of the last answer
    """

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


class Unanswered(Exception):
    """The provider gave no answer at all: the job is not done, and the next run takes it up. Let it pass."""


@dataclass
class Desk:
    """What the jobs of one run share."""

    ask: Callable[[Ask], Awaitable[Answer | Failed]]
    attempts: int = ATTEMPTS
    rejections: Counter[str] = field(default_factory=Counter)
    """Answers that were not taken, by the code of each reason."""
    taken: set[str] = field(default_factory=set)

    def claim(self, keys: Iterable[str]) -> bool:
        """Take these keys, all or none: False if another record has one of them."""
        wanted = set(keys)
        if wanted & self.taken:
            return False
        self.taken |= wanted
        return True

    def release(self, keys: Iterable[str]) -> None:
        """Give keys back that were claimed for a record which then was not kept."""
        self.taken.difference_update(keys)


# --- one answer -----------------------------------------------------------------------------------------------------


async def write_valid(desk: Desk, ask: Ask, take: Take, *, attempts: int | None = None) -> Written:
    """Ask until an answer is taken; each rejected one goes back with its reasons, as further turns.

    A refusal, an empty, cut or broken answer is a rejection like any other. `attempts` replaces the desk's.

    Raises:
        GivenUp: no answer was taken in `attempts` attempts, or the provider refuses the request itself.
        Unanswered: the provider gave no answer, its own retries included.
    """
    answer = await ask_until(desk, ask, lambda answer: take(value_of(answer)), attempts=attempts)
    return Written(value_of(answer), answer)


async def ask_until(
    desk: Desk, ask: Ask, look: Callable[[Answer], list[str]], *, attempts: int | None = None
) -> Answer:
    """`write_valid` for a `look` that sees the whole answer: what is taken in parts has an origin for each of them."""
    turn, reasons = ask, ["attempts: none was allowed"]
    for _ in range(attempts or desk.attempts):
        answer = await desk.ask(turn)
        if isinstance(answer, Failed) and answer.reason == "unavailable":
            raise Unanswered(answer.detail or answer.reason)
        reasons = look(answer) if isinstance(answer, Answer) else [_fault(answer)]
        if isinstance(answer, Answer) and not reasons:
            return answer
        desk.rejections.update(filter(None, map(code_of, reasons)))
        if isinstance(answer, Failed) and answer.reason == "bad_request":
            break
        turn = _asked_again(turn, answer, reasons)
    raise GivenUp(reasons)


def value_of(answer: Answer) -> Any:
    """The schema's object, or the text where no schema was asked for."""
    return answer.text if answer.value is None else answer.value


def code_of(reason: str) -> str:
    """The code of a reason, which the account counts; "" for one that only says what to do."""
    found = re.match(r"([a-z_]+): ", reason)
    return found[1] if found else ""


_FAULTS = {
    "refusal": "this was a refusal; the task is harmless, so do it",
    "invalid_json": "this is not the JSON object that was asked for; write that object and nothing around it",
    "off_schema": "this JSON does not have the form that was asked for",
    "truncated": "it was cut off at --max_tokens",
    "empty": "there was no text",
}


def _fault(failed: Failed) -> str:
    said = [_FAULTS.get(failed.reason, ""), failed.detail]
    return f"{failed.reason}: {' ('.join(filter(None, said))}{')' if all(said) else ''}"


def _asked_again(ask: Ask, answer: Answer | Failed, reasons: list[str]) -> Ask:
    """The ask after a rejected answer. Where there is nothing to answer to, or only a piece, the same words again."""
    if not answer.text.strip() or (isinstance(answer, Failed) and answer.reason == "truncated"):
        return replace(ask, sample=ask.sample + _REPEAT)
    turns = ({"role": "assistant", "content": answer.text}, {"role": "user", "content": rejection(reasons)})
    return replace(ask, messages=(*ask.messages, *turns))


# --- all jobs -------------------------------------------------------------------------------------------------------


def synthesize(
    endpoint: Endpoint,
    options: ApiOptions,
    jobs: Sequence[Job],
    write: Callable[[Desk, Job], Coroutine[Any, Any, Outcome]],
    journal: Journal,
    *,
    keys_of: Callable[[Record], Iterable[str]],
    label: str,
    attempts: int = ATTEMPTS,
    totals: Totals | None = None,
) -> list[Record]:
    """Run the jobs that the journal does not have, concurrently; the records of all, in the order of the jobs.

    Each job is journaled the moment it is finished. `keys_of` gives the keys that a record of the journal has claimed
    (see `Desk.claim`): the same that `write` claims. With `options.batch_api` all jobs ask together, in rounds; `write`
    must then await nothing but the desk. `totals` are those of an earlier stage, which --max_cost counts on from. What
    was spent, and the account (records, rejections by reason, jobs that fell short and why), is printed to stderr.

    Raises:
        UserError: the key, the model or the quota was refused; what was finished is in the journal.
        WorkError: jobs are left without an answer, or --max_cost is reached; the same command goes on.
    """
    from utils.api.endpoints import key_of

    key_of(endpoint, options)  # a missing key is said before anything else
    ids = [job.id for job in jobs]
    if len(set(ids)) < len(ids):
        raise ValueError("two jobs have one id")
    desk = Desk(_asked, attempts)
    kept = [journal.done[name] for name in ids if name in journal.done]
    desk.taken.update(key for row in kept for record in row.records for key in keys_of(record))
    todo = [job for job in jobs if job.id not in journal.done]
    if kept:
        _say(f"{label}: {len(kept)} of {count_of(len(jobs), 'job')} are in {journal.path} already")
    unanswered: dict[str, str] = {}

    async def finish(job: Job) -> None:
        try:
            outcome = await write(desk, job)
        except GivenUp as given_up:
            outcome = Outcome([], given_up.reasons)
        except Unanswered as error:
            unanswered[job.id] = str(error)
            return
        journal.append(job.id, outcome.records, outcome.reasons)

    try:
        if todo and options.batch_api:
            _in_rounds(endpoint, options, todo, desk, finish, journal.batch_state, label, totals)
        elif todo:
            _concurrently(endpoint, options, todo, desk, finish, label, totals)
    except BaseException:
        _say(f"{label}: stopped; what is finished is safe in {journal.path}, and the same command goes on")
        raise
    finally:
        _say_account(label, desk, [journal.done[name] for name in ids if name in journal.done], len(jobs))
    if unanswered:
        name, why = next(iter(unanswered.items()))
        raise WorkError(
            f"{label}: {len(unanswered)} of {count_of(len(jobs), 'job')} got no answer ({name}: {why}); the others are "
            f"safe in {journal.path}, and the same command goes on with these"
        )
    return [record for name in ids for record in journal.done[name].records]


Finish = Callable[[Job], Coroutine[Any, Any, None]]


def _concurrently(
    endpoint: Endpoint,
    options: ApiOptions,
    jobs: list[Job],
    desk: Desk,
    finish: Finish,
    label: str,
    totals: Totals | None,
) -> None:
    """All jobs, `--concurrency` at a time, each asking as it likes."""
    from utils.api.client import run
    from utils.api.workers import each

    async def work(client: ApiClient) -> None:
        desk.ask = client.ask
        client.progress.expect(len(jobs), "jobs")
        async with contextlib.aclosing(each(jobs, finish, options.concurrency)) as finished:
            async for _ in finished:
                client.progress.step()

    run(endpoint, options, work, label, totals)


def _in_rounds(
    endpoint: Endpoint,
    options: ApiOptions,
    jobs: list[Job],
    desk: Desk,
    finish: Finish,
    state: Path,
    label: str,
    totals: Totals | None,
) -> None:
    """All jobs at once: each runs until it asks, and what all ask goes out as one batch; then the next round."""
    from utils.api.batches import ask_all_batched

    desk.ask = _asked
    running: list[tuple[Coroutine[Any, Any, None], Answer | Failed | None]] = [(finish(job), None) for job in jobs]
    while running:
        asked: list[tuple[Coroutine[Any, Any, None], Ask]] = []
        for work, answer in running:
            with contextlib.suppress(StopIteration):
                asked.append((work, work.send(answer)))
        answers = ask_all_batched(endpoint, options, [ask for _, ask in asked], state, label, totals) if asked else []
        running = [(work, answer) for (work, _), answer in zip(asked, answers, strict=True)]


@coroutine
def _asked(ask: Ask) -> Generator[Ask, Answer | Failed, Answer | Failed]:
    """Hands the ask to `_in_rounds`, which sends the answer in."""
    return (yield ask)


def _say_account(label: str, desk: Desk, rows: Sequence[Row], jobs: int) -> None:
    """What came of the jobs, and at what price."""
    records = sum(len(row.records) for row in rows)
    short = [row for row in rows if row.reasons]
    _say(f"{label}: {count_of(records, 'record')} from {len(rows)} of {count_of(jobs, 'job')}")
    if desk.rejections:
        counts = ", ".join(f"{count} {code}" for code, count in desk.rejections.most_common())
        _say(f"  answers asked for again or given up in this run: {counts}")
    if short:
        whys = Counter("; ".join(dict.fromkeys(code_of(reason) or reason for reason in row.reasons)) for row in short)
        _say(f"  {count_of(len(short), 'job')} gave fewer records than asked for, or none:")
        for why, count in whys.most_common(REASONS_SHOWN):
            _say(f"    {count} x {why}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def provenance(answer: Answer, prompt_version: str) -> dict[str, Any]:
    """Where a record comes from, to be kept in it: the model as the provider names it, the prompt's version, when (UTC)
    and under which id the answer was paid for."""
    return {
        "model": answer.model,
        "prompt_version": prompt_version,
        "time": answer.time,
        "request_id": answer.request_id,
    }
