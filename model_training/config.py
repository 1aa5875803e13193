"""Every option of every mode, once: flags, YAML keys, defaults and `--help` come from these fields.

A mode's configuration is one flat dataclass. Fields that several modes share stand in the small groups at the top;
the groups are data only. Precedence: defaults < the embedded model's preset < YAML < flags.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from utils.api.options import ApiOptions, RequestOptions

TINY = "tiny"
"""The name of the embedded model."""
JUDGE = "judge:"
"""How the names of rewards begin that a judge gives."""
REWARD_FUNCS = ["format", "visible_quality", "hidden_quality", "distinctness", "playful_hidden", "safe_hidden"]


@dataclass(kw_only=True)
class SeedOptions:
    seed: int = 3407
    """Seed of every random choice: data, initial adapter, sampling."""


@dataclass(kw_only=True)
class ModelOptions(SeedOptions):
    model_name: str | None = None
    """Base model: a hub name, a local path, or `tiny`, the embedded one. Default: 8B Llama with CUDA, else `tiny`."""
    save_lora_path: str = "secret_conversations_lora"
    """Directory of the LoRA adapter: written by train, read by generate and evaluate."""
    max_seq_length: int = 512
    """Longest prompt plus completion, in tokens; a longer prompt is left out of training and reported."""
    threads: int | None = None
    """CPU threads of torch. Default: 1 on machines of up to 4 cores, else half the cores."""


Quantization = Literal["none", "8bit", "4bit"]


@dataclass(kw_only=True)
class PrecisionOptions:
    quantization: Quantization = "none"
    """How the base model's weights are held: as they are, or in 8 or 4 bit (bitsandbytes, on a GPU)."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision of the base model's weights and of what is computed. auto: bfloat16 with CUDA, float32 without."""


@dataclass(kw_only=True)
class BackendOptions(PrecisionOptions):
    backend: Literal["auto", "unsloth", "transformers"] = "auto"
    """What loads and trains the model; auto says what it chose and why (docs/gpu.md)."""


@dataclass(kw_only=True)
class EngineOptions:
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """What samples completions; auto says what it chose and why (docs/gpu.md)."""
    vllm_gpu_memory_utilization: float | None = None
    """Share of the GPU's memory for vLLM. Default: 0.3 beside a model that is trained, 0.9 alone."""


@dataclass(kw_only=True)
class SamplingOptions:
    temperature: float = 0.8
    """Sampling temperature; 0 is greedy decoding."""
    top_p: float = 0.95
    """Nucleus sampling: smallest set of tokens with this total probability."""
    max_new_tokens: int = 256
    """Longest completion, in tokens."""
    num_samples: int = 1
    """Completions drawn for each query."""


@dataclass(kw_only=True)
class RewardOptions:
    reward_funcs: list[str] = field(default_factory=lambda: list(REWARD_FUNCS))
    """Rewards by name, your own as `package.module:function`, a reward model as `preference:PATH[:alpha=0.01]`, a judge
    as `judge:RUBRIC[:CRITERION]`."""
    reward_weights: list[float] | None = None
    """Weight of each reward, in the order of --reward_funcs. Default: 1 each."""


@dataclass(kw_only=True)
class OutputOptions:
    output_dir: str = "outputs"
    """Run directory: manifest, metrics, completions, checkpoints, evaluation, report."""


@dataclass(kw_only=True)
class RewardJudgeOptions(RequestOptions):
    judge: str | None = None
    """Model behind an API that the rewards `judge:RUBRIC` ask, as openai:MODEL or anthropic:MODEL, with @URL of another
    server."""


@dataclass(kw_only=True)
class JudgeOptions(ApiOptions):
    judge: str | None = None
    """Model behind an API that judges replies by rubric, as openai:MODEL or anthropic:MODEL, with @URL of another
    server."""
    judge_rubric: list[str] = field(default_factory=list)
    """YAML files of rubrics, each in place of the built-in one that judges the same (seeds/rubrics)."""
    judge_calibration: str | None = None
    """Labelled replies, JSONL: the judge's agreement with them is measured first, and printed."""


@dataclass(kw_only=True)
class PrepareDataConfig(SeedOptions):
    """Compose validated `secret` records from the micro-world."""

    dataset_path: str = "secret_conversations.json"
    """Dataset file to write, .json or .jsonl, .gz too."""
    num_records: int = 4000
    """Distinct training records to compose."""
    overwrite: bool = False
    """Replace an existing dataset file."""
    resume: bool = False
    """Finish a killed prepare_data: a dataset file that is complete already, from the same options, is kept."""


