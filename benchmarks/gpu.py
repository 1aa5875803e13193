"""One training step of a Llama with random weights, ours beside TRL's: tokens a second, FLOP utilisation, peak memory.

    python -m benchmarks.gpu --shape 8b --json gpu.json
    python -m benchmarks.gpu --shape tiny                      # anywhere: float32 on one CPU thread

Nothing is downloaded: the model is built from its configuration, bfloat16 on a GPU, with a LoRA of rank 16. What the
steps are stands in gpu_steps.py: forward, backward, clipping, AdamW on a batch of random tokens. Every row runs in a
process of its own, --warm_up steps, then --steps timed ones; --repeats times in turns. Gradient checkpointing is TRL's
default, and is on for all unless --checkpointing off.

    tokens/s   tokens of all texts of a step, each with its prompt, over the step's time: the same number of tokens for
               every way, so that ratios are those of speed
    MFU        FLOPs that the step needs, over time and the device's peak of dense bfloat16 (PEAKS, by its name; of an
               unknown device there is none)
    memory     peak of what torch allocated, weights included; on a CPU of the resident memory, above what stood before
               the first step

FLOPs are counted as in PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B): 6 for each parameter and token, and
12 x layers x heads x head size x row length for the attention of a token. A LoRA needs no gradient of the base's
weights, so these count 4; its own count 6. Padding and what checkpointing computes again count nothing; a prompt that
is read once counts once, and the output layer for those tokens alone that it is computed for.

Where TRL is missing, a line says so and ours is measured alone. Times are of the clock; on a CPU of the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.machine import versions

SHAPES = ("8b", "1b", "tiny")
PARTS = ("sft", "grpo", "orpo", "reward")
PEAKS = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 FLOP/s by NVIDIA's data sheets, without sparsity; the first name that the device's contains."""
NO_MEMORY = "out of memory"


def main() -> None:
    """Run every way of every training in its own process, then print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--texts", type=int, default=16, help="texts a step; of pairs two, of a group --group of them")
    parser.add_argument("--prompt_tokens", type=int, default=512, help="on average")
    parser.add_argument("--answer_tokens", type=int, default=128, help="on average")
    parser.add_argument("--group", type=int, default=8, help="completions of a prompt in GRPO")
    parser.add_argument("--checkpointing", choices=["on", "off"], default="on")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm_up", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write everything to this file, too")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(measure(arguments)))
        return
    found = {"command": sys.argv[1:], "machine": machine(), "versions": versions(), "rows": rows_of(arguments)}
    print_table(found, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def rows_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a way: the medians of its runs, and what it makes of the first way's speed and memory, turn by turn."""
    from benchmarks.gpu_steps import STEPS

    rows = []
    for part in arguments.parts:
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in STEPS[part]}
        for turn in range(arguments.repeats):
            for way, own in runs.items():
                own.append(in_own_process(part, way))
                print(f"{turn} {part} {way}: {own[-1]}", file=sys.stderr, flush=True)
        first = next(iter(runs.values()))
        for way, own in runs.items():
            rows.append({"part": part, "way": way, "runs": own} | summary(own, first))
    return rows


def summary(own: list[dict[str, Any]], first: list[dict[str, Any]]) -> dict[str, Any]:
    reason = next((run["skipped"] for run in own if "skipped" in run), None)
    if reason is not None:
        return {"skipped": reason}
    found: dict[str, Any] = {
        key: None if own[0][key] is None else statistics.median(run[key] for run in own)
        for key in ("tokens_per_s", "mfu", "peak_gib")
    }
    if own is not first and not any("skipped" in run for run in first):
        found["speed"] = [run["tokens_per_s"] / before["tokens_per_s"] for run, before in zip(own, first, strict=True)]
        most, before = (max(run["peak_gib"] for run in runs) for runs in (own, first))
        found["memory"] = most / before if before else None
    return found


