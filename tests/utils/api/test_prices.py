from pathlib import Path

import pytest
import yaml

from utils.api.endpoints import Endpoint
from utils.api.options import ApiOptions
from utils.api.prices import TABLE, estimate, price_of, tokens_in
from utils.api.types import Ask, Usage
from utils.errors import UserError


def price(model: str, **options: object) -> tuple[float, float] | None:
    found = price_of(Endpoint("openai", model), ApiOptions(**options))  # type: ignore[arg-type]
    return None if found is None else (found.input_usd, found.output_usd)


@pytest.mark.parametrize(
    "model, expected",
    [
        ("gpt-4o", (2.5, 10.0)),
        ("gpt-4o-2024-08-06", (2.5, 10.0)),
        ("gpt-4o-mini-2024-07-18", (0.15, 0.6)),
        ("claude-sonnet-4-20250514", (3.0, 15.0)),
        ("claude-opus-4-5-20251101", (5.0, 25.0)),
        ("claude-opus-4-1-20250805", (15.0, 75.0)),
        ("claude-3-5-haiku-latest", (0.8, 4.0)),
        ("gpt-4o-audio-preview", None),
        ("gpt-5.9", None),
        ("claude-opus-4-9", None),
        ("my-local-model", None),
    ],
)
def test_a_name_stands_for_its_versions_and_for_no_other_model(
    model: str, expected: tuple[float, float] | None
) -> None:
    assert price(model) == expected


def test_the_table_is_whole() -> None:
    table = yaml.safe_load(TABLE.read_text("utf-8"))
    assert all(price(name) == (entry["input"], entry["output"]) for name, entry in table["models"].items())
    assert table["as_of"] and table["batch_discount"] == 0.5


def test_costs_are_by_million_and_half_for_a_batch() -> None:
    found = price_of(Endpoint("openai", "gpt-4o"), ApiOptions())
    assert found is not None
    assert found.cost(Usage(1_000_000, 100_000)) == pytest.approx(3.5)
    assert found.cost(Usage(1_000_000, 100_000), batch=True) == pytest.approx(1.75)


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("models:\n  my-*: {input: 1, output: 2}\n  bad: {input: 1}\n  my-own: {input: 3, output: 4}\n")
    assert price("my-thing", prices=str(file)) == (1.0, 2.0)
    assert price("my-own", prices=str(file)) == (3.0, 4.0)
    assert price("gpt-4o", prices=str(file)) is None
    with pytest.raises(UserError, match="models: bad: expected"):
        price("bad", prices=str(file))
    for text in ("models: [a]", "{", "x: 1", "batch_discount: 2\nmodels: {}"):
        file.write_text(text)
        with pytest.raises(UserError, match="prices.yaml"):
            price("gpt-4o", prices=str(file))
    with pytest.raises(UserError, match="cannot be read"):
        price("gpt-4o", prices=str(tmp_path / "none.yaml"))


def test_a_limit_of_cost_needs_a_price() -> None:
    with pytest.raises(UserError, match="--max_cost: prices.yaml has no price for my-local-model"):
        price("my-local-model", max_cost=1.0)


def test_an_estimate_shows_the_first_prompt_and_what_all_can_cost() -> None:
    asks = [Ask(({"role": "user", "content": "x" * 3000},), max_tokens=1000)] * 100
    assert tokens_in(asks[0]) == 1016
    text = estimate(asks, Endpoint("openai", "gpt-4o"), ApiOptions())
    assert "100 requests to openai:gpt-4o; nothing is sent" in text and "[user]\n" + "x" * 3000 in text
    assert "about 101,600 in, at most 100,000 out" in text
    assert "from 0.2540 US$" in text and "to 1.2540 US$" in text
    assert "to 0.6270 US$" in estimate(asks, Endpoint("openai", "gpt-4o"), ApiOptions(batch_api=True))
    assert "cost:   unknown" in estimate(asks, Endpoint("openai", "mine"), ApiOptions())
