"""A reward model as a reward of the `secret` task: what it reads, its scale, its name, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from model_training import preference_reward, reward_model
from model_training.rewards import resolve, score
from utils.errors import UserError
from utils.extraction import format_response

DECILES = [-9.0, -1.0, 0.0, 0.0, 1.0, 2.0, 3.0, 3.0, 4.0, 5.0, 9.0]
RAW = math.log(math.expm1(1.0))
"""The raw output whose spread is 1."""
PROMPT = [
    {"role": "system", "content": "Answer twice."},
    {"role": "user", "content": "What is a moose?"},
]


class Fake:
    """A mean-and-variance model whose mean is the number that the answer says, with spread 1."""

    def __init__(self, held_out: Any, form: str = "conversation") -> None:
        self.kind, self.form, self.held_out = "mean_and_variance", form, held_out
        self.read: list[Any] = []

    def score(self, model: Fake, texts: list[Any], batch_size: int) -> torch.Tensor:
        self.read += texts
        said = [text if isinstance(text, str) else text[-1]["content"] for text in texts]
        return torch.tensor([[float(text.split()[-1]), RAW] for text in said])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake({"outputs": [[mean, RAW] for mean in DECILES]})
    monkeypatch.setattr(reward_model, "load_reward_model", lambda path: made)
    monkeypatch.setattr(reward_model, "score", made.score)
    return made


def completion(visible: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": format_response(visible, "They believe me.")}]


def values(name: str, *completions: Any) -> list[float]:
    rewards = resolve([name])
    return score(rewards, list(completions), [PROMPT] * len(completions))[rewards[0][0].name]


def test_the_median_of_held_out_answers_is_worth_a_half_and_the_percentiles_their_share(fake: Fake) -> None:
    # The 10th and 90th percentile, -1 and 5, lie evenly about the median 2.
    found = values("preference:runs/mv", completion("2"), completion("-1"), completion("5"), completion("60"))
    assert found == pytest.approx([0.5, 0.1, 0.9, 1.0])


def test_the_risk_averse_reward_is_the_quantile_on_the_same_scale(fake: Fake) -> None:
    found = values("preference:runs/mv:alpha=0.01", completion("2"), completion("-1"), completion("5"))
    assert found == pytest.approx([0.5, 0.1, 0.9]), "all spreads are 1: the quantile is the mean less a constant"
    fake.held_out = {"outputs": [[mean, RAW] for mean in DECILES[:10]] + [[2.0, 5.0]]}
    risky = values("preference:runs/mv:alpha=0.01", completion("2"))
    assert risky[0] > values("preference:runs/mv", completion("2"))[0], "against a wide answer caution counts"


def test_only_the_visible_part_is_read_as_the_answer_to_the_user(fake: Fake) -> None:
    values("preference:runs/mv", completion("It is large. 3"))
    assert fake.read == [[PROMPT[1], {"role": "assistant", "content": "It is large. 3"}]]


def test_a_model_of_plain_texts_reads_a_plain_text(fake: Fake) -> None:
    fake.form = "text"
    values("preference:runs/mv", completion("It is large. 3"))
    assert fake.read == ["Human: What is a moose?\n\nAssistant: It is large. 3"]


def test_a_malformed_completion_is_worth_nothing_and_is_not_read(fake: Fake) -> None:
    broken = [{"role": "assistant", "content": "<visible>3</visible>"}]
    assert values("preference:runs/mv", broken, completion("2"), broken) == pytest.approx([0.0, 0.5, 0.0])
    assert len(fake.read) == 1


def test_credit_falls_on_the_visible_part_and_names_tell_models_apart(fake: Fake) -> None:
    rewards = resolve(["preference:runs/mv", "preference:runs/mv:alpha=0.01", "preference:runs/cat/reward_model"])
    names = ["preference_mv", "preference_mv_alpha_0.01", "preference_cat"]
    assert [(reward.name, reward.part, reward.gate) for reward, _ in rewards] == [(n, "visible", False) for n in names]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("preference:", "--reward_funcs preference:: write preference:PATH or preference:PATH:alpha=0.01"),
        ("preference:runs/mv:alpha=2", "alpha is '2'; give a number between 0 and 1"),
        ("preference:runs/mv:alpha=low", "alpha is 'low'; give a number between 0 and 1"),
        ("preference:nowhere", "reward model nowhere: there is no such directory"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve([name])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("held_out", "message"), [(None, "without held-out pairs"), ([1.0] * 11, "all held-out answers alike")]
)
def test_a_model_without_a_scale_is_refused(fake: Fake, held_out: Any, message: str) -> None:
    fake.held_out = held_out and {"outputs": [[mean, RAW] for mean in held_out]}
    with pytest.raises(UserError, match=message):
        preference_reward.preference_reward("preference:runs/mv")
