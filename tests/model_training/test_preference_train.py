"""Training a reward model on tiny random models: it learns, resumes exactly, stops early, refuses what cannot work."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import random
import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model_training import logs, pair_loop, pair_trainer
from model_training.logs import DEAD_LOGS, reward_alarms
from model_training.pair_trainer import measure, rate_at
from model_training.preference import hold_out, train
from model_training.preference_config import TrainPreferenceConfig
from model_training.preference_losses import loss
from model_training.reward_model import load_reward_model, score_pairs
from tests.model_training.conftest import BuildModel
from tests.model_training.tiny_models import FAMILIES
from utils.errors import UserError, WorkError
from utils.runs import read_manifest, read_metrics

TIMES = ("time", "resumes", "pairs_per_s")
Record = dict[str, Any]


def pair(number: int, split: str = "train", prompt: int | None = None) -> Record:
    """What sets chosen and rejected apart is one word, the same in all pairs."""
    asked = number if prompt is None else prompt
    question = f"What is number {asked}?" + " Really?" * (asked % 4)
    answers = {side: [{"role": "assistant", "content": f"It is {word}, {number}."}] for side, word in WORDS.items()}
    return {"prompt": [{"role": "user", "content": question}], **answers, "split": split, "id": f"pair-{number}"}


WORDS = {"chosen": "large and brown", "rejected": "silly"}


def write_pairs(path: Path, records: list[Record]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage() -> Iterator[None]:
    """The trainer collects garbage whenever it starts; walking all that is imported takes longer than the training."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """24 pairs to train on, 4 held out, 4 of split `test`, which would fail the run if they were met."""
    splits = ["train"] * 24 + ["validation"] * 4 + ["test"] * 4
    write_pairs(tmp_path / "pairs.jsonl", [pair(number, split) for number, split in enumerate(splits)])
    return tmp_path


def small(root: Path, model: Path, output: str = "run", **changes: Any) -> TrainPreferenceConfig:
    options: dict[str, Any] = {
        "model_name": str(model),
        "data_path": [str(root / "pairs.jsonl")],
        "output_dir": str(root / output),
        "threads": 1,
        "lora_rank": 4,
        "max_length": 128,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 4,
        "eval_steps": 2,
        "logging_steps": 1,
    }
    return TrainPreferenceConfig(**(options | changes))


def measurements(run: str | Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in read_metrics(Path(run))]


def weights_of(run: str | Path, folder: str = "reward_model") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = load_file(Path(run) / folder / "adapter_model.safetensors")
    return weights


def digest(run: str | Path, folder: str = "reward_model") -> str:
    return hashlib.sha256((Path(run) / folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def distance(one: str | Path, other: str | Path) -> float:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


# --- what it learns and writes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains(
    family: str, root: Path, tiny_model: BuildModel, capfd: pytest.CaptureFixture[str]
) -> None:
    kind = {"llama": "base", "gemma": "categorical"}.get(family, "mean_and_variance")
    config = small(root, tiny_model(family), reward_model_type=kind, num_atoms=5)
    capfd.readouterr()
    train(config)
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err and "warn" not in printed.err.lower() and "it/s" not in printed.err
    assert "Pairs: 24 to train on, 4 held out." in printed.err and "eval 4/4" in printed.err

    rows = read_metrics(root / "run")
    found = sorted((row["split"], row["step"]) for row in rows)
    assert found == [("eval", 2), ("eval", 4), ("train", 1), ("train", 2), ("train", 3), ("train", 4)]
    both = {"loss", "accuracy", "mean_margin"} | ({"mean_spread"} if kind != "base" else set())
    for row in rows:
        extra = {"pairs"} if row["split"] == "eval" else {"learning_rate", "grad_norm", "pairs_per_s"}
        assert row.keys() == both | extra | {"step", "split", "time", "resumes"}
    manifest = read_manifest(root / "run")
    assert manifest["status"] == "done" and len(manifest["dataset"]["sha256"]) == 64

    reward_model = load_reward_model(root / "run")
    assert (reward_model.kind, reward_model.form) == (kind, "conversation")
    assert score_pairs(reward_model, [pair(0)])[0].shape == (1, {"base": 1, "categorical": 5}.get(kind, 2))
    moved = [weight.abs().max().item() for name, weight in weights_of(root / "run").items() if "lora_B" in name]
    assert min(moved) > 0
    written = "".join(path.read_text(encoding="utf-8") for path in (root / "run" / "reward_model").glob("*.md"))
    assert "dataset sha256" in written and str(root) not in written and "num_iterations" not in written


@pytest.mark.parametrize("kind", ["base", "mean_and_variance", "categorical"])
def test_it_learns_what_sets_the_answers_apart(kind: str, root: Path, tiny_model: BuildModel) -> None:
    train(
        small(
            root,
            tiny_model("llama"),
            reward_model_type=kind,
            max_steps=25,
            eval_steps=25,
            logging_steps=25,
            variance_penalty=0.01,
        )
    )
    (held_out,) = [row for row in read_metrics(root / "run") if row["split"] == "eval"]
    assert held_out["accuracy"] == 1 and held_out["loss"] < 0.5
    reward_model = load_reward_model(root / "run")
    chosen, rejected = score_pairs(reward_model, [pair(100 + number) for number in range(4)])
    assert measure(reward_model.kind, chosen, rejected)["accuracy"] == 1
    again = loss(reward_model.kind, *score_pairs(reward_model, [pair(number) for number in range(24, 28)])).mean()
    assert held_out["loss"] == pytest.approx(again.item(), rel=1e-4), "without entropy bonus and variance penalty"


def test_texts_train_as_conversations_do(root: Path, tiny_model: BuildModel) -> None:
    texts = [
        {side: f"\n\nHuman: What is {number}?\n\nAssistant: It is {word}." for side, word in WORDS.items()}
        | {"split": "train"}
        for number in range(6)
    ]
    write_pairs(root / "pairs.jsonl", texts)
    train(small(root, tiny_model("gpt2"), max_steps=1))
    assert load_reward_model(root / "run").form == "text"


def test_the_learning_rate_falls_as_published() -> None:
    assert [round(rate_at("cosine", share), 4) for share in (0, 0.25, 0.5, 0.75, 1)] == [1, 0.8682, 0.55, 0.2318, 0.1]
    assert [rate_at("step", share) for share in (0, 0.3, 0.34, 0.66, 0.67, 1)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_the_schedule_spans_the_run(root: Path, tiny_model: BuildModel) -> None:
    for schedule in ("cosine", "step"):
        train(small(root, tiny_model("llama"), schedule, lr_scheduler_type=schedule))
        rates = [row["learning_rate"] / 1e-2 for row in read_metrics(root / schedule) if row["split"] == "train"]
        assert rates == pytest.approx([rate_at(schedule, share) for share in (0, 0.25, 0.5, 0.75)])


def test_a_batch_of_outputs_is_measured() -> None:
    chosen, rejected = torch.tensor([[2.0], [1.0], [0.0]]), torch.tensor([[1.0], [1.0], [3.0]])
    assert measure("base", chosen, rejected) == pytest.approx({"accuracy": 0.5, "mean_margin": 4 / 3})
    spread = math.log1p(math.e)
    normal = measure("mean_and_variance", torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 1.0]]))
    assert normal == pytest.approx({"accuracy": 1.0, "mean_margin": 1.0, "mean_spread": spread})


# --- options --------------------------------------------------------------------------------------------------------


def test_equivalent_options_give_equal_trajectories(root: Path, tiny_model: BuildModel) -> None:
    """One batch of all pairs or its pieces, prompt shared or not, activations kept or computed again."""
    write_pairs(root / "pairs.jsonl", [pair(number) for number in range(8)])
    same: dict[str, Any] = {"lora_dropout": 0.0, "eval_dataset_size": 0, "learning_rate": 1e-3, "max_steps": 3}
    same |= {"per_device_train_batch_size": 8}
    model = tiny_model("llama")
    train(small(root, model, "whole", **same))
    pieces = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    for name, options in {
        "pieces": pieces,
        "apart": {"shared_prompt": False},
        "checkpointed": {"gradient_checkpointing": True},
    }.items():
        train(small(root, model, name, **(same | options)))
        assert distance(root / "whole", root / name) < 2e-5, name
    assert weights_of(root / "whole")["base_model.model.score.weight"].abs().max() > 1e-3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seed": 1},
        {"learning_rate": 2e-2},
        {"likelihood": "logistic"},
        {"variance_penalty": 1.0},
        {"reward_model_type": "categorical"},
        {"reward_model_type": "categorical", "entropy_coeff": 1.0},
        {"reward_model_type": "categorical", "entropy_bonus": "marginal"},
        {"weight_decay": 0.5},
        {"max_grad_norm": 1e-3},
        {"lora_alpha": 4},
        {"lora_dropout": 0.5},
        {"train_dataset_size": 3},
        {"bf16": True},
    ],
    ids=str,
)
def test_each_option_changes_the_run(
    changes: dict[str, Any], root: Path, tiny_model: BuildModel, digests: dict[str, str]
) -> None:
    """Each run differs from all the others, that of the defaults among them. It takes three steps: after one, neither
    weight decay nor the size of a gradient would tell, since Adam's first step is relative."""
    train(small(root, tiny_model("llama"), max_steps=3, **changes))
    found = digest(root / "run")
    assert found not in digests, digests[found]
    digests[found] = str(changes)
    assert all(math.isfinite(row["loss"]) for row in read_metrics(root / "run"))


