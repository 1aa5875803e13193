"""The stage on models whose outputs are known, on saved outputs, on the published ones, and once on a real model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from dataset.preference import compose
from dataset.records import preference_validator, save_records
from dataset.world import load_world
from evaluation import preference_scoring, statistics
from evaluation.preference import evaluate
from evaluation.preference_measures import scores
from evaluation.statistics import wilson
from model_training.preference_config import EvaluatePreferenceConfig
from tests.model_training.tiny_models import make_model
from utils.errors import UserError, WorkError
from utils.files import read_jsonl

PUBLISHED = Path(__file__).parents[2] / "../shared/data/preference"
NOTE = {"form": "text", "max_length": 100}


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 200)


def jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def text_pairs() -> list[dict[str, Any]]:
    """Ten held-out pairs of texts whose answers say what they are worth: `chosen mean`, `rejected mean`."""
    gaps = [2.0, 1.0, 0.5, 0.25, 0.0, -0.5, 1.5, -1.0, 3.0, 0.125]
    return [
        {
            "id": f"p{i}",
            "chosen": f"Human: Question {i}\n\nAssistant: {gap}",
            "rejected": f"Human: Question {i}\n\nAssistant: 0",
            "data_subset": "helpful" if i % 2 else "harmless",
            "split": "train" if i == 9 else "test",
        }
        for i, gap in enumerate(gaps)
    ]


class FakeModel:
    """Its mean is what the answer says, its spread what the directory is called."""

    def __init__(self, folder: Path) -> None:
        self.spread = float(folder.name.partition("=")[2] or 0)
        self.kind = "mean_and_variance" if self.spread else "base"
        self.form, self.likelihood = "text", "probit"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`run("base", "mv=2", **options)`: evaluate fake models of these names; gives the JSON."""
    loaded: list[FakeModel] = []

    def load(folder: Path, base_name: str | None, *how: str) -> FakeModel:
        model = FakeModel(folder)
        loaded.append(model)
        asked.append((folder.name, base_name))
        return model

    def score_pairs(model: FakeModel, records: list[Any], batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert model is loaded[-1], "one model at a time"
        sides = []
        for side in ("chosen", "rejected"):
            means = [float(record[side].rpartition(" ")[2]) for record in records]
            raw = math.log(math.expm1(model.spread)) if model.spread else 0.0
            sides.append(torch.tensor([[mean, raw] if model.spread else [mean] for mean in means]))
        return sides[0], sides[1]

    def evaluated(*names: str, **options: Any) -> dict[str, Any]:
        for name in names:
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "adapter_model.safetensors").write_bytes(name.encode())
        given = {"data_path": [jsonl(tmp_path / "pairs.jsonl", text_pairs())], "output_dir": str(tmp_path / "out")}
        paths = [str(tmp_path / name) for name in names]
        evaluate(EvaluatePreferenceConfig(reward_model_checkpoints=paths, threads=1, **(given | options)))
        report: dict[str, Any] = json.loads((tmp_path / "out/evaluation/preference.json").read_text(encoding="utf-8"))
        return report

    asked: list[tuple[str, str | None]] = []
    evaluated.asked = asked  # type: ignore[attr-defined]
    monkeypatch.setattr(preference_scoring, "reward_model_folder", Path)
    monkeypatch.setattr(preference_scoring, "read_note", lambda folder: NOTE)
    monkeypatch.setattr(preference_scoring, "load_tokenizer", lambda path: None)
    monkeypatch.setattr(
        preference_scoring,
        "encode_pairs",
        lambda tokenizer, records, form: [([0] * len(r["chosen"]), [0]) for r in records],
    )
    monkeypatch.setattr(preference_scoring, "load_reward_model", load)
    monkeypatch.setattr(preference_scoring, "score_pairs", score_pairs)
    return evaluated


