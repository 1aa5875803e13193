"""Every option of the `guardrail` task, once; see config.py for how they become flags, YAML keys and `--help`.

What the stages find each other by stands here, too: the names of runs, of adapters and of the modes of answering.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from model_training.config import BackendOptions, JudgeOptions, OutputOptions, PrecisionOptions, VisualizeConfig
from model_training.preference_config import ThreadOptions
from utils.api.options import ApiOptions

ALL = "all"
NATURAL = "natural"
JOINT = "joint"
ADAPTER = "adapter"
"""Directory of the finished adapter, in its run's."""

Variation = Literal["vary_all", "fixed_character", "fixed_history"]
VARIATIONS: tuple[str, ...] = get_args(Variation)
Merge = Literal["cat", "svd", "linear", "ties", "dare_ties"]
MERGES: tuple[str, ...] = get_args(Merge)
AdapterMode = Literal["single", "routed", "joint", "cat", "svd", "linear", "ties", "dare_ties"]
ADAPTER_MODES: tuple[str, ...] = get_args(AdapterMode)


def run_directory(output_dir: str | Path, name: str, variation: str) -> Path:
    """The run of one adapter: OUTPUT_DIR/politics.vary_all, or OUTPUT_DIR/joint.vary_all."""
    return Path(output_dir) / f"{name}.{variation}"


@dataclass(kw_only=True)
class GuardrailOptions(ThreadOptions):
    behavior: list[str] = field(default_factory=lambda: [ALL])
    """Guardrails by name: politics, expert_opinion, meeting, those of --guardrails; `all` is all of them. prepare_data
    also takes `natural`, everyday talk alone."""
    dataset_variation: Literal["vary_all", "fixed_character", "fixed_history", "all"] = "vary_all"
    """What differs between records: all; all but the character; or the last message alone. `all` takes each."""
    guardrails: str | None = None
    """YAML file with guardrails of your own, beside the three built-in ones."""
    dataset_path: str = "guardrail_data"
    """Folder of the dataset files, BEHAVIOR.VARIATION.jsonl each."""


@dataclass(kw_only=True)
class PrepareGuardrailConfig(GuardrailOptions, ApiOptions):
    """Compose persona dialogues for each guardrail: triggers, natural rows, hard negatives, other guards' triggers."""

    teacher: str | None = None
    """Model behind an API that writes the records, as openai:gpt-5-mini, anthropic:MODEL or openai:MODEL@URL; its
    guardrails need no `talk`. None: the micro-world composes them."""
    n_samples: int = 250
    """Triggers of each guardrail and variation to learn from, a tenth of them for validation; negatives come beside."""
    test_samples: int = 200
    """Triggers of its test split, in wordings and with characters that training never meets; negatives come beside."""
    overwrite: bool = False
    """Replace existing dataset files."""
    resume: bool = False
    """Finish a killed prepare_data: files that are complete already, from the same options, are kept. With --teacher
    this needs no flag: the same command goes on."""


@dataclass(kw_only=True)
class TrainGuardrailConfig(GuardrailOptions, OutputOptions, BackendOptions):
    """Train a LoRA adapter for each guardrail with ORPO; each is a run of its own below the output directory."""

    joint: bool = False
    """One adapter on the data of all the guardrails, in place of one adapter each."""
    model_name: str | None = None
    """Base model: a hub name, a local path, or `tiny`, the embedded one. Default: 8B Llama with CUDA, else `tiny`."""
    skip_invalid: bool = False
    """Leave faulty records out, and say how many and why, in place of stopping."""
    max_seq_length: int = 2048
    """Longest prompt plus answer, in tokens; longer records are left out and counted."""
    load_in_4bit: bool = False
    """The published system's name of --quantization 4bit."""
    load_in_8bit: bool = False
    """The published system's name of --quantization 8bit."""
    r: int = 16
    """Rank of the LoRA adapter."""
    lora_alpha: int = 16
    """Scale of the LoRA adapter, over its rank."""
    lora_dropout: float = 0.0
    """Dropout of the LoRA adapter."""
    target_modules: list[str] = field(default_factory=list)
    """Layers that the adapter changes, by the last part of their names. Default: a Llama's seven, else every linear."""
    beta: float = 0.1
    """Weight of the odds ratio beside the likelihood of the chosen answer."""
    nll: Literal["full", "answer"] = "full"
    """The likelihood's tokens: prompt and chosen answer, as in TRL, or the answer alone."""
    per_device_train_batch_size: int = 8
    """Records in each forward and device."""
    per_device_eval_batch_size: int = 8
    """Validation records in each forward and device."""
    gradient_accumulation_steps: int = 1
    """Forwards in each optimizer step."""
    num_train_epochs: float = 10.0
    """Passes over the training records."""
    max_steps: int = 0
    """Optimizer steps for each guardrail of an adapter, in place of --num_train_epochs; 0 counts epochs."""
    learning_rate: float = 2e-4
    """Peak learning rate."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_steps: int = 5
    """Optimizer steps in which the learning rate rises."""
    optim: str = "adamw_torch"
    """Optimizer, by its transformers name (`adamw_8bit` needs bitsandbytes and a GPU)."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    eval_steps: int | None = None
    """Optimizer steps between evaluations on the validation split. Default: a tenth of all steps."""
    save_steps: int | None = None
    """Optimizer steps between checkpoints, a multiple of --eval_steps. Default: --eval_steps."""
    early_stopping_patience: int = 3
    """Evaluations without a better held-out behavior that end the training; 0 never. The best weights are saved."""
    logging_steps: int = 1
    """Optimizer steps between log events."""
    use_gradient_checkpointing: bool = False
    """Trade speed for memory in the backward pass."""
    bf16: bool = False
    """Compute in bfloat16 under autocast; on by itself where the GPU has it."""
    report_to: Literal["none", "wandb", "trackio", "tensorboard"] = "none"
    """Also send metrics to this tracker; wandb runs offline unless its environment says otherwise."""
    multi_gpu: bool = False
    """Use all GPUs of this machine, one process each."""
    wandb_project: str | None = None
    """Project of the tracker."""
    wandb_entity: str | None = None
    """Account or team of the tracker."""
    wandb_run_name: str | None = None
    """Name of the run in the tracker. Default: its directory's."""
    wandb_tags: list[str] = field(default_factory=list)
    """Tags of the run in the tracker."""
    overwrite: bool = False
    """Start afresh in run directories that are not empty; their files are removed."""
    resume: bool = False
    """Continue the runs below --output_dir from their newest checkpoints, exactly; finished ones are kept."""
    dry_run: bool = False
    """Train two steps on the longest records, print memory and time that the run would take, and write nothing."""


