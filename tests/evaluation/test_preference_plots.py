"""Pictures and report of reward models: files and what they show, missing parts, untrusted texts, no torch."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import visualize_training
from evaluation import preference_plots
from evaluation.preference_plots import COLORS, draw, models_of, read_items, spread_groups, styles_of, visualize
from evaluation.preference_report import best_model, contents_of, live_page, pair_texts, verdict
from tests.evaluation.make_preference_run import ALPHAS, edit, make_evaluation, make_training
from tests.utils.test_visualization import HOSTILE, Page
from utils.errors import UserError
from utils.series import load_run
from utils.server import Page as LivePage
from utils.visualization import render_report

OF_EVALUATION = [
    "model_comparison.png",
    "reward_distributions.png",
    "spread_by_subset.png",
    "risk_curve.png",
    "reliability.png",
]


def show(directory: Path) -> None:
    visualize(str(directory), start_server=False, server_port=8000, host="127.0.0.1")


def page_of(directory: Path) -> Page:
    """The page without its pictures, which take their time."""
    run = load_run(directory)
    return Page(render_report(run, contents=contents_of(run, {})))


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


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, in place of their PNGs, which take their time."""
    kept: list[Any] = []

    @contextlib.contextmanager
    def keep(width: float, height: float) -> Iterator[tuple[Any, Any]]:
        from io import BytesIO

        from matplotlib.figure import Figure

        kept.append(Figure(figsize=(width, height)))
        yield kept[-1], BytesIO()

    monkeypatch.setattr(preference_plots, "drawing", keep)
    return kept


# --- files ----------------------------------------------------------------------------------------------------------


def test_every_picture_and_the_report_are_written_and_named(drawn: tuple[Path, list[str]]) -> None:
    directory, said = drawn
    names = ["loss_curve.png", *OF_EVALUATION, "training_report.html"]
    assert said == [str(directory / name) for name in names]
    for name in names[:-1]:
        assert (directory / name).read_bytes().startswith(b"\x89PNG\r\n"), name
    assert (directory / "elsewhere.png").read_bytes() == b"not ours"


def test_the_page_is_one_file_that_holds_its_pictures(drawn: tuple[Path, list[str]]) -> None:
    html = (drawn[0] / "training_report.html").read_text()
    page = Page(html)
    sources = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(sources) == len(OF_EVALUATION) and all(value.startswith("data:image/png;base64,") for value in sources)
    assert all(value for tag, name, value in page.attributes if (tag, name) == ("img", "alt"))
    assert len(html) < 6_000_000 and "http://" not in html and "https://" not in html
    assert "img-src data:" in html and not {"script", "link", "iframe"} & set(page.tags)


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
    assert set(draw(run)) == {*OF_EVALUATION} - {"model_comparison.png"}
    text = page_of(tmp_path / "out").text
    assert "saved gives the chosen answer the higher reward in" in text and "Human: Q" in text


# --- untrusted text -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a run that holds nothing hostile."""
    return page_of(make_evaluation(make_training(tmp_path_factory.mktemp("plain")), pairs=20))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text_wherever_it_stands(tmp_path: Path, plain: Page, text: str) -> None:
    directory = make_evaluation(make_training(tmp_path / "run"), pairs=20)

    def spoil(report: dict[str, Any]) -> None:
        models = report["models"]
        models[text] = models.pop("cat") | {"kind": text, "checkpoint": text}
        report["paired"] = {text: report["paired"]["mv - base"]}
        models["mv"]["by_category"] = {text: models["mv"]["by_category"]["helpful"]}
        for row in models["mv"]["risk_curve"]:
            row[text] = row["helpful"]
        for row in models["mv"]["widest"]:
            row |= {"id": text, "data_subset": text, "kind": text}
            row["prompt"][0]["content"] = row["chosen"][0]["content"] = row["rejected"][0]["content"] = text

    edit(directory, spoil)
    page = page_of(directory)
    assert page.text.count(text) >= 30
    assert set(page.tags) == set(plain.tags)
    assert {(tag, name) for tag, name, _ in page.attributes} <= {(tag, name) for tag, name, _ in plain.attributes}


def test_invisible_characters_are_spelled_out(tmp_path: Path) -> None:
    make_evaluation(tmp_path, names=("mv",), pairs=8)

    def spoil(report: dict[str, Any]) -> None:
        report["models"]["mv"]["widest"][0]["chosen"][0]["content"] = "a\u202eb\u200bc\ud800"

    edit(tmp_path, spoil)
    run = load_run(tmp_path)
    html = render_report(run, contents=contents_of(run, {}))
    html.encode("utf-8")
    assert "a⟨U+202E⟩b⟨U+200B⟩c⟨U+D800⟩" in Page(html).text and not set(html) & set("\u202e\u200b\ud800")


