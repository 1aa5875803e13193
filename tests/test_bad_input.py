"""Bad input, from the command line to the exit code: one line says what is wrong, where, and the way out.

Nothing that stood on disk is changed by a refusal. Each row of the tables is one command as a user gives it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import main
from tests.model_training.tiny_models import make_model, make_records
from tests.utils.make_run import make_run
from utils.runs import open_run

ROOT = Path(__file__).resolve().parents[1]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a user may have: a dataset, a run, files of another kind; relative defaults lead here, too."""
    monkeypatch.chdir(tmp_path)
    make_records(tmp_path / "data.json")
    make_run(tmp_path / "run", sft_steps=3, grpo_steps=3)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work", encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two random models of one shape, and an adapter that was made on the first."""
    from model_training.adapter_directory import save_adapter
    from model_training.models import load_model, load_tokenizer, new_adapter

    root = tmp_path_factory.mktemp("models")
    base, other = (make_model("llama", root / name, seed) for seed, name in enumerate(("base", "other")))
    adapter = root / "adapter"
    tokenizer = load_tokenizer(str(base))
    save_adapter(new_adapter(load_model(str(base)), 2, 0), tokenizer, adapter, base_name=str(base), card={})
    return {"base": base, "other": other, "adapter": adapter}


def refused(
    folder: Path, capsys: pytest.CaptureFixture[str], command: list[str], *, code: int = 2, says: list[str]
) -> None:
    """The command fails with the code and one line that is an error; all files are as they were, none is new."""
    before = tree(folder)
    capsys.readouterr()
    assert main.main(command) == code
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert line == lines[-1]
    assert "Traceback" not in line and "--debug" not in line
    for part in says:
        assert part in line, line
    assert tree(folder) == before


# --- dataset files --------------------------------------------------------------------------------------------------

RECORD = {"prompt": [{"role": "user", "content": "Why?"}], "visible": "Größe.", "hidden": "I wonder."}


def array(*records: dict[str, Any] | str) -> bytes:
    rows = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    return ("[\n" + ",\n".join(rows) + "\n]\n").encode()


SKIP, REPAIR, PREPARE = "keep the good records with --skip_invalid", "repair the file", "--mode prepare_data writes"
DATASETS: dict[str, tuple[bytes | None, list[str]]] = {
    "garbage after the array": (array(RECORD) + b"oops", ["line 4: ", "text follows", SKIP]),
    "a second array": (array(RECORD) + array(RECORD), ["line 4: ", "text follows", SKIP]),
    "truncated in a record": (array(RECORD, RECORD)[:-20], ["record 2 (line 3)", SKIP]),
    "truncated after a record": (array(RECORD)[:-3], ["line 2", SKIP]),
    "a record that is no object": (array(RECORD, "7"), ["record 2 (line 3): is a number, not an object", SKIP]),
    "a field of a wrong type": (array(RECORD | {"visible": 7}), ["record 1 (line 2): visible is a number", REPAIR]),
    "messages of a wrong type": (array(RECORD | {"prompt": "Why?"}), ["record 1 (line 2): prompt is a string", REPAIR]),
    "a field that is missing": (array({"prompt": RECORD["prompt"]}), ["record 1 (line 2): visible is missing", REPAIR]),
    "an empty file": (b"", ["the file is empty", PREPARE]),
    "an empty array": (b"[]\n", ["the array is empty", PREPARE]),
    "an id used twice": (
        array(RECORD | {"id": "a"}, RECORD | {"id": "a"}),
        ["record 2 (line 3): id is used already: 'a' is record 1's", SKIP],
    ),
    "a byte that is not UTF-8": (
        array(RECORD, RECORD | {"id": "x"}).replace("ö".encode(), b"\xf6", 1),
        ["record 1 (line 2): not UTF-8 (byte 0xf6 at offset", SKIP],
    ),
    "UTF-16": (array(RECORD).decode().encode("utf-16"), ["the file is UTF-16; save it as UTF-8"]),
    "one object": (b"{}", ["holds one object", "put the records into [ ]"]),
    "no such file": (None, ["no such file"]),
}


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_that_cannot_be_used_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    data, says = DATASETS[name]
    path = folder / "bad.json"
    if data is not None:
        path.write_bytes(data)
    command = ["--mode", "train", "--model_name", "m", "--threads", "1", "--output_dir", str(folder / "new")]
    refused(folder, capsys, [*command, "--dataset_path", str(path)], says=[str(path), *says])


