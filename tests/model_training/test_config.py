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


def test_an_option_means_the_same_in_every_mode() -> None:
    """One name has one type and one default, or a file shared by modes would surprise."""
    seen: dict[str, tuple[object, ...]] = {}
    for _, mode, config in CONFIGS:
        for option in options_of(config).values():
            facts = (option.kind, option.choices, option.many, option.optional, option.default)
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


def test_the_pipeline_has_every_option_of_its_steps() -> None:
    modes = main.TASKS["secret"].modes
    pipeline = {item.name for item in fields(modes["pipeline"].config)}
    for step in modes["pipeline"].parts:
        assert {item.name for item in fields(modes[step].config)} - pipeline <= {"multi_gpu"}
