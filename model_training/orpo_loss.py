"""ORPO's loss on pairs behind one prompt, and log-probabilities over long vocabularies in little memory.

    loss = NLL(chosen) + beta * mean over pairs of -log sigmoid(log odds(chosen) - log odds(rejected))

    log p(answer)   = mean over the answer's tokens of log P(token | what stands before it)
    odds(answer)    = p / (1 - p),   so log odds = log p - log(1 - exp(log p))
    NLL(chosen)     = - mean over tokens of log P(token | what stands before it),
                      `full`: the prompt's tokens (but the first) and the answer's; `answer`: the answer's alone

(Hong, Lee, Thorne 2024, "ORPO: Monolithic Preference Optimization without Reference Model", equations 4 to 7; the mean
in log p and the NLL over prompt and answer are those of TRL.) On the same tokens loss, metrics and gradients are those
of TRL 1.14's ORPOTrainer, micro-batch by micro-batch: there, too, the NLL is a mean over all the tokens of a
micro-batch, so that longer texts weigh more, while each pair weighs the same in the odds; padding counts nowhere. What
differs are the tokens themselves. TRL cuts texts that are too long, here they are left out; TRL puts the tokenizer's
BOS and EOS around what the chat template wrote, where it did not; here the template writes every special token of the
prompt, and an answer ends with the token that ends a turn.

The logits of a 128k vocabulary take half a megabyte a token, more than all else. Here the token log-probabilities are
computed from the final hidden states, of the wanted tokens alone (a shared prompt's once), in chunks of tokens whose
logits are freed at once: the output layer is frozen, so all that the backward pass will ask of a chunk is known
when it is computed, one vector a token,

    d log P(target) / d state = W[target] - sum over tokens v of P(v) W[v]

Logits are kept neither for the backward pass nor computed again in it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model_training.pairs import PairBatch, bare_model, collate_pairs, pair_hidden
from utils.errors import UserError

CHUNK = 2**23
"""Logits of a chunk, at most: 32 MiB; a chunk has at least one token."""
LARGEST_LOG_P = -1e-7
"""Mean log-probabilities above this (float32 cannot resolve 1 - p there) have the odds of this, and no slope."""
SAME_MODEL = 1e-5, 2e-2
"""How far log-probabilities may lie from the model's own, over its largest logit, in float32 and in half precision."""


