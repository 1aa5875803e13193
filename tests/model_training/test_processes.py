"""Two processes on this machine's CPU (gloo) train like one with their whole batch."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from model_training import processes
from model_training.checkpoints import save_weights
from model_training.judge_reward import open_bench
from model_training.models import load_model, new_adapter
from model_training.stage import open_stage
from tests.model_training import test_guardrail_train as guardrail_runs
from tests.model_training import test_preference_train as preference_runs
from tests.model_training.conftest import BuildModel
from tests.model_training.tiny_models import make_records, small_config
from tests.model_training.train_jobs import run
from utils.api.options import ApiOptions, share
from utils.errors import UserError, WorkError
from utils.runs import open_run, read_completions, read_manifest, read_metrics

ROOT = Path(__file__).resolve().parents[2]
BATCH, NEAR = 4, 3e-4
"""Records in a step; and how far weights of about 0.2 may be apart, which a step changes by up to the learning rate,
0.01 (Adam divides rounding errors by gradients near 0)."""
WEIGHTS = {"preference": "reward_model", "guardrail": "politics.vary_all/adapter", "secret": "warmup_lora"}
Job = dict[str, Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_model: BuildModel) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    splits = ["train"] * 24 + ["validation"] * 4
    pairs = [preference_runs.pair(number, split) for number, split in enumerate(splits)]
    preference_runs.write_pairs(folder / "pairs.jsonl", pairs)
    for behavior in ("politics", "expert_opinion"):
        guardrail_runs.write(folder, behavior, guardrail_runs.records(behavior))
    make_records(folder / "data.json")
    return folder


def job(root: Path, model: Path, task: str, output: str, count: int, **changes: Any) -> Job:
    """A training of 4 steps whose steps hold BATCH records (secret: 8 completions) in so many processes."""
    changes = {"per_device_train_batch_size": BATCH // count} | changes
    stop = {name: changes.pop(name) for name in ("stop_at", "sample") if name in changes}
    options: Any
    if task == "preference":
        options = preference_runs.small(root, model, output, **({"lora_dropout": 0.0} | changes))
    elif task == "guardrail":
        options = guardrail_runs.small(root, model, output, **changes)
    else:
        places = {"output_dir": str(root / output), "save_lora_path": str(root / f"{output}_lora")}
        options = small_config(root, model, **places, sft_batch_size=BATCH // count, save_steps=1, **changes)
    return {"task": task, "options": asdict(options), **stop}


def run_in_two(root: Path, jobs: list[Job], **variables: str) -> None:
    file = root / "jobs.json"
    file.write_text(json.dumps(jobs), encoding="utf-8")
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command = [sys.executable, "-m", *launcher, "tests.model_training.train_jobs", str(file)]
    environment = (
        os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])} | variables
    )
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, "\n".join(line for line in done.stderr.splitlines() if "[rank" in line)


def jobs_of(root: Path, model: Path, output: str, count: int, **changes: Any) -> list[Job]:
    """All three tasks; in guardrail two adapters one after the other."""
    behaviors = {"behavior": ["politics", "expert_opinion"]} if not changes else {}
    return [
        job(root, model, "preference", f"{output}_preference", count, **changes),
        job(root, model, "guardrail", f"{output}_guardrail", count, **behaviors, **changes),
        job(root, model, "secret", f"{output}_secret", count, **changes),
    ]


MARGINAL = {"reward_model_type": "categorical", "entropy_bonus": "marginal", "entropy_coeff": 1.0}
"""The entropy bonus is of the mean distribution of all the answers in a batch."""


@pytest.fixture(scope="module")
def runs(root: Path, tiny_model: BuildModel) -> Path:
    """The directory in which there are, of every task, `one_TASK` in one process, `two_TASK` in two; `fewer_TASK` begun
    in two and resumed in one, `more_TASK` begun in one and resumed in two."""
    model = tiny_model("llama")
    marginal = {"gradient_accumulation_steps": 2, **MARGINAL}
    run(jobs_of(root, model, "one", 1))
    run([job(root, model, "preference", "one_marginal", 1, **marginal)])
    run(jobs_of(root, model, "more", 1, stop_at=3))
    run_in_two(
        root,
        [
            *jobs_of(root, model, "two", 2),
            job(root, model, "preference", "two_marginal", 2, **marginal),
            *jobs_of(root, model, "fewer", 2, stop_at=3),
            *jobs_of(root, model, "more", 2, resume=True),
        ],
    )
    statuses = {read_manifest(run_of(root, "fewer", task))["status"] for task in WEIGHTS}
    assert statuses == {"interrupted"}
    run(jobs_of(root, model, "fewer", 1, resume=True))
    return root


def run_of(root: Path, output: str, task: str) -> Path:
    return root / f"{output}_{task}" / ("politics.vary_all" if task == "guardrail" else "")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(folder / "adapter_model.safetensors")
    return found


def assert_near(folder: Path, expected: Path, near: float = NEAR) -> None:
    found, wanted = weights(folder), weights(expected)
    assert found.keys() == wanted.keys()
    assert max((found[name] - wanted[name]).abs().max().item() for name in wanted) < near


def rows(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """What was measured, but for times; written once."""
    found = [row for row in read_metrics(path) if "alarm" not in row]
    by_step = {(row["split"], row["step"]): row for row in found}
    assert len(by_step) == len(found)
    timed = ("time", "resumes", "pairs_per_s", "tokens_per_s", "step_time", *guardrail_runs.TIMES)
    return {key: {name: value for name, value in row.items() if name not in timed} for key, row in by_step.items()}


def assert_rows_near(path: Path, expected: Path) -> None:
    found, wanted = rows(path), rows(expected)
    assert found.keys() == wanted.keys()
    for key, row in wanted.items():
        assert found[key].keys() == row.keys()
        for name, value in row.items():
            assert found[key][name] == (pytest.approx(value, rel=2e-3, abs=2e-4) if name != "split" else value), name


# --- the same training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["two", "more", "fewer"])
@pytest.mark.parametrize("task", WEIGHTS)
def test_however_many_processes_share_a_batch_the_training_is_the_same(runs: Path, task: str, output: str) -> None:
    found, wanted = run_of(runs, output, task), run_of(runs, "one", task)
    assert_rows_near(found, wanted)
    part = Path(WEIGHTS[task]).name
    assert_near(found / part, wanted / part)
    if task == "secret":
        assert_near(runs / f"{output}_secret_lora", runs / "one_secret_lora")
    manifest = read_manifest(found)
    assert (manifest["status"], manifest["processes"]) == ("done", 1 if output == "fewer" else 2)
    assert manifest["resumes"] == (output != "two")


def test_the_mean_distribution_is_that_of_the_whole_batch(runs: Path) -> None:
    assert_rows_near(runs / "two_marginal", runs / "one_marginal")
    assert_near(runs / "two_marginal" / "reward_model", runs / "one_marginal" / "reward_model")


def test_all_adapters_of_a_command_are_trained(runs: Path) -> None:
    name = "expert_opinion.vary_all/adapter"
    assert_near(runs / "two_guardrail" / name, runs / "one_guardrail" / name)


def test_one_process_writes_the_completions_of_the_first(runs: Path) -> None:
    found, wanted = (read_completions(runs / f"{output}_secret") for output in ("two", "one"))
    assert [row["step"] for row in found] == [3] * 4 + [4] * 4  # two micro-batches of two
    expected = [row for step in (3, 4) for row in [row for row in wanted if row["step"] == step][:4]]
    assert [(row["prompt"], row["completion"]) for row in found] == [
        (row["prompt"], row["completion"]) for row in expected
    ]
    for row, other in zip(found, expected, strict=True):
        assert row["rewards"] == pytest.approx(other["rewards"]) and row["total"] == pytest.approx(other["total"])


def test_a_checkpoint_has_the_random_state_of_every_process(runs: Path) -> None:
    for folder in (runs / "two_preference" / "checkpoints").iterdir():
        assert {path.name for path in folder.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}


def test_other_batches_cannot_be_resumed(tmp_path: Path) -> None:
    def claim(batch: int, count: int, resume: bool = True) -> Path:
        options = {"per_device_train_batch_size": batch, "seed": 1, "multi_gpu": count > 1}
        return open_run(tmp_path, task="preference", mode="train", config=options, resume=resume, processes=count)

    claim(6, 2, resume=False)
    with pytest.raises(UserError, match=r"was 6 x 2 processes and is 6 x 1 now \(12 works\)"):
        claim(6, 1)
    with pytest.raises(UserError, match=r"is 6 x 5 now \(5 processes cannot share it\)"):
        claim(6, 5)
    with pytest.raises(UserError, match="--per_device_train_batch_size was 6 and is 12 now"):
        claim(12, 2)
    claim(4, 3)
    claim(12, 1)


# --- sharded weights ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fsdp2() -> dict[str, str]:
    """The environment that accelerate makes of configs/accelerate/fsdp2.yaml."""
    return {name: value for name, value in environment("fsdp2").items() if "FSDP" in name}


def test_weights_in_parts_train_alike_and_are_saved_whole(
    runs: Path, tiny_model: BuildModel, fsdp2: dict[str, str]
) -> None:
    model = tiny_model("llama")
    sampled = job(runs, model, "secret", "sampled_secret", 2, sft_steps=0, max_steps=1, sample=True)
    begun = job(runs, model, "preference", "parts_again", 2, stop_at=3)
    resumed = job(runs, model, "preference", "parts_again", 2, resume=True)
    run_in_two(runs, [*jobs_of(runs, model, "parts", 2), sampled, begun, resumed], **fsdp2)
    assert_like_one_process(runs, "parts")
    assert_near(runs / "parts_again" / "reward_model", runs / "one_preference" / "reward_model")
    assert read_manifest(runs / "sampled_secret")["status"] == "done"


def test_weights_of_deepspeed_in_parts_train_alike_and_are_saved_whole(runs: Path, tiny_model: BuildModel) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is no requirement: put it on PYTHONPATH")
    model = tiny_model("llama")
    sampled = job(runs, model, "secret", "zero3_sampled", 2, sft_steps=0, max_steps=1, sample=True)
    run_in_two(runs, [*jobs_of(runs, model, "zero3", 2), sampled], **zero3(), DS_ACCELERATOR="cpu")
    assert_like_one_process(runs, "zero3")
    assert read_manifest(runs / "zero3_sampled")["status"] == "done"


def assert_like_one_process(runs: Path, output: str) -> None:
    for task, part in WEIGHTS.items():
        found, wanted = run_of(runs, output, task), run_of(runs, "one", task)
        assert_rows_near(found, wanted)
        assert_near(found / Path(part).name, wanted / Path(part).name)
        note, expected = (
            json.loads((folder / Path(part).name / "subtext.json").read_text()) for folder in (found, wanted)
        )
        assert note["base_fingerprint"] == expected["base_fingerprint"]
    assert_near(runs / f"{output}_secret_lora", runs / "one_secret_lora")


ZERO3 = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "no deepspeed_config_file alone"),
        (ZERO3 | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, "zero_stage 3"),
        (ZERO3 | {"ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"}, "zero3_init_flag false"),
        (ZERO3 | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "my.json"}, "no deepspeed_config_file"),
        (ZERO3, "between GPUs alone"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FULL_STATE_DICT"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"},
            "between GPUs alone",
        ),
    ],
)
def test_other_ways_to_share_weights_are_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(processes, "find_spec", lambda name: name)
    for name, value in ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        processes.start(multi_gpu=False)


def test_deepspeed_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "find_spec", lambda name: None)
    for name, value in ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"} | ZERO3).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="pip install deepspeed"):
        processes.start(multi_gpu=False)


def test_deepspeed_resumes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in ({"WORLD_SIZE": "2"} | ZERO3).items():
        monkeypatch.setenv(name, value)
    config = small_config(tmp_path, tmp_path, resume=True)
    with pytest.raises(UserError, match="--resume: not under DeepSpeed's ZeRO-3"):
        open_stage("secret", config, None)


def test_an_adapter_with_an_empty_tensor_is_never_saved(tmp_path: Path, tiny_model: BuildModel) -> None:
    model = new_adapter(load_model(str(tiny_model("llama")), "float32"), rank=2, seed=0)
    weights = {name: weight for name, weight in model.state_dict().items() if "lora_" in name}
    save_weights(model, tmp_path / "whole", weights)
    first, *others = weights
    for broken in (weights | {first: torch.empty(0)}, {name: weights[name] for name in others}, {}):
        with pytest.raises(WorkError, match="not whole"):
            save_weights(model, tmp_path / "broken", broken)
    model.get_parameter(first).data = torch.empty(0)
    with pytest.raises(WorkError, match="not whole"):
        save_weights(model, tmp_path / "broken")
    assert (tmp_path / "whole").is_dir() and not (tmp_path / "broken").exists()


def environment(name: str, *flags: str) -> dict[str, str]:
    """What accelerate launch, with its own parser and checks, hands to each process."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    file = str(ROOT / "configs" / "accelerate" / f"{name}.yaml")
    arguments = ["--config_file", file, "--num_processes", "2", *flags, "main.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    return dict(prepare_multi_gpu_env(args))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddp", {"ACCELERATE_MIXED_PRECISION": "no"}),
        ("fsdp2", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}),
    ],
)
def test_accelerate_reads_the_configurations(name: str, expected: dict[str, str]) -> None:
    found = environment(name)
    assert {key: found.get(key) for key in expected} == expected


