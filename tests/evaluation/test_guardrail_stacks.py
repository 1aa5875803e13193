"""Which adapters and modes an evaluation asks, by what lies in the output directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from evaluation import guardrail_stacks
from evaluation.guardrail_stacks import Stack, chosen_modes, find_stacks
from model_training.guard_adapters import GuardAdapter, find_adapters, find_joint
from model_training.guardrail_config import ADAPTER_MODES, MERGES, EvaluateGuardrailConfig
from utils.errors import UserError

TAGS = {"politics": "<guard:politics>", "meeting": "<guard:meeting>"}
NAMES = list(TAGS)


def make(folder: Path, base: str = "base") -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{base}"}}')
    (folder / "adapter_model.safetensors").write_bytes(b"")


@pytest.fixture(autouse=True)
def unmerged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges are named and not made; those of `ties` cannot be made."""

    def choose(
        config: Any,
        behaviors: Sequence[str],
        modes: Sequence[str],
        tags: Any,
        variation: str,
        checkpoint: str | None = None,
    ) -> tuple[list[GuardAdapter], dict[str, GuardAdapter]]:
        if "ties" in modes:
            raise UserError("--adapter_mode ties: the adapters differ in rank")
        place = (config.output_dir, behaviors, variation, tags, checkpoint, config.lora_paths)
        guards = find_adapters(*place) if set(modes) - {"joint"} else []
        others = {mode: guards[0] for mode in modes if mode in MERGES}
        return guards, others | ({"joint": find_joint(*place)} if "joint" in modes else {})

    monkeypatch.setattr(guardrail_stacks, "choose_adapters", choose)


@pytest.fixture
def found(tmp_path: Path) -> Any:
    """`found(**options)`: the stacks of that configuration."""

    def stacks(**options: Any) -> list[Stack]:
        return find_stacks(config(output_dir=str(tmp_path), **options), NAMES, TAGS)

    return stacks


def config(**options: Any) -> EvaluateGuardrailConfig:
    return EvaluateGuardrailConfig(**({"threads": 1} | options))


def test_modes_stand_in_the_order_of_the_tables() -> None:
    assert chosen_modes(config(), NAMES) == ["single", "routed"]
    assert chosen_modes(config(adapter_mode=["linear", "single", "cat", "linear"]), NAMES) == [
        "single",
        "cat",
        "linear",
    ]
    assert chosen_modes(config(adapter_mode=["all"]), NAMES) == list(ADAPTER_MODES)


def test_one_guardrail_is_not_merged(capsys: Any) -> None:
    assert chosen_modes(config(adapter_mode=["all"]), NAMES[:1]) == ["single", "routed", "joint"]
    assert "left out; with one guardrail there is nothing to merge" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--adapter_mode svd: a merge takes two guardrails or more"):
        chosen_modes(config(adapter_mode=["all", "svd"]), NAMES[:1])


def test_weights_are_one_a_guardrail() -> None:
    assert chosen_modes(config(adapter_mode=["cat"], merge_weights=[1.0, 0.5]), NAMES) == ["cat"]
    with pytest.raises(UserError, match=r"--merge_weights has 1 numbers for 2 guardrails \(politics, meeting\)"):
        chosen_modes(config(adapter_mode=["cat"], merge_weights=[1.0]), NAMES)


def test_all_is_what_can_be_made(tmp_path: Path, found: Any, capsys: Any) -> None:
    for name in NAMES:
        make(tmp_path / f"{name}.vary_all/adapter")
    (stack,) = found(adapter_mode=["all"])
    assert stack.modes == ["single", "routed", "cat", "svd", "linear", "dare_ties"]
    assert [adapter.name for adapter in stack.guards] == NAMES and stack.end == ""
    said = capsys.readouterr().err
    assert "ties: left out; --adapter_mode ties: the adapters differ in rank" in said
    assert f"joint: left out, there is no {tmp_path}/joint.vary_all/adapter; train it: python main.py" in said
    for mode in ("ties", "joint"):
        with pytest.raises(UserError):
            found(adapter_mode=["all", mode])
    make(tmp_path / "joint.vary_all/adapter")
    (stack,) = found(adapter_mode=["all"])
    assert stack.modes[:3] == ["single", "routed", "joint"] and stack.others["joint"].name == "joint"


def test_joint_alone_needs_no_other_adapter(tmp_path: Path, found: Any) -> None:
    make(tmp_path / "joint.vary_all/adapter")
    (stack,) = found(adapter_mode=["joint"])
    assert stack.guards == [] and list(stack.others) == stack.modes == ["joint"]
    make(tmp_path / "joint.fixed_history/adapter")
    stacks = found(adapter_mode=["joint"], dataset_variation="all")
    assert [stack.variation for stack in stacks] == ["vary_all", "fixed_history"]


def test_variations_that_are_there(tmp_path: Path, found: Any, capsys: Any) -> None:
    with pytest.raises(UserError, match=r"no adapter of politics, vary_all"):
        found(dataset_variation="all")
    for name in NAMES:
        make(tmp_path / f"{name}.fixed_history/adapter")
    make(tmp_path / "politics.vary_all/adapter")
    (stack,) = found(dataset_variation="all")
    assert (stack.variation, stack.end) == ("fixed_history", "@fixed_history")
    said = capsys.readouterr().err
    assert "vary_all: left out; there is no adapter of meeting" in said
    assert "fixed_character: left out; there is no adapter of politics, meeting" in said
    with pytest.raises(UserError, match=r"--dataset_variation all"):
        found(dataset_variation="all", lora_paths=[f"politics={tmp_path}"])


def test_checkpoints_are_stacked_where_all_have_them(tmp_path: Path, found: Any, capsys: Any) -> None:
    for name, steps in (("politics", (5, 10, 100)), ("meeting", (5, 10))):
        for step in steps:
            make(tmp_path / f"{name}.vary_all/checkpoints/checkpoint-{step}")
    stacks = found(checkpoint_path="all")
    assert [(stack.end, stack.checkpoint) for stack in stacks] == [
        ("@checkpoint-5", "checkpoint-5"),
        ("@checkpoint-10", "checkpoint-10"),
    ]
    assert "left out, since not all guardrails have them: checkpoint-100 of politics" in capsys.readouterr().err
    (stack,) = found(checkpoint_path="checkpoint-10")
    assert stack.end == "" and stack.guards[0].path.name == "checkpoint-10"
    with pytest.raises(UserError, match=r"joint.vary_all/checkpoints holds none; train it with --joint"):
        found(checkpoint_path="all", adapter_mode=["joint", "single"])
    assert all("joint" not in stack.modes for stack in found(checkpoint_path="all", adapter_mode=["all"]))
    make(tmp_path / "joint.vary_all/checkpoints/checkpoint-10")
    make(tmp_path / "joint.vary_all/checkpoints/checkpoint-20")
    stacks = found(checkpoint_path="all", adapter_mode=["single", "joint"])
    assert [stack.modes for stack in stacks] == [["single"], ["single", "joint"], ["joint"]]


def test_no_checkpoint_in_common_is_an_error(tmp_path: Path, found: Any) -> None:
    make(tmp_path / "politics.vary_all/checkpoints/checkpoint-5")
    with pytest.raises(UserError, match=r"politics has checkpoint-5; meeting has none"):
        found(checkpoint_path="all")


def test_adapters_of_different_bases_are_refused(tmp_path: Path, found: Any) -> None:
    make(tmp_path / "politics.vary_all/adapter")
    make(tmp_path / "meeting.vary_all/adapter", base="another")
    with pytest.raises(UserError, match=r"different base models"):
        found()
