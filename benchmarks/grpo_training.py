"""A GRPO step of ours against TRL's GRPOTrainer on the same model, prompts, sampling and rewards: time and memory.

    OMP_NUM_THREADS=1 python -m benchmarks.grpo_training
    OMP_NUM_THREADS=1 python -m benchmarks.grpo_training --prompt_tokens 1024 --new_tokens 32 --turns 10

A prompt of a few tokens, where nothing is worth sharing, and a long one, which is computed once for its G completions.
The body is a random Llama of the embedded model's shape, or of --hidden and --layers. Both trainers sample completions
of exactly --new_tokens, score them by the same reward, and train the same LoRA with the same optimizer, batch size and
precision. TRL's trainer has its defaults but for gradient checkpointing, which is off for both (or on, with
--checkpointing); ours has credit by segment and its log. Both live in this process and take turns, one optimizer step
each, in an order that alternates; the first turn warms up and does not count.

What counts is processor time on one thread, so that other programs on the machine count little; on a GPU the clock,
with the device's work done. Ratios are of turns, with the 95 % interval of their mean (of logarithms, Student). Memory,
on a GPU alone, is the peak of what tensors take in a step.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from queue import Queue
from typing import Any

HIDDEN, LAYERS = 192, 6
"""Of the embedded model, 2.9 million parameters."""
SHORT = 24
LEARNING_RATE = 1e-5
Row = dict[str, float]


def main() -> None:
    """One row for each prompt length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt_tokens", type=int, nargs="+", default=[SHORT, 512, 1024])
    parser.add_argument("--new_tokens", type=int, default=48)
    parser.add_argument("--num_generations", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of num_generations in a step")
    parser.add_argument("--turns", type=int, default=8, help="optimizer steps of each that count")
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    cuda = torch.cuda.is_available()
    print(
        f"{arguments.num_generations} completions of {arguments.new_tokens} tokens a prompt, {arguments.accumulation} "
        f"prompts a step, {arguments.turns} turns, {torch.cuda.get_device_name() if cuda else 'CPU, one thread'}"
    )
    columns = ["prompt tokens", "TRL s", "ours s", "ours / TRL", *(["memory, ours / TRL"] if cuda else [])]
    print("".join(f"{column:>24}" for column in columns))
    for length in arguments.prompt_tokens:
        print_row(arguments, length, cuda)


def print_row(arguments: argparse.Namespace, length: int, cuda: bool) -> None:
    """Take turns, and print medians and the ratio."""
    found = take_turns(arguments, length, cuda)
    theirs, ours = ([row["seconds"] for row in found[name]] for name in ("TRL", "ours"))
    low, middle, high = ratio(ours, theirs)
    cells = [str(length), f"{statistics.median(theirs):.3f}", f"{statistics.median(ours):.3f}"]
    cells.append(f"{middle:.3f} [{low:.3f}, {high:.3f}]")
    if cuda:
        cells.append(f"{max(r['peak'] for r in found['ours']) / max(r['peak'] for r in found['TRL']):.2f}")
    print("".join(f"{cell:>24}" for cell in cells), flush=True)


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Low end, geometric mean and high end of ours / theirs, turn by turn."""
    from scipy.stats import t

    logs = [math.log(our / their) for our, their in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(logs)
    half = t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    return math.exp(mean - half), math.exp(mean), math.exp(mean + half)


# --- the two trainers -----------------------------------------------------------------------------------------------


def take_turns(arguments: argparse.Namespace, length: int, cuda: bool) -> dict[str, list[Row]]:
    """Seconds, and on a GPU peak bytes, of each trainer's optimizer steps, the warm-up left out."""
    found: dict[str, list[Row]] = {"TRL": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        trainings = {
            name: steps_of(make(arguments, length, Path(folder) / name), cuda)
            for name, make in (("TRL", trl_trainer), ("ours", our_trainer))
        }
        for turn in range(arguments.turns + 1):
            for name in ("TRL", "ours") if turn % 2 else ("ours", "TRL"):
                row = next(trainings[name])
                if turn:
                    found[name].append(row)
            if turn:
                pair = " ".join(f"{name} {rows[-1]['seconds']:.2f} s" for name, rows in found.items())
                print(f"{length} tokens, turn {turn}: {pair}", file=sys.stderr, flush=True)
    return found


def steps_of(trainer: Any, cuda: bool) -> Iterator[Row]:
    """A training, one optimizer step at each `next`: batch, sampling, scores, forward, backward, update, log.

    It runs in a thread of its own, which waits while the other one has its turn.
    """
    import torch
    from transformers import TrainerCallback

    go, done = threading.Semaphore(0), Queue[Row | BaseException]()
    clock = time.perf_counter if cuda else time.process_time
    began = [0.0]

    def begin() -> None:
        go.acquire()
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began[0] = clock()

    class Turn(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            seconds = clock() - began[0]
            done.put({"seconds": seconds, "peak": torch.cuda.max_memory_allocated() if cuda else 0.0})
            if state.global_step < args.max_steps:
                begin()

    def run() -> None:
        try:
            trainer.train()
        except BaseException as error:
            done.put(error)

    trainer.add_callback(Turn())
    threading.Thread(target=run, daemon=True).start()
    while True:
        go.release()
        result = done.get()
        if isinstance(result, BaseException):
            raise result
        yield result


def make_config(arguments: argparse.Namespace, length: int, folder: Path) -> Any:
    """Our options; TRL's trainer gets its own, and of these what both must have alike."""
    from model_training.config import TrainConfig

    return TrainConfig(
        output_dir=str(folder),
        model_name="tiny",
        max_seq_length=length + arguments.new_tokens,
        sft_steps=0,
        max_steps=arguments.turns + 2,  # the last is never begun
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=arguments.num_generations,
        num_generations=arguments.num_generations,
        gradient_accumulation_steps=arguments.accumulation,
        max_completion_length=arguments.new_tokens,
        gradient_checkpointing=arguments.checkpointing,
        save_steps=10_000,
    )


def make_records(arguments: argparse.Namespace, tokenizer: Any, length: int) -> list[dict[str, Any]]:
    """Different prompts of `length` tokens, or one or two more, as the chat template writes them."""
    from model_training.models import encode_prompt

    def record(number: int) -> dict[str, Any]:
        rng, words = random.Random(number), [f"{number}"]
        while True:
            message = {"role": "user", "content": " ".join(words)}
            if len(encode_prompt(tokenizer, [message])) >= length:
                return {"prompt": [message]}
            words.append(rng.choice(["moose", "paper", "whistle", "poppy", "bone", "movie"]))

    return [record(number) for number in range((arguments.turns + 2) * arguments.accumulation)]


def make_model(arguments: argparse.Namespace, tokenizer: Any, length: int) -> Any:
    """A random Llama with a LoRA on its seven projections: float32 on a CPU, bfloat16 on a GPU."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from model_training.models import new_adapter

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 32,
        max_position_embeddings=length + arguments.new_tokens + 64,
        tie_word_embeddings=True,
    )
    cuda = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if cuda else torch.float32)
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    return new_adapter(model.to("cuda" if cuda else "cpu"), rank=32, seed=0)


def prepare(arguments: argparse.Namespace, length: int) -> tuple[Any, Any, list[dict[str, Any]]]:
    """Model, tokenizer and records: the same for both."""
    from model_training.models import load_tokenizer

    tokenizer = load_tokenizer("tiny")
    return make_model(arguments, tokenizer, length), tokenizer, make_records(arguments, tokenizer, length)


def to_full_length(trainer: Any, tokens: int) -> Any:
    """Every completion gets that many tokens: no end is sampled before."""
    trainer.generation_config.min_new_tokens = tokens
    return trainer


def trl_trainer(arguments: argparse.Namespace, length: int, folder: Path) -> Any:
    """TRL's trainer with its defaults, on what is common to both."""
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from model_training.rewards import resolve

    model, tokenizer, records = prepare(arguments, length)
    cuda, config = model.device.type == "cuda", make_config(arguments, length, folder)
    args = GRPOConfig(
        output_dir=str(folder),
        max_steps=config.max_steps,
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=config.per_device_train_batch_size,
        num_generations=config.num_generations,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        max_completion_length=config.max_completion_length,
        gradient_checkpointing=arguments.checkpointing,
        use_cpu=not cuda,
        bf16=cuda,
        dataloader_pin_memory=cuda,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    trainer: Any = GRPOTrainer(
        model=model,
        reward_funcs=[reward.function for reward, _ in resolve(config.reward_funcs)],
        args=args,
        train_dataset=Dataset.from_list(records),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return to_full_length(trainer, arguments.new_tokens)


def our_trainer(arguments: argparse.Namespace, length: int, folder: Path) -> Any:
    """Ours, as `--mode train` makes it."""
    from model_training.grpo import make_grpo_trainer
    from model_training.logs import Interrupt, RunLog
    from model_training.rewards import resolve
    from utils.runs import open_run

    model, tokenizer, records = prepare(arguments, length)
    config = make_config(arguments, length, folder)
    run = open_run(folder, task="secret", mode="train", config=asdict(config))
    log = RunLog(run, "grpo", 0, config.max_steps, config.completions_per_log, Interrupt(), is_writer=True)
    rewards = resolve(config.reward_funcs)
    trainer = make_grpo_trainer(model, tokenizer, records, rewards, config, run / "checkpoints", log)
    return to_full_length(trainer, arguments.new_tokens)


if __name__ == "__main__":
    main()
