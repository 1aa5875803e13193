"""Data from APIs, measured against the stub server: faults, throughput, the client's own cost, kills.

    python -m benchmarks.synthesis                  all parts, about six minutes
    python -m benchmarks.synthesis --parts faults cpu --requests 200
    python -m benchmarks.synthesis --parts kills --kills 20

faults      requests of which 30 % meet a fault, of every kind that the stub knows, until every record is valid
throughput  time over the least that limit and latency allow, max(N / R, N L / concurrency), which is to stay below 1.1,
            beside it what the bare SDK takes on the same machine, which says how busy that is;
            and in steady state (the middle 80 % of the requests) the share of the limit, which is to be above 98 %
cpu         CPU time a request in this process, of the client and of the bare SDK with the same requests; the
            difference is to stay below 2 ms
kills       a run of 500 records by dataset.external_dataset_generator, killed at random moments and begun again:
            exactly 500 at the end, no request paid twice within a run, and no more paid again by later runs than
            were in flight at the kill

The server is a process of its own, so that its CPU time is not the client's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.api_stub import CONTENT_FAULTS, FAULTS
from utils.api.client import ApiClient, ask_all, run
from utils.api.endpoints import Endpoint
from utils.api.options import ApiOptions
from utils.api.progress import Totals
from utils.api.types import Answer, Ask
from utils.api.workers import each

ROOT = Path(__file__).resolve().parents[1]
RECORDS = 500
SAMPLES = 30
IN_FLIGHT = 10
"""--concurrency of the run that is killed: so many paid replies can be lost at a kill."""
SCHEMA = {
    "type": "object",
    "properties": {
        "pairs": {
            "type": "array",
            "minItems": 3,
            "items": {
                "type": "object",
                "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
                "required": ["question", "answer"],
            },
        }
    },
    "required": ["pairs"],
}
Json = dict[str, Any]


def main() -> None:
    parts: dict[str, Callable[[argparse.Namespace], None]] = {
        "faults": faults,
        "throughput": throughput,
        "cpu": cpu,
        "kills": kills,
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"Python {platform.python_version()}, {platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f}")
    for name in given.parts:
        parts[name](given)


def row(name: str, value: str, goal: str = "") -> None:
    print(f"  {name:<58}{value:>16}  {goal}".rstrip(), flush=True)


@contextlib.contextmanager
def server(*arguments: str) -> Iterator[str]:
    """URL of a stub server in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.api_stub", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def state(url: str) -> Json:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/_stub/state") as reply:
        found: Json = json.load(reply)
    return found


def ask(number: int, sample: int = 0) -> Ask:
    messages = (
        {"role": "system", "content": "You write pairs of a question and its answer."},
        {"role": "user", "content": f"Write three pairs on subject {number}."},
    )
    return Ask(messages, max_tokens=300, schema=SCHEMA, sample=sample)


# --- faults -----------------------------------------------------------------------------------------------------------


def faults(given: argparse.Namespace) -> None:
    for provider in ("openai", "anthropic"):
        print(f"{given.requests:,} records of {provider} with faults on 30 % of the requests")
        arguments = ["--fault_rate", "0.3", "--latency_s", "0.05", "--seed", str(given.seed)]
        with server(*arguments) as url, tempfile.TemporaryDirectory() as cache:
            endpoint = Endpoint(provider, "gpt-4o", f"{url}/v1")
            totals, short = Totals(), [0]
            begun = time.monotonic()
            options = ApiOptions(cache_dir=cache, request_timeout=2.0)
            work = partial(all_valid, count=given.requests, short=short)
            records = run(endpoint, options, work, totals=totals)
            seconds, counts = time.monotonic() - begun, state(url)["counts"]
        wire = sum(counts.get(name, 0) for name in FAULTS if name not in CONTENT_FAULTS)
        content = sum(counts.get(name, 0) for name in CONTENT_FAULTS)
        row("valid records", f"{len(records):,}", f"of {given.requests:,}")
        row("duplicates", str(len(records) - len({json.dumps(record) for record in records})), "0")
        row("faults of server and connection, counted as retries", f"{totals.retries.total():,}", f"injected {wire:,}")
        row("answers of no use, counted by reason", f"{totals.failures.total() + short[0]:,}", f"injected {content:,}")
        row("requests", f"{totals.requests:,}", f"arrived {counts['requests']:,}")
        row("time", f"{seconds:.1f} s")


