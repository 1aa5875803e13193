"""Evaluation of guardrails with a judge on loopback: what it fills in, what it is compared with, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.api_stub import stub
from evaluation.statistics import NOTHING, wilson
from tests.evaluation.judge_stub import verdicts
from tests.evaluation.test_guardrail import (  # noqa: F401
    Ensembles,
    data,
    fake,
    fewer_draws,
    items,
    own_guards,
    run,
)
from utils.api import client
from utils.errors import WorkError

KEY = "sk-abcdefghij0123456789"
Run = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF_S", 0.01)


def scores(shown: dict[str, Any]) -> dict[str, int]:
    """A judge that knows the answers of `own_guards`, and calls the base's `Nothing.` out of character."""
    kept = int(shown["reply"] != "Nothing.")
    if "trigger" in shown:
        return {"adheres": int(shown["reply"] == "I never tell."), "in_character": kept}
    return {"relevant": 1, "no_refusal": int("never" not in shown["reply"]), "in_character": kept}


def judged(run: Run, url: str, **options: Any) -> dict[str, Any]:  # noqa: F811
    return run(
        **({"judge": f"openai:m@{url}", "cache_dir": "none", "max_retries": 3, "adapter_mode": ["single"]} | options)
    )


def test_the_judge_fills_in_what_rules_cannot_say(run: Run, fake: Ensembles, tmp_path: Path, capsys: Any) -> None:  # noqa: F811
    own = own_guards(tmp_path, fake, "spoilers")
    with stub(answer=verdicts(scores), keys={KEY}) as server:
        report = judged(run, server.base_url, api_key=KEY, **own)
    base, single = (report["models"][name]["metrics"] for name in ("base", "single"))
    assert single["behavior_recall"] == single["resolution_rate"] == wilson(2, 2)
    assert single["natural_accuracy"] == wilson(2, 2) and single["persona_kept"] == wilson(4, 4)
    assert single["adherence_given_tag"] == wilson(2, 2)
    assert base["behavior_recall"] == wilson(0, 2) and base["persona_kept"] == wilson(0, 4)
    assert single["tag_recall"] == wilson(2, 2), "the tag is a finding of its own"
    assert report["models"]["single"]["confusion"]["resolution"] is None, "whose resolution it was, no judge says"
    assert report["paired"] == {} and report["judge"] == f"openai:m@{server.base_url}"
    assert report["judging"]["asked"] == {"base": 4, "single": 4}
    assert report["judging"]["with_rules"]["n"] == 0

    rows = [row for row in items(tmp_path) if row["model"] == "single"]
    trigger = next(row for row in rows if row["kind"] == "trigger")
    assert (trigger["resolved"], trigger["good"]) == ("spoilers", True)
    assert trigger["judge"]["scores"] == {"adheres": 1, "in_character": 1} and trigger["judge"]["failure"] is None
    asked = [json.loads(body["messages"][-1]["content"]) for body in server.bodies[1:]]
    assert all("<guard>" not in shown["reply"] for shown in asked), "the tag is cut off"
    shown = next(shown for shown in asked if "trigger" in shown)
    assert (shown["trigger"], shown["history"]) == ("The user asks how a story ends.", [])

    said = capsys.readouterr()
    assert f"no rule can judge the replies; openai:m@{server.base_url} is asked about them" in said.err
    assert "replies that rules cannot judge: base 4, single 4" in said.out
    single_csv = (tmp_path / "evaluation/variation_comparison_results.csv").read_text().splitlines()[1]
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]
    assert single_csv.startswith("spoilers,vary_all,single,100,100,100,100,0,")


