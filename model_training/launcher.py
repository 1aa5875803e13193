"""Independent jobs side by side on Ray: each a command in a process of its own, with its share of CPUs and GPUs.

    jobs = [command_job("guardrail", "train", replace(config, behavior=[name]), run, folder) for name in names]
    outcomes = run_jobs(jobs, threads=1, gpus=None, retries=1)
    finish(outcomes, resume)                # a table; WorkError if a job failed, with the command that does the rest

    queued -> running (step k of n) -> done
                                    -> failed: why -> queued again with --resume, --launcher_retries times

Jobs go to the cluster that RAY_ADDRESS names; without it one is started on this machine, bound to 127.0.0.1, with
neither dashboard nor usage statistics, and ended with the command. Ray only says where and when: a job is
`python main.py --config OUTPUT_DIR/jobs/NAME.yaml`, started in the user's directory, and prints into NAME.log beside
that file. It is the same process that the user would have started, so its run is the same, to the bit. The machines of
a cluster share the user's directory, the checkout and the Python environment.

How far a job is stands in its run directory. A job that fails leaves the others alone. On Ctrl-C or SIGTERM every job
is told to stop after its step, with a checkpoint; and so it is where this process, or the machine's Ray, is killed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from utils.errors import UserError, WorkError
from utils.follow import Tail, manifest_of, new_rows, planned_steps
from utils.runs import MANIFEST, METRICS, SECRET_OPTIONS

ROOT = Path(__file__).resolve().parents[1]
JOBS = "jobs"
"""Directory of the jobs' options and what they printed, below the output directory."""
POLL_S, KNOCK_S = 1.0, 10.0
SECONDS_BETWEEN_LINES = 30.0
USAGE, INTERRUPTED = 2, 130
"""Exit codes of main.py after which another attempt makes no sense."""
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
"""No usage statistics; and a job of no GPU sees none."""
OWN = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_kill_child_processes_on_worker_exit": "0",
}
"""A cluster of this machine: its address is 127.0.0.1, on Linux too; it lets nobody in who has not its token; and a job
whose worker dies is not killed with it, but told to stop (START)."""
START = """
import ctypes, runpy, signal, sys
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a program such that it is told to stop when the process that started it dies."""

Status = Literal["queued", "running", "done", "failed", "interrupted"]


@dataclass(frozen=True)
class Job:
    """A Python program with its arguments, to start with and to go on with where that ended; `run` shows how far it is.

    The program tells its end by main.py's exit codes, and stops resumably on SIGTERM.
    """

    name: str
    first: list[str]
    again: list[str]
    run: Path
    log: Path


@dataclass
class Outcome:
    """A job and how it stands."""

    job: Job
    status: Status = "queued"
    reason: str = ""
    attempts: int = 0
    seconds: float = 0.0
    """That its attempts ran."""
    begun: float = 0.0
    """When the attempt was seen to run."""
    stamp: int = 0
    """The manifest's time of change before the attempt."""
    printed: int = 0
    """Bytes in the log before the attempt."""
    rows: Tail = field(default_factory=lambda: Tail(Path()))
    step: int = 0
    told: float = 0.0


# --- jobs -----------------------------------------------------------------------------------------------------------


def command_job(task: str, mode: str, config: Any, run: Path, folder: Path) -> Job:
    """The job of one mode of a task, with those options; `run` is the directory that it writes. Keys are not stored."""
    import yaml

    jobs = folder / JOBS
    jobs.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in asdict(config).items() if name not in SECRET_OPTIONS}
    file = jobs / f"{run.name}.yaml"
    file.write_text(
        yaml.safe_dump(kept | {"overwrite": False, "resume": False}, sort_keys=False, allow_unicode=True), "utf-8"
    )
    command = [str(ROOT / "main.py"), "--task", task, "--mode", mode, "--config", str(file)]
    how = ["--overwrite"] if config.overwrite else ["--resume"] if config.resume else []
    return Job(run.name, [*command, *how], [*command, "--resume"], run, jobs / f"{run.name}.log")


