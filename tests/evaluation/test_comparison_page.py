"""The page of a comparison in a real browser: all runs on every chart, what differs, and nothing that acts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.comparison_report import contents_of, merged
from evaluation.run_comparison import compare
from tests.evaluation.test_run_comparison import answered, changed
from tests.utils.browser import CHROMIUM, browser
from tests.utils.make_run import make_run
from utils.visualization import write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202e{{ 7*7 }}"
)


def test_the_page_of_a_comparison(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs" / name, sft_steps=6, grpo_steps=8, seed=n) for n, name in enumerate(("a", "b"))]
    for shift, run in enumerate(runs):
        answered(run, [4.0 + shift / 2 + n % 5 / 100 for n in range(40)])
    changed(runs[1], "manifest.json", config={"credit": HOSTILE, "learning_rate": 1e-3}, git_commit=HOSTILE)
    (runs[1] / "metrics.jsonl").open("a").write('{"step": 15, "spl')
    found = compare(runs)
    write_report(merged(found), tmp_path / "page.html", contents_of(found))
    with browser(tmp_path / "profile") as tab:
        tab.resize(380)
        tab.open(f"file://{tmp_path / 'page.html'}")
        assert tab.errors == [] and [url for url in tab.requests if not url.startswith(("file:", "about:"))] == []
        assert tab.js("document.documentElement.scrollWidth") == 380, "nothing scrolls sideways"
        assert tab.js("drawn.find((one) => one.record.key === 'reward').lines.map((line) => runs[line.run].name)") == [
            "a",
            "b",
        ]
        text = tab.js("document.body.textContent")
        assert "Best by Mean reward" in text and "b - a, paired: +0.5" in text and "Options that differ" in text
        assert "<img src=x onerror=" in text and "⟨U+202E⟩" in text, "an option's value is shown as text"
        assert tab.js("document.title").startswith("secret") and "{{ 7*7 }}" in text
        cells = tab.js("[...document.querySelectorAll('th')].filter((one) => one.textContent === 'learning_rate')"
                       ".map((one) => one.closest('tr').textContent.trim())")  # fmt: skip
        assert any("0.0002" in row and "0.001" in row for row in cells), json.dumps(cells)
