"""A trained reward model as a reward of the `secret` task.

    --reward_funcs format preference:runs/mv                     the mean of the reward
    --reward_funcs format preference:runs/mv:alpha=0.01          risk-averse: its 1 % quantile

It reads the visible part as the answer to the conversation so far, without the system text, which speaks of tags that
the reward model never met; the hidden part is not for people to like. A malformed completion is worth 0, as for the
other rewards. Rewards have no unit, so they are set on the scale of the held-out answers of the model's own training:

    value = sigmoid( ln 9 x (r - median) / (width / 2) ),   width from the 10th to the 90th percentile

of the mean, or of that quantile,

which is 1/2 at the median and, where the percentiles lie evenly about it, 0.1 and 0.9 at them, and never quite flat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_training.text_measures import message_text
from prompts.preference import answered
from utils.errors import UserError
from utils.extraction import parse

PREFIX = "preference:"
BATCH_SIZE = 16


def parse_name(given: str) -> tuple[str, float | None]:
    """Path and alpha of `preference:PATH[:alpha=X]`.

    Raises:
        UserError: no path, or an alpha that is no number between 0 and 1.
    """
    path, marker, alpha = given.removeprefix(PREFIX).partition(":alpha=")
    if not path:
        raise UserError(f"--reward_funcs {given}: write {PREFIX}PATH or {PREFIX}PATH:alpha=0.01")
    if not marker:
        return path, None
    try:
        value = float(alpha)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise UserError(f"--reward_funcs {given}: alpha is {alpha!r}; give a number between 0 and 1")
    return path, value


def reward_name(path: str, alpha: float | None) -> str:
    """`preference_mv`, or `preference_mv_alpha_0.01`."""
    folder = Path(path).resolve()
    name = folder.parent.name if folder.name == "reward_model" else folder.name
    return f"preference_{name}" + ("" if alpha is None else f"_alpha_{alpha:g}")


def preference_reward(given: str) -> Any:
    """The reward function of `preference:PATH[:alpha=X]`, its model loaded.

    Raises:
        UserError: the path holds no reward model, or one whose scale is not known.
    """
    import torch

    from model_training.preference_losses import mean_and_spread, quantile
    from model_training.reward_model import load_reward_model, score

    path, alpha = parse_name(given)
    model = load_reward_model(path)

    def reward_of(outputs: Any) -> Any:
        return mean_and_spread(model.kind, outputs)[0] if alpha is None else quantile(model.kind, outputs, alpha)

    if model.held_out is None:
        raise UserError(
            f"--reward_funcs {given}: it was trained without held-out pairs, so the scale of its rewards is not known; "
            "train it with --eval_dataset_size above 0"
        )
    percentiles = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    usual = torch.tensor(model.held_out["outputs"], dtype=torch.float64)
    tenth, median, ninetieth = torch.quantile(reward_of(usual), percentiles).tolist()
    if not ninetieth > tenth:
        raise UserError(f"--reward_funcs {given}: it rewards all held-out answers alike; train it for longer")
    slope = 2 * math.log(9) / (ninetieth - tenth)

    def function(completions: Sequence[Any], prompts: Sequence[Any], **columns: Any) -> list[float]:
        visible = [parse(message_text(completion)).visible for completion in completions]
        scored = [i for i, text in enumerate(visible) if text]
        texts = [answered(_without_system(prompts[i]), str(visible[i]), model.form) for i in scored]
        values = [0.0] * len(completions)
        if texts:
            rewards = reward_of(score(model, texts, BATCH_SIZE).double())
            for i, value in zip(scored, (slope * (rewards - median)).sigmoid().tolist(), strict=True):
                values[i] = value
        return values

    return function


def _without_system(prompt: Any) -> Any:
    return [message for message in prompt if message["role"] != "system"]
