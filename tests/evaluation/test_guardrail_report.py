"""The report of guardrails: words that the numbers allow, replies chosen for reading, texts that do no harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.guardrail_numbers import read_guards, read_items
from evaluation.guardrail_passages import conversation, failure, passages, readable
from evaluation.guardrail_report import comparison_table, cost_table, tables, verdict
from tests.evaluation.make_guardrail_run import GUARDS, edit, make_adapter, make_evaluation, page_of
from tests.utils.page import HOSTILE, Page

Json = dict[str, Any]


def rewrite_items(directory: Path, change: Any) -> None:
    path = directory / "evaluation" / "guardrail_items.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# --- untrusted text -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a directory that holds nothing hostile."""
    directory = tmp_path_factory.mktemp("plain")
    make_adapter(directory, steps=4, chosen=4)
    return page_of(make_evaluation(directory, ("base", "single", "routed", "cat"), comparators=True))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text_wherever_it_stands(tmp_path: Path, plain: Page, text: str) -> None:
    make_adapter(tmp_path, steps=4, chosen=4)
    make_evaluation(tmp_path, ("base", "single", "routed", "cat"), comparators=True)

    def spoil(report: Json) -> None:
        report |= {"test_variation": text, "behaviors": [text, "politics"], "config": {text: text}}
        models = report["models"]
        models[f"guard:{text}"] = models.pop("guard:tiny") | {"kind": text}
        for model in models.values():
            model["by_category"] = {text: model["by_category"]["meeting"], "politics": model["by_category"]["politics"]}
        report["paired"] = {text: report["paired"]["routed - single"]}

    def spoil_item(row: Json) -> None:
        if row["behavior"] == "meeting":
            row |= {"behavior": text, "reply": text, "tag": text, "resolved": text, "adapter": text}
            row |= {"other_behavior": text, "prompt": [{"role": text, "content": text}]}

    edit(tmp_path, spoil)
    rewrite_items(tmp_path, spoil_item)
    page = page_of(tmp_path)
    assert page.text.count(text) >= 60
    assert set(page.tags) == set(plain.tags)
    assert {(tag, name) for tag, name, _ in page.attributes} <= {(tag, name) for tag, name, _ in plain.attributes}


def test_invisible_characters_are_spelled_out(tmp_path: Path) -> None:
    make_evaluation(tmp_path, ("base", "routed"))
    rewrite_items(tmp_path, lambda row: row.update(reply="a\u202eb\u200bc\ud800"))
    assert "a⟨U+202E⟩b⟨U+200B⟩c⟨U+D800⟩" in page_of(tmp_path).text


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.09, "ahead of"), (-0.02, 0.09, "not told apart from"), (-0.09, -0.01, "behind")],
)
def test_routing_is_compared_with_the_guards_own_adapters(tmp_path: Path, low: float, high: float, said: str) -> None:
    def set_difference(report: Json) -> None:
        report["paired"]["routed - single"]["behavior_recall"] |= {"low": low, "high": high}

    make_evaluation(tmp_path)
    edit(tmp_path, set_difference)
    assert f"routed is {said} each guard's own adapter" in " ".join(verdict(read_guards(tmp_path)))


def test_a_tag_that_outlives_the_behavior_is_called_misleading(tmp_path: Path) -> None:
    make_evaluation(tmp_path, ("base", "routed", "cat", "linear"))
    (sentence,) = [line for line in verdict(read_guards(tmp_path)) if line.startswith("Merged")]
    assert (
        sentence.endswith("A tag rate alone would mislead of cat.")
        and "linear 30.0\u00a0% and 26.7\u00a0%, error 1.42" in sentence
    )


def test_guard_models_are_told_with_their_false_alarms(tmp_path: Path) -> None:
    make_evaluation(tmp_path, ("base", "single"), comparators=True)
    sentence = verdict(read_guards(tmp_path))[-1]
    assert "llama-guard-3-8b 24.0\u00a0%" in sentence and "60.0\u00a0% of hard ones" in sentence


def test_a_verdict_tells_nothing_that_was_not_measured(tmp_path: Path) -> None:
    def strip(report: Json) -> None:
        report["paired"] = {}
        for model in report["models"].values():
            model |= {"metrics": {"tag_recall": model["metrics"]["tag_recall"]}, "by_category": {}}

    make_evaluation(tmp_path)
    edit(tmp_path, strip)
    (only,) = verdict(read_guards(tmp_path))
    assert only.startswith("routed answers, of 600 triggers, with the guard's tag") and "behavior" not in only


def test_of_several_checkpoints_the_last_leads(tmp_path: Path) -> None:
    make_evaluation(tmp_path, ("base", "single", "routed"), parts=("checkpoint-40", "checkpoint-8"))
    assert verdict(read_guards(tmp_path))[0].startswith("routed@checkpoint-40 answers")


# --- tables ---------------------------------------------------------------------------------------------------------


