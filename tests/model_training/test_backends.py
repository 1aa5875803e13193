"""What is chosen on which machine, what is said of it, and what is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model_training import backends, secret
from model_training.backends import Machine, Obstacle, pins, settle
from model_training.config import EvaluateConfig, TrainConfig
from model_training.guardrail_config import TrainGuardrailConfig
from model_training.preference_config import TrainPreferenceConfig
from model_training.unsloth_backend import OF_PAIRS, obstacle
from model_training.vllm_arguments import check_server, with_server
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
NOTHING = dict.fromkeys(pins())
LAPTOP = Machine(cuda=False, versions=NOTHING)
BARE_GPU = Machine(cuda=True, versions=NOTHING)
FULL_GPU = Machine(cuda=True, versions=pins())


@pytest.fixture(autouse=True)
def imported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the packages that were imported, in place of the imports; those in `broken` fail."""
    names: list[str] = []

    def import_module(name: str) -> None:
        names.append(name)
        if name in broken:
            raise OSError("libcudart.so.13: cannot open\nshared object file")

    monkeypatch.setattr(backends.importlib, "import_module", import_module)
    for variable in ("UNSLOTH_COMPILE_LOCATION", "UNSLOTH_DISABLE_STATISTICS", "VLLM_NO_USAGE_STATS"):
        monkeypatch.delenv(variable, raising=False)
    broken.clear()
    return names


broken: set[str] = set()


def chosen(config: Any, machine: Machine, **against: Any) -> tuple[str, ...]:
    settled = settle(config, machine=machine, **against)
    return settled.backend, settled.engine, settled.dtype


def refusal(config: Any, machine: Machine, **against: Any) -> str:
    with pytest.raises(UserError) as error:
        settle(config, machine=machine, **against)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- auto -----------------------------------------------------------------------------------------------------------


def test_on_a_laptop_nothing_is_imported_and_one_line_says_why(
    imported: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert chosen(TrainConfig(), LAPTOP) == ("transformers", "transformers", "float32")
    assert capsys.readouterr().err == "backend: transformers, engine: transformers (no CUDA device)\n"
    assert imported == []


def test_each_choice_has_its_reason(imported: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert chosen(TrainConfig(), BARE_GPU) == ("transformers", "transformers", "bfloat16")
    assert capsys.readouterr().err == (
        "backend: transformers (unsloth is not installed); engine: transformers (vllm is not installed)\n"
    )
    assert chosen(TrainConfig(), FULL_GPU, not_unsloth=Obstacle("it is Monday", "")) == (
        "transformers",
        "vllm",
        "bfloat16",
    )
    assert capsys.readouterr().err == (
        f"backend: transformers (it is Monday); engine: vllm (vllm {pins()['vllm']} is installed)\n"
    )
    assert imported == ["vllm"]


def test_unsloth_comes_before_vllm_and_writes_nowhere_that_is_anyones(imported: list[str]) -> None:
    assert chosen(TrainConfig(), FULL_GPU)[:2] == ("unsloth", "vllm")
    assert imported == ["unsloth", "vllm"], "vLLM brings transformers along, which unsloth must precede"
    folder = Path(os.environ["UNSLOTH_COMPILE_LOCATION"])
    assert folder.is_dir() and folder.stat().st_mode & 0o077 == 0, "what is written there is run"
    assert os.environ["UNSLOTH_DISABLE_STATISTICS"] == os.environ["VLLM_NO_USAGE_STATS"] == "1"


def test_what_is_asked_for_is_said_nothing_of(capsys: pytest.CaptureFixture[str]) -> None:
    settle(TrainConfig(backend="transformers", engine="transformers", dtype="float32"), machine=FULL_GPU)
    settle(EvaluateConfig(engine="transformers"), machine=FULL_GPU)
    assert capsys.readouterr().err == ""


def test_a_broken_vllm_is_passed_over_by_auto_alone(capsys: pytest.CaptureFixture[str]) -> None:
    broken.add("vllm")
    reason = f"vllm {pins()['vllm']} cannot be imported: OSError: libcudart.so.13: cannot open"
    assert settle(EvaluateConfig(), machine=FULL_GPU).engine == "transformers"
    assert capsys.readouterr().err == f"engine: transformers ({reason})\n"
    assert refusal(EvaluateConfig(engine="vllm"), FULL_GPU) == f"--engine vllm: {reason}; {backends.INSTALL}"


def test_a_broken_unsloth_ends_the_command() -> None:
    """It has rewritten half of transformers by then."""
    broken.add("unsloth")
    assert "unsloth None cannot be imported: OSError" in refusal(TrainConfig(), FULL_GPU)
    assert "--backend transformers does without it" in refusal(TrainConfig(), FULL_GPU)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "machine", "line"),
    [
        ({"backend": "unsloth"}, LAPTOP, "--backend unsloth: no CUDA device; leave it out, or run this where"),
        ({"engine": "vllm"}, LAPTOP, "--engine vllm: no CUDA device"),
        ({"backend": "unsloth"}, BARE_GPU, "--backend unsloth: unsloth is not installed; pip install -r requirements-"),
        ({"engine": "vllm"}, BARE_GPU, "--engine vllm: vllm is not installed; pip install -r requirements-gpu.txt"),
        (
            {"engine": "vllm"},
            Machine(True, pins() | {"vllm": "0.2.5"}),
            f"--engine vllm: vllm is 0.2.5 here, and {pins()['vllm']} is what works with the rest; pip install -r",
        ),
        (
            {"backend": "unsloth"},
            Machine(True, pins() | {"unsloth_zoo": "2027.1.1"}),
            "--backend unsloth: unsloth_zoo is 2027.1.1 here",
        ),
        (
            {"backend": "unsloth"},
            Machine(True, pins(), imported=("transformers", "peft")),
            "--backend unsloth: transformers and peft came before unsloth in this process; start the training by a",
        ),
        (
            {"backend": "unsloth"},
            Machine(True, pins(), processes=2),
            "--backend unsloth: unsloth trains in one",
        ),
        (
            {"engine": "vllm", "quantization": "4bit"},
            FULL_GPU,
            "--engine vllm: vLLM serves bases that are not quantized; leave --quantization out, or use --engine tr",
        ),
        ({"dtype": "float16"}, FULL_GPU, "--dtype float16 trains nothing"),
        ({"quantization": "8bit"}, LAPTOP, "--quantization 8bit needs a CUDA GPU, and there is none"),
        (
            {"quantization": "4bit"},
            BARE_GPU,
            "--quantization 4bit needs bitsandbytes, which is missing; pip",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_one_line(options: dict[str, Any], machine: Machine, line: str) -> None:
    assert line in refusal(TrainConfig(**options), machine)


def test_a_build_for_another_cuda_is_the_same_version() -> None:
    machine = Machine(True, pins() | {"vllm": pins()["vllm"] + "+cu130"})
    assert settle(EvaluateConfig(engine="vllm"), machine=machine).engine == "vllm"


@pytest.mark.parametrize("config", [TrainPreferenceConfig, TrainGuardrailConfig])
def test_unsloth_is_not_for_pairs(config: Any) -> None:
    assert settle(config(), machine=FULL_GPU, not_unsloth=OF_PAIRS).backend == "transformers"
    line = refusal(config(backend="unsloth"), FULL_GPU, not_unsloth=OF_PAIRS)
    assert line.startswith("--backend unsloth: unsloth's forward does not know rows of two texts")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "--credit segment goes by"),
        ({"credit": "completion"}, None),
        ({"max_steps": 0, "sft_steps": 1}, None),
        ({"credit": "completion", "per_device_train_batch_size": 4}, "whole groups"),
        ({"credit": "completion", "vllm_mode": "server"}, "vLLM server"),
    ],
    ids=str,
)
def test_unsloth_is_for_what_its_loss_computes_as_ours_does(options: dict[str, Any], reason: str | None) -> None:
    found = obstacle(TrainConfig(**options))
    assert (found is None) == (reason is None)
    assert reason is None or (found is not None and reason in found.reason)


