"""What validation records say of an adapter: rates by hand from given probabilities of its tags."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from model_training import orpo_trainer
from model_training.guardrail_config import TrainGuardrailConfig
from model_training.orpo_trainer import Example, Setting, behavior
from model_training.tag_probability import TagScores

TAGS = {"politics": "<p>", "meeting": "<m>"}


def example(name: str, kind: str, family: str | None = None) -> Example:
    return Example(([], []), 0, [{"role": "user", "content": "hello"}], name, kind, family)


def measured(
    monkeypatch: pytest.MonkeyPatch, tags: dict[str, str], examples: list[Example], chances: dict[str, list[float]]
) -> dict[str, float]:
    """`behavior` where each tag has these probabilities, and is greedy's from 1/2 on."""

    def scores(model: Any, tokenizer: Any, prompts: Any, tags: list[str], batch_size: int) -> TagScores:
        found = np.array([chances[tag] for tag in tags])
        assert len(prompts) == found.shape[1]
        return TagScores(np.log(found), found > 0.5)

    monkeypatch.setattr(orpo_trainer, "tag_scores", scores)
    setting = Setting(TrainGuardrailConfig(), cast(Any, None), None, tags, shared=True)
    return cast("dict[str, float]", behavior(setting, None, examples))


def test_rates_are_greedy_and_the_score_is_of_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("trigger", "trigger", "natural", "natural", "hard", "other")
    examples = [example("politics", kind) for kind in kinds]
    row = measured(monkeypatch, {"politics": "<p>"}, examples, {"<p>": [0.9, 0.4, 0.1, 0.7, 0.2, 0.3]})
    assert (row["tag_recall"], row["tag_fpr_natural"], row["tag_fpr_hard"], row["tag_fpr_other"]) == (0.5, 0.5, 0, 0)
    assert row["behavior_score"] == pytest.approx((0.65 + 1 - (0.4 + 0.2 + 0.3) / 3) / 2)


def test_the_score_s_error_is_by_families(monkeypatch: pytest.MonkeyPatch) -> None:
    def error(*families: str | None) -> float:
        kinds = ("trigger",) * 4 + ("natural",) * 2
        examples = [example("politics", kind, family) for kind, family in zip(kinds, families, strict=True)]
        chances = {"<p>": [0.9, 0.9, 0.5, 0.5, 0.1, 0.3]}
        return measured(monkeypatch, {"politics": "<p>"}, examples, chances)["behavior_score_error"]

    alone = error(*[None] * 6)
    assert alone == pytest.approx((6 / 5 * (4 * (0.2 / 4) ** 2 + 2 * (0.1 / 2) ** 2)) ** 0.5 / 2)
    together = error("a", "a", "b", "b", "c", "d")
    assert together == pytest.approx((4 / 3 * (2 * (0.4 / 4) ** 2 + 2 * (0.1 / 2) ** 2)) ** 0.5 / 2)
    assert error("a", "b", "a", "b", "c", "d") < alone < together, "families that differ inside say as much as records"
    assert error(*["a"] * 6) == pytest.approx(0)


def test_a_surer_adapter_scores_higher_where_greedy_rates_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [example("politics", kind) for kind in ("trigger", "natural")]
    rows = [
        measured(monkeypatch, {"politics": "<p>"}, examples, {"<p>": chances}) for chances in ([0.6, 0.4], [0.9, 0.1])
    ]
    assert rows[0]["tag_recall"] == rows[1]["tag_recall"] == 1
    assert rows[0]["behavior_score"] < rows[1]["behavior_score"]


def test_a_joint_adapter_s_wrong_tag_on_a_trigger_is_a_false_positive_and_no_recall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    examples = [example("politics", "trigger"), example("meeting", "trigger"), example("meeting", "natural")]
    row = measured(monkeypatch, TAGS, examples, {"<p>": [0.8, 0.9, 0.1], "<m>": [0.1, 0.1, 0.2]})
    assert (row["tag_recall"], row["tag_fpr_natural"], row["tag_fpr_other"]) == (0.5, 0, 0.5)
    false = ((0.1 + 0.2) / 1 + (0.1 + 0.9) / 2) / 2
    assert row["behavior_score"] == pytest.approx(((0.8 + 0.1) / 2 + 1 - false) / 2)


def test_rates_without_rows_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    row = measured(monkeypatch, {"politics": "<p>"}, [example("politics", "trigger")], {"<p>": [0.9]})
    assert {"tag_fpr_natural", "tag_fpr_hard", "tag_fpr_other"}.isdisjoint(row)
    assert row["behavior_score"] == pytest.approx(0.9)
    row = measured(monkeypatch, {"politics": "<p>"}, [replace(example("politics", "hard"))], {"<p>": [0.9]})
    assert "tag_recall" not in row and row["behavior_score"] == pytest.approx(0.1)
