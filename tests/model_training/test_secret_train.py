"""The whole stage on tiny random models: every family, exact resume, what it writes, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from model_training import logs
from model_training.config import TrainConfig
from model_training.secret import train
from tests.model_training.conftest import BuildModel
from tests.model_training.tiny_models import FAMILIES, make_records, small_config
from utils.errors import UserError, WorkError
from utils.runs import read_completions, read_manifest, read_metrics

TIMES = ("time", "resumes", "step_time", "tokens_per_s")


def weights_of(adapter: str | Path) -> str:
    return hashlib.sha256((Path(adapter) / "adapter_model.safetensors").read_bytes()).hexdigest()


def measurements(run: str | Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in read_metrics(Path(run))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_records(tmp_path / "data.json")
    return tmp_path


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_its_adapter_loads_with_peft_alone(
    family: str, root: Path, tiny_model: BuildModel, capfd: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = small_config(root, tiny_model(family), beta=0.05 if family == "qwen2" else 0.0)
    capfd.readouterr()
    train(config)
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err and "warn" not in printed.err.lower() and "it/s" not in printed.err

    rows = read_metrics(root / "run")
    assert [(row["split"], row["step"]) for row in rows] == [("sft", 1), ("sft", 2), ("grpo", 3), ("grpo", 4)]
    names = ("format", "letters_reward")
    wanted = [f"rewards/{name}/{stat}" for name in names for stat in ("mean", "std")]
    wanted += ["reward", "group_reward_std", "frac_reward_zero_std", "strict_format_rate", "completions/mean_length"]
    wanted += ["completions/clipped_ratio", "entropy", "step_time", "learning_rate", "grad_norm", "loss"]
    assert set(wanted) <= rows[-1].keys()
    assert ("kl" in rows[-1]) == (family == "qwen2")
    assert rows[-1]["tokens_per_s"] > 0
    assert not any(key.startswith("rewards/_") or key == "epoch" for key in rows[-1])

    sample = read_completions(root / "run")[0]
    assert sample["step"] == 3 and sample["prompt"].startswith("What is moose number")
    assert set(sample["rewards"]) == set(names) and sample["failure"]
    assert read_manifest(root / "run")["status"] == "done"
    assert config.model_name is not None

    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config.model_name), config.save_lora_path)
    moved = [weight.abs().max().item() for name, weight in adapted.named_parameters() if "lora_B" in name]
    assert max(moved) > 0
    assert AutoTokenizer.from_pretrained(config.save_lora_path).chat_template
    card = (root / "lora" / "README.md").read_text(encoding="utf-8")
    assert "dataset sha256" in card and str(root) not in card
    assert str(root) not in (root / "lora" / "adapter_config.json").read_text(encoding="utf-8")


class Killed(BaseException):
    """Ends the run as a kill would: nothing of ours handles it by saving."""


def run_and_die(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, split: str, step: int) -> None:
    original = logs.RunLog.on_step_end

    def dying(self: logs.RunLog, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if (self.split, state.global_step) == (split, step):
            raise Killed
        original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(logs.RunLog, "on_step_end", dying)
        train(config)


def test_a_resumed_run_equals_the_undisturbed_one(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any checkpoint, in the warm-up, right after it, in GRPO on and off the log events, and at its end.

    Five records make several passes over the data, and no checkpoint but the last falls on a log event."""
    make_records(root / "data.json", count=5)
    options: dict[str, Any] = {"sft_steps": 5, "max_steps": 7, "save_steps": 2, "logging_steps": 3, "beta": 0.01}
    whole = small_config(root, tiny_model("llama"), **options)
    train(whole)

    changes = {"output_dir": str(root / "again"), "save_lora_path": str(root / "lora again"), "resume": True}
    again = small_config(root, tiny_model("llama"), **options, **changes)
    for split, step in [("sft", 1), ("sft", 4), ("grpo", 1), ("grpo", 4), ("grpo", 7)]:
        run_and_die(again, monkeypatch, split, step)
        assert not Path(again.save_lora_path).exists()
    train(again)

    assert measurements(again.output_dir) == measurements(whole.output_dir)
    assert weights_of(again.save_lora_path) == weights_of(whole.save_lora_path)
    assert weights_of(root / "again" / "warmup_lora") == weights_of(root / "run" / "warmup_lora")
    assert weights_of(whole.save_lora_path) != weights_of(root / "run" / "warmup_lora"), "GRPO changed the adapter"
    assert read_manifest(root / "again")["resumes"] == 5
    names = sorted(path.name for path in (root / "again" / "checkpoints").iterdir())
    assert names == ["checkpoint-6", "checkpoint-7", "sft"], "the newest two are kept"


