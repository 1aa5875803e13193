"""Every option of the `preference` task, once; see config.py for how they become flags, YAML keys and `--help`.

`train` has two faces: a reward model on a language model, or, with `--env`, the synthetic experiments of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from model_training.config import BackendOptions, OutputOptions, PrecisionOptions, SeedOptions

WORLD = "world"
"""The `--data_path` of the micro-world's own pairs, whose hidden context is known."""


@dataclass(kw_only=True)
class ThreadOptions(SeedOptions):
    threads: int | None = None
    """CPU threads of torch. Default: 1 on machines of up to 4 cores, else half the cores."""


@dataclass(kw_only=True)
class SubsetOptions:
    data_subset: Literal["both", "helpful", "harmless"] = "both"
    """Which pairs of the data: labelled for helpfulness, for harmlessness, or both together."""
    skip_invalid: bool = False
    """Leave faulty records out, and say how many and why, in place of stopping."""


@dataclass(kw_only=True)
class PairDataOptions(SubsetOptions):
    data_path: list[str] = field(default_factory=lambda: ["preference_pairs.jsonl"])
    """Pairs: files (.json or .jsonl, .gz too), a folder of {train,test}.jsonl.gz, or a hub name."""


@dataclass(kw_only=True)
class PreparePreferenceConfig(SeedOptions, SubsetOptions):
    """Compose pairs with known hidden context from the micro-world, or gather them from files or the hub."""

    data_path: list[str] = field(default_factory=lambda: [WORLD])
    """Where pairs come from: `world`, the micro-world; files; a folder; or a hub name such as Anthropic/hh-rlhf."""
    dataset_path: str = "preference_pairs.jsonl"
    """Dataset file to write, .json or .jsonl, .gz too."""
    num_records: int = 4000
    """Pairs to compose from the micro-world."""
    share_harmless: float = 0.5
    """Share of the micro-world's annotators who judge by harmlessness; the others judge by helpfulness."""
    hidden_context: bool = True
    """false: the control, in which every annotator of the micro-world judges by the mean of both utilities."""
    test_share: float = 0.2
    """Share held out as `test`: of the micro-world's pairs, and of prompts where a source has no split of its own."""
    overwrite: bool = False
    """Replace an existing dataset file."""
    resume: bool = False
    """Finish a killed prepare_data: a dataset file that is complete already, from the same options, is kept."""


