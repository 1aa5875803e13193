"""The synthetic experiments as a stage: what small networks learn on a small budget, the run directory, resuming."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model_training import synthetic_measures, synthetic_preferences
from model_training.preference_config import TrainPreferenceConfig
from model_training.synthetic_figures import draw
from model_training.synthetic_measures import measure, network_loss
from model_training.synthetic_networks import NAMES, Name, make_network
from model_training.synthetic_preferences import (
    iteration_loss,
    iterations,
    load_checkpoint,
    make_optimizer,
    save_checkpoint,
    train_synthetic,
)
from model_training.synthetic_worlds import best_bradley_terry
from utils.errors import UserError, WorkError
from utils.runs import read_manifest, read_metrics

SMALL = TrainPreferenceConfig(env="1d", batch_size=1024, lr=0.005, num_iterations=400, seed=0)
TINY = TrainPreferenceConfig(env="1d", batch_size=8, lr=0.001, num_iterations=6, seed=0, threads=1, logging_steps=2)


def train(config: TrainPreferenceConfig, name: Name, width: int = 128) -> nn.Sequential:
    assert config.env is not None
    network = make_network(config.env, name, config.seed, width)
    optimizer = make_optimizer(network, config.lr)
    loop = iterations(
        network,
        optimizer,
        lambda number: iteration_loss(config, name, network, number),
        lr=config.lr,
        first=0,
        last=config.num_iterations,
    )
    for _ in loop:
        pass
    return network


# --- what is learned ------------------------------------------------------------------------------------------------


def test_1d_base_learns_borda_count_and_dpl_finds_the_hidden_context() -> None:
    budget = {"base": 1200, "mean_and_variance": 300, "categorical": 400, "classifier": 200}
    result = measure(SMALL, {name: train(replace(SMALL, num_iterations=budget[name]), name) for name in NAMES})
    numbers, learned, states = result["numbers"], result["learned"], result["states"]
    assert numbers["base"]["spearman_borda_count"] >= 0.98
    assert numbers["base"]["spearman_expected_utility"] <= 0.8
    assert numbers["base"]["distance_borda_count"] < 0.01
    for name in ("mean_and_variance", "categorical"):
        assert numbers[name]["auroc_spread"] == 1.0
        assert numbers[name]["distance_rank_spread"] < 0.05
        assert numbers[name]["r2_rank"] == pytest.approx(numbers["truth"]["r2_rank"], abs=0.03)
        assert numbers[name]["distance_borda_count"] < 0.03
    atoms = learned["categorical"]
    for i, (a,) in enumerate(states):
        if a > 0.82:
            assert 0.4 < atoms["low_mass"][i] < 0.6 and 0.35 < atoms["high_mass"][i] < 0.6
        elif 0.1 < a < 0.7:
            assert atoms["low_mass"][i] < 0.2 and atoms["high_mass"][i] < 0.2
    assert numbers["categorical"]["low_mass"] + numbers["categorical"]["high_mass"] > 0.95
    for name in NAMES:
        assert result["least_loss"][name] < result["population_loss"][name] < result["least_loss"][name] + 0.15
    assert len(states) == 100 and len(atoms["distribution"][0]) == 20
    lines = synthetic_measures.report(result).splitlines()
    assert next(line for line in lines if line.startswith("Borda count")).split()[2:5] == ["0.155", "0.305", "0.505"]
    assert next(line for line in lines if line.startswith("Spearman")).split()[-1] == "1.0000"


def test_2d_base_learns_the_integrated_borda_count_and_dpl_the_spread() -> None:
    config = replace(SMALL, env="2d", num_iterations=200)
    result = measure(config, {name: train(config, name) for name in NAMES})
    numbers = result["numbers"]
    assert numbers["base"]["spearman_borda_count"] >= 0.98
    assert numbers["base"]["spearman_expected_utility"] <= 0.8
    assert numbers["base"]["distance_borda_count"] < 0.01
    assert numbers["classifier"]["distance_borda_count"] < 0.03
    for name in ("mean_and_variance", "categorical"):
        assert numbers[name]["spearman_spread"] > 0.9
        assert numbers[name]["distance_rank_spread"] < 0.05
    assert numbers["categorical"]["distance_low_mass"] < 0.1
    for name in NAMES:
        assert numbers["truth"]["r2"] == pytest.approx(1 / 6)
        assert result["population_loss"][name] < result["least_loss"][name] + 0.06


def test_all_pairs_are_ahead_of_the_published_sampling_after_the_same_iterations() -> None:
    """Even with fewer states an iteration, and with one context for both sides, too."""
    config = replace(SMALL, num_iterations=150, batch_size=256)
    for shared in (False, True):
        losses = {}
        for estimator in ("all_pairs", "pairs"):
            own = replace(config, estimator=estimator, shared_context=shared)
            losses[estimator] = network_loss("1d", "base", train(own, "base", width=64), shared=shared)
        assert best_bradley_terry("1d", 100, shared)[2] - 1e-4 < losses["all_pairs"] < losses["pairs"] < 0.55


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("base", {"estimator": "pairs"}),
        ("base", {"seed": 1}),
        ("base", {"batch_size": 64}),
        ("base", {"shared_context": True}),
        ("base", {"env": "2d"}),
        ("base", {"estimator": "pairs", "shared_context": True}),
        ("classifier", {"shared_context": True}),
        ("classifier", {"batch_size": 64}),
        ("mean_and_variance", {"likelihood": "logistic"}),
    ],
)
def test_each_option_changes_the_comparisons(name: Name, option: dict[str, Any]) -> None:
    base = replace(TINY, batch_size=512, estimator=option.get("estimator", "all_pairs"))
    if option == {"estimator": "pairs"}:
        base = replace(base, estimator="all_pairs")
    changed = replace(base, **option)
    networks = [make_network(config.env or "1d", name, 0, 16) for config in (base, changed)]
    before, after = (
        iteration_loss(config, name, network, 0) for config, network in zip((base, changed), networks, strict=True)
    )
    assert before.item() != after.item()
    assert before.item() == iteration_loss(base, name, networks[0], 0).item()
    assert before.item() != iteration_loss(base, name, networks[0], 1).item()


def test_the_learning_rate_falls_exponentially() -> None:
    def rates(lr: float) -> list[float]:
        network = make_network("1d", "base", 0, 4)
        optimizer = make_optimizer(network, lr)
        loop = iterations(network, optimizer, lambda _: network(torch.ones(1, 1)).sum(), lr=lr, first=0, last=4)
        return [optimizer.param_groups[0]["lr"] for _ in loop]

    assert rates(0.1) == pytest.approx([1e-1, 1e-2, 1e-3, 1e-4])
    assert rates(1e-6) == pytest.approx([1e-6] * 4)


# --- the run --------------------------------------------------------------------------------------------------------


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids that take no time."""
    for name in ("STATES", "OPPONENTS", "BEST_CELLS", "LOSS_CELLS", "CLASSIFIER_CELLS"):
        monkeypatch.setattr(synthetic_measures, name, {"1d": 100 if name == "STATES" else 10, "2d": 24})


