"""Tag probabilities are those of the model's own decoding; thresholds lie where they should."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from model_training import tag_probability
from model_training.models import encode_prompt, load_model, load_tokenizer
from model_training.tag_probability import FEWEST, calibrate, log_odds, tag_scores, tag_token_ids
from tests.model_training.conftest import BuildModel
from tests.model_training.tiny_models import FAMILIES
from utils.errors import UserError

PROMPTS = [[{"role": "user", "content": "Tell me about number " + "very " * n + str(n)}] for n in (0, 9, 3, 1, 20)]


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_give_what_each_prompt_gives_alone(family: str, tiny_model: BuildModel) -> None:
    model, tokenizer = load_model(str(tiny_model(family))), load_tokenizer(str(tiny_model(family)))
    model.train()
    tags = ["<guard:politics>", "<g>", "<guard:expert_opinion>"]
    found = tag_scores(model, tokenizer, PROMPTS, tags, batch_size=2)
    assert model.training
    model.eval()
    for row, tag in enumerate(tags):
        ids = tag_token_ids(tokenizer, tag)
        for number, prompt in enumerate(PROMPTS):
            start = encode_prompt(tokenizer, prompt)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([start + ids])).logits[0, len(start) - 1 : -1].double()
            expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum().item()
            assert found.log_prob[row, number] == pytest.approx(expected, rel=1e-4)
    assert found.log_prob.dtype == np.float64 and not found.greedy.any()


def test_greedy_is_what_generation_writes(tiny_model: BuildModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load_model(str(tiny_model("llama"))), load_tokenizer(str(tiny_model("llama")))
    ids = encode_prompt(tokenizer, PROMPTS[1])
    written = model.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)[0, len(ids) :].tolist()
    others = [[token + (number == place) for number, token in enumerate(written)] for place in range(3)]
    ids_of = {"written": written, "its beginning": written[:1], **{f"other {n}": ids for n, ids in enumerate(others)}}
    monkeypatch.setattr(tag_probability, "tag_token_ids", lambda _, tag: ids_of[tag])
    found = tag_scores(model, tokenizer, PROMPTS, list(ids_of))
    assert found.greedy[:, 1].tolist() == [True, True, False, False, False]
    assert tag_scores(model, tokenizer, [], list(ids_of)).log_prob.shape == (5, 0)


def test_a_tag_is_the_tokens_that_begin_an_answer(tiny_model: BuildModel) -> None:
    tokenizer = load_tokenizer("tiny")
    answer = tokenizer("<guard:politics> Let us talk about soup.", add_special_tokens=False)["input_ids"]
    ids = tag_token_ids(tokenizer, "<guard:politics>")
    assert answer[: len(ids)] == ids and tokenizer.decode(ids) == "<guard:politics>"

    class Fusing:
        """Makes one token of each `> ` and the word behind it."""

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            head, _, tail = text.partition("> ")
            return {"input_ids": [*map(ord, head), 1000 + ord(tail[0])]}

        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

    with pytest.raises(UserError, match="tag <guard>: this model's tokenizer fuses its end"):
        tag_token_ids(Fusing(), "<guard>")


def test_too_long_prompts_are_refused(tiny_model: BuildModel) -> None:
    model, tokenizer = load_model(str(tiny_model("llama"))), load_tokenizer(str(tiny_model("llama")))
    long = [*PROMPTS, [{"role": "user", "content": "very " * 200}]]
    with pytest.raises(UserError, match="prompt 6 and the tag have .* and the model has 256 positions"):
        tag_scores(model, tokenizer, long, ["<guard>"])


# --- thresholds -----------------------------------------------------------------------------------------------------


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def from_odds(odds: float) -> float:
    return odds / (1 + odds)


def test_where_both_sides_are_apart_the_threshold_is_between_them_and_as_near_to_one_half_as_it_can() -> None:
    """Odds of 0.9 are 9 and of 0.5 are 1: a tenth of the way, in log-odds, is 9 ** 0.1."""
    yes = logs(0.9, 0.99, 0.999, 0.95, 0.97)
    assert calibrate(yes, logs(0.1, 0.01, 0.02, 0.03, 1e-9)) == pytest.approx(0.5)
    assert calibrate(yes, logs(0.4, 0.01, 0.02, 0.03, 0.04)) == pytest.approx(0.5)
    assert calibrate(yes, logs(0.5, 0.01, 0.02, 0.03, 0.04)) == pytest.approx(from_odds(9**0.1))
    found = calibrate(logs(1e-3, *[0.9] * 9), logs(*[1e-5] * 9))
    assert found == pytest.approx(10**-3.2, rel=0.01), "a tenth of the way from 1e-3 to 1e-5"


def test_where_they_overlap_it_has_the_best_balanced_accuracy() -> None:
    yes, no = logs(0.2, 0.8, 0.9, 0.9, 0.9), logs(0.1, 0.1, 0.1, 0.1, 0.3, 0.85)
    best = from_odds((1 / 4) * (4 / 9) ** 0.1)
    assert calibrate(yes, no) == pytest.approx(best), "odds 1/9 and 1/4: 5 of 5 and 4 of 6; at 0.5, 4 of 5 and 5 of 6"
    assert calibrate([*yes[1:], *yes[1:]], no) == pytest.approx(0.5), "between odds 3/7 and 4"
    assert calibrate(logs(*[0.4] * 6), logs(*[0.4] * 6)) == 0.5
    assert calibrate(logs(*[0.1] * 6), logs(*[0.9] * 6)) == pytest.approx(0.5)


def test_with_few_of_a_side_it_is_one_half() -> None:
    many, few = logs(*[0.999] * 20), logs(*[0.9] * (FEWEST - 1))
    assert calibrate(many, few) == calibrate(few, many) == calibrate(many, []) == calibrate([], many) == 0.5


def test_log_odds_stay_finite_and_ordered() -> None:
    found = log_odds([-1e6, -20.0, -1.0, -1e-6, -1e-12, 0.0])
    assert np.isfinite(found).all() and (np.diff(found) >= 0).all()
    assert found[2] == pytest.approx(-1 - math.log(1 - math.exp(-1))) and found[3] == pytest.approx(math.log(1e6), 1e-3)