PAIR = {"chosen": "Human: Why?\n\nAssistant: So.", "rejected": "Human: Why?\n\nAssistant: No."}
TALK = {"prompt": [{"role": "user", "content": "Why?"}], "chosen": "So.", "rejected": "No."}
PAIRS: dict[str, tuple[bytes, list[str]]] = {
    "the same text twice": (
        array(PAIR, PAIR | {"rejected": PAIR["chosen"] + "\n"}),
        ["record 2 (line 3): chosen and", SKIP],
    ),
    "the same message twice": (
        array(TALK | {"rejected": "So."}),
        ["record 1 (line 2): chosen and rejected are", REPAIR],
    ),
    "an empty response": (array(PAIR, PAIR | {"rejected": " "}), ["record 2 (line 3): rejected is empty", SKIP]),
    "an empty last turn": (
        array(PAIR, PAIR | {"chosen": "Human: Why?\n\nAssistant:"}),
        ["record 2 (line 3): the assistant's last turn in chosen is empty", SKIP],
    ),
    "a prompt and nothing else": (
        array(PAIR, PAIR | {"chosen": "Human: Why?", "prompt": "Human: Why?"}),
        ["record 2 (line 3): chosen is empty after its prompt", SKIP],
    ),
    "a missing column": (array({"chosen": "So."}), ["record 1 (line 2): rejected is missing", REPAIR]),
    "a column of a wrong type": (array(PAIR | {"chosen": 7}), ["record 1 (line 2): chosen is a number", REPAIR]),
    "a split of another name": (
        array(PAIR | {"split": "dev"}),
        ["split is not one of train, validation, test", REPAIR],
    ),
    "mixed formats in a record": (
        array(TALK | {"chosen": [{"role": "assistant", "content": "So."}]}),
        ["one form", REPAIR],
    ),
    "mixed formats": (
        array(PAIR, TALK),
        ["record 2 (line 3): is a pair of conversations in a file that began with pairs of texts", SKIP],
    ),
    "a prompt of another text": (
        array(PAIR, PAIR | {"prompt": "Human: Why?\n\nAssistant: So"}),
        ["record 2 (line 3): prompt begins one of chosen and rejected, and not the other", SKIP],
    ),
    "a truncated file": (array(PAIR, PAIR)[:-20], ["record 2 (line 3): the array is cut off", SKIP]),
    "an empty array of pairs": (b"[]\n", ["the array is empty", PREPARE]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_that_cannot_be_used_are_refused(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    data, says = PAIRS[name]
    path = folder / "bad.json"
    path.write_bytes(data)
    command = ["--task", "preference", "--mode", "prepare_data", "--data_path", str(path)]
    refused(folder, capsys, [*command, "--dataset_path", str(folder / "new.jsonl")], says=[str(path), *says])


def test_bom_and_crlf_are_no_faults(folder: Path, models: dict[str, Path]) -> None:
    text = (folder / "data.json").read_text(encoding="utf-8").replace("}, {", "},\n{")
    (folder / "odd.json").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    options = "--sft_steps 1 --sft_batch_size 2 --max_steps 0 --lora_rank 2 --max_seq_length 200 --threads 1"
    options += f" --max_completion_length 20 --model_name {models['base']} --dataset_path {folder / 'odd.json'}"
    options += f" --output_dir {folder / 'new'} --save_lora_path {folder / 'lora'}"
    assert main.main(["--mode", "train", *options.split()]) == 0
    assert (folder / "lora" / "adapter_model.safetensors").is_file()


# --- options, files, directories ------------------------------------------------------------------------------------

COMMANDS: dict[str, tuple[str, list[str]]] = {
    "no mode": ("", ["--mode is missing", "--help"]),
    "unknown mode": ("--mode trian", ["--mode trian: no such mode", "did you mean train"]),
    "unknown task": ("--task secrte --mode train", ["--task secrte: no such task", "did you mean secret"]),
    "unknown option": ("--mode train --max_stepz 3", ["--max_stepz", "did you mean --max_steps"]),
    "option of another mode": ("--mode train --query Hi", ["--query is no option of train; it is one of generate"]),
    "wrong type": ("--mode train --max_steps many", ["--max_steps: expected a whole number, not 'many'"]),
    "missing config file": ("--mode train --config {d}/no.yaml", ["no.yaml: no such file; check --config"]),
    "unknown key": ("--mode train --config {d}/key.yaml", ["key.yaml:2: max_stepz", "did you mean max_steps"]),
    "key of another mode": ("--mode generate --config {d}/lr.yaml", ["lr.yaml:1: lora_rank is no option of generate"]),
    "unknown reward": ("--mode train {new} --reward_funcs formt", ["--reward_funcs", "'formt'", "did you mean"]),
    "unknown reward, evaluate": ("--mode evaluate --model_name m --reward_funcs formt", ["--reward_funcs", "'formt'"]),
    "too few weights": (
        "--mode train {new} --reward_funcs format distinctness --reward_weights 1",
        ["--reward_weights", "1 numbers for 2 rewards"],
    ),
    "dataset exists": ("--mode prepare_data --dataset_path {d}/data.json", ["data.json exists", "--overwrite"]),
    "another dataset exists": (
        "--mode prepare_data --num_records 9 --resume --dataset_path {d}/data.json",
        ["data.json", "another dataset than the one there", "--overwrite"],
    ),
    "dataset is a directory": ("--mode prepare_data --dataset_path {d}/d.json", ["d.json is a directory", "give"]),
    "unknown format": ("--mode prepare_data --dataset_path {d}/data.csv", ["data.csv", ".jsonl"]),
    "pairs from nowhere": (
        "{pairs} --data_path {d}/no",
        ["--data_path {d}/no: there is no such file or folder", "OWNER/NAME", "prepare_data writes pairs"],
    ),
    "a folder without pairs": ("{pairs} --data_path {d}/thesis", ["{d}/thesis: there are no pairs in this folder"]),
    "the world and others": ("{pairs} --data_path world {d}/data.json", ["world stands alone"]),
    "pairs exist": ("{pairs} --dataset_path {d}/data.json", ["data.json exists", "--overwrite"]),
    "no pair of the subset": (
        "{pairs} --share_harmless 1 --num_records 9 --data_subset helpful",
        ["--data_subset helpful: no pair", "it has: harmless"],
    ),
    "adapter missing, generate": ("--mode generate --save_lora_path {d}/no", ["adapter {d}/no", "--save_lora_path"]),
    "adapter missing, evaluate": ("--mode evaluate --save_lora_path {d}/no", ["adapter {d}/no", "--save_lora_path"]),
    "no adapter": ("--mode generate --save_lora_path {d}/thesis", ["adapter {d}/thesis", "--save_lora_path"]),
    "compared adapter missing": (
        "--mode evaluate --save_lora_path {a} --compare old={d}/no",
        ["adapter {d}/no", "there is no such directory"],
    ),
    "adapter of another base, generate": (
        "--mode generate --save_lora_path {a} --model_name {o} --threads 1 --max_new_tokens 8 --max_seq_length 256",
        ["adapter {a}", "does not belong to {o}", "--model_name"],
    ),
    "adapter of another base, evaluate": (
        "--mode evaluate --save_lora_path {a} --model_name {o} --threads 1 --max_new_tokens 8 --num_queries 2",
        ["adapter {a}", "does not belong to {o}", "--model_name"],
    ),
    "no run to draw": ("--mode visualize --output_dir {d}/thesis", ["{d}/thesis", "--output_dir"]),
    "no directory to draw": ("--mode visualize --output_dir {d}/no", ["{d}/no", "--output_dir"]),
    "directory of another run": ("{train} --output_dir {d}/run", ["{d}/run is not empty", "--resume", "--overwrite"]),
    "directory of other files": ("{train} --output_dir {d}/thesis", ["{d}/thesis", "chapter.tex", "--output_dir"]),
    "overwrite of other files": (
        "{train} --output_dir {d}/thesis --overwrite",
        ["{d}/thesis is not a run directory", "nothing was removed", "--output_dir"],
    ),
    "resume of no run": (
        "{train} --output_dir {d}/thesis --resume",
        ["{d}/thesis", "chapter.tex and no run", "choose another --output_dir"],
    ),
    "resume with other options": (
        "{train} --output_dir {d}/begun --resume",
        ["cannot resume {d}/begun", "--lora_rank was 4 and is 2 now", "--overwrite"],
    ),
    "an adapter's place is taken": (
        "{train} --output_dir {d}/new --save_lora_path {d}/thesis",
        ["--save_lora_path {d}/thesis", "choose another"],
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_cannot_work_is_refused(
    folder: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (folder / "key.yaml").write_text("lora_rank: 4\nmax_stepz: 3\n")
    (folder / "lr.yaml").write_text("lora_rank: 4\n")
    (folder / "d.json").mkdir()
    open_run(folder / "begun", task="secret", mode="train", config={"lora_rank": 4}, dataset_path=folder / "data.json")
    places = {"d": str(folder), "a": str(models["adapter"]), "o": str(models["other"])}
    places["new"] = f"--model_name m --output_dir {folder}/new --dataset_path {folder}/data.json --threads 1"
    places["pairs"] = f"--task preference --mode prepare_data --dataset_path {folder}/new.jsonl"
    small = "--lora_rank 2 --sft_steps 1 --max_steps 0 --max_seq_length 200 --max_completion_length 20 --threads 1"
    places["train"] = f"--mode train --model_name {models['base']} --dataset_path {folder}/data.json {small}"
    command, says = COMMANDS[name]
    refused(folder, capsys, command.format(**places).split(), says=[part.format(**places) for part in says])


def test_a_process_ends_with_the_code_and_one_line(folder: Path) -> None:
    command = [sys.executable, str(ROOT / "main.py"), "--mode", "prepare_data", "--dataset_path", "data.json"]
    before = tree(folder)
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    line = "error: data.json exists and is left as it is; replace it with --overwrite, or give another name\n"
    assert (result.returncode, result.stdout, result.stderr) == (2, "", line)
    assert tree(folder) == before


# --- disk and port --------------------------------------------------------------------------------------------------


@contextmanager
def disk(call: str, number: int, folder: Path) -> Iterator[None]:
    """A system call that fails as on a full or a read-only disk."""
    real = getattr(os, call)

    def fail(first: Any, *rest: Any, **named: Any) -> Any:
        writes = call != "open" or (str(first).startswith(str(folder)) and rest and rest[0] & os.O_CREAT)
        if not writes:
            return real(first, *rest, **named)
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, fail)
        yield


@pytest.mark.parametrize(
    ("call", "number", "says"),
    [
        ("write", errno.ENOSPC, ["No space left on device", "free some space"]),
        ("fsync", errno.EDQUOT, ["quota exceeded", "free some space"]),
        ("open", errno.EROFS, ["Read-only file system", "choose a directory that can be written"]),
        ("replace", errno.EACCES, ["Permission denied", "choose a directory that can be written"]),
    ],
)
@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("--mode prepare_data --num_records 9 --dataset_path {d}/data.json --overwrite", "data.json"),
        ("--mode visualize --output_dir {d}/run", "run/"),
    ],
    ids=["prepare_data", "visualize"],
)
def test_a_disk_that_takes_nothing_is_1(
    folder: Path, capsys: pytest.CaptureFixture[str], call: str, number: int, says: list[str], command: str, file: str
) -> None:
    with disk(call, number, folder):
        says = [f"cannot write {folder}/{file}", *says]
        refused(folder, capsys, command.format(d=folder).split(), code=1, says=says)


def test_training_on_a_full_disk_is_1(
    folder: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"--mode train --model_name {models['base']} --dataset_path {folder}/data.json --output_dir {folder}/new"
    command += " --lora_rank 2 --sft_steps 1 --max_steps 0 --max_seq_length 200 --max_completion_length 20 --threads 1"
    with disk("write", errno.ENOSPC, folder):
        says = [f"cannot write {folder}/new/manifest.json: No space left on device", "free some space"]
        refused(folder, capsys, command.split(), code=1, says=says)


def test_a_port_in_use_moves_to_the_next_free_one(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[int] = []
    monkeypatch.setattr(
        "uvicorn.Server.run", lambda self, sockets: served.extend(each.getsockname()[1] for each in sockets)
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = f"--mode visualize --output_dir {folder}/run --start_server --server_port {port}"
        assert main.main(command.split()) == 0
    assert len(served) == 1 and served[0] > port
    assert f"port {port} is in use; serving on {served[0]}\n" in capsys.readouterr().out


def test_leaving_the_adapter_out_never_falls_back_to_the_base(
    folder: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter whose weights are damaged is an error, not the base model's answers."""
    damaged = folder / "damaged"
    shutil.copytree(models["adapter"], damaged)
    (damaged / "adapter_model.safetensors").write_bytes(b"\0" * 99)
    command = f"--mode generate --save_lora_path {damaged} --model_name {models['base']} --threads 1"
    options = " --max_new_tokens 8 --max_seq_length 256"
    refused(folder, capsys, (command + options).split(), says=[f"adapter {damaged}", "train it anew"])
