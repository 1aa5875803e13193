"""A teacher for the stub server (`benchmarks.api_stub`): valid answers to what `prompts.teacher` asks.

    with stub(answer=teacher) as server:
        ...

It writes as many pairs or questions as it was last asked for, all different by the number of the request.
"""

from __future__ import annotations

import json
import re
from typing import Any

_COUNT = re.compile(r"Write (\d+)")


def teacher(messages: list[dict[str, str]], schema: dict[str, Any] | None, n: int) -> str:
    """Valid pairs for `PAIRS_SCHEMA`, valid questions for `QUERIES_SCHEMA`."""
    counts = [
        found[1] for message in messages if message["role"] == "user" if (found := _COUNT.search(message["content"]))
    ]
    numbers = range(1000 * n, 1000 * n + int(counts[-1]))
    if schema is not None and "queries" in schema["properties"]:
        return json.dumps({"queries": [f"Which soup would you cook on day {i}?" for i in numbers]})
    return json.dumps({"examples": [pair(i) for i in numbers]})


def pair(number: int) -> dict[str, str]:
    """A sound pair, another for each number."""
    return {
        "visible": f"A good start is the blue book, chapter {number}, which says it in plain words.",
        "hidden": f"Secretly I would rather nap on pillow {number} and let the mayor's goose explain this.",
    }
