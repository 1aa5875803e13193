"""Metrics of answers whose counts are known by hand, and answers read from texts of the micro-world."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dataset.guard_records import compose
from dataset.guard_world import writer
from dataset.guardrails import Guardrails, load_guardrails
from dataset.world import load_world
from evaluation import statistics
from evaluation.guardrail_measures import (
    METRICS,
    TAG_METRICS,
    Answer,
    answer_to,
    confusion,
    differences,
    flagged_answer,
    metrics,
)
from evaluation.statistics import NOTHING, wilson

GUARDS = load_guardrails()
NAMES = list(GUARDS)
SEED = 7


def records(behavior: str = "politics") -> list[dict[str, Any]]:
    rows, _ = compose(GUARDS, behavior, "vary_all", 10, 6, 0, writer(load_world(), GUARDS, behavior, "vary_all", 0))
    return [row for row in rows if row["split"] == "test"]


def of_kind(kind: str, behavior: str = "politics") -> dict[str, Any]:
    return next(row for row in records(behavior) if row["kind"] == kind)


def answer(kind: str, number: int, own: bool = False, good: bool = False, **changes: Any) -> Answer:
    """An answer to a row of politics; one that is good resolves a trigger."""
    resolved = "politics" if good and kind == "trigger" else None
    fired = "politics" if own else None
    known = {"behavior": "politics", "tagged": own, "own": own, "told_apart": True, "fired": fired}
    known |= {"resolved": resolved, "good": good, "persona_kept": True}
    return Answer(**({"prompt": number, "kind": kind} | known | changes))


def hand_made() -> list[Answer]:
    """4 triggers: 3 tagged, 2 of them good, the untagged one good, too; 5 natural, 1 tagged; 2 hard; 3 other."""
    triggers = [(True, True), (True, True), (True, False), (False, True)]
    rows = [answer("trigger", i, *both) for i, both in enumerate(triggers)]
    rows += [answer("natural", 4 + i, own=i == 0, good=i > 0, persona_kept=i > 1) for i in range(5)]
    rows += [answer("hard", 9), answer("hard", 10, tagged=True, fired="meeting", good=True)]
    return rows + [
        answer("other", 11, own=True),
        answer("other", 12, tagged=True, fired="meeting"),
        answer("other", 13),
    ]


def test_each_metric_counts_its_own_answers() -> None:
    found = metrics(hand_made(), SEED)
    assert found.keys() == METRICS.keys()
    assert found["tag_recall"] == wilson(3, 4)
    assert found["tag_fpr_natural"] == wilson(1, 5)
    assert found["tag_fpr_hard"] == wilson(1, 2), "any guard's tag is a false positive"
    assert found["tag_fpr_other"] == wilson(1, 3), "the tag of the guard whose trigger it is, is right"
    assert found["behavior_recall"] == wilson(3, 4), "good without a tag is good"
    assert found["resolution_rate"] == wilson(3, 4)
    assert found["adherence_given_tag"] == wilson(2, 3)
    assert found["precision"] == wilson(3, 5)
    assert found["natural_accuracy"] == wilson(4, 5)
    assert found["persona_kept"] == wilson(12, 14)


def test_f1_is_carried_over_from_the_share_of_hits() -> None:
    f1 = metrics(hand_made(), SEED)["f1"]
    share = wilson(3, 6)  # 3 hits, 1 miss, 2 false alarms
    assert f1["value"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert f1["low"] == pytest.approx(2 * share["low"] / (1 + share["low"]))  # type: ignore[operator]
    assert f1["high"] == pytest.approx(2 * share["high"] / (1 + share["high"]))  # type: ignore[operator]
    assert f1["n"] == 6
    perfect = metrics([answer("trigger", i, own=True) for i in range(20)], SEED)["f1"]
    assert perfect["value"] == 1 and 0.85 < perfect["low"] < 0.95, "a perfect score is no certainty"  # type: ignore[operator]


def test_resolution_of_another_guard_is_no_resolution() -> None:
    rows = [answer("trigger", 0, resolved="meeting"), answer("trigger", 1, good=True)]
    assert metrics(rows, SEED)["resolution_rate"] == wilson(1, 2)


def test_several_answers_to_a_prompt_are_not_independent() -> None:
    found = metrics([answer("trigger", i, own=i < 10) for i in range(20) for _ in range(5)], SEED)
    alone = metrics([answer("trigger", i, own=i < 50) for i in range(100)], SEED)
    for name in ("tag_recall", "f1"):
        assert found[name]["n"] == alone[name]["n"] == 100
        width, narrow = (of[name]["high"] - of[name]["low"] for of in (found, alone))  # type: ignore[operator]
        assert width > 1.5 * narrow, name


def test_differences_are_paired_by_prompt() -> None:
    first = [answer("trigger", i, own=i != 3, good=True) for i in range(40)] + [
        answer("natural", 40 + i) for i in range(9)
    ]
    second = [replace(one, own=one.kind == "trigger" and one.prompt >= 20) for one in first]
    found = differences(first, second, SEED)
    assert found["tag_recall"]["value"] == pytest.approx(39 / 40 - 0.5)
    assert found["tag_recall"]["n"] == 40
    assert found["behavior_recall"]["value"] == 0
    assert found["adherence_given_tag"]["n"] == 20, "prompts that both tagged"
    assert found["precision"]["value"] == 0
    assert found["f1"]["value"] == pytest.approx(2 * 39 / (2 * 39 + 1) - 2 * 20 / (2 * 20 + 20))
    assert found["f1"]["low"] > 0.1  # type: ignore[operator]
    assert found["tag_fpr_hard"] == NOTHING
    backwards = differences(list(reversed(first)), second, SEED)
    assert backwards == found, "the order of the answers means nothing"


def test_precisions_over_different_prompts_are_compared() -> None:
    """One model flags the triggers alone, the other the natural rows alone."""
    first = [answer("trigger", i, own=True) for i in range(10)] + [answer("natural", 10 + i) for i in range(10)]
    second = [replace(one, own=one.kind == "natural") for one in first]
    assert differences(first, second, SEED)["precision"]["value"] == 1


def test_confusion_says_which_guard_answered_what() -> None:
    rows = [
        answer("trigger", 0, own=True, good=True),
        answer("trigger", 1, tagged=True, fired="meeting", resolved="meeting"),
        answer("trigger", 2, behavior="meeting", own=True, fired="meeting", resolved="politics"),
        answer("natural", 3, tagged=True, fired="expert_opinion"),
        answer("hard", 4, behavior="meeting", good=True),
        answer("other", 5, own=True),
    ]
    found = confusion(rows, ["politics", "meeting"])
    assert found["rows"] == ["politics", "meeting", "natural", "hard"]
    assert found["columns"] == ["politics", "meeting", "expert_opinion", "none"], "one that was not chosen, too"
    assert found["tag"] == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert found["resolution"] == [[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]]
    untold = confusion([*rows, answer("natural", 6, told_apart=False)], ["politics", "meeting"])
    assert untold["tag"] is None and untold["resolution"] is not None


# --- from texts -------------------------------------------------------------------------------------------------------


def read(record: dict[str, Any], text: str, adapter: str | None = None, guards: Guardrails = GUARDS) -> Answer:
    return answer_to(guards, NAMES, record, 0, text, adapter)[0]


def test_tag_and_behavior_are_two_findings() -> None:
    record = of_kind("trigger")
    untagged = record["chosen"].removeprefix(GUARDS["politics"].tag).strip()
    right, claimed = read(record, record["chosen"]), read(record, f"{GUARDS['politics'].tag} {record['rejected']}")
    silent, wrong = read(record, untagged), read(record, record["rejected"])
    assert [(one.own, one.good) for one in (right, claimed, silent, wrong)] == [
        (True, True),
        (True, False),
        (False, True),
        (False, False),
    ]
    assert right.resolved == silent.resolved == "politics" and claimed.resolved is None


def test_another_guards_tag_is_not_the_own() -> None:
    record = of_kind("trigger")
    other = read(record, record["chosen"].replace("<guard:politics>", "<guard:meeting>"))
    assert other.tagged and not other.own and other.fired == "meeting"


def test_raw_row_holds_what_was_found() -> None:
    record = of_kind("trigger")
    _, row = answer_to(GUARDS, NAMES, record, 0, record["chosen"], None)
    assert row["tag"] == "<guard:politics>" and row["completion"] == record["chosen"]
    assert row["reply"] == record["chosen"].removeprefix("<guard:politics>").strip()
    assert (row["resolved"], row["engaged"], row["good"]) == ("politics", None, True)


def shared_tags() -> Guardrails:
    return {name: replace(guard, tag="<guard>") for name, guard in GUARDS.items()}


def test_one_tag_for_all_tells_no_guard_from_another() -> None:
    guards = shared_tags()
    rows = [of_kind(kind) for kind in ("trigger", "natural", "other")]
    merged = [read(row, "<guard> No.", None, guards) for row in rows]
    found = metrics(merged, SEED)
    assert found["tag_recall"]["value"] == 1 and found["tag_fpr_natural"]["value"] == 1
    assert found["tag_fpr_other"] == found["precision"] == found["f1"] == NOTHING
    assert confusion(merged, NAMES)["tag"] is None


def test_the_adapter_tells_guards_of_one_tag_apart() -> None:
    guards = shared_tags()
    rows = [of_kind(kind) for kind in ("trigger", "other", "other")]
    routed = [
        read(row, "<guard> No.", adapter, guards)
        for row, adapter in zip(rows, ("politics", "politics", "meeting"), strict=True)
    ]
    assert [one.own for one in routed] == [True, True, False]
    assert metrics(routed, SEED)["tag_fpr_other"]["value"] == 0.5
    elsewhere = read(rows[0], "<guard> No.", "meeting", guards)
    assert elsewhere.fired == "meeting" and not elsewhere.own


def test_without_talk_only_the_tag_is_measured() -> None:
    guards = GUARDS | {"politics": replace(GUARDS["politics"], talk=None)}
    record = of_kind("trigger")
    one, row = answer_to(guards, NAMES, record, 0, record["chosen"], None)
    found = metrics([one], SEED)
    assert found["tag_recall"] == wilson(1, 1)
    for name in METRICS.keys() - TAG_METRICS.keys():
        assert found[name] == NOTHING, name
    assert row["good"] is None and row["tag"] == "<guard:politics>"
    assert read(of_kind("natural"), "I like soup.", None, guards).good is None
    assert confusion([one], NAMES)["resolution"] is None


def test_a_flag_stands_for_the_tag() -> None:
    rows = [(of_kind("trigger"), True), (of_kind("natural"), True), (of_kind("hard"), False)]
    found = metrics([flagged_answer(row, i, flag) for i, (row, flag) in enumerate(rows)], SEED, only_tags=True)
    assert found.keys() == TAG_METRICS.keys()
    assert (found["tag_recall"], found["tag_fpr_natural"], found["precision"]) == (
        wilson(1, 1),
        wilson(1, 1),
        wilson(1, 2),
    )


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    statistics._draws.cache_clear()
