"""How much sooner all pairs of few states reach the population loss of the published sampling, in 1d or 2d.

    OMP_NUM_THREADS=1 python -m benchmarks.synthetic_preferences --seeds 0 1 2 [--env 1d] [--likelihood logistic]

For each network and seed, `pairs` and `all_pairs` start from the same weights and take turns of 50 iterations, so that
both meet the same machine; the clock, seconds of CPU time on one thread, stands still while the population loss is
computed by quadrature. The run is the published one: batch 2048, learning rate 0.001, 1000 iterations, the published
code's likelihood. The goal is the loss of `pairs` at its end; a second one is 1 % higher, since the last iterations are
luck. The time of each estimator is that of the first turn at which its mean loss over the seeds is there. Where the
categorical network ends depends on how many of its atoms survive the first iterations: take several seeds.
A seed takes about 12 minutes on a quiet core.
Turns are kept in --work_dir; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from model_training.preference_config import TrainPreferenceConfig
from model_training.synthetic_measures import BEST_CELLS, least_losses, network_loss
from model_training.synthetic_networks import NAMES, Name, make_network
from model_training.synthetic_preferences import iteration_loss, iterations, make_optimizer
from model_training.synthetic_worlds import best_bradley_terry

TURN = 50
ESTIMATORS = ("pairs", "all_pairs")
Turn = dict[str, float]
Curves = dict[str, list[Turn]]


def main() -> None:
    """Run what has not run yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=["1d", "2d"], default="1d")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--batch_size", type=int, default=2048)
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--num_iterations", type=int, default=1000)
    parser.add_argument("--likelihood", choices=["probit", "logistic"], default="logistic")
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/synthetic_preferences"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = TrainPreferenceConfig(
        **{key: value for key, value in vars(arguments).items() if key not in ("seeds", "work_dir")}
    )
    turns = {
        (name, seed): kept_turns(arguments.work_dir, replace(config, seed=seed), name)
        for seed in arguments.seeds
        for name in NAMES
    }
    print_table(turns, config, arguments.seeds)


def kept_turns(work_dir: Path, config: TrainPreferenceConfig, name: Name) -> Curves:
    """The turns of both estimators, from the file that holds them or run now."""
    options = (config.env, config.batch_size, config.lr, config.num_iterations, config.likelihood, config.seed)
    path = work_dir / f"{'_'.join(map(str, options))}_{name}.json"
    if not path.is_file():
        turns = take_turns(config, name)
        work_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(turns), encoding="utf-8")
    kept: Curves = json.loads(path.read_text("utf-8"))
    return kept


def take_turns(config: TrainPreferenceConfig, name: Name) -> Curves:
    """Train one network by both estimators in turn: after each turn its iteration, CPU seconds and population loss."""
    networks: dict[str, Any] = {}
    loops: dict[str, Any] = {}
    for estimator in ESTIMATORS:
        own = replace(config, estimator=estimator)
        network = networks[estimator] = make_network(config.env, name, config.seed)
        loops[estimator] = iterations(
            network,
            make_optimizer(network, config.lr),
            lambda number, own=own, network=network: iteration_loss(own, name, network, number),
            lr=config.lr,
            first=0,
            last=config.num_iterations,
        )
    turns: Curves = {estimator: [] for estimator in ESTIMATORS}
    seconds = dict.fromkeys(ESTIMATORS, 0.0)
    for done in range(TURN, config.num_iterations + 1, TURN):
        for estimator in ESTIMATORS:
            start = time.process_time()
            for _ in islice(loops[estimator], TURN):
                pass
            seconds[estimator] += time.process_time() - start
            tie = 1.0 if (estimator, name) == ("pairs", "classifier") else 0.5
            value = network_loss(config.env, name, networks[estimator], config.likelihood, tie=tie)
            turns[estimator].append({"iteration": done, "seconds": seconds[estimator], "loss": value})
        shown = "  ".join(f"{e} {turns[e][-1]['loss']:.4f} {turns[e][-1]['seconds']:.0f} s" for e in ESTIMATORS)
        print(f"{config.env} seed {config.seed} {name} {done}: {shown}", flush=True)
    return turns


def print_table(turns: dict[tuple[Name, int], Curves], config: TrainPreferenceConfig, seeds: list[int]) -> None:
    """What each network reaches, seed by seed; then the time of the means over the seeds to two goals."""
    best = best_bradley_terry(config.env, BEST_CELLS[config.env])[2]
    least = {e: least_losses(config.env, best, tie=1.0 if e == "pairs" else 0.5) for e in ESTIMATORS}
    print(f"\n{config.env}, batch {config.batch_size}, lr {config.lr}, {config.num_iterations} iterations, one thread")
    print(f"\n{'':28}{'ms an iteration':^22}{'loss at the end':^22}{'above the least':^22}")
    print(f"{'network':20}{'seed':>6}  " + f"{'pairs':>11}{'all_pairs':>11}" * 3)
    for name in NAMES:
        for seed in seeds:
            ends = {e: turns[name, seed][e][-1] for e in ESTIMATORS}
            cells = [f"{1000 * end['seconds'] / end['iteration']:.1f}" for end in ends.values()]
            cells += [f"{end['loss']:.4f}" for end in ends.values()]
            cells += [f"{ends[e]['loss'] - least[e][name]:.4f}" for e in ESTIMATORS]
            print(f"{name:20}{seed:>6}  " + "".join(f"{cell:>11}" for cell in cells))
    for title, slack in (("the loss of pairs at its end", 1.0), ("within 1 % of it", 1.01)):
        print(f"\n{'CPU seconds to ' + title:46}{'goal':>9}{'pairs':>11}{'all_pairs':>11}{'sooner':>9}")
        sums: list[float | None] = [0.0, 0.0]
        for name in NAMES:
            curves = [mean_curve([turns[name, seed][e] for seed in seeds], least[e][name]) for e in ESTIMATORS]
            goal = (curves[0][-1]["loss"] + least["all_pairs"][name]) * slack - least["all_pairs"][name]
            times = [next((turn["seconds"] for turn in curve if turn["loss"] <= goal), None) for curve in curves]
            sums = [None if t is None or s is None else s + t for s, t in zip(sums, times, strict=True)]
            print(f"{name:46}{goal + least['all_pairs'][name]:>9.4f}{time_cells(times)}")
        print(f"{'all four together':55}{time_cells(sums)}")


def mean_curve(seeds: list[list[Turn]], least: float) -> list[Turn]:
    """The turns' means over the seeds; the loss is that above the least that such a network can have, since the
    classifiers of the two estimators learn different rules for ties."""
    means = [{key: fmean(turn[key] for turn in turns) for key in turns[0]} for turns in zip(*seeds, strict=True)]
    return [turn | {"loss": turn["loss"] - least} for turn in means]


def time_cells(times: list[float | None]) -> str:
    """Both times and their ratio; `-` where the goal is not reached."""
    shown = "".join(f"{'-' if seconds is None else f'{seconds:.1f}':>11}" for seconds in times)
    ratio = "-" if times[0] is None or times[1] is None else f"{times[0] / times[1]:.1f} x"
    return shown + f"{ratio:>9}"


if __name__ == "__main__":
    main()
