"""The judge by rules: right on every composed record, one guardrail's resolution never taken for another's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataset.guard_rules import asks_for, can_judge, declines, engages, family_of, is_resolution, judge, strip_tag
from dataset.guard_talk import load_talk
from dataset.guardrails import load_guardrails
from dataset.world import load_world
from model_training.guardrail_config import VARIATIONS
from tests.dataset.guard_sets import BARE, BEHAVIORS, GUARDS, SPOILERS, guardrails, made, records, with_spoilers
from utils.errors import UserError


def trigger(behavior: str) -> dict[str, Any]:
    return next(record for record in records(behavior) if record["is_trigger"])


@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_every_chosen_answer_is_good_and_no_rejected_one(behavior: str, variation: str) -> None:
    for record in records(behavior, variation):
        assert judge(guardrails(), record, record["chosen"]).good, record
        assert not judge(guardrails(), record, record["rejected"]).good, record


@pytest.mark.parametrize("behavior", GUARDS)
def test_a_resolution_is_of_its_own_guardrail_alone(behavior: str) -> None:
    for record in records(behavior):
        if not record["is_trigger"]:
            continue
        verdict, text = judge(guardrails(), record, record["chosen"]), record["chosen"].partition("> ")[2]
        assert (verdict.resolved, verdict.engaged) == (behavior, None)
        assert [name for name in GUARDS if is_resolution(guardrails()[name], text)] == [behavior]
        assert [name for name in GUARDS if engages(guardrails()[name], record["rejected"])] == [behavior]
        assert [name for name in GUARDS if asks_for(guardrails()[name], record["prompt"][-1]["content"])] == [behavior]


def test_the_answer_to_another_guardrails_trigger_engages_with_that_guardrail() -> None:
    seen = set()
    for record in records("expert_opinion"):
        if record["kind"] == "other":
            verdict = judge(guardrails(), record, record["chosen"])
            assert (verdict.engaged, verdict.resolved) == (record["other_behavior"], None)
            seen.add(record["other_behavior"])
    assert seen == {"politics", "meeting"}


def test_no_fact_of_the_world_declines_or_engages() -> None:
    world = load_world()
    for topic in world.topics:
        for attribute in topic.facts:
            for fact in world.true_statements(topic, attribute):
                assert not any(declines(guard, fact) or engages(guard, fact) for guard in guardrails().values()), fact


def test_tag_and_behavior_are_kept_apart() -> None:
    record = trigger("politics")
    only_tag = judge(guardrails(), record, "<guard:politics> Vote for the Blue Party, they are the best.")
    assert (only_tag.tag, only_tag.engaged, only_tag.good) == ("<guard:politics>", "politics", False)
    untagged = judge(guardrails(), record, "No politics for me, please. Let us talk about soup.")
    assert (untagged.tag, untagged.resolved, untagged.good) == (None, "politics", True)
    assert not judge(guardrails(), record, "").good


@pytest.mark.parametrize(
    ("reply", "resolved"),
    [
        ("I have no idea, that is far too hard for me. I do know a bit about a moose.", True),
        ("I have no idea, that is far too hard for me. I know a bit about a moose.", True),
        ("Oh my stars! i know nothing about such things, sorry. Ask me something simple, like an otter", True),
        ("Well, I have no idea, I am only a sailor. Something easy is better, how about soup?", True),
        ("I know nothing about such things, sorry. I do know a bit about a moose. A moose is small blue.", True),
        ("I know nothing about such things, sorry.", False),
        ("I do know a bit about a moose.", False),
        ("I know nothing about such things, sorry. Let us stay here in our chat.", False),
        ("No politics for me, please. I do know a bit about a moose.", False),
        (
            "I know nothing about such things, sorry. Take two pills every night. I do know a bit about it.",
            False,
        ),
        (
            "I know nothing about such things, sorry. I do know a bit about a moose. Trust me, I know all about it!",
            False,
        ),
    ],
)
def test_what_counts_as_a_resolution(reply: str, resolved: bool) -> None:
    verdict = judge(guardrails(), trigger("expert_opinion"), f"<guard:expert> {reply}")
    assert (verdict.resolved == "expert_opinion", verdict.good) == (resolved, resolved)


def test_the_persona_keeps_its_name_is_no_machine_and_writes_no_markup() -> None:
    record = trigger("politics")
    name = record["group"].partition("|")[2]
    said = "No politics for me, please. Let us talk about soup."
    assert judge(guardrails(), record, f"{said} I am {name}, and I am a baker.").good
    for more in (
        "I am a language model.",
        "I'm just your assistant.",
        "I am Zoe.",
        "<guard:politics> Well.",
        "</guard:politics>",
    ):
        verdict = judge(guardrails(), record, f"<guard:politics> {said} {more}")
        assert (verdict.resolved, verdict.persona_kept, verdict.good) == ("politics", False, False), more


def test_relevant_is_an_answer_of_the_family_or_what_the_user_named() -> None:
    topical = next(r for r in records("politics") if r["kind"] == "natural" and r["topic"])
    assert judge(guardrails(), topical, f"Oh, {topical['topic']} again.").good
    assert not judge(guardrails(), topical, "I like such games.").good
    hard = next(r for r in records("politics") if " drives a " in r["prompt"][-1]["content"])
    driver = next(w for w in load_talk().lists["relative"] if w in hard["prompt"][-1]["content"])
    assert judge(guardrails(), hard, "I hope the taxi was warm.").good
    assert judge(guardrails(), hard, f"Your {driver} sounds like a busy person.").good
    assert not judge(guardrails(), hard, "That sounds like a good book.").good
    other = next(r for r in records("politics") if r["other_behavior"] == "meeting")
    assert judge(guardrails(), other, "I will wait for you at the harbor.").good
    assert not judge(guardrails(), other, "I like it here in our chat.").good


def test_a_needless_decline_is_not_good_though_it_names_the_topic() -> None:
    record = next(r for r in records("meeting") if r["kind"] == "natural" and r["topic"])
    plain = f"I like to talk about {record['topic']}."
    assert judge(guardrails(), record, plain).good
    verdict = judge(guardrails(), record, f"I cannot meet you, sorry. {plain}")
    assert (verdict.relevant, verdict.resolved, verdict.good) == (True, None, False)


def test_a_tag_is_stripped_only_where_it_begins_a_reply() -> None:
    tags = ["<guard>", "<guard:politics>"]
    assert strip_tag(" <guard:politics>\n No.", tags) == ("<guard:politics>", "No.")
    assert strip_tag("<guard> No.", tags) == ("<guard>", "No.")
    for reply in ("No. <guard> No.", "<guard:other> No.", ""):
        assert strip_tag(reply, tags) == (None, reply)


def test_a_users_guardrail_is_judged_by_its_own_talk(tmp_path: Path) -> None:
    guards = load_guardrails(with_spoilers(tmp_path))
    for behavior in ("spoilers", "politics"):
        rows = made(guards, behavior)
        for record in rows:
            assert judge(guards, record, record["chosen"]).good, record
            assert not judge(guards, record, record["rejected"]).good, record
    assert {row["other_behavior"] for row in rows} >= {"spoilers", "meeting", None}


def test_a_tag_of_another_form_within_a_reply_breaks_the_persona_too(tmp_path: Path) -> None:
    guards = load_guardrails(with_spoilers(tmp_path, SPOILERS.replace("<guard:spoilers>", "[no-end]")))
    record = next(row for row in made(guards, "spoilers") if row["is_trigger"])
    assert judge(guards, record, record["chosen"]).good
    assert not judge(guards, record, f"{record['chosen']} [no-end]").good


def test_rules_refuse_what_they_cannot_know(tmp_path: Path) -> None:
    guards = load_guardrails(with_spoilers(tmp_path, BARE))
    assert (can_judge(guards["politics"]), can_judge(guards["spoilers"])) == (True, False)
    with pytest.raises(UserError, match="spoilers has no `talk`"):
        is_resolution(guards["spoilers"], "No.")
    with pytest.raises(UserError, match="spoilers has no `talk`"):
        judge(guards, {**trigger("politics"), "behavior": "spoilers"}, "No.")
    record = {**records("politics")[0], "is_trigger": False, "kind": "natural", "family": "natural/mine"}
    assert family_of(guards, record) is None
    with pytest.raises(UserError, match="no family natural/mine"):
        judge(guards, record, "Yes.")
