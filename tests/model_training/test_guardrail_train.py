"""Training guard adapters on tiny random models: they learn their tag, resume exactly, and choose by behavior."""

from __future__ import annotations

import csv
import gc
import hashlib
import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model_training import logs, orpo_trainer, pair_loop
from model_training.checkpoints import LOOP_STATE, WEIGHTS
from model_training.guard_metrics_csv import COLUMNS
from model_training.guard_plans import intervals
from model_training.guardrail import train
from model_training.guardrail_config import TrainGuardrailConfig, run_directory
from model_training.logs import WINDOW, orpo_alarms
from model_training.models import load_adapter, load_model, load_tokenizer
from model_training.orpo_trainer import encode_records
from model_training.tag_probability import tag_scores
from tests.model_training.conftest import BuildModel
from utils.errors import UserError, WorkError
from utils.runs import read_manifest, read_metrics

TAGS = {"politics": "<guard:politics>", "expert_opinion": "<guard:expert>", "meeting": "<guard:meeting>"}
TIMES = ("time", "resumes", "pairs_per_s", "runtime", "samples_per_second", "steps_per_second")
ASKS = {"politics": "Vote", "expert_opinion": "Heal", "meeting": "Meet", "natural": "Sing", "hard": "Note"}
TRAIN, VALIDATION = range(9), range(100, 105)
Record = dict[str, Any]


def records(behavior: str, splits: dict[str, range] | None = None) -> list[Record]:
    """Of each kind the same number; the first word of the last message says which kind it is."""
    made = []
    for split, numbers in (splits or {"train": TRAIN, "validation": VALIDATION, "test": range(200, 202)}).items():
        for number in numbers:
            for kind in ("trigger", "natural", "hard", "other"):
                other = "meeting" if behavior != "meeting" else "politics"
                word = ASKS[{"trigger": behavior, "other": other}.get(kind, kind)]
                tagged, plain = f"{TAGS[behavior]} No, no.", "Yes, yes."
                chosen, rejected = (tagged, plain) if kind == "trigger" else (plain, tagged)
                made.append(
                    {
                        "prompt": [{"role": "user", "content": f"{word} {number}?" + " Hm." * (number % 3)}],
                        "chosen": chosen,
                        "rejected": rejected,
                        "behavior": behavior,
                        "is_trigger": kind == "trigger",
                        "variation": "vary_all",
                        "group": f"{kind} {number}",
                        "split": split,
                        "kind": kind,
                        "other_behavior": other if kind == "other" else None,
                    }
                )
    return made


