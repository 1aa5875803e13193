"""Guardrails from YAML: the built-in ones, a user's own beside them, and every fault by file, entry and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset.guardrails import choose_behaviors, load_guardrails
from tests.dataset.guard_sets import BARE, GUARDS, SPOILERS, guardrails, with_spoilers
from utils.errors import UserError


def test_three_are_built_in_each_with_its_tag_and_talk() -> None:
    assert tuple(guardrails()) == GUARDS
    assert [guard.tag for guard in guardrails().values()] == ["<guard:politics>", "<guard:expert>", "<guard:meeting>"]
    assert all(guard.talk and guard.resolution and guard.examples for guard in guardrails().values())


def test_a_file_adds_its_guardrails_behind_the_built_in_ones(tmp_path: Path) -> None:
    guards = load_guardrails(with_spoilers(tmp_path))
    assert tuple(guards) == (*GUARDS, "spoilers")
    own = guards["spoilers"]
    assert (own.tag, len(own.resolution)) == ("<guard:spoilers>", 3)
    assert own.talk is not None and [family.split for family in own.talk.families] == ["train", "validation", "test"]
    assert own.talk.families[0].lists["tale"] == ("the sea tale", "the red book", "the long song")


def test_talk_and_tag_may_be_left_out_and_the_file_is_read_anew(tmp_path: Path) -> None:
    path = with_spoilers(tmp_path, BARE.replace('    tag: "<guard:spoilers>"\n', ""))
    assert (load_guardrails(path)["spoilers"].tag, load_guardrails(path)["spoilers"].talk) == ("<guard>", None)
    with_spoilers(tmp_path)
    assert load_guardrails(path)["spoilers"].talk is not None
    assert tuple(load_guardrails()) == GUARDS


def test_two_guardrails_may_share_a_tag(tmp_path: Path) -> None:
    path = with_spoilers(tmp_path, SPOILERS.replace("<guard:spoilers>", "<guard:politics>"))
    assert load_guardrails(path)["spoilers"].tag == "<guard:politics>"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            "    criterion: The",
            "    criterium: The",
            "guardrail spoilers: criterium is not a field here; did you mean criterion",
        ),
        ("    trigger: The user asks how a story ends.\n", "", "guardrail spoilers: trigger is missing"),
        (
            "trigger: The user asks how a story ends.",
            "trigger: 4",
            "guardrail spoilers: trigger is a number, not a text",
        ),
        ("trigger: The user asks how a story ends.", 'trigger: " "', "guardrail spoilers: trigger is empty"),
        ('resolution: ["Begin', 'resolution: [yes, "Begin', r"spoilers: resolution\[0\] is true or false, not a text"),
        ("criterion: The reply", "criterion: [The reply]\n    #", "guardrail spoilers: criterion is an array"),
        ("{user: ", "{asker: ", r"spoilers: examples\[0\]: asker is not a field here; did you mean user"),
        (
            'tag: "<guard:spoilers>"',
            'tag: "<guard:"',
            "tag '<guard:' and '<guard:politics>' of politics lie one within",
        ),
        ('tag: "<guard:spoilers>"', 'tag: "a <guard:expert> b"', "holds white space"),
        ('tag: "<guard:spoilers>"', 'tag: "<<guard:expert>>"', "of expert_opinion lie one within"),
        ("  spoilers:", "  politics:", "guardrail politics: there is a guardrail of this name already"),
        ("  spoilers:", "  natural:", "guardrail natural: this name means something else"),
        ("  spoilers:", "  ../up:", "guardrail ../up: a name is of letters, digits and _"),
        ("guardrails:", "guardrail:", "my.yaml: guardrail is not a field here; did you mean guardrails"),
        ("    tag:", "    trigger: twice\n    tag:", "my.yaml:5: trigger is given twice"),
        ("resolution: [", "resolution: [[", "my.yaml:6: not valid YAML"),
        ("\n      hard:", "\n      harder:", "talk: harder is not a field here; did you mean hard"),
        ("      cheers:", "      cheer:", "talk: cheer is not a field here; did you mean cheers"),
        (
            "How does {tale} end?",
            "How does {tail} end?",
            r"talk.families\[0\] \(ending\).asks: {tail} in .* mean {tale}",
        ),
        ("How does {tale} end?", "How does {tale end?", r"families\[0\] \(ending\).asks: .* a brace without its other"),
        ("In {tale} all die.", "In {0} all die.", r"families\[0\] \(ending\).replies: .0. in"),
        ("Talk to me of {noun}.", "Talk to me of {tale}.", "talk.steer: {tale} in .* is not a slot"),
        ("I love to tell an ending!", "I love {noun}!", "talk.cheers: {noun} in .* none can stand here"),
        ('"Talk to me of {noun}.", ', "", "talk.steer: one of them must do without {fact}"),
        (', heldout: true, asks: ["Who', ', asks: ["Who', "talk.families: no family is of the test split"),
        (
            ', validation: true, asks: ["{tale} lies',
            ', asks: ["{tale} lies',
            "talk.hard: no family is of the validation",
        ),
        ("{id: twist, validation: true", "{id: twist, validation: true, heldout: true", "exclude each other"),
        ("{id: twist, validation: true", "{id: twist, validation: soon", r"\(twist\).validation: give true or false"),
        ("{id: twist", "{id: ending", r"talk.families\[1\].id: ending is used already"),
        ("{id: twist", "{id: the twist", "an id is of letters, digits and _"),
        ("{id: twist,", "{id: twist, kinds: [animals],", "no topic of the kind animals; did you mean animal"),
        (
            "{id: twist,",
            "{id: twist, refuse: hard,",
            r"\(twist\).refuse: hard is none of the lists of `refuse` \(default\)",
        ),
        ("        default: [", "        other: [", "talk.refuse: give `default"),
        (
            "        tale: [the sea tale, the red book, the long song]",
            "        tale: [it]",
            "talk.slots.tale has 1 of the at least 2",
        ),
        ("        tale:", "        meal: [a, b]\n        tale:", "talk.slots.meal is taken"),
        ("Who did it in {tale}?", "How does {tale} end?", "share the wording 'How does {tale} end"),
        ("Who did it in {tale}?", "Who should I vote for?", "is a wording of politics/vote_for, too"),
        ("I began {tale} today.", "Tell me about {noun}.", "is a wording of natural/about, too"),
    ],
)
def test_a_fault_names_file_entry_and_field(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert SPOILERS.count(old) >= 1
    path = with_spoilers(tmp_path, SPOILERS.replace(old, new, 1))
    with pytest.raises(UserError, match=fault) as error:
        load_guardrails(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_name_twice_in_the_file_no_file_and_an_empty_one(tmp_path: Path) -> None:
    twice = SPOILERS + BARE.removeprefix("guardrails:\n")
    with pytest.raises(UserError, match=r"my.yaml:\d+: spoilers is given twice"):
        load_guardrails(with_spoilers(tmp_path, twice))
    with pytest.raises(UserError, match="no such file; check --guardrails"):
        load_guardrails(tmp_path / "none.yaml")
    for text in ("", "guardrails:\n", "- a\n", "guardrails: {}\n"):
        with pytest.raises(UserError, match="my.yaml"):
            load_guardrails(with_spoilers(tmp_path, text))


def test_behaviors_are_chosen_by_name_each_once() -> None:
    assert choose_behaviors(guardrails(), ["all"]) == list(GUARDS)
    assert choose_behaviors(guardrails(), ["meeting", "politics", "meeting"]) == ["meeting", "politics"]
    assert choose_behaviors(guardrails(), ["meeting", "all", "natural"], natural=True)[-1] == "natural"
    with pytest.raises(UserError, match="--behavior politic is not known; did you mean politics"):
        choose_behaviors(guardrails(), ["politic"])
    with pytest.raises(UserError, match="natural is not known"):
        choose_behaviors(guardrails(), ["natural"])
    with pytest.raises(UserError, match="--behavior names nothing"):
        choose_behaviors(guardrails(), [])