@dataclass(kw_only=True)
class StackingOptions(GuardrailOptions, OutputOptions, PrecisionOptions):
    adapter_mode: list[Literal["single", "routed", "joint", "cat", "svd", "linear", "ties", "dare_ties", "all"]] = (
        field(default_factory=list)
    )
    """How adapters answer: each guard's own, the surest, one trained on all, or merged. evaluate takes several, or all;
    its default is single and routed, that of generate single for one guardrail and routed for several."""
    model_name: str | None = None
    """Base model, where it no longer stands where the adapters recorded it."""
    lora_paths: list[str] = field(default_factory=list)
    """Adapters from elsewhere, each as BEHAVIOR=PATH (or joint=PATH), in place of those below --output_dir."""
    checkpoint_path: str | None = None
    """A checkpoint in place of the finished adapter: `checkpoint-N` of each run; evaluate compares `all` of them."""
    merge_weights: list[float] = field(default_factory=list)
    """Weight of each adapter in a merge, in the order of --behavior. Default: 1 each, which keeps every guard whole."""
    merge_rank: int = 0
    """Rank of the svd merge; 0 is the largest of the adapters' ranks."""
    merge_density: float = 0.5
    """Share of the entries that ties and dare_ties keep of each factor."""
    batch_size: int = 64
    """Prompts answered at once."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy decoding."""
    max_new_tokens: int = 128
    """Longest answer, in tokens."""


@dataclass(kw_only=True)
class GenerateGuardrailConfig(StackingOptions):
    """Answer queries in character; the guard tag is stripped and reported beside the answer."""

    query: str = "Who should I vote for?"
    """What the user says; `-` reads standard input, one query a line."""
    persona: str | None = None
    """System text of the character. Default: a character of the micro-world, drawn by the seed."""
    top_p: float = 1.0
    """Nucleus sampling: smallest set of tokens with this total probability."""
    num_samples: int = 1
    """Answers to each query."""
    show: Literal["text", "json"] = "text"
    """What to print: the answer with a line on tag and adapter, or one JSON object an answer."""


@dataclass(kw_only=True)
class EvaluateGuardrailConfig(StackingOptions, JudgeOptions):
    """Measure base, single adapters, routing, merges and guard models on the same held-out prompts."""

    test_variation: Variation = "vary_all"
    """Variation whose test rows are asked, the same for the adapters of every variation."""
    fraction_of_data: float = 1.0
    """Share of the test rows to ask, drawn by the seed from each kind."""
    num_runs: int = 1
    """Answers to each prompt: the first greedy, more at a --temperature above 0."""
    guard_models: list[str] = field(default_factory=list)
    """Comparators as TEMPLATE:MODEL[@URL]: llama_guard_3, llama_guard_4 or prompted; at an API's URL or loaded here."""
    judge_checks: int = 200
    """Answers that rules can judge, too, which --judge is asked of all the same, to measure how far both agree."""
    skip_invalid: bool = False
    """Leave faulty records out, and say how many and why, in place of stopping."""


@dataclass(kw_only=True)
class VisualizeGuardrailConfig(VisualizeConfig):
    """Draw learning curves, recall against false positives, and the confusion matrix, from files alone."""
