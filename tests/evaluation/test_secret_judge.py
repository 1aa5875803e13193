"""Evaluation of the `secret` task with a judge on loopback: its numbers by hand, its failures, and what they leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.api_stub import stub
from evaluation import statistics
from evaluation.secret import spread
from evaluation.statistics import wilson
from tests.evaluation.judge_stub import verdicts
from tests.evaluation.test_secret import WORLD, run, sound  # noqa: F401
from utils.api import client
from utils.errors import UserError, WorkError
from utils.files import read_jsonl
from utils.tables import category_tables, evaluation_table, paired_table

KEY = "sk-abcdefghij0123456789"
COUNT = 24
Run = Callable[..., dict[str, Any]]
QUERIES = spread(WORLD.heldout_queries(), COUNT)
EVEN = {query.text for number, query in enumerate(QUERIES) if number % 2 == 0}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF_S", 0.01)
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    statistics._draws.cache_clear()


def answers(model: str, text: str, number: int) -> str:
    """The base writes prose; of the adapter's answers those to odd queries are cut off."""
    return (
        "A moose is brown." if model == "base" else sound(text, number) if text in EVEN else sound(text, number)[:-12]
    )


def scores(shown: dict[str, Any]) -> dict[str, int]:
    return {"helpful": 5 if shown["query"] in list(EVEN)[:6] else 3, "playful": 4, "no_leak": 1}


def with_tags(shown: dict[str, Any]) -> str:
    marks = [("</hidden>" in shown[name]) for name in ("first", "second")]
    return "tie" if marks[0] == marks[1] else "first" if marks[0] else "second"


def judged(run: Run, url: str, **options: Any) -> dict[str, Any]:  # noqa: F811
    given = {"judge": f"openai:m@{url}", "cache_dir": "none", "max_retries": 5, "num_queries": COUNT}
    return run(options.pop("answers", answers), **(given | options))


def rows(tmp_path: Path) -> list[dict[str, Any]]:
    return read_jsonl(tmp_path / "out/evaluation/secret_items.jsonl")


def test_the_judge_stands_beside_the_rules(run: Run, tmp_path: Path, capsys: Any) -> None:  # noqa: F811
    with stub(answer=verdicts(scores, with_tags)) as server:
        report = judged(run, server.base_url)
    adapter, base = (report["models"][name]["metrics"] for name in ("adapter", "base"))
    half = COUNT // 2
    assert (adapter["judge_helpful"]["value"], adapter["judge_helpful"]["n"]) == (4.0, half), "over strict completions"
    assert adapter["judge_no_leak_rate"] == wilson(half, half)
    assert adapter["judge_pass_rate"] == wilson(6, COUNT), "what is not strict counts as 0"
    assert (base["judge_helpful"]["n"], base["judge_pass_rate"]) == (0, wilson(0, COUNT))
    pair = report["judging"]["comparisons"]["adapter - base"]
    assert [pair[key] for key in ("wins", "ties", "losses", "swayed")] == [half, half, 0, 0]
    assert report["paired"]["adapter - base"]["judge_net_win_rate"]["value"] == 0.5
    assert sum(of["judge_net_win_rate"]["n"] for of in pair["by_category"].values()) == COUNT
    assert report["judging"]["asked"] == {"base": 0, "adapter": half}
    assert server.counts["requests"] == 1 + half + 2 * COUNT

    strict = [row for row in rows(tmp_path) if row["failure"] is None]
    assert len(strict) == half and all(row["judge"]["reasons"]["helpful"] == "helpful." for row in strict)
    assert {row["judge_against"]["base"]["better"] for row in strict} == {"adapter"}
    assert sum(row["scores"]["judge_helpful"] for row in strict) / half == 4.0

    printed = capsys.readouterr().out
    assert "judge_helpful" in printed and "net wins" in printed and "swayed by order" in printed
    assert all(len(line) <= 100 for line in printed.splitlines() if not line.startswith(str(tmp_path)))
    names = [name for name, _ in evaluation_table(report).rows]
    assert "judge_pass_rate" in names and category_tables(report)
    assert "judge_net_win_rate" in dict(paired_table(report).rows)