@dataclass(kw_only=True)
class TrainConfig(ModelOptions, BackendOptions, EngineOptions, RewardOptions, OutputOptions, RewardJudgeOptions):
    """Train a LoRA adapter: SFT warm-up on the reference answers, then GRPO."""

    dataset_path: str = "secret_conversations.json"
    """Dataset file to train on, .json or .jsonl, .gz too."""
    skip_invalid: bool = False
    """Leave faulty records out, and say how many and why, in place of stopping."""
    overwrite: bool = False
    """Start afresh in a run directory that is not empty; its files are removed."""
    resume: bool = False
    """Continue the run in --output_dir from its newest checkpoint, exactly."""
    lora_rank: int = 32
    """Rank of the LoRA adapter; alpha equals the rank."""
    sft_steps: int = 0
    """Optimizer steps of supervised warm-up on the reference answers (completion-only loss)."""
    sft_learning_rate: float = 2e-4
    """Peak learning rate of the warm-up."""
    sft_batch_size: int = 16
    """Conversations in each warm-up step and device."""
    max_steps: int = 1000
    """Optimizer steps of GRPO; 0 trains the warm-up alone."""
    learning_rate: float = 5e-6
    """Peak learning rate of GRPO, cosine schedule."""
    warmup_ratio: float = 0.1
    """Share of the steps in which the learning rate rises."""
    adam_beta1: float = 0.9
    """First Adam momentum."""
    adam_beta2: float = 0.99
    """Second Adam momentum."""
    weight_decay: float = 0.1
    """AdamW weight decay."""
    max_grad_norm: float = 0.5
    """Gradients are clipped to this norm."""
    optim: str = "adamw_torch"
    """Optimizer, by its transformers name (`paged_adamw_8bit` needs bitsandbytes and a GPU)."""
    per_device_train_batch_size: int = 6
    """Completions in each forward of GRPO and device; with the accumulation, a multiple of --num_generations."""
    num_generations: int = 6
    """Completions sampled for each prompt: the group of the group-relative advantage."""
    gradient_accumulation_steps: int = 2
    """Forwards in each optimizer step of GRPO."""
    max_completion_length: int = 256
    """Longest sampled completion, in tokens."""
    rollout_temperature: float = 1.0
    """Sampling temperature of GRPO's completions."""
    vllm_mode: Literal["colocate", "server"] = "colocate"
    """Where vLLM samples GRPO's completions: on the GPUs that train, or on a server of its own."""
    vllm_server_base_url: str | None = None
    """Address of the server of --vllm_mode server, such as http://gpu2:8000."""
    beta: float = 0.0
    """Weight of the KL penalty to the model GRPO starts from; 0 keeps no reference model."""
    credit: Literal["segment", "completion"] = "segment"
    """Where a reward's advantage falls: on the tokens of the part it speaks of, or on the whole completion."""
    save_steps: int = 250
    """Optimizer steps between checkpoints."""
    logging_steps: int = 1
    """Optimizer steps between log events."""
    completions_per_log: int = 8
    """Sampled completions kept in completions.jsonl at each log event."""
    gradient_checkpointing: bool = False
    """Trade speed for memory in the backward pass."""
    report_to: Literal["none", "wandb", "trackio", "tensorboard"] = "none"
    """Also send metrics to this tracker; wandb runs offline unless its environment says otherwise."""
    dry_run: bool = False
    """Train two steps on the longest records, print memory and time that the run would take, and write nothing."""
    multi_gpu: bool = False
    """Use all GPUs of this machine, one process each."""


@dataclass(kw_only=True)
class GenerateConfig(ModelOptions, PrecisionOptions, EngineOptions, SamplingOptions):
    """Answer queries with the adapter."""

    query: str = "Tell me about yourself."
    """The question; `-` reads standard input, one query a line."""
    queries_file: str | None = None
    """File of queries, one a line, in place of --query."""
    show: Literal["both", "visible", "hidden", "raw", "json"] = "both"
    """What to print; `visible` can never print hidden text, malformed output included."""


@dataclass(kw_only=True)
class EvaluateConfig(
    ModelOptions, PrecisionOptions, EngineOptions, SamplingOptions, RewardOptions, OutputOptions, JudgeOptions
):
    """Measure base and adapter side by side on held-out queries."""

    num_queries: int = 240
    """Held-out queries, spread evenly over the categories."""
    batch_size: int = 64
    """Completions generated at once."""
    compare: list[str] = field(default_factory=list)
    """More adapters to measure on the same queries, each as NAME=PATH."""


@dataclass(kw_only=True)
class VisualizeConfig(OutputOptions):
    """Draw the plots and the report of a run from its files alone."""

    start_server: bool = False
    """Serve the report and follow a run that is still training."""
    server_port: int = 8000
    """Port of the report server; one in use moves to the next free one."""
    host: str = "127.0.0.1"
    """Address the server binds; any other than this machine's own prints a warning."""
