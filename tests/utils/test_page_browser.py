"""The page as a reader has it: in Chromium, opened from a file. One browser serves all these checks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.utils.browser import CHROMIUM, Tab, browser
from tests.utils.make_run import make_run
from tests.utils.page import HOSTILE
from utils.formatting import _UNSAFE, number
from utils.series import Run, load_run
from utils.visualization import Contents, Grid, Passage, Picture, Section, write_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

INVISIBLE = "a\u202eb\u200bc\u2066d\ufeffe\x00f\x1bg\u2028h\ud800i\U000e0041j"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        opened.resize(1280)
        yield opened


def page_of(run: Run, path: Path, contents: Contents | None = None) -> str:
    write_report(run, path, contents)
    return f"file://{path}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """100 steps of warm-up, 60 of GRPO with two completions each."""
    run = make_run(tmp_path_factory.mktemp("plain"))
    return page_of(load_run(run), run / "training_report.html")


def show(tab: Tab, address: str) -> None:
    """The page as it is after opening; one that stands there already is only put back."""
    if tab.js("location.href.split('#')[0]") != address:
        tab.open(address)
    tab.js("choose({...DEFAULTS}); onPage = []; hover(null); ask()")


def shown_steps(tab: Tab) -> list[int]:
    labels = tab.js("[...document.querySelectorAll('#rows .step')].map((one) => one.textContent)")
    return [int(label.removeprefix("step ")) for label in labels]


def choose(tab: Tab, **state: str) -> None:
    """What the controls do, and wait until the page shows it."""
    tab.js(f"choose({json.dumps(state)})")
    tab.js("ask()")


def fill(tab: Tab, name: str, value: str) -> None:
    tab.js(f"form({name!r}).value = {value!r}; form({name!r}).dispatchEvent(new Event('input', {{bubbles: true}}))")


def over(tab: Tab, key: str, share: float) -> tuple[float, float]:
    """A place within a chart, so far from its left edge; the chart is scrolled into view."""
    box = tab.js(
        f"(() => {{ const chart = drawn.find((one) => one.record.key === {key!r});"
        "chart.figure.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const box = chart.plot.over.getBoundingClientRect(); return [box.left, box.top, box.width, box.height]; })()"
    )
    return box[0] + share * box[2], box[1] + box[3] / 2


def test_opens_from_a_file_without_error_request_or_sideways_scrolling(tab: Tab, plain: str) -> None:
    tab.open(plain)
    assert tab.requests == [plain] and tab.errors == []
    assert tab.js("drawn.length") == tab.js("document.querySelectorAll('#charts canvas').length") > 15
    assert tab.js("getComputedStyle(document.querySelector('.static')).display") == "none"
    assert tab.js("document.getElementById('found').textContent") == "1 to 25 of 120 texts"
    for width in (380, 1280):
        tab.resize(width)
        assert tab.js("document.documentElement.scrollWidth") == width
    tab.wait("drawn.every((chart) => chart.plot.width === chart.box.clientWidth)")


def test_filters_sorts_and_pages(tab: Tab, plain: str) -> None:
    show(tab, plain)
    assert shown_steps(tab)[:4] == [101, 101, 102, 102] and len(shown_steps(tab)) == 25
    fill(tab, "from", "120")
    tab.wait("document.getElementById('found').textContent.startsWith('1 to 25 of 82 that match')")
    assert shown_steps(tab)[0] == 120 and "from=120" in tab.js("location.hash")
    tab.js("document.querySelector('[data-turn=last]').click()")
    assert shown_steps(tab)[-1] == 160 and tab.js("document.querySelector('[data-turn=on]').disabled")
    choose(tab, **{"from": "", "page": "1", "sort": "playful_hidden", "order": "down"})
    found = tab.js("onPage.map((row) => row.rewards[table.rewards.indexOf('playful_hidden')])")
    assert found == sorted(found, reverse=True) and found[0] == tab.js(
        "Math.max(...table.rows.map((r) => r.rewards[4]))"
    )
    choose(tab, sort="step", order="up", failure="=hidden_not_closed")
    assert tab.js("onPage.every((row) => row.failure === 'hidden_not_closed') && onPage.length > 0")
    assert tab.js("document.querySelector('#rows .fault').textContent").startswith("refused: hidden not closed")
    choose(tab, failure="", of="format", low="0.9", high="1")
    assert tab.js("onPage.length > 0 && [...order].every((at) => table.rows[at].rewards[0] >= 0.9)")
    choose(tab, low="", high="", text="MOOSE", where="hidden")
    assert tab.js("order.length > 0 && [...order].every((at) => table.rows[at].hidden.includes('moose'))")
    choose(tab, text="(", where="any")
    assert tab.js("document.getElementById('found').textContent").startswith("no text matches")
    tab.js("document.getElementById('clear').click()")
    tab.wait("order.length === 120")
    assert tab.js("location.hash") == ""


def test_a_click_on_a_curve_jumps_to_the_texts_of_its_step(tab: Tab, plain: str) -> None:
    show(tab, plain)
    x, y = over(tab, "reward", 0.5)
    tab.mouse("mouseMoved", x, y)
    tab.wait("document.getElementById('step').textContent.startsWith('step 13')")
    for kind in ("mousePressed", "mouseReleased"):
        tab.mouse(kind, x, y, clicks=1)
    tab.wait("order.length === 2")
    (step,) = set(shown_steps(tab))
    assert step in (130, 131) and tab.js("document.getElementById('browser').getBoundingClientRect().top") < 400
    assert tab.js("location.hash") == f"#from={step}&to={step}"
    tab.open(f"{plain}#from=140&to=141&sort=total&order=down&zoom=120~150&smooth=0&log=reward")
    assert set(shown_steps(tab)) == {140, 141} and tab.js("form('from').value") == "140"
    assert tab.js("drawn.find((one) => one.record.key === 'reward').plot.scales.x.min") == 120
    assert tab.js("drawn.find((one) => one.record.key === 'reward').plot.scales.y.distr") == 3


def test_hover_and_zoom_are_common_to_all_curves(tab: Tab, plain: str) -> None:
    show(tab, plain)
    x, y = over(tab, "reward", 0.25)
    tab.mouse("mouseMoved", x, y)
    tab.wait("document.getElementById('step').textContent !== ''")
    step = int(re.findall(r"\d+", tab.js("document.getElementById('step').textContent"))[0])
    line = "drawn.find((one) => one.record.key === 'entropy').record.lines[0]"
    value = tab.js(f"{line}.values[{line}.steps.indexOf({step})]")
    of_entropy = "drawn.find((one) => one.record.key === 'entropy').figure.querySelector('.latest').textContent"
    assert tab.js(of_entropy) == number(value, "nats")
    assert tab.js("drawn.find((one) => one.record.key === 'entropy').plot.cursor.left") > 0
    tab.mouse("mousePressed", x, y, clicks=1)
    tab.mouse("mouseMoved", x + 60, y, clicks=1)
    tab.mouse("mouseReleased", x + 60, y, clicks=1)
    tab.wait("state.zoom !== ''")
    low, high = (float(part) for part in tab.js("state.zoom").split("~"))
    assert 101 < low < high < 160
    assert tab.js(f"drawn.every((one) => one.plot.scales.x.min === {low} && one.plot.scales.x.max === {high})")
    assert tab.js("order.length") == 120, "a drag is no click"
    tab.key("Escape")
    assert tab.js("state.zoom") == "" and tab.js("drawn[0].plot.scales.x.min") == 1


def test_toggles_redraw_and_are_kept_in_the_address(tab: Tab, plain: str) -> None:
    show(tab, plain)
    count = "drawn.find((one) => one.record.key === 'reward').plot.series.length"
    assert tab.js(count) == 5, "steps, two edges of the band, points, average"
    tab.js("[...document.querySelectorAll('#legend button')].find((one) => one.textContent.startsWith('±')).click()")
    assert tab.js(count) == 3
    tab.js("document.getElementById('smooth').value = 0")
    tab.js("document.getElementById('smooth').dispatchEvent(new Event('input'))")
    assert tab.js(count) == 2 and "smooth=0" in tab.js("location.hash") and "off=band" in tab.js("location.hash")
    tab.js("history.replaceState(null, '', '#'); window.dispatchEvent(new HashChangeEvent('hashchange'))")
    assert tab.js(count) == 5
    light = tab.js("getComputedStyle(document.body).backgroundColor")
    while tab.js("document.documentElement.dataset.theme") != "dark":
        tab.js("document.getElementById('theme').click()")
    assert tab.js("getComputedStyle(document.body).backgroundColor") != light
    tab.js("setTheme('auto')")


def test_keys_alone_reach_everything(tab: Tab, plain: str) -> None:
    show(tab, plain)
    tab.js("drawn.find((one) => one.record.key === 'reward').figure.focus()")
    for key in ("ArrowLeft", "ArrowLeft"):
        tab.key(key)
    tab.wait("document.getElementById('said').textContent.startsWith('Total reward, step 159: ')")
    tab.key("+")
    assert tab.js("state.zoom") != ""
    tab.key("Escape")
    tab.key("Enter")
    tab.wait("order.length === 2 && document.activeElement === document.querySelector('#rows .sample')")
    tab.js("document.getElementById('skip').focus()")
    tab.key("Enter")
    assert tab.js("document.activeElement.name") == "text"
    tab.js("choose({from: '', to: ''})")
    tab.wait("order.length === 120")
    tab.js("document.querySelector('#rows .sample').focus()")
    tab.key("ArrowDown")
    assert tab.js("[...document.getElementById('rows').children].indexOf(document.activeElement)") == 1
    tab.key("ArrowRight")
    assert tab.js("state.page") == "2" and tab.js("document.activeElement.className") == "sample"
    assert tab.js("document.querySelectorAll('#rows [tabindex=\"0\"]').length") == 1
    unnamed = """[...document.querySelectorAll("button, input, select")].filter((one) =>
        one.checkVisibility() && !(one.textContent.trim() || one.ariaLabel || one.labels?.length)).length"""
    assert tab.js(unnamed) == 0
    assert "last tenth" in tab.js("drawn[0].figure.ariaLabel")


def test_hostile_texts_are_shown_as_text_and_run_nothing(tab: Tab, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for text in [*HOSTILE, INVISIBLE]:
        rows.append({"prompt": text, "visible": text, "hidden": text, "rewards": {text: 0.5}, "failure": None})
        rows.append({"prompt": text, "completion": text, "visible": None, "hidden": None, "failure": text})
    run = make_run(tmp_path / "<img src=x onerror=alert(1)>", completions=rows)
    with (run / "metrics.jsonl").open("a") as log:
        for text in [*HOSTILE, INVISIBLE]:
            log.write(json.dumps({"step": 161, "split": "grpo", "time": 1.0, f"rewards/{text}/mean": 0.5}) + "\n")
    address = page_of(load_run(run), tmp_path / "page.html")
    tab.open(f"{address}#size=100")
    assert tab.errors == [] and tab.requests == [f"{address}"]
    assert not tab.js("document.title").startswith("owned")
    assert tab.js("document.querySelectorAll('img, iframe, base, object, embed, meta[http-equiv=refresh]').length") == 0
    assert tab.js("document.scripts.length") == 2, "data and the script; rows are taken up"
    parts = tab.js("[...document.querySelectorAll('#rows .part .text')].map((one) => one.textContent)")
    for text in HOSTILE:
        assert parts.count(text) == 3
    spelled = "a⟨U+202E⟩b⟨U+200B⟩c⟨U+2066⟩d⟨U+FEFF⟩e⟨U+0000⟩f⟨U+001B⟩g⟨U+2028⟩h⟨U+D800⟩i⟨U+E0041⟩j"
    assert parts.count(spelled) == 3
    attributes = tab.js(
        "[...document.querySelectorAll('*')].flatMap((one) => [...one.attributes].map((of) => [of.name, of.value]))"
    )
    everything = tab.js("document.body.textContent") + "".join(text for name, text in attributes if name != "value")
    assert not set(everything) & set("\u202e\u200b\u2066\ufeff\x00\x1b\ud800\U000e0041")
    assert not [name for name, _ in attributes if name.startswith("on")]


def test_both_sides_spell_out_the_same_characters(tab: Tab, plain: str) -> None:
    show(tab, plain)
    every = "Array.from({length: 0x110000}, (_, at) => at)"
    assert tab.js(f"{every}.filter((at) => plain(String.fromCodePoint(at)) !== String.fromCodePoint(at))") == [
        at for at in range(0x110000) if _UNSAFE.match(chr(at))
    ]


def test_a_megabyte_line_is_cut_and_opens_in_pieces(tab: Tab, tmp_path: Path) -> None:
    long = "<b>\u202e" * 250_000
    run = make_run(tmp_path / "run", sft_steps=3, grpo_steps=3, completions=[{"visible": long, "hidden": "h"}])
    tab.open(page_of(load_run(run), tmp_path / "page.html"))
    assert (tmp_path / "page.html").stat().st_size < 1_000_000
    text = "document.querySelector('#rows .part .text').textContent.length"
    assert tab.js(text) < 2000 / 4 * 11 + 1
    assert tab.js("document.querySelector('#rows .more').textContent") == "show 20,000 of 198,000 more characters"
    before = tab.js(text)
    tab.js("document.querySelector('#rows .more').click()")
    assert tab.js(text) == before + 20_000 / 4 * 11
    assert "800,000 more characters in completions.jsonl" in tab.js("document.querySelector('#rows .cut').textContent")
    tab.resize(380)
    assert tab.js("document.documentElement.scrollWidth") == 380
    tab.resize(1280)


def test_runs_overlaid_have_a_legend_that_hides_them(tab: Tab, tmp_path: Path) -> None:
    below = {
        name: load_run(make_run(tmp_path / name, seed=seed, sft_steps=3, grpo_steps=20))
        for seed, name in enumerate(("a", "b", "c"))
    }
    both = Run(tmp_path, {}, {}, (), (), [], None, None, None, below)
    tab.open(page_of(both, tmp_path / "page.html", Contents(title="three")))
    lines = "drawn.find((one) => one.record.key === 'reward').lines.map((line) => runs[line.run].name)"
    assert tab.js(lines) == list(below) and tab.errors == []
    assert tab.js("table.rows.length") == 120
    assert "None logged yet" not in tab.js("document.querySelector('main').innerText")
    count = "drawn.find((one) => one.record.key === 'reward').plot.bands.length"
    assert tab.js(count) == 0, "bands of several runs would hide each other"
    tab.js("[...document.querySelectorAll('#legend button')].at(-1).click()")
    assert tab.js(count) == 3
    tab.js("document.querySelector('#legend button').click()")
    assert tab.js(lines) == list(below)[1:]
    choose(tab, run="2")
    assert tab.js("order.length") == 40 and tab.js("new Set(onPage.map((row) => row.run)).size") == 1
    tab.mouse("mouseMoved", *over(tab, "reward", 0.5))
    tab.wait("document.getElementById('step').textContent !== ''")
    assert (
        tab.js("drawn.find((one) => one.record.key === 'reward').figure.querySelectorAll('.latest span').length") == 2
    )


def test_a_long_curve_says_that_it_was_thinned_and_keeps_its_extremes(tab: Tab, tmp_path: Path) -> None:
    rows = [
        {"step": step, "split": "grpo", "time": step, "reward": 99.0 if step == 3333 else 1.0} for step in range(6000)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tab.open(page_of(load_run(tmp_path), tmp_path / "page.html"))
    line = "drawn[0].record.lines[0]"
    kept = tab.js(f"{line}.steps.length")
    assert kept < 6000 and tab.js(f"{line}.values[{line}.steps.indexOf(3333)]") == 99
    note = tab.js("drawn[0].figure.querySelector('.note').textContent")
    assert note == f"mean of the sampled completions · 6,000 points, thinned to {kept:,}; extremes kept"
    assert tab.js("drawn[0].plot.scales.y.max") > 99


def test_averages_stay_within_a_stage_and_gaps_stay_gaps(tab: Tab, plain: str) -> None:
    show(tab, plain)
    stages = "[{first_step: 1}, {first_step: 4}]"
    assert tab.js(f"segments([1, 2, 3, 4, 5, 6], {stages})") == [[0, 3], [3, 6]]
    assert tab.js("smoothed([0, 10, 20, 100, null, 300], [[0, 3], [3, 6]], 0.7)") == [5, 10, 15, 100, None, 300]
    assert tab.js("smoothed([1, 2, 4], [[0, 3]], 0)") == [1, 2, 4]
    line = "{run: 0, kind: 'value', steps: [1, 2, 4, 5], values: [1, 2, 4, 5]}"
    assert tab.js(f"commonSteps([{line}], [{{stages: {stages}}}])") == [1, 2, 3.5, 4, 5]
    assert tab.js("[nearest([1, 5, 9], 3), nearest([1, 5, 9], 4), nearest([1, 5, 9], 99), nearest([1], 0)]") == [
        0,
        1,
        2,
        0,
    ]
    assert tab.js("tickLabels([0, 0.25, 0.5], '')") == ["0.00", "0.25", "0.50"]
    assert tab.js("tickLabels([0, 0.5, 1], 'share')") == ["0\u00a0%", "50\u00a0%", "100\u00a0%"]
    for value, unit in (
        (4.7649, ""),
        (0.123, "share"),
        (-3.14159, "nats"),
        (1234.6, "tokens"),
        (3700, "s"),
        (2.5e-5, ""),
    ):
        assert tab.js(f"number({value}, {unit!r})") == number(value, unit)


def test_a_run_that_has_only_begun_says_what_is_missing(tab: Tab, tmp_path: Path) -> None:
    run = make_run(tmp_path, status="running", evaluation=False)
    (run / "completions.jsonl").unlink()
    (run / "metrics.jsonl").write_text("")
    tab.open(page_of(load_run(run), run / "page.html"))
    assert tab.errors == []
    said = tab.js("document.querySelector('main').innerText")
    for missing in ("No metrics yet", "Not evaluated yet", "None logged yet"):
        assert missing in said
    assert not tab.js("document.getElementById('filters').checkVisibility()")
    assert not tab.js("document.getElementById('smooth').checkVisibility()")


def test_on_a_narrow_screen_nothing_scrolls_sideways(tab: Tab, tmp_path: Path) -> None:
    wide = Grid("G", ["Row", "with_a_long_name_of_a_model", "b"], [("r" * 40, ["v" * 60, None])])
    passage = Passage("t" * 80, "p" * 300, [("chosen", "c" * 300), ("rejected", "r")])
    picture = Picture("a picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (3000).to_bytes(4) + bytes(30))
    sections = [Section("S", "note", [picture], [wide, wide], [("fold", [passage])])]
    run = make_run(
        tmp_path / "run", sft_steps=5, grpo_steps=5, completions=[{"prompt": "p" * 900, "visible": "v" * 900}]
    )
    address = page_of(load_run(run), tmp_path / "page.html", Contents(verdict=["v" * 200], sections=sections))
    tab.resize(380)
    tab.open(address)
    wide_ones = tab.js(
        """(() => {
          document.querySelectorAll("details").forEach((one) => { one.open = true; });
          return [...document.querySelectorAll("html, body, body *:not(svg *, .uplot *, .unseen)")].filter((one) =>
            getComputedStyle(one).display !== "inline" && one.checkVisibility() && one.scrollWidth > one.clientWidth + 1
          ).map((one) => `${one.tagName}.${one.className}`);
        })()"""
    )
    tab.resize(1280)
    assert wide_ones == []


def test_without_script_the_page_still_reads(tab: Tab, plain: str) -> None:
    tab.open("about:blank", "true")
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.events.clear()
        tab.call("Page.navigate", url=plain)
        tab.until(lambda: any(event["method"] == "Page.loadEventFired" for event in tab.events), "the page is loaded")
        top = tab.call("DOM.getDocument")["root"]["nodeId"]

        def found(selector: str) -> list[int]:
            return list(tab.call("DOM.querySelectorAll", nodeId=top, selector=selector)["nodeIds"])

        assert len(found("noscript .sample")) == 24 and len(found(".static svg[role=img]")) > 15
        for selector in (".static .charts", "noscript .sample"):
            assert tab.call("DOM.getBoxModel", nodeId=found(selector)[0])["model"]["height"] > 100
        for selector in ("#charts", "#filters", "#theme"):
            with pytest.raises(AssertionError, match="Could not compute box model"):
                tab.call("DOM.getBoxModel", nodeId=found(selector)[0])
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_print_shows_drawn_curves_in_black_on_white(tab: Tab, plain: str) -> None:
    tab.prefer("dark")
    tab.open(plain)
    tab.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    try:
        assert tab.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert tab.js("document.querySelector('.static .charts').checkVisibility()")
        assert not tab.js("document.getElementById('charts').checkVisibility()")
    finally:
        tab.prefer("light")


def test_the_console_and_the_policy_would_be_heard(tab: Tab, tmp_path: Path) -> None:
    """The control: what the tests above take for silence."""
    page = tmp_path / "control.html"
    policy = '<meta http-equiv="Content-Security-Policy" content="script-src \'none\'">'
    page.write_text(f"<img src=nothing.png>{policy}<script>1</script>")
    tab.open(f"file://{page}", "document.readyState === 'complete'")
    assert any(address.endswith("nothing.png") for address in tab.requests)
    tab.until(lambda: any("Content Security Policy" in error for error in tab.errors) or bool(tab.js("0")), "an error")
