"""Pair training with a shared prompt against TRL's RewardTrainer: pairs a second and peak memory, side by side.

    OMP_NUM_THREADS=1 python -m benchmarks.pair_training --pairs 8
    OMP_NUM_THREADS=1 python -m benchmarks.pair_training --pairs 8 --model llama --steps 6 --repeats 2

Real HH-RLHF pairs, relabelled, where ../shared is beside the checkout, else pairs of the micro-world. All train the
same LoRA on the same model with the same optimizer, batch size, precision and longest text, with one output and the
base loss; TRL disables dropout, so nobody has any. TRL's defaults are a random order and gradient checkpointing; each
row is compared with ours of the same checkpointing.

Every variant runs in its own process, one after the other, and all of that --repeats times with another seed. Of the
whole data's batches, as the variant's own order makes them, a run trains --steps, evenly from narrow to wide, behind
the widest of all, which warms up. What counts is the processor time of the steps (collation, forward, backward,
optimizer, the trainer's own work; not tokenisation) on one thread, so that other programs on the machine count little.

Memory is the peak of the resident memory in a step on the widest batch, above what stood before the training, in one
more process whose allocator gives back what is freed: what the tensors need, and not what an allocator keeps.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

REAL_PAIRS = sorted(Path(__file__).parents[1].glob("../shared/data/preference/relabeled_*_test.jsonl.gz"))
WORLD_PAIRS = 4000
LLAMA = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
"""A random model of 26 million parameters, whose time goes into matrix products."""
Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    trainer: str
    by_length: bool
    checkpointing: bool
    shared: bool = False


VARIANTS = {
    "TRL defaults": Variant("trl", by_length=False, checkpointing=True),
    "TRL by length": Variant("trl", by_length=True, checkpointing=True),
    "ours": Variant("ours", by_length=True, checkpointing=True, shared=True),
    "TRL, no checkpointing": Variant("trl", by_length=False, checkpointing=False),
    "TRL by length, no checkpointing": Variant("trl", by_length=True, checkpointing=False),
    "ours, no checkpointing": Variant("ours", by_length=True, checkpointing=False, shared=True),
}


def main() -> None:
    """Run every variant in its own process, then print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8, help="pairs a batch")
    parser.add_argument("--model", choices=["tiny", "llama"], default="tiny")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16: autocast")
    parser.add_argument("--steps", type=int, default=12, help="timed steps a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max_length", type=int, default=1024)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--run", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(measure(arguments)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.variants}
    peaks = {name: in_own_process(["--run", name, "--steps", "0"], frees=True)["peak_mib"] for name in results}
    for repeat in range(arguments.repeats):
        for name, runs in results.items():
            runs.append(in_own_process(["--run", name, "--seed", str(repeat)]))
            print(f"{repeat} {name}: {runs[-1]['pairs_per_s']:.2f} pairs/s", file=sys.stderr, flush=True)
    print_table(arguments, results, peaks)


def in_own_process(options: list[str], frees: bool = False) -> dict[str, float]:
    """The numbers of one run, whose process gets this one's options and those; `frees`: gives back what it frees."""
    command = [sys.executable, "-m", "benchmarks.pair_training", *sys.argv[1:], *options]
    allocator = {"MALLOC_MMAP_THRESHOLD_": "65536"} if frees else {}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | allocator)
    if done.returncode:
        sys.exit(f"{done.stderr}\n{' '.join(command)} ended with {done.returncode}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def print_table(
    arguments: argparse.Namespace, results: dict[str, list[dict[str, float]]], peaks: dict[str, float]
) -> None:
    """One row a variant: median over the repeats; of the ratio of ours to it the range, too."""
    data = "real HH-RLHF pairs" if REAL_PAIRS else "micro-world pairs"
    print(
        f"\n{arguments.model}, {arguments.pairs} pairs a batch, {data}, {arguments.dtype}, texts of up to "
        f"{arguments.max_length} tokens, {arguments.steps} steps x {arguments.repeats}\n"
    )
    columns = ["tokens a pair", "pairs/s", "peak MiB", "ours: speed", "ours: memory"]
    print(f"{'':32}" + "".join(f"{column:>20}" for column in columns))
    for name, runs in results.items():
        cells = [f"{median(runs, 'tokens_per_pair'):.0f}", f"{median(runs, 'pairs_per_s'):.2f}", f"{peaks[name]:.0f}"]
        ours = "ours" if VARIANTS[name].checkpointing else "ours, no checkpointing"
        if ours in results and ours != name:
            speed = [our["pairs_per_s"] / run["pairs_per_s"] for our, run in zip(results[ours], runs, strict=True)]
            cells.append(f"x {statistics.median(speed):.2f} [{min(speed):.2f}, {max(speed):.2f}]")
            cells.append(f"x {peaks[ours] / peaks[name]:.2f}")
        print(f"{name:32}" + "".join(f"{cell:>20}" for cell in cells))


def median(runs: list[dict[str, float]], key: str) -> float:
    """Of one number of several runs."""
    return statistics.median(run[key] for run in runs)