@dataclass(kw_only=True)
class TrainPreferenceConfig(ThreadOptions, PairDataOptions, OutputOptions, BackendOptions):
    """Train a reward model with LoRA, or with --env the small networks of the synthetic experiments."""

    model_name: str | None = None
    """Base model: a hub name, a local path, or `tiny`, the embedded one. Default: 8B Llama with CUDA, else `tiny`."""
    reward_model_type: Literal["base", "mean_and_variance", "categorical"] = "mean_and_variance"
    """What the model says of an answer: a number, a normal distribution, or a distribution over atoms from 0 to 1."""
    num_train_epochs: float = 1.0
    """Passes over the training pairs (the source takes 2 for a single subset)."""
    max_steps: int = 0
    """Optimizer steps in place of --num_train_epochs; 0 counts epochs."""
    learning_rate: float = 3e-6
    """Peak learning rate."""
    lr_scheduler_type: Literal["cosine", "step"] = "cosine"
    """cosine falls to a tenth of the peak; step is 1, 0.1 and 0.01 times the peak by thirds."""
    per_device_train_batch_size: int = 2
    """Pairs in each forward and device."""
    per_device_eval_batch_size: int = 8
    """Held-out pairs in each forward and device."""
    gradient_accumulation_steps: int = 1
    """Forwards in each optimizer step."""
    weight_decay: float = 0.001
    """AdamW weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    lora_rank: int = 8
    """Rank of the LoRA adapter."""
    lora_alpha: int = 32
    """Scale of the LoRA adapter, over its rank."""
    lora_dropout: float = 0.1
    """Dropout of the LoRA adapter."""
    num_atoms: int = 10
    """Atoms of the categorical model, evenly from 0 to 1."""
    likelihood: Literal["probit", "logistic"] = "probit"
    """Of mean_and_variance: the normal CDF of the paper, or the published code's logistic stand-in."""
    entropy_coeff: float = 0.1
    """Of categorical: weight of the entropy bonus."""
    entropy_bonus: Literal["conditional", "marginal"] = "conditional"
    """Entropy of each answer's distribution, as in the paper, or of the batch's mean, as in the published code."""
    variance_penalty: float = 0.0
    """Of mean_and_variance: weight of the mean sum of both variances."""
    max_length: int = 1024
    """Longest text of a pair, in tokens; longer pairs are left out and counted."""
    train_dataset_size: int = 0
    """Training pairs to use, drawn by the seed; 0 is all."""
    eval_dataset_size: int = 500
    """Held-out pairs for early stopping: of split `validation`, else whole prompts of `train`, at most a tenth."""
    eval_steps: int = 1000
    """Optimizer steps between evaluations on the held-out pairs, each with a checkpoint."""
    early_stopping_patience: int = 3
    """Evaluations without a better held-out loss that end the training; 0 never. The best weights are saved."""
    logging_steps: int = 10
    """Optimizer steps between log events."""
    shared_prompt: bool = True
    """Compute the common beginning of both texts once; false runs the two texts apart, with the same result."""
    bf16: bool = False
    """Compute in bfloat16 under autocast; on by itself where the GPU has it."""
    gradient_checkpointing: bool = False
    """Trade speed for memory in the backward pass."""
    report_to: Literal["none", "wandb", "trackio", "tensorboard"] = "none"
    """Also send metrics to this tracker; wandb runs offline unless its environment says otherwise."""
    multi_gpu: bool = False
    """Use all GPUs of this machine, one process each."""
    overwrite: bool = False
    """Start afresh in a run directory that is not empty; its files are removed."""
    resume: bool = False
    """Continue the run in --output_dir from its newest checkpoint, exactly."""
    dry_run: bool = False
    """Train two steps on the longest pairs, print memory and time that the run would take, and write nothing."""
    env: Literal["1d", "2d"] | None = None
    """Synthetic experiment in place of a language model; the options below are its own."""
    batch_size: int = 128
    """Synthetic: comparisons in each iteration of `pairs`; `all_pairs` draws sqrt(8 x this) states, 128 for 2048."""
    lr: float = 1e-4
    """Synthetic: Adam's first learning rate; it falls exponentially to 1e-5."""
    num_iterations: int = 1000
    """Synthetic: iterations of each of the four networks."""
    estimator: Literal["all_pairs", "pairs"] = "all_pairs"
    """Synthetic: every drawn state meets every other, labels averaged over the context; or the source's sampling."""
    shared_context: bool = False
    """Synthetic: one hidden context for both sides of a comparison, as in the paper; the source draws one a side."""
    out_dir: str = "results"
    """Synthetic: the run is written to OUT_DIR/ENV/BATCH_LR_ITERATIONS."""


@dataclass(kw_only=True)
class RewardModelOptions(ThreadOptions, PrecisionOptions):
    reward_model_checkpoints: list[str] = field(default_factory=list)
    """Reward models: run directories of train, or directories of their adapters."""
    reward_model_names: list[str] = field(default_factory=list)
    """Their names in tables and files. Default: the names of the directories."""
    model_name: str | None = None
    """Base model, where it no longer stands where the reward model recorded it."""
    alpha: float = 0.01
    """The risk-averse reward is this quantile of the distribution."""


@dataclass(kw_only=True)
class ScoreConfig(RewardModelOptions):
    """Score answers to a query: mean, spread, risk-averse reward, and what they mean."""

    query: str = ""
    """The question that is answered; `-` reads JSON lines {"query": ..., "responses": [...]} from standard input."""
    response: list[str] = field(default_factory=list)
    """The answer to score; two or more are compared."""
    show: Literal["text", "json"] = "text"
    """What to print: sentences, or one JSON object a response."""


@dataclass(kw_only=True)
class EvaluatePreferenceConfig(RewardModelOptions, PairDataOptions, OutputOptions):
    """Measure reward models side by side: accuracy, hidden context (r2), calibration, risk aversion, jailbreaks."""

    from_outputs: list[str] = field(default_factory=list)
    """Files of saved reward outputs, ours or the source's, in place of models: nothing is loaded."""
    split: Literal["test", "validation", "train"] = "test"
    """Which pairs of --data_path are scored."""
    num_pairs: int = 0
    """Pairs to score, drawn by the seed; 0 is all."""
    jailbreak_path: str | None = None
    """File of {"prompt", "responses": [safe, unsafe]} for the jailbreak protocol."""
    alphas: list[float] = field(default_factory=lambda: [0.001, 0.01, 0.05, 0.1, 0.25, 0.5])
    """Quantiles of the risk curve."""
    per_device_eval_batch_size: int = 8
    """Held-out pairs in each forward and device."""
    num_widest: int = 20
    """Pairs with the widest spread to list for reading."""