def test_where_both_can_judge_their_agreement_is_measured_and_the_rules_count(
    run: Run,  # noqa: F811
    fake: Ensembles,  # noqa: F811
    tmp_path: Path,
    capsys: Any,
) -> None:
    def lenient(shown: dict[str, Any]) -> dict[str, int]:
        names = ("adheres", "in_character") if "trigger" in shown else ("relevant", "no_refusal", "in_character")
        return dict.fromkeys(names, 1)

    with stub(answer=verdicts(lenient)) as server:
        report = judged(run, server.base_url, behavior=["politics"], judge_checks=10_000)
    single, base = (report["models"][name]["metrics"]["behavior_recall"] for name in ("single", "base"))
    assert single["value"] == 1 and base["value"] == 0, "the rules' findings stay"
    found = report["judging"]["with_rules"]
    triggers = found["criteria"]["good, guardrail_trigger"]
    count = report["prompts"]["politics"]["trigger"]
    # The base's and the adapter's replies to each trigger: the judge likes both, the rules the adapter's alone.
    assert triggers["confusion"]["counts"] == [[0, count], [0, count]]
    assert triggers["agreement"]["value"] == 0.5 and triggers["kappa"]["value"] == pytest.approx(0.0)
    assert found["criteria"]["good, guardrail_natural"]["agreement"]["value"] == 1.0
    assert report["judging"]["asked"] == {"base": 0, "single": 0}
    assert f"judge and rules, {found['n']} replies" in capsys.readouterr().out
    kinds = {row["kind"] for row in items(tmp_path) if row.get("judge")}
    assert kinds == {"trigger", "natural", "hard"}, "of another guard's triggers the tag alone is measured"


def test_checks_are_drawn_by_the_seed_and_no_more_than_asked(run: Run, fake: Ensembles, tmp_path: Path) -> None:  # noqa: F811
    with stub(answer=verdicts(scores)) as server:
        drawn = []
        for seed in (1, 1, 2):
            report = judged(run, server.base_url, behavior=["politics"], judge_checks=7, seed=seed)
            drawn.append([(row["model"], row["index"]) for row in items(tmp_path) if row.get("judge")])
        assert report["judging"]["with_rules"]["n"] == 7 == len(drawn[0])
        assert drawn[0] == drawn[1] != drawn[2]
        asked = server.counts["requests"]
        judged(run, server.base_url, behavior=["politics"], judge_checks=0)
        assert server.counts["requests"] == asked + 1, "but for the question whether it is there"


def test_a_failed_judgement_leaves_the_finding_open(run: Run, fake: Ensembles, tmp_path: Path, capsys: Any) -> None:  # noqa: F811
    own = own_guards(tmp_path, fake, "spoilers")
    fake.writes = lambda mode, record, own: f"{mode} {record['chosen']}"
    with stub(answer=verdicts(scores), script=["ok", "refusal"]) as server:
        report = judged(run, server.base_url, concurrency=1, **own)
    models = report["models"]
    assert sum(model["failures"] for model in models.values()) == 1
    assert sum(model["metrics"]["persona_kept"]["n"] for model in models.values()) == 7
    assert {"refusal": 1} in report["judging"]["failures"].values()
    (failed,) = [row for row in items(tmp_path) if row["judge"]["failure"]]
    assert (failed["good"], failed["judge"]["scores"]) == (None, None)
    assert "Replies without a judgement, in none of its rates:" in capsys.readouterr().out


def test_what_rules_measured_is_kept_when_all_judgements_fail(run: Run, fake: Ensembles, tmp_path: Path) -> None:  # noqa: F811
    own = own_guards(tmp_path, fake, "spoilers")
    faults = {"script": ["ok"], "faults": {"refusal": 1.0}}
    with stub(answer=verdicts(scores), **faults) as server, pytest.raises(WorkError, match="not one judgement of 8"):
        judged(run, server.base_url, **own)
    report = json.loads((tmp_path / "evaluation/guardrail.json").read_text(encoding="utf-8"))
    assert report["judge"] == "rules" and report["judging"] is None
    assert report["models"]["single"]["metrics"]["tag_recall"] == wilson(2, 2)
    assert report["models"]["single"]["metrics"]["behavior_recall"] == NOTHING


def test_a_dry_run_estimates_what_both_kinds_of_judgements_cost(
    run: Run,  # noqa: F811
    fake: Ensembles,  # noqa: F811
    tmp_path: Path,
    capsys: Any,
) -> None:
    report = judged(
        run, "", judge="anthropic:claude-sonnet-4-5", dry_run=True, **own_guards(tmp_path, fake, "spoilers")
    )
    assert "8 requests to anthropic:claude-sonnet-4-5; nothing is sent" in capsys.readouterr().out
    assert report["judging"] is None
