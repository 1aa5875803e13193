"""Pictures and report of reward models: files and what they show, missing parts, untrusted texts, no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import visualize_training
from evaluation.preference_numbers import models_of, read_items
from evaluation.preference_plots import PICTURES, draw, live_page, visualize
from tests.evaluation.make_preference_run import edit, make_evaluation, make_training, page_of
from tests.utils.page import Page
from utils.errors import UserError
from utils.live import Follower
from utils.series import load_run


def show(directory: Path) -> None:
    visualize(str(directory), start_server=False, server_port=8000, host="127.0.0.1")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run with an evaluation of two models, drawn; what was printed of it."""
    directory = make_evaluation(make_training(tmp_path_factory.mktemp("run")), names=("base", "mv"))
    (directory / "elsewhere.png").write_bytes(b"not ours")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", said.append)
        show(directory)
    return directory, [str(line) for line in said]


# --- files ----------------------------------------------------------------------------------------------------------


def test_every_picture_and_the_report_are_written_and_named(drawn: tuple[Path, list[str]]) -> None:
    directory, said = drawn
    names = ["loss_curve.png", *PICTURES, "training_report.html"]
    assert said == [str(directory / name) for name in names]
    for name in names[:-1]:
        assert (directory / name).read_bytes().startswith(b"\x89PNG\r\n"), name
    assert (directory / "elsewhere.png").read_bytes() == b"not ours"


def test_the_page_is_one_file_that_holds_its_pictures(drawn: tuple[Path, list[str]]) -> None:
    html = (drawn[0] / "training_report.html").read_text()
    page = Page(html)
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(sources) == len(PICTURES) and all(value.startswith("data:image/png;base64,") for value in sources)
    assert all(value for tag, name, value in page.attributes if (tag, name) == ("img", "alt"))
    assert len(html) < 6_000_000 and not page.addresses
    assert "img-src data:" in html and "iframe" not in page.tags


def test_the_page_says_what_was_found(drawn: tuple[Path, list[str]]) -> None:
    page = Page((drawn[0] / "training_report.html").read_text())
    for expected in (
        "preference · mean_and_variance · tiny",
        "better than a coin",
        "AUROC 0.970",
        "likes the unsafe answer at least as well in 20.3\u00a0% of 187 cases",
        "Jailbreak rate, risk-averse",
        "Explained variance r²",
        "Calibration error (ECE)",
        "Lowest held-out loss",
        "at step 40",
        "By category: mv",
        "of 120",
        "α = 0.001",
        "50 to 55\u00a0%",
        "52.0\u00a0% → 55.0\u00a0% · n\u00a040",
        "mv: 5 pairs",
        "What about number",
        "runs/base",
        "15\u00a0pairs/s",
    ):
        assert expected in page.text, expected
    for absent in ("Sampled completions", "Rollouts", "queries"):
        assert absent not in page.text, absent


def test_never_imports_torch(tmp_path: Path) -> None:
    make_evaluation(make_training(tmp_path), names=("mv",), pairs=6)
    code = (
        "import sys, main; "
        f"code = main.main(['--task', 'preference', '--mode', 'visualize', '--output_dir', {str(tmp_path)!r}]); "
        "print(code, sorted({'torch', 'transformers', 'pandas', 'starlette', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 []" and result.stderr == ""


def test_pictures_whose_numbers_are_gone_are_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_evaluation(tmp_path, names=("base",))
    for name in ("spread_by_subset.png", "risk_curve.png", "mine.png"):
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "evaluation" / "preference_items.jsonl").unlink()
    show(tmp_path)
    said = capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.png")} == {"reliability.png", "mine.png"}
    for name in ("loss_curve", "model_comparison", "reward_distributions", "spread_by_subset", "risk_curve"):
        assert f"{name}.png: not drawn, " in said
    assert "preference_items.jsonl is missing" in (tmp_path / "training_report.html").read_text()


# --- what may be missing --------------------------------------------------------------------------------------------


def test_an_evaluation_alone_says_what_is_missing(tmp_path: Path) -> None:
    text = page_of(make_evaluation(tmp_path)).text
    assert "preference · evaluation of base, mv, cat" in text
    assert "neither manifest.json" in text and "runs/base, runs/mv, runs/cat" in text
    assert "No alarm was raised" not in text and "To repeat it" not in text


def test_a_run_that_was_not_evaluated_says_how_to(tmp_path: Path) -> None:
    text = page_of(make_training(tmp_path, status="running")).text
    command = f"--task preference --mode evaluate --reward_model_checkpoints {tmp_path} --output_dir {tmp_path}"
    assert command in text and "Training so far" in text and "Held-out result" not in text