async def all_valid(client: ApiClient, count: int, short: list[int]) -> list[Json]:
    """So many records; an answer of no use is asked for again. `short` counts those with too few pairs."""

    async def one(number: int) -> Json:
        for sample in range(SAMPLES):
            reply = await client.ask(ask(number, sample))
            if isinstance(reply, Answer) and len(reply.value["pairs"]) == 3:
                found: Json = reply.value
                return found
            short[0] += isinstance(reply, Answer)
        raise RuntimeError(f"no valid record {number} in {SAMPLES} samples")

    return [record async for record in each(range(count), one, client.options.concurrency)]


# --- throughput -------------------------------------------------------------------------------------------------------


def throughput(given: argparse.Namespace) -> None:
    for count, limit, latency_s, concurrency in (
        (int(1.2 * given.requests), given.requests, 0.5, 25),
        (given.requests, None, 0.5, 25),
        (given.requests, None, 0.2, 8),
    ):
        limited = f"limit {limit:,}/min" if limit else "no limit"
        print(f"{count:,} requests, {limited}, latency {latency_s} s, concurrency {concurrency}")
        arguments = ["--latency_s", str(latency_s)]
        with server(*arguments, *(["--requests_per_minute", str(limit)] if limit else [])) as url:
            options = ApiOptions(cache_dir="none", concurrency=concurrency, requests_per_minute=limit)
            endpoint = Endpoint("openai", "gpt-4o", f"{url}/v1")
            ask_all(endpoint, ApiOptions(cache_dir="none"), [ask(-1)])  # the SDK's import is not the run's
            begun = time.monotonic()
            ask_all(endpoint, options, [ask(number) for number in range(count)])
            seconds, seen = time.monotonic() - begun, state(url)
            if limit is None:
                begun = time.monotonic()
                run(endpoint, options, partial(bare, asks=[ask(-number) for number in range(count)]))
                sdk_s = time.monotonic() - begun
        least_s = max(count * latency_s / concurrency, count / limit * 60 if limit else 0.0)
        arrivals = [one["time"] for one in seen["log"][1:]]
        first, last = len(arrivals) // 10, len(arrivals) * 9 // 10
        per_minute = (last - first) / (arrivals[last] - arrivals[first]) * 60
        most = limit or 60 * concurrency / latency_s
        row("time", f"{seconds:.1f} s", f"least possible {least_s:.1f} s")
        row("ratio", f"{seconds / least_s:.3f}", "at most 1.1")
        if limit is None:
            row("ratio of the bare SDK, here and now", f"{sdk_s / least_s:.3f}")
        row("steady state, of the limit" if limit else "steady state, of concurrency / latency",
            f"{per_minute / most:.1%}", "at least 98 %" if limit else "")  # fmt: skip
        if limit:
            row("requests above the limit in any minute", str(seen["counts"].get("violations", 0)), "0")


# --- CPU --------------------------------------------------------------------------------------------------------------


def cpu(given: argparse.Namespace) -> None:
    print(f"CPU time a request, {given.requests:,} requests, concurrency 25, cache on disk, the better of 3 runs")
    for provider in ("openai", "anthropic"):
        with server() as url, tempfile.TemporaryDirectory() as cache:
            endpoint = Endpoint(provider, "gpt-4o", f"{url}/v1")
            run(endpoint, ApiOptions(cache_dir=cache), partial(bare, asks=[ask(0)]))
            ours, sdks = [], []
            for turn in range(3):
                asks = [ask(1000 * given.requests * turn + number) for number in range(given.requests)]
                begun = time.process_time()
                ask_all(endpoint, ApiOptions(cache_dir=cache), asks)
                ours.append((time.process_time() - begun) / given.requests * 1000)
                begun = time.process_time()
                run(endpoint, ApiOptions(cache_dir="none"), partial(bare, asks=asks))
                sdks.append((time.process_time() - begun) / given.requests * 1000)
        row(f"{provider}: this client", f"{min(ours):.2f} ms")
        row(f"{provider}: the SDK alone", f"{min(sdks):.2f} ms")
        row(f"{provider}: difference", f"{min(ours) - min(sdks):.2f} ms", "below 2 ms")


