"""Which adapters an evaluation asks, and in which modes: found and checked before any model is loaded.

A *stack* is one adapter of each guardrail, of one variation and one checkpoint, and the joint adapter beside them.
`--dataset_variation all` and `--checkpoint_path all` make several stacks, which all answer the same prompts; what is
not there is left out with a line that says so, while what was asked for by name must be there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from evaluation.answering import choose_adapters
from model_training.checkpoints import list_checkpoints
from model_training.guard_adapters import GuardAdapter, common_base, parse_lora_paths
from model_training.guardrail_config import (
    ADAPTER,
    ADAPTER_MODES,
    ALL,
    JOINT,
    MERGES,
    VARIATIONS,
    EvaluateGuardrailConfig,
    run_directory,
)
from utils.errors import UserError

DEFAULT_MODES = ("single", "routed")


@dataclass(frozen=True)
class Stack:
    """Adapters that are asked together: of the guardrails, and by mode joint and the merges. `end` tells the names of
    their models from those of other stacks."""

    variation: str
    checkpoint: str | None
    end: str
    modes: list[str]
    guards: list[GuardAdapter]
    others: dict[str, GuardAdapter]

    @property
    def adapters(self) -> list[GuardAdapter]:
        return [*self.guards, *self.others.values()]


def find_stacks(config: EvaluateGuardrailConfig, behaviors: Sequence[str], tags: Mapping[str, str]) -> list[Stack]:
    """The stacks to ask, their merges made; `tags` are those of the guardrails' definitions.

    Raises:
        UserError: a mode, variation, checkpoint or adapter that was asked for cannot be had, or there is none at all;
            adapters of different bases.
    """
    modes = chosen_modes(config, behaviors)
    for option in ("dataset_variation", "checkpoint_path"):
        if config.lora_paths and asdict(config)[option] == ALL:
            raise UserError(f"--lora_paths names one adapter of each guardrail; it excludes --{option} {ALL}")
    stacks = []
    for variation in _variations(config, behaviors, modes):
        for checkpoint, here in _checkpoints(config, behaviors, variation, modes).items():
            kept = [mode for mode in here if mode != JOINT or _has_joint(config, behaviors, variation, checkpoint)]
            guards, others = _adapters(config, behaviors, kept, tags, variation, checkpoint)
            kept = [mode for mode in kept if mode in others or mode not in (JOINT, *MERGES)]
            ends = [variation] * (config.dataset_variation == ALL) + [str(checkpoint)] * (config.checkpoint_path == ALL)
            end = "".join(f"@{part}" for part in ends)
            stacks.append(Stack(variation, checkpoint, end, kept, guards, others))
    adapters = [adapter for stack in stacks for adapter in stack.adapters]
    for adapter in adapters:
        _check_tags(adapter, tags)
    common_base(adapters, config.model_name)
    return stacks


def chosen_modes(config: EvaluateGuardrailConfig, behaviors: Sequence[str]) -> list[str]:
    """The modes of --adapter_mode, each once, in the order of the tables; `all` leaves out what makes no sense."""
    every, asked = ALL in config.adapter_mode, config.adapter_mode or DEFAULT_MODES
    modes = [mode for mode in ADAPTER_MODES if every or mode in asked]
    merges = [mode for mode in modes if mode in MERGES]
    if len(behaviors) == 1 and merges:
        named = [mode for mode in merges if mode in config.adapter_mode]
        if named:
            raise UserError(
                f"--adapter_mode {named[0]}: a merge takes two guardrails or more, and --behavior names {behaviors[0]}"
            )
        _say(f"{', '.join(merges)}: left out; with one guardrail there is nothing to merge")
        return [mode for mode in modes if mode not in MERGES]
    if merges and config.merge_weights and len(config.merge_weights) != len(behaviors):
        raise UserError(
            f"--merge_weights has {len(config.merge_weights)} numbers for {len(behaviors)} guardrails "
            f"({', '.join(behaviors)}); give one each, in this order"
        )
    return modes


def _variations(config: EvaluateGuardrailConfig, behaviors: Sequence[str], modes: Sequence[str]) -> list[str]:
    """The variations whose adapters are asked: the one of that name, or all that were trained."""
    if config.dataset_variation != ALL:
        return [config.dataset_variation]
    names = [JOINT] if list(modes) == [JOINT] else list(behaviors)
    missing = {variation: [name for name in names if not _trained(config, name, variation)] for variation in VARIATIONS}
    there = [variation for variation in VARIATIONS if not missing[variation]]
    for variation in VARIATIONS:
        if there and missing[variation]:
            _say(f"{variation}: left out; there is no adapter of {', '.join(missing[variation])}")
    return there or [VARIATIONS[0]]


def _trained(config: EvaluateGuardrailConfig, name: str, variation: str) -> bool:
    """Whether the run has left the adapter, or the checkpoints, that this evaluation wants."""
    if config.checkpoint_path is None:
        return (run_directory(config.output_dir, name, variation) / ADAPTER).is_dir()
    names = _checkpoints_of(config, name, variation)
    return bool(names) if config.checkpoint_path == ALL else config.checkpoint_path in names


def _checkpoints(
    config: EvaluateGuardrailConfig, behaviors: Sequence[str], variation: str, modes: list[str]
) -> dict[str | None, list[str]]:
    """The modes that can be asked at each checkpoint; None is the finished adapter. Guardrails are stacked at the
    checkpoints that all of their runs have; the joint run has its own."""
    if config.checkpoint_path != ALL:
        return {config.checkpoint_path: modes}
    stacked = [mode for mode in modes if mode != JOINT]
    shared = _shared_checkpoints(config, behaviors, variation) if stacked else []
    joint = _checkpoints_of(config, JOINT, variation) if JOINT in modes else []
    if JOINT in modes and not joint:
        missing = f"{run_directory(config.output_dir, JOINT, variation) / 'checkpoints'} holds none"
        if JOINT in config.adapter_mode:
            raise UserError(f"--checkpoint_path {ALL}: {missing}; train it with --joint")
        _say(f"{JOINT}: left out, {missing}; train it with --joint")
    return {
        name: [mode for mode in modes if name in (joint if mode == JOINT else shared)]
        for name in sorted({*shared, *joint}, key=lambda name: int(name.rpartition("-")[2]))
    }


def _shared_checkpoints(config: EvaluateGuardrailConfig, behaviors: Sequence[str], variation: str) -> list[str]:
    runs = {name: _checkpoints_of(config, name, variation) for name in behaviors}
    shared = [name for name in runs[behaviors[0]] if all(name in of_run for of_run in runs.values())]
    if not shared:
        found = "; ".join(f"{name} has {', '.join(of_run) or 'none'}" for name, of_run in runs.items())
        raise UserError(f"--checkpoint_path {ALL}: no checkpoint that all guardrails have, {variation}: {found}")
    apart = [f"{name} of {run}" for run, of_run in runs.items() for name in of_run if name not in shared]
    if apart:
        _say(f"{variation}: left out, since not all guardrails have them: {', '.join(apart)}")
    return shared


def _checkpoints_of(config: EvaluateGuardrailConfig, name: str, variation: str) -> list[str]:
    folder = run_directory(config.output_dir, name, variation) / "checkpoints"
    return [path.name for path in list_checkpoints(folder)]


def _has_joint(
    config: EvaluateGuardrailConfig, behaviors: Sequence[str], variation: str, checkpoint: str | None
) -> bool:
    """Whether the joint adapter is to be asked: `all` leaves out one that was not trained; by name it must be there."""
    if JOINT in config.adapter_mode or JOINT in parse_lora_paths(config.lora_paths, behaviors):
        return True
    run = run_directory(config.output_dir, JOINT, variation)
    path = run / ADAPTER if checkpoint is None else run / "checkpoints" / checkpoint
    if not path.is_dir():
        _say(
            f"{JOINT}: left out, there is no {path}; train it: python main.py --task guardrail --mode train --joint "
            f"--dataset_variation {variation} --output_dir {config.output_dir}"
        )
    return path.is_dir()


def _adapters(
    config: EvaluateGuardrailConfig,
    behaviors: Sequence[str],
    modes: Sequence[str],
    tags: Mapping[str, str],
    variation: str,
    checkpoint: str | None,
) -> tuple[list[GuardAdapter], dict[str, GuardAdapter]]:
    """What the modes need; `all` leaves out merges that these adapters do not allow, as of different ranks."""
    optional = [mode for mode in modes if mode in MERGES and mode not in config.adapter_mode]
    needed = [mode for mode in modes if mode not in optional]
    guards, others = choose_adapters(config, behaviors, needed, tags, variation, checkpoint)
    for mode in optional:
        try:
            others |= choose_adapters(config, behaviors, [mode], tags, variation, checkpoint)[1]
        except UserError as error:
            _say(f"{mode}: left out; {error}")
    return guards, others


def _check_tags(adapter: GuardAdapter, tags: Mapping[str, str]) -> None:
    """Refuse an adapter that writes another tag than its guardrail has now."""
    for name, tag in tags.items():
        if adapter.tags.get(name, tag) != tag:
            raise UserError(
                f"adapter {adapter.path}: it was trained to write {adapter.tags[name]} for {name}, whose tag is "
                f"{tag} now; train it anew, or give the guardrail its old tag"
            )


def _say(text: str) -> None:
    print(text, file=sys.stderr)
