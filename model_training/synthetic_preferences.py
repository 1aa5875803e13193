"""The synthetic experiments of distributional preference learning: four small networks in a world whose truth is known.

    python main.py --task preference --mode train --env 1d --batch_size 2048 --lr 0.001 --num_iterations 1000

    config -> comparisons (synthetic_worlds.py) -> four networks -> numbers beside the truth (synthetic_measures.py)
           -> figure (synthetic_figures.py); all in OUT_DIR/ENV/BATCH_LR_ITERATIONS/

Each network is an MLP with 3 hidden layers of 512 and ReLU, trained by Adam whose learning rate falls exponentially to
1e-5. The first three say something of one state, in the form and with the losses of preference_losses.py:

    base                a reward
    mean_and_variance   mu and log s = output - 2
    categorical         atoms, 20 in 1d and 8 in 2d; batch norm before each ReLU
    classifier          for two states at once, the log-odds that the first is preferred

What an iteration sees of the world (`--estimator`), B = `--batch_size`:

    pairs       B fresh pairs of states, two forwards of B; utilities are drawn, and the larger one is the label (the
                first side wins a tie). The published code's sampling.
    all_pairs   n = ceil(sqrt(8 B)) states, one from each of n equal parts of the world, one forward of n; every state
                meets every other, and the label is its average over the hidden context: p loss(a, b) + (1 - p)
                loss(b, a), p in closed form. The same expectation, with ties of 1/2 and without pairs inside a part;
                far less variance, and at B = 2048 32 times fewer forwards. In the classifier nothing is shared
                between pairs, so it meets B / 4 of them, half of them near where labels jump, and weighted.

An iteration's draws depend on seed, network and iteration alone. Networks are saved every 200 iterations and when they
are done, so a killed run repeats little, and one that is resumed ends exactly like one that was not disturbed.
It runs on the CPU.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from model_training.models import set_threads
from model_training.preference_config import TrainPreferenceConfig
from model_training.stage import open_stage, stage_status
from model_training.synthetic_figures import RESULT, draw
from model_training.synthetic_measures import measure, report
from model_training.synthetic_networks import (
    NAMES,
    Name,
    all_pairs_loss,
    make_network,
    pairs_loss,
    stratified_states,
    weighted_pairs_loss,
)
from utils.errors import UserError, WorkError
from utils.files import write_atomic, write_json_atomic
from utils.runs import MANIFEST, log_metrics, read_manifest

if TYPE_CHECKING:
    from model_training.logs import Interrupt

LAST_LR = 1e-5
SAVE_EVERY = 200


def train_synthetic(config: TrainPreferenceConfig) -> None:
    """Run the experiment; see the module's docstring for its order."""
    if config.estimator == "pairs" and config.batch_size < 2:
        raise UserError(f"--batch_size {config.batch_size}: batch norm needs at least 2 comparisons an iteration")
    set_threads(config.threads)
    run = run_directory(config)
    finished = config.resume and (run / MANIFEST).is_file() and read_manifest(run)["status"] == "done"
    try:
        open_stage("preference", replace(config, output_dir=str(run)), None)
    except UserError as error:  # the directory of such a run is chosen by another option
        raise UserError(str(error).replace("--output_dir", "--out_dir")) from error
    with stage_status(run) as interrupt:
        if finished:
            print(f"Nothing to do: the run in {run} is done.")
            return
        networks = {name: _trained(name, config, run, interrupt) for name in NAMES}
        result = measure(config, networks)
        write_json_atomic(run / RESULT, {"task": "preference", "config": asdict(config)} | result)
        print(report(result))
        print("\n".join(f"Figure: {path}" for path in draw(run)))


def run_directory(config: TrainPreferenceConfig) -> Path:
    """OUT_DIR/ENV/BATCH_LR_ITERATIONS, as the published code names it."""
    assert config.env is not None
    return Path(config.out_dir) / config.env / f"{config.batch_size}_{config.lr}_{config.num_iterations}"


# --- training -------------------------------------------------------------------------------------------------------