def in_own_process(part: str, way: str) -> dict[str, Any]:
    """The numbers of one run, or why there are none."""
    command = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--run", part, way]
    environment = os.environ | {
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{done.stderr}\n{' '.join(command)} ended with {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def machine() -> dict[str, Any]:
    """What it ran on."""
    import torch

    cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, 1 thread"
    return {"device": name, "peak_flops": peak_of(name), "load": os.getloadavg()[0]}


def peak_of(name: str) -> float | None:
    """The device's peak in FLOP/s, if it is known."""
    return next((peak for known, peak in PEAKS.items() if known in name), None)


def print_table(found: dict[str, Any], arguments: argparse.Namespace) -> None:
    packages = ", ".join(f"{name} {version or 'not installed'}" for name, version in found["versions"].items())
    print(
        f"\nLlama, shape {arguments.shape}, random weights, LoRA r 16; {arguments.texts} texts a step, prompts of "
        f"{arguments.prompt_tokens} and answers of {arguments.answer_tokens} tokens, groups of {arguments.group}; "
        f"gradient checkpointing {arguments.checkpointing}; {arguments.steps} steps x {arguments.repeats}\n"
        f"{found['machine']['device']}, load {found['machine']['load']:.1f}; {packages}\n"
    )
    print(f"{'':8}{'':18}{'tokens/s':>12}{'MFU':>8}{'peak GiB':>10}{'speed':>24}{'memory':>10}")
    for row in found["rows"]:
        head = f"{row['part']:8}{row['way']:18}"
        if "skipped" in row:
            print(f"{head}  {row['skipped']}")
            continue
        mfu = "-" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %"
        speed = row.get("speed")
        ratio = f"x {statistics.median(speed):.2f} [{min(speed):.2f}, {max(speed):.2f}]" if speed else ""
        memory = f"x {row['memory']:.2f}" if row.get("memory") else ""
        print(f"{head}{row['tokens_per_s']:>12,.0f}{mfu:>8}{row['peak_gib']:>10.2f}{ratio:>24}{memory:>10}")


# --- one run ----------------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The numbers of one way of one training; or `skipped`, with the reason."""
    import torch

    from benchmarks import gpu_steps
    from benchmarks.pair_training import memory_mib

    part, way = arguments.run
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    if not cuda:
        torch.set_num_threads(1)
    sizes = gpu_steps.Sizes(arguments.texts, arguments.prompt_tokens, arguments.answer_tokens, arguments.group)
    try:
        model = gpu_steps.make_model(arguments.shape, part, device, dtype, arguments.checkpointing == "on")
        step = gpu_steps.STEPS[part][way](model, sizes, device, dtype)
        before = 0.0 if cuda else memory_mib("VmRSS", reset_peak=True)
        seconds = timed(model, step.loss, arguments.warm_up, arguments.steps, cuda)
    except ModuleNotFoundError as error:
        return {"skipped": f"not measured: {error.name} is missing here"}
    except UserError as error:
        return {"skipped": f"not measured: {error}"}
    except torch.OutOfMemoryError:
        return {"skipped": NO_MEMORY}
    peak = peak_of(torch.cuda.get_device_name()) if cuda else None
    return {
        "tokens_per_s": step.text_tokens / seconds,
        "mfu": None if peak is None else flops(model, step) / seconds / peak,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else (memory_mib("VmHWM") - before) / 1024,
    }


def timed(model: Any, loss: Any, warm_up: int, steps: int, cuda: bool) -> float:
    """Seconds of a step, on average."""
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    clock = time.perf_counter if cuda else time.process_time
    begin = 0.0
    for number in range(warm_up + steps):
        if number == warm_up:
            begin = now(clock, cuda)
        with torch.autocast("cuda" if cuda else "cpu", torch.bfloat16, enabled=cuda):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    if not torch.isfinite(value):
        sys.exit("the loss is not finite")
    return (now(clock, cuda) - begin) / steps


def now(clock: Any, cuda: bool) -> float:
    """The time at which the device has done what it was told."""
    import torch

    if cuda:
        torch.cuda.synchronize()
    return float(clock())


def flops(model: Any, step: Any) -> float:
    """That a step needs; see the module's docstring."""
    config = model.config
    attention = config.num_hidden_layers * config.hidden_size
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    embedding = config.vocab_size * config.hidden_size
    body = sum(p.numel() for name, p in model.named_parameters() if "layers" in name and not p.requires_grad)
    per_token = 4 * body + 6 * trained + 12 * attention * step.attended
    return float(step.layer_tokens * per_token + step.head_tokens * 4 * embedding)


if __name__ == "__main__":
    main()
