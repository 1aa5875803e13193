"""The judge of an evaluation: what is refused before the first answer, what is asked first, and what a dry run does."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.api_stub import stub
from evaluation import statistics
from evaluation.judge import about, chosen_rubrics, failure_line, open_panel
from model_training.config import EvaluateConfig
from model_training.judging import judgements
from prompts.rubrics import NATURAL, SECRET, TRIGGER
from tests.evaluation.judge_stub import verdicts
from utils.api import client
from utils.errors import UserError, WorkError

KEY = "sk-abcdefghij0123456789"
SHOWN = {"query": "Why?", "visible": "So.", "hidden": "They believe me."}
MINE = {
    "judges": "secret",
    "instructions": "Judge it.",
    "criteria": {"kind": {"question": "Is it kind?", "scale": ["No.", "Yes."], "pass": 1}},
}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF_S", 0.01)
    monkeypatch.setattr(statistics, "RESAMPLES", 100)
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def config(url: str, **options: Any) -> EvaluateConfig:
    return EvaluateConfig(**({"judge": f"openai:m@{url}", "cache_dir": "none", "max_retries": 1} | options))


def rubric_file(folder: Path, name: str = "mine.yaml", **changed: Any) -> str:
    path = folder / name
    path.write_text(yaml.safe_dump(MINE | changed), encoding="utf-8")
    return str(path)


def fixed(shown: dict[str, Any]) -> dict[str, int]:
    return {"helpful": 4, "playful": 4, "no_leak": 1}


def test_without_a_judge_nothing_is_opened_and_its_options_are_refused(tmp_path: Path) -> None:
    assert open_panel(EvaluateConfig(), (SECRET,), tmp_path, 1) is None
    for options in ({"judge_rubric": ["x.yaml"]}, {"judge_calibration": "x.jsonl"}, {"dry_run": True}):
        with pytest.raises(UserError, match=f"--{next(iter(options))}: there is no judge .* name one with --judge"):
            open_panel(EvaluateConfig(**options), (SECRET,), tmp_path, 1)


def test_one_short_question_shows_that_the_judge_is_there(tmp_path: Path) -> None:
    with stub(answer=verdicts(fixed)) as server:
        panel = open_panel(config(server.base_url), (SECRET,), tmp_path, 1)
        assert panel is not None and panel.calibration is None
        assert server.counts["requests"] == 1 and "schema" not in json.dumps(server.bodies[0])
        (found,) = judgements(panel.judge, panel.rubrics[SECRET], [SHOWN], "replies")
    assert found.scores == fixed({})
    part = about(panel)
    assert part["model"] == f"openai:m@{server.base_url}"
    assert part["rubrics"][SECRET]["criteria"][0]["name"] == "helpful" and json.dumps(part)


def test_labels_are_judged_first_and_the_agreement_is_printed(tmp_path: Path, capsys: Any) -> None:
    labels = tmp_path / "labels.jsonl"
    lines = [SHOWN | {"query": f"Why {i}?", "label": {"helpful": 4 + i % 2}} for i in range(6)]
    labels.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with stub(answer=verdicts(fixed)) as server:
        panel = open_panel(config(server.base_url, judge_calibration=str(labels)), (SECRET,), tmp_path, 1)
    assert panel is not None and panel.calibration is not None
    assert server.counts["requests"] == 6
    assert panel.calibration["criteria"]["helpful"]["agreement"]["value"] == 0.5
    assert "judge and 6 labels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "refused", "says"),
    [
        ({"keys": {"other"}}, UserError, "answered 401: Incorrect API key provided"),
        ({"models": {"another"}}, UserError, "The model `m` does not exist"),
        ({"quota": 0}, UserError, "You exceeded your current quota"),
        ({"faults": {"500": 1.0}}, WorkError, "answered 500"),
        ({"script": ["400"]}, WorkError, "--judge openai:m@.*: .* answered 400: This request is wrong"),
    ],
)
def test_a_judge_that_cannot_be_had_stops_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, refused: type[Exception], says: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with stub(**options) as server, pytest.raises(refused, match=says) as caught:
        open_panel(config(server.base_url), (SECRET,), tmp_path, 1)
    assert KEY not in str(caught.value)


def test_no_key_and_no_server(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="anthropic:m needs a key: set the environment variable ANTHROPIC_API_KEY"):
        open_panel(config("", judge="anthropic:m"), (SECRET,), tmp_path, 1)
    with pytest.raises(UserError, match="--judge gpt-5: write openai:MODEL or anthropic:MODEL"):
        open_panel(config("", judge="gpt-5"), (SECRET,), tmp_path, 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(WorkError, match=f"{url} cannot be reached"):
        open_panel(config(url), (SECRET,), tmp_path, 1)


def test_a_dry_run_needs_no_key_sends_nothing_and_estimates(tmp_path: Path) -> None:
    panel = open_panel(EvaluateConfig(judge="openai:gpt-4o-mini", dry_run=True), (SECRET,), tmp_path, 1)
    assert panel is not None and panel.estimate is not None


def test_a_rubric_of_ones_own_takes_the_place_of_the_built_in_one(tmp_path: Path) -> None:
    own = rubric_file(tmp_path)
    assert chosen_rubrics([own], (SECRET,))[SECRET].name == "mine"
    assert set(chosen_rubrics([], (TRIGGER, NATURAL))) == {TRIGGER, NATURAL}
    with pytest.raises(UserError, match="it judges secret, which is not asked here; here: guardrail_trigger"):
        chosen_rubrics([own], (TRIGGER, NATURAL))
    with pytest.raises(UserError, match="mine.yaml and .*other.yaml both judge secret; keep one"):
        chosen_rubrics([own, rubric_file(tmp_path, "other.yaml")], (SECRET,))


def test_failures_are_listed_by_model_and_reason() -> None:
    assert failure_line({"base": {}, "adapter": {}}) == ""
    line = failure_line({"base": {"refusal": 2, "truncated": 1}, "adapter": {}})
    assert line == "Replies without a judgement, in none of its rates: base: refusal 2, truncated 1."


def test_batches_keep_their_state_beside_the_results(tmp_path: Path) -> None:
    with stub(answer=verdicts(fixed)) as server:
        panel = open_panel(config(server.base_url, batch_api=True), (SECRET,), tmp_path, 1)
        assert panel is not None
        live = server.counts["requests"]
        found = judgements(panel.judge, panel.rubrics[SECRET], [SHOWN, SHOWN | {"query": "Who?"}], "replies")
    assert [one.scores for one in found] == [fixed({})] * 2
    assert server.counts["requests"] == live, "none but by batch"
