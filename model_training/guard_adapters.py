"""Where the adapters of the guardrails lie, what each of them says about itself, and on which base all of them stand.

    OUTPUT_DIR/politics.vary_all/adapter                       the finished adapter of a run
    OUTPUT_DIR/politics.vary_all/checkpoints/checkpoint-40     --checkpoint_path checkpoint-40
    OUTPUT_DIR/joint.vary_all/adapter                          one adapter on the data of all guardrails
    --lora_paths politics=PATH joint=PATH                      adapters from elsewhere

Training leaves a note in the adapter, `subtext.json`: its guardrail, its tag, and the threshold on the probability of
the tag above which it answers in place of the base. An adapter without that note, such as one that peft alone wrote,
works as well: its tag is the one of its guardrail, its threshold 1/2.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from model_training.guardrail_config import ADAPTER, JOINT, run_directory
from utils.errors import UserError

NOTE = "subtext.json"
DEFAULT_THRESHOLD = 0.5
CHECKPOINT = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True)
class GuardAdapter:
    """An adapter directory: the guardrail (`joint`, or a merge) it is for, its tag, and the threshold of its tag.

    `tag` is None where an adapter speaks for several guardrails; `tags` has the tag of each of them.
    """

    name: str
    path: Path
    tag: str | None
    tags: dict[str, str]
    threshold: float
    note: dict[str, Any]


def find_adapters(
    output_dir: str | Path,
    behaviors: Sequence[str],
    variation: str,
    tags: Mapping[str, str],
    checkpoint: str | None = None,
    lora_paths: Sequence[str] = (),
) -> list[GuardAdapter]:
    """The adapter of each guardrail, in the order of `behaviors`; `tags` are those of the guardrails' definitions.

    Raises:
        UserError: an adapter is missing or damaged, is another guardrail's, or is named by checkpoint and by path.
    """
    given = parse_lora_paths(lora_paths, behaviors)
    if given and checkpoint is not None:
        raise UserError(
            f"--checkpoint_path {checkpoint} is of runs below --output_dir, which --lora_paths takes the place of; "
            "give one of the two (a path may be that of a checkpoint)"
        )
    return [
        _read(name, given.get(name) or _place(output_dir, name, variation, checkpoint), {name: tags[name]})
        for name in behaviors
    ]


def find_joint(
    output_dir: str | Path,
    behaviors: Sequence[str],
    variation: str,
    tags: Mapping[str, str],
    checkpoint: str | None = None,
    lora_paths: Sequence[str] = (),
) -> GuardAdapter:
    """The adapter that was trained on all guardrails together; arguments and errors as for `find_adapters`."""
    given = parse_lora_paths(lora_paths, behaviors)
    path = given.get(JOINT) or _place(output_dir, JOINT, variation, checkpoint)
    adapter = _read(JOINT, path, {name: tags[name] for name in behaviors})
    missing = [name for name in behaviors if name not in adapter.tags]
    if missing:
        raise UserError(
            f"adapter {path}: it was trained on {', '.join(adapter.tags)}, and not on {', '.join(missing)}; "
            "train it with --joint on all of --behavior, or name fewer"
        )
    return adapter


def parse_lora_paths(lora_paths: Sequence[str], behaviors: Sequence[str]) -> dict[str, Path]:
    """`politics=PATH` as {"politics": PATH}.

    Raises:
        UserError: an entry of another form, of a guardrail that is not asked for, or a name given twice.
    """
    paths: dict[str, Path] = {}
    for entry in lora_paths:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise UserError(f"--lora_paths {entry}: write BEHAVIOR=PATH, such as politics=runs/politics/adapter")
        if name not in (*behaviors, JOINT):
            raise UserError(f"--lora_paths {entry}: {name} is none of --behavior ({', '.join(behaviors)}), nor {JOINT}")
        if name in paths:
            raise UserError(f"--lora_paths: {name} is given twice; leave one out")
        paths[name] = Path(path)
    return paths


def common_base(adapters: Sequence[GuardAdapter], model_name: str | None = None) -> str:
    """The base model that all the adapters were trained on; `model_name` is where it stands now, if given.

    Two bases are the same if their fingerprints are; where an adapter has none, if their names are.

    Raises:
        UserError: the adapters have different bases, or one does not name its own.
    """
    from model_training.models import base_of_adapter

    for first, other in combinations(adapters, 2):
        prints = [adapter.note.get("base_fingerprint") for adapter in (first, other)]
        bases = [model_name or base_of_adapter(first.path), model_name or base_of_adapter(other.path)]
        same = prints[0] == prints[1] if all(prints) else bases[0] == bases[1]
        if not same:
            bases = [base_of_adapter(adapter.path) for adapter in (first, other)]
            why = "" if bases[0] != bases[1] else ", whose weights are not the same"
            raise UserError(
                f"adapters of different base models: {first.path} is for {bases[0]}, {other.path} for {bases[1]}{why}; "
                "train both on the same base"
            )
    return model_name or base_of_adapter(adapters[0].path)


def _place(output_dir: str | Path, name: str, variation: str, checkpoint: str | None) -> Path:
    """The directory of a run's adapter, or of one of its checkpoints."""
    from model_training.checkpoints import list_checkpoints

    run = run_directory(output_dir, name, variation)
    which = "--joint" if name == JOINT else f"--behavior {name}"
    command = (
        f"python main.py --task guardrail --mode train {which} --dataset_variation {variation} "
        f"--output_dir {output_dir}"
    )
    if checkpoint is None:
        if not (run / ADAPTER).is_dir():
            raise UserError(f"no adapter of {name}, {variation}: {run / ADAPTER} is missing; train it: {command}")
        return run / ADAPTER
    folder = run / "checkpoints"
    found = [path.name for path in list_checkpoints(folder)]
    if not found:
        raise UserError(f"--checkpoint_path {checkpoint}: {folder} holds no checkpoint; train {name}: {command}")
    if not CHECKPOINT.fullmatch(checkpoint) or checkpoint not in found:
        raise UserError(f"--checkpoint_path {checkpoint}: {folder} has none of that name; there are {', '.join(found)}")
    return folder / checkpoint


