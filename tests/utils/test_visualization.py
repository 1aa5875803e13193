from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.utils.make_run import make_run
from tests.utils.page import HOSTILE, Page
from utils.errors import UserError
from utils.page import ROWS_A_BLOCK, pack_rows, policy
from utils.plots import write_plots
from utils.report_data import report_data
from utils.series import load_run, load_runs
from utils.visualization import (
    Contents,
    Grid,
    render_report,
    reproduce,
    visualize,
    write_report,
)


def report_of(run: Path) -> str:
    return render_report(load_run(run))


def test_writes_plots_and_report_and_prints_their_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, sft_steps=20, grpo_steps=12)
    before = {path.name for path in tmp_path.iterdir()}
    visualize(str(tmp_path), start_server=False, server_port=8000, host="127.0.0.1")
    names = ["loss_curve.png", "reward_components.png", "training_report.html"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in names]
    assert {path.name for path in tmp_path.iterdir()} - before == set(names)
    for name in names[:2]:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n")
    assert (tmp_path / names[2]).read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_never_imports_torch(tmp_path: Path) -> None:
    make_run(tmp_path, sft_steps=3, grpo_steps=3)
    code = (
        "import sys; from utils.visualization import visualize; "
        f"visualize({str(tmp_path)!r}, False, 8000, '127.0.0.1'); "
        "print(sorted({'torch', 'transformers', 'pandas', 'starlette', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_page_says_what_the_run_was(tmp_path: Path) -> None:
    page = Page(report_of(make_run(tmp_path)))
    for expected in ("secret · tiny", "warm-up 1\u2013100, GRPO 101\u2013160", "outputs/demo/secret_conversations.json",
                     "9f86d081884c…", "near zero by construction", "dead groups: no group of the last 10 logs",
                     "24 of 120 kept", "98.8\u00a0%", "97.4 to 100.0\u00a0%", "+97.6\u00a0pp", "everyday help",
                     "refused: hidden not closed", "versions.trl", "Example CPU"):  # fmt: skip
        assert expected in page.text, expected
    assert page.tags.count("figure") == page.attributes.count(("svg", "role", "img")) > 15


def test_the_page_needs_no_network_and_runs_its_own_script_alone(tmp_path: Path) -> None:
    html = report_of(make_run(tmp_path))
    page = Page(html)
    assert not {"img", "iframe", "base", "object", "embed"} & set(page.tags)
    addresses = ("src", "href", "action", "xlink:href", "srcset")
    assert [one for one in page.attributes if one[1] in addresses] == [("link", "href", "data:,")]
    assert not [name for _, name, _ in page.attributes if name == "style" or name.startswith("on")]
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", html, re.DOTALL)
    assert [kind for kind, _ in scripts] == [
        ' type="application/gzip" id="data"',
        ' type="application/gzip" class="rows"',
        "",
    ]
    digest = base64.b64encode(hashlib.sha256(scripts[-1][1].encode()).digest()).decode()
    (rules,) = [value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "src" in value]
    assert f"script-src 'sha256-{digest}'" in rules and "default-src 'none'" in rules and "connect-src" not in rules
    assert all(re.fullmatch(r"[A-Za-z0-9+/=\s]+", text) for _, text in scripts[:-1]), "no text can end a block of data"
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style and "url(" not in style[1] and "@import" not in style[1]


def test_the_data_of_the_page_is_that_of_the_run(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path))
    html = render_report(run)
    (data,), rows = ([unpacked(text) for text in texts] for texts in blocks(html))
    expected = report_data([run])
    assert [row for block in rows for row in block] == expected["completions"].pop("rows")
    assert data == json.loads(json.dumps(expected))


def test_rows_are_packed_in_blocks() -> None:
    rows: list[dict[str, object]] = [{"step": step, "visible": "\ud800</script>"} for step in range(ROWS_A_BLOCK + 1)]
    packed = [unpacked(block) for block in pack_rows(rows)]
    assert [len(block) for block in packed] == [ROWS_A_BLOCK, 1] and packed[0] + packed[1] == rows


