from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from model_training.credit import (
    BETWEEN,
    HIDDEN,
    VISIBLE,
    WHOLE,
    _pieces_slow,
    group_credit,
    part_rewards,
    token_advantages,
    token_places,
    token_starts,
    without_gaps,
)
from model_training.models import load_tokenizer
from model_training.rewards import Part, Reward
from tests.model_training.conftest import BuildModel
from tests.model_training.tiny_models import make_records, small_config
from utils.extraction import format_response


def reward(name: str, part: Part, gate: bool = False) -> Reward:
    return Reward(name, lambda completions, **columns: [0.0] * len(completions), part, gate)


REWARDS = [
    (reward("v", "visible"), 1.0),
    (reward("h", "hidden"), 2.0),
    (reward("b", "both"), 0.5),
    (reward("g", "hidden", gate=True), 1.0),
]


def test_rewards_are_weighed_and_summed_by_part() -> None:
    scores = torch.tensor([[1.0, 0.5, 0.4, 1.0]])
    assert part_rewards(scores, REWARDS).tolist() == [pytest.approx([1.0, 1.0, 0.2])]


def test_a_gate_of_the_hidden_part_leaves_the_visible_reward() -> None:
    scores = torch.tensor([[1.0, 0.5, 0.4, 0.0]])
    assert part_rewards(scores, REWARDS).tolist() == [[1.0, 0.0, 0.0]]


def test_a_gate_of_both_parts_touches_all() -> None:
    scores = torch.tensor([[1.0, 0.5, 0.4, 0.0]])
    rewards = [*REWARDS[:3], (reward("g", "both", gate=True), 1.0)]
    assert part_rewards(scores, rewards).tolist() == [[0.0, 0.0, 0.0]]


def test_credit_of_a_group_by_hand() -> None:
    """Group of two: visible 1 and 0, hidden 0 and 0.4, both 0.5 and 0.5: variances 0.5, 0.08 and 0."""
    parts = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.4, 0.5]])
    credit, dead = group_credit(parts, num_generations=2)
    scale = math.sqrt(0.5 + 0.08) + 1e-4
    first = [0.5 / scale, -0.2 / scale, 0.0, 0.3 / scale]
    assert credit[0].tolist() == pytest.approx(first)
    assert credit[1].tolist() == pytest.approx([-value for value in first])
    assert dead.tolist() == [False]


def test_parts_that_cancel_out_do_not_blow_up_the_credit() -> None:
    """Plain GRPO sees equal totals here, a dead group; each part still learns, at a scale of its own."""
    credit, dead = group_credit(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), num_generations=2)
    assert credit[0].tolist() == pytest.approx([0.5, -0.5, 0.0, 0.0], abs=1e-3)
    assert dead.tolist() == [False]


def test_credit_equals_plain_grpo_where_one_part_varies() -> None:
    totals = torch.tensor([0.1, 0.9, 0.4, 0.6])
    parts = torch.stack([torch.zeros(4), torch.zeros(4), totals], dim=1)
    credit, _ = group_credit(parts, num_generations=4)
    plain = (totals - totals.mean()) / (totals.std() + 1e-4)
    for column in (VISIBLE, HIDDEN, BETWEEN, WHOLE):
        assert torch.allclose(credit[:, column], plain)


def test_groups_do_not_mix_and_a_dead_group_has_no_credit() -> None:
    parts = torch.tensor([[1.0, 0, 0], [0.0, 0, 0], [0.3, 0.3, 0.3], [0.3, 0.3, 0.3]])
    credit, dead = group_credit(parts, num_generations=2)
    assert credit[2:].abs().max() == 0
    assert dead.tolist() == [False, True]


@pytest.fixture(params=["llama", "gpt2", "gemma"])
def tokenizer(request: pytest.FixtureRequest, tiny_model: BuildModel) -> Any:
    return load_tokenizer(str(tiny_model(request.param)))