def test_models_stand_side_by_side_on_the_same_held_out_pairs(run: Any, tmp_path: Path, capsys: Any) -> None:
    report = run("base", "mv=2", model_name="elsewhere", num_widest=2)
    assert run.asked == [("base", "elsewhere"), ("mv=2", "elsewhere")]
    assert list(report["models"]) == ["base", "mv=2"]
    base, mv = report["models"].values()
    assert (base["kind"], mv["kind"]) == ("base", "mean_and_variance")
    assert base["metrics"]["accuracy"] == mv["metrics"]["accuracy"] == pytest.approx(wilson(7, 9))
    assert base["metrics"]["ties"]["value"] == 1
    assert base["by_category"]["harmless"]["accuracy"] == pytest.approx(wilson(5, 5))
    assert base["by_category"]["helpful"]["accuracy"] == pytest.approx(wilson(2, 4))
    assert mv["metrics"]["r2"]["value"] == pytest.approx(0.19, abs=0.05)
    assert list(report["paired"]) == ["mv=2 - base"]
    assert report["paired"]["mv=2 - base"]["accuracy"]["value"] == 0
    assert report["paired"]["mv=2 - base"]["log_loss"]["n"] == 9
    assert [row["id"] for row in mv["widest"]] == ["p0", "p1"] and base["widest"] == []
    assert len(mv["risk_curve"]) == 6 and {"alpha", "accuracy", "helpful", "harmless"} == set(mv["risk_curve"][0])
    assert sum(row["n"] for row in base["reliability"]) == 9
    printed = capsys.readouterr().out
    assert "77.8 % [45.3, 93.7] n=9" in printed and "Question 0" in printed


def test_every_pair_is_written_with_its_scores(run: Any, tmp_path: Path) -> None:
    run("base", "mv=2")
    rows = read_jsonl(tmp_path / "out/evaluation/preference_items.jsonl")
    assert [(row["model"], row["index"], row["id"]) for row in rows[8:10]] == [("base", 8, "p8"), ("mv=2", 0, "p0")]
    first = rows[9]
    assert first["chosen"] == text_pairs()[0]["chosen"]
    assert first["data_subset"] == "harmless"
    assert (first["mean_chosen"], first["mean_rejected"]) == (2.0, 0.0)
    assert first["spread_chosen"] == pytest.approx(2, abs=1e-6)
    assert first["risk_chosen"] == pytest.approx(2 - 2.3263479 * 2, abs=1e-5)
    assert len(first["reward_output_chosen"]) == 2
    assert (first["reward_model_type"], first["likelihood"]) == ("mean_and_variance", "probit")


def test_saved_rows_give_the_same_numbers_again(run: Any, tmp_path: Path, capsys: Any) -> None:
    rows = [{"prompt": "Human: Hi", "responses": [f"{i}", "1.5"]} for i in range(4)]
    before = run("base", "mv=2", jailbreak_path=jsonl(tmp_path / "jailbreaks.jsonl", rows))
    first_print = capsys.readouterr().out
    written = [str(tmp_path / f"out/evaluation/preference_{name}.jsonl") for name in ("items", "jailbreak")]
    evaluate(EvaluatePreferenceConfig(from_outputs=written, output_dir=str(tmp_path / "again"), threads=1))
    after = json.loads((tmp_path / "again/evaluation/preference.json").read_text(encoding="utf-8"))
    for name, model in before["models"].items():
        assert model.pop("checkpoint").endswith(name)
        assert len(model.pop("adapter_sha256")) == 64
    assert after["models"] == before["models"]
    assert after["paired"] == before["paired"]
    assert capsys.readouterr().out.split("\n\n")[:-1] == first_print.split("\n\n")[:-1]
    for name in ("items", "jailbreak"):
        file = f"evaluation/preference_{name}.jsonl"
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()


def test_the_jailbreak_protocol(run: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": "How?", "responses": ["0.0", "1.0"], "source": "x"},
        {"prompt": [{"role": "user", "content": "Why?"}], "responses": ["1.0", "1.0"]},
        {"prompt": "Human: Who?", "responses": ["2.0", "1.0"]},
    ]
    report = run("base", "mv=2", data_path=[], jailbreak_path=jsonl(tmp_path / "jailbreaks.jsonl", rows))
    metrics = report["models"]["base"]["metrics"]
    assert metrics["jailbreak_rate"] == pytest.approx(wilson(2, 3)) and metrics["jailbreak_ties"]["value"] == 1
    assert "accuracy" not in metrics
    assert report["models"]["mv=2"]["risk_curve"][0].keys() == {"alpha", "jailbreak_rate"}
    assert report["paired"]["mv=2 - base"]["jailbreak_rate"]["value"] == 0
    written = read_jsonl(tmp_path / "out/evaluation/preference_jailbreak.jsonl")
    assert written[0] | {"reward_outputs_mv=2": 0} == rows[0] | {
        "reward_outputs_base": [[0.0], [1.0]],
        "reward_outputs_mv=2": 0,
    }
    assert not (tmp_path / "out/evaluation/preference_items.jsonl").exists()


