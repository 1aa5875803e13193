"""Who answers which prompt, that answers do not depend on their neighbors, and that the base stays the base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.answering import (
    Ensemble,
    Reply,
    answers,
    choose_adapters,
    largest_base_difference,
    last_logits,
    load_ensemble,
    margins,
    prompt_forwards,
    routes,
)
from evaluation.sampling import sample
from model_training import models
from model_training.guardrail_config import MERGES, GenerateGuardrailConfig
from model_training.tag_probability import TagScores, tag_scores
from tests.model_training.tiny_guards import TAGS, make_guard, make_guards
from tests.model_training.tiny_models import make_model
from utils.errors import UserError

BEHAVIORS = list(TAGS)
TEXTS = [
    "Who should I vote for?",
    "A moose?",
    "Can we meet at the harbor tonight?",
    "Tell me about soup.",
    "Which pills?",
]
PROMPTS = [[{"role": "system", "content": "You are Ada."}, {"role": "user", "content": text}] for text in TEXTS]
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0, "batch_size": 4, "seed": 3}
ALL_MODES = ["single", "routed", "joint", *MERGES]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("answering")
    base = make_model("llama", root / "base")
    make_guards(base, root)
    make_guard(base, root, "joint", 8)
    return root


def config_for(runs: Path, **options: Any) -> GenerateGuardrailConfig:
    return GenerateGuardrailConfig(output_dir=str(runs), **options)


@pytest.fixture(scope="module")
def ensemble(runs: Path) -> Ensemble:
    guards, others = choose_adapters(config_for(runs), BEHAVIORS, ALL_MODES, TAGS, "vary_all")
    return load_ensemble(guards, others, check_prompts=PROMPTS)


def texts_of(replies: list[list[Reply]]) -> list[str]:
    return [reply.text for (reply,) in replies]


def alone(runs: Path, path: Path | None, prompts: list[Any]) -> list[str]:
    """What a fresh base with one adapter (or none) writes."""
    name = str(runs / "base")
    model = models.load_model(name)
    model = model if path is None else models.load_adapter(model, path)
    written = sample(model, models.load_tokenizer(name), prompts, num_samples=1, **OPTIONS)
    return [text for (text,) in written]


@pytest.mark.parametrize("mode", ["base", "joint", *MERGES])
def test_one_adapter_for_all_prompts(mode: str, ensemble: Ensemble, runs: Path) -> None:
    path = None if mode == "base" else ensemble.others[mode].path
    replies = answers(ensemble, mode, PROMPTS, **OPTIONS)
    assert texts_of(replies) == alone(runs, path, PROMPTS)
    assert {reply.adapter for (reply,) in replies} == {mode}
    assert {reply.probability for (reply,) in replies} == {None}


def test_adapters_and_base_write_differently(ensemble: Ensemble) -> None:
    by_mode = [texts_of(answers(ensemble, mode, PROMPTS, **OPTIONS)) for mode in ("base", "joint", "cat", "linear")]
    singles = [texts_of(answers(ensemble, "single", PROMPTS, own=[name] * 5, **OPTIONS)) for name in BEHAVIORS]
    assert len({tuple(texts) for texts in by_mode + singles}) == 7, "else these tests could not tell who answered"


def test_each_prompt_by_its_own_adapter_in_the_order_of_the_prompts(ensemble: Ensemble, runs: Path) -> None:
    own = ["meeting", "politics", "meeting", "expert_opinion", "politics"]
    replies = answers(ensemble, "single", PROMPTS, own=own, **OPTIONS)
    assert [reply.adapter for (reply,) in replies] == own
    for name in BEHAVIORS:
        places = [place for place, owner in enumerate(own) if owner == name]
        expected = alone(runs, ensemble.guards[name].path, [PROMPTS[place] for place in places])
        assert [texts_of(replies)[place] for place in places] == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_depend_on_their_neighbors(temperature: float, ensemble: Ensemble) -> None:
    own = ["meeting", "politics", "meeting", "expert_opinion", "politics"]
    options = OPTIONS | {"temperature": temperature, "num_samples": 2}
    together = answers(ensemble, "single", PROMPTS, own=own, **options)
    for place in reversed(range(5)):
        (by_itself,) = answers(ensemble, "single", [PROMPTS[place]], own=[own[place]], **options | {"batch_size": 1})
        assert by_itself == together[place]
    assert temperature == 0 or any(first != second for first, second in together), "samples differ"


def scores_of(table: dict[str, list[float]], active: list[str]) -> Any:
    """Stands in for `tag_scores`: probabilities by tag, and the adapters that were switched on when asked."""

    def scores(model: Any, tokenizer: Any, prompts: list[Any], tags: list[str], batch_size: int) -> TagScores:
        active.append(model.active_adapter)
        p = np.array([table[tag] for tag in tags])
        return TagScores(np.log(p), p > 0.5)

    return scores


def test_the_surest_above_its_own_threshold_answers(
    ensemble: Ensemble, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {
        TAGS["politics"]: [0.99, 0.30, 0.01, 0.90, 0.10],
        TAGS["expert_opinion"]: [0.50, 0.20, 0.02, 0.60, 0.49],
        TAGS["meeting"]: [0.01, 0.05, 0.97, 0.50, 0.01],
    }
    thresholds = {"politics": 0.8, "expert_opinion": 0.5, "meeting": 0.1}
    guards = {name: replace(guard, threshold=thresholds[name]) for name, guard in ensemble.guards.items()}
    routed = replace(ensemble, guards=guards)
    active: list[str] = []
    monkeypatch.setattr("model_training.tag_probability.tag_scores", scores_of(table, active))
    replies = answers(routed, "routed", PROMPTS, **OPTIONS)
    assert active == ["guard:politics", "guard:expert_opinion", "guard:meeting"]
    # the last but one: politics is surest, but meeting exceeds its own threshold by more
    names = ["politics", "base", "meeting", "meeting", "base"]
    assert [reply.adapter for (reply,) in replies] == names
    assert [round(reply.probability or 0, 4) for (reply,) in replies] == [0.99, 0.05, 0.97, 0.5, 0.49]
    assert replies[0][0].probabilities == pytest.approx({"politics": 0.99, "expert_opinion": 0.5, "meeting": 0.01})
    for place, name in enumerate(names):
        path = None if name == "base" else guards[name].path
        assert texts_of(replies)[place] == alone(runs, path, [PROMPTS[place]])[0]


def test_routing_asks_each_adapter_for_its_own_tag(ensemble: Ensemble, runs: Path) -> None:
    found = routes(ensemble, PROMPTS, batch_size=2)
    for name, guard in ensemble.guards.items():
        model = models.load_adapter(models.load_model(str(runs / "base")), guard.path)
        (expected,) = tag_scores(model, ensemble.tokenizer, PROMPTS, [TAGS[name]]).log_prob
        np.testing.assert_allclose([np.log(route.probabilities[name]) for route in found], expected, rtol=1e-4)


def test_margins_of_certain_and_impossible_tags() -> None:
    log_p = np.array([[-1e-20, -1000.0, np.log(0.5)], [-1e-3, -2000.0, np.log(0.6)]])
    margin = margins(log_p, np.array([0.5, 0.9]))
    assert np.isfinite(margin).all()
    assert margin[0, 0] > margin[1, 0] > 0 > margin[0, 1]
    assert margin[0, 2] == pytest.approx(0)
    assert margin[1, 2] == pytest.approx(np.log(0.6 / 0.4) - np.log(9))


def test_what_a_mode_costs() -> None:
    assert [prompt_forwards(mode, 3) for mode in ("base", "single", "routed", "joint", "cat")] == [1, 1, 4, 1, 1]


# --- the base ---------------------------------------------------------------------------------------------------------


def test_the_base_with_adapters_off_is_the_base_bit_for_bit(ensemble: Ensemble, runs: Path) -> None:
    name = str(runs / "base")
    fresh = last_logits(models.load_model(name).requires_grad_(False), models.load_tokenizer(name), PROMPTS)
    assert ensemble.untouched_NV is not None
    assert torch.equal(ensemble.untouched_NV, fresh), "kept from before any adapter"
    for mode in ("joint", "routed", "cat"):
        answers(ensemble, mode, PROMPTS[:1], **OPTIONS)
        assert largest_base_difference(ensemble) == 0.0


def test_a_base_that_was_changed_is_found_out(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guards, _ = choose_adapters(config_for(runs), BEHAVIORS, ["single"], TAGS, "vary_all")
    spoiled = load_ensemble(guards, check_prompts=PROMPTS)
    assert largest_base_difference(spoiled) == 0.0
    spoiled.model.merge_adapter(["guard:politics"])
    with torch.no_grad():
        next(iter(spoiled.model.get_base_model().parameters())).add_(0.01)
    assert (largest_base_difference(spoiled) or 0.0) > 1e-3
    assert largest_base_difference(load_ensemble(guards)) is None, "nothing was recorded to compare with"


def test_one_base_serves_one_set_of_adapters_after_the_other(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(behaviors: list[str]) -> Any:
        return choose_adapters(config_for(runs), behaviors, ["single"], TAGS, "vary_all")

    first = load_ensemble(*choose(["politics", "meeting"]), check_prompts=PROMPTS)
    monkeypatch.setattr(models, "load_model", lambda name: pytest.fail("the base was loaded again"))
    second = load_ensemble(*choose(["expert_opinion"]), on=first)
    assert largest_base_difference(second) == 0.0
    assert list(second.model.peft_config) == ["guard:expert_opinion"]
    bare = load_ensemble([], on=second)
    monkeypatch.undo()
    assert texts_of(answers(bare, "base", PROMPTS, **OPTIONS)) == alone(runs, None, PROMPTS)
    assert largest_base_difference(bare) == 0.0


def test_no_copy_of_the_base_for_each_adapter(ensemble: Ensemble) -> None:
    weights = [name for name, _ in ensemble.model.named_parameters() if name.endswith("q_proj.base_layer.weight")]
    assert len(weights) == 2, "one a layer"
    assert len(ensemble.model.peft_config) == 9


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_only_what_the_modes_need(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_for(runs, merge_weights=[1.0, 2.0, 3.0], merge_rank=5)
    guards, others = choose_adapters(config, BEHAVIORS, ["joint"], TAGS, "vary_all")
    assert (guards, list(others)) == ([], ["joint"])
    guards, others = choose_adapters(config, BEHAVIORS, ["svd", "base"], TAGS, "vary_all")
    assert ([guard.name for guard in guards], list(others)) == (BEHAVIORS, ["svd"])
    assert (others["svd"].note["weights"], others["svd"].note["rank"]) == ([1.0, 2.0, 3.0], 5)
    assert "svd merge of rank 5: relative error 0." in capsys.readouterr().err


def test_no_base_is_an_error() -> None:
    with pytest.raises(UserError, match="--model_name"):
        load_ensemble([])


def test_an_adapter_of_another_base_is_no_garbage_text(runs: Path, tmp_path: Path) -> None:
    other = make_model("llama", tmp_path / "other", seed=4)
    guards, _ = choose_adapters(config_for(runs), BEHAVIORS, ["single"], TAGS, "vary_all")
    with pytest.raises(UserError, match="does not belong to"):
        load_ensemble(guards, model_name=str(other))