def test_pictures_take_any_name(tmp_path: Path) -> None:
    run = load_run(make_evaluation(tmp_path, names=("$\\frac{", "x" * 300, "\u202e\ud800"), pairs=8))
    models = models_of(run)
    picture = preference_plots.model_comparison(run, models, {}, styles_of(list(models)))
    assert picture is not None and picture.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes you", "rejected": "\n\nHuman: Hi\n\nAssistant: Yes me"},
            ("Human: Hi", "Yes you", "Yes me"),
        ),
        ({"chosen": "good", "rejected": "gone"}, ("", "good", "gone")),
        ({"prompt": "Hi", "chosen": "good", "rejected": "bad"}, ("Hi", "good", "bad")),
        (
            {
                "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}],
                "chosen": [{"role": "assistant", "content": "good"}],
                "rejected": [{"role": "assistant", "content": "bad"}],
            },
            ("system: S\n\nuser: Hi", "good", "bad"),
        ),
        (
            {
                "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "good"}],
                "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "bad"}],
            },
            ("Hi", "good", "bad"),
        ),
        ({"data_subset": "helpful"}, ("", "", "")),
    ],
)
def test_pairs_are_taken_apart_for_reading(record: dict[str, Any], expected: tuple[str, str, str]) -> None:
    assert pair_texts(record) == expected


# --- words and numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.51, 0.6, "better than a coin"), (0.45, 0.55, "not told apart from a coin"), (0.3, 0.49, "worse than a coin")],
)
def test_the_verdict_heeds_the_interval(tmp_path: Path, low: float, high: float, said: str) -> None:
    def set_accuracy(report: dict[str, Any]) -> None:
        report["models"]["mv"]["metrics"]["accuracy"] = {"value": 0.5, "n": 100, "low": low, "high": high}

    make_evaluation(tmp_path, names=("mv",))
    edit(tmp_path, set_accuracy)
    run = load_run(tmp_path)
    assert said in verdict(run, models_of(run))[0]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.09, "ahead of base"), (-0.02, 0.09, "not told apart from base"), (-0.09, -0.01, "behind base")],
)
def test_the_best_is_compared_with_the_first(tmp_path: Path, low: float, high: float, said: str) -> None:
    def set_difference(report: dict[str, Any]) -> None:
        report["models"]["mv"]["metrics"]["accuracy"]["value"] = 0.99
        report["paired"]["mv - base"]["accuracy"] |= {"low": low, "high": high}

    make_evaluation(tmp_path)
    edit(tmp_path, set_difference)
    run = load_run(tmp_path)
    assert said in verdict(run, models_of(run))[0]


def test_the_best_is_the_highest_accuracy_and_the_lowest_rate() -> None:
    def model(accuracy: float, jailbreak: float, r2: float) -> dict[str, Any]:
        values = {"accuracy": accuracy, "jailbreak_rate": jailbreak, "ece": jailbreak, "r2": r2}
        return {"kind": "categorical", "metrics": {name: {"value": value} for name, value in values.items()}}

    models = {"a": model(0.6, 0.2, 0.1), "b": model(0.7, 0.3, 0.05), "c": model(0.5, 0.1, 0.9)}
    found = {metric: best_model(models, metric) for metric in ("accuracy", "jailbreak_rate", "ece", "r2", "log_loss")}
    assert found == {"accuracy": "b", "jailbreak_rate": "c", "ece": "c", "r2": "b", "log_loss": None}


# --- pictures -------------------------------------------------------------------------------------------------------


def test_the_risk_curve_shows_each_measure_and_the_trade_offs(tmp_path: Path, figures: list[Any]) -> None:
    run = load_run(make_evaluation(tmp_path))
    models = models_of(run)
    preference_plots.risk_curve(run, models, {}, styles_of(list(models)))
    (figure,) = figures
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == [
        "Trade-off as α falls",
        "Trade-off as α falls",
        "Accuracy, all pairs, %",
        "Accuracy, helpful, %",
        "Accuracy, harmless, %",
        "Jailbreak rate, %",
    ]
    curve = {row["alpha"]: row for row in models["mv"]["risk_curve"]}
    points = [(100 * curve[a]["jailbreak_rate"]["value"], 100 * curve[a]["helpful"]["value"]) for a in ALPHAS[::-1]]
    of_mv = [line for line in figure.axes[1].lines if line.get_color() == COLORS[1] and len(line.get_xdata()) == 4]
    assert [list(map(tuple, line.get_xydata())) for line in of_mv] == [[pytest.approx(point) for point in points]]
    assert [text.get_text() for text in figure.legends[0].texts] == ["base", "mv", "cat"]
    (bands,) = {len(ax.collections) for ax in figure.axes[2:]}
    assert bands == 3