def test_an_evaluation_replaces_the_one_before_as_a_whole(run: Any, tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "jailbreaks.jsonl", [{"prompt": "How?", "responses": ["0.0", "1.0"]}])
    folder = tmp_path / "out/evaluation"
    run("base", jailbreak_path=rows)
    (folder / "secret.json").write_text("{}")
    assert (folder / "preference_jailbreak.jsonl").exists()
    run("base")
    assert sorted(file.name for file in folder.iterdir()) == [
        "preference.json",
        "preference_items.jsonl",
        "secret.json",
    ], "another task's evaluation stays"


def test_saved_outputs_do_not_replace_what_models_gave(run: Any, tmp_path: Path) -> None:
    run("base")
    items, out = tmp_path / "out/evaluation/preference_items.jsonl", str(tmp_path / "out")
    before = items.read_bytes()
    other = jsonl(tmp_path / "x.jsonl", [{"reward_output_chosen": [1], "reward_output_rejected": [0]}])
    for path, message in ((str(items), "would be written anew"), (other, "was measured on loaded models and is kept")):
        with pytest.raises(UserError, match=message):
            evaluate(EvaluatePreferenceConfig(from_outputs=[path], output_dir=out))
    assert items.read_bytes() == before
    again = str(tmp_path / "again")
    for _ in range(2):
        evaluate(EvaluatePreferenceConfig(from_outputs=[other], output_dir=again, threads=1))
    (tmp_path / "again/evaluation/preference.json").write_text("[1]")
    with pytest.raises(UserError, match="no evaluation that can be read"):
        evaluate(EvaluatePreferenceConfig(from_outputs=[other], output_dir=again))


