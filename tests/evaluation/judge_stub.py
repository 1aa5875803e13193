"""A judge on this machine: the stub server with verdicts that a test chooses by what the judge was shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from utils.api.options import ApiOptions

Shown = dict[str, Any]
Scores = Callable[[Shown], dict[str, int]]
Better = Callable[[Shown], str]


def verdicts(scores: Scores, better: Better = lambda shown: "tie") -> Callable[..., str]:
    """The stub's `answer`: a verdict with the scores of what was shown, or a preference; plain words to all else."""

    def answer(messages: list[dict[str, str]], schema: dict[str, Any] | None, n: int) -> str:
        if schema is None:
            return "ready"
        shown = json.loads(next(turn["content"] for turn in messages if turn["role"] == "user"))
        if "better" in schema["properties"]:
            return json.dumps({"reason": "So it is.", "better": better(shown)})
        return json.dumps({name: {"reason": f"{name}.", "score": score} for name, score in scores(shown).items()})

    return answer


def quick(**changes: Any) -> ApiOptions:
    """Options for tests: no cache, few retries."""
    return ApiOptions(**({"cache_dir": "none", "max_retries": 3} | changes))
