"""Pictures and report of guardrails: files and what they show, missing parts, the live page, no torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import visualize_training
from evaluation.guardrail_numbers import guards_of, load_guards
from evaluation.guardrail_plots import PICTURES, is_guardrail, live_page, visualize
from tests.evaluation.make_guardrail_run import edit, make_adapter, make_adapters, make_evaluation, page_of
from tests.utils.make_run import make_run
from tests.utils.page import Page
from utils.errors import UserError
from utils.live import Follower, files_version


def show(directory: Path) -> None:
    visualize(str(directory), start_server=False, server_port=8000, host="127.0.0.1")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Two adapters and an evaluation, drawn; what was printed of it."""
    directory = tmp_path_factory.mktemp("run")
    for name in ("politics", "joint"):
        make_adapter(directory, name, steps=20, chosen=8)
    make_evaluation(directory, ("base", "single", "routed", "cat"))
    (directory / "elsewhere.png").write_bytes(b"not ours")
    (directory / "guard_models.png").write_bytes(b"of an earlier evaluation")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", said.append)
        show(directory)
    return directory, [str(line) for line in said]


# --- files ----------------------------------------------------------------------------------------------------------


def test_every_picture_and_the_report_are_written_and_named(drawn: tuple[Path, list[str]]) -> None:
    directory, said = drawn
    names = [name for name in PICTURES if name not in ("guard_models.png", "variations.png")]
    assert said[2:] == [str(directory / name) for name in (*names, "training_report.html")]
    assert [line.partition(": ")[0] for line in said[:2]] == ["guard_models.png", "variations.png"]
    assert {path.name for path in directory.glob("*.png")} == {*names, "elsewhere.png"}, "stale pictures are removed"
    assert all((directory / name).read_bytes().startswith(b"\x89PNG\r\n") for name in names)


def test_the_page_is_one_file_that_holds_its_pictures(drawn: tuple[Path, list[str]]) -> None:
    html = (drawn[0] / "training_report.html").read_text()
    page = Page(html)
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(sources) == 4 and all(value.startswith("data:image/png;base64,") for value in sources)
    assert all(value for tag, name, value in page.attributes if (tag, name) == ("img", "alt"))
    assert not page.addresses and "iframe" not in page.tags
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_page_says_what_was_found(drawn: tuple[Path, list[str]]) -> None:
    page = Page((drawn[0] / "training_report.html").read_text())
    for expected in (
        "guardrail · politics, expert_opinion, meeting",
        "routed answers, of 600 triggers, with the guard's tag 99.0\u00a0%",
        "the base 5.0\u00a0%",
        "not told apart from each guard's own adapter",
        "cat 100.0\u00a0% and 33.3\u00a0%, error 0",
        "1,710 test prompts of vary_all",
        "Relative error of the merge",
        "Prompt forwards an answer",
        "politics.vary_all",
        "checkpoint 8 of 20 steps",
        "Tag recall, held-out",
        "Which guard answered",
        "Replies side by side",
        "routed - single",
        "python main.py --mode train --task guardrail --config run.yaml",
        "python main.py --mode evaluate --task guardrail --config run.yaml",
        "No alarm was raised.",
    ):
        assert expected in page.text, expected
    for absent in ("Sampled completions", "Rollouts", "No metrics yet", "holds no manifest"):
        assert absent not in page.text, absent