# --- log-probabilities of tokens ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """A frozen output layer: logits = cap * tanh(z / cap) / temperature with z = scale * (W state + bias); no cap:
    logits = z / temperature."""

    weight: Tensor
    """(V, H)"""
    bias: Tensor | None
    """(V,)"""
    scale: float
    cap: float | None
    temperature: float = 1.0


def head_of(model: Any, dtype: torch.dtype | None = None) -> Head:
    """The output layer of a causal LM, tried on a few tokens against the model's own logits.

    With a `dtype`, what is multiplied is rounded to it, as autocast would in every step.

    Raises:
        UserError: it is trained, or the model makes its logits in another way.
    """
    bare = bare_model(model)
    layer, config = bare.get_output_embeddings(), bare.config.get_text_config()
    if type(layer) is not nn.Linear or layer.weight.requires_grad:
        raise UserError(
            f"{type(bare).__name__}: its output layer must be a plain linear one, and frozen, not "
            f"{type(layer).__name__}; leave it out of --target_modules"
        )
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    weight = layer.weight.detach()  # ZeRO-3 empties the parameter itself
    bias = None if layer.bias is None else layer.bias.detach()
    head = Head(weight, bias, scale, getattr(config, "final_logit_softcapping", None))
    _try(model, head)
    if dtype is None:
        return head
    return replace(head, weight=head.weight.to(dtype), bias=None if head.bias is None else head.bias.to(dtype))


def _try(model: Any, head: Head) -> None:
    bare = bare_model(model)
    ids = [(2 + 7 * n) % len(head.weight) for n in range(12)]
    batch = collate_pairs([(ids, ids)], pad_id=0, shared=False).to(bare.device)
    targets = batch.input_ids[0]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(input_ids=batch.input_ids[:1], use_cache=False).logits[0].float()
            found = token_log_probs(pair_hidden(model, batch)[: len(ids)], head, targets)
    finally:
        model.train(training)
    own = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    difference = ((found - own).abs().max() / logits.abs().max().clamp(min=1)).item()
    if not difference <= SAME_MODEL[bare.dtype not in (torch.float32, torch.float64)]:
        raise UserError(
            f"{type(bare).__name__} makes its logits in a way that is not known here: log-probabilities from its "
            f"hidden states differ by {difference:.1e} from its own; choose another --model_name"
        )


def token_log_probs(states: Tensor, head: Head, targets: Tensor) -> Tensor:
    """log P(target) of N tokens, (N,) float32, from the states (N, H) that predict them and their ids (N,).

    Matrix products are in the precision of the head, all else in float32.
    """
    result: Tensor = _TokenLogProbs.apply(states, head, targets, None)
    return result


def token_log_probs_and_entropies(states: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
    """`token_log_probs`, and the entropies in nats of the distributions, (N,) float32 without gradient."""
    entropies = torch.empty(len(states), device=states.device)
    return _TokenLogProbs.apply(states, head, targets, entropies), entropies


class _TokenLogProbs(torch.autograd.Function):  # type: ignore[misc]
    """In chunks of tokens; see the module's docstring."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Head, targets: Tensor, entropies: Tensor | None) -> Tensor:
        weight, dtype = head.weight, head.weight.dtype
        wants_slopes = ctx.needs_input_grad[0]
        log_probs = torch.empty(len(states), device=states.device)
        slopes = torch.empty_like(states) if wants_slopes else None
        size = max(1, CHUNK // len(weight))
        for start in range(0, len(states), size):
            part = slice(start, start + size)
            logits = nn.functional.linear(states[part].to(dtype), weight, head.bias).float()
            bend = None
            if head.cap is None:
                logits.mul_(head.scale / head.temperature)
            else:
                logits.mul_(head.scale).div_(head.cap).tanh_()
                bend = 1 - logits.square() if wants_slopes else None
                logits.mul_(head.cap / head.temperature)
            target = targets[part, None]
            top = logits.amax(1, keepdim=True)
            chosen = logits.gather(1, target) - top
            logits.sub_(top)
            shares = logits.exp_() if entropies is None else logits.exp()
            total = shares.sum(1, keepdim=True)
            log_probs[part] = (chosen - total.log())[:, 0]
            if entropies is not None:
                mean = (shares[:, None] @ logits[:, :, None])[:, 0] / total
                entropies[part] = (total.log() - mean)[:, 0]
            if slopes is not None:
                shares.div_(-total).scatter_add_(1, target, torch.ones_like(total))
                if bend is not None:
                    shares.mul_(bend)
                slopes[part] = (shares.to(dtype) @ weight).mul_(head.scale / head.temperature)
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return log_probs

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (slopes,) = ctx.saved_tensors
        return slopes * gradient[:, None].to(slopes.dtype), None, None, None


# --- log-probabilities of answers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairLogProbs:
    """Of B pairs, float32."""

    chosen: Tensor
    """(B,): mean log-probability of the chosen answer's tokens."""
    rejected: Tensor
    """(B,): likewise."""
    nll_sum: Tensor
    """(): sum of the negative log-likelihood over the tokens that it runs over."""
    nll_tokens: Tensor
    """(): how many these are."""


def pair_log_probs(
    model: Any, head: Head, batch: PairBatch, prompt_lengths: Tensor, nll: Literal["full", "answer"]
) -> PairLogProbs:
    """One forward of the pairs; `prompt_lengths` (B,) says of how many tokens each pair's prompt is."""
    first = prompt_lengths[:, None]
    chosen = _from(batch.chosen_at, first)
    rejected = _from(batch.rejected_at, first)
    likely = _from(batch.chosen_at, torch.ones_like(first)) if nll == "full" else chosen

    hidden = pair_hidden(model, batch)
    wanted = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
    for places, mask in ((batch.chosen_at, chosen | likely), (batch.rejected_at, rejected)):
        wanted[places[mask]] = True
    at = wanted.nonzero()[:, 0]
    states = hidden.index_select(0, batch.previous[at])
    found = token_log_probs(states, head, batch.input_ids.flatten()[at])
    table = found.new_zeros(len(hidden)).index_copy(0, at, found)

    def total(places: Tensor, mask: Tensor) -> Tensor:
        return (table[places.clamp(min=0)] * mask).sum(1)

    return PairLogProbs(
        chosen=total(batch.chosen_at, chosen) / chosen.sum(1),
        rejected=total(batch.rejected_at, rejected) / rejected.sum(1),
        nll_sum=-total(batch.chosen_at, likely).sum(),
        nll_tokens=likely.sum(),
    )


def _from(places: Tensor, first: Tensor) -> Tensor:
    """(B, longest): True for the tokens of each text from number `first` (B, 1) on."""
    return (places >= 0) & (torch.arange(places.shape[1], device=places.device) >= first)


# --- the loss -------------------------------------------------------------------------------------------------------


def log_odds(log_p: Tensor) -> Tensor:
    """log p / (1 - p) from log p < 0, exact near both ends: log(1 - e^x) is log(-expm1(x)) above -log 2, else log1p."""
    x = log_p.clamp(max=LARGEST_LOG_P)
    near_one = x > -0.6931471805599453
    high, low = torch.where(near_one, x, -1.0), torch.where(near_one, -1.0, x)  # no slope from the branch not taken
    return x - torch.where(near_one, torch.log(-torch.expm1(high)), torch.log1p(-torch.exp(low)))


def orpo_loss(chosen: Tensor, rejected: Tensor, nll: Tensor, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss () and metrics (), named as TRL's, from mean log-probabilities (B,) of the answers and the NLL ()."""
    margin = log_odds(chosen) - log_odds(rejected)
    ratio = nn.functional.logsigmoid(margin)
    rewards = beta * chosen.detach(), beta * rejected.detach()
    metrics = {
        "nll_loss": nll,
        "log_odds_ratio": ratio.mean(),
        "log_odds_chosen": margin.mean(),
        "rewards/chosen": rewards[0].mean(),
        "rewards/rejected": rewards[1].mean(),
        "rewards/accuracies": (rewards[0] > rewards[1]).float().mean(),
        "rewards/margins": (rewards[0] - rewards[1]).mean(),
        "logps/chosen": chosen.mean(),
        "logps/rejected": rejected.mean(),
    }
    return nll - beta * ratio.mean(), {name: value.detach() for name, value in metrics.items()}