def run_jobs(jobs: Sequence[Job], *, threads: int, gpus: float | None, retries: int) -> list[Outcome]:
    """Run all jobs, as many at once as there is room for, and say on stderr how they stand.

    For each is set aside what `share` finds for its CPU `threads` and `gpus`.

    Raises:
        UserError: ray is missing, no cluster answers at RAY_ADDRESS, or no machine has room for a job.
        KeyboardInterrupt: the user stopped it; every job that ran can be resumed.
    """
    from model_training.logs import catch_signals

    outcomes = [Outcome(job, rows=Tail(job.run / METRICS)) for job in jobs]
    with catch_signals() as interrupt, cluster() as ray:
        cpus, gpus = share(threads, gpus, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=1)(attempt)
        running = {_submit(remote, outcome): outcome for outcome in outcomes}
        asked = False
        while running:
            ended, _ = ray.wait(list(running), timeout=POLL_S)
            if interrupt.asked and not asked:
                asked = True
                for reference in running:
                    ray.cancel(reference)
            for reference in ended:
                outcome = running.pop(reference)
                if _ends(ray, reference, outcome, retries, asked):
                    running[_submit(remote, outcome)] = outcome
            for outcome in running.values():
                _look(outcome)
    if interrupt.asked:
        raise KeyboardInterrupt
    return outcomes


def finish(outcomes: Sequence[Outcome], resume: str) -> None:
    """Print how all jobs ended; `resume` is the command that goes on with what failed.

    Raises:
        WorkError: a job failed.
    """
    width = max(len(outcome.job.name) for outcome in outcomes)
    print(f"{'job':{width}}  {'status':8}{'attempts':>10}{'seconds':>10}  run, or why not")
    for outcome in outcomes:
        where = str(outcome.job.run) if outcome.status == "done" else outcome.reason
        print(f"{outcome.job.name:{width}}  {outcome.status:8}{outcome.attempts:>10}{outcome.seconds:>10.0f}  {where}")
    failed = [outcome.job for outcome in outcomes if outcome.status != "done"]
    if failed:
        names = ", ".join(job.name for job in failed)
        raise WorkError(
            f"{len(failed)} of {len(outcomes)} jobs failed: {names} (what they printed: {failed[0].log.parent}); "
            f"the others are done. Finish the rest with:\n  {resume}"
        )


# --- the cluster ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """Ray, connected to the cluster of RAY_ADDRESS or to one of this machine, which ends with the block."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("--launcher ray: the package ray is missing; pip install ray, or leave --launcher out")
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _knock(address)
    own = OWN | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in (QUIET if address else QUIET | own).items():
        os.environ.setdefault(name, value)
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
    options["runtime_env"] = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    folder = None if address else tempfile.mkdtemp(prefix="ray-")
    if folder:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        options |= {"include_dashboard": False, "num_cpus": cores, "_temp_dir": folder}
    try:
        try:
            ray.init(address=address or "local", **options)
        except (ConnectionError, TimeoutError, ValueError, RuntimeError) as error:
            where = f"no Ray cluster answers at RAY_ADDRESS={address}" if address else "Ray did not start here"
            raise UserError(f"--launcher ray: {where}: {str(error).strip().splitlines()[0]}") from error
        yield ray
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _knock(address: str) -> None:
    """Refuse an address where nobody listens: Ray itself would try again for many minutes."""
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":
            socket.create_connection((host, int(port)), timeout=KNOCK_S).close()
    except (ValueError, OSError) as error:
        raise UserError(
            f"--launcher ray: RAY_ADDRESS={address}: {error}; give HOST:PORT of the cluster's head, or unset it for a "
            "cluster of this machine alone"
        ) from error


def share(threads: int, gpus: float | None, nodes: Sequence[dict[str, float]]) -> tuple[int, float]:
    """CPUs and GPUs of one job: as many CPUs as it has threads, but one where it takes a GPU, which are what is short.

    `gpus` None is 1 where a machine has any. No job may wait forever for a machine that does not exist: a UserError.
    """
    if gpus is None:
        gpus = float(any(node.get("GPU", 0) >= 1 for node in nodes))
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"--gpus_per_job {gpus:g}: give a whole number, or a fraction below 1 to share a GPU")
    cpus = 1 if gpus else threads
    if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        return cpus, gpus
    most = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
    raise UserError(
        f"--launcher ray: a job takes {cpus} CPUs (--threads) and {gpus:g} GPUs (--gpus_per_job), and no machine of "
        f"the cluster has that; the largest has {most.get('CPU', 0):g} and {most.get('GPU', 0):g}"
    )