async def bare(client: ApiClient, asks: list[Ask]) -> None:
    """The same requests as the SDK's own methods send them, and no more done with the reply."""
    slots = asyncio.Semaphore(client.options.concurrency)
    anthropic = client.endpoint.provider == "anthropic"

    async def one(ask: Ask) -> None:
        system, user = ask.messages
        async with slots:
            if anthropic:
                await client.server.messages.create(
                    model="gpt-4o",
                    max_tokens=300,
                    system=system["content"],
                    messages=[user],
                    output_config={"format": {"type": "json_schema", "schema": CLOSED}},
                )
            else:
                schema = {"name": "answer", "schema": CLOSED, "strict": True}
                await client.server.chat.completions.create(
                    model="gpt-4o",
                    max_tokens=300,
                    messages=[system, user],
                    response_format={"type": "json_schema", "json_schema": schema},
                )

    await asyncio.gather(*map(one, asks))


def _closed() -> Json:
    from utils.api.structured import strict

    return strict(SCHEMA)


CLOSED = _closed()

# --- kills ------------------------------------------------------------------------------------------------------------


def kills(given: argparse.Namespace) -> None:
    print(f"a run of {RECORDS} records, killed {given.kills} times at random moments and begun again")
    rng = random.Random(given.seed)
    starts: list[float] = []
    arguments = ["--latency_s", "0.3", "--answer", "benchmarks.api_stub_teacher:teacher", "--fault_rate", "0.1"]
    arguments += ["--fault_kinds", *"429 500 529 drop invalid_json wrong_count".split()]
    with tempfile.TemporaryDirectory() as directory, server(*arguments) as url:
        output = Path(directory) / "records.json"
        command = [
            *(sys.executable, "-m", "dataset.external_dataset_generator", "--api", "openai", "--model", "stub-model"),
            *("--base_url", f"{url}/v1", "--output_file", str(output), "--cache_dir", f"{directory}/cache"),
            *("--num_queries", str(RECORDS), "--examples_per_query", "1", "--concurrency", str(IN_FLIGHT)),
            *("--request_timeout", "30", "--seed", "1"),
        ]
        killed, kept = 0, Path(directory) / "log"
        while not output.exists():
            starts.append(time.monotonic())
            with kept.open("ab") as log:
                process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
            if killed < given.kills:
                wait_for_a_moment(url, rng)
                process.kill()
                killed += process.wait() == -signal.SIGKILL
            elif process.wait() != 0:
                raise SystemExit(kept.read_text("utf-8", "replace")[-2000:])
        seen, records = state(url), json.loads(output.read_text("utf-8"))
    paid = [(one["body"], bisect(starts, one["time"])) for one in seen["log"] if one["status"] == 200]
    again = Counter(body for body, _ in paid)
    again.subtract(set(again))
    last_run = dict(sorted(paid, key=lambda one: one[1]))
    lost = Counter(run for body, run in set(paid) if run < last_run[body])
    row("kills, runs", f"{killed}, {len(starts)}")
    row("records", str(len(records)), f"exactly {RECORDS}")
    row(
        "records that are there twice",
        str(len(records) - len({json.dumps(record["prompt"]) for record in records})),
        "0",
    )
    row("paid requests, of them paid again", f"{len(paid)}, {again.total()}")
    row("paid again within a run", str(len(paid) - len(set(paid))), "0")
    row("most of a run that the next ones paid again", str(max(lost.values(), default=0)), f"{IN_FLIGHT} in flight")


def wait_for_a_moment(url: str, rng: random.Random) -> None:
    """A fifth of the kills meet a run that begins, the others one that has sent requests for up to two seconds."""
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0.2, 2.0))
        return
    before = state(url)["counts"].get("requests", 0)
    for _ in range(600):
        time.sleep(0.05)
        if state(url)["counts"].get("requests", 0) > before:
            break
    time.sleep(rng.uniform(0.0, 2.0))


if __name__ == "__main__":
    main()