def run_of(tmp_path: Path, **options: Any) -> Path:
    config = replace(TINY, out_dir=str(tmp_path), **options)
    train_synthetic(config)
    return tmp_path / "1d" / f"8_{config.lr}_6"


def same_result(first: Path, second: Path) -> bool:
    results = [json.loads((run / "evaluation" / "synthetic.json").read_text("utf-8")) for run in (first, second)]
    for result in results:
        del result["config"]
    metrics = [[(r["step"], r["split"], r["loss"]) for r in read_metrics(run)] for run in (first, second)]
    weights = [
        [(run / "checkpoints" / f"{name}.safetensors").read_bytes() for name in NAMES] for run in (first, second)
    ]
    return results[0] == results[1] and metrics[0] == metrics[1] and weights[0] == weights[1]


@pytest.mark.usefixtures("coarse")
def test_a_run_is_written_refused_and_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path)
    assert read_manifest(run)["status"] == "done" and read_manifest(run)["task"] == "preference"
    rows = read_metrics(run)
    assert [(row["split"], row["step"]) for row in rows] == [
        (name, 6 * index + step) for index, name in enumerate(NAMES) for step in (2, 4, 6)
    ]
    assert "agreement with the truth" in capsys.readouterr().out
    before = (run / "manifest.json").read_bytes()
    with pytest.raises(UserError, match="not empty.*--out_dir$"):
        run_of(tmp_path)
    assert (run / "manifest.json").read_bytes() == before
    run_of(tmp_path, overwrite=True, seed=1)
    assert read_manifest(run)["seed"] == 1 and len(read_metrics(run)) == 12
    assert "left in place" not in capsys.readouterr().err


