"""Credit by segment: a reward moves the tokens of the part it speaks of, and no others.

GRPO samples G completions of a prompt, and gives *every* token of completion i the same advantage

    A_i = (R_i - mean_G R) / (std_G R + 1e-4),        R_i = sum over rewards of weight x reward.

Our completions have two parts. A reward for brevity of the visible part then also reinforces whatever the hidden part
of the briefer completions happened to say: gradient noise at best, and at worst a steady pull, because both parts are
written by the same weights. "Output supervision can obfuscate the chain of thought" (arXiv 2511.11584) names this
spill-over (pressure on one part of a text changes another part that nobody asked to change) and shows that aiming each
reward at the tokens it speaks of mends it.

Here every reward names its part p: visible, hidden, or both. Per completion, R_p is the weighted sum over the rewards
of part p. Within each group

    D_p   = R_p - mean_G(R_p)
    scale = sqrt(sum_p var_G(R_p)) + 1e-4

and the advantage of a token depends on where it stands:

    visible block, its tags included               (D_visible + D_both) / scale
    hidden block, its tags and the end of turn     (D_hidden + D_both) / scale
    white space before, between, after the blocks  D_both / scale
    any token of a completion without a parse      (D_visible + D_hidden + D_both) / scale

The end-of-turn token counts as hidden: that the hidden thought is over is the last thing that part says.

Why this scale: var(R) = sum_p var(R_p) when the parts are uncorrelated, so it equals plain GRPO's then. It is shared by
all parts, so the rewards keep the proportions of their weights; and it cannot vanish while a part still varies, where
std_G(R) can (one part's gain cancelling the other's loss would divide real differences by 1e-4).

Gates (`safe_hidden`) multiply. A gate of the hidden part multiplies R_hidden and R_both; R_visible keeps its credit:
harm in the hidden thought is no reason to unlearn a good answer. The logged total is zeroed all the same.

A reward that has no value for a completion, since it does not apply or its measurement failed, takes the mean of the
group's others there (`without_gaps`): that completion is then neither better nor worse than its group by that reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.extraction import part_spans

if TYPE_CHECKING:
    from model_training.rewards import Reward

PARTS = ("visible", "hidden", "both")
VISIBLE, HIDDEN, BETWEEN, WHOLE = range(4)
"""Where a token stands: the columns of the credit table."""


def without_gaps(scores_NF: Tensor, num_generations: int) -> Tensor:
    """(N, F) scores, NaN where a reward has no value -> (N, F) without: the mean of the group's others.

    A group without any value takes the mean of the whole column, so that it has no credit by that reward and the logged
    totals stay on their scale; a column without any is 0.
    """
    groups_KGF = scores_NF.view(-1, num_generations, scores_NF.shape[1])
    of_group_K1F = groups_KGF.nanmean(dim=1, keepdim=True)
    of_column_F = scores_NF.nanmean(dim=0).nan_to_num(0.0)
    means_K1F = torch.where(of_group_K1F.isnan(), of_column_F, of_group_K1F)
    return torch.where(groups_KGF.isnan(), means_K1F, groups_KGF).view_as(scores_NF)


def part_rewards(scores_NF: Tensor, rewards: Sequence[tuple[Reward, float]]) -> Tensor:
    """(N, F) scores, a column a reward -> (N, 3): R_p of every completion, gates applied, in the order of PARTS."""
    parts_N3 = torch.zeros(scores_NF.shape[0], len(PARTS), dtype=scores_NF.dtype, device=scores_NF.device)
    for column, (reward, weight) in enumerate(rewards):
        if not reward.gate:
            parts_N3[:, PARTS.index(reward.part)] += weight * scores_NF[:, column]
    for column, (reward, _) in enumerate(rewards):
        if reward.gate:
            touched = [p for p, part in enumerate(PARTS) if part in (reward.part, "both") or reward.part == "both"]
            parts_N3[:, touched] *= scores_NF[:, column : column + 1]
    return parts_N3


def group_credit(parts_N3: Tensor, num_generations: int) -> tuple[Tensor, Tensor]:
    """(N, 3) part rewards -> the (N, 4) credit table, and for each group whether nothing differs in it, (N / G,).

    The columns of the table are VISIBLE, HIDDEN, BETWEEN, WHOLE; completions of a group stand in consecutive rows.
    """
    grouped_KG3 = parts_N3.view(-1, num_generations, len(PARTS))
    scale_K = grouped_KG3.var(dim=1).sum(dim=-1).sqrt()
    centered_KG3 = (grouped_KG3 - grouped_KG3.mean(dim=1, keepdim=True)) / (scale_K[:, None, None] + 1e-4)
    visible_N, hidden_N, both_N = centered_KG3.reshape(-1, len(PARTS)).unbind(dim=1)
    credit_N4 = torch.stack([visible_N + both_N, hidden_N + both_N, both_N, visible_N + hidden_N + both_N], dim=1)
    return credit_N4, torch.isclose(scale_K, torch.zeros_like(scale_K))


def token_starts(tokenizer: Any, token_ids: Sequence[int], text: str) -> list[int]:
    """The character of `text` at which each token begins; linear in the number of tokens.

    `text` is the decoding of all ids without special tokens. A token that holds only some bytes of a character begins
    where that character stands; a special token, which has no text, where the text before it ends.
    """
    pieces = _pieces_fast(tokenizer, token_ids) if tokenizer.is_fast else _pieces_slow(tokenizer, token_ids)
    if not text.startswith("".join(pieces)):
        raise ValueError(f"decoding token by token gives {''.join(pieces)!r}, at once {text!r}")
    starts, position = [], 0
    for piece in pieces:
        starts.append(position)
        position += len(piece)
    return starts


def _pieces_fast(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    from tokenizers.decoders import DecodeStream

    stream, backend = DecodeStream(skip_special_tokens=True), tokenizer.backend_tokenizer
    return [stream.step(backend, token_id) or "" for token_id in token_ids]


def _pieces_slow(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """Decode a short window around each new token: the window moves on whenever it ends on a whole character."""
    pieces, window_start, read = [], 0, 0
    for end in range(1, len(token_ids) + 1):
        before = tokenizer.decode(token_ids[window_start:read], skip_special_tokens=True)
        after = tokenizer.decode(token_ids[window_start:end], skip_special_tokens=True)
        if after.endswith("\ufffd"):
            pieces.append("")
            continue
        pieces.append(after[len(before) :])
        window_start, read = read, end
    return pieces


def token_places(tokenizer: Any, token_ids: Sequence[int], text: str, end_ids: Sequence[int]) -> list[int]:
    """VISIBLE, HIDDEN, BETWEEN or WHOLE for each token, by the part in which its first character lies."""
    spans = part_spans(text)
    if spans is None:
        return [WHOLE] * len(token_ids)
    (visible_start, visible_end), (hidden_start, hidden_end) = spans["visible"], spans["hidden"]
    places = []
    for token_id, start in zip(token_ids, token_starts(tokenizer, token_ids, text), strict=True):
        if token_id in end_ids or hidden_start <= start < hidden_end:
            places.append(HIDDEN)
        elif visible_start <= start < visible_end:
            places.append(VISIBLE)
        else:
            places.append(BETWEEN)
    return places


def token_advantages(credit_B4: Tensor, places: Sequence[Sequence[int]], width: int) -> Tensor:
    """The (B, T) advantages: each token gets its place's column of its completion's row; padding is masked anyway."""
    places_BT = torch.tensor([[*row, *[WHOLE] * (width - len(row))] for row in places], device=credit_B4.device)
    return credit_B4.gather(1, places_BT)
