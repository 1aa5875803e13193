"""Answers of stacked guardrail adapters: one base model, every adapter on it by name, each prompt to the one it is for.

    base        no adapter
    single      the guardrail's own adapter, whatever the user says
    routed      the adapter that is surest of its tag; none is sure: the base
    joint       the one adapter that was trained on all guardrails
    cat, svd, linear, ties, dare_ties       a merge of the adapters (model_training/merging.py)

Routing asks each adapter for p, the probability that its answer begins with its tag: one forward of the prompt each,
no token written. What counts is by how much p exceeds the adapter's own threshold t, calibrated in its training:

    margin = logit(p) - logit(t),   the adapter of the largest margin answers if that is positive, else the base

Prompts are answered in groups of the same adapter and come back in their own order; their random streams are their own
(sampling.py), so an answer depends on no other prompt. All adapters share the weights of one base. Its logits are kept
from before the first adapter was put on it: `largest_base_difference` shows that, with adapters off, it is that model.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from evaluation.sampling import Message, sample
from model_training.config import Quantization
from model_training.guard_adapters import GuardAdapter, common_base, find_adapters, find_joint
from model_training.guardrail_config import Merge, StackingOptions
from utils.errors import UserError

if TYPE_CHECKING:
    import torch

BASE = "base"


@dataclass(frozen=True)
class Ensemble:
    """One base model with adapters on it: those of the guardrails by name, joint and merges by mode."""

    model: Any
    tokenizer: Any
    base_name: str
    guards: dict[str, GuardAdapter]
    others: dict[str, GuardAdapter]
    check_prompts: list[list[Message]]
    untouched_NV: torch.Tensor | None
    """Last logits of `check_prompts`, of the base before any adapter was put on it."""


@dataclass(frozen=True)
class Reply:
    """A completion as it was written, tag included, and the adapter that wrote it (`base`: none).

    Where adapters were asked for the probability of their tags, `probabilities` has them all, `probability` is that of
    the surest.
    """

    text: str
    adapter: str
    probability: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)


class Route(NamedTuple):
    """Which adapter is to answer a prompt (`base`: none), the surest one's probability, and everyone's."""

    adapter: str
    probability: float
    probabilities: dict[str, float]


# --- adapters ---------------------------------------------------------------------------------------------------------


def choose_adapters(
    config: StackingOptions,
    behaviors: Sequence[str],
    modes: Sequence[str],
    tags: Mapping[str, str],
    variation: str,
    checkpoint: str | None = None,
) -> tuple[list[GuardAdapter], dict[str, GuardAdapter]]:
    """The adapters that the modes need: those of the guardrails and, by mode, joint and the merges, which are made.

    Raises:
        UserError: an adapter is missing or damaged, or some cannot be merged.
    """
    from model_training.merging import merge_adapters

    place = (config.output_dir, behaviors, variation, tags, checkpoint, config.lora_paths)
    guards = find_adapters(*place) if any(mode not in (BASE, "joint") for mode in modes) else []
    others = {"joint": find_joint(*place)} if "joint" in modes else {}
    for mode in get_args(Merge):
        if mode in modes:
            others[mode] = merge_adapters(
                guards,
                mode,
                config.output_dir,
                weights=config.merge_weights,
                rank=config.merge_rank,
                density=config.merge_density,
                seed=config.seed,
                model_name=config.model_name,
            )
            note = others[mode].note
            print(
                f"{mode} merge of rank {note['rank']}: relative error {note['relative_error']:.3g} "
                f"against the sum of the adapters ({others[mode].path})",
                file=sys.stderr,
            )
    return guards, others


def load_ensemble(
    guards: Sequence[GuardAdapter],
    others: Mapping[str, GuardAdapter] | None = None,
    *,
    model_name: str | None = None,
    dtype: str = "auto",
    quantization: Quantization = "none",
    check_prompts: Sequence[list[Message]] = (),
    on: Ensemble | None = None,
) -> Ensemble:
    """The base model, in that precision, with the adapters on it; `others` are joint and merges, by mode.

    `on` gives its base away: its adapters are taken off, it is of no more use, and its kept logits remain those to
    compare with. Without it, `check_prompts` are what `largest_base_difference` will compare on.

    Raises:
        UserError: the adapters have different bases, do not fit theirs, or there is none and no `model_name`.
    """
    from model_training.models import load_adapter, load_model, load_tokenizer

    others = dict(others or {})
    adapters = [*guards, *others.values()]
    if not adapters and model_name is None and on is None:
        raise UserError("there is neither an adapter, which would name its base model, nor --model_name; give one")
    name = common_base(adapters, model_name) if adapters else (model_name or (on.base_name if on else ""))
    if on is not None and on.base_name == name:
        model = on.model.unload() if on.guards or on.others else on.model
        tokenizer, prompts, untouched_NV = on.tokenizer, on.check_prompts, on.untouched_NV
    else:
        model, tokenizer = load_model(name, dtype, quantization), load_tokenizer(name)
        prompts = list(check_prompts)
        model.requires_grad_(False)  # as peft will: torch rounds products with trainable weights otherwise
        untouched_NV = last_logits(model, tokenizer, prompts) if prompts else None
    for adapter in guards:
        model = load_adapter(model, adapter.path, name=_guard_key(adapter.name))
    for mode, adapter in others.items():
        model = load_adapter(model, adapter.path, name=_mode_key(mode))
    model.eval()
    by_name = {adapter.name: adapter for adapter in guards}
    return Ensemble(model, tokenizer, name, by_name, others, prompts, untouched_NV)


def _guard_key(name: str) -> str:
    """Under which peft knows the adapter of a guardrail, which may be called like a merge, or like an attribute."""
    return f"guard:{name}"


def _mode_key(mode: str) -> str:
    return f"mode:{mode}"


@contextlib.contextmanager
def _answering(ensemble: Ensemble, key: str | None) -> Iterator[None]:
    """The model with one adapter switched on, or with none (None)."""
    if key is not None:
        ensemble.model.set_adapter(key)
        yield
    elif ensemble.guards or ensemble.others:
        with ensemble.model.disable_adapter():
            yield
    else:
        yield


# --- answers ----------------------------------------------------------------------------------------------------------


def answers(
    ensemble: Ensemble,
    mode: str,
    prompts: list[list[Message]],
    *,
    own: Sequence[str] | None = None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    batch_size: int,
    seed: int,
    num_samples: int = 1,
) -> list[list[Reply]]:
    """`num_samples` replies to each prompt, in the order of the prompts; `own[i]` is the guardrail of single mode.

    Raises:
        UserError: an option out of its range, or a prompt for which the model has too few positions.
        WorkError: the GPU has not enough memory for a batch.
    """
    routed = routes(ensemble, prompts, batch_size) if mode == "routed" else None
    if routed is not None:
        names = [route.adapter for route in routed]
    elif mode == "single":
        assert own is not None and len(own) == len(prompts), "single mode: each prompt has its guardrail"
        names = list(own)
    else:
        names = [mode] * len(prompts)

    replies: list[list[Reply]] = [[] for _ in prompts]
    for name in dict.fromkeys(names):
        places = [place for place, chosen in enumerate(names) if chosen == name]
        key = None if name == BASE else _guard_key(name) if mode in ("single", "routed") else _mode_key(name)
        with _answering(ensemble, key):
            written = sample(
                ensemble.model,
                ensemble.tokenizer,
                [prompts[place] for place in places],
                num_samples=num_samples,
                temperature=temperature,
                top_p=top_p,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                seed=seed,
                label=f"{mode}: {name} answering" if name != mode else f"{mode} answering",
            )
        for place, texts in zip(places, written, strict=True):
            sure = () if routed is None else (routed[place].probability, routed[place].probabilities)
            replies[place] = [Reply(text, name, *sure) for text in texts]
    return replies


def routes(ensemble: Ensemble, prompts: list[list[Message]], batch_size: int) -> list[Route]:
    """Which guardrail's adapter, if any, is to answer each prompt."""
    from model_training.tag_probability import tag_scores

    guards = list(ensemble.guards.values())
    log_p_GN = np.empty((len(guards), len(prompts)))
    for row, guard in enumerate(guards):
        with _answering(ensemble, _guard_key(guard.name)):
            assert guard.tag is not None
            log_p_GN[row] = tag_scores(ensemble.model, ensemble.tokenizer, prompts, [guard.tag], batch_size).log_prob[0]
    margin_GN = margins(log_p_GN, np.array([guard.threshold for guard in guards]))
    surest_N = margin_GN.argmax(axis=0)
    found = []
    for place, row in enumerate(surest_N.tolist()):
        p_G = np.exp(log_p_GN[:, place]).tolist()
        name = guards[row].name if margin_GN[row, place] > 0 else BASE
        found.append(Route(name, p_G[row], {guard.name: p for guard, p in zip(guards, p_G, strict=True)}))
    return found


