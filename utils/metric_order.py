"""Which way a metric is better, by its name: what says which of several runs is the best, and whether a trend is good.

better("mean_reward")    "higher"
better("eval/loss")      "lower"
better("visible_words")  None: neither
"""

from __future__ import annotations

import re
from typing import Literal

Direction = Literal["higher", "lower"]

_NEITHER = re.compile(
    r"words|length|overlap|covered|_tokens$|spread$|^r2$|_std$|/std$|grad_norm|learning_rate|entropy|^rewards/(chosen|rejected)$"
)
_LOWER = re.compile(
    r"loss|leak|mentions_hidden|jailbreak|compliance_rate|repetition|clipped|frac_reward_zero_std"
    r"|(^|_)(fpr|ece|ties|cost|kl|time|runtime)(_|$)"
)
_HIGHER = re.compile(
    r"reward|rate|recall|accurac|precision|adherence|auroc|spearman|margin|odds|score|per_s|kept|net_win|(^|_)f1(_|$)"
)


def better(metric: str) -> Direction | None:
    """None where neither end is better, or where the name does not tell."""
    name = metric.removeprefix("eval/")
    if name != "frac_reward_zero_std" and _NEITHER.search(name):
        return None
    return "lower" if _LOWER.search(name) else "higher" if _HIGHER.search(name) else None