# --- one run --------------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Train one variant; pairs a second of processor time, and tokens a pair of all the data's batches."""
    import torch
    from transformers import TrainerCallback

    from model_training.models import load_tokenizer
    from model_training.pairs import row_length

    torch.set_num_threads(1)
    variant = VARIANTS[arguments.run]
    tokenizer = load_tokenizer("tiny")
    pairs = encoded_pairs(tokenizer, arguments.max_length, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        make = trl_trainer if variant.trainer == "trl" else our_trainer
        trainer = make(arguments, variant, make_model(arguments.model, tokenizer), tokenizer, pairs, folder)
        lengths = [row_length(pair, variant.shared) for pair in pairs]
        batches = order(trainer, variant, lengths, arguments)
        picked = sorted(batches, key=lambda batch: max(lengths[number] for number in batch))
        widest = picked[-1]
        picked = [picked[int((n + 0.5) / arguments.steps * len(picked))] for n in range(arguments.steps)]
        random.Random(arguments.seed).shuffle(picked)
        sampler = [number for batch in [widest, *picked] for number in batch]
        trainer._get_train_sampler = lambda *_: sampler
        times = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                times.append(time.process_time())

        trainer.add_callback(Clock())
        before = memory_mib("VmRSS", reset_peak=True)
        trainer.train()
        peak = memory_mib("VmHWM") - before
    return {
        "pairs_per_s": arguments.steps * arguments.pairs / (times[-1] - times[0]) if arguments.steps else 0.0,
        "peak_mib": peak,
        "tokens_per_pair": computed_tokens(batches, lengths, variant.shared),
    }


def computed_tokens(batches: list[list[int]], lengths: list[int], shared: bool) -> float:
    """Tokens a pair, padding included."""
    tokens = sum(max(lengths[number] for number in batch) * len(batch) * (1 if shared else 2) for batch in batches)
    return tokens / sum(map(len, batches))


def encoded_pairs(tokenizer: Any, max_length: int, seed: int) -> list[Pair]:
    """Token ids of all pairs whose texts are short enough, shuffled."""
    if REAL_PAIRS:
        files = [gzip.decompress(path.read_bytes()).decode("utf-8") for path in REAL_PAIRS]
        rows = [json.loads(line) for file in files for line in file.splitlines()]
        texts = [(row["chosen"].strip(), row["rejected"].strip()) for row in rows]
    else:
        from dataset.preference import compose
        from dataset.world import load_world
        from model_training.models import chat_text

        texts = [
            tuple(chat_text(tokenizer, record["prompt"] + record[side], False) for side in ("chosen", "rejected"))
            for record in compose(load_world(), WORLD_PAIRS, seed=0)
        ]
    sides = [tokenizer(list(side), add_special_tokens=False)["input_ids"] for side in zip(*texts, strict=True)]
    pairs = [pair for pair in zip(*sides, strict=True) if max(map(len, pair)) <= max_length]
    random.Random(seed).shuffle(pairs)
    return pairs


def make_model(name: str, tokenizer: Any) -> Any:
    """A float32 classifier with one output, ready to train its LoRA."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    from model_training.loading import model_path
    from model_training.models import LLAMA_PROJECTIONS

    torch.manual_seed(0)
    if name == "tiny":
        model = AutoModelForSequenceClassification.from_pretrained(model_path(name), num_labels=1, dtype=torch.float32)
    else:
        config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, max_position_embeddings=2048, **LLAMA)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=32, lora_dropout=0.0, target_modules=LLAMA_PROJECTIONS)
    return get_peft_model(model, lora)


def training_options(arguments: argparse.Namespace, variant: Variant, folder: str) -> dict[str, Any]:
    """What both trainers are told alike."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": arguments.pairs,
        "max_steps": arguments.steps + 1,
        "learning_rate": 1e-4,
        "logging_steps": 10,
        "bf16": arguments.dtype == "bfloat16",
        "gradient_checkpointing": variant.checkpointing,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": arguments.seed,
    }


def trl_trainer(
    arguments: argparse.Namespace, variant: Variant, model: Any, tokenizer: Any, pairs: list[Pair], folder: str
) -> Any:
    """TRL's trainer on pairs that are token ids already."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    columns = {
        "chosen_ids": [chosen for chosen, _ in pairs],
        "rejected_ids": [rejected for _, rejected in pairs],
        "length": [max(map(len, pair)) for pair in pairs],
    }
    options = training_options(arguments, variant, folder)
    strategy = "group_by_length" if variant.by_length else "random"
    args = RewardConfig(**options, max_length=arguments.max_length, train_sampling_strategy=strategy)
    return RewardTrainer(model=model, args=args, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer)


def our_trainer(
    arguments: argparse.Namespace, variant: Variant, model: Any, tokenizer: Any, pairs: list[Pair], folder: str
) -> Any:
    """transformers' trainer with our collation, forward and loss."""
    from transformers import Trainer, TrainingArguments

    from model_training.pairs import collate_pairs, pair_outputs
    from model_training.preference_losses import loss

    class PairTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            return loss("base", *pair_outputs(model, inputs["batch"])).mean()

    return PairTrainer(
        model=model,
        args=TrainingArguments(**training_options(arguments, variant, folder), remove_unused_columns=False),
        train_dataset=pairs,
        data_collator=lambda some: {"batch": collate_pairs(some, tokenizer.pad_token_id, variant.shared)},
    )


def order(trainer: Any, variant: Variant, lengths: list[int], arguments: argparse.Namespace) -> list[list[int]]:
    """The full batches of one pass over all pairs: of ours, or of the trainer's own sampler."""
    from model_training.pair_order import batches_by_length

    count = len(lengths) // arguments.pairs
    if variant.trainer == "ours":
        return list(islice(batches_by_length(lengths, arguments.pairs, arguments.seed), count))
    numbers = list(trainer._get_train_sampler())
    return [numbers[n * arguments.pairs : (n + 1) * arguments.pairs] for n in range(count)]


def memory_mib(what: str, reset_peak: bool = False) -> float:
    """VmRSS, resident now, or VmHWM, its peak since it was reset (Linux)."""
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
