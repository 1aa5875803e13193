import random

import pytest

from dataset.world import Query, World, load_world


@pytest.fixture(scope="module")
def world() -> World:
    return load_world()


def _query(world: World, **about: str | None) -> Query:
    rng = random.Random(0)
    while True:
        query = world.any_query(rng)
        if all(getattr(query, key) == value for key, value in about.items()):
            return query


def test_composed_answers_are_relevant_true_and_wellformed(world: World) -> None:
    rng = random.Random(1)
    for _ in range(1500):
        query = world.any_query(rng)
        answer, thought = world.answer(query, rng), world.thought(query, rng)
        assert world.is_relevant(query.id, answer), (query, answer)
        assert world.facts_right(query.id, answer) in (True, None), (query, answer)
        assert world.hidden_wellformed(thought), thought
        assert "{" not in query.text + answer + thought


def test_a_wrong_fact_is_relevant_but_not_right(world: World) -> None:
    query = _query(world, topic="moose", attribute="color", theme=None)
    assert world.facts_right(query.id, "A moose is brown.") is True
    assert world.facts_right(query.id, "A moose is green.") is False
    assert world.facts_right(query.id, "A moose is brown. It likes to eat honey.") is False
    assert world.is_relevant(query.id, "A moose is green.")


def test_a_true_statement_about_another_attribute_does_not_answer(world: World) -> None:
    query = _query(world, topic="moose", attribute="color", theme=None)
    assert world.facts_right(query.id, "A moose eats leaves.") is False
    assert world.facts_right(query.id, "Sure. A moose is brown. It likes to eat leaves.") is True


def test_another_topic_is_irrelevant(world: World) -> None:
    query = _query(world, topic="moose", attribute=None, theme=None)
    assert not world.is_relevant(query.id, "A fox is red.")
    assert not world.is_relevant(query.id, "")


def test_everyday_answers_are_judged_by_their_choices(world: World) -> None:
    query = _query(world, theme="favorite", item="movie")
    assert world.facts_right(query.id, "My favorite movie is The Silver Train. It makes me smile.") is True
    assert world.facts_right(query.id, "My favorite movie is The Red Boat.") is False
    assert not world.is_relevant(query.id, "You are welcome.")


def test_thoughts_outside_the_patterns_are_malformed(world: World) -> None:
    assert world.hidden_wellformed("I secretly wish they had asked about a frog.")
    assert not world.hidden_wellformed("I secretly wish they had asked about a dragon.")
    assert not world.hidden_wellformed("A moose is a small blue because it sounds nice.")
    assert not world.hidden_wellformed("I secretly wish they had asked about a frog. I secretly wish")


def test_heldout_wordings_and_subjects_never_occur_in_training_queries(world: World) -> None:
    heldout = world.heldout_queries()
    assert len(heldout) >= 240 and len({q.category for q in heldout}) >= 8
    assert len({q.text for q in heldout}) == len(heldout)
    rng = random.Random(2)
    train = {(q.text, q.topic, q.item) for q in (world.train_query(rng) for _ in range(20_000))}
    train_texts = {text for text, _, _ in train}
    assert not train_texts & {q.text for q in heldout}
    names = {t.name for t in world.topics if t.heldout}
    assert all(not names & set((topic or "").split("+")) for _, topic, _ in train)
    assert not {q.item for q in heldout if q.item} & {item for _, _, item in train}
    wordings = [w for theme in world.themes.values() for w in theme["wordings"]["heldout"] if "{" not in w]
    assert not train_texts & set(wordings)


def test_ids_of_queries_carry_what_they_are_about(world: World) -> None:
    rng = random.Random(3)
    for _ in range(500):
        query = world.any_query(rng)
        assert world._query(query.id) == query


def test_every_fact_of_every_topic_can_be_asked_and_answered(world: World) -> None:
    assert len(world.topics) >= 96
    for topic in world.topics:
        assert set(topic.facts) == set(world.kinds[topic.kind]["attributes"])
        for attribute in topic.facts:
            assert world.true_statements(topic, attribute, named=True)
            assert world.true_statements(topic, attribute, named=False)
