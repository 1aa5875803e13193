"""The report of reward models: words that the numbers allow, texts that do no harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evaluation.preference_numbers import models_of
from evaluation.preference_report import best_model, contents_of, pair_texts, verdict
from tests.evaluation.make_preference_run import edit, make_evaluation, make_training, page_of
from tests.utils.page import HOSTILE, Page
from utils.series import load_run
from utils.visualization import render_report

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
            row["prompt"][0]["content"] = row["chosen"][0]["content"] = text
            row["rejected"][0]["content"] = f"Another one: {text}"

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


def test_the_page_says_on_what_models_were_measured(tmp_path: Path) -> None:
    make_evaluation(tmp_path)
    assert "all models on the same pairs of split test" in page_of(tmp_path).text
    edit(tmp_path, lambda report: report["paired"].pop("cat - base"))
    assert "measured on other rows than base, so not to be compared with it: cat." in page_of(tmp_path).text
    edit(tmp_path, lambda report: report["config"].update(from_outputs=["saved.jsonl"]))
    assert "of 120 pairs of saved outputs (" in page_of(tmp_path).text


def test_the_best_is_the_highest_accuracy_and_the_lowest_rate() -> None:
    def model(accuracy: float, jailbreak: float, r2: float) -> dict[str, Any]:
        values = {"accuracy": accuracy, "jailbreak_rate": jailbreak, "ece": jailbreak, "r2": r2}
        return {"kind": "categorical", "metrics": {name: {"value": value} for name, value in values.items()}}

    models = {"a": model(0.6, 0.2, 0.1), "b": model(0.7, 0.3, 0.05), "c": model(0.5, 0.1, 0.9)}
    found = {metric: best_model(models, metric) for metric in ("accuracy", "jailbreak_rate", "ece", "r2", "log_loss")}
    assert found == {"accuracy": "b", "jailbreak_rate": "c", "ece": "c", "r2": "b", "log_loss": None}
