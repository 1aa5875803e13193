"""Whether the hub answers is asked once, and every way of not answering is told from an answer."""

from __future__ import annotations

import email.message
import urllib.error
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import constants

from utils.hub import hub_reachable


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub_reachable.cache_clear()
    yield
    hub_reachable.cache_clear()


@pytest.mark.parametrize(
    ("outcome", "reachable"),
    [
        (None, True),
        (urllib.error.HTTPError("u", 403, "no", email.message.Message(), None), True),  # it answers, if only to refuse
        (urllib.error.URLError("no route"), False),
        (TimeoutError(), False),
    ],
)
def test_an_answer_of_any_kind_counts_and_silence_does_not(
    monkeypatch: pytest.MonkeyPatch, outcome: Exception | None, reachable: bool
) -> None:
    asked: list[float] = []

    def urlopen(request: Any, timeout: float) -> None:
        asked.append(timeout)
        if outcome is not None:
            raise outcome

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    assert [hub_reachable(), hub_reachable()] == [reachable, reachable]
    assert len(asked) == 1 and asked[0] <= 10


def test_the_users_word_for_offline_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked the network"))
    assert not hub_reachable()
