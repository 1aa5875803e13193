"""Several processes that train one model: how they start, which one writes, how they agree, and how they end.

    python main.py --mode train --multi_gpu ...                                        all GPUs of this machine
    accelerate launch --config_file configs/accelerate/ddp.yaml main.py --mode train ...        also many machines
    python -m torch.distributed.run --nproc_per_node 2 main.py --mode train ...        torch's launcher, also on CPUs

A launcher starts the same command N times and numbers the processes (RANK, WORLD_SIZE). Each meets its own part of
every batch, and gradients are averaged (DDP), so N processes with batch b train like one with batch N x b. What is no
plain mean over equally many records has its own place: tokens are counted over all processes (orpo_trainer.py), the
entropy of a batch's mean distribution is that of the whole batch (`gathered`, pair_trainer.py).

The first process alone writes the run and speaks; the others are silent but for an error of their own. What only one
can find out or must do once, as claiming the run directory, the first does, and tells the others (`of_first`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from utils.errors import UserError, WorkError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

SHUTDOWN_S = 120
"""How long the launcher waits for a step and its checkpoint, when it is stopped."""


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this one, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_writer() -> bool:
    """Whether this process writes the run's files: the only one, or the first of several."""
    return rank() == 0


def is_zero3() -> bool:
    """Whether the weights are shared by DeepSpeed."""
    return count() > 1 and os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


# --- start ----------------------------------------------------------------------------------------------------------


def start(multi_gpu: bool) -> None:
    """Meet the other processes, if there are any; with --multi_gpu, and no launcher yet, be the launcher.

    Raises:
        UserError: a launcher that started fewer processes than it was asked for, or a way to share that is not ours.
    """
    if multi_gpu and "LOCAL_RANK" not in os.environ:
        launch(_gpus())
    _check_launcher()
    if count() > 1:
        _check_sharding()
        _join()


def launch(processes: int) -> NoReturn:
    """Start this command line in so many processes of this machine, wait for them, and end as the first failed one."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ.setdefault("OMP_NUM_THREADS", "1")  # --threads counts; this only keeps torch from warning
    logging.disable()  # each process says what ended it
    options = ["--standalone", "--nproc_per_node", str(processes), "--shutdown_timeout", str(SHUTDOWN_S)]
    try:
        run(parse_args([*options, *sys.argv]))
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        code = failure.exitcode
        if code < 0:
            text = f"process {number} was ended by signal {-code}, for want of memory perhaps; --resume goes on"
            print(f"error: {text}", file=sys.stderr)
        sys.exit(code if code > 0 else 1)
    except SignalException:
        sys.exit(130)
    sys.exit(0)


def _gpus() -> int:
    import torch

    gpus: int = torch.cuda.device_count()
    if gpus < 2:
        raise UserError(f"--multi_gpu: this machine shows {gpus} CUDA devices, at least 2 are needed; leave it out")
    return gpus


def _check_launcher() -> None:
    """On CPUs `accelerate launch --num_processes 2` starts one process, without a word; its traces are these."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "accelerate launch was asked for several processes and has started one, as it does on CPUs; there, use "
            "python -m torch.distributed.run --nproc_per_node N main.py ..."
        )


def _check_sharding() -> None:
    """FSDP2 and ZeRO-3 share the weights themselves; what saves no whole adapter, or does nothing, is refused."""
    if is_zero3():
        _check_deepspeed()
    if os.environ.get("ACCELERATE_USE_FSDP") != "true":
        return
    if os.environ.get("FSDP_VERSION", "1") != "2" or os.environ.get("FSDP_STATE_DICT_TYPE") != "FULL_STATE_DICT":
        raise UserError(
            "FSDP: adapters are saved with fsdp_version 2 and fsdp_state_dict_type FULL_STATE_DICT alone, as "
            "configs/accelerate/fsdp2.yaml has them"
        )
    _need_gpus("FSDP")


def _check_deepspeed() -> None:
    if find_spec("deepspeed") is None:
        raise UserError("configs/accelerate/zero3.yaml needs DeepSpeed, which is not installed: pip install deepspeed")
    fields = {"ZERO_STAGE": "3", "ZERO3_INIT": "false", "ZERO3_SAVE_16BIT_MODEL": "true"}
    found = {name: os.environ.get(f"ACCELERATE_DEEPSPEED_{name}") for name in fields}
    if found != fields or "ACCELERATE_DEEPSPEED_CONFIG_FILE" in os.environ:
        raise UserError(
            "DeepSpeed: adapters are saved with zero_stage 3, zero3_init_flag false, zero3_save_16bit_model true and "
            "no deepspeed_config_file alone, as configs/accelerate/zero3.yaml has them"
        )
    _need_gpus("DeepSpeed")


def _need_gpus(name: str) -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"{name}: accelerate shares weights between GPUs alone; on CPUs, leave it out (every process has all)"
        )


def _join() -> None:
    import torch
    from accelerate import PartialState

    if torch.distributed.is_initialized():  # this process has trained before
        return
    on_cpu = not torch.cuda.is_available()
    PartialState(cpu=on_cpu)
    if on_cpu:  # an optimizer is loaded to accelerate's device, "cpu:0", a name that torch does not read
        torch.serialization.register_package(30, lambda storage: None, _stay_on_cpu)
    if not is_writer():
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _stay_on_cpu(storage: Any, place: str) -> Any:
    return storage if place.startswith("cpu:") else None


# --- agree ----------------------------------------------------------------------------------------------------------


def of_first(find: Callable[[], T]) -> T:
    """What the first process finds, in all of them; an error of the user's or of the work is raised in all, too."""
    if count() == 1:
        return find()
    import torch

    found: list[Any] = [None, None]
    if is_writer():
        try:
            found[0] = find()
        except (UserError, WorkError) as error:
            found[1] = error
    torch.distributed.broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return cast(T, found[0])


def any_of(flag: bool, device: Any = None) -> bool:
    """Whether it is true in any process."""
    return mean_row({"": float(flag)}, device)[""] > 0


def mean_row(row: dict[str, float], device: Any = None) -> dict[str, float]:
    """The mean over the processes of each value; all have the same names."""
    if count() == 1:
        return row
    import torch

    return dict(
        zip(row, mean(torch.tensor(list(row.values()), dtype=torch.float64, device=device)).tolist(), strict=True)
    )


def mean(values: Tensor) -> Tensor:
    """The mean over the processes, of a tensor of one shape in all, without gradients."""
    if count() == 1:
        return values
    import torch

    total = values.detach().clone()
    torch.distributed.all_reduce(total)
    return total / count()


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, (N, ...) to (N x processes, ...), in their order.

    Whatever all processes compute of them alike has, under DDP's mean, the gradient that one process would have: to its
    own rows each passes on the gradient `count()` times.
    """
    if count() == 1:
        return rows
    import torch

    parts = [torch.empty_like(rows) for _ in range(count())]
    torch.distributed.all_gather(parts, rows.detach().contiguous())
    parts[rank()] = rows.detach() + count() * (rows - rows.detach())
    return torch.cat(parts)


# --- end ------------------------------------------------------------------------------------------------------------


def is_broken_link(error: BaseException) -> bool:
    """Whether an error says no more than that another process is gone."""
    if count() == 1:
        return False
    import torch

    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL"))
    )