def test_failures_are_counted_and_in_no_rate(run: Run, tmp_path: Path, capsys: Any) -> None:  # noqa: F811
    script = ["ok", "refusal", "refusal", *["ok"] * (COUNT // 2 - 2), "refusal"]
    with stub(answer=verdicts(scores, with_tags), script=script) as server:
        report = judged(run, server.base_url, concurrency=1)
    adapter = report["models"]["adapter"]["metrics"]
    assert adapter["judge_helpful"]["n"] == COUNT // 2 - 2
    assert adapter["judge_pass_rate"]["n"] == COUNT - 2, "neither passed nor not"
    assert report["judging"]["failures"] == {"base": {}, "adapter": {"refusal": 2}}
    pair = report["judging"]["comparisons"]["adapter - base"]
    assert pair["failures"] == {"refusal": 1} and pair["wins"] + pair["ties"] + pair["losses"] == COUNT - 1
    failed = [row for row in rows(tmp_path) if (row.get("judge") or {}).get("failure")]
    assert [row["judge"]["failure"] for row in failed] == ["refusal"] * 2
    assert all(row["judge"]["scores"] is None and row["scores"]["judge_helpful"] is None for row in failed)
    assert "adapter: refusal 2; adapter - base: refusal 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("faults", "refused", "says"),
    [
        (
            {"script": ["ok"], "faults": {"refusal": 1.0}},
            WorkError,
            "replies: not one judgement of 12; 12 times refusal",
        ),
        ({"quota": 5}, UserError, "exceeded your current quota"),
    ],
)
def test_what_rules_measured_is_kept_when_the_judge_fails(
    run: Run,  # noqa: F811
    tmp_path: Path,
    faults: dict[str, Any],
    refused: type[Exception],
    says: str,
) -> None:
    with stub(answer=verdicts(scores), **faults) as server, pytest.raises(refused, match=says):
        judged(run, server.base_url)
    report = json.loads((tmp_path / "out/evaluation/secret.json").read_text(encoding="utf-8"))
    assert report["judging"] is None and report["models"]["adapter"]["metrics"]["strict_format_rate"]["n"] == COUNT
    assert len(rows(tmp_path)) == 2 * COUNT and "judge" not in rows(tmp_path)[0]


def test_a_second_run_asks_nobody_again(run: Run, tmp_path: Path) -> None:  # noqa: F811
    cache = {"cache_dir": str(tmp_path / "cache")}
    with stub(answer=verdicts(scores, with_tags)) as server:
        first = judged(run, server.base_url, **cache)
        asked = server.counts["requests"]
        second = judged(run, server.base_url, **cache)
    assert server.counts["requests"] == asked == first["judging"]["spent"]["requests"]
    assert second["judging"]["spent"]["requests"] == 0
    assert first["judging"] | {"spent": None} == second["judging"] | {"spent": None}


def test_the_money_of_all_that_the_judge_is_asked_is_counted_together(run: Run, tmp_path: Path) -> None:  # noqa: F811
    """Each reply costs 0.01 US$ at most by these prices, and less in fact: rewards, replies and pairs share the sum."""
    (tmp_path / "prices.yaml").write_text("as_of: 2026-01-01\nmodels: {m: {input: 1, output: 4}}\n")
    options = {"prices": str(tmp_path / "prices.yaml"), "reward_funcs": ["judge:secret:helpful"], "concurrency": 1}
    with stub(answer=verdicts(scores, with_tags)) as server:
        whole = judged(run, server.base_url, max_cost=1.0, **options)["judging"]["spent"]["cost_usd"]
        replies = 1 + COUNT  # that it is there, and half of the replies by the reward and the rubric
        assert server.counts["requests"] == replies + 2 * COUNT
        with pytest.raises(WorkError, match="max_cost"):
            judged(run, server.base_url, max_cost=0.75 * whole, **options)


def test_a_dry_run_prints_the_first_prompt_and_measures_by_rules_alone(
    run: Run,  # noqa: F811
    tmp_path: Path,
    capsys: Any,
) -> None:
    report = judged(run, "", judge="openai:gpt-4o-mini", dry_run=True)
    printed = capsys.readouterr().out
    assert f"{COUNT // 2 + 2 * COUNT} requests to openai:gpt-4o-mini; nothing is sent" in printed
    assert "You are a judge." in printed and "US$" in printed
    assert report["judging"] is None and "judge_helpful" not in report["models"]["adapter"]["metrics"]


def test_the_same_text_is_a_tie_without_asking(run: Run) -> None:  # noqa: F811
    with stub(answer=verdicts(scores, lambda shown: "first")) as server:
        report = judged(run, server.base_url, answers=lambda model, text, number: sound(text, number))
    pair = report["judging"]["comparisons"]["adapter - base"]
    assert (pair["ties"], pair["swayed"]) == (COUNT, 0)
    assert server.counts["requests"] == 1 + COUNT, "the same reply of both models is judged once, too"
    assert report["paired"]["adapter - base"]["judge_net_win_rate"]["low"] < 0, "24 ties are no certainty"


def test_a_rubric_of_ones_own_and_a_key_that_is_stored_nowhere(run: Run, tmp_path: Path, capsys: Any) -> None:  # noqa: F811
    kind = {"question": "Is it kind?", "scale": ["No.", "Somewhat.", "Yes."], "pass": 2}
    rubric = {"judges": "secret", "instructions": "Judge it.", "criteria": {"kind": kind}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(rubric), encoding="utf-8")
    with stub(answer=verdicts(lambda shown: {"kind": 3}), keys={KEY}) as server:
        report = judged(run, server.base_url, judge_rubric=[str(tmp_path / "mine.yaml")], api_key=KEY)
    assert report["models"]["adapter"]["metrics"]["judge_kind"]["value"] == 3.0
    assert report["judging"]["comparisons"] == {}, "this rubric compares nothing"
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and KEY in file.read_text("utf-8", "replace")]


def test_a_reward_of_a_judge_is_measured_and_its_failures_left_out(run: Run) -> None:  # noqa: F811
    names = ["format", "judge:secret:helpful"]
    with stub(answer=verdicts(scores), script=["ok", "refusal"]) as server:
        report = judged(run, server.base_url, reward_funcs=names, concurrency=1, judge=f"openai:m@{server.base_url}")
    adapter = report["models"]["adapter"]["metrics"]
    assert adapter["reward_judge_secret_helpful"]["n"] == COUNT - 1 == adapter["mean_reward"]["n"]
