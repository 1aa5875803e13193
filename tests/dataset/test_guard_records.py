"""Composing records, whoever writes the texts: counts, tags, no duplicates, the same for the same seed."""

from __future__ import annotations

from collections import Counter

import pytest

from dataset.guard_records import Draft, Order, compose, kind_counts, prompt_key, split_sizes
from tests.dataset.guard_sets import guardrails, records
from utils.errors import UserError


def teacher(order: Order) -> Draft:
    """A writer of its own: what an API would be."""
    number = order.rng.randrange(10_000)
    return Draft(
        prompt=[{"role": "user", "content": f"{order.kind} {order.split} {number}"}],
        chosen="Yes.",
        rejected="No.",
        group=f"{order.split}|{number}",
        family=None,
        topic=None,
    )


@pytest.mark.parametrize("samples", [1, 2, 9, 25, 225, 1000])
def test_a_third_at_least_is_natural_and_each_kind_is_there(samples: int) -> None:
    counts = kind_counts("politics", samples)
    assert counts["trigger"] == samples and min(counts.values()) >= 1
    assert 3 * counts["natural"] >= sum(counts.values())
    natural = kind_counts("natural", samples)
    assert sum(natural.values()) == samples and natural["natural"] >= natural["hard"]


def test_samples_are_triggers_and_a_tenth_of_them_validates() -> None:
    assert split_sizes(250, 200) == {"train": 225, "validation": 25, "test": 200}
    assert split_sizes(10, 1) == {"train": 9, "validation": 1, "test": 1}
    counts = Counter((row["split"], row["kind"]) for row in records("meeting", "vary_all", 200, 60))
    assert [counts[split, "trigger"] for split in ("train", "validation", "test")] == [180, 20, 60]
    assert (counts["train", "natural"], counts["train", "hard"], counts["train", "other"]) == (279, 164, 196)


def test_any_writer_will_do_and_tags_are_put_here() -> None:
    rows, _ = compose(guardrails(), "meeting", "vary_all", 20, 10, 0, teacher)
    for row in rows:
        expected = ("<guard:meeting> Yes.", "No.") if row["is_trigger"] else ("Yes.", "<guard:meeting> No.")
        assert (row["chosen"], row["rejected"]) == expected
        assert (row["other_behavior"] in ("politics", "expert_opinion")) == (row["kind"] == "other")


def test_duplicates_are_thrown_away_and_counted() -> None:
    def few(order: Order) -> Draft:
        draft = teacher(order)
        text = f"{order.kind} {order.split}  {order.rng.choice('aAbcdefghiklmno')}"
        return Draft([{"role": "user", "content": text}], draft.chosen, draft.rejected, draft.group, None, None)

    rows, duplicates = compose(guardrails(), "politics", "vary_all", 10, 5, 0, few)
    assert len({prompt_key(row) for row in rows}) == len(rows) and duplicates > 0
    with pytest.raises(UserError, match=r"--n_samples: there are no more distinct trigger prompts of politics"):
        compose(guardrails(), "politics", "vary_all", 20, 5, 0, few)
    with pytest.raises(UserError, match="--test_samples"):
        compose(guardrails(), "politics", "vary_all", 10, 20, 0, few)


def test_the_seed_decides_and_test_rows_do_not_depend_on_the_training_rows() -> None:
    first, again, other = (compose(guardrails(), "meeting", "vary_all", 20, 10, s, teacher)[0] for s in (3, 3, 4))
    more = compose(guardrails(), "meeting", "vary_all", 40, 10, 3, teacher)[0]
    assert first == again and first != other
    assert [r for r in first if r["split"] == "test"] == [r for r in more if r["split"] == "test"]
