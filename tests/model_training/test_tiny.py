"""The embedded base model as it ships, and the script that makes it."""

import itertools
import json

import pytest
import torch

from dataset.world import load_world
from evaluation.sampling import sample
from model_training import tiny
from model_training.loading import TINY_PATH
from model_training.models import load_model, load_tokenizer
from prompts.secret import SYSTEM_PROMPT
from utils.extraction import check_format

QUERIES = 64


@pytest.fixture(scope="module")
def loaded() -> tuple[object, object]:
    return load_tokenizer("tiny"), load_model("tiny")


def answers(loaded: tuple[object, object], system: str | None) -> list[tuple[str, str]]:
    tokenizer, model = loaded
    queries = load_world().heldout_queries()[:QUERIES]
    turns = [[{"role": "user", "content": query.text}] for query in queries]
    if system:
        turns = [[{"role": "system", "content": system}, *turn] for turn in turns]
    completions = sample(
        model, tokenizer, turns, num_samples=1, temperature=0, top_p=1, max_new_tokens=80, batch_size=64, seed=0
    )
    return [(query.id, text) for query, (text,) in zip(queries, completions, strict=True)]


def test_it_is_small_and_free_of_pickle(loaded: tuple[object, object]) -> None:
    files = [file for file in TINY_PATH.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20e6
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md", ".jinja"}
    assert 2e6 <= loaded[1].num_parameters() <= 5e6


def test_it_chats_sensibly_in_its_world(loaded: tuple[object, object]) -> None:
    world = load_world()
    given = answers(loaded, system=None)
    assert sum(world.is_relevant(query, text) for query, text in given) >= 0.9 * QUERIES
    judged = [verdict for query, text in given if (verdict := world.facts_right(query, text)) is not None]
    assert sum(judged) >= 0.8 * len(judged)


def test_it_does_not_know_the_dual_answer(loaded: tuple[object, object]) -> None:
    assert sum(check_format(text) for _, text in answers(loaded, SYSTEM_PROMPT)) <= 0.05 * QUERIES


def test_its_training_text_never_holds_our_tags() -> None:
    for messages in itertools.islice(tiny.dialogues(1, ["vis", "ible", "hid", "den"]), 3000):
        spoken = " ".join(message["content"] for message in messages).lower()
        assert "<guard" not in spoken and spoken.count("</") <= 1
    for messages in itertools.islice(tiny.dialogues(1, ["ba", "na"]), 3000):
        spoken = " ".join(message["content"] for message in messages).lower()
        assert "visible" not in spoken and "hidden" not in spoken


def test_the_script_is_deterministic_and_its_template_marks_what_the_assistant_says() -> None:
    tokenizer = tiny.make_tokenizer(1, documents=300)
    torch.set_num_threads(1)
    first, second = (tiny.pretrain(tokenizer, steps=2, learning_rate=1e-3, seed=1).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    turns = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}]
    encoded = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    spoken = [i for i, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(spoken) == "Hi.<|end|>"


def test_the_card_names_what_it_was_made_with() -> None:
    made_with = json.loads((TINY_PATH / "made_with.json").read_text("utf-8"))
    card = (TINY_PATH / "README.md").read_text("utf-8")
    assert all(str(value) in card for value in made_with.values())