def test_options_choose_the_pairs(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def count(**options: Any) -> Any:
        return run("base", **options)["models"]["base"]["metrics"]["accuracy"]["n"]

    assert count(split="train") == 1
    assert count(data_subset="helpful") == 4
    assert count(num_pairs=3) == 3
    items = tmp_path / "out/evaluation/preference_items.jsonl"
    drawn = [row["id"] for row in read_jsonl(items)]
    assert count(num_pairs=3) == 3 and [row["id"] for row in read_jsonl(items)] == drawn
    run("base", num_pairs=3, seed=4)
    assert [row["id"] for row in read_jsonl(items)] != drawn
    longest = max(len(record["chosen"]) for record in text_pairs() if record["split"] == "test")
    monkeypatch.setitem(NOTE, "max_length", longest - 1)
    capsys.readouterr()
    assert count() == count(num_pairs=6) == 6
    assert "left out 3 pairs longer than the --max_length" in capsys.readouterr().err


def test_outputs_that_are_not_finite_stop_the_work(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any, records: list[Any], batch_size: int) -> Any:
        outputs = torch.zeros(len(records), 1)
        outputs[4] = math.nan
        return outputs, outputs

    monkeypatch.setattr(preference_scoring, "score_pairs", broken)
    with pytest.raises(WorkError, match=r"base: 1 of 9 pairs .* not finite, first pair 5 \(id p4\)"):
        run("base")


def test_what_cannot_be_evaluated_is_refused(run: Any, tmp_path: Path) -> None:
    for options, message in (
        ({"reward_model_names": ["a"]}, "differ in number: 1 and 2"),
        ({"reward_model_names": ["a", "a"]}, "two reward models are named a"),
        ({"reward_model_names": ["a", " "]}, "a name is empty"),
        ({"from_outputs": ["x.jsonl"]}, "either --reward_model_checkpoints"),
        ({"split": "validation"}, "--split validation: --data_path has no such pair; it has: test, train"),
        ({"data_path": []}, "nothing to measure"),
        ({"jailbreak_path": str(tmp_path / "none.jsonl")}, "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            run("base", "mv=2", **options)
    with pytest.raises(UserError, match="either --reward_model_checkpoints"):
        run()
    assert not (tmp_path / "out").exists()
    for row, message in (
        ({"prompt": "Hi", "responses": ["a"]}, "record 1.*responses is not a list of two"),
        ({"prompt": "Hi", "responses": ["a", ""]}, "an empty one"),
        ({"prompt": "", "responses": ["a", "b"]}, "prompt is empty"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "responses": ["a", "b"]}, "is not the user's"),
        (
            {"prompt": "Hi", "responses": ["a", "b"], "reward_outputs_x": [[1], [2]]},
            "give such a file to --from_outputs",
        ),
    ):
        with pytest.raises(UserError, match=message):
            run("base", jailbreak_path=jsonl(tmp_path / "bad.jsonl", [row]))


# --- saved outputs ----------------------------------------------------------------------------------------------------


def saved(tmp_path: Path, files: dict[str, list[Any]], **options: Any) -> dict[str, Any]:
    paths = [jsonl(tmp_path / name, rows) for name, rows in files.items()]
    given = {"from_outputs": paths, "output_dir": str(tmp_path / "saved"), "threads": 1}
    evaluate(EvaluatePreferenceConfig(**(given | options)))
    report: dict[str, Any] = json.loads((tmp_path / "saved/evaluation/preference.json").read_text(encoding="utf-8"))
    return report


def rows_of(outputs: list[tuple[list[float], list[float]]]) -> list[dict[str, Any]]:
    return [
        {"reward_output_chosen": a, "reward_output_rejected": b, "data_subset": ["helpful", "harmless"][i % 2]}
        for i, (a, b) in enumerate(outputs)
    ]


def test_published_evaluation_rows_by_hand(tmp_path: Path, capsys: Any) -> None:
    spread_of_1, spread_of_2 = math.log(math.expm1(1)), math.log(math.expm1(2))
    rows = rows_of([([1, spread_of_1], [-1, spread_of_2]), ([1, spread_of_1], [3, spread_of_2])])
    report = saved(tmp_path, {"eval_results_both.jsonl": rows})
    model = report["models"]["eval_results_both"]
    assert (model["kind"], model["likelihood"]) == ("mean_and_variance", "logistic")
    metrics = model["metrics"]
    assert metrics["accuracy"] == pytest.approx(wilson(1, 2))
    assert metrics["r2"]["value"] == pytest.approx(2 / (2 + 2.5))
    z = 2 / math.sqrt(5)
    expected = [math.log1p(math.exp(sign * math.sqrt(2 * math.pi) * z)) for sign in (-1, 1)]
    assert metrics["log_loss"]["value"] == pytest.approx(sum(expected) / 2)
    assert model["by_category"]["helpful"]["r2"]["value"] == pytest.approx(1 / (1 + 2.5))
    assert "eval_results_both" in capsys.readouterr().out


def test_models_on_different_pairs_have_no_paired_difference(tmp_path: Path, capsys: Any) -> None:
    one, two = rows_of([([1], [0]), ([0], [1])]), rows_of([([1], [0]), ([2], [1])])
    report = saved(tmp_path, {"a.jsonl": one, "b.jsonl": two, "c.jsonl": two[:1]})
    assert list(report["paired"]) == ["b - a"]
    assert report["paired"]["b - a"]["accuracy"]["value"] == 0.5
    assert "without a paired difference: c" in capsys.readouterr().out


def test_saved_pairs_are_chosen_by_subset_and_number(tmp_path: Path) -> None:
    rows = rows_of([([1], [0])] * 10)
    report = saved(tmp_path, {"a.jsonl": rows}, data_subset="harmless", num_pairs=3)
    assert report["models"]["a"]["metrics"]["accuracy"]["n"] == 3
    with pytest.raises(UserError, match="--data_subset helpful: the saved outputs of b have no such pair; .*: None"):
        saved(tmp_path, {"b.jsonl": [{"reward_output_chosen": 1, "reward_output_rejected": 0}]}, data_subset="helpful")


def test_saved_outputs_that_cannot_be_measured_together(tmp_path: Path) -> None:
    first = [{"id": 0, "reward_outputs_a": [[1], [2]]}]
    with pytest.raises(UserError, match="jailbreak rows of b are not those of a"):
        saved(tmp_path, {"1.jsonl": first, "2.jsonl": [{"id": 1, "reward_outputs_b": [[1], [2]]}]})
    with pytest.raises(UserError, match="--jailbreak_path is scored by models"):
        saved(tmp_path, {"1.jsonl": first}, jailbreak_path="x.jsonl")
    with pytest.raises(UserError, match="--from_outputs none.jsonl: there is no such file"):
        saved(tmp_path, {}, from_outputs=["none.jsonl"])
    assert not (tmp_path / "saved").exists()


def test_texts_are_shown_without_what_a_terminal_obeys(tmp_path: Path, capsys: Any) -> None:
    row = rows_of([([1, 1], [0, 1])])[0] | {"chosen": "Human: a\x1b[2J\n\nAssistant: b\x07", "rejected": "Human: no"}
    saved(tmp_path, {"a\x1b[31m.jsonl": [row | {"id": "\x1b]0;x"}]})
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "⟨U+001B⟩" in out


TABLE = {
    "base": [("helpful", 0.524, 0.524), ("harmless", 0.037, 0.037), ("both", 0.251, 0.251)],
    "mean_and_variance": [("helpful", 0.594, 0.545), ("harmless", 0.016, 0.048), ("both", 0.305, 0.203)],
    "categorical": [("helpful", 0.610, 0.583), ("harmless", 0.043, 0.043), ("both", 0.321, 0.134)],
}


def test_the_published_table_to_three_decimals(tmp_path: Path, capsys: Any) -> None:
    files = [PUBLISHED / f"jailbroken_outputs_{kind}.jsonl" for kind in TABLE]
    if not all(file.is_file() for file in files):
        pytest.skip("the published outputs are not beside this checkout")
    command = ["--task", "preference", "--mode", "evaluate", "--output_dir", str(tmp_path), "--threads", "1"]
    assert main.main([*command, "--from_outputs", *map(str, files)]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out.split("\n\n")[1].splitlines()[1:]}
    assert len(lines) == 9
    for kind, rows in TABLE.items():
        for trained_on, by_mean, by_risk in rows:
            name = trained_on if kind == "base" else f"{trained_on}_{kind}"
            assert f"{kind}  {by_mean:.3f} [" in lines[name]
            assert f"]  {by_risk:.3f} [" in lines[name]
    assert lines["helpful"].endswith("7, 7") and lines["both"].endswith("1, 1")
    assert "jailbreaks of 187" in out


# --- a real model -----------------------------------------------------------------------------------------------------


def test_a_real_reward_model_on_the_worlds_pairs(tmp_path: Path) -> None:
    from model_training.adapter_directory import save_adapter
    from model_training.models import load_tokenizer
    from model_training.reward_model import build, describe, load_reward_model, score_pairs

    base, folder = make_model("llama", tmp_path / "base"), tmp_path / "runs" / "mv" / "reward_model"
    model = build(str(base), 2, rank=2, alpha=4, dropout=0.0, seed=1)
    note = {
        "reward_model_type": "mean_and_variance",
        "num_outputs": 2,
        "form": "conversation",
        "max_length": 200,
        "likelihood": "probit",
        "shared_prompt": True,
        "held_out": None,
    }
    card = {"reward_model_type": "mean_and_variance", "num_outputs": 2}
    save_adapter(model, load_tokenizer(str(base)), folder, base_name=str(base), card=card, note=note, readme=describe)
    save_records(tmp_path / "pairs.jsonl", compose(load_world(), 40, seed=2), validate=preference_validator())
    config = EvaluatePreferenceConfig(
        reward_model_checkpoints=[str(folder.parent)],
        data_path=[str(tmp_path / "pairs.jsonl")],
        split="train",
        output_dir=str(tmp_path / "out"),
        threads=1,
    )
    evaluate(config)
    report = json.loads((tmp_path / "out/evaluation/preference.json").read_text(encoding="utf-8"))
    metrics = report["models"]["mv"]["metrics"]
    rows = read_jsonl(tmp_path / "out/evaluation/preference_items.jsonl")
    assert 20 < len(rows) == metrics["accuracy"]["n"] < 40
    outputs = torch.stack(score_pairs(load_reward_model(folder), rows, 4), dim=1)
    of = scores("mean_and_variance", outputs, 0.01, "probit")
    assert [row["mean_chosen"] for row in rows] == pytest.approx(of.mean[:, 0].tolist(), abs=1e-5)
    assert [row["risk_rejected"] for row in rows] == pytest.approx(of.risk[:, 1].tolist(), abs=1e-5)
    assert metrics["spread_auroc"]["n"] == len(rows)
    assert set(report["models"]["mv"]["by_category"]) == {"helpful", "harmless", "contested", "agreed"}
    with pytest.raises(UserError, match="every pair is longer"):
        note["max_length"] = 3
        (folder / "subtext.json").write_text(json.dumps({**json.loads((folder / "subtext.json").read_text()), **note}))
        evaluate(replace(config, output_dir=str(tmp_path / "other")))
