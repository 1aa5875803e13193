"""Tiny models, each built once for a test session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.model_training.tiny_models import make_model

BuildModel = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> BuildModel:
    """`tiny_model(family, seed=0)`: the directory of a random model of that family."""

    @cache
    def build(family: str, seed: int = 0) -> Path:
        return make_model(family, tmp_path_factory.mktemp("models") / family, seed)

    return build