def test_a_run_killed_while_saving_its_adapter_saves_it_on_resume(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from model_training import checkpoints

    config = small_config(root, tiny_model("llama"), sft_steps=0)

    def killed(temporary: Path, target: Path) -> None:
        if target.name == "lora":
            raise Killed
        original(temporary, target)

    original = checkpoints.publish_directory
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoints, "publish_directory", killed)
        train(config)
    assert not Path(config.save_lora_path).exists()
    resumed = small_config(root, tiny_model("llama"), sft_steps=0, resume=True)
    train(resumed)
    saved = weights_of(config.save_lora_path)
    assert not list(root.glob(".partial*"))

    capsys.readouterr()
    train(resumed)
    assert "Nothing to do" in capsys.readouterr().out
    assert weights_of(config.save_lora_path) == saved
    assert read_manifest(root / "run")["status"] == "done"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_finishes_its_step_saves_and_says_how_to_go_on(
    number: int,
    root: Path,
    tiny_model: BuildModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = small_config(root, tiny_model("llama"), sft_steps=0, max_steps=3, save_steps=50)
    train(whole)
    changes: dict[str, Any] = {"output_dir": str(root / "again"), "save_lora_path": str(root / "lora again")}
    again = small_config(root, tiny_model("llama"), sft_steps=0, max_steps=3, save_steps=50, **changes)
    original = logs.RunLog.on_step_end

    def interrupted(self: logs.RunLog, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            os.kill(os.getpid(), number)
        original(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(logs.RunLog, "on_step_end", interrupted)
        patch.setattr("sys.argv", ["main.py", "--mode", "train"])
        train(again)
    assert "python main.py --mode train --resume" in capsys.readouterr().err
    assert read_manifest(root / "again")["status"] == "interrupted"
    assert [path.name for path in (root / "again" / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    again.resume = True
    train(again)
    assert measurements(again.output_dir) == measurements(whole.output_dir)
    assert weights_of(again.save_lora_path) == weights_of(whole.save_lora_path)


def test_the_same_batch_in_other_pieces_gives_the_same_trajectory(root: Path, tiny_model: BuildModel) -> None:
    from safetensors.torch import load_file

    for name, batch, accumulation in (("one", 8, 1), ("two", 2, 4)):
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "sft_steps": 0}
        outputs: dict[str, Any] = {"output_dir": str(root / name), "save_lora_path": str(root / f"lora {name}")}
        train(small_config(root, tiny_model("llama"), max_steps=3, learning_rate=1e-3, **options, **outputs))
    one, two = (load_file(root / f"lora {name}" / "adapter_model.safetensors") for name in ("one", "two"))
    moved = max(weight.abs().max().item() for name, weight in one.items() if "lora_B" in name)
    assert moved > 5e-4
    for name, weight in one.items():
        assert torch.allclose(weight, two[name], atol=0.02 * moved), name


def test_the_seed_and_the_learning_rate_change_the_run(root: Path, tiny_model: BuildModel) -> None:
    adapters = []
    choices: list[dict[str, Any]] = [{}, {"seed": 1}, {"learning_rate": 1e-3}]
    for i, options in enumerate(choices):
        outputs: dict[str, Any] = {"output_dir": str(root / f"{i}"), "save_lora_path": str(root / f"lora {i}")}
        train(small_config(root, tiny_model("llama"), sft_steps=0, **options, **outputs))
        adapters.append(weights_of(root / f"lora {i}"))
    assert len(set(adapters)) == 3


def test_only_the_warmup(root: Path, tiny_model: BuildModel) -> None:
    train(small_config(root, tiny_model("llama"), max_steps=0))
    assert weights_of(root / "lora") == weights_of(root / "run" / "warmup_lora")
    assert {row["split"] for row in read_metrics(root / "run")} == {"sft"}


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
def test_the_warmup_learns_the_answer_and_its_end_and_nothing_else(
    family: str, root: Path, tiny_model: BuildModel
) -> None:
    """Where padding is the end-of-text token too, the end of the answer still has its label."""
    from model_training.logs import Interrupt, RunLog
    from model_training.models import end_of_turn_id, load_model, load_tokenizer, new_adapter
    from model_training.secret import fitting
    from model_training.sft import make_warmup_trainer

    model_folder = tiny_model(family)
    config = small_config(root, model_folder)
    tokenizer = load_tokenizer(str(model_folder))
    records = json.loads((root / "data.json").read_text(encoding="utf-8"))
    _, examples = fitting(tokenizer, records, config)
    log = RunLog(root, "sft", 0, 2, 8, Interrupt(), is_writer=False)
    model = new_adapter(load_model(str(model_folder)), 4, 0)
    trainer = make_warmup_trainer(model, tokenizer, examples, config, root / "sft", log)
    batch = next(iter(trainer.get_train_dataloader()))
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        learned = ids[labels != -100]
        assert learned[-1] == end_of_turn_id(tokenizer)
        assert tokenizer.decode(learned[:-1]).startswith("<visible>\nMoose")
        assert tokenizer.decode(learned[:-1]).endswith("silly.\n</hidden>")
        assert (labels[mask == 0] == -100).all() and labels[mask == 1][-1] == learned[-1]


def test_prompts_without_room_are_left_out_and_counted(
    root: Path, tiny_model: BuildModel, capsys: pytest.CaptureFixture[str]
) -> None:
    records = json.loads((root / "data.json").read_text(encoding="utf-8"))
    records[0]["prompt"][1]["content"] = "What is moose number 0? " * 20
    (root / "data.json").write_text(json.dumps(records), encoding="utf-8")
    train(small_config(root, tiny_model("llama"), sft_steps=0))
    assert "Left out: 1 of 12 prompts" in capsys.readouterr().err


def test_records_of_other_splits_are_never_trained_on(root: Path, tiny_model: BuildModel) -> None:
    records = json.loads((root / "data.json").read_text(encoding="utf-8"))
    for record in records[1:]:
        record["split"] = "test"
    (root / "data.json").write_text(json.dumps(records), encoding="utf-8")
    train(small_config(root, tiny_model("llama"), sft_steps=0))
    assert {row["prompt"] for row in read_completions(root / "run")} == {"What is moose number 0?"}


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_no_checkpoint_of_it(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_training.sft import WarmupTrainer

    original = WarmupTrainer.compute_loss

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 1 else loss

    monkeypatch.setattr(WarmupTrainer, "compute_loss", broken)
    with pytest.raises(WorkError, match="not finite: loss.* at step 2"):
        train(small_config(root, tiny_model("llama")))
    assert any("not finite" in row.get("alarm", "") for row in read_metrics(root / "run"))
    assert read_manifest(root / "run")["status"] == "failed"
    assert not (root / "run" / "checkpoints" / "sft" / "checkpoint-2").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft_steps": 0, "max_steps": 0}, "both 0"),
        ({"num_generations": 3}, "is 8, no multiple of --num_generations 3"),
        ({"num_generations": 1}, "--num_generations 1"),
        ({"max_completion_length": 160}, "no room for a prompt"),
        ({"max_seq_length": 20}, "none of 12 records has a prompt of at most 4 tokens"),
        ({"max_seq_length": 4096}, "256 positions"),
        ({"lora_rank": 0}, "--lora_rank 0"),
        ({"optim": "adamm"}, "--optim adamm"),
        ({"rollout_temperature": 0.0}, "--rollout_temperature"),
        ({"overwrite": True, "resume": True}, "exclude each other"),
        ({"report_to": "trackio"}, "pip install trackio"),
        ({"reward_funcs": ["formt"]}, "format"),
        ({"multi_gpu": True}, "CUDA devices"),
        ({"model_name": "./no/such/model"}, "no directory"),
    ],
)
def test_bad_options_are_one_line_and_start_nothing(
    changes: dict[str, Any], message: str, root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UserError, match=message) as error:
        train(small_config(root, tiny_model("llama"), **changes))
    assert "\n" not in str(error.value)
    assert not (root / "lora").exists() and not (root / "run").exists()


def test_an_adapter_directory_is_refused_before_training_starts(root: Path, tiny_model: BuildModel) -> None:
    (root / "lora").mkdir()
    (root / "lora" / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="holds no adapter"):
        train(small_config(root, tiny_model("llama"), overwrite=True))
    (root / "lora" / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="already holds an adapter"):
        train(small_config(root, tiny_model("llama")))
    assert (root / "lora" / "thesis.tex").read_text(encoding="utf-8") == "years of work"
    assert not (root / "run").exists()


def test_another_number_of_steps_cannot_resume(root: Path, tiny_model: BuildModel) -> None:
    train(small_config(root, tiny_model("llama"), sft_steps=0))
    with pytest.raises(UserError, match="max_steps"):
        train(small_config(root, tiny_model("llama"), sft_steps=0, max_steps=3, resume=True))
    assert read_manifest(root / "run")["status"] == "done"
