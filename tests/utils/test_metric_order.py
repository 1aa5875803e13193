import pytest

from utils.metric_order import better


@pytest.mark.parametrize(
    "metric",
    [
        "mean_reward", "reward", "rewards/format/mean", "strict_format_rate", "safe_rate", "accuracy_risk",
        "eval/accuracy", "tag_recall", "f1", "precision", "spread_auroc", "eval/behavior_score", "tokens_per_s",
        "persona_kept",
    ],
)  # fmt: skip
def test_higher_is_better(metric: str) -> None:
    assert better(metric) == "higher"


@pytest.mark.parametrize(
    "metric",
    [
        "loss", "eval/loss", "log_loss", "leak_rate", "mentions_hidden_rate", "tag_fpr_natural", "ece",
        "jailbreak_rate_risk", "compliance_rate", "helpful_accuracy_cost", "repetition", "completions/clipped_ratio",
        "frac_reward_zero_std", "kl", "step_time",
    ],
)  # fmt: skip
def test_lower_is_better_though_the_name_may_say_rate_or_accuracy(metric: str) -> None:
    assert better(metric) == "lower"


@pytest.mark.parametrize(
    "metric",
    ["visible_words", "r2", "mean_spread", "entropy", "learning_rate", "reward_std", "rewards/format/std", "what"],
)
def test_neither_end_is_better(metric: str) -> None:
    assert better(metric) is None
