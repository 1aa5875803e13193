"""Which adapter is found, what it says about itself, and every way in which it can be the wrong one."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model_training.guard_adapters import GuardAdapter, common_base, find_adapters, find_joint, parse_lora_paths
from tests.model_training.tiny_guards import TAGS, make_adapter, make_guard
from tests.model_training.tiny_models import make_model
from utils.errors import UserError

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, and the runs of two guardrails and of the joint adapter below `outputs`."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("adapters")
    base = make_model("llama", root / "base")
    for seed, name in enumerate(("politics", "meeting", "joint")):
        make_guard(base, root / "outputs", name, seed, threshold=0.25)
    checkpoints = root / "outputs/politics.vary_all/checkpoints"
    for step in (9, 10):
        make_adapter(base, checkpoints / f"checkpoint-{step}", seed=step)
    (checkpoints / ".partial-11").mkdir()
    make_adapter(base, root / "plain", seed=7)
    return root


def find(runs: Path, name: str = "politics", *, checkpoint: str | None = None, given: str = "") -> GuardAdapter:
    lora_paths = [given] if given else []
    (found,) = find_adapters(runs / "outputs", [name], "vary_all", TAGS, checkpoint, lora_paths)
    return found


def test_the_finished_adapter_and_its_note(runs: Path, capsys: Capture) -> None:
    found = find_adapters(runs / "outputs", ["meeting", "politics"], "vary_all", {"meeting": "<x>", "politics": "<y>"})
    assert [(guard.name, guard.tag, guard.threshold) for guard in found] == [
        ("meeting", "<guard:meeting>", 0.25),
        ("politics", "<guard:politics>", 0.25),
    ], "the tag it was trained with, not the one that its guardrail has now"
    assert found[1].path == runs / "outputs/politics.vary_all/adapter"
    assert capsys.readouterr().err == ""


def test_an_adapter_that_peft_alone_wrote(runs: Path, capsys: Capture) -> None:
    found = find(runs, given=f"politics={runs / 'plain'}")
    assert (found.tag, found.threshold, found.note) == ("<guard:politics>", 0.5, {})
    assert re.fullmatch(
        r"adapter \S+plain: no threshold was calibrated for it; tag <guard:politics>, threshold 1/2\n",
        capsys.readouterr().err,
    )
    assert find(runs, checkpoint="checkpoint-9").path.name == "checkpoint-9"


def test_the_joint_adapter(runs: Path) -> None:
    joint = find_joint(runs / "outputs", ["politics", "meeting"], "vary_all", TAGS)
    assert (joint.name, joint.tag, joint.tags) == ("joint", None, TAGS)
    given = find_joint("nowhere", ["politics"], "vary_all", TAGS, lora_paths=[f"joint={joint.path}"])
    assert given.path == joint.path
    with pytest.raises(UserError, match=r"trained on politics, expert_opinion, meeting, and not on spoilers"):
        find_joint(runs / "outputs", ["spoilers"], "vary_all", {"spoilers": "<guard:spoilers>"})


def test_a_missing_adapter_names_the_command_that_trains_it(runs: Path) -> None:
    with pytest.raises(UserError) as caught:
        find(runs, "expert_opinion")
    assert str(runs / "outputs/expert_opinion.vary_all/adapter") in str(caught.value)
    command = "--mode train --behavior expert_opinion --dataset_variation vary_all --output_dir"
    assert f"python main.py --task guardrail {command} {runs / 'outputs'}" in str(caught.value)
    with pytest.raises(UserError, match=r"--mode train --joint --dataset_variation fixed_character"):
        find_joint(runs / "outputs", ["politics"], "fixed_character", TAGS)


def test_a_missing_checkpoint_lists_those_there_are(runs: Path) -> None:
    for wrong in ("checkpoint-11", "checkpoint-1", ".partial-11", "all", "../adapter"):
        with pytest.raises(UserError, match=r"has none of that name; there are checkpoint-9, checkpoint-10"):
            find(runs, checkpoint=wrong)
    with pytest.raises(UserError, match=r"meeting.vary_all/checkpoints holds no checkpoint; train meeting: python"):
        find(runs, "meeting", checkpoint="checkpoint-9")


def test_faulty_lora_paths() -> None:
    assert parse_lora_paths(["politics=a=b", "joint=c"], ["politics"]) == {"politics": Path("a=b"), "joint": Path("c")}
    for entry in ("politics", "=path", "politics="):
        with pytest.raises(UserError, match="write BEHAVIOR=PATH"):
            parse_lora_paths([entry], ["politics"])
    with pytest.raises(UserError, match=r"meeting is none of --behavior \(politics\), nor joint"):
        parse_lora_paths(["meeting=a"], ["politics"])
    with pytest.raises(UserError, match="politics is given twice"):
        parse_lora_paths(["politics=a", "politics=b"], ["politics"])


def test_the_wrong_adapter(runs: Path, tmp_path: Path) -> None:
    meeting = runs / "outputs/meeting.vary_all/adapter"
    with pytest.raises(UserError, match="trained for meeting, not for politics"):
        find(runs, given=f"politics={meeting}")
    with pytest.raises(UserError, match="there is no such directory"):
        find(runs, given=f"politics={tmp_path / 'none'}")
    with pytest.raises(UserError, match=r"adapter_config.json"):
        find(runs, given=f"politics={tmp_path}")
    faults = [
        ("{", "damaged"),
        ("[]", "no JSON object"),
        ('{"tags": {}}', "names no tag of politics"),
        ('{"tags": {"politics": 1}}', "its tags are no texts"),
        ('{"threshold": 1.0}', "threshold 1.0 is not between 0 and 1"),
        ('{"threshold": "NaN"}', "threshold 'NaN' is not between"),
    ]
    for text, fault in faults:
        folder = tmp_path / "copy"
        shutil.copytree(runs / "plain", folder, dirs_exist_ok=True)
        (folder / "subtext.json").write_text(text)
        with pytest.raises(UserError, match=fault):
            find(runs, given=f"politics={folder}")


def test_one_base_for_all(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    politics, meeting = find(runs), find(runs, "meeting")
    plain = find(runs, given=f"politics={runs / 'plain'}")
    assert common_base([politics, meeting, plain]) == str(runs / "base")
    assert common_base([politics], "moved") == "moved"

    moved = tmp_path / "moved"
    shutil.copytree(meeting.path, moved)
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "hub/name"}))
    same = find(runs, "meeting", given=f"meeting={moved}")
    assert common_base([politics, same]) == str(runs / "base"), "the fingerprints decide"
    (moved / "subtext.json").unlink()
    other = find(runs, "meeting", given=f"meeting={moved}")
    with pytest.raises(UserError) as caught:
        common_base([politics, other])
    for text in ("different base models", str(politics.path), str(moved), str(runs / "base"), "hub/name"):
        assert text in str(caught.value)
    changed = replace(meeting, note=meeting.note | {"base_fingerprint": "0" * 64})
    for name in (None, "elsewhere"):
        with pytest.raises(UserError, match="whose weights are not the same"):
            common_base([plain, politics, changed], name)
    assert common_base([politics, other], "elsewhere") == "elsewhere", "names do not bind where the base has moved"


def test_a_checkpoint_and_a_path_exclude_each_other(runs: Path) -> None:
    with pytest.raises(UserError, match=r"--checkpoint_path checkpoint-9 .*--lora_paths.*one of the two"):
        find(runs, checkpoint="checkpoint-9", given=f"politics={runs / 'plain'}")
