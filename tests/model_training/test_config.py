"""The dataclasses of options: each field has a help text, a default that is allowed, and a range if it is a number."""

from __future__ import annotations

from dataclasses import fields

import pytest

import main
from model_training.option_values import RANGES, check_ranges
from model_training.options import options_of

CONFIGS = [(task, mode, entry.config) for task, each in main.TASKS.items() for mode, entry in each.modes.items()]


@pytest.mark.parametrize(("task", "mode", "config"), CONFIGS)
def test_every_field_has_a_help_text_that_is_a_sentence(task: str, mode: str, config: type) -> None:
    for option in options_of(config).values():
        assert option.doc.endswith("."), f"{mode}: {option.name}: {option.doc!r}"


@pytest.mark.parametrize(("task", "mode", "config"), CONFIGS)
def test_every_number_has_a_range_and_the_defaults_are_in_it(task: str, mode: str, config: type) -> None:
    numbers = {option.name for option in options_of(config).values() if option.kind in (int, float) and not option.many}
    assert numbers <= RANGES.keys()
    check_ranges(config(), {})


@pytest.mark.parametrize("task", main.TASKS)
def test_an_option_means_the_same_in_every_mode(task: str) -> None:
    """One name has one type and one default, or a file shared by modes would surprise. Only `data_path` differs: what
    prepare_data gathers from is by default the micro-world, what the others read is what it wrote."""
    seen: dict[str, tuple[object, ...]] = {}
    for mode, entry in main.TASKS[task].modes.items():
        for option in options_of(entry.config).values():
            default = None if option.name == "data_path" else option.default
            facts = (option.kind, option.choices, option.many, option.optional, default)
            assert seen.setdefault(option.name, facts) == facts, f"{mode}: {option.name}"


def test_the_source_system_s_options_keep_their_names_and_defaults() -> None:
    train = main.TASKS["secret"].modes["train"].config()
    generate = main.TASKS["secret"].modes["generate"].config()
    visualize = main.TASKS["secret"].modes["visualize"].config()
    assert (train.output_dir, train.max_seq_length, train.lora_rank, train.max_steps) == ("outputs", 512, 32, 1000)
    assert (train.save_lora_path, train.dataset_path) == ("secret_conversations_lora", "secret_conversations.json")
    assert (train.multi_gpu, generate.query) == (False, "Tell me about yourself.")
    assert (visualize.start_server, visualize.server_port) == (False, 8000)


def test_lists_are_not_shared_between_configurations() -> None:
    config = main.TASKS["secret"].modes["train"].config
    config().reward_funcs.append("mine")
    assert "mine" not in config().reward_funcs


LEFT_OUT = {
    "secret": {"multi_gpu", "dry_run", "backend"},
    "preference": {
        *("env", "batch_size", "lr", "num_iterations", "estimator", "shared_context", "out_dir"),
        *("reward_model_checkpoints", "from_outputs", "dry_run", "multi_gpu"),
    },
    "guardrail": {"joint", "lora_paths", "dry_run", "multi_gpu"},
}
"""What makes no sense in a pipeline: another launcher, synthetic experiments, models not its own, doing nothing, and
unsloth, which rewrites transformers for the steps behind training, too."""


@pytest.mark.parametrize("task", main.TASKS)
def test_the_pipeline_has_every_option_of_its_steps(task: str) -> None:
    modes = main.TASKS[task].modes
    pipeline = {item.name for item in fields(modes["pipeline"].config)}
    missing = {item.name for step in modes["pipeline"].parts for item in fields(modes[step].config)} - pipeline
    assert missing == LEFT_OUT[task]


def test_the_preference_source_s_options_keep_their_names_and_defaults() -> None:
    train = main.TASKS["preference"].modes["train"].config()
    assert (train.learning_rate, train.weight_decay, train.max_length) == (3e-6, 0.001, 1024)
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps, train.num_train_epochs) == (2, 1, 1)
    assert (train.num_atoms, train.entropy_coeff, train.variance_penalty) == (10, 0.1, 0)
    assert (train.lora_rank, train.lora_alpha, train.lora_dropout) == (8, 32, 0.1)
    assert (train.batch_size, train.lr, train.num_iterations, train.out_dir) == (128, 1e-4, 1000, "results")


def test_the_guardrail_source_s_options_keep_their_names_and_defaults() -> None:
    train = main.TASKS["guardrail"].modes["train"].config()
    prepare = main.TASKS["guardrail"].modes["prepare_data"].config()
    assert (train.r, train.lora_alpha, train.lora_dropout, train.beta) == (16, 16, 0, 0.1)
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps, train.num_train_epochs) == (8, 1, 10)
    assert (train.learning_rate, train.lr_scheduler_type, train.warmup_steps) == (2e-4, "linear", 5)
    assert (train.weight_decay, train.max_seq_length, train.seed, prepare.n_samples) == (0.01, 2048, 3407, 250)