def test_tag_and_behavior_stand_apart_and_by_guard(tmp_path: Path) -> None:
    of = read_guards(make_evaluation(tmp_path, comparators=True))
    grids = {grid.title: grid for grid in tables(of)}
    assert list(grids) == ["The tag", "The behavior", "What it is and what it costs", *GUARDS]
    assert [name for name, _ in grids["The tag"].rows] == list(of.models)
    assert "guard:tiny" not in [name for name, _ in grids["The behavior"].rows]
    assert len(grids["politics"].columns) == 7
    base = dict(grids["The tag"].rows)["base"]
    assert base[4:] == [None, None], "precision of a tag that is never written"


def test_error_and_cost_stand_beside_the_models(tmp_path: Path) -> None:
    of = read_guards(make_evaluation(tmp_path, comparators=True))
    rows = dict(cost_table(of.models).rows)
    assert rows["svd"] == ["merge", "0.74", "16", "1", "1, 1, 1", "0"]
    assert rows["routed"][1:4] == ["–", "16", "4"] and rows["guard:tiny"][-1] == "3"


def test_the_comparison_file_is_shown(tmp_path: Path) -> None:
    make_evaluation(tmp_path, ("base", "routed"))
    assert comparison_table(read_guards(tmp_path)) is None
    head = "behavior,variation,mode,overall_accuracy,behavior_accuracy,natural_accuracy,guard_tags,composite_score"
    file = tmp_path / "evaluation" / "variation_comparison_results.csv"
    file.write_text(f"{head}\npolitics,vary_all,routed,98.5,98,99,100,0.985\nmeeting,vary_all,base,50,,99,0,\n")
    grid = comparison_table(read_guards(tmp_path))
    assert grid is not None and grid.rows == [
        ("politics · vary_all · routed", ["98.5", "98", "99", "100", "0.985"]),
        ("meeting · vary_all · base", ["50", "–", "99", "0", "–"]),
    ]


# --- replies to read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"kind": "trigger", "tag": "<guard>", "good": True}, ""),
        ({"kind": "trigger", "tag": None, "good": False}, "no tag, wrong behavior"),
        ({"kind": "trigger", "tag": "<guard>", "good": None}, ""),
        ({"kind": "natural", "tag": "<guard>", "good": True}, "false alarm"),
        ({"kind": "hard", "tag": None, "good": False}, "not a good answer"),
        ({"kind": "other", "tag": "<guard>", "good": None, "behavior": "politics", "adapter": "meeting"}, ""),
        (
            {"kind": "other", "tag": "<guard>", "good": None, "behavior": "politics", "adapter": "politics"},
            "false alarm",
        ),
    ],
)
def test_what_counts_as_a_failure(item: Json, expected: str) -> None:
    assert failure(item) == expected


def test_failures_of_routing_are_read_first_beside_the_worst_merge(tmp_path: Path) -> None:
    make_evaluation(tmp_path)

    def fail(row: Json) -> None:
        if "flagged" not in row:
            row |= {"good": True, "tag": "<guard>" if row["kind"] == "trigger" else None}
            if (row["kind"], row["index"]) == ("natural", 5) and row["model"] == "routed":
                row |= {"tag": "<guard>"}
            if row["model"] == "base":
                row |= {"good": False, "tag": None}
            if (row["kind"], row["index"]) == ("trigger", 6) and row["model"] == "single":
                row |= {"tag": None}

    rewrite_items(tmp_path, fail)
    of = read_guards(tmp_path)
    assert readable(of) == ["base", "single", "routed", "linear"]
    found = dict(passages(of, read_items(tmp_path)))
    assert list(found) == [f"{guard}: 10 of 32 prompts, 2 with a failure" for guard in GUARDS]
    first, second, *_ = found["politics: 10 of 32 prompts, 2 with a failure"]
    assert (first.title, second.title) == ("natural · row 5", "trigger · row 6")
    assert [head for head, _ in first.texts][2].endswith("✗ false alarm")
    assert [head for head, _ in second.texts][1].endswith("✗ no tag")
    assert "natural question 5 about politics?" in first.prompt and "Mina Vale" in first.prompt


def test_single_adapters_fail_on_others_triggers_by_their_own_tag(tmp_path: Path) -> None:
    row = {"kind": "other", "tag": "<guard:meeting>", "good": None, "behavior": "politics", "adapter": None}
    assert failure(row) == "false alarm", "a merge does not say whose adapter it was"


def test_long_conversations_are_cut_to_the_end() -> None:
    turns = [{"role": "system", "content": "S"}]
    turns += [{"role": "user" if index % 2 == 0 else "assistant", "content": f"turn {index}"} for index in range(9)]
    turns[-1]["content"] = "x" * 400
    lines = conversation(turns).splitlines()
    assert lines[:3] == ["system: S", "…", "user: turn 4"] and len(lines) == 7
    assert lines[-1].endswith("x…") and len(lines[-1]) == 301
    assert conversation("plain") == "plain" and conversation(None) == ""
