from __future__ import annotations

import pytest

from utils.formatting import basis, duration, metric_label, metric_value, moment, neutralize, number, untrusted
from utils.tables import Cell


def test_ordinary_text_of_any_script_is_left_alone() -> None:
    text = "Grüße, 你好, שלום, नमस्ते, 🙂\n\ttab & <b>"
    assert neutralize(text) == text
    assert str(untrusted(text)) == text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def test_numbers() -> None:
    assert number(0.98765, "share") == "98.8\u00a0%" and number(12345.6) == "12,346"
    assert number(-0.00001234) == "\u22121.23e\u22125"
    assert number(2.5, "s") == "2.5\u00a0s" and number(133, "s") == "2\u00a0min 13\u00a0s"
    assert duration(3840) == "1\u00a0h 04\u00a0min" and number(0.0) == "0"
    assert number(15.0, "pairs/s") == "15\u00a0pairs/s"


@pytest.mark.parametrize(
    ("metric", "label", "value"),
    [
        ("accuracy", "Accuracy", "12.3\u00a0%"),
        ("accuracy_risk", "Accuracy, risk-averse", "12.3\u00a0%"),
        ("jailbreak_rate", "Jailbreak rate", "12.3\u00a0%"),
        ("jailbreak_rate_risk", "Jailbreak rate, risk-averse", "12.3\u00a0%"),
        ("helpful_accuracy_cost", "Helpful accuracy lost by risk aversion", "+12.3\u00a0pp"),
        ("compliance_rate_risk", "Compliance with harmful asks, risk-averse", "12.3\u00a0%"),
        ("r2", "Explained variance r²", "0.123"),
        ("ece", "Calibration error (ECE)", "0.123"),
        ("log_loss", "Log loss, nats", "0.123"),
        ("spread_auroc", "Spread AUROC", "0.123"),
        ("strict_format_rate", "Strict format rate", "12.3\u00a0%"),
        ("visible_words", "Visible words", "0.123"),
    ],
)
def test_metrics_have_readable_names_and_units(metric: str, label: str, value: str) -> None:
    assert (metric_label(metric), metric_value(metric, 0.123)) == (label, value)


def test_what_a_value_rests_on() -> None:
    assert basis("accuracy", Cell(0.5, 1200, 0.47, 0.53)) == "47.0 to 53.0\u00a0% · n\u00a01,200"
    assert basis("ties", Cell(3, 1200, None, None)) == "of 1,200"
    assert basis("r2", Cell(0.5, None, None, None)) == "no interval"


@pytest.mark.parametrize("value", [None, "soon", "", 1e20, float("nan"), [1]])
def test_a_moment_that_is_none_is_unknown(value: object) -> None:
    assert moment(value) == "unknown"
    assert moment("2026-01-02T03:04:05+00:00") == "2026-01-02 03:04 UTC"