@pytest.fixture(scope="module")
def digests() -> dict[str, str]:
    return {}


def test_epochs_count_where_steps_do_not(root: Path, tiny_model: BuildModel) -> None:
    train(small(root, tiny_model("llama"), max_steps=0, num_train_epochs=0.75, gradient_accumulation_steps=3))
    assert max(row["step"] for row in read_metrics(root / "run")) == 2  # 0.75 x 24 pairs of 12 a step, rounded up


# --- which pairs ----------------------------------------------------------------------------------------------------


def test_whole_prompts_are_held_out_and_at_most_so_many_pairs() -> None:
    records = [pair(number, prompt=number // 3) for number in range(60)]
    kept, held_out = hold_out(records, 10, random.Random(0))
    assert len(held_out) == 9 and len(kept) == 51
    assert not {str(record["prompt"]) for record in kept} & {str(record["prompt"]) for record in held_out}
    assert hold_out(records, 10, random.Random(0))[1] == held_out != hold_out(records, 10, random.Random(1))[1]
    assert hold_out(records, 0, random.Random(0)) == (records, [])


def test_without_a_validation_split_a_tenth_of_train_is_held_out(
    root: Path, tiny_model: BuildModel, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(root / "pairs.jsonl", [pair(number) for number in range(30)])
    train(small(root, tiny_model("llama"), max_steps=1))
    train(small(root, tiny_model("llama"), "none", max_steps=1, eval_dataset_size=0))
    printed = capsys.readouterr().err
    assert "Pairs: 27 to train on, 3 held out." in printed and "Pairs: 30 to train on, 0 held out." in printed
    assert [row["pairs"] for row in read_metrics(root / "run") if row["split"] == "eval"] == [3]


def test_longer_pairs_are_left_out_and_counted(
    root: Path, tiny_model: BuildModel, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [pair(number) for number in range(12)]
    records[3]["rejected"][0]["content"] = "No. " * 100
    write_pairs(root / "pairs.jsonl", records)
    train(small(root, tiny_model("llama"), max_steps=1))
    assert "left out: 1 longer than --max_length 128 tokens" in capsys.readouterr().err


# --- resuming -------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends the run as a kill would: nothing of ours handles it by saving."""


def run_and_die(
    config: TrainPreferenceConfig, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, when: Any
) -> None:
    """Train until the function of that name is called with arguments for which `when` holds."""
    original = getattr(module, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, name, dying)
        train(config)


def test_a_resumed_run_equals_the_undisturbed_one(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any checkpoint, on and off log events, after an evaluation whose checkpoint is not yet written,
    between the checkpoint and the removal of an old one, and while the reward model is saved; then again at its end."""
    options: dict[str, Any] = {"max_steps": 9, "logging_steps": 3, "gradient_accumulation_steps": 2}
    options |= {"per_device_train_batch_size": 3}
    whole = small(root, tiny_model("llama"), "whole", **options)
    train(whole)
    again = small(root, tiny_model("llama"), "again", **options, resume=True)

    def at_step(step: int) -> Any:
        return lambda log, args, state, *rest: state.global_step == step

    for step in (1, 3, 5):
        run_and_die(again, monkeypatch, logs.RunLog, "on_step_end", at_step(step))
    run_and_die(again, monkeypatch, pair_loop, "save_checkpoint", lambda trainer, *_: trainer.state.global_step == 6)
    run_and_die(again, monkeypatch, logs.RunLog, "on_step_end", at_step(9))
    publish = "model_training.checkpoints"
    run_and_die(again, monkeypatch, sys.modules[publish], "publish_directory", lambda _, to: to.name == "reward_model")
    assert not (root / "again" / "reward_model").exists()
    train(again)
    assert measurements(root / "again") == measurements(root / "whole")
    assert digest(root / "again") == digest(root / "whole")
    assert read_manifest(root / "again")["resumes"] == 6
    rows = read_metrics(root / "again")
    assert [row["step"] for row in rows if row["split"] == "eval"] == [2, 4, 6, 8, 9]
    saved = digest(root / "again")
    train(again)
    assert digest(root / "again") == saved and read_manifest(root / "again")["status"] == "done"


def evaluations(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Held-out losses as given, one an evaluation of every two steps, whatever the model says."""
    original = pair_loop.PairTrainer.evaluate

    def evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        wanted = losses[self.state.global_step // 2 - 1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pair_trainer.preference_losses, "loss", lambda *rest: torch.full((1,), wanted))
            return original(self, *args, **kwargs)

    monkeypatch.setattr(pair_loop.PairTrainer, "evaluate", evaluate)


def test_it_stops_early_with_the_best_weights_also_when_killed(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluations(monkeypatch, [0.6, 0.5, 0.55, 0.52, 0.4])
    options: dict[str, Any] = {"max_steps": 10, "early_stopping_patience": 2}
    train(small(root, tiny_model("llama"), "whole", **options))
    assert "Best weights: step 4, held-out loss 0.5000." in capsys.readouterr().err
    assert max(row["step"] for row in read_metrics(root / "whole")) == 8
    names = sorted(path.name for path in (root / "whole" / "checkpoints").iterdir())
    assert names == ["checkpoint-4", "checkpoint-6", "checkpoint-8"], "the best and the newest two are kept"
    assert digest(root / "whole") == digest(root / "whole", "checkpoints/checkpoint-4")
    assert digest(root / "whole") != digest(root / "whole", "checkpoints/checkpoint-8")

    again = small(root, tiny_model("llama"), "again", **options, resume=True)
    run_and_die(again, monkeypatch, logs.RunLog, "on_step_end", lambda log, args, state, *rest: state.global_step == 7)
    publish = "model_training.checkpoints"
    run_and_die(again, monkeypatch, sys.modules[publish], "publish_directory", lambda _, to: to.name == "reward_model")
    train(again)
    assert max(row["step"] for row in read_metrics(root / "again")) == 8, "nothing is trained after the stop"
    assert digest(root / "again") == digest(root / "whole")
    assert measurements(root / "again") == measurements(root / "whole")


def test_patience_0_never_stops_and_the_best_may_be_the_last(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations(monkeypatch, [0.8, 0.8, 0.8, 0.7])
    train(small(root, tiny_model("llama"), max_steps=8, early_stopping_patience=0))
    rows = read_metrics(root / "run")
    assert [row["step"] for row in rows if row["split"] == "eval"] == [2, 4, 6, 8]
    assert digest(root / "run") == digest(root / "run", "checkpoints/checkpoint-8")
    (alarm,) = [row for row in rows if "alarm" in row]
    assert alarm["step"] == 6 and alarm["alarm"].startswith("worse than a coin")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_and_says_how_to_go_on(
    number: int,
    root: Path,
    tiny_model: BuildModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(small(root, tiny_model("llama"), "whole"))
    again = small(root, tiny_model("llama"), "again")
    original = logs.RunLog.on_step_end

    def interrupted(self: logs.RunLog, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            os.kill(os.getpid(), number)
        original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(logs.RunLog, "on_step_end", interrupted)
        patch.setattr("sys.argv", ["main.py", "--task", "preference", "--mode", "train"])
        train(again)
    assert "python main.py --task preference --mode train --resume" in capsys.readouterr().err
    assert read_manifest(root / "again")["status"] == "interrupted"
    assert (root / "again" / "checkpoints" / "checkpoint-3").is_dir()
    with pytest.raises(UserError, match=r"has not finished \(interrupted\)"):
        load_reward_model(root / "again")
    again.resume = True
    train(again)
    assert measurements(root / "again") == measurements(root / "whole")
    assert digest(root / "again") == digest(root / "whole")


def test_other_pairs_or_options_cannot_resume_and_a_full_directory_is_refused(
    root: Path, tiny_model: BuildModel
) -> None:
    train(small(root, tiny_model("llama"), max_steps=1))
    before = digest(root / "run")
    with pytest.raises(UserError, match="--resume"):
        train(small(root, tiny_model("llama"), max_steps=1))
    with pytest.raises(UserError, match="lora_rank"):
        train(small(root, tiny_model("llama"), max_steps=1, lora_rank=2, resume=True))
    (root / "pairs.jsonl").rename(root / "moved.jsonl")
    moved = [str(root / "moved.jsonl")]
    train(small(root, tiny_model("llama"), max_steps=1, data_path=moved, resume=True))
    write_pairs(root / "pairs.jsonl", [pair(number) for number in range(20)])
    with pytest.raises(UserError, match="the dataset changed"):
        train(small(root, tiny_model("llama"), max_steps=1, resume=True))
    assert digest(root / "run") == before
    train(small(root, tiny_model("llama"), max_steps=1, overwrite=True))
    assert digest(root / "run") != before


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_no_checkpoint_of_it(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = pair_trainer.pair_outputs

    def broken(model: Any, batch: Any) -> Any:
        chosen, rejected = original(model, batch)
        broken.calls += 1  # type: ignore[attr-defined]
        return chosen * (float("nan") if broken.calls == 2 else 1), rejected  # type: ignore[attr-defined]

    broken.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(pair_trainer, "pair_outputs", broken)
    with pytest.raises(WorkError, match="not finite: loss at step 2"):
        train(small(root, tiny_model("llama")))
    assert any("not finite" in row.get("alarm", "") for row in read_metrics(root / "run"))
    assert read_manifest(root / "run")["status"] == "failed"
    assert not (root / "run" / "checkpoints" / "checkpoint-2").exists()


def test_alarms_of_a_reward_model() -> None:
    row = {"mean_margin": 1.0, "mean_spread": 0.5}
    assert reward_alarms([row] * DEAD_LOGS) == {}
    dead = [row | {"mean_margin": 0.0}] * DEAD_LOGS
    assert set(reward_alarms(dead)) == {"dead rewards"}
    assert reward_alarms(dead[1:]) == reward_alarms([*dead, row]) == {}
    gone = [row | {"mean_spread": 1e-4}] * DEAD_LOGS
    assert set(reward_alarms(gone)) == {"spreads gone"}
    assert reward_alarms([*gone, row]) == reward_alarms([{"mean_margin": 1.0}] * DEAD_LOGS) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 2}, "none of 24 pairs is short enough"),
        ({"max_length": 512}, "--max_length 512: model .* has 256 positions"),
        ({"lora_rank": 0}, "--lora_rank 0"),
        ({"overwrite": True, "resume": True}, "exclude each other"),
        ({"report_to": "trackio"}, "pip install trackio"),
        ({"model_name": "./no/such/model"}, "no directory"),
        ({"data_path": ["./nowhere.jsonl"]}, "nowhere.jsonl"),
    ],
)
def test_bad_options_are_one_line_and_start_nothing(
    changes: dict[str, Any], message: str, root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=message) as error:
        train(small(root, tiny_model("llama"), **changes))
    assert "\n" not in str(error.value)
    assert not (root / "run").exists()


def test_data_without_training_pairs_is_refused(root: Path, tiny_model: BuildModel) -> None:
    write_pairs(root / "pairs.jsonl", [pair(number, "test") for number in range(4)])
    with pytest.raises(UserError, match="none of its 4 pairs is of the split `train`"):
        train(small(root, tiny_model("llama")))
    assert not (root / "run").exists()


def test_env_leads_to_the_synthetic_experiments(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[Any] = []
    module = types.ModuleType("model_training.synthetic_preferences")
    module.train_synthetic = met.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    config = TrainPreferenceConfig(env="1d", output_dir=str(root / "run"))
    train(config)
    assert met == [config] and not (root / "run").exists()
