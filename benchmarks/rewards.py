"""What the rewards cost: microseconds a completion for each, growth with length, hostile texts, import time.

    OMP_NUM_THREADS=1 python -m benchmarks.rewards

Every text is scored once and all are distinct, so that nothing kept from before flatters a number: a reward alone pays
for measuring the text, all together measure it once. Texts are answers and thoughts of the micro-world strung together,
half visible, half hidden. The best of some batches is printed, since the machine may be doing other things.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections.abc import Callable

from dataset.world import World, load_world
from model_training.config import REWARD_FUNCS
from model_training.rewards import REGISTRY, resolve, score
from utils.extraction import format_response, parse, parse_lenient

ROUNDS = 50
GROUP, BATCH = 6, 48
"""Completions of one question, and of one batch, as in training."""
SIZES = (1_000, 10_000, 100_000)
GOAL_US, GOAL_S = 50.0, 1.0
SOURCE_PATTERN = re.compile(r"<visible>.*?</visible>.*?<hidden>.*?</hidden>", re.DOTALL)
"""The source system's search, quadratic in the number of opening tags that nothing closes."""

Batch = tuple[list[str], list[str], list[str]]
"""Completions, questions, reference answers."""


def texts(world: World, rng: random.Random, characters: int, count: int) -> Batch:
    """`count` distinct completions of about so many characters, GROUP for each question and its reference answer."""
    completions, questions, references = [], [], []
    for number in range(count):
        if number % GROUP == 0:
            query = world.any_query(rng)
            reference = world.answer(query, rng)
        visible, hidden = world.answer(query, rng), world.thought(query, rng)
        while len(visible) + len(hidden) < characters - 80:
            other = world.any_query(rng)
            if len(visible) < len(hidden):
                visible += " " + world.answer(other, rng)
            else:
                hidden += " " + world.thought(other, rng)
        completions.append(format_response(visible, hidden))
        questions.append(query.text)
        references.append(reference)
    return completions, questions, references


def cost_us(names: list[str], world: World, characters: int, seed: int) -> float:
    """Microseconds a completion: the best of ROUNDS batches of fresh texts."""
    rewards = resolve(names)
    batch = BATCH if characters <= 1_000 else GROUP
    best = float("inf")
    for number in range(ROUNDS if characters <= 10_000 else ROUNDS // 5):
        completions, questions, references = texts(world, random.Random(f"{seed}.{number}.{names}"), characters, batch)
        start = time.perf_counter()
        score(rewards, completions, questions, visible=references)
        best = min(best, (time.perf_counter() - start) / batch)
    return best * 1e6


def hostile_texts(size: int) -> dict[str, str]:
    """Texts of about `size` characters that a careless parser takes quadratic time for."""
    pieces = {
        "<": "<",
        "<visible": "<visible",
        "<visible ": "<visible ",
        "<visible>": "<visible>",
        "< + 99 spaces": "<" + " " * 99,
        "</ + 99 spaces": "</" + " " * 99,
        "alternating": "<visible></hidden>",
        "nested": "<hidden><visible>",
        "x < y": "x < y",
    }
    repeated = {name: piece * (size // len(piece)) for name, piece in pieces.items()}
    return repeated | {
        "< + all spaces": "<" + " " * size,
        "blank body": f"<visible>{' ' * (size // 2)}</visible><hidden>{' ' * (size // 2)}",
        "unclosed, attributes": "<visible>" + "<hidden " + "x " * (size // 2),
    }


def seconds(function: Callable[[str], object], text: str) -> float:
    """The time of one call."""
    start = time.perf_counter()
    function(text)
    return time.perf_counter() - start


def import_ms(module: str) -> float:
    """Milliseconds that importing takes in a fresh interpreter, without its own start; the best of five."""
    code = f"import time; s = time.perf_counter(); import {module}; print((time.perf_counter() - s) * 1e3)"
    runs = (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5))
    return min(float(run.stdout) for run in runs)


def main() -> None:
    """Print the table."""
    world = load_world()
    row = "{:<34} {:>12} {:>12} {:>12}".format
    all_names = list(REWARD_FUNCS)
    print(f"Python {sys.version.split()[0]}, one thread\n")
    print(row("microseconds a completion of", "1 kB", "10 kB", "100 kB"))
    for label, names in [(name, [name]) for name in all_names] + [("all defaults together", all_names)]:
        costs = [cost_us(names, world, size, seed=size) for size in SIZES]
        print(row(label, *(f"{cost:.1f}" for cost in costs)))
    print(
        row("  of it, for each 1 kB", *(f"{cost * 1_000 / size:.1f}" for cost, size in zip(costs, SIZES, strict=True)))
    )
    print(f"  goal for 1 kB: at most {GOAL_US:.0f}: {'met' if costs[0] <= GOAL_US else 'MISSED'}")
    source = [name for name in REGISTRY if name.startswith("source_")]
    print(row("the source's eight together", *(f"{cost_us(source, world, size, seed=size):.1f}" for size in SIZES)))

    print("\n" + row("seconds for a hostile text of 2 MB", "strict", "lenient", "all rewards"))
    worst = 0.0
    rewards = resolve(all_names)
    for name, text in hostile_texts(2_000_000).items():
        times = [
            seconds(parse, text),
            seconds(parse_lenient, text),
            seconds(lambda t: score(rewards, [t], ["Why?"]), text),
        ]
        worst = max(worst, *times[:2])
        print(row(name, *(f"{value:.3f}" for value in times)))
    print(f"  goal: parsed in under {GOAL_S:.0f} s: {'met' if worst < GOAL_S else 'MISSED'}")

    print("\n" + row("milliseconds, <visible> repeated", "9 kB", "18 kB", "growth"))
    for label, function in (("ours, strict", parse), ("the source's search", SOURCE_PATTERN.search)):
        small, large = (min(seconds(function, "<visible>" * n) for _ in range(5)) for n in (1_000, 2_000))
        print(row(label, f"{small * 1e3:.2f}", f"{large * 1e3:.2f}", f"x {large / small:.1f}"))

    print(
        f"\nimport model_training.rewards: {import_ms('model_training.rewards'):.0f} ms, "
        f"utils.extraction: {import_ms('utils.extraction'):.0f} ms"
    )


if __name__ == "__main__":
    main()