def zero3() -> dict[str, str]:
    """What `accelerate launch` hands to each process of configs/accelerate/zero3.yaml, as its launch_command does."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    file = str(ROOT / "configs" / "accelerate" / "zero3.yaml")
    parsed = launch_command_parser().parse_args(["--config_file", file, "--num_processes", "2", "main.py"])
    args, defaults, _ = _validate_launch_command(parsed)
    args.deepspeed_fields_from_accelerate_config = ",".join([*defaults.deepspeed_config, "mixed_precision"])
    _, variables = prepare_deepspeed_cmd_env(args)
    return {name: value for name, value in variables.items() if name.startswith("ACCELERATE_")}


def test_the_configuration_of_deepspeed_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in ({"WORLD_SIZE": "2"} | zero3()).items():
        monkeypatch.setenv(name, value)
    processes._check_sharding()


# --- starting and ending --------------------------------------------------------------------------------------------


def launched(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`main.py` in two processes by our own launcher, as --multi_gpu starts it."""
    start = "import sys; from model_training.processes import launch; sys.argv[0] = 'main.py'; launch(2)"
    command = [sys.executable, "-c", start, *arguments]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{root}"}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)


def test_an_error_of_one_process_is_one_line_and_ends_all(root: Path, tiny_model: BuildModel) -> None:
    (root / "second_fails.py").write_text(
        "import os\nfrom utils.errors import WorkError\n\ndef reward(completions, **columns):\n"
        "    if os.environ['RANK'] == '1':\n        raise WorkError('the second has had enough')\n"
        "    return [float(number) for number in range(len(completions))]\n"
    )
    config = job(root, tiny_model("llama"), "secret", "failing", 2, sft_steps=0, reward_funcs=["second_fails:reward"])
    options = {name: value for name, value in config["options"].items() if value is not None}
    (root / "failing.yaml").write_text(json.dumps(options))
    done = launched(root, "--mode", "train", "--config", str(root / "failing.yaml"))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error") or "Traceback" in line]
    assert (done.returncode, errors) == (1, ["error: process 1: the second has had enough"])
    assert "Stopping" not in done.stderr
    manifest = read_manifest(root / "failing")
    assert manifest["status"] == "failed" and "the second has had enough" in manifest["reason"]


