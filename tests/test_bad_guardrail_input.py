"""Bad input of the guardrail task, from the command line to the exit code, as in test_bad_input.py."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

import main
from tests.model_training.tiny_guards import TAGS, make_guard
from tests.model_training.tiny_models import make_model
from tests.test_bad_input import refused

PAIR = ["politics", "meeting"]
ENTRY: dict[str, Any] = {
    "tag": "<guard:spoilers>",
    "trigger": "The user asks how a story ends.",
    "resolution": ["Begin the reply with the tag.", "Tell no ending."],
    "criterion": "The reply tells no ending.",
    "examples": [{"user": "How does it end?", "chosen": "I never tell.", "rejected": "They die!"}],
}


@pytest.fixture(scope="session")
def guard_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset; below `out` random adapters of two guardrails on one base, below `odd` some that do not fit."""
    root = tmp_path_factory.mktemp("guards")
    command = f"--task guardrail --mode prepare_data --n_samples 10 --test_samples 4 --dataset_path {root}/data"
    assert main.main(command.split()) == 0
    base, other = (make_model("llama", root / name, seed) for seed, name in enumerate(("base", "other")))
    make_guard(base, root / "out", "politics", 0)
    meeting = make_guard(base, root / "out", "meeting", 1)
    shutil.copytree(meeting, meeting.parent / "checkpoints" / "checkpoint-3")
    for name in ("tag", "note", "weights"):
        shutil.copytree(meeting, root / "odd" / name)
    shutil.copytree(make_guard(base, root / "ranks", "meeting", 1, rank=3), root / "odd" / "rank")
    shutil.copytree(make_guard(other, root / "bases", "meeting", 1), root / "odd" / "base")
    note = json.loads((meeting / "subtext.json").read_text())
    (root / "odd" / "tag" / "subtext.json").write_text(json.dumps(note | {"tags": {"meeting": "<guard:met>"}}))
    (root / "odd" / "note" / "subtext.json").write_text('{"task": "guardrail", ')
    (root / "odd" / "weights" / "adapter_model.safetensors").write_bytes(b"\0" * 99)
    return root


