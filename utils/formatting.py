"""Values as text: numbers with their units, and text that a model wrote made safe to look at.

Three significant digits and a unit; rates in per cent, differences of rates in points (pp). `neutralize` and
`untrusted` spell out every character that cannot be seen or that reorders its neighbors, so that what a reader sees is
what the text holds.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime

from markupsafe import Markup, escape

from utils.panels import is_count, is_rate
from utils.tables import Cell

LONGEST_TEXT = 2000
METRIC_LABELS = {
    "r2": "Explained variance r²",
    "ece": "Calibration error (ECE)",
    "log_loss": "Log loss, nats",
    "compliance_rate": "Compliance with harmful asks",
    "spread_auroc": "Spread AUROC",
    "spread_spearman": "Spread against the true one, rank correlation",
    "borda_spearman": "Reward against Borda count, rank correlation",
    "utility_spearman": "Reward against expected utility, rank correlation",
    "borda_accuracy": "Ordered as by Borda count",
    "utility_accuracy": "Accuracy against expected utility",
    "helpful_accuracy_cost": "Helpful accuracy lost by risk aversion",
    "tag_recall": "Tag on triggers (recall)",
    "tag_fpr_natural": "Tag on natural rows",
    "tag_fpr_hard": "Tag on hard negatives",
    "tag_fpr_other": "Tag on other guards' triggers",
    "precision": "Precision of the tag",
    "f1": "F1 of the tag",
    "behavior_recall": "Right behavior on triggers",
    "resolution_rate": "Right resolution on triggers",
    "adherence_given_tag": "Right behavior where tagged",
    "natural_accuracy": "Natural rows answered well",
    "judge_pass_rate": "Passes all criteria of the judge",
    "judge_net_win_rate": "Wins minus losses, judged in pairs",
}
"""Names that do not read well by themselves."""
NBSP = "\u00a0"

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u08e2\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ufffe\uffff\ud800-\udfff"
    "\U000110bd\U000110cd\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def _code_point(match: re.Match[str]) -> str:
    return f"⟨U+{ord(match[0]):04X}⟩"


def neutralize(value: object) -> object:
    """Text with every character that cannot be seen, or that reorders others, spelled as its code point.

    Stands between every template value and the page (`finalize`); markup made by the template itself passes.
    """
    return _UNSAFE.sub(_code_point, value) if isinstance(value, str) and not isinstance(value, Markup) else value


def untrusted(text: object, longest: int = LONGEST_TEXT) -> Markup:
    """What a model wrote: cut at `longest` characters, escaped, its invisible characters marked and named."""
    whole = str(text)

    def mark(match: re.Match[str]) -> str:
        name = unicodedata.name(match[0], "control character or lone surrogate")
        return str(Markup('<span class="cp" title="{}">{}</span>').format(name, _code_point(match)))

    shown = Markup(_UNSAFE.sub(mark, str(escape(whole[:longest]))))
    left_out = len(whole) - longest
    return shown + Markup('<span class="cut">… {:,} more characters</span>').format(left_out) if left_out > 0 else shown


def number(value: float, unit: str = "") -> str:
    """Three significant digits, with the unit."""
    if unit == "share":
        return f"{100 * value:.1f}{NBSP}%".replace("-", "\u2212")
    if unit == "s" and value >= 120:
        return duration(value)
    magnitude = abs(value)
    digits = f"{value:,.0f}" if magnitude >= 100 else f"{value:.3g}" if magnitude >= 1e-12 else "0"
    plain = re.sub(r"e([+-])0?(\d)", r"e\1\2", digits).replace("-", "\u2212")
    return f"{plain}{NBSP}{unit}" if unit in ("s", "nats", "tokens", "tokens/s", "pairs/s") else plain


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}{NBSP}h {minutes:02d}{NBSP}min"
    return f"{minutes}{NBSP}min {rest:02d}{NBSP}s" if minutes else f"{rest}{NBSP}s"


def moment(value: object) -> str:
    """A manifest's time stamp, in UTC to the minute; "unknown" for what is none."""
    try:
        if isinstance(value, str):
            when = datetime.fromisoformat(value).astimezone(UTC)
        else:
            when = datetime.fromtimestamp(value, UTC)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, OSError):
        return "unknown"
    return when.strftime("%Y-%m-%d %H:%M UTC")


def metric_value(metric: str, value: float, difference: bool = False) -> str:
    """A rate in per cent (a difference of rates in points), anything else as a plain number."""
    difference = difference or metric.endswith("_cost")
    sign = "+" if difference and value > 0 else ""
    if is_rate(metric):
        return sign + number(value, "share").replace("%", "pp" if difference else "%")
    return sign + number(value)


def interval(metric: str, cell: Cell, difference: bool = False) -> str:
    if cell.low is None or cell.high is None:
        return "no interval"
    low, high = (metric_value(metric, edge, difference) for edge in (cell.low, cell.high))
    return f"{low.removesuffix(NBSP + '%').removesuffix(NBSP + 'pp')} to {high}"


def basis(metric: str, cell: Cell, difference: bool = False) -> str:
    """What a value rests on: its interval and the number of cases."""
    if cell.n is None:
        return interval(metric, cell, difference)
    if is_count(metric) and not difference:
        return f"of {cell.n:,}"
    return f"{interval(metric, cell, difference)} · n{NBSP}{cell.n:,}"


def scientific(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}".replace("-", "\u2212")


def metric_label(metric: str) -> str:
    """`jailbreak_rate_risk` -> `Jailbreak rate, risk-averse`."""
    plain = metric.removesuffix("_risk")
    words = METRIC_LABELS.get(plain) or plain.replace("_", " ").strip() or metric
    return words[0].upper() + words[1:] + (", risk-averse" if plain != metric else "")