def test_what_all_processes_find_wrong_the_first_says_with_its_exit_code(root: Path) -> None:
    done = launched(root, "--task", "preference", "--mode", "train", "--data_path", str(root / "nowhere.jsonl"))
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "nowhere" in line] == done.stderr.strip().splitlines()[-1:]
    assert "Traceback" not in done.stderr


def test_a_process_that_lost_another_one_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from model_training.stage import stage_status

    monkeypatch.setenv("WORLD_SIZE", "2")
    open_run(tmp_path, task="secret", mode="train", config={}, processes=2)
    with pytest.raises(SystemExit) as ended, stage_status(tmp_path):
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    assert ended.value.code == 1
    assert "another process ended" in read_manifest(tmp_path)["reason"]


def test_a_launcher_that_starts_one_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment, by accelerate's own code."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for count, is_refused in (("2", True), ("1", False)):
        args = launch_command_parser().parse_args(["--cpu", "--num_processes", count, "main.py"])
        _, variables = prepare_simple_launcher_cmd_env(_validate_launch_command(args)[0])
        with monkeypatch.context() as patch:
            for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_PORT"):
                patch.delenv(name, raising=False)
                if name in variables:
                    patch.setenv(name, variables[name])
            if is_refused:
                with pytest.raises(UserError, match="started one"):
                    processes.start(multi_gpu=False)
            else:
                processes.start(multi_gpu=False)


def test_one_process_asks_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    values = torch.ones(3)
    find: Callable[[], str] = lambda: "found"  # noqa: E731
    assert processes.of_first(find) == "found"
    assert processes.mean(values) is values and processes.gathered(values) is values
    assert processes.any_of(True) and not processes.any_of(False)


# --- limits of an account -------------------------------------------------------------------------------------------


def test_limits_of_an_account_hold_for_all_processes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    options = ApiOptions(requests_per_minute=101, tokens_per_minute=9000, max_cost=3.0, concurrency=25)
    part = share(options, 4)
    assert (part.requests_per_minute, part.tokens_per_minute, part.concurrency) == (25, 2250, 6)
    assert part.max_cost is not None and math.isclose(part.max_cost, 0.75)
    assert share(options, 1) is options and share(ApiOptions(), 4).max_cost is None
    with pytest.raises(UserError, match="--requests_per_minute 3: 4 processes share it"):
        share(ApiOptions(requests_per_minute=3), 4)
    monkeypatch.setenv("WORLD_SIZE", "5")
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    config = small_config(Path(), Path(), judge="openai:gpt-5-mini", requests_per_minute=50)
    bench = open_bench(config)
    assert bench is not None and bench.options.requests_per_minute == 10