def blocks(html: str) -> tuple[list[str], list[str]]:
    return (
        re.findall(r'<script type="application/gzip" id="data">(.*?)</script>', html, re.DOTALL),
        re.findall(r'<script type="application/gzip" class="rows">(.*?)</script>', html, re.DOTALL),
    )


def unpacked(block: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(block)))


def test_a_page_that_is_served_asks_its_own_server_alone(tmp_path: Path) -> None:
    html = render_report(load_run(make_run(tmp_path, sft_steps=3, grpo_steps=3)), version="7.x")
    assert 'data-version="7.x"' in html and "http-equiv" not in html
    assert "connect-src 'self'" in policy(live=True) and "frame-ancestors 'none'" in policy(live=True)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_as_text_wherever_it_stands(tmp_path: Path, text: str) -> None:
    both: list[dict[str, object]] = [{}, {"failure": "x", "visible": None}]
    plain = Page(report_of(make_run(tmp_path / "plain", completions=both)))
    rows: list[dict[str, object]] = [
        {"prompt": text, "visible": text, "hidden": text, "rewards": {text: 0.5}, "failure": None},
        {"prompt": text, "completion": text, "visible": None, "hidden": None, "failure": text},
    ]
    run = make_run(tmp_path / "run", completions=rows)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest |= {"task": "secret", "status": text, "reason": text, "git_commit": text, text: text}
    manifest["config"]["model_name"] = text
    (run / "manifest.json").write_text(json.dumps(manifest))
    with (run / "metrics.jsonl").open("a") as log:
        head = {"time": 1.0, "split": "grpo", "resumes": 0}
        log.write(json.dumps(head | {"step": 160, "alarm": text}) + "\n")
        log.write(json.dumps(head | {"step": 161, f"rewards/{text}/mean": 0.5}) + "\n")
    evaluation = json.loads((run / "evaluation/secret.json").read_text())
    evaluation["models"][text] = evaluation["models"].pop("warmup") | {"failures": {text: 3}}
    (run / "evaluation/secret.json").write_text(json.dumps(evaluation))

    html = report_of(run)
    page = Page(html)
    assert page.text.count(text) >= 8
    assert set(page.tags) == set(plain.tags)
    assert {(tag, name) for tag, name, _ in page.attributes} <= {(tag, name) for tag, name, _ in plain.attributes}
    assert "49" not in page.text.split("{{ 7 * 7 }}")[0][-30:]


def test_invisible_and_reordering_characters_are_spelled_out(tmp_path: Path) -> None:
    bad = "a\u202eb\u200bc\u2066d\ufeffe\x00f\x1b[31mg\u2028h\ud800i\U000e0041j\rk"
    row: dict[str, object] = {"prompt": bad, "visible": bad, "hidden": bad, "rewards": {bad: 1.0}}
    run = make_run(tmp_path, completions=[row])
    html = report_of(run)
    html.encode("utf-8")
    assert not set(html) & set("\u202e\u200b\u2066\ufeff\x00\x1b\u2028\ud800\U000e0041\r")
    shown = "a⟨U+202E⟩b⟨U+200B⟩c⟨U+2066⟩d⟨U+FEFF⟩e⟨U+0000⟩f⟨U+001B⟩[31mg⟨U+2028⟩h⟨U+D800⟩i⟨U+E0041⟩j⟨U+000D⟩k"
    assert Page(html).text.count(shown[1:]) == 4
    assert 'title="RIGHT-TO-LEFT OVERRIDE"' in html
    assert html.count('dir="auto"') == 2