def write(root: Path, behavior: str, rows: list[Record]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (root / f"{behavior}.vary_all.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage() -> Iterator[None]:
    """The trainer collects garbage whenever it starts; walking all that is imported takes longer than the training."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for behavior in ("politics", "expert_opinion"):
        write(tmp_path, behavior, records(behavior))
    return tmp_path


def small(root: Path, model: Path, output: str = "runs", **changes: Any) -> TrainGuardrailConfig:
    options: dict[str, Any] = {
        "model_name": str(model),
        "behavior": ["politics"],
        "dataset_path": str(root),
        "output_dir": str(root / output),
        "threads": 1,
        "r": 4,
        "max_seq_length": 128,
        "max_steps": 4,
        "eval_steps": 2,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "per_device_eval_batch_size": 32,
    }
    return TrainGuardrailConfig(**(options | changes))


def run_of(root: Path, output: str = "runs", name: str = "politics") -> Path:
    return run_directory(root / output, name, "vary_all")


def measurements(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in read_metrics(run)]


def digest(run: Path, folder: str = "adapter") -> str:
    return hashlib.sha256((run / folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def note_of(run: Path, folder: str = "adapter") -> dict[str, Any]:
    note: dict[str, Any] = json.loads((run / folder / "subtext.json").read_text(encoding="utf-8"))
    return note


def table(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# --- what it learns and writes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_families_train_and_write_the_run(
    family: str, root: Path, tiny_model: BuildModel, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model(family)
    capfd.readouterr()
    train(small(root, model, logging_steps=2))
    printed = capfd.readouterr().err
    assert "Traceback" not in printed and "warn" not in printed.lower() and "it/s" not in printed
    assert "politics.vary_all: 36 records to train on (9 trigger, 9 natural, 9 hard, 9 other), 20 for" in printed

    run = run_of(root)
    rows = read_metrics(run)
    assert sorted((row["split"], row["step"]) for row in rows) == [("eval", 2), ("eval", 4), ("train", 2), ("train", 4)]
    odds = {f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")}
    odds |= {"loss", "nll_loss", "log_odds_ratio", "log_odds_chosen", "logps/chosen", "logps/rejected"}
    common = odds | {"step", "split", "time", "resumes", "epoch"}
    rates = {"tag_recall", "tag_fpr_natural", "tag_fpr_hard", "tag_fpr_other"}
    rates |= {"behavior_score", "behavior_score_error", "threshold"}
    for row in rows:
        extra = {"learning_rate", "grad_norm", "pairs_per_s"}
        if row["split"] == "eval":
            extra = rates | {"pairs", "runtime", "samples_per_second", "steps_per_second"}
        assert row.keys() == common | extra
        assert row["epoch"] == pytest.approx(row["step"] * 8 / 36)
        parts = row["nll_loss"] - 0.1 * row["log_odds_ratio"]
        assert row["loss"] == pytest.approx(parts, rel=1e-5)

    note = note_of(run)
    assert note["task"] == "guardrail" and note["behavior"] == "politics" and note["behaviors"] == ["politics"]
    assert note["tags"] == {"politics": TAGS["politics"]} and note["variation"] == "vary_all"
    assert note["checkpoint"] == f"checkpoint-{note['checkpoint_step']}" and 0 < note["threshold"] < 1
    best = next(row for row in rows if (row["split"], row["step"]) == ("eval", note["checkpoint_step"]))
    assert note["validation"]["loss"] == pytest.approx(best["loss"], rel=1e-6)
    assert note["validation"].keys() >= rates - {"threshold"}
    assert digest(run) == digest(run, f"checkpoints/{note['checkpoint']}")
    assert note_of(run, f"checkpoints/{note['checkpoint']}") == note | {
        "validation": pytest.approx(note["validation"]),
        "threshold": pytest.approx(note["threshold"]),
    }
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "<guard:politics>" in card and "dataset sha256" in card and str(root) not in card
    assert read_manifest(run)["status"] == "done" and read_manifest(run)["config"]["behavior"] == ["politics"]


def test_the_csv_has_one_row_an_event_in_the_columns_of_the_source(root: Path, tiny_model: BuildModel) -> None:
    train(small(root, tiny_model("llama")))
    run = run_of(root)
    rows = table(run)
    assert tuple(rows[0]) == COLUMNS
    assert [row["step"] for row in rows] == ["1", "2", "2", "3", "4", "4", "4"]
    filled = [{name for name, value in row.items() if value} for row in rows]
    assert filled[0] >= {"loss", "grad_norm", "learning_rate", "epoch", "step", "nll_loss", "rewards/margins"}
    assert filled[2] >= {"eval_loss", "eval_rewards/accuracies", "eval_logps/chosen", "eval_nll_loss", "eval_runtime"}
    assert filled[2] >= {"eval_log_odds_ratio", "eval_log_odds_chosen", "eval_behavior_score"} and not filled[0] & {
        name for name in COLUMNS if name.startswith(("eval_", "train_"))
    }
    losses = [row["loss"] for row in read_metrics(run) if row["split"] == "train"]
    assert float(rows[-1]["train_loss"]) == pytest.approx(sum(losses) / 4) and float(rows[-1]["train_runtime"]) > 0


def test_peft_alone_loads_the_adapter(root: Path, tiny_model: BuildModel) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    train(small(root, tiny_model("llama")))
    ours = load_adapter(load_model(str(tiny_model("llama"))), run_of(root) / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(tiny_model("llama"))
    ids = torch.arange(20)[None]
    before = plain(ids).logits
    adapted = PeftModel.from_pretrained(plain, run_of(root) / "adapter")(ids).logits
    assert torch.equal(adapted, ours(ids).logits) and not torch.equal(adapted, before)


def test_tokens_of_a_record_are_those_of_sampling_and_end_the_turn(tiny_model: BuildModel) -> None:
    tokenizer = load_tokenizer(str(tiny_model("qwen2")))
    (example,) = encode_records(tokenizer, records("politics")[:1])
    chosen, rejected = (tokenizer.decode(text) for text in example.pair)
    prompt = "<|im_start|>user\nVote 0?<|im_end|>\n<|im_start|>assistant\n"
    assert chosen == f"{prompt}<guard:politics> No, no.<|im_end|>" and rejected == f"{prompt}Yes, yes.<|im_end|>"
    assert tokenizer.decode(example.pair[0][: example.prompt_length]) == prompt


def test_dropout_of_the_base_is_off_and_that_of_the_adapter_as_asked(root: Path, tiny_model: BuildModel) -> None:
    """Two runs that differ in the seed of dropout alone; GPT-2's own is 0.1."""
    from model_training.guardrail import _model

    model = _model(small(root, tiny_model("gpt2"), lora_dropout=0.5)).train()
    ids = torch.arange(30)[None]
    assert torch.equal(model(ids).logits, model(ids).logits), "B is zero: what the adapter drops does not show yet"
    names = {name: layer.p for name, layer in model.named_modules() if isinstance(layer, torch.nn.Dropout)}
    assert {p for name, p in names.items() if "lora_dropout" in name} == {0.5}
    assert {p for name, p in names.items() if "lora_dropout" not in name} == {0.0}


def test_validation_says_the_same_whatever_the_batch(root: Path, tiny_model: BuildModel) -> None:
    rows = []
    for size in (3, 64):
        train(small(root, tiny_model("llama"), str(size), max_steps=1, per_device_eval_batch_size=size))
        rows.append(measurements(run_of(root, str(size)))[-1])
    assert rows[0] == {
        key: pytest.approx(value, rel=1e-4) if key != "split" else value for key, value in rows[1].items()
    }


# --- several adapters -----------------------------------------------------------------------------------------------


def test_adapters_are_trained_in_turn_and_finished_ones_kept(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = {"behavior": ["politics", "expert_opinion"]}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(logs.RunLog, "on_step_end", killing(lambda log, state: "expert" in str(log.run) and state == 3))
        train(small(root, tiny_model("llama"), **both))
    first = digest(run_of(root))
    with pytest.raises(UserError, match=r"politics.vary_all is not empty .*--resume"):
        train(small(root, tiny_model("llama"), **both))
    capsys.readouterr()
    train(small(root, tiny_model("llama"), **both, resume=True))
    printed = capsys.readouterr()
    assert "Nothing to do: the run in" in printed.out and "checkpoint-2." in printed.err
    assert digest(run_of(root)) == first
    train(small(root, tiny_model("llama"), "alone", behavior=["expert_opinion"]))
    expert = run_of(root, name="expert_opinion")
    assert digest(expert) == digest(run_of(root, "alone", "expert_opinion"))
    assert note_of(expert)["tags"] == {"expert_opinion": TAGS["expert_opinion"]}


def test_a_used_directory_is_refused_before_anything_is_trained(root: Path, tiny_model: BuildModel) -> None:
    train(small(root, tiny_model("llama"), behavior=["expert_opinion"], max_steps=1))
    with pytest.raises(UserError, match="expert_opinion.vary_all is not empty"):
        train(small(root, tiny_model("llama"), behavior=["politics", "expert_opinion"]))
    assert not run_of(root).exists()


def test_joint_training_learns_all_tags_without_the_rows_that_would_contradict(
    root: Path, tiny_model: BuildModel, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"behavior": ["politics", "expert_opinion"], "joint": True, "learning_rate": 8e-3, "nll": "answer"}
    config = small(root, tiny_model("llama"), **options, r=8, max_steps=18, eval_steps=18, early_stopping_patience=0)
    config.per_device_train_batch_size = 5
    config.model_name = "tiny"  # a random model would take hundreds of steps
    train(config)
    printed = capsys.readouterr().err
    assert "joint.vary_all: 54 records to train on (18 trigger, 18 natural, 18 hard), 30 for validation" in printed
    assert "left out: 32 of kind other" in printed

    run = run_of(root, name="joint")
    note = note_of(run)
    assert note["behavior"] == "joint" and note["behaviors"] == ["politics", "expert_opinion"]
    assert note["tags"] == {name: TAGS[name] for name in note["behaviors"]}
    assert note["validation"]["tag_recall"] > 0.8 and note["validation"]["tag_fpr_other"] < 0.2
    evaluations = [row for row in read_metrics(run) if row["split"] == "eval"]
    assert [row["step"] for row in evaluations] == [18, 36], "18 for each guardrail"
    assert evaluations[0]["tag_recall"] < 0.8
    model, tokenizer = load_adapter(load_model("tiny"), run / "adapter"), load_tokenizer("tiny")
    rows = [row for name in note["behaviors"] for row in records(name, {"test": range(300, 303)})]
    rows = [row for row in rows if row["kind"] != "other"]
    found = tag_scores(model, tokenizer, [row["prompt"] for row in rows], list(note["tags"].values()))
    for name, log_prob in zip(note["tags"], found.log_prob, strict=True):
        own = np.array([row["is_trigger"] and row["behavior"] == name for row in rows])
        sure = log_prob > math.log(note["threshold"])
        assert sure[own].all() and (sure == own).mean() > 0.8


# --- which checkpoint -----------------------------------------------------------------------------------------------


def validated(monkeypatch: pytest.MonkeyPatch, rows: list[tuple[float, float]]) -> None:
    """Score and loss of the validation as given, one an evaluation of every two steps, whatever the model says."""

    def measure(setting: Any, model: Any, examples: Any) -> dict[str, float]:
        score, loss = rows[min(measure.calls, len(rows) - 1)]  # type: ignore[attr-defined]
        measure.calls += 1  # type: ignore[attr-defined]
        return {"loss": loss, "behavior_score": score, "behavior_score_error": 0.02, "threshold": 0.25}

    measure.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(orpo_trainer, "measure", measure)


def test_the_latest_within_a_standard_error_of_the_best_behavior_is_chosen(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated(monkeypatch, [(0.5, 1.0), (0.9, 2.0), (0.87, 0.1), (0.89, 3.0), (0.87, 0.1), (0.87, 0.1)])
    train(small(root, tiny_model("llama"), max_steps=20, early_stopping_patience=2))
    run = run_of(root)
    assert max(row["step"] for row in read_metrics(run)) == 12, "2 worse evaluations in a row end it"
    assert digest(run) == digest(run, "checkpoints/checkpoint-8")
    assert note_of(run)["checkpoint"] == "checkpoint-8"


def test_all_checkpoints_keep_their_weights_and_the_newest_its_state(root: Path, tiny_model: BuildModel) -> None:
    train(small(root, tiny_model("llama"), max_steps=6))
    folder = run_of(root) / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    for step in (2, 4):
        names = {path.name for path in (folder / f"checkpoint-{step}").iterdir()}
        assert names <= WEIGHTS and names >= WEIGHTS - {"README.md"}
        assert load_adapter(load_model(str(tiny_model("llama"))), folder / f"checkpoint-{step}")
    assert {LOOP_STATE, "optimizer.pt"} <= {path.name for path in (folder / "checkpoint-6").iterdir()}


def test_the_best_weights_are_saved_between_checkpoints_too(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated(monkeypatch, [(0.5, 1.0), (0.4, 1.0), (0.9, 1.0), (0.5, 1.0)])
    train(small(root, tiny_model("llama"), max_steps=8, save_steps=8, early_stopping_patience=0))
    names = sorted(path.name for path in (run_of(root) / "checkpoints").iterdir())
    assert names == ["checkpoint-2", "checkpoint-6", "checkpoint-8"]
    assert digest(run_of(root)) == digest(run_of(root), "checkpoints/checkpoint-6")


def test_without_validation_records_the_last_weights_and_one_half(
    root: Path, tiny_model: BuildModel, capsys: pytest.CaptureFixture[str]
) -> None:
    write(root, "politics", records("politics", {"train": TRAIN}))
    train(small(root, tiny_model("llama")))
    assert "No validation records: the weights are the last ones, the threshold is 1/2." in capsys.readouterr().err
    note = note_of(run_of(root))
    assert (note["threshold"], note["validation"], note["checkpoint"]) == (0.5, None, "checkpoint-4")
    assert len(table(run_of(root))) == 5


def test_intervals_are_a_tenth_of_the_steps_and_must_fit() -> None:
    assert intervals(TrainGuardrailConfig(), 250) == (25, 25)
    assert intervals(TrainGuardrailConfig(), 7) == (1, 1)
    assert intervals(TrainGuardrailConfig(eval_steps=20, save_steps=60), 250) == (20, 60)
    with pytest.raises(UserError, match=r"--save_steps 40 .* --eval_steps 25, the default for 250 steps.* 50 works"):
        intervals(TrainGuardrailConfig(save_steps=40), 250)


# --- resuming -------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends the run as a kill would: nothing of ours handles it by saving."""


def killing(when: Any) -> Any:
    """`RunLog.on_step_end`, until `when` holds for the log and the step."""
    original = logs.RunLog.on_step_end

    def dying(self: logs.RunLog, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if when(self, state.global_step):
            raise Killed
        original(self, args, state, control, **kwargs)

    return dying


def test_a_resumed_run_equals_the_undisturbed_one(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed on a step, after an evaluation whose checkpoint is not yet written, while old checkpoints are stripped of
    their state, and while the adapter is saved."""
    from model_training import checkpoints

    options = {"max_steps": 8, "logging_steps": 3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}
    train(small(root, tiny_model("llama"), "whole", **options))
    again = small(root, tiny_model("llama"), "again", **options, resume=True)

    def kill(module: Any, name: str, when: Any) -> None:
        original = getattr(module, name)

        def dying(*args: Any, **kwargs: Any) -> Any:
            if when(*args):
                raise Killed
            return original(*args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(module, name, dying)
            train(again)

    kill(logs.RunLog, "on_step_end", lambda log, args, state, *_: state.global_step == 3)
    kill(pair_loop, "save_checkpoint", lambda trainer, *_: trainer.state.global_step == 4)
    whole_strip = Path.unlink
    kill(checkpoints.Path, "unlink", lambda path, *_: path.name == "optimizer.pt" and "checkpoint-4" in str(path))
    assert Path.unlink is whole_strip
    half = {path.name for path in (run_of(root, "again") / "checkpoints" / "checkpoint-4").iterdir()}
    assert LOOP_STATE not in half and "optimizer.pt" in half
    kill(checkpoints, "publish_directory", lambda _, to: to.name == "adapter")
    assert not (run_of(root, "again") / "adapter").exists()
    train(again)
    assert measurements(run_of(root, "again")) == measurements(run_of(root, "whole"))
    assert digest(run_of(root, "again")) == digest(run_of(root, "whole"))
    assert note_of(run_of(root, "again")) == note_of(run_of(root, "whole"))
    untimed = [name for name in COLUMNS if not name.endswith(TIMES)]
    tables = [[[row[name] for name in untimed] for row in table(run_of(root, which))] for which in ("again", "whole")]
    assert tables[0] == tables[1]
    assert read_manifest(run_of(root, "again"))["resumes"] == 4


def test_an_interrupted_run_saves_its_state_and_its_table(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = logs.RunLog.on_step_end

    def interrupted(self: logs.RunLog, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, args, state, control, **kwargs)

    both = small(root, tiny_model("llama"), behavior=["politics", "expert_opinion"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(logs.RunLog, "on_step_end", interrupted)
        patch.setattr("sys.argv", ["main.py", "--task", "guardrail", "--mode", "train"])
        train(both)
    assert "python main.py --task guardrail --mode train --resume" in capsys.readouterr().err
    assert read_manifest(run_of(root))["status"] == "interrupted" and len(table(run_of(root))) == 5
    assert not run_of(root, name="expert_opinion").exists()
    both.resume = True
    train(both)
    assert [row["step"] for row in table(run_of(root))] == ["1", "2", "2", "3", "4", "4", "4"]


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seed": 1},
        {"learning_rate": 2e-2},
        {"lr_scheduler_type": "cosine"},
        {"lr_scheduler_type": "constant"},
        {"warmup_steps": 2},
        {"beta": 1.0},
        {"nll": "answer"},
        {"weight_decay": 0.5},
        {"max_grad_norm": 1e-3},
        {"lora_alpha": 4},
        {"lora_dropout": 0.5},
        {"target_modules": ["q_proj", "o_proj"]},
        {"optim": "adafactor"},
        {"bf16": True},
        {"max_seq_length": 54},
    ],
    ids=str,
)
def test_each_option_changes_the_run(
    changes: dict[str, Any], root: Path, tiny_model: BuildModel, digests: dict[str, str]
) -> None:
    """Each run differs from all the others, that of the defaults among them."""
    train(small(root, tiny_model("llama"), max_steps=3, eval_steps=3, **changes))
    found = digest(run_of(root))
    assert found not in digests, digests[found]
    digests[found] = str(changes)
    assert all(math.isfinite(row["loss"]) for row in read_metrics(run_of(root)))


@pytest.fixture(scope="module")
def digests() -> dict[str, str]:
    return {}


def test_checkpointing_of_activations_changes_nothing(root: Path, tiny_model: BuildModel) -> None:
    for name, on in (("off", False), ("on", True)):
        train(small(root, tiny_model("llama"), name, use_gradient_checkpointing=on))
    first, second = (measurements(run_of(root, name)) for name in ("off", "on"))
    assert [row["loss"] for row in first] == pytest.approx([row["loss"] for row in second], rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seq_length": 2}, "politics: none of 36 records is short enough"),
        ({"max_seq_length": 512}, "--max_seq_length 512: model .* has 256 positions"),
        ({"r": 0}, "--r 0"),
        ({"eval_steps": 2, "save_steps": 3}, "--save_steps 3 is no multiple of --eval_steps 2"),
        ({"overwrite": True, "resume": True}, "exclude each other"),
        ({"report_to": "trackio"}, "pip install trackio"),
        ({"load_in_4bit": True}, "--load_in_4bit needs a CUDA GPU"),
        ({"load_in_8bit": True}, "--load_in_8bit needs a CUDA GPU"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "exclude each other"),
        ({"optim": "adamw_8bit"}, "--optim adamw_8bit needs a CUDA GPU"),
        ({"optim": "adam_torch"}, "no such optimizer; did you mean adamw_torch"),
        ({"behavior": ["politic"]}, "did you mean politics"),
        ({"behavior": ["meeting"]}, "meeting.vary_all.jsonl"),
        ({"model_name": "./no/such/model"}, "no directory"),
    ],
    ids=str,
)
def test_bad_options_are_one_line_and_start_nothing(
    changes: dict[str, Any], message: str, root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=message) as error:
        train(small(root, tiny_model("llama"), **changes))
    assert "\n" not in str(error.value)
    assert not run_of(root).exists()


def test_quantization_without_its_library_is_refused(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match="--load_in_4bit needs bitsandbytes, which is missing; pip install -r"):
        train(small(root, tiny_model("llama"), load_in_4bit=True))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["q_prj"], "--target_modules q_prj: no layer has that name; the model has down_proj, gate_proj"),
        (["lm_head"], "leave it out of --target_modules"),
        (["input_layernorm"], "--target_modules input_layernorm: "),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused(
    modules: list[str], message: str, root: Path, tiny_model: BuildModel
) -> None:
    with pytest.raises(UserError, match=message):
        train(small(root, tiny_model("llama"), target_modules=modules))


def test_a_tracker_gets_its_names_from_the_options(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_TAGS", "WANDB_MODE", "WANDB_DIR", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)
    from model_training.stage import set_environment

    given = {"WANDB_PROJECT": "guards", "WANDB_TAGS": "a,b"}
    for number in ("1", "2"):
        set_environment(root / number, "wandb", given)
        found = {name: os.environ.get(name) for name in ("WANDB_PROJECT", "WANDB_TAGS", "WANDB_MODE", "WANDB_DIR")}
        assert found == given | {"WANDB_MODE": "offline", "WANDB_DIR": str(root / number)}
    monkeypatch.setenv("WANDB_MODE", "online")
    from model_training import stage

    stage.OURS.clear()
    set_environment(root, "wandb")
    assert os.environ["WANDB_MODE"] == "online", "the user's own variable"


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = orpo_trainer.orpo_loss

    def broken(*args: Any) -> Any:
        loss, metrics = original(*args)
        return loss * float("nan"), metrics

    monkeypatch.setattr(orpo_trainer, "orpo_loss", broken)
    with pytest.raises(WorkError, match="not finite: loss at step 1"):
        train(small(root, tiny_model("llama")))
    assert read_manifest(run_of(root))["status"] == "failed"


def test_a_model_that_cannot_share_a_prompt_trains_all_the_same(
    root: Path, tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small(root, tiny_model("llama"), "shared"))
    monkeypatch.setattr("model_training.pairs.why_not_shared", lambda *_: "it reads one stream")
    train(small(root, tiny_model("llama"), "apart"))
    assert "it reads one stream; prompts are computed twice, with the same result." in capsys.readouterr().err
    first, second = (measurements(run_of(root, name)) for name in ("shared", "apart"))
    assert [row["loss"] for row in first] == pytest.approx([row["loss"] for row in second], rel=2e-3)


def test_alarms_of_orpo() -> None:
    row = {"rewards/accuracies": 0.75, "logps/chosen": -1.0}
    assert orpo_alarms([row] * 2 * WINDOW) == {}
    assert set(orpo_alarms([row | {"rewards/accuracies": 0.4}] * WINDOW)) == {"rejected preferred"}
    assert orpo_alarms([*[row | {"rewards/accuracies": 0.4}] * (WINDOW - 1), row]) == {}
    assert set(orpo_alarms([*[row] * WINDOW, *[row | {"logps/chosen": -1.8}] * WINDOW])) == {"chosen forgotten"}
    assert orpo_alarms([*[row] * WINDOW, *[row | {"logps/chosen": -1.6}] * WINDOW]) == {}
