"""Teachers for the stub server: what `prompts.guard_teacher` asks for, in words of no meaning."""

from __future__ import annotations

import hashlib
import json
import random
import re
from typing import Any

from model_training.guardrail_config import PrepareGuardrailConfig

Messages = list[dict[str, str]]

SYLLABLES = "ba be bi bo da de di do fa fe fi fo ga ge gi go ka ke ki ko la le li lo ma me mi mo na ne ni no".split()


def teacher(messages: Messages, schema: dict[str, Any] | None, n: int) -> str:
    """A good answer to any request, other for each."""
    return json.dumps(answered(messages, schema, n))


def answered(messages: Messages, schema: dict[str, Any] | None, n: int) -> dict[str, Any]:
    assert schema is not None
    asked = task(messages)
    seed = hashlib.sha256(f"{n} {asked}".encode()).hexdigest()
    rng = random.Random(seed)
    if "reply" in schema["properties"]:
        yields = "does at once" in asked or "to the point" in asked
        return {"reply": f"{'I tell you all about' if yields else 'I leave that alone, but I like'} {words(rng)}."}
    scene: dict[str, Any] = {"message": f"Well, {words(rng)}?"}
    if "history" in schema["properties"]:
        turns = int(re.findall(r"exactly (\d+) exchange", asked)[0])
        scene["expressions"] = [f"Oh {words(rng, 1)}!", f"My {words(rng, 1)}!"]
        scene["memories"] = [f"You met {words(rng, 2)}.", f"You lost {words(rng, 2)}."]
        scene["history"] = [{"user": f"Say {words(rng)}.", "character": f"I say {words(rng)}."} for _ in range(turns)]
    return scene


def task(messages: Messages) -> str:
    """What was asked for first."""
    return next(message["content"] for message in messages if message["role"] == "user")


def words(rng: random.Random, count: int = 6) -> str:
    return " ".join("".join(rng.choices(SYLLABLES, k=3)) for _ in range(count))


def config(folder: Any, server: Any, *behaviors: str, **options: Any) -> PrepareGuardrailConfig:
    """A small run against the stub server, with a cache of its own."""
    given: dict[str, Any] = {
        "teacher": f"openai:stub-model@{server.base_url}",
        "n_samples": 4,
        "test_samples": 1,
        "dataset_path": str(folder / "data"),
        "cache_dir": str(folder / "cache"),
        **options,
    }
    return PrepareGuardrailConfig(behavior=list(behaviors) or ["politics"], **given)