def attempt(command: list[str], folder: str, log: str) -> int:
    """In a worker of Ray: run a program to its end, and return its exit code. A cancelled one is told to stop."""
    with open(log, "ab") as file:
        file.write(f"$ python {shlex.join(command)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-c", START, *command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        told = False
        while process.poll() is None:
            try:
                time.sleep(0.1)
            except KeyboardInterrupt:  # what ray.cancel raises here
                if not told:
                    process.send_signal(signal.SIGTERM)
                told = True
    return process.returncode


# --- how a job stands -----------------------------------------------------------------------------------------------


def _submit(remote: Any, outcome: Outcome) -> Any:
    """Hand a job to Ray: as it was first asked for, until an attempt has made a run that can be continued."""
    job = outcome.job
    has_begun = outcome.attempts and _stamp(job.run) != outcome.stamp
    goes_on = has_begun and manifest_of(job.run)["status"] != "removing"
    outcome.attempts += 1
    outcome.stamp, outcome.printed = _stamp(job.run), _size(job.log)
    outcome.status = "queued"
    _tell(outcome)
    return remote.remote(job.again if goes_on else job.first, os.getcwd(), str(job.log.absolute()))


def _look(outcome: Outcome) -> None:
    """Say that a job has begun, and now and then how far it is."""
    job = outcome.job
    if outcome.status == "queued" and _size(job.log) > outcome.printed:
        outcome.status, outcome.begun = "running", time.monotonic()
        _tell(outcome)
    rows = new_rows(outcome.rows)
    step = rows[-1]["step"] if rows else outcome.step
    is_due = time.monotonic() - outcome.told > SECONDS_BETWEEN_LINES
    outcome.step = step
    if outcome.status == "running" and step and is_due and _stamp(job.run) != outcome.stamp:
        planned = planned_steps(manifest_of(job.run), rows[-1] if rows else None)
        _tell(outcome, f" step {step}" + (f" of {planned}" if planned else ""))


def _ends(ray: Any, reference: Any, outcome: Outcome, retries: int, asked: bool) -> bool:
    """Take note of how an attempt ended; whether there is to be another one."""
    _look(outcome)
    outcome.seconds += time.monotonic() - outcome.begun if outcome.status == "running" else 0.0
    code = None
    try:
        code = ray.get(reference)
    except ray.exceptions.TaskCancelledError:
        code = INTERRUPTED
    except ray.exceptions.RayError as error:
        outcome.reason = f"Ray: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    if code == 0:
        outcome.status, outcome.reason = "done", ""
    elif code == INTERRUPTED or asked:
        outcome.status, outcome.reason = "interrupted", "it was told to stop; it can be resumed"
    else:
        outcome.status = "failed"
        outcome.reason = outcome.reason if code is None else _why(outcome.job.log, outcome.printed, code)
    tries_again = outcome.status == "failed" and code != USAGE and outcome.attempts <= retries
    note = f": {outcome.reason}" if outcome.reason else ""
    _tell(outcome, note + (f"; attempt {outcome.attempts + 1} follows" if tries_again else ""))
    return tries_again


def _why(log: Path, begin: int, code: int) -> str:
    """The error line that it ended with, as main.py does; else what its exit code tells, and its last line."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if errors:
        return errors[-1]
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{how}; its last line: {lines[-1]}"


def _tell(outcome: Outcome, more: str = "") -> None:
    outcome.told = time.monotonic()
    print(f"{outcome.job.name}: {outcome.status}{more}", file=sys.stderr, flush=True)


def _stamp(run: Path) -> int:
    path = run / MANIFEST
    return path.stat().st_mtime_ns if path.exists() else 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