# --- the server -----------------------------------------------------------------------------------------------------


def test_a_server_is_an_engine_that_was_asked_for() -> None:
    server = {"vllm_mode": "server", "vllm_server_base_url": "http://gpu2:8000"}
    assert with_server(TrainConfig(**server)).engine == "vllm"
    assert with_server(TrainConfig()).engine == "auto"
    for options, line in (
        ({"vllm_mode": "server"}, "add --vllm_server_base_url"),
        ({"vllm_server_base_url": "http://gpu2:8000"}, "is of --vllm_mode server"),
        (server | {"engine": "transformers"}, "exclude each other"),
    ):
        with pytest.raises(UserError, match=line):
            with_server(TrainConfig(**options))


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "gpu2:8000", "http://["])
def test_a_server_that_does_not_answer_is_one_line(url: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        address = url.format(port=held.getsockname()[1])
        config = TrainConfig(model_name="org/m", vllm_mode="server", vllm_server_base_url=address)
        with pytest.raises(UserError) as error:
            check_server(config)
    line = str(error.value)
    assert line.startswith(f"--vllm_server_base_url {address}: no vLLM server answers there (") and "\n" not in line
    assert "vllm serve org/m --max-model-len 512" in line


# --- the stage ------------------------------------------------------------------------------------------------------


def test_the_stage_decides_before_anything_is_imported_that_unsloth_must_precede() -> None:
    code = """
import sys, main
from model_training import backends, secret
seen = []
backends.import_unsloth = lambda: sys.exit(" ".join(name for name in backends.REWRITTEN if name in sys.modules) or 77)
backends.this_machine = lambda: backends.Machine(True, backends.pins())
main.main(["--mode", "train", "--model_name", "tiny", "--backend", "unsloth", "--credit", "completion"])
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 77, found.stderr


def test_a_refusal_leaves_nothing_behind(tmp_path: Path) -> None:
    config = TrainConfig(model_name="tiny", engine="vllm", output_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match="--engine vllm"):
        secret.train(config)
    assert not (tmp_path / "run").exists()
