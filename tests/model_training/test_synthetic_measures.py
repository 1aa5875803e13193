"""Numbers about the synthetic experiments, on values and networks whose truth is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from model_training.synthetic_measures import auroc, network_loss, ranks, spearman
from model_training.synthetic_worlds import best_bradley_terry, label_entropy, label_probability


class Interpolated(nn.Module):
    """The best reward of each state of 1d, between the nodes of a fine grid on its side of the jump."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes, self.rewards, self.value = best_bradley_terry("1d", 500)

    def forward(self, states: Tensor) -> Tensor:
        place = (states[:, 0].double() * 500 - 0.5).clamp(0, 498.999)
        left = place.floor().long()
        left = torch.where(left == 399, 398 + (states[:, 0] >= 0.8) * 2, left)
        share = place - left
        return (self.rewards[left] * (1 - share) + self.rewards[left + 1] * share).unsqueeze(1)


class Knows(nn.Module):
    """A classifier that says the true log-odds of a label."""

    def forward(self, pairs: Tensor) -> Tensor:
        return torch.logit(label_probability("1d", pairs[:, :1].double(), pairs[:, 1:].double()), 1e-12).unsqueeze(1)


def test_a_perfect_network_has_the_least_loss() -> None:
    best = Interpolated()
    assert network_loss("1d", "base", best) == pytest.approx(best.value, abs=2e-5)
    assert network_loss("1d", "classifier", Knows()) == pytest.approx(label_entropy("1d", 100), abs=1e-4)


def test_spearman_by_hand() -> None:
    """Ranks 1, 2.5, 2.5, 4 and 2, 1, 3, 4: covariance 3, squared deviations 4.5 and 5."""
    first, second = torch.tensor([0.0, 5.0, 5.0, 9.0]), torch.tensor([0.2, 0.1, 0.3, 0.4])
    assert ranks(first).tolist() == [1.0, 2.5, 2.5, 4.0]
    assert spearman(first, second) == pytest.approx(3 / (4.5 * 5) ** 0.5)
    assert spearman(second, second.exp()) == pytest.approx(1) and spearman(second, -second) == pytest.approx(-1)


def test_auroc_by_hand() -> None:
    """Of six pairs three are in order and one is equal."""
    assert auroc(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0, 4.0])) == pytest.approx(3.5 / 6)
    assert auroc(torch.tensor([2.0]), torch.tensor([1.0, 0.0])) == 1.0
