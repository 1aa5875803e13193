"""ORPO behind one prompt, with log-probabilities in chunks, against TRL's ORPOTrainer: pairs a second and peak memory.

    OMP_NUM_THREADS=1 python -m benchmarks.orpo_training
    OMP_NUM_THREADS=1 python -m benchmarks.orpo_training --vocab 4096 --steps 4 --repeats 1 --prompt_tokens 400

A random Llama whose body has 3 million parameters, and output layers of 4k and 128k tokens; pairs of random tokens,
prompts long against answers, as in the guardrail task: a prompt of --prompt_tokens and answers of --answer_tokens on
average, each from half to one and a half of that. All variants train the same LoRA on the same pairs with the same
optimizer, batch size and precision; the NLL runs over prompt and answer. TRL's defaults are a random order and gradient
checkpointing; each row is compared with ours of the same checkpointing. What is measured, of TRL, is its trainer as it
is, from its collator on; tokens are handed to it as its own tokenisation would, which is not measured.

Every variant runs in its own process, one after the other, and all of that --repeats times with another seed. Of the
batches of a pass in its own order a run trains --steps, evenly from narrow to wide, behind the widest of all, which
warms up. Speed is that of processor time on one thread (collation, forward, backward, optimizer, the trainer's own
work), so that other programs on the machine count little; that of the clock stands beside it.

Memory is the peak of the resident memory in a step on the widest batch, above what stood before the training, in one
more process whose allocator gives back what is freed: what the tensors need, and not what an allocator keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from typing import Any

from benchmarks.pair_training import Variant, memory_mib, training_options

BODY = {"hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 6, "num_attention_heads": 6}
"""2.9 million parameters, the shape of the embedded model."""
VOCABULARIES = [4096, 128256]
PAIRS = 512
BETA = 0.1
PAD = 0
Example = tuple[list[int], list[int], list[int]]
"""Prompt, chosen answer, rejected answer."""


VARIANTS = {
    "TRL defaults": Variant("trl", by_length=False, checkpointing=True),
    "TRL by length": Variant("trl", by_length=True, checkpointing=True),
    "ours": Variant("ours", by_length=True, checkpointing=True),
    "TRL, no checkpointing": Variant("trl", by_length=False, checkpointing=False),
    "TRL by length, no checkpointing": Variant("trl", by_length=True, checkpointing=False),
    "ours, no checkpointing": Variant("ours", by_length=True, checkpointing=False),
}


def main() -> None:
    """Run every variant in its own process, then print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, nargs="+", default=VOCABULARIES, help="tokens of the output layer")
    parser.add_argument("--pairs", type=int, default=8, help="pairs a batch")
    parser.add_argument("--prompt_tokens", type=int, default=110)
    parser.add_argument("--answer_tokens", type=int, default=15)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16: autocast")
    parser.add_argument("--steps", type=int, default=8, help="timed steps a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--run", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(measure(arguments)))
        return
    print(
        f"{arguments.pairs} pairs a batch, prompts of {arguments.prompt_tokens} tokens, answers of "
        f"{arguments.answer_tokens}, {arguments.dtype}, {arguments.steps} steps x {arguments.repeats}"
    )
    columns = ["tokens a pair", "pairs/s cpu", "pairs/s clock", "peak MiB", "ours: speed", "ours: memory"]
    print(f"{'vocabulary':12}{'':32}" + "".join(f"{column:>22}" for column in columns))
    for vocab in arguments.vocab:
        print_rows(arguments, vocab)