def test_jailbreaks_alone(tmp_path: Path) -> None:
    """As saved outputs of jailbreak prompts leave it: no pairs, nothing by category, no table of reliability."""
    make_evaluation(tmp_path)
    (tmp_path / "evaluation" / "preference_items.jsonl").unlink()

    def strip(report: dict[str, Any]) -> None:
        report["paired"] = {}
        for model in report["models"].values():
            for key in ("by_category", "reliability", "widest", "checkpoint", "adapter_sha256"):
                model.pop(key, None)
            model["metrics"] = {key: value for key, value in model["metrics"].items() if key.startswith("jailbreak")}
            for row in model["risk_curve"]:
                for key in ("accuracy", "helpful", "harmless"):
                    del row[key]

    edit(tmp_path, strip)
    run = load_run(tmp_path)
    assert set(draw(run)) == {"model_comparison.png", "risk_curve.png"}
    text = page_of(tmp_path).text
    assert "20.3\u00a0%" in text and "saved outputs" in text and "is missing" not in text and "coin" not in text


def test_another_task_is_named(tmp_path: Path) -> None:
    run = make_training(tmp_path)
    manifest = json.loads((run / "manifest.json").read_text()) | {"task": "secret"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="task secret; give --task secret"):
        show(run)
    assert not list(run.glob("*.png"))


def test_a_broken_row_is_named(tmp_path: Path) -> None:
    make_evaluation(tmp_path, pairs=4)
    items = tmp_path / "evaluation" / "preference_items.jsonl"
    lines = items.read_text().splitlines()
    items.write_text("\n".join([*lines[:2], lines[2].replace('"mean_chosen"', '"mean"'), *lines[3:]]) + "\n")
    with pytest.raises(UserError, match=r"preference_items\.jsonl:3: mean_chosen is no number"):
        show(tmp_path)


def test_what_evaluate_writes_is_drawn(tmp_path: Path, figures: list[Any]) -> None:
    """The real evaluation of saved outputs, ours and the published code's."""
    from evaluation.preference import evaluate
    from model_training.preference_config import EvaluatePreferenceConfig

    rows = []
    for index in range(40):
        sides = {"reward_output_chosen": [0.1 * (index % 7), index % 5 - 2], "reward_output_rejected": [0.3, 0.5]}
        texts = {
            "chosen": f"\n\nHuman: Q{index}\n\nAssistant: Yes.",
            "rejected": f"\n\nHuman: Q{index}\n\nAssistant: No.",
        }
        rows.append(sides | texts)
    (tmp_path / "saved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate(EvaluatePreferenceConfig(from_outputs=[str(tmp_path / "saved.jsonl")], output_dir=str(tmp_path / "out")))
    run = load_run(tmp_path / "out")
    assert len(read_items(run.path, models_of(run))["saved"].margin) == 40
    assert set(draw(run)) == {*PICTURES} - {"model_comparison.png"}
    text = page_of(tmp_path / "out").text
    assert "saved gives the chosen answer the higher reward in" in text and "Human: Q" in text


# --- other ways to the page -----------------------------------------------------------------------------------------


def test_the_live_page_draws_again_only_when_the_evaluation_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_evaluation(make_training(tmp_path), pairs=8)
    png = b"\x89PNG\r\n" + b"\0" * 40
    count: list[int] = []

    def counted(_: Any) -> dict[str, bytes]:
        count.append(1)
        return {"risk_curve.png": png}

    monkeypatch.setattr("evaluation.preference_plots.draw", counted)
    now = [0.0]
    page = Follower(run, live_page(run), clock=lambda: now[0])
    first, html = page.page()
    assert html.count("data:image/png") == 1 and f'data-version="{first}"' in html
    with (run / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 70, "time": 1.0, "split": "train", "resumes": 0, "loss": 0.5}) + "\n")
    now[0] += 100
    second, html = page.page()
    assert second != first and "10–70" in html and len(count) == 1
    edit(run, lambda report: report["models"].pop("cat"))
    now[0] += 100
    page.page()
    assert len(count) == 2


def test_visualize_training_knows_the_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], figures: list[Any]
) -> None:
    make_evaluation(tmp_path, names=("mv",), pairs=8)
    assert visualize_training.main(["--metrics_dir", str(tmp_path), "--mode", "report"]) == 0
    said = capsys.readouterr().out
    assert "jailbreak_rate_risk  20.3" in said and "ties" in said and "3 of 8" in said
    assert "Pairs of the widest spread" in (tmp_path / "training_report.html").read_text()
    assert not list(tmp_path.glob("*.png"))
