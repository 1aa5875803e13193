from __future__ import annotations

import contextlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest

from evaluation import guardrail_curves, guardrail_figures, preference_curves, preference_figures


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn of an evaluation, in place of their PNGs, which take their time."""
    kept: list[Any] = []

    @contextlib.contextmanager
    def keep(width: float, height: float) -> Iterator[tuple[Any, Any]]:
        from matplotlib.figure import Figure

        kept.append(Figure(figsize=(width, height)))
        yield kept[-1], BytesIO()

    for module in (guardrail_curves, guardrail_figures, preference_curves, preference_figures):
        monkeypatch.setattr(module, "drawing", keep)
    return kept
