from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from main import TASKS
from model_training import launcher
from model_training.guardrail import train
from model_training.guardrail_config import TrainGuardrailConfig, run_directory
from model_training.launcher import Job, command_job, finish, run_jobs, share
from model_training.options import parse
from tests.model_training.conftest import BuildModel
from tests.model_training.test_guardrail_train import records, small, write
from utils import machine
from utils.errors import UserError, WorkError
from utils.runs import read_manifest

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = """
import sys
from model_training.launcher import cluster
with cluster() as ray:
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""
RUNS_JOBS = """
import sys
from pathlib import Path
from model_training.launcher import Job, run_jobs
folder, program = map(Path, sys.argv[1:])
job = Job("job", [str(program)], [str(program)], folder / "job", folder / "job.log")
run_jobs([job], threads=1, gpus=None, retries=0)
"""
WAITS = """
import signal, sys, time
def stop(*_):
    print("told to stop", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
print("waiting", flush=True)
time.sleep(120)
"""


def below(process: int) -> set[int]:
    """Every process that it started, and that these started; none if it has ended."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found: set[int] = set()
    new = {process}
    while new:
        new = {child for child, parent in parents.items() if parent in new}
        found |= new
    return found


def started(program: str, *arguments: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """One cluster of this machine for all tests here, found by its address as one elsewhere is."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (launcher.OWN | {"RAY_AUTH_TOKEN": "0" * 64}).items():
            patch.setenv(name, value)
        process = started(CLUSTER)
        assert process.stdin and process.stdout
        address = process.stdout.readline().strip()
        patch.setenv("RAY_ADDRESS", address)
        yield address
        ours = below(process.pid)
        process.stdin.close()
        assert process.wait(60) == 0
    assert ours and all(machine.process_start(one) in (None, "ended") for one in ours)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(folder: Path, name: str, text: str, again: str = "raise SystemExit('was not to go on')") -> Job:
    programs = [folder / f"{name}_{when}.py" for when in ("first", "again")]
    for program, content in zip(programs, (text, again), strict=True):
        program.write_text(content, encoding="utf-8")
    first, last = ([str(program)] for program in programs)
    return Job(name, first, last, folder / name, folder / f"{name}.log")


def begins_a_run(then: str) -> str:
    """A program that leaves a manifest, as one does that can be continued."""
    return (
        "import json, os, signal, sys\nfrom pathlib import Path\n"
        "run = Path(Path(sys.argv[0]).stem.partition('_')[0])\nrun.mkdir(exist_ok=True)\n"
        "(run / 'manifest.json').write_text(json.dumps({'status': 'running'}))\n" + then
    )


# --- with Ray ---------------------------------------------------------------------------------------------------------


def test_each_job_ends_in_its_own_way(here: Path, address: str, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = [
        job(here, "good", "import os\nprint('in', os.getcwd(), os.environ.get('CUDA_VISIBLE_DEVICES'))"),
        job(here, "usage", "import sys\nprint('error: no such file', file=sys.stderr)\nsys.exit(2)"),
        job(here, "killed", begins_a_run("os.kill(os.getpid(), signal.SIGKILL)"), again="print('went on')"),
        job(here, "early", "raise ValueError('no run yet')", again="print('went on')"),
    ]
    outcomes = run_jobs(jobs, threads=1, gpus=None, retries=1)
    told = capfd.readouterr().err
    assert [(one.status, one.attempts) for one in outcomes] == [("done", 1), ("failed", 1), ("done", 2), ("failed", 2)]
    assert [one.reason for one in outcomes[1:]] == ["no such file", "", outcomes[3].reason]
    assert outcomes[3].reason == "exit code 1; its last line: ValueError: no run yet"
    assert f"in {here} \n" in (here / "good.log").read_text(), "in the user's directory, and no GPU is seen"
    assert "went on" in (here / "killed.log").read_text() and "went on" not in (here / "early.log").read_text()

    lines = told.splitlines()
    assert [line for line in lines if line.startswith("good")] == ["good: queued", "good: running", "good: done"]
    assert "usage: failed: no such file" in lines
    assert "killed: failed: killed by SIGKILL; its last line: $ python" in told and "; attempt 2 follows" in told
    assert {line.partition(":")[0] for line in lines} == {one.job.name for one in outcomes}, "Ray itself is silent"

    with pytest.raises(WorkError, match=r"(?s)2 of 4 jobs failed: usage, early .*\n  python main.py --resume") as error:
        finish(outcomes, "python main.py --resume")
    assert str(here) in str(error.value)
    table = capfd.readouterr().out.splitlines()
    assert [line.split()[:3] for line in table[1:]] == [
        ["good", "done", "1"],
        ["usage", "failed", "1"],
        ["killed", "done", "2"],
        ["early", "failed", "2"],
    ]


def test_progress_is_read_from_the_run(
    here: Path, address: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(launcher, "POLL_S", 0.2)
    (here / "half").mkdir()
    (here / "half" / "manifest.json").write_text('{"status": "done", "planned_steps": 99}')
    (here / "half" / "metrics.jsonl").write_text('{"step": 99, "split": "train"}\n')
    text = (
        "import json, time\ntime.sleep(1)\n"
        "open('half/manifest.json', 'w').write(json.dumps({'status': 'running', 'planned_steps': 8}))\n"
        "open('half/metrics.jsonl', 'w').write(json.dumps({'step': 3, 'split': 'train'}) + '\\n')\ntime.sleep(2)"
    )
    run_jobs([job(here, "half", text)], threads=1, gpus=0, retries=0)
    told = capfd.readouterr().err
    assert "half: running step 3 of 8\n" in told and "99" not in told, "an older run's steps do not count"


def test_an_interrupt_stops_every_job_resumably(here: Path, address: str, capfd: pytest.CaptureFixture[str]) -> None:
    jobs = [job(here, name, WAITS) for name in ("one", "two", "three")]

    def interrupt_when_two_run() -> None:
        while sum("waiting" in log.read_text() for log in here.glob("*.log")) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt_when_two_run)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, threads=1, gpus=None, retries=1)
    watcher.join()
    told = [log.read_text() for log in here.glob("*.log")]
    assert len(told) == 2 and all(text.count("told to stop") == 1 for text in told), "the third one never began"
    assert capfd.readouterr().err.count(": interrupted: it was told to stop; it can be resumed") == 3


def test_adapters_are_those_without_a_launcher(
    here: Path, address: str, tiny_model: BuildModel, capfd: pytest.CaptureFixture[str]
) -> None:
    guards = ["politics", "expert_opinion"]
    for guard in guards:
        write(here, guard, records(guard))
    plain = replace(small(here, tiny_model("llama")), behavior=guards, dataset_path=".", output_dir="plain")
    launched = replace(plain, output_dir="launched", launcher="ray")
    train(plain)
    train(launched)
    for guard in guards:
        runs = [run_directory(folder, guard, "vary_all") for folder in ("plain", "launched")]
        for name in ("adapter_model.safetensors", "README.md", "subtext.json"):
            first, second = (hashlib.sha256((run / "adapter" / name).read_bytes()).hexdigest() for run in runs)
            assert first == second, name
        configs = [read_manifest(run)["config"] | {"output_dir": ""} for run in runs]
        assert configs[0] == configs[1]
    out = capfd.readouterr().out
    assert re.search(r"politics.vary_all +done +1 .*launched/politics.vary_all\n", out)

    train(replace(launched, behavior=["politics"], resume=True))
    assert "Nothing to do: the run in launched/politics.vary_all is done" in Path(
        "launched/jobs/politics.vary_all.log"
    ).read_text("utf-8")


def test_a_cluster_of_this_machine_listens_here_alone_and_ends_with_the_command(tmp_path: Path) -> None:
    program, log = tmp_path / "waits.py", tmp_path / "job.log"
    program.write_text(WAITS, encoding="utf-8")
    process, ours = started(RUNS_JOBS, tmp_path, program), set()
    try:
        wait_for(lambda: log.exists() and "waiting" in log.read_text())
        ours = below(process.pid)
        addresses = listening(ours)
        assert addresses and set(addresses) == {"loopback"}
        process.kill()
        wait_for(lambda: "told to stop" in log.read_text())
    finally:
        for one in ours:  # Ray's agents outlive a driver that was killed for a while
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        process.kill()
        process.communicate()


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


def listening(processes: set[int]) -> list[str]:
    """Where processes listen for TCP: `loopback`, or the address as the kernel writes it."""
    inodes = set()
    for process in processes:
        for link in Path(f"/proc/{process}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address = fields[1].partition(":")[0]
                found.append("loopback" if address.endswith("0100007F") else address)
    return found


# --- without ----------------------------------------------------------------------------------------------------------


def test_the_command_of_a_job_means_the_same_options(tmp_path: Path) -> None:
    config = TrainGuardrailConfig(
        model_name="tiny", behavior=["meeting"], guardrails=None, learning_rate=1e-5, wandb_tags=["a b"], overwrite=True
    )
    made = command_job("guardrail", "train", config, tmp_path / "runs" / "meeting.vary_all", tmp_path / "runs")
    parsed = parse(made.first[1:], TASKS)
    assert (parsed.task, parsed.mode, asdict(parsed.config)) == ("guardrail", "train", asdict(config))
    assert parse(made.again[1:], TASKS).config == replace(config, overwrite=False, resume=True)
    assert made.log == tmp_path / "runs" / "jobs" / "meeting.vary_all.log" and made.name == "meeting.vary_all"


def test_other_launchers_are_refused_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--launcher ray starts a process for each adapter; leave --multi_gpu"):
        train(TrainGuardrailConfig(launcher="ray", multi_gpu=True))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--launcher ray starts a process for each adapter"):
        train(TrainGuardrailConfig(launcher="ray"))


def test_a_share_that_some_machine_has_room_for() -> None:
    laptop, box = {"CPU": 4.0}, {"CPU": 32.0, "GPU": 8.0}
    assert share(1, None, [laptop]) == (1, 0)
    assert share(16, None, [laptop, box]) == (1, 1), "threads do not keep GPUs idle"
    assert share(16, 0, [laptop, box]) == (16, 0)
    assert share(1, 0.25, [box]) == (1, 0.25)
    for threads, gpus, words in ((5, None, "takes 5 CPUs"), (1, 1.0, "1 GPUs"), (1, 1.5, "a whole number")):
        with pytest.raises(UserError, match=words):
            share(threads, gpus, [laptop])


def test_a_missing_package_and_an_address_of_nobody_are_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("127.0.0.1:1", "head", "ray://127.0.0.1:1"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=f"RAY_ADDRESS={address}.* give HOST:PORT"), launcher.cluster():
            pass
    monkeypatch.setattr(launcher.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package ray is missing; pip install ray"), launcher.cluster():
        pass


def test_a_removal_that_was_cut_off_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--overwrite removes; going on with what is half removed is refused, so the first command is given again."""
    submitted = []
    one = launcher.Outcome(job(tmp_path, "one", ""))
    one.job.run.mkdir()

    class Remote:
        def remote(self, command: list[str], *_: str) -> None:
            submitted.append(command)

    for status in ("failed", "removing", "running"):
        launcher._submit(Remote(), one)
        (one.job.run / "manifest.json").write_text(json.dumps({"status": status}))
        os.utime(one.job.run / "manifest.json", ns=(len(submitted), len(submitted)))
    launcher._submit(Remote(), one)
    assert submitted == [one.job.first, one.job.again, one.job.first, one.job.again]
