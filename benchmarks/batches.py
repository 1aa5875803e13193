"""Batches against the stub server: what the client costs, and whether kills ever make it pay twice.

    python -m benchmarks.batches                            five minutes on an idle machine
    python -m benchmarks.batches --providers openai --requests 1000 --kills 5

cpu     CPU time a request of one run, from the asks to the replies
kills   a run of 100 requests in 10 batches, killed at random moments and begun again until it ends, with and without
        the cache: 100 requests are to be in batches at the end, each in one

The stub finishes a batch at the 30th look. Polls come every 20 to 50 ms here, not every 5 to 60 s.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from benchmarks.api_stub import Stub, stub
from utils.api.types import Answer, Ask

ROOT = Path(__file__).resolve().parents[1]
PROVIDERS = ("openai", "anthropic")
SMALL_BATCH = 10
REQUESTS_UNTIL_KILLED = 100
MOMENT_S = (0.0, 1.5)
"""Between these, counted from when it begins to ask, a process is killed; undisturbed it takes about that long."""
SCHEMA = {"type": "object", "properties": {"tree": {"type": "string"}}, "required": ["tree"]}


def asks_of(count: int) -> list[Ask]:
    system = {"role": "system", "content": "You name trees. " * 20}
    return [Ask((system, {"role": "user", "content": f"tree {n}"}), 100, schema=SCHEMA) for n in range(count)]


def child(endpoint: str, folder: Path, cache: str, count: int, batch_size: int | None) -> None:
    """The process that is measured and killed: asks, checks the replies, prints its CPU time in seconds."""
    from utils.api import batch_providers, batches
    from utils.api.endpoints import parse_endpoint
    from utils.api.options import ApiOptions

    batches.POLL_S, batches.FIND_AFTER_S = (0.02, 0.05), (0.0, 0.05)
    if batch_size is not None:
        known = batch_providers.batch_provider
        vars(batches)["batch_provider"] = lambda name: replace(known(name), max_requests=batch_size)
    asks, options = asks_of(count), ApiOptions(cache_dir=cache)
    importlib.import_module(endpoint.partition(":")[0])
    print("ready", flush=True)
    began = time.process_time()
    replies = batches.ask_all_batched(parse_endpoint(endpoint, None, "--model"), options, asks, folder / "state.json")
    spent_s = time.process_time() - began
    wanted = [ask.messages[-1]["content"] for ask in asks]
    assert [reply.value["tree"] if isinstance(reply, Answer) else None for reply in replies] == wanted
    print(spent_s)


def start(server: Stub, provider: str, *arguments: object) -> subprocess.Popen[str]:
    url = server.base_url if provider == "openai" else server.url
    command = [sys.executable, "-m", "benchmarks.batches", "--child", f"{provider}:stub-model@{url}"]
    keys = {"OPENAI_API_KEY": "no-key", "ANTHROPIC_API_KEY": "no-key"}
    return subprocess.Popen(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | keys
    )


def cpu_ms(provider: str, requests: int) -> float:
    """CPU time of one request in the client, in ms."""
    with stub(answer=_echo) as server, tempfile.TemporaryDirectory() as folder:
        said, _ = start(server, provider, folder, f"{folder}/cache", requests).communicate()
        return 1000 * float(said.split()[-1]) / requests


def killed(provider: str, cached: bool, kills: int, draws: random.Random) -> tuple[int, int]:
    """Requests in all batches, and how many of them are there more than once, after so many kills."""
    with stub(answer=_echo) as server, tempfile.TemporaryDirectory() as folder:
        assert server.desk is not None
        server.desk.polls = 30
        done = 0
        while True:
            cache = f"{folder}/cache" if cached else "none"
            process = start(server, provider, folder, cache, REQUESTS_UNTIL_KILLED, SMALL_BATCH)
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            try:
                process.wait(draws.uniform(*MOMENT_S) if done < kills else 300)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                done += 1
                continue
            assert process.returncode == 0
            made = Counter(json.dumps(body) for body in server.desk.submitted)
            return made.total(), made.total() - len(made)


def _echo(messages: list[dict[str, str]], schema: object, n: int) -> str:
    return json.dumps({"tree": messages[-1]["content"]})


def main() -> None:
    parser = argparse.ArgumentParser(description="Batches against the stub server; prints one table.")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=PROVIDERS)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        endpoint, folder, cache, count, *batch_size = given.child
        child(endpoint, Path(folder), cache, int(count), int(batch_size[0]) if batch_size else None)
        return
    draws = random.Random(given.seed)
    print("| provider | CPU, ms a request | kills | requests in batches | of them twice |")
    print("| --- | --- | --- | --- | --- |")
    for provider in given.providers:
        ms = cpu_ms(provider, given.requests)
        found = [killed(provider, cached, given.kills, draws) for cached in (True, False)]
        requests, twice = (" and ".join(str(pair[part]) for pair in found) for part in (0, 1))
        print(f"| {provider} | {ms:.2f} | {given.kills} and {given.kills} | {requests} | {twice} |", flush=True)


if __name__ == "__main__":
    main()