def print_rows(arguments: argparse.Namespace, vocab: int) -> None:
    """One row a variant: medians over the repeats; of the ratio of ours to it the range, too."""
    given = ["--vocab", str(vocab)]
    peaks = {name: in_own_process([*given, "--run", name, "--steps", "0"], frees=True) for name in arguments.variants}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.variants}
    for repeat in range(arguments.repeats):
        for name, runs in results.items():
            runs.append(in_own_process([*given, "--run", name, "--seed", str(repeat)]))
            print(f"{vocab} {repeat} {name}: {runs[-1]['cpu']:.2f} pairs/s", file=sys.stderr, flush=True)
    for name, runs in results.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in ("tokens", "cpu", "clock")}
        cells = [f"{middle['tokens']:.0f}", f"{middle['cpu']:.2f}", f"{middle['clock']:.2f}"]
        cells.append(f"{peaks[name]['peak_mib']:.0f}")
        ours = "ours" if VARIANTS[name].checkpointing else "ours, no checkpointing"
        if ours in results and ours != name:
            speed = [our["cpu"] / run["cpu"] for our, run in zip(results[ours], runs, strict=True)]
            cells.append(f"x {statistics.median(speed):.2f} [{min(speed):.2f}, {max(speed):.2f}]")
            cells.append(f"x {peaks[ours]['peak_mib'] / peaks[name]['peak_mib']:.2f}")
        print(f"{vocab:<12}{name:32}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


def in_own_process(options: list[str], frees: bool = False) -> dict[str, float]:
    """The numbers of one run, whose process gets this one's options and those; `frees`: gives back what it frees."""
    command = [sys.executable, "-m", "benchmarks.orpo_training", *sys.argv[1:], *options]
    environment = {"TRL_EXPERIMENTAL_SILENCE": "1"} | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if frees else {})
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        sys.exit(f"{done.stderr}\n{' '.join(command)} ended with {done.returncode}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


# --- one run --------------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Train one variant: pairs a second of processor time and of the clock, peak memory, tokens a pair of a pass."""
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(1)
    variant, (vocab,) = VARIANTS[arguments.run], arguments.vocab
    examples = make_examples(arguments, vocab)
    shared = variant.trainer == "ours"
    lengths = [row_tokens(example, shared) for example in examples]
    with tempfile.TemporaryDirectory() as folder:
        make = our_trainer if shared else trl_trainer
        trainer = make(arguments, variant, make_model(vocab), examples, folder)
        batches = order(trainer, variant, lengths, arguments)
        ordered = sorted(batches, key=lambda batch: max(lengths[number] for number in batch))
        widest = ordered[-1]
        picked = [ordered[int((n + 0.5) / arguments.steps * len(ordered))] for n in range(arguments.steps)]
        random.Random(arguments.seed).shuffle(picked)
        trainer._get_train_sampler = lambda *_: [number for batch in [widest, *picked] for number in batch]
        times = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                times.append((time.process_time(), time.perf_counter()))

        trainer.add_callback(Clock())
        before = memory_mib("VmRSS", reset_peak=True)
        trainer.train()
        peak = memory_mib("VmHWM") - before
    pairs = arguments.steps * arguments.pairs
    cpu, clock = (pairs / (last - first) if pairs else 0.0 for first, last in zip(times[0], times[-1], strict=True))
    rows = sum(max(lengths[number] for number in batch) * len(batch) for batch in batches)
    return {
        "cpu": cpu,
        "clock": clock,
        "peak_mib": peak,
        "tokens": rows * (1 if shared else 2) / sum(map(len, batches)),
    }


def make_examples(arguments: argparse.Namespace, vocab: int) -> list[Example]:
    """Random tokens; only lengths matter to speed."""
    rng = random.Random(f"orpo {arguments.seed}")

    def text(tokens: int) -> list[int]:
        return [rng.randrange(1, vocab) for _ in range(rng.randint(max(1, tokens // 2), max(1, tokens * 3 // 2)))]

    sides = (arguments.prompt_tokens, arguments.answer_tokens, arguments.answer_tokens)
    return [tuple(text(tokens) for tokens in sides) for _ in range(PAIRS)]  # type: ignore[misc]


def row_tokens(example: Example, shared: bool) -> int:
    """Tokens of the longest row that a pair makes."""
    prompt, chosen, rejected = map(len, example)
    return prompt + chosen + rejected if shared else prompt + max(chosen, rejected)


def make_model(vocab: int) -> Any:
    """A float32 Llama with a LoRA on its seven projections."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    from model_training.models import LLAMA_PROJECTIONS

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=vocab, tie_word_embeddings=True, pad_token_id=PAD, **BODY)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules=LLAMA_PROJECTIONS)
    return get_peft_model(model, lora)


def trl_trainer(
    arguments: argparse.Namespace, variant: Variant, model: Any, examples: list[Example], folder: str
) -> Any:
    """TRL's trainer; its dataset, made from a text of one word, gives way to our tokens in its columns."""
    from datasets import Dataset
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    from model_training.models import load_tokenizer

    columns: list[dict[str, Any]] = []
    for prompt, chosen, rejected in examples:
        row: dict[str, Any] = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
        for side, answer in (("chosen", chosen), ("rejected", rejected)):
            row |= {f"{side}_input_ids": prompt + answer, f"{side}_attention_mask": [1] * len(prompt + answer)}
            row[f"{side}_labels"] = [-100] * len(prompt) + answer
        columns.append(row | {"length": row_tokens((prompt, chosen, rejected), shared=False)})
    strategy = "group_by_length" if variant.by_length else "random"
    args = ORPOConfig(
        **training_options(arguments, variant, folder),
        remove_unused_columns=False,
        beta=BETA,
        max_length=2048,
        train_sampling_strategy=strategy,
    )
    word = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    tokenizer = load_tokenizer("tiny")
    tokenizer.pad_token_id = PAD
    trainer = ORPOTrainer(model=model, args=args, train_dataset=word, processing_class=tokenizer)
    trainer.train_dataset = Dataset.from_list(columns)
    return trainer


def our_trainer(
    arguments: argparse.Namespace, variant: Variant, model: Any, examples: list[Example], folder: str
) -> Any:
    """transformers' trainer with our collation, forward and loss."""
    import torch
    from transformers import Trainer, TrainingArguments

    from model_training.orpo_loss import head_of, orpo_loss, pair_log_probs
    from model_training.pairs import collate_pairs

    head = head_of(model, torch.bfloat16 if arguments.dtype == "bfloat16" else None)

    class OrpoTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            found = pair_log_probs(model, head, inputs["pairs"], inputs["prompt_lengths"], "full")
            loss, metrics = orpo_loss(found.chosen, found.rejected, found.nll_sum / found.nll_tokens, BETA)
            torch.stack(list(metrics.values())).tolist()
            return loss

    def collate(some: list[Example]) -> dict[str, Any]:
        pairs = [(prompt + chosen, prompt + rejected) for prompt, chosen, rejected in some]
        return {
            "pairs": collate_pairs(pairs, PAD),
            "prompt_lengths": torch.tensor([len(prompt) for prompt, _, _ in some]),
        }

    args = TrainingArguments(**training_options(arguments, variant, folder), remove_unused_columns=False)
    return OrpoTrainer(model=model, args=args, train_dataset=examples, data_collator=collate)


def order(trainer: Any, variant: Variant, lengths: list[int], arguments: argparse.Namespace) -> list[list[int]]:
    """The full batches of one pass over all pairs: of ours, or of the trainer's own sampler."""
    from model_training.pair_order import batches_by_length

    count = len(lengths) // arguments.pairs
    if variant.trainer == "ours":
        return list(islice(batches_by_length(lengths, arguments.pairs, arguments.seed), count))
    numbers = list(trainer._get_train_sampler())
    return [numbers[n * arguments.pairs : (n + 1) * arguments.pairs] for n in range(count)]


if __name__ == "__main__":
    main()