def _read(name: str, path: Path, tags: Mapping[str, str]) -> GuardAdapter:
    """The adapter of that directory with what its note says; `tags` hold where there is no note."""
    from model_training.models import base_of_adapter

    base_of_adapter(path)
    note = _note(path)
    trained_for = note.get("behavior")
    if trained_for is not None and trained_for != name:
        raise UserError(f"adapter {path}: it was trained for {trained_for}, not for {name}; give that of {name}")
    own = note.get("tags", dict(tags))
    if "threshold" not in note:
        spoken = ", ".join(own.values())
        print(f"adapter {path}: no threshold was calibrated for it; tag {spoken}, threshold 1/2", file=sys.stderr)
    tag = own.get(name)
    if name != JOINT and tag is None:
        raise UserError(f"adapter {path}: {NOTE} names no tag of {name}; train it anew, or remove {NOTE}")
    return GuardAdapter(name, path, tag, own, float(note.get("threshold", DEFAULT_THRESHOLD)), note)


def _note(path: Path) -> dict[str, Any]:
    """What training wrote beside the weights; empty where nothing did, or where it was another task's."""
    file = path / NOTE
    if not file.is_file():
        return {}
    try:
        note = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error}); train the adapter anew") from error
    if not isinstance(note, dict):
        raise UserError(f"{file}: damaged (it is no JSON object); train the adapter anew")
    tags, threshold = note.get("tags", {}), note.get("threshold", DEFAULT_THRESHOLD)
    if not isinstance(tags, dict) or not all(isinstance(tag, str) and tag for tag in tags.values()):
        raise UserError(f"{file}: damaged (its tags are no texts by guardrail); train the adapter anew")
    if not isinstance(threshold, (int, float)) or not 0 < threshold < 1:
        raise UserError(f"{file}: damaged (its threshold {threshold!r} is not between 0 and 1); train the adapter anew")
    return note