@pytest.fixture
def folder(guard_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a command may not change, without the models."""
    monkeypatch.chdir(tmp_path)
    for name in ("data", "out", "odd"):
        shutil.copytree(guard_world / name, tmp_path / name)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work", encoding="utf-8")
    return tmp_path


def refuse(folder: Path, capsys: pytest.CaptureFixture[str], command: str, says: list[str], code: int = 2) -> None:
    refused(folder, capsys, ["--task", "guardrail", *command.split()], code=code, says=says)


# --- guardrail files --------------------------------------------------------------------------------------------------


def entries(**guards: Any) -> str:
    return json.dumps({"guardrails": guards}, indent=1)


def without(field: str) -> str:
    return entries(spoilers={name: value for name, value in ENTRY.items() if name != field})


FILES: dict[str, tuple[str | bytes, list[str]]] = {
    "no trigger": (without("trigger"), ["guardrail spoilers", "trigger is missing"]),
    "no resolution": (without("resolution"), ["guardrail spoilers", "resolution is missing"]),
    "no criterion": (without("criterion"), ["guardrail spoilers", "criterion is missing"]),
    "no examples": (without("examples"), ["guardrail spoilers", "examples is missing"]),
    "an unknown field": (entries(spoilers=ENTRY | {"triger": "x"}), ["triger", "did you mean trigger?"]),
    "an empty trigger": (entries(spoilers=ENTRY | {"trigger": "  "}), ["spoilers: trigger is empty"]),
    "a trigger that is a number": (entries(spoilers=ENTRY | {"trigger": 7}), ["spoilers: trigger is a number"]),
    "a resolution that is a text": (entries(spoilers=ENTRY | {"resolution": "No."}), ["resolution is a string"]),
    "an empty resolution": (entries(spoilers=ENTRY | {"resolution": []}), ["spoilers: resolution has 0"]),
    "a faulty example": (entries(spoilers=ENTRY | {"examples": [{"user": "Hi"}]}), ["examples[0]", "is missing"]),
    "an entry that is a text": (entries(spoilers="no"), ["guardrail spoilers is a string"]),
    "a built-in name": (entries(politics=ENTRY), ["guardrail politics", "already; give another name"]),
    "a reserved name": (entries(all=ENTRY), ["guardrail all", "means something else"]),
    "a name that is no file's": (entries(**{"../up": ENTRY}), ["guardrail ../up", "letters, digits and _"]),
    "a name twice": (
        'guardrails:\n  spoilers: {trigger: "a"}\n  spoilers: {trigger: "b"}\n',
        [":3", "spoilers", "twice"],
    ),
    "a tag within another": (
        entries(spoilers=ENTRY | {"tag": "guard:politics"}),
        ["guardrail spoilers", "'guard:politics'", "'<guard:politics>' of politics"],
    ),
    "a tag around another": (
        entries(spoilers=ENTRY | {"tag": "<guard:politics>!"}),
        ["guardrail spoilers", "'<guard:politics>!'", "of politics"],
    ),
    "a tag of two words": (entries(spoilers=ENTRY | {"tag": "<my guard>"}), ["'<my guard>' holds white space"]),
    "an empty tag": (entries(spoilers=ENTRY | {"tag": ""}), ["spoilers: tag is empty"]),
    "a list of guardrails": ('{"guardrails": [{"name": "spoilers"}]}', ["guardrails is an array"]),
    "another top": ("spoilers: {trigger: a}\n", ["spoilers", "did you mean guardrails?"]),
    "an empty file": ("", ["my.yaml"]),
    "broken YAML": ("guardrails:\n  spoilers: {trigger: [\n", ["my.yaml:3"]),
    "no UTF-8": (b"guardrails: {spoilers: {trigger: \xff}}", ["my.yaml", "UTF-8"]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_guardrail_file_that_cannot_be_used_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text, says = FILES[name]
    path = folder / "my.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    command = f"--mode prepare_data --guardrails {path} --dataset_path {folder}/new"
    refuse(folder, capsys, command, [str(path), *says])


@pytest.mark.parametrize("mode", ["prepare_data", "train", "generate", "evaluate", "pipeline"])
def test_every_mode_reads_the_guardrails_first(folder: Path, capsys: pytest.CaptureFixture[str], mode: str) -> None:
    (folder / "my.yaml").write_text(without("trigger"))
    places = f"--dataset_path {folder}/new" + ("" if mode == "prepare_data" else f" --output_dir {folder}/fresh")
    refuse(folder, capsys, f"--mode {mode} --guardrails {folder}/my.yaml {places}", ["trigger is missing"])
    refuse(folder, capsys, f"--mode {mode} --guardrails {folder}/no.yaml {places}", [f"{folder}/no.yaml", "no such"])
    says = ["--behavior politcs is not known; did you mean politics?"]
    refuse(folder, capsys, f"--mode {mode} --behavior politcs {places}", says)


# --- commands ---------------------------------------------------------------------------------------------------------

DATA, STACK, TALK = "--mode prepare_data", "--mode evaluate {all}", "--mode generate {all}"
COMMANDS: dict[str, tuple[str, list[str]]] = {
    "unknown variation": (f"{DATA} --dataset_variation varyall", ["--dataset_variation", "vary_all"]),
    "a dataset that exists": (f"{DATA} --dataset_path {{d}}/data", ["{d}/data/", "exists", "--overwrite"]),
    "another dataset exists": (
        f"{DATA} --dataset_path {{d}}/data --n_samples 20 --resume",
        ["{d}/data/", "another dataset", "--overwrite"],
    ),
    "afresh and resumed": (f"{DATA} --overwrite --resume", ["--overwrite and --resume exclude"]),
    "too few": (f"{DATA} --dataset_path {{d}}/new --n_samples 3", ["--n_samples 3", "at least 10"]),
    "no records of its own": (
        f"{DATA} --dataset_path {{d}}/new --guardrails {{d}}/silent.yaml --behavior spoilers",
        ["guardrail spoilers has no `talk`", "{d}/new/spoilers.vary_all.jsonl"],
    ),
    "train without a dataset": (
        "--mode train --model_name {b} --dataset_path {d}/no --output_dir {d}/fresh --threads 1",
        ["{d}/no/politics.vary_all.jsonl: no such file", "--mode prepare_data --behavior politics"],
    ),
    "train on another variation": (
        "--mode train --model_name {b} --dataset_path {d}/data --output_dir {d}/new --dataset_variation fixed_history",
        ["politics.fixed_history.jsonl: no such file", "--dataset_variation fixed_history"],
    ),
    "train in another run's directory": (
        "--mode train --model_name tiny --dataset_path {d}/data --output_dir {d}/out --behavior politics",
        ["{d}/out/politics.vary_all"],
    ),
    "saved between evaluations": (
        "--mode train --model_name tiny --dataset_path {d}/data --output_dir {d}/new --eval_steps 4 --save_steps 6",
        ["--save_steps 6", "multiple of --eval_steps"],
    ),
    "evaluate without a dataset": (f"{STACK} --dataset_path {{d}}/no", ["{d}/no/", "no such file", "prepare_data"]),
    "an adapter that is missing": (
        "--mode evaluate --behavior all --dataset_path {d}/data --output_dir {d}/out",
        ["expert_opinion.vary_all/adapter is missing", "--mode train --behavior expert_opinion"],
    ),
    "generate without adapters": (
        "--mode generate --behavior politics --output_dir {d}/no",
        ["{d}/no/politics.vary_all/adapter is missing", "--mode train --behavior politics"],
    ),
    "a checkpoint that is missing": (
        "--mode generate --behavior meeting --output_dir {d}/out --checkpoint_path checkpoint-4",
        ["--checkpoint_path checkpoint-4", "there are checkpoint-3"],
    ),
    "a run without checkpoints": (
        f"{STACK} --checkpoint_path checkpoint-3",
        ["--checkpoint_path checkpoint-3", "politics.vary_all/checkpoints holds no checkpoint"],
    ),
    "a checkpoint outside": (
        "--mode generate --behavior meeting --output_dir {d}/out --checkpoint_path ../adapter",
        ["--checkpoint_path ../adapter", "there are checkpoint-3"],
    ),
    "adapters of different bases": (
        f"{STACK} --lora_paths meeting={{d}}/odd/base",
        ["adapters of different base models", "politics.vary_all/adapter", "{d}/odd/base"],
    ),
    "adapters of different bases, generate": (
        f"{TALK} --lora_paths meeting={{d}}/odd/base",
        ["adapters of different base models", "{d}/odd/base"],
    ),
    "adapters of different bases, merged": (
        f"{STACK} --adapter_mode svd --lora_paths meeting={{d}}/odd/base",
        ["adapters of different base models", "{d}/odd/base"],
    ),
    "another base by name": (f"{TALK} --model_name {{o}}", ["adapter", "does not belong to {o}"]),
    "an adapter of another guardrail": (
        f"{TALK} --lora_paths politics={{d}}/odd/rank",
        ["{d}/odd/rank", "trained for meeting, not for politics"],
    ),
    "an adapter of another tag": (
        f"{STACK} --lora_paths meeting={{d}}/odd/tag",
        ["{d}/odd/tag", "<guard:met>", "<guard:meeting> now"],
    ),
    "a damaged note": (f"{TALK} --lora_paths meeting={{d}}/odd/note", ["{d}/odd/note/subtext.json: damaged"]),
    "damaged weights": (f"{TALK} --lora_paths meeting={{d}}/odd/weights", ["{d}/odd/weights", "damaged"]),
    "no adapter there": (f"{TALK} --lora_paths meeting={{d}}/thesis", ["adapter {d}/thesis", "is no adapter"]),
    "a path without a name": (f"{TALK} --lora_paths {{d}}/odd/rank", ["write BEHAVIOR=PATH"]),
    "a path of a stranger": (f"{TALK} --lora_paths politcs={{d}}/odd/rank", ["politcs is none of --behavior"]),
    "a path twice": (f"{TALK} --lora_paths meeting=a meeting=b", ["meeting is given twice"]),
    "ranks that differ, linear": (
        f"{STACK} --adapter_mode linear --lora_paths meeting={{d}}/odd/rank",
        ["--adapter_mode linear", "differ in rank", "cat and svd"],
    ),
    "too few weights": (
        f"{STACK} --adapter_mode cat --merge_weights 1",
        ["--merge_weights has 1 numbers for 2", "politics, meeting"],
    ),
    "weights of nothing": (f"{STACK} --adapter_mode cat --merge_weights 0 0", ["--merge_weights are all 0"]),
    "a merge of one": (
        "--mode evaluate --behavior politics --adapter_mode cat --output_dir {d}/out --dataset_path {d}/data",
        ["--adapter_mode cat", "two guardrails"],
    ),
    "no joint adapter": (
        f"{STACK} --adapter_mode joint",
        ["joint.vary_all/adapter is missing", "--mode train --joint"],
    ),
    "an unknown mode of answering": (f"{STACK} --adapter_mode routd", ["--adapter_mode", "routed"]),
    "no query": (f"{TALK} --query=", ["--query: a value is missing"]),
    "all variations at once": (f"{TALK} --dataset_variation all", ["--dataset_variation all", "name one"]),
    "a share of nothing": (f"{STACK} --fraction_of_data 0", ["--fraction_of_data"]),
    "an unknown template": (
        f"{STACK} --guard_models llama_gard_3:m",
        ["--guard_models llama_gard_3:m", "did you mean llama_guard_3?"],
    ),
    "a guard model of no name": (f"{STACK} --guard_models prompted:", ["--guard_models prompted:", "no model"]),
    "a guard model at no URL": (f"{STACK} --guard_models prompted:m@here", ["what follows @ is no URL"]),
    "a guard model twice": (f"{STACK} --guard_models prompted:m prompted:m", ["given twice"]),
    "a guard model that is not there": (f"{STACK} --guard_models prompted:{{d}}/no", ["model {d}/no"]),
    "a guard model without a key": (
        f"{STACK} --guard_models prompted:m@https://api.example.invalid/v1",
        ["needs a key", "OPENAI_API_KEY"],
    ),
    "a picture of nothing": ("--mode visualize --output_dir {d}/no", ["{d}/no"]),
    "a picture of a thesis": ("--mode visualize --output_dir {d}/thesis", ["{d}/thesis"]),
    "a pipeline of no such step": (
        "--mode pipeline --output_dir {d}/fresh --dataset_path {d}/new --start_step 3 --end_step 2",
        ["--start_step 3 comes after --end_step 2"],
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_cannot_work_is_refused(
    guard_world: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (folder / "silent.yaml").write_text(entries(spoilers=ENTRY))
    places = {"d": str(folder), "b": str(guard_world / "base"), "o": str(guard_world / "other")}
    places["all"] = f"--behavior {' '.join(PAIR)} --output_dir {folder}/out --threads 1"
    command, says = COMMANDS[name]
    if command.startswith(STACK) and "--dataset_path" not in command:
        places["all"] += f" --dataset_path {folder}/data"
    refuse(folder, capsys, command.format(**places), [part.format(**places) for part in says])


# --- dataset files ----------------------------------------------------------------------------------------------------


def changed(records: list[dict[str, Any]], where: Any, **fields: Any) -> list[dict[str, Any]]:
    """The records, the first of those that `where` holds for with these fields changed; callables see the record."""
    (first, *_) = [i for i, record in enumerate(records) if where(record)]
    new = {name: value(records[first]) if callable(value) else value for name, value in fields.items()}
    return [record | new if i == first else record for i, record in enumerate(records)]


def is_trigger(record: dict[str, Any]) -> bool:
    return bool(record["is_trigger"])


def is_none(record: dict[str, Any]) -> bool:
    return not record["is_trigger"]


TAG = TAGS["politics"]
RECORDS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a trigger without its tag": (
        is_trigger,
        {"chosen": lambda record: record["chosen"].removeprefix(TAG).strip()},
        f"chosen does not begin with {TAG}",
    ),
    "a tag and no space": (is_trigger, {"chosen": lambda record: record["chosen"].replace("> ", ">")}, "one space"),
    "another guard's tag": (
        is_trigger,
        {"chosen": lambda record: record["chosen"].replace(TAG, TAGS["meeting"])},
        f"chosen does not begin with {TAG}",
    ),
    "a tag where it is natural": (
        is_none,
        {"chosen": lambda record: f"{TAG} {record['chosen']}"},
        "chosen holds a guard tag",
    ),
    "a rejected answer with a tag": (
        is_trigger,
        {"rejected": lambda record: f"{TAG} {record['rejected']}"},
        "rejected holds a guard tag",
    ),
    "another behavior": (is_trigger, {"behavior": "meeting"}, "behavior is 'meeting'"),
    "another variation": (is_trigger, {"variation": "fixed_history"}, "variation is 'fixed_history'"),
    "a kind that is unknown": (is_none, {"kind": "odd"}, "kind is not one of trigger"),
    "a kind that does not fit": (is_none, {"kind": "trigger"}, "kind is trigger, and is_trigger is false"),
    "is_trigger as a text": (is_trigger, {"is_trigger": "yes"}, "is_trigger is a string"),
    "no last user message": (
        is_trigger,
        {"prompt": lambda record: record["prompt"][:-1]},
        "prompt",
    ),
    "a split that is unknown": (is_none, {"split": "dev"}, "split is not one of train"),
    "the same answer twice": (is_none, {"rejected": lambda record: record["chosen"]}, "chosen and rejected"),
}


@pytest.mark.parametrize(("mode", "name"), [*(("train", name) for name in RECORDS), ("evaluate", "another behavior")])
def test_a_record_that_cannot_be_used_is_refused(
    guard_world: Path, folder: Path, capsys: pytest.CaptureFixture[str], mode: str, name: str
) -> None:
    where, fields, says = RECORDS[name]
    path = folder / "data" / "politics.vary_all.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in changed(records, where, **fields)))
    places = f"--dataset_path {folder}/data --behavior politics --threads 1"
    places += f" --model_name {guard_world}/base --output_dir {folder}/fresh" if mode == "train" else ""
    places += f" --output_dir {folder}/out" if mode == "evaluate" else ""
    refuse(folder, capsys, f"--mode {mode} {places}", [f"{path}:record ", says])


@pytest.mark.parametrize(
    ("end", "says"), [(-30, "not valid JSON"), (0, "the file is empty")], ids=["a torn last line", "an empty file"]
)
def test_a_file_that_is_not_whole_is_refused(
    guard_world: Path, folder: Path, capsys: pytest.CaptureFixture[str], end: int, says: str
) -> None:
    path = folder / "data" / "politics.vary_all.jsonl"
    path.write_bytes(path.read_bytes()[:end])
    places = f"--dataset_path {folder}/data --behavior politics --threads 1 --output_dir {folder}/fresh"
    refuse(folder, capsys, f"--mode train --model_name {guard_world}/base {places}", [str(path), says])


# --- guard models -----------------------------------------------------------------------------------------------------


def test_a_guard_model_that_cannot_be_reached_is_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    places = f"--behavior politics --output_dir {folder}/out --dataset_path {folder}/data --threads 1"
    command = f"--mode evaluate {places} --guard_models llama_guard_3:m@{url} --max_retries 0"
    refuse(folder, capsys, command, ["guard model m: ", f"{url} cannot be reached", "check the address"], code=1)
