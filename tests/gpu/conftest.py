"""These tests run where there is CUDA: `make test-gpu`. Elsewhere each is skipped with its reason."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    if not ours:
        return
    import torch

    if not torch.cuda.is_available():
        for item in ours:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def needs() -> Callable[[str], None]:
    """`needs("vllm")` skips a test where that package is missing."""

    def check(package: str) -> None:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed")

    return check