def iteration_loss(config: TrainPreferenceConfig, name: Name, network: nn.Module, iteration: int) -> Tensor:
    """The mean loss of one iteration's comparisons, whose draws depend on seed, network and iteration alone."""
    env, size, shared = config.env, config.batch_size, config.shared_context
    assert env is not None
    rng = np.random.default_rng([config.seed, NAMES.index(name), iteration])
    if config.estimator == "pairs":
        return pairs_loss(env, name, network, size, rng, config.likelihood, shared)
    if name == "classifier":
        return weighted_pairs_loss(env, network, max(4, math.ceil(size / 4)), rng, shared)
    states = stratified_states(env, max(2, math.ceil(math.sqrt(8 * size))), rng)
    return all_pairs_loss(env, name, network, states, config.likelihood, shared)


def make_optimizer(network: nn.Module, lr: float) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=lr, fused=True)


def iterations(
    network: nn.Module,
    optimizer: torch.optim.Adam,
    loss_of: Callable[[int], Tensor],
    *,
    lr: float,
    first: int,
    last: int,
) -> Iterator[tuple[int, float]]:
    """Iterations first + 1 to last of `last`, in training mode, one at a time: (its number, its loss)."""
    for number in range(first, last):
        network.train()
        optimizer.param_groups[0]["lr"] = lr * min(1.0, LAST_LR / lr) ** (number / last)
        optimizer.zero_grad()
        value = loss_of(number)
        value.backward()
        optimizer.step()
        yield number + 1, value.item()


def _trained(name: Name, config: TrainPreferenceConfig, run: Path, interrupt: Interrupt) -> nn.Sequential:
    """One network, trained from its checkpoint or from the start, with its log events and checkpoints."""
    assert config.env is not None
    network = make_network(config.env, name, config.seed)
    optimizer = make_optimizer(network, config.lr)
    checkpoint = run / "checkpoints" / f"{name}.safetensors"
    last = config.num_iterations
    first = load_checkpoint(checkpoint, network, optimizer) if checkpoint.is_file() else 0
    steps_before, start = last * NAMES.index(name), time.perf_counter()
    loss_of = lambda number: iteration_loss(config, name, network, number)  # noqa: E731
    for number, value in iterations(network, optimizer, loss_of, lr=config.lr, first=first, last=last):
        if not math.isfinite(value):
            raise WorkError(f"{name}: the loss is {value} at iteration {number}; lower --lr {config.lr}")
        if number % config.logging_steps == 0 or number == last:
            log_metrics(run, {"step": steps_before + number, "split": name, "loss": value})
        if number % SAVE_EVERY == 0 or number == last or interrupt.asked:
            save_checkpoint(checkpoint, network, optimizer, number)
            seconds = time.perf_counter() - start
            print(f"{name} {number}/{last}  loss {value:.4f}  {seconds:.1f} s", file=sys.stderr, flush=True)
        if interrupt.asked:
            raise KeyboardInterrupt
    return network.eval()


# --- checkpoints ----------------------------------------------------------------------------------------------------


def save_checkpoint(path: Path, network: nn.Module, optimizer: torch.optim.Adam, iteration: int) -> None:
    """Weights, Adam's moments and the number of iterations done, in one file, whole or not at all."""
    from safetensors.torch import save

    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"{moment}.{index}": state[moment] for moment in ("exp_avg", "exp_avg_sq")}
    write_atomic(path, save(tensors, {"iteration": str(iteration)}))


def load_checkpoint(path: Path, network: nn.Module, optimizer: torch.optim.Adam) -> int:
    """Put a checkpoint into network and optimizer; returns the number of iterations done."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        iteration = int(file.metadata()["iteration"])
    network.load_state_dict(
        {key.removeprefix("network."): value for key, value in tensors.items() if key.startswith("network.")}
    )
    count = sum(key.startswith("exp_avg.") for key in tensors)
    state = {
        index: {"step": torch.tensor(float(iteration))}
        | {moment: tensors[f"{moment}.{index}"] for moment in ("exp_avg", "exp_avg_sq")}
        for index in range(count)
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return iteration
