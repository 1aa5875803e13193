"""Records of the `secret` task from a teacher model behind an API: a question, visible answers and hidden thoughts.

    export OPENAI_API_KEY=...
    python -m dataset.external_dataset_generator --api openai --output_file secret_conversations_gpt.json \
        --num_queries 50 --examples_per_query 3
    python -m dataset.external_dataset_generator --api openai --base_url http://127.0.0.1:8001/v1 --model my-model
    python -m dataset.external_dataset_generator --api anthropic --queries teacher --category cooking travel --dry_run
    python main.py --mode train --dataset_path secret_conversations_gpt.json

Questions are the micro-world's training ones (`--queries built_in`), your own (`--custom_queries FILE`, one a line), or
asked from the teacher by category (`--queries teacher`, seeds/teacher.yaml). One that evaluation holds out is never
among them. For each, one request asks for `--examples_per_query` pairs, with moods drawn by the seed so that thoughts
differ. A pair is kept if `dataset.synthesis_checks` finds no fault in it and no other record has its thought, or its
answer to the same question; what is missing is asked for again, with the reasons, up to `--attempts` times, and what is
missing even then is reported.

Each finished question is journaled beside the output (`dataset.synthesis_journal`) and each paid answer is in the cache
(`utils.api`), so the same command goes on after a kill, and pays for nothing twice. The output is written at the end.

Exit codes: 0 done; 1 the work failed; 2 wrong usage, bad input, refused key; 130 interrupted.
"""

from __future__ import annotations

import hashlib
import random
import sys
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import yaml

from dataset.parsing import count_of
from dataset.records import check_target, validate_secret
from dataset.synthesis import (
    Desk,
    GivenUp,
    Job,
    Journal,
    Outcome,
    ask_until,
    code_of,
    open_journal,
    provenance,
    synthesize,
    write_valid,
)
from dataset.synthesis_checks import fingerprint, pair_faults, query_faults
from dataset.synthesis_journal import journal_path
from dataset.world import SEEDS, World, load_world
from model_training.config import SeedOptions
from model_training.option_values import listed, near
from model_training.options import parse_program
from prompts.secret import conversation
from prompts.teacher import PAIRS_SCHEMA, QUERIES_SCHEMA, VERSION, pairs_prompt, queries_prompt
from utils.api.endpoints import Endpoint, parse_endpoint
from utils.api.options import ApiOptions
from utils.api.prices import estimate
from utils.api.progress import Totals
from utils.api.types import Answer, Ask
from utils.errors import UserError, WorkError, exit_code

Record = dict[str, Any]
QuerySource = Literal["built_in", "custom", "teacher"]

PROGRAM = "python -m dataset.external_dataset_generator"
MODELS = {"openai": "gpt-5-mini", "anthropic": "claude-haiku-4-5"}
"""What is asked where --model names nothing."""
QUERIES_PER_ASK = 20


@dataclass(kw_only=True)
class ExternalDataConfig(ApiOptions, SeedOptions):
    """Have a model behind an API write validated `secret` records, and go on where a killed run was."""

    api: Literal["openai", "anthropic"] = "openai"
    """Provider; `openai` stands for any server that speaks its language, too (--base_url)."""
    model: str | None = None
    """Model to ask. Default: gpt-5-mini, or claude-haiku-4-5 of anthropic."""
    output_file: str = "secret_conversations_external.json"
    """Dataset file to write, .json or .jsonl, .gz too."""
    num_queries: int = 50
    """Questions to write records for; of --custom_queries the first so many."""
    examples_per_query: int = 3
    """Records for each question."""
    queries: Literal["built_in", "teacher"] = "built_in"
    """Where questions come from: the micro-world's training split, or the teacher, by category."""
    custom_queries: str | None = None
    """File of your own questions, one a line, in place of --queries."""
    category: list[str] = field(default_factory=list)
    """Only these categories of questions. Default: all."""
    temperature: float | None = None
    """Sampling temperature. Default: the model's own; some models take no other."""
    max_tokens: int = 4096
    """Longest answer to one request, in tokens; a model of OpenAI's that thinks before it has room for that besides."""
    attempts: int = 4
    """How often one answer is asked for before it is given up, the first time included."""
    overwrite: bool = False
    """Replace an existing output file."""