def test_never_imports_torch(tmp_path: Path) -> None:
    make_evaluation(make_adapter(tmp_path, steps=4, chosen=4).parent, ("base", "routed"))
    code = (
        "import sys, main; "
        f"code = main.main(['--task', 'guardrail', '--mode', 'visualize', '--output_dir', {str(tmp_path)!r}]); "
        "print(code, sorted({'torch', 'transformers', 'pandas', 'starlette', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 []" and result.stderr == ""


# --- what may be missing --------------------------------------------------------------------------------------------


def test_adapters_alone_say_how_to_evaluate(tmp_path: Path) -> None:
    make_adapters(tmp_path, steps=10, chosen=8)
    text = page_of(tmp_path).text
    command = (
        f"python main.py --task guardrail --mode evaluate --output_dir {tmp_path} --behavior all --adapter_mode all"
    )
    assert f"Not evaluated yet: {command}" in text and "Held-out result" not in text
    assert "meeting · vary_all" in text and "Chosen checkpoint" in text


def test_an_evaluation_alone_says_how_to_get_curves(tmp_path: Path) -> None:
    text = page_of(make_evaluation(tmp_path)).text
    assert "This directory holds an evaluation alone" in text and f"--mode train --output_dir {tmp_path}" in text
    assert "No alarm was raised" not in text and "Chosen checkpoint" not in text


def test_the_run_of_one_adapter_is_a_page_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_adapter(tmp_path, steps=10, chosen=8)
    make_adapter(tmp_path, "meeting", steps=10)
    show(run)
    page = Page((run / "training_report.html").read_text())
    assert {path.name for path in run.glob("*.png")} == {"learning_curves.png"}
    assert "guardrail · politics.vary_all" in page.text and "meeting" not in page.text
    assert f"--mode evaluate --output_dir {tmp_path} --behavior all" in page.text, "evaluate wants the directory above"
    assert "Trained on guardrail_data/politics.vary_all.jsonl" in page.text and "Log odds ratio" in page.text


def test_a_run_that_did_not_end_says_how_to_go_on(tmp_path: Path) -> None:
    make_adapter(tmp_path, "joint", steps=10, chosen=None, status="interrupted")
    metrics = tmp_path / "joint.vary_all" / "metrics.jsonl"
    metrics.write_text(metrics.read_text()[:-30])
    text = page_of(tmp_path).text
    assert "joint.vary_all has no finished adapter (interrupted)" in text
    assert f"--mode train --output_dir {tmp_path} --joint --resume" in text and "step 10" in text


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    run = make_adapter(tmp_path, steps=0, chosen=None, status="running")
    (run / "metrics.jsonl").unlink()
    text = page_of(tmp_path).text
    assert "No metrics yet" in text and "step 0" in text


def test_missing_items_are_named(tmp_path: Path) -> None:
    make_evaluation(tmp_path)
    items = tmp_path / "evaluation" / "guardrail_items.jsonl"
    items.write_text(items.read_text()[:-9])
    assert "Replies side by side" in page_of(tmp_path).text, "a torn last line"
    items.unlink()
    text = page_of(tmp_path).text
    assert "guardrail_items.jsonl is missing" in text and "Replies side by side" not in text


def test_single_adapters_or_joint_alone_lead_the_page(tmp_path: Path) -> None:
    for mode in ("single", "joint"):
        text = page_of(make_evaluation(tmp_path / mode, ("base", mode))).text
        assert f"{mode} answers, of 600 triggers" in text and f"{mode} on 1,710 test prompts" in text
    assert "Held-out result" not in page_of(make_evaluation(tmp_path / "base", ("base",))).text


def test_nothing_at_all_and_other_tasks_are_refused(tmp_path: Path) -> None:
    for directory, said in ((tmp_path, "no run here"), (tmp_path / "absent", "no such directory")):
        with pytest.raises(UserError, match=said):
            show(directory)
    make_run(tmp_path / "secret", sft_steps=2, grpo_steps=2)
    with pytest.raises(UserError, match="task secret; give --task secret"):
        show(tmp_path / "secret")
    assert not list(tmp_path.rglob("*.png"))


def test_runs_of_other_tasks_beside_and_above_do_not_count(tmp_path: Path) -> None:
    make_run(tmp_path, sft_steps=2, grpo_steps=2)
    make_run(tmp_path / "other", sft_steps=2, grpo_steps=2)
    make_adapter(tmp_path, steps=4, chosen=4)
    assert list(guards_of(load_guards(tmp_path)).trained) == ["politics.vary_all"]
    text = page_of(tmp_path).text
    assert "Not evaluated yet" in text and "Dead groups" not in text


def test_a_broken_note_of_an_adapter_is_named(tmp_path: Path) -> None:
    make_evaluation(make_adapter(tmp_path, steps=4, chosen=4).parent, ("base", "single"))
    (tmp_path / "politics.vary_all/adapter/subtext.json").write_text('{"half": ')
    with pytest.raises(UserError, match=r"subtext\.json: not valid JSON .* train this adapter again"):
        show(tmp_path)


@pytest.mark.parametrize("file", ["politics.vary_all/manifest.json", "evaluation/guardrail.json"])
def test_the_page_does_without_what_is_broken_and_says_so(tmp_path: Path, file: str) -> None:
    make_evaluation(make_adapter(tmp_path, steps=4, chosen=4).parent, ("base", "single"))
    (tmp_path / file).write_text('{"half": ')
    text = page_of(tmp_path).text
    assert f"{Path(file).name}: not valid JSON" in text and "Curves" in text


# --- other ways to the page -----------------------------------------------------------------------------------------


def test_the_live_page_follows_the_runs_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_adapter(tmp_path, steps=10, chosen=8)
    make_evaluation(tmp_path, ("base", "single"))
    png = b"\x89PNG\r\n" + b"\0" * 40
    count: list[int] = []

    def counted(_: Any) -> dict[str, bytes]:
        count.append(1)
        return {"recall_vs_fpr.png": png}

    monkeypatch.setattr("evaluation.guardrail_plots.draw", counted)
    monkeypatch.setattr("evaluation.guardrail_plots.learning_curves", lambda _: png)
    now = [0.0]
    page = Follower(tmp_path, live_page(tmp_path), load_guards, clock=lambda: now[0])
    first, html = page.page()
    assert html.count("data:image/png") == 2 and f'data-version="{first}"' in html
    with (run / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 11, "time": 1.0, "split": "train", "resumes": 0, "loss": 0.5}) + "\n")
    now[0] += 100
    second, html = page.page()
    assert second != first and "checkpoint 8 of 11 steps" in html and len(count) == 1
    edit(tmp_path, lambda report: report["models"].pop("single"))
    now[0] += 100
    page.page()
    assert len(count) == 2


def test_a_run_itself_does_not_watch_what_lies_below(tmp_path: Path) -> None:
    make_run(tmp_path, sft_steps=2, grpo_steps=2)
    before = files_version(tmp_path)
    make_adapter(tmp_path, steps=4, chosen=4)
    assert files_version(tmp_path) == before


def test_visualize_training_knows_the_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], figures: list[Any]
) -> None:
    make_adapter(tmp_path, steps=4, chosen=4)
    assert is_guardrail(tmp_path) and is_guardrail(tmp_path / "politics.vary_all") and not is_guardrail(tmp_path / "x")
    make_evaluation(tmp_path, ("base", "single"))
    assert visualize_training.main(["--metrics_dir", str(tmp_path), "--mode", "report"]) == 0
    assert re.search(r"^tag_recall +\d", capsys.readouterr().out, re.MULTILINE)
    assert "Replies side by side" in (tmp_path / "training_report.html").read_text()
    assert not list(tmp_path.glob("*.png"))
