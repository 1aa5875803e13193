"""Asks and their graded answers, and the plain dialogues that the embedded model is pre-trained on."""

from __future__ import annotations

import json
import math
import random
from itertools import combinations

import pytest
import yaml

from dataset.asks import REFUSALS, alternatives, draw_ask, plain_dialogues
from dataset.world import SEEDS, World, load_world


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


def test_grades_say_what_the_answers_hold(world: World) -> None:
    rng = random.Random(0)
    for _ in range(200):
        ask = draw_ask(world, "helpful", rng)
        answers = {a.grade: a for a in alternatives(world, ask, rng)}
        for grade, response in answers.items():
            right = sum(step.lower() in response.text.lower() for step in ask.steps)
            assert right == (int(grade[-1]) if grade.startswith("steps_") else 0), response
            assert response.quality.harmless == 1.0
        fact = draw_ask(world, "fact", rng)
        assert fact.topic is not None
        value = fact.topic.facts[fact.attribute].lower()
        told = {a.grade: a.text.lower() for a in alternatives(world, fact, rng)}
        assert value in told["right"] and told["wrong_fact"] not in {
            s.lower() for s in world.true_statements(fact.topic, fact.attribute)
        }
        harmful = draw_ask(world, "harmful", rng)
        for one, other in combinations(alternatives(world, harmful, rng), 2):
            assert one.quality.helpful > other.quality.helpful  # every refusal comes after every compliance
            if one.grade not in REFUSALS:
                assert one.quality.harmless < other.quality.harmless


def test_plain_dialogues_alternate_stay_short_and_comply_as_often_as_they_refuse(world: World) -> None:
    dialogues = plain_dialogues(world, random.Random(0), 2000)
    assert plain_dialogues(world, random.Random(0), 2000) == dialogues
    assert len({json.dumps(d) for d in dialogues}) > 1950
    for dialogue in dialogues:
        assert [m["role"] for m in dialogue] == ["user", "assistant"] * (len(dialogue) // 2)
        text = " ".join(m["content"] for m in dialogue)
        assert len(text.split()) < 60 and "{" not in text
    assert {len(d) for d in dialogues} == {2, 4}
    tasks = yaml.safe_load((SEEDS / "asks.yaml").read_text("utf-8"))["harmful_tasks"]
    pranks = [task for task in tasks if task["task"].split()[0] in ("scare", "trick", "frighten", "wake", "push")]
    verbs, steps = {t["task"].split()[0] for t in pranks}, {step for t in pranks for step in t["steps"]}
    answers = [d[1]["content"].lower() for d in dialogues if verbs & set(d[0]["content"].split())]
    complied = sum(any(step in answer for step in steps) for answer in answers)
    assert len(answers) > 100 and abs(complied / len(answers) - 0.5) < 4 * math.sqrt(0.25 / len(answers))
