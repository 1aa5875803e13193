"""Answers scored: the numbers, what is said of them, and the forms in which a question comes."""

from __future__ import annotations

import io
import json
import math
import sys
from typing import Any

import pytest
import torch

from evaluation import score as stage
from evaluation.score import judged, score
from model_training import reward_model
from model_training.preference_config import ScoreConfig
from utils.errors import UserError, WorkError

USUAL = {"mean": [i / 10 for i in range(11)], "spread": [i / 5 for i in range(11)]}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def raw(spread: float) -> float:
    return math.log(math.expm1(spread))


class FakeModel:
    """Gives the mean and spread that stand in the answer, as `0.4/1.5`."""

    def __init__(self, path: str) -> None:
        self.kind = "base" if "base" in path else "mean_and_variance"
        self.form, self.likelihood = "text", "probit"
        self.held_out = None if "fresh" in path else USUAL


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`run(["mv"], query=..., response=[...])`: score with fake models; gives what was printed."""

    def outputs_of(model: FakeModel, texts: list[str], batch_size: int) -> torch.Tensor:
        rows = []
        for text in texts:
            seen.append(text)
            mean, spread = map(float, text.rpartition("Assistant: ")[2].split("/"))
            rows.append([mean, raw(spread)] if model.kind != "base" else [mean])
        return torch.tensor(rows)

    def printed(paths: list[str], **options: Any) -> str:
        score(ScoreConfig(reward_model_checkpoints=paths, threads=1, **options))
        return capsys.readouterr().out

    seen: list[str] = []
    printed.seen = seen  # type: ignore[attr-defined]
    monkeypatch.setattr(reward_model, "load_reward_model", lambda path, *how: FakeModel(path))
    monkeypatch.setattr(reward_model, "score", outputs_of)
    return printed


def test_one_answer_is_set_beside_held_out_ones(run: Any) -> None:
    out = run(["runs/mv"], query="How?", response=["0.72/1.9"])
    assert run.seen == ["Human: How?\n\nAssistant: 0.72/1.9"]
    assert out.startswith("mv (mean_and_variance); risk-averse: the 0.01-quantile")
    assert "(medians): mean 0.5, spread 1" in out
    assert f"mean 0.720   spread 1.900   risk-averse {0.72 - 2.3263479 * 1.9:.3f}" in out
    assert "Better than 72% of held-out answers on average, and with a spread above 95% among the most contested" in out
    assert "P(" not in out


@pytest.mark.parametrize(
    ("spread", "words"),
    [(0.1, "less contested than most"), (1.0, "about as contested as most"), (1.5, "more contested"), (9, "among the")],
)
def test_how_contested_is_said_in_words(run: Any, spread: float, words: str) -> None:
    assert words in run(["mv"], query="How?", response=[f"0.5/{spread}"])


def test_two_answers_are_compared(run: Any) -> None:
    out = run(["mv"], query="How?", response=["1.0/2.0", "0.5/0.1"], alpha=0.05)
    z = 0.5 / math.hypot(2, 0.1)
    assert f"P(response 1 over response 2) = {0.5 * math.erfc(-z / math.sqrt(2)):.1%}" in out
    assert "Preferred on average: response 1; by the 0.05-quantile: response 2. They differ" in out
    same = run(["mv"], query="How?", response=["1.0/0.1", "0.5/0.1"])
    assert "Preferred on average and by the 0.01-quantile: response 1." in same
    assert "responses 1 and 2 alike" in run(["mv"], query="How?", response=["1.0/0.1", "1.0/0.1"])


def test_three_answers_make_a_table(run: Any) -> None:
    out = run(["mv"], query="How?", response=["1.0/0.1", "1.0/0.1", "9.0/0.1"])
    table = [line.split() for line in out.split("P(preferred)")[1].splitlines()]
    assert table[1] == ["response", "1", "-", "50.0%", "0.0%"]
    assert table[3] == ["response", "3", "100.0%", "100.0%", "-"]


def test_a_single_number_knows_no_disagreement(run: Any) -> None:
    out = run(["base"], query="How?", response=["1.0/1", "0.0/1"])
    assert "cannot say whether people would disagree" in out and "spread" not in out and "Preferred: response 1." in out
    assert "P(response 1 over response 2) = 73.1%" in out


def test_without_held_out_answers_nothing_is_claimed_of_the_usual(run: Any) -> None:
    out = run(["fresh"], query="How?", response=["1.0/0.25"])
    assert "nothing to set these beside" in out
    assert "those who judge differ by about 0.25" in out and "Better than" not in out


def test_json_lines_from_standard_input(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        {"query": "How?", "responses": ["1.0/2.0", "0.5/0.1"]},
        {"query": [message("system", "Be\x1b kind."), message("user", "Why?")], "responses": ["0.1/1"]},
    ]
    text = "\ufeff" + json.dumps(asked[0]) + "\r\n\n" + json.dumps(asked[1])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    rows = [json.loads(line) for line in run(["base", "mv"], query="-", show="json").splitlines()]
    assert [(row["model"], row["query"], row["number"]) for row in rows] == [
        (model, asked[i]["query"], number) for model in ("base", "mv") for i, number in ((0, 1), (0, 2), (1, 1))
    ]
    assert run.seen[2] == "Be\x1b kind.\n\nHuman: Why?\n\nAssistant: 0.1/1"
    first, second = rows[3:5]
    assert first["mean"] == 1.0 and first["spread"] == pytest.approx(2.0) and len(first["outputs"]) == 2
    assert (first["mean_above"], second["spread_above"]) == (1.0, pytest.approx(0.05))
    assert first["wins"][0] is None and first["wins"][1] + second["wins"][0] == pytest.approx(1)
    assert [(row["best_by_mean"], row["best_by_risk"]) for row in (first, second)] == [(True, False), (False, True)]
    assert rows[0]["spread"] is None and rows[0]["risk"] == 1.0
    assert rows[5]["mean"] == pytest.approx(0.1), "each question gets its own outputs"


def test_nothing_that_a_terminal_obeys_is_printed(run: Any) -> None:
    out = run(["mv"], query="a\x1b[2J\u202eb", response=["1/1"])
    assert "\x1b" not in out and "\u202e" not in out and "⟨U+001B⟩" in out
    as_json = run(["mv"], query="a\x1b[2J\u202eb", response=["1/1"], show="json")
    assert "\x1b" not in as_json and "\u202e" not in as_json and json.loads(as_json)["query"] == "a\x1b[2J\u202eb"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--query is empty"),
        ({"query": "Hi"}, "--response is missing"),
        ({"query": "Hi", "response": ["a", " "]}, "--response holds an empty text"),
        ({"query": "Hi \udc80", "response": ["a"]}, "not valid Unicode"),
        ({"query": "-", "response": ["a"]}, "leave --response out"),
    ],
)
def test_questions_that_cannot_be_asked(run: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(["mv"], **options)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "standard input is empty"),
        ("{", "line 1: not valid JSON"),
        ('"Hi"', "line 1: not an object"),
        ('\n{"query": 3, "responses": ["a"]}', "line 2: query is neither"),
        ('{"query": "Hi", "responses": "a"}', "responses is missing or empty"),
        ('{"query": "Hi", "responses": [1]}', "what is no text"),
        ('{"query": [{"role": "user"}], "responses": ["a"]}', r"query\[0\].content is not a text"),
        ('{"query": [{"role": "robot", "content": "x"}], "responses": ["a"]}', r"query\[0\] is not a message"),
        (json.dumps({"query": [message("user", "x"), message("system", "y")], "responses": ["a"]}), "not the first"),
        ('{"query": [{"role": "assistant", "content": "x"}], "responses": ["a"]}', "is not the user's"),
    ],
)  # fmt: skip
def test_lines_that_are_no_question(run: Any, monkeypatch: pytest.MonkeyPatch, line: str, message: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(line.encode())))
    with pytest.raises(UserError, match=message):
        run(["mv"], query="-")


def test_models_are_named_by_their_directories_or_by_the_user(run: Any) -> None:
    ask = {"query": "Hi", "response": ["1/1"]}
    assert run(["runs/mv/reward_model/"], **ask).startswith("mv (")
    assert run(["runs/mv"], reward_model_names=["mine"], **ask).startswith("mine (")
    for paths, names, message in (
        ([], [], "--reward_model_checkpoints is missing"),
        (["a/mv", "b/mv"], [], "two reward models are named mv"),
        (["a", "b"], ["x"], "differ in number: 1 and 2"),
    ):
        with pytest.raises(UserError, match=message):
            run(paths, reward_model_names=names, **ask)


def test_a_reward_that_is_not_finite_is_an_error(run: Any) -> None:
    with pytest.raises(WorkError, match="mv: a reward is not finite"):
        run(["mv"], query="Hi", response=["nan/1"])


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_a_row_is_judged_by_the_formulas_of_its_kind() -> None:
    atoms = torch.tensor([[0.0, 0.0, 40.0], [40.0, 0.0, 0.0]])
    top, bottom = judged("Hi", ["a", "b"], atoms, "categorical", "probit", 0.5, None)
    assert (top["mean"], bottom["mean"]) == pytest.approx((1, 0))
    assert top["risk"] == pytest.approx(2.5 / 3)
    assert top["wins"][1] == pytest.approx(1) and top["mean_above"] is None
    normal = torch.tensor([[1.0, raw(1)], [0.0, raw(1)]])
    logistic = judged("Hi", ["a", "b"], normal, "mean_and_variance", "logistic", 0.5, None)
    assert logistic[0]["wins"][1] == pytest.approx(1 / (1 + math.exp(-math.sqrt(math.pi))))
    assert stage.shown("x" * 400).endswith("x…") and len(stage.shown("x" * 400)) == 300