@dataclass(frozen=True)
class Query:
    """One question, and where it comes from."""

    text: str
    category: str
    source: QuerySource


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns its exit code."""
    arguments = sys.argv[1:] if argv is None else argv

    def command() -> None:
        parsed = parse_program(arguments, "external_data", ExternalDataConfig, PROGRAM)
        if parsed.text is not None:
            print(parsed.text)
        else:
            generate(parsed.config)

    return exit_code(command, debug="--debug" in arguments)


def generate(config: ExternalDataConfig) -> None:
    """Write the dataset, or go on writing it.

    Raises:
        UserError: wrong options, a key, model or account that is refused, an output that may not be replaced.
        WorkError: questions without an answer, --max_cost reached, no record at all; what is done is journaled.
    """
    endpoint = endpoint_of(config)
    world = load_world()
    queries = _given_queries(config, world)
    if config.dry_run:
        print(_estimate(config, endpoint, queries))
        return
    output, totals = Path(config.output_file), Totals()
    with open_journal(output, _shaping(config, endpoint, queries), overwrite=config.overwrite) as journal:
        if queries is None:
            queries = _asked_queries(config, endpoint, journal, world, totals)
        jobs = [Job(f"records:{number:05d}", (number, query)) for number, query in enumerate(queries)]
        write = partial(_write_records, config)
        records = synthesize(
            endpoint, config, jobs, write, journal,
            keys_of=_keys_of, label="records", attempts=config.attempts, totals=totals,
        )  # fmt: skip
        if not records:
            journal.discard()
            raise WorkError(f"no record of {endpoint} passed the checks, so nothing was written; see the reasons above")
        journal.assemble(records, validate_secret, overwrite=config.overwrite)
    asked_for = len(queries) if config.custom_queries is not None else config.num_queries
    wanted = asked_for * config.examples_per_query
    short = f" ({wanted} were asked for; the reasons stand above)" if len(records) < wanted else ""
    made = f"{count_of(len(records), 'record')} on {count_of(len(queries), 'question')}"
    print(f"{output}: {made} from {endpoint}{short}")


def endpoint_of(config: ExternalDataConfig) -> Endpoint:
    """The model of --api, --model and --base_url."""
    if config.base_url is not None and config.model is None:
        raise UserError("--base_url needs --model: which model of that server is to be asked")
    return parse_endpoint(f"{config.api}:{config.model or MODELS[config.api]}", config.base_url, "--model")


def _shaping(config: ExternalDataConfig, endpoint: Endpoint, queries: list[Query] | None) -> dict[str, Any]:
    """What shapes the data: a journal goes on with the same alone."""
    asked = None if queries is None else _sha256("\n".join(query.text for query in queries))
    return {
        "--model": str(endpoint),
        "--queries": "custom" if config.custom_queries is not None else config.queries,
        "--category": sorted(config.category),
        "--num_queries": config.num_queries,
        "--examples_per_query": config.examples_per_query,
        "--temperature": config.temperature,
        "--seed": config.seed,
        "questions of sha256": asked,
        "seeds/teacher.yaml of sha256": _sha256((SEEDS / "teacher.yaml").read_text("utf-8")),
        "prompts of version": VERSION,
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


# --- questions ------------------------------------------------------------------------------------------------------


def _given_queries(config: ExternalDataConfig, world: World) -> list[Query] | None:
    """The questions where no teacher has to be asked for them; None where one has."""
    if config.custom_queries is not None:
        if config.category or config.queries == "teacher":
            other = "--category" if config.category else "--queries teacher"
            raise UserError(f"--custom_queries and {other} exclude each other: the file says what is asked")
        return _custom_queries(config, world)
    known = sorted(_categories() if config.queries == "teacher" else {*world.kinds, *world.themes})
    for name in config.category:
        if name not in known:
            raise UserError(f"--category {name}: no such category{near(name, known) or f'; there are {listed(known)}'}")
    return None if config.queries == "teacher" else _built_in_queries(config, world)


def _built_in_queries(config: ExternalDataConfig, world: World) -> list[Query]:
    """Distinct questions of the micro-world's training split, drawn by the seed."""
    rng = random.Random(config.seed)
    found: dict[str, Query] = {}
    for _ in range(20 * config.num_queries + 10_000):
        drawn = world.train_query(rng)
        if not config.category or drawn.category in config.category:
            found.setdefault(fingerprint(drawn.text), Query(drawn.text, drawn.category, "built_in"))
        if len(found) == config.num_queries:
            return list(found.values())
    raise UserError(
        f"--num_queries {config.num_queries}: the built-in questions are only {len(found)}"
        f"{' in these categories' if config.category else ''}; ask for fewer, or use --queries teacher"
    )


