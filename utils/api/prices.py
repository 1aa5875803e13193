"""What requests cost, by a YAML table that users edit, and what they will cost, before they are sent.

    price = price_of(endpoint, options)                 None: the model is not in the table
    price.cost(Usage(1_200, 300))  ->  0.0009           US$
    print(estimate(asks, endpoint, options))            the first prompt, tokens and cost of all

Tokens are estimated from the length of the UTF-8 text, on the safe side for English: 3 bytes a token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from utils.api.endpoints import Endpoint
from utils.api.options import ApiOptions
from utils.api.types import Ask, Usage
from utils.api.wires import tokens_out
from utils.errors import UserError

TABLE = Path(__file__).resolve().parents[2] / "seeds" / "prices.yaml"
BYTES_PER_TOKEN = 3
TOKENS_PER_MESSAGE = 8
_VERSION = re.compile(r"(-\d{4}-\d\d-\d\d|-\d{8}|-latest|-0)?")


@dataclass(frozen=True)
class Price:
    """US$ per million tokens, and the share that the batch endpoint takes off."""

    input_usd: float
    output_usd: float
    batch_discount: float
    as_of: str

    def cost(self, usage: Usage, batch: bool = False) -> float:
        """US$ of these tokens."""
        whole = (usage.input_tokens * self.input_usd + usage.output_tokens * self.output_usd) / 1e6
        return whole * (1 - self.batch_discount) if batch else whole


def price_of(endpoint: Endpoint, options: ApiOptions) -> Price | None:
    """The price of the endpoint's model, by the longest name in the table that stands for it.

    Raises:
        UserError: the table cannot be read or is none; --max_cost is given, and the model has no price.
    """
    path = Path(options.prices) if options.prices is not None else TABLE
    table = _table(path)
    names = sorted((name for name in table["models"] if _stands_for(str(name), endpoint.model)), key=len)
    if not names:
        if options.max_cost is not None:
            raise UserError(
                f"--max_cost: {path.name} has no price for {endpoint.model}; copy the table, add the model, and give "
                "it with --prices FILE"
            )
        return None
    entry = table["models"][names[-1]]
    numbers = (entry.get("input"), entry.get("output")) if isinstance(entry, dict) else (None, None)
    if not all(isinstance(number, int | float) and number >= 0 for number in numbers):
        raise UserError(f"{path}: models: {names[-1]}: expected {{input: US$, output: US$}} per million tokens")
    return Price(float(numbers[0] or 0), float(numbers[1] or 0), table["batch_discount"], str(table.get("as_of", "?")))


def _stands_for(name: str, model: str) -> bool:
    if name.endswith("*"):
        return model.startswith(name[:-1])
    return model.startswith(name) and _VERSION.fullmatch(model[len(name) :]) is not None


def _table(path: Path) -> dict[str, Any]:
    try:
        table = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        words = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"--prices {path}: cannot be read ({words})") from None
    if not isinstance(table, dict) or not isinstance(table.get("models"), dict):
        raise UserError(f"--prices {path}: expected a table with `models`, as seeds/prices.yaml has it")
    discount = table.setdefault("batch_discount", 0.0)
    if not isinstance(discount, int | float) or not 0 <= discount <= 1:
        raise UserError(f"{path}: batch_discount: expected a share from 0 to 1")
    return table


def tokens_in(ask: Ask) -> int:
    """Estimated tokens of a request, on the safe side."""
    total = sum(len(message["content"].encode("utf-8", "replace")) for message in ask.messages)
    if ask.schema is not None:
        total += len(json.dumps(ask.schema))
    return total // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE * (1 + len(ask.messages))


def worst_usage(endpoint: Endpoint, ask: Ask) -> Usage:
    """The most tokens that the request can be paid for, by the estimate of those that go in."""
    return Usage(tokens_in(ask), tokens_out(endpoint, ask))


def estimate(asks: Sequence[Ask], endpoint: Endpoint, options: ApiOptions) -> str:
    """What --dry_run prints: the first prompt, and the estimated tokens and cost of all asks. Nothing is sent."""
    lines = [f"--dry_run: {len(asks):,} requests to {endpoint}; nothing is sent."]
    if asks:
        lines += ["The first of them:", ""]
        lines += [f"[{message['role']}]\n{message['content']}\n" for message in asks[0].messages]
        if asks[0].schema is not None:
            lines += [f"[schema of the answer]\n{json.dumps(asks[0].schema, ensure_ascii=False)}\n"]
    worst = [worst_usage(endpoint, ask) for ask in asks]
    total = Usage(sum(usage.input_tokens for usage in worst), sum(usage.output_tokens for usage in worst))
    lines.append(f"tokens: about {total.input_tokens:,} in, at most {total.output_tokens:,} out")
    price = price_of(endpoint, options)
    if price is None:
        lines.append(f"cost:   unknown; {options.prices or 'seeds/prices.yaml'} has no price for {endpoint.model}")
    else:
        most, least = price.cost(total, options.batch_api), price.cost(Usage(total.input_tokens), options.batch_api)
        lines.append(
            f"cost:   from {least:.4f} US$ (empty answers) to {most:.4f} US$ (longest answers) by prices of "
            f"{price.as_of}; requests that are asked again come on top"
        )
    return "\n".join(lines)