TEXTS = [
    format_response("Café 東京 🎈 is far.", "naïve 🎈🎈"),
    "\n <visible>a</visible>\t<hidden>b</hidden>\n",
    "no tags, 🎈 only",
]


@pytest.mark.parametrize("text", TEXTS)
def test_each_token_begins_where_its_first_character_stands(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    starts = token_starts(tokenizer, ids, text)
    for i, start in enumerate(starts):
        rest = tokenizer.decode(ids[i:], skip_special_tokens=True)
        if not rest.startswith("\ufffd"):
            assert text[start:] == rest, f"token {i}"
    assert starts == sorted(starts)


@pytest.mark.parametrize("text", TEXTS)
def test_a_tokenizer_without_a_stream_decoder_gives_the_same_pieces(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = _pieces_slow(tokenizer, ids)
    assert "".join(pieces) == text
    starts = [len("".join(pieces[:i])) for i in range(len(ids))]
    assert starts == token_starts(tokenizer, ids, text)


def test_a_character_cut_off_at_the_end_of_a_completion(tokenizer: Any) -> None:
    ids = tokenizer("ab🎈", add_special_tokens=False)["input_ids"][:-1]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text.startswith("ab") and len(token_starts(tokenizer, ids, text)) == len(ids)


def test_places_of_a_parsed_completion(tokenizer: Any) -> None:
    text = format_response("Café 🎈", "I think 東京")
    ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    places = token_places(tokenizer, ids, text, [tokenizer.eos_token_id])
    by_place = {place: [i for i, p in zip(ids, places, strict=True) if p == place] for place in set(places)}
    assert tokenizer.decode(by_place[VISIBLE]).startswith("<visible>")
    assert "Café 🎈" in tokenizer.decode(by_place[VISIBLE]) and "hidden" not in tokenizer.decode(by_place[VISIBLE])
    assert "東京" in tokenizer.decode(by_place[HIDDEN]) and "visible" not in tokenizer.decode(by_place[HIDDEN])
    assert places[-1] == HIDDEN, "the end of the turn belongs to the hidden part"
    assert all(not tokenizer.decode([i]).strip("\n<") for i in by_place.get(BETWEEN, []))


def test_a_completion_without_a_parse_is_one_whole(tokenizer: Any) -> None:
    ids = tokenizer("<visible>a</visible>", add_special_tokens=False)["input_ids"]
    assert token_places(tokenizer, ids, "<visible>a</visible>", []) == [WHOLE] * len(ids)


def test_a_token_over_a_boundary_belongs_to_where_it_begins() -> None:
    """Pieces chosen by hand: '>\\n<' begins inside the visible block, '\\n<' between the blocks."""

    class Pieces:
        is_fast = False
        pieces = ["<visible>a</visible", ">\n<", "hidden>b</hidden>", "\n"]

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return "".join(self.pieces[i] for i in ids)

    text = "".join(Pieces.pieces)
    assert token_places(Pieces(), [0, 1, 2, 3], text, []) == [VISIBLE, VISIBLE, HIDDEN, BETWEEN]


def test_advantages_pick_each_tokens_column() -> None:
    credit = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    advantages = token_advantages(credit, [[VISIBLE, BETWEEN, HIDDEN], [WHOLE]], width=4)
    assert advantages.tolist() == [[1.0, 3.0, 2.0, 4.0], [8.0, 8.0, 8.0, 8.0]]


def test_a_visible_reward_gives_hidden_tokens_no_gradient(
    tiny_model: BuildModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through TRL's own scoring, shuffling, splitting and loss, on completions written by hand."""
    trainer = _trainer(tiny_model, tmp_path, monkeypatch, credit="segment")
    visible, hidden = _gradient_by_part(trainer)
    assert visible > 1e-3
    assert hidden == 0


def test_credit_to_the_completion_spills_over(
    tiny_model: BuildModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visible, hidden = _gradient_by_part(_trainer(tiny_model, tmp_path, monkeypatch, credit="completion"))
    assert visible > 1e-3
    assert hidden > 1e-3


def _trainer(tiny_model: BuildModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, credit: str) -> Any:
    from model_training.grpo import make_grpo_trainer
    from model_training.logs import Interrupt, RunLog
    from model_training.models import load_model, new_adapter
    from model_training.rewards import resolve

    model_folder = tiny_model("llama")
    config = small_config(tmp_path, model_folder, credit=credit, max_completion_length=64)
    make_records(tmp_path / "data.json")
    records = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(str(model_folder))
    model = new_adapter(load_model(str(model_folder)), 4, 0)
    log = RunLog(tmp_path, "grpo", 0, 2, 8, Interrupt(), is_writer=False)
    rewards = resolve(["brevity_visible"], None)
    trainer = make_grpo_trainer(model, tokenizer, records, rewards, config, tmp_path / "checkpoints", log)
    answers = [format_response(" ".join(["moose"] * (2 + 3 * (i % 4))), f"thought {i}") for i in range(8)]

    def written(prompt_ids: list[list[int]], *args: Any) -> tuple[list[list[int]], None]:
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in answers]
        return [[*row, tokenizer.eos_token_id] for row in ids], None

    monkeypatch.setattr(trainer, "_generate_single_turn", written)
    return trainer


def _gradient_by_part(trainer: Any) -> tuple[float, float]:
    """Largest gradient of the loss with respect to the log-probability of a visible and of a hidden token."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    rows = [trainer.train_dataset[i // 4] for i in range(8)]
    largest = {VISIBLE: 0.0, HIDDEN: 0.0}
    for step in range(2):
        trainer._step = step
        inputs = trainer._prepare_inputs(rows)
        shape = inputs["completion_ids"].shape
        leaf = torch.full(shape, -1.0, requires_grad=True)
        scored = (leaf, torch.ones(shape), None)
        trainer._get_per_token_logps_and_entropies = lambda *args, scored=scored, **kwargs: scored
        trainer._compute_loss(trainer.model, inputs).backward()
        assert leaf.grad is not None
        for ids, mask, gradient in zip(inputs["completion_ids"], inputs["completion_mask"], leaf.grad, strict=True):
            row = [token for token, kept in zip(ids.tolist(), mask.tolist(), strict=True) if kept]
            text = trainer.processing_class.decode(row, skip_special_tokens=True)
            places = token_places(trainer.processing_class, row, text, trainer.eos_token_ids)
            for place, value in zip(places, gradient.tolist(), strict=False):
                if place in largest:
                    largest[place] = max(largest[place], abs(value))
    return largest[VISIBLE], largest[HIDDEN]


def test_a_value_that_is_missing_takes_its_groups_mean_and_gives_no_credit() -> None:
    nan = math.nan
    scores_NF = torch.tensor([[1.0, 0.2], [nan, 0.2], [0.0, nan], [nan, nan], [nan, nan], [nan, 0.6]])
    whole_NF = without_gaps(scores_NF, 3)
    # The second group has no value of the first reward: the mean of the whole column, 0.5.
    assert torch.allclose(whole_NF[:, 0], torch.tensor([1.0, 0.5, 0.0, 0.5, 0.5, 0.5]))
    assert torch.allclose(whole_NF[:, 1], torch.tensor([0.2, 0.2, 0.2, 0.6, 0.6, 0.6]))
    parts_N3 = torch.stack([whole_NF[:, 0], torch.zeros(6), torch.zeros(6)], dim=1)
    credit_N4, dead_K = group_credit(parts_N3, 3)
    assert credit_N4[1, VISIBLE] == 0 and credit_N4[0, VISIBLE] > 0 > credit_N4[2, VISIBLE]
    assert dead_K.tolist() == [False, True]


def test_a_reward_without_any_value_is_zero_throughout() -> None:
    assert without_gaps(torch.full((4, 1), math.nan), 2).tolist() == [[0.0]] * 4
    assert without_gaps(torch.tensor([[1.0], [0.5]]), 2).tolist() == [[1.0], [0.5]]