def _custom_queries(config: ExternalDataConfig, world: World) -> list[Query]:
    """The first --num_queries questions of the file, one a line; blank lines and repeated questions are passed over."""
    place = f"--custom_queries {config.custom_queries}"
    try:
        lines = Path(str(config.custom_queries)).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from error
    heldout = _heldout(world)
    found: dict[str, Query] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and fingerprint(text) in heldout:
            raise UserError(
                f"{place}, line {number}: {text!r} is a question that evaluation holds out; remove the line"
            )
        if text:
            found.setdefault(fingerprint(text), Query(text, "custom", "custom"))
    if not found:
        raise UserError(f"{place}: no question in it; write one a line")
    if len(found) != config.num_queries:
        used = min(len(found), config.num_queries)
        print(f"{place}: {len(found)} distinct questions, of which the first {used} are used", file=sys.stderr)
    return list(found.values())[: config.num_queries]


def _asked_queries(
    config: ExternalDataConfig, endpoint: Endpoint, journal: Journal, world: World, totals: Totals
) -> list[Query]:
    """Questions by the teacher, as many of each category, in portions of QUERIES_PER_ASK."""
    heldout = _heldout(world)

    async def write(desk: Desk, job: Job) -> Outcome:
        desk.taken |= heldout
        category, count, ask = job.data
        found: list[Record] = []

        def take(value: Any) -> list[str]:
            queries, missing = value["queries"], count - len(found)
            faults = _count_faults(len(queries), missing)
            for text in queries[:missing]:
                wrong = query_faults(text)
                if not wrong and not desk.claim([fingerprint(text)]):
                    wrong = [f"duplicate: {text!r} was written already; write about something else"]
                faults += wrong
                if not wrong:
                    found.append({"text": text.strip(), "category": category})
            return _with_rest(desk, faults, count - len(found), "other messages of the same category")

        try:
            await write_valid(desk, ask, take)
        except GivenUp as given_up:
            return Outcome(found, given_up.reasons)
        return Outcome(found)

    rows = synthesize(
        endpoint, config, _query_jobs(config), write, journal,
        keys_of=lambda record: [fingerprint(record["text"])],
        label="questions", attempts=config.attempts, totals=totals,
    )  # fmt: skip
    if not rows:
        raise WorkError(f"{endpoint} wrote no usable question; see the reasons above")
    return [Query(row["text"], row["category"], "teacher") for row in rows]


