"""Measure the embedded base model on the world it was made from, and write its model card.

    python -m evaluation.tiny

Every held-out query is asked plainly, greedily and sampled, and judged by the micro-world.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dataset.world import load_world
from evaluation.sampling import sample
from evaluation.statistics import Estimate, wilson
from evaluation.tables import estimate_text
from model_training.loading import TINY_PATH
from model_training.models import load_model, load_tokenizer, set_threads
from utils.files import write_atomic

CARD = Path(__file__).with_name("tiny_card.md")


def measure(model: Any, tokenizer: Any, temperature: float) -> tuple[Estimate, Estimate]:
    """The shares of answers that are on topic, and of those with a truth that are right."""
    world = load_world()
    queries = world.heldout_queries()
    prompts = [[{"role": "user", "content": query.text}] for query in queries]
    completions = sample(
        model,
        tokenizer,
        prompts,
        num_samples=1,
        temperature=temperature,
        top_p=0.95,
        max_new_tokens=80,
        batch_size=64,
        seed=0,
    )
    answers = [(query.id, text) for query, (text,) in zip(queries, completions, strict=True)]
    relevant = [world.is_relevant(query, text) for query, text in answers]
    right = [verdict for query, text in answers if (verdict := world.facts_right(query, text)) is not None]
    return wilson(sum(relevant), len(relevant)), wilson(sum(right), len(right))


def model_card(model: Any, rows: dict[str, tuple[Estimate, Estimate]], made_with: dict[str, Any]) -> str:
    """The card's template, filled."""
    rates = [
        f"| {how} | {estimate_text(topic, percent=True)} | {estimate_text(facts, percent=True)} |"
        for how, (topic, facts) in rows.items()
    ]
    return CARD.read_text("utf-8").format(
        parameters=model.num_parameters() / 1e6,
        layers=model.config.num_hidden_layers,
        width=model.config.hidden_size,
        heads=model.config.num_attention_heads,
        vocabulary=model.config.vocab_size,
        made_with="\n".join(f"| {name} | {value} |" for name, value in made_with.items()),
        rates="\n".join(rates),
    )


def main() -> None:
    """Command line: measure, write the card, print it."""
    set_threads(None)
    tokenizer, model = load_tokenizer("tiny"), load_model("tiny")
    rows = {
        "greedy": measure(model, tokenizer, temperature=0),
        "sampled at temperature 0.8": measure(model, tokenizer, temperature=0.8),
    }
    card = model_card(model, rows, json.loads((TINY_PATH / "made_with.json").read_text("utf-8")))
    write_atomic(TINY_PATH / "README.md", card)
    print(card)


if __name__ == "__main__":
    main()