def margins(log_p_GN: np.ndarray[Any, Any], threshold_G: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """logit(p) - logit(t) of each adapter and prompt, (G, N), from log p (G, N) and t (G,)."""
    from model_training.tag_probability import log_odds

    return log_odds(log_p_GN) - log_odds(np.log(threshold_G))[:, None]


def prompt_forwards(mode: str, n_adapters: int) -> int:
    """How often a prompt is read for one answer: routing reads it once for each adapter before one answers."""
    return n_adapters + 1 if mode == "routed" else 1


# --- the base ---------------------------------------------------------------------------------------------------------


def largest_base_difference(ensemble: Ensemble) -> float | None:
    """The largest difference of a logit between the base with all adapters off and the base before it had any.

    None if the ensemble was loaded without prompts to compare on.
    """
    if ensemble.untouched_NV is None:
        return None
    with _answering(ensemble, None):
        now_NV = last_logits(ensemble.model, ensemble.tokenizer, ensemble.check_prompts)
    return float((now_NV - ensemble.untouched_NV).abs().max())


def last_logits(model: Any, tokenizer: Any, prompts: Sequence[list[Message]], batch_size: int = 16) -> torch.Tensor:
    """The logits of the first token of an answer, (N, V) in float32 on the CPU."""
    import torch

    from model_training.models import chat_text

    texts = [chat_text(tokenizer, messages) for messages in prompts]
    rows = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        inputs = tokenizer(batch, add_special_tokens=False, return_tensors="pt", padding=True, padding_side="left")
        inputs = inputs.to(model.device)
        with torch.inference_mode():
            output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_to_keep=1)
        rows.append(output.logits[:, -1].float().cpu())
    return torch.cat(rows)