def test_a_megabyte_line_is_cut_and_says_so(tmp_path: Path) -> None:
    long = "<b>\u202e" * 250_000
    run = make_run(
        tmp_path, completions=[{"visible": long, "hidden": "h"}, {"visible": None, "failure": "f", "completion": long}]
    )
    started = time.monotonic()
    html = report_of(run)
    assert time.monotonic() - started < 2
    assert len(html) < 400_000 and Page(html).text.count("… 998,000 more characters") == 2


def test_a_run_that_has_only_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, status="running", evaluation=False)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "completions.jsonl").unlink()
    run = load_run(tmp_path)
    assert write_plots(run, tmp_path) == []
    assert "loss_curve.png: nothing to draw yet" in capsys.readouterr().out
    write_report(run, tmp_path / "training_report.html")
    page = Page((tmp_path / "training_report.html").read_text())
    for expected in ("running", "No metrics yet", "Not evaluated yet", "None logged yet"):
        assert expected in page.text


def test_an_evaluation_alone_and_one_log_event(tmp_path: Path) -> None:
    make_run(tmp_path / "eval")
    for name in ("metrics.jsonl", "completions.jsonl", "manifest.json"):
        (tmp_path / "eval" / name).unlink()
    assert "98.8\u00a0%" in report_of(tmp_path / "eval")
    one = make_run(tmp_path / "one", sft_steps=0, grpo_steps=1, alarms=False, evaluation=False)
    assert "No alarm was raised" in report_of(one)
    assert len(write_plots(load_run(one), one)) == 2


def test_values_that_are_no_numbers_do_not_break_the_table(tmp_path: Path) -> None:
    rewards = {"format": float("nan"), "other": None, "beyond": 3.5}
    page = Page(report_of(make_run(tmp_path, completions=[{"rewards": rewards, "total": None}])))
    assert page.text.count("n/a") == 2 and "3.50" in page.text


def test_a_missing_run_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run here"):
        visualize(str(tmp_path), start_server=False, server_port=8000, host="127.0.0.1")
    assert list(tmp_path.iterdir()) == []


def test_reproduction_gives_every_option_that_was_set() -> None:
    config = {
        "learning_rate": 5e-6,
        "reward_funcs": ["format"],
        "reward_weights": None,
        "overwrite": True,
        "note": 'a: "b"',
    }
    found = reproduce({"mode": "train", "task": "secret", "config": config})
    assert found is not None
    assert found[0] == "python main.py --mode train --task secret --config run.yaml"
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(found[1]) == {"learning_rate": 5e-6, "reward_funcs": ["format"], "note": 'a: "b"'}


def test_a_page_of_several_runs_has_their_curves_and_recipes_under_their_names(tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_run(tmp_path / name, sft_steps=5, grpo_steps=5)
    run = load_runs(tmp_path, "secret")
    recipe = {"task": "secret", "mode": "evaluate", "config": {"num_runs": 3}}
    table = Grid("Own table", ["Model", "a"], [("m", ["1"])])
    contents = Contents(recipes={"evaluation": recipe}, tables=[table])
    page = Page(render_report(run, contents=contents))
    assert page.text.count("Learning rate") == 2 and "second: dead groups" in page.text
    assert page.text.count("--mode train --task secret --config run.yaml") == 2
    assert "--mode evaluate --task secret --config run.yaml" in page.text and "num_runs: 3" in page.text
    assert "How to repeat it" in page.text and "No metrics yet" not in page.text and "no manifest" not in page.text
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)) and {"options-3", "manifest-2"} <= set(ids)
    assert "manifest-3" not in ids
    assert "Own table" not in page.text, "it stands for an evaluation, and there is none"
    (tmp_path / "evaluation").mkdir()
    models = {"base": {"metrics": {}, "by_category": {"c": {"reward": {"value": 1}}}, "failures": 2}}
    (tmp_path / "evaluation" / "secret.json").write_text(json.dumps({"task": "secret", "models": models}))
    page = Page(render_report(load_runs(tmp_path, "secret"), contents=contents))
    assert "Own table" in page.text and "By category" not in page.text