@pytest.mark.usefixtures("coarse")
def test_the_figure_is_drawn_from_files_alone(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    picture = (run / "figure.png").read_bytes()
    (run / "figure.png").unlink()
    code = f"import sys; from pathlib import Path; from model_training.synthetic_figures import draw; \
draw(Path({str(run)!r})); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (run / "figure.png").read_bytes() == picture and picture.startswith(b"\x89PNG")
    (run / "evaluation" / "synthetic.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"synthetic\.json"):
        draw(run)
    (run / "evaluation" / "synthetic.json").unlink()
    with pytest.raises(UserError, match="--resume"):
        draw(run)


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("estimator", ["all_pairs", "pairs"])
def test_an_interrupted_and_resumed_run_ends_like_the_undisturbed_one(
    estimator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in the middle of the third network; then a kill, without a word, in the fourth."""
    undisturbed = run_of(tmp_path / "a", estimator=estimator)
    calls = []

    def disturbed(config: TrainPreferenceConfig, name: Name, network: nn.Module, iteration: int) -> torch.Tensor:
        calls.append(name)
        if len(calls) == 6 + 6 + 3:
            signal.raise_signal(signal.SIGINT)
        if len(calls) == 6 + 6 + 6 + 4:
            raise SystemExit
        return iteration_loss(config, name, network, iteration)

    monkeypatch.setattr(synthetic_preferences, "iteration_loss", disturbed)
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "b", estimator=estimator)
    run = tmp_path / "b" / "1d" / "8_0.001_6"
    assert read_manifest(run)["status"] == "interrupted"
    assert "--resume" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_of(tmp_path / "b", estimator=estimator, resume=True)
    run_of(tmp_path / "b", estimator=estimator, resume=True)
    assert calls == ["base"] * 6 + ["mean_and_variance"] * 6 + ["categorical"] * 6 + ["classifier"] * (4 + 6)
    assert read_manifest(run)["status"] == "done" and read_manifest(run)["resumes"] == 2
    assert same_result(undisturbed, run)
    run_of(tmp_path / "b", estimator=estimator, resume=True)
    assert "Nothing to do" in capsys.readouterr().out and len(calls) == 28
    with pytest.raises(UserError, match="--seed was 0 and is 1"):
        run_of(tmp_path / "b", estimator=estimator, resume=True, seed=1)


def test_batch_norm_takes_two(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--batch_size 1"):
        train_synthetic(replace(TINY, out_dir=str(tmp_path), batch_size=1, estimator="pairs"))
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="lower --lr"):
        run_of(tmp_path, lr=1e18)
    assert read_manifest(tmp_path / "1d" / "8_1e+18_6")["status"] == "failed"


def test_a_checkpoint_holds_weights_moments_and_count(tmp_path: Path) -> None:
    network = make_network("1d", "categorical", 0, 8)
    optimizer = make_optimizer(network, 0.01)
    loss_of = lambda number: iteration_loss(TINY, "categorical", network, number)  # noqa: E731
    list(iterations(network, optimizer, loss_of, lr=0.01, first=0, last=3))
    save_checkpoint(tmp_path / "x.safetensors", network, optimizer, 3)
    other = make_network("1d", "categorical", 1, 8)
    again = make_optimizer(other, 0.01)
    assert load_checkpoint(tmp_path / "x.safetensors", other, again) == 3
    for key, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)
    states = [o.state_dict()["state"] for o in (optimizer, again)]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        assert state.keys() == states[1][index].keys()
        assert all(torch.equal(value, states[1][index][key]) for key, value in state.items())