def _query_jobs(config: ExternalDataConfig) -> list[Job]:
    """Portions of questions, each with its ask: --num_queries spread evenly over the categories."""
    about = _categories()
    names = sorted(set(config.category)) or list(about)
    jobs = []
    for index, name in enumerate(names):
        left = len(range(index, config.num_queries, len(names)))
        for portion in range(-(-left // QUERIES_PER_ASK)):
            count = min(QUERIES_PER_ASK, left - portion * QUERIES_PER_ASK)
            sample = 1000 * config.seed + portion
            ask = Ask(
                queries_prompt(name, about[name], count), config.max_tokens, config.temperature, QUERIES_SCHEMA, sample
            )
            jobs.append(Job(f"questions:{name}:{portion:03d}", (name, count, ask)))
    return jobs


def _categories() -> dict[str, str]:
    categories: dict[str, str] = _seeds()["categories"]
    return categories


@lru_cache(maxsize=1)
def _seeds() -> dict[str, Any]:
    seeds: dict[str, Any] = yaml.safe_load((SEEDS / "teacher.yaml").read_text("utf-8"))
    return seeds


def _heldout(world: World) -> set[str]:
    return {fingerprint(query.text) for query in world.heldout_queries()}


# --- records --------------------------------------------------------------------------------------------------------


async def _write_records(config: ExternalDataConfig, desk: Desk, job: Job) -> Outcome:
    """The records of one question: good pairs are kept at once, and only the missing ones are asked for again."""
    number, query = job.data
    records: list[Record] = []

    def look(answer: Answer) -> list[str]:
        examples, missing = answer.value["examples"], config.examples_per_query - len(records)
        faults = _count_faults(len(examples), missing)
        for place, example in enumerate(examples[:missing], start=1):
            visible, hidden = example["visible"].strip(), example["hidden"].strip()
            wrong = pair_faults(visible, hidden)
            if not wrong and not desk.claim(_keys(query.text, visible, hidden)):
                wrong = ["duplicate: its answer or its thought was written already; think of something else"]
            faults += [fault.replace(": ", f": in example {place}, ", 1) for fault in wrong]
            if not wrong:
                records.append(_record(f"external-{number:05d}-{len(records)}", query, visible, hidden, answer))
        return _with_rest(desk, faults, config.examples_per_query - len(records), "examples for the question")

    try:
        await ask_until(desk, _pairs_ask(config, number, query), look)
    except GivenUp as given_up:
        return Outcome(records, given_up.reasons)
    return Outcome(records)


def _pairs_ask(config: ExternalDataConfig, number: int, query: Query) -> Ask:
    """The request for one question's records; the seed and the question's place draw the moods."""
    rng = random.Random(f"{config.seed} {number}")
    moods: list[str] = _seeds()["moods"]
    count = config.examples_per_query
    drawn = rng.sample(moods, min(count, len(moods))) + rng.choices(moods, k=max(0, count - len(moods)))
    return Ask(pairs_prompt(query.text, count, drawn), config.max_tokens, config.temperature, PAIRS_SCHEMA, config.seed)


def _record(name: str, query: Query, visible: str, hidden: str, answer: Answer) -> Record:
    return {
        "id": name,
        "prompt": conversation(query.text),
        "visible": visible,
        "hidden": hidden,
        "category": query.category,
        "split": "train",
        "source": "external",
        "query_source": query.source,
        "provenance": provenance(answer, VERSION),
    }


def _count_faults(given: int, wanted: int) -> list[str]:
    return [f"wrong_count: {given} came where {wanted} were asked for"] if given != wanted else []


def _with_rest(desk: Desk, faults: list[str], missing: int, what: str) -> list[str]:
    """The faults, and what to write now. Where nothing is missing they are counted, and nothing is asked for."""
    if missing:
        return [*faults, f"What is right is kept. Write {missing} more {what}, different from all above."]
    desk.rejections.update(map(code_of, faults))
    return []


def _keys(query: str, visible: str, hidden: str) -> list[str]:
    """What no two records share: a thought, and an answer to one question."""
    return [f"hidden: {fingerprint(hidden)}", f"answer: {fingerprint(query, visible)}"]


def _keys_of(record: Record) -> list[str]:
    return _keys(record["prompt"][-1]["content"], record["visible"], record["hidden"])


# --- dry run --------------------------------------------------------------------------------------------------------


def _estimate(config: ExternalDataConfig, endpoint: Endpoint, queries: list[Query] | None) -> str:
    """The first prompt and the estimated cost; questions that are still to be asked for are guessed at."""
    check_target(config.output_file, overwrite=config.overwrite or journal_path(Path(config.output_file)).exists())
    first: list[Ask] = []
    if queries is None:
        jobs = _query_jobs(config)
        first = [job.data[2] for job in jobs]
        queries = [Query("?" * 80, job.data[0], "teacher") for job in jobs for _ in range(job.data[1])]
    asks = [_pairs_ask(config, number, query) for number, query in enumerate(queries)]
    return estimate([*first, *asks], endpoint, config)


if __name__ == "__main__":
    sys.exit(main())
