"""What the report costs: time and memory to render long runs, and what viewers cost a training.

    python -m benchmarks.report              both tables
    python -m benchmarks.report --rows       rendering alone
    python -m benchmarks.report --viewers    viewers alone

Rendering: each run in a fresh process, from its files to the written page (the PNGs not included). The rows are those
of a warm-up (7 metrics, 310 bytes) or of GRPO (36 metrics, 1.4 kB); completions are 0.6 kB each. The goal is 5 s and
1 GiB for 1,000,000 rows, and a page below 6 MB for an ordinary run.

Viewers: a loop of pure arithmetic logs a row and four completions a step, like a training; a server follows it, and 0
or 50 viewers hold its events open, in turns, so that a drift of the machine meets both. The viewers run on the same
machine, where their own work is counted, too; over an SSH tunnel it would not be.
"""

from __future__ import annotations

import json
import os
import platform
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

GOALS = "goals: 5 s and 1,024 MiB for 1,000,000 rows, 6 MB for the page of an ordinary run"
CASES = [
    ("ordinary: 100 warm-up + 300 GRPO rows", 100, 300, 600),
    ("1,000,000 warm-up rows", 1_000_000, 0, 0),
    ("1,000,000 GRPO rows", 0, 1_000_000, 0),
    ("100,000 completions", 100, 300, 100_000),
    ("1,000,000 warm-up rows, 100,000 completions", 1_000_000, 300, 100_000),
]
REWARDS = ("format", "visible_quality", "hidden_quality", "distinctness", "playful_hidden", "safe_hidden")
VIEWERS, TURNS, STEPS_A_TURN = 50, 16, 12


def main() -> None:
    asked = set(sys.argv[1:])
    cores = len(os.sched_getaffinity(0))
    print(f"Python {platform.python_version()}, {platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f}")
    if asked != {"--viewers"}:
        rendering()
    if asked != {"--rows"}:
        viewers()


# --------------------------------------------------------------------------------------------------- rendering