def test_a_reliability_diagram_has_intervals_and_counts(tmp_path: Path, figures: list[Any]) -> None:
    run = load_run(make_evaluation(tmp_path, names=("mv",)))
    models = models_of(run)
    preference_plots.reliability(run, models, {}, styles_of(list(models)))
    above, below = figures[0].axes
    assert "ECE 0.031 (0.020 to 0.050)" in [text.get_text() for text in above.texts]
    table = models["mv"]["reliability"]
    assert [bar.get_height() for bar in below.patches] == [row["n"] for row in table]
    drawn = [list(line.get_ydata()) for line in above.lines]
    assert drawn[-1] == pytest.approx([100 * row["observed"] for row in table])
    assert len([ys for ys in drawn if len(ys) == 2 and ys != [50, 100]]) == len(table)


def test_models_side_by_side_hold_their_own_intervals(tmp_path: Path, figures: list[Any]) -> None:
    run = load_run(make_evaluation(tmp_path))
    models = models_of(run)
    preference_plots.model_comparison(run, models, {}, styles_of(list(models)))
    accuracy = next(ax for ax in figures[0].axes if ax.get_title(loc="left") == "Accuracy, %")
    intervals = [
        tuple(line.get_xdata())
        for line in accuracy.lines
        if len(line.get_xdata()) == 2 and line.get_color() == COLORS[1]
    ]
    expected = [models["mv"]["metrics"][name] for name in ("accuracy", "accuracy_risk")]
    assert intervals == [pytest.approx((100 * found["low"], 100 * found["high"])) for found in expected]
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["base", "mv", "cat"]
    assert len([line for line in accuracy.lines if line.get_color() == COLORS[0]]) == 2, (
        "base has no risk-averse reward"
    )


def test_spreads_are_grouped_by_subset_and_kind(tmp_path: Path) -> None:
    run = load_run(make_evaluation(tmp_path, names=("mv",), pairs=30))
    groups = spread_groups(read_items(run.path, models_of(run))["mv"])
    assert {name: len(values) for name, values in groups.items()} == {
        "all": 30, "harmless": 10, "helpful": 20, "agreed": 15, "contested": 15,
    }  # fmt: skip
    assert list(groups) == ["all", "harmless", "helpful", "agreed", "contested"]
    assert groups["contested"].min() > groups["agreed"].max()


def test_a_model_has_one_color_and_no_two_look_alike() -> None:
    names = [f"model {index}" for index in range(24)]
    styles = styles_of(names)
    assert len({(style.color, style.marker) for style in styles.values()}) == 24
    assert styles_of(names[:5]) == {name: styles[name] for name in names[:5]}


def test_degenerate_numbers_are_drawn(tmp_path: Path) -> None:
    """All rewards and spreads equal, one alpha, one pair in a bin."""
    make_evaluation(tmp_path, names=("mv",), pairs=6)
    items = tmp_path / "evaluation" / "preference_items.jsonl"
    rows = [json.loads(line) for line in items.read_text().splitlines()]
    same = {f"{score}_{side}": 0.0 for score in ("mean", "spread", "risk") for side in ("chosen", "rejected")}
    items.write_text("".join(json.dumps(row | same) + "\n" for row in rows))

    def flatten(report: dict[str, Any]) -> None:
        for model in report["models"].values():
            model["risk_curve"] = model["risk_curve"][:1]
            model["reliability"] = [{"low": 0.5, "high": 0.55, "predicted": 0.5, "observed": 0.5, "n": 1}]

    edit(tmp_path, flatten)
    assert set(draw(load_run(tmp_path))) == {*OF_EVALUATION} - {"model_comparison.png", "risk_curve.png"}


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

    monkeypatch.setattr("evaluation.preference_report.draw", counted)
    now = [0.0]
    page = LivePage(run, live_page(run), clock=lambda: now[0])
    first, html = page.current()
    assert html.count("data:image/png") == 1 and f'data-version="{first}"' in html
    with (run / "metrics.jsonl").open("a") as log:
        log.write(json.dumps({"step": 70, "time": 1.0, "split": "train", "resumes": 0, "loss": 0.5}) + "\n")
    now[0] += 100
    second, html = page.current()
    assert second != first and "10–70" in html and len(count) == 1
    edit(run, lambda report: report["models"].pop("cat"))
    now[0] += 100
    page.current()
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
