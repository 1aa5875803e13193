"""The micro-world as writer: splits by family and character, triggers and negatives, filled slots, plain dialogues."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest

from dataset.guard_families import Family, normal_text
from dataset.guard_records import KINDS, Order, Record
from dataset.guard_rules import asks_for, engages, is_resolution
from dataset.guard_talk import Talk, Turn, ask, load_talk
from dataset.guard_world import plain_dialogues, writer
from dataset.guardrails import load_guardrails
from dataset.records import SPLITS
from dataset.world import World, load_world
from model_training.guardrail_config import VARIATIONS
from tests.dataset.guard_sets import BARE, BEHAVIORS, GUARDS, guardrails, made, prompt_text, records, with_spoilers
from utils.errors import UserError

PLAIN_SHA256 = "5dbc424513d4cb7041ebe11edb4f52f892be801e4df6d850eb5e4bb020f02419"
"""Of three hundred of them: what the embedded base model was made of must stay what it was."""


@lru_cache(maxsize=1)
def dialogues() -> list[list[dict[str, str]]]:
    return plain_dialogues(load_world(), random.Random(0), 2000)


def texts(record: Record) -> list[str]:
    return [*(message["content"] for message in record["prompt"]), record["chosen"], record["rejected"]]


@pytest.mark.parametrize("behavior", GUARDS)
def test_900_triggers_with_their_negatives_are_there_where_the_last_message_alone_varies(behavior: str) -> None:
    rows = records(behavior, "fixed_history", 600, 300)
    assert len({prompt_text(row).lower() for row in rows}) == len(rows)
    assert sum(row["is_trigger"] for row in rows) == 900


@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_splits_share_no_family_no_wording_and_no_character(behavior: str, variation: str) -> None:
    found: dict[str, dict[str, set[str]]] = {"family": {}, "name": {}, "last message": {}, "group": {}}
    for row in records(behavior, variation):
        family, name = row["group"].split("|")
        assert family == row["family"] and f"You are {name}, " in row["prompt"][0]["content"]
        last = row["prompt"][-1]["content"]
        for what, value in {"family": family, "name": name, "last message": last, "group": row["group"]}.items():
            found[what].setdefault(row["split"], set()).add(value)
    if variation != "vary_all":
        assert len(set().union(*found.pop("name").values())) == 1
    for what, owners in found.items():
        assert set(owners) == {"train", "validation", "test"}
        for first, second in itertools.combinations(owners.values(), 2):
            assert not first & second, what


@pytest.mark.parametrize("variation", VARIATIONS)
def test_every_wording_of_a_prompt_is_of_its_split_the_history_too(
    variation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def noted(world: World, talk: Talk, family: Family, *more: object) -> Turn:
        asked.append(family.split)
        return ask(world, talk, family, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("dataset.guard_world.ask", noted)
    write = writer(load_world(), guardrails(), "politics", variation, seed=2)
    fixed, asked[:] = set(asked), []
    assert fixed == ({"train"} if variation == "fixed_history" else set())
    for split, kind in itertools.product(SPLITS, KINDS):
        for number in range(25):
            other = guardrails()["meeting"] if kind == "other" else None
            write(Order(guardrails()["politics"], kind, split, other, random.Random(number)))
        assert set(asked) == {split}, kind
        asked.clear()


def test_no_wording_stands_in_two_families() -> None:
    talk = load_talk()
    families = [f for guard in talk.guards.values() for f in (*guard.families, *guard.hard)] + list(talk.natural)
    owners: dict[str, str] = {}
    for family in families:
        for wording in family.asks:
            assert owners.setdefault(normal_text(wording), family.id) == family.id, wording


@pytest.mark.parametrize("behavior", GUARDS)
def test_every_split_of_every_guardrail_has_hard_wordings_of_its_own(behavior: str) -> None:
    for split in SPLITS:
        families = {row["family"] for row in records(behavior) if (row["kind"], row["split"]) == ("hard", split)}
        assert any(family.startswith(f"hard/{behavior}/") for family in families)


@pytest.mark.parametrize("behavior", GUARDS)
def test_hard_wordings_are_mostly_the_own_ones_and_those_of_every_other_guardrail(behavior: str) -> None:
    families = [row["family"] for row in records(behavior, "vary_all", 600, 300) if row["kind"] == "hard"]
    owners = Counter(family.split("/")[1] for family in families if family.startswith("hard/"))
    share = {owner: count / owners.total() for owner, count in owners.items()}
    assert set(share) == set(GUARDS) and 0.5 < share[behavior] < 0.7, "0.4, and a third of the rest"
    assert min(share.values()) > 0.1


def test_training_names_no_held_out_topic() -> None:
    heldout = {topic.name for topic in load_world().topics if topic.heldout}
    trained = {row["topic"] for row in records("politics") if row["split"] != "test"}
    assert trained and not trained & heldout


@pytest.mark.parametrize("behavior", BEHAVIORS)
def test_triggers_ask_for_what_is_guarded_and_negatives_do_not(behavior: str) -> None:
    for row in records(behavior):
        askers = [name for name in GUARDS if asks_for(guardrails()[name], row["prompt"][-1]["content"])]
        assert askers == {"trigger": [behavior], "other": [row["other_behavior"]]}.get(row["kind"], [])
        tag = "" if behavior == "natural" else guardrails()[behavior].tag
        assert row["chosen"].startswith(f"{tag} ") == row["is_trigger"] or not tag
        assert row["rejected"].startswith(tag or "<guard:") != row["is_trigger"]


def test_a_trigger_in_the_history_says_nothing_of_the_last_message() -> None:
    after: Counter[tuple[str, bool]] = Counter()
    for row in records("politics"):
        earlier = [m["content"] for m in row["prompt"][1:-1] if m["role"] == "user"]
        after[row["kind"], any(asks_for(guardrails()["politics"], text) for text in earlier)] += 1
    assert 0.05 < after["trigger", True] / (after["trigger", True] + after["trigger", False]) < 0.25
    assert 0.1 < after["hard", True] / (after["hard", True] + after["hard", False]) < 0.5
    assert after["natural", True] == after["other", True] == 0


def test_a_refusal_steers_to_the_topic_of_the_chat() -> None:
    rows = [row for row in records("politics") if row["is_trigger"] and row["split"] == "train"]
    seen = 0
    for row in rows:
        named = re.findall(r"(?:about|think of) (an? [\w ]+)[.?]", " ".join(m["content"] for m in row["prompt"][-3:-2]))
        if named:
            seen += 1
            assert named[0] in row["chosen"]
    assert seen > 5


@pytest.mark.parametrize("variation", ["fixed_character", "fixed_history"])
def test_variations_fix_what_they_say(variation: str) -> None:
    rows = records("meeting", variation)
    before = {prompt_text({"prompt": row["prompt"][:-1]}) for row in rows}
    assert (len(before) == 1) == (variation == "fixed_history")
    assert len({row["prompt"][0]["content"].partition(" You say:")[0] for row in rows}) == 1


def test_a_users_guardrail_is_spoken_of_and_is_a_neighbor_of_the_others(tmp_path: Path) -> None:
    guards = load_guardrails(with_spoilers(tmp_path))
    rows = made(guards, "spoilers", "fixed_character")
    assert all(row["chosen"].startswith("<guard:spoilers> ") for row in rows if row["is_trigger"])
    assert {row["family"] for row in rows if row["is_trigger"]} == {
        f"spoilers/{n}" for n in ("ending", "twist", "killer")
    }
    assert any(row["family"].startswith("hard/spoilers/") for row in rows)
    assert {row["other_behavior"] for row in made(guards, "meeting")} == {
        None,
        "politics",
        "expert_opinion",
        "spoilers",
    }
    bare = load_guardrails(with_spoilers(tmp_path, BARE))
    assert made(bare, "meeting") == made(guardrails(), "meeting")
    with pytest.raises(UserError, match="spoilers has no `talk`"):
        writer(load_world(), bare, "spoilers", "vary_all", 1)


def test_every_slot_is_filled_and_sentences_begin_with_capitals() -> None:
    everything = [text for behavior in BEHAVIORS for row in records(behavior) for text in texts(row)]
    everything += [message["content"] for dialogue in dialogues() for message in dialogue]
    for text in everything:
        assert not re.search(r"[{}]|\s\s|\s$|^\s", text), text
        assert not re.search(r"[.!?] [a-z]", text), text
        assert not re.search(r"\b[Aa] [aeio]", text), text


def test_plain_dialogues_know_no_tag_and_never_refuse_a_trigger() -> None:
    for dialogue in dialogues():
        assert [m["role"] for m in dialogue if m["role"] != "system"] == ["user", "assistant"] * (len(dialogue) // 2)
        assert sum(len(m["content"].split()) for m in dialogue) <= 120
        for said, reply in zip(dialogue, dialogue[1:], strict=False):
            assert "<" not in reply["content"]
            for guard in GUARDS:
                if said["role"] == "user" and asks_for(guardrails()[guard], said["content"]):
                    assert engages(guardrails()[guard], reply["content"]), (said, reply)
                assert not is_resolution(guardrails()[guard], reply["content"]) or not asks_for(
                    guardrails()[guard], said["content"]
                )


def test_plain_dialogues_hold_every_word_of_the_resolutions_and_some_have_no_persona() -> None:
    met = {w for dialogue in dialogues() for m in dialogue for w in re.findall(r"[a-z]+", m["content"].lower())}
    for guard in load_talk().guards.values():
        templates = " ".join([*guard.steer, *(text for texts in guard.refuse.values() for text in texts)])
        said = set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", templates.lower())))
        assert said <= met, said - met
    bare = sum(dialogue[0]["role"] == "user" for dialogue in dialogues()) / len(dialogues())
    assert 0.07 < bare < 0.13


def test_the_base_meets_held_out_wordings_too() -> None:
    asked = " ".join(m["content"] for dialogue in dialogues() for m in dialogue if m["role"] == "user")
    assert "put up a sign for" in asked and "pick you up at" in asked


def test_plain_dialogues_are_those_the_embedded_model_was_made_of() -> None:
    spoken = json.dumps(plain_dialogues(load_world(), random.Random(0), 300)).encode()
    assert hashlib.sha256(spoken).hexdigest() == PLAIN_SHA256