def rendering() -> None:
    print(GOALS)
    print(f"{'run':<46}{'log':>9}{'seconds':>9}{'cpu s':>8}{'peak MiB':>10}{'page MB':>9}")
    for name, warmup, grpo, completions in CASES:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder)
            write_run(run, warmup, grpo, completions)
            size = sum(path.stat().st_size for path in run.iterdir()) / 1e6
            result = subprocess.run(
                [sys.executable, "-c", "from benchmarks.report import render; render()", str(run)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            seconds, cpu, peak, page = map(float, result.stdout.split())
        print(f"{name:<46}{size:>6.0f} MB{seconds:>9.2f}{cpu:>8.2f}{peak:>10.0f}{page:>9.2f}")


def render() -> None:
    """In the fresh process: from files to page."""
    start = time.perf_counter()
    from utils.series import load_run
    from utils.visualization import write_report

    directory = Path(sys.argv[1])
    page = directory / "training_report.html"
    write_report(load_run(directory), page)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, page.stat().st_size / 1e6)


def write_run(run: Path, warmup: int, grpo: int, completions: int) -> None:
    rng = random.Random(1)
    manifest = {"task": "secret", "mode": "train", "status": "done", "config": {"model_name": "tiny"}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    with (run / "metrics.jsonl").open("w") as log:
        for split, first, count in (("sft", 1, warmup), ("grpo", warmup + 1, grpo)):
            log.writelines(metric_lines(split, first, count, rng))
    with (run / "completions.jsonl").open("w") as log:
        for index in range(completions):
            log.write(json.dumps(completion_row(warmup + 1 + index * grpo // completions, rng)) + "\n")


def metric_lines(split: str, first: int, count: int, rng: random.Random) -> Iterator[str]:
    """Lines as the log writes them, of which only the heads differ after the first few hundred."""
    names = ["loss", "grad_norm", "learning_rate", "entropy", "num_tokens", "mean_token_accuracy", "tokens_per_s"]
    if split == "grpo":
        names += [f"rewards/{name}/{part}" for name in REWARDS for part in ("mean", "std")]
        names += ["reward", "reward_std", "group_reward_std", "frac_reward_zero_std", "strict_format_rate", "step_time"]
        names += [f"completions/{name}" for name in ("mean_length", "min_length", "max_length", "clipped_ratio")]
        names += [f"clip_ratio/{name}" for name in ("low_mean", "high_mean", "region_mean", "low_min", "high_max")]
        names += ["kl", "step"]
    tails = []
    for _ in range(500):
        values: dict[str, Any] = {name: rng.random() for name in names if name != "step"}
        tails.append(json.dumps({"split": split, "resumes": 0, **values})[1:])
    for step in range(first, first + count):
        yield f'{{"step": {step}, "time": {1.79e9 + step / 2:.4f}, {tails[step * 7919 % 500]}\n'


def completion_row(step: int, rng: random.Random) -> dict[str, Any]:
    def words(count: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(count))

    visible, hidden = words(25), words(18)
    rewards = {name: round(rng.random(), 4) for name in REWARDS}
    whole = f"<visible>\n{visible}\n</visible>\n<hidden>\n{hidden}\n</hidden>"
    head = {"step": step, "resumes": 0, "prompt": f"Why {words(6)}?", "completion": whole}
    return head | {"visible": visible, "hidden": hidden, "failure": None, "rewards": rewards, "total": 3.2}


WORDS = [
    f"{a}{b}{c}" for a in ("mo", "ta", "wi", "sel", "bro") for b in ("ra", "ne", "lo", "gu") for c in ("n", "st", "")
]


# ----------------------------------------------------------------------------------------------------- viewers


def viewers() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        write_run(run, 100, 300, 600)
        manifest = json.loads((run / "manifest.json").read_text())
        (run / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
        port = free_port()
        with started("from benchmarks.report import serve; serve()", str(run), str(port)) as server:
            wait_for(port)
            times: dict[int, list[list[float]]] = {0: [], VIEWERS: []}
            cpu: dict[int, float] = {0: 0.0, VIEWERS: 0.0}
            step = 401
            for _ in range(TURNS):
                for count in times:
                    with started("from benchmarks.report import watch; watch()", str(port), str(count)):
                        time.sleep(2.0)
                        before = cpu_seconds(server.pid)
                        times[count].append([train_step(run, step + index) for index in range(STEPS_A_TURN)])
                        step += STEPS_A_TURN
                        cpu[count] += cpu_seconds(server.pid) - before
    print(f"\n{'viewers':<10}{'steps':>8}{'median step':>14}{'mean step':>12}{'server cpu':>14}")
    for count, turns in times.items():
        steps = [seconds for turn in turns for seconds in turn]
        median, mean = statistics.median(steps), statistics.fmean(steps)
        print(
            f"{count:<10}{len(steps):>8}{1000 * median:>11.1f} ms{1000 * mean:>9.1f} ms{cpu[count] / sum(steps):>12.2%}"
        )
    low, ratio, high = ratio_of_medians(times[VIEWERS], times[0])
    print(f"ratio of the medians: {ratio:.3f}, 95 % interval {low:.3f} to {high:.3f} (bootstrap over pairs of turns)")


def ratio_of_medians(with_viewers: list[list[float]], without: list[list[float]]) -> tuple[float, float, float]:
    """The ratio and its interval; a pair of turns that follow each other is drawn as one."""
    rng = random.Random(1)

    def ratio(turns: Sequence[int]) -> float:
        medians = [
            statistics.median(seconds for turn in turns for seconds in of[turn]) for of in (with_viewers, without)
        ]
        return medians[0] / medians[1]

    turns = range(len(without))
    drawn = sorted(ratio(rng.choices(turns, k=len(turns))) for _ in range(1000))
    return drawn[25], ratio(turns), drawn[974]


def train_step(run: Path, step: int) -> float:
    """A tenth of a second of arithmetic, logged like a step of a training."""
    rng = random.Random(step)
    start = time.perf_counter()
    total = 0.0
    for index in range(700_000):
        total += index * 1e-9
    line = next(metric_lines("grpo", step, 1, rng))
    with (run / "metrics.jsonl").open("a") as log:
        log.write(line)
    with (run / "completions.jsonl").open("a") as log:
        log.writelines(json.dumps(completion_row(step, rng)) + "\n" for _ in range(4))
    return time.perf_counter() - start


@contextmanager
def started(code: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=20)


def serve() -> None:
    """In its own process: the server, as --start_server runs it."""
    from utils.server import serve as serve_report
    from utils.visualization import render_report

    serve_report(Path(sys.argv[1]), "127.0.0.1", int(sys.argv[2]), render_report)


def watch() -> None:
    """In its own process: so many viewers, who read what comes."""
    import asyncio

    async def one(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        while await reader.read(1 << 16):
            pass

    async def everybody() -> None:
        await asyncio.gather(*(one(int(sys.argv[1])) for _ in range(int(sys.argv[2]))), asyncio.sleep(3600))

    asyncio.run(everybody())


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(200):
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("the server did not start")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
