"""Evaluation in batches by length against a plain loop that asks one query at a time: prompts a second, side by side.

    OMP_NUM_THREADS=1 python -m benchmarks.evaluation
    OMP_NUM_THREADS=1 python -m benchmarks.evaluation --save_lora_path secret_conversations_lora --repeats 3

Held-out queries of the micro-world, answered greedily by the embedded model, with an adapter under the system text that
it was trained under. The plain loop is what evaluation scripts do: for each query apply_chat_template, model.generate,
decode. Both call the same model object in the same process and end at the same tokens; rounding of the padded batches
aside the answers are the same, and how many are is printed.

The two take turns, --repeats times, over all the queries, each after a few that warm up. The ratio is that of the
processor time of one thread, so that other programs on the machine count little; that of the clock stands beside it.
Exit code 1 if its median is below the goal.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from dataset.world import load_world
from evaluation.sampling import Message, sample
from evaluation.secret import spread
from prompts.secret import conversation

GOAL = 5.0
WARM_UP = 4
"""Queries before the clock."""
Answer = Callable[[list[list[Message]]], list[str]]


def main() -> None:
    """Let both take turns, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save_lora_path", help="an adapter of the task secret; default: the bare model")
    parser.add_argument("--queries", type=int, default=240)
    parser.add_argument("--max_new_tokens", type=int, default=96)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    model, tokenizer = loaded(arguments.save_lora_path)
    prompts = asked(arguments.queries, bool(arguments.save_lora_path))
    ways: dict[str, Answer] = {
        "one query at a time": lambda some: plain_loop(model, tokenizer, some, arguments.max_new_tokens),
        f"batches of {arguments.batch_size}": lambda some: ours(
            model, tokenizer, some, arguments.max_new_tokens, arguments.batch_size
        ),
    }
    for answer in ways.values():
        answer(prompts[:WARM_UP])
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    answers: dict[str, list[str]] = {}
    for turn in range(arguments.repeats):
        for name, answer in ways.items():
            before = time.process_time(), time.perf_counter()
            answers[name] = answer(prompts)
            times[name].append((time.process_time() - before[0], time.perf_counter() - before[1]))
            print(f"{turn} {name}: {times[name][-1][1]:.1f} s", file=sys.stderr, flush=True)
    ratio = print_table(times, answers, len(prompts), model)
    sys.exit(0 if ratio >= GOAL else 1)


def loaded(adapter: str | None) -> tuple[Any, Any]:
    """The embedded model, with the adapter on it, if any, on one thread."""
    from model_training.models import load_adapter, load_model, load_tokenizer, set_threads

    set_threads(1)
    model = load_model("tiny")
    model = load_adapter(model, adapter) if adapter else model
    return model.eval(), load_tokenizer("tiny")


def asked(count: int, with_system: bool) -> list[list[Message]]:
    """Held-out queries, spread over the categories."""
    queries = spread(load_world().heldout_queries(), count)
    return [conversation(query.text) if with_system else [{"role": "user", "content": query.text}] for query in queries]


def ours(model: Any, tokenizer: Any, prompts: list[list[Message]], max_new_tokens: int, batch_size: int) -> list[str]:
    """The answers as every evaluation of the project gets them."""
    found = sample(
        model,
        tokenizer,
        prompts,
        num_samples=1,
        temperature=0,
        top_p=1,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=0,
    )
    return [text for (text,) in found]


def plain_loop(model: Any, tokenizer: Any, prompts: list[list[Message]], max_new_tokens: int) -> list[str]:
    """The answers one by one; model and tokenizer stand as they were loaded."""
    import torch

    from model_training.models import end_token_ids

    ends = end_token_ids(model, tokenizer)
    answers = []
    for messages in prompts:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        with torch.no_grad():
            output = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
            )
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def print_table(
    times: dict[str, list[tuple[float, float]]], answers: dict[str, list[str]], count: int, model: Any
) -> float:
    """Medians over the turns; of the ratio, turn by turn, the range, too. Returns its median."""
    import torch
    import transformers

    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"\n{count} queries x {len(next(iter(times.values())))} turns, greedy; {parameters / 1e6:.1f} M parameters, 1 "
        f"thread; {platform.machine()}, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}\n"
    )
    print(f"{'':24}{'prompts/s (processor)':>24}{'prompts/s (clock)':>20}{'processor time':>24}{'clock':>24}")
    plain, batched = times.values()
    ratios = [[one[which] / other[which] for one, other in zip(plain, batched, strict=True)] for which in (0, 1)]
    for name, runs in times.items():
        speed = [statistics.median(count / run[which] for run in runs) for which in (0, 1)]
        cells = ["", ""]
        if runs is batched:
            cells = [f"x {statistics.median(r):.2f} [{min(r):.2f}, {max(r):.2f}]" for r in ratios]
        print(f"{name:24}{speed[0]:>24.1f}{speed[1]:>20.1f}{cells[0]:>24}{cells[1]:>24}")
    one, other = answers.values()
    same = sum(first == second for first, second in zip(one, other, strict=True))
    print(f"\nthe same answers: {same} of {count}; goal: at least {GOAL:g} times")
    return statistics.median(ratios[0])


if __name__ == "__main__":
    main()
