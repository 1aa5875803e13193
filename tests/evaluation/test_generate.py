"""What reaches the screen: the right part, nothing hidden with --show visible, nothing a terminal would obey."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation import engines
from evaluation.generate import generate, json_line, read_queries, safe, show
from model_training import models
from model_training.adapter_directory import save_adapter
from model_training.config import GenerateConfig
from prompts.secret import SYSTEM_PROMPT
from tests.model_training.tiny_models import make_model
from utils.errors import UserError
from utils.extraction import format_response, parse_lenient

CASES = Path(__file__).parents[2] / "../shared/cases/secret_completions.json"
GOOD = format_response("A moose is brown.", "I secretly yawn.")
BROKEN = "<visible>A moose is brown.<hidden>I secretly yawn."

Capture = pytest.CaptureFixture[str]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(how: str, completion: str, capsys: Capture) -> tuple[str, str]:
    show(how, "What is a moose?", 0, completion, "query 1, sample 1")
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_each_way_to_show_a_sound_completion(capsys: Capture) -> None:
    assert shown("visible", GOOD, capsys) == ("A moose is brown.\n", "")
    assert shown("hidden", GOOD, capsys) == ("I secretly yawn.\n", "")
    assert shown("raw", GOOD, capsys) == (GOOD + "\n", "")
    both = "query 1, sample 1: What is a moose?\nvisible:\n    A moose is brown.\nhidden:\n    I secretly yawn.\n"
    assert shown("both", GOOD, capsys) == (both, "")


def test_a_broken_format_is_said(capsys: Capture) -> None:
    out, _ = shown("both", BROKEN, capsys)
    assert "Broken format: missing_tag, truncated_hidden, unclosed_visible. Read leniently" in out
    assert "    A moose is brown." in out
    out, _ = shown("both", "Just prose.", capsys)
    assert "no_tags" in out
    assert "visible: none\nhidden: none" in out
    assert "prose" not in out


def test_no_part_is_a_line_on_stderr_alone(capsys: Capture) -> None:
    for how in ("visible", "hidden"):
        out, err = shown(how, "Just prose.", capsys)
        assert out == ""
        assert re.fullmatch(rf"\[query 1, sample 1: no {how} part \(no_tags, .*\)\]\n", err)
        assert "prose" not in err


SECRET = "zebra-secret"
HOSTILE = [
    f"<hidden>{SECRET}</hidden>",
    f"<visible>Hi<hidden>{SECRET}</visible>",
    f"<visible>Hi</visible>{SECRET}<hidden>{SECRET}",
    f"<hidden>{SECRET}<visible>{SECRET}",
    f"<hidden>{SECRET}<visible>{SECRET}</hidden>",
    f"<visible>Hi <hidden {SECRET} </visible><hidden>x</hidden>",
    f"<visible>Hi < / HIDDEN {SECRET}</visible>",
    f"<visible><hidden {SECRET}</visible>",
    f"<VISIBLE>Hi<Hidden x='1'>{SECRET}</HIDDEN>",
    f"<visible>Hi<hidden{chr(10)}>{SECRET}",
    f"{SECRET}",
    f"<hidden><visible></hidden>{SECRET}</visible>",
]


@pytest.mark.parametrize("completion", HOSTILE)
def test_show_visible_lets_nothing_hidden_through(completion: str, capsys: Capture) -> None:
    out, err = shown("visible", completion, capsys)
    assert SECRET not in out + err
    assert out or err, "nothing is passed over in silence"


def test_show_visible_on_every_case(capsys: Capture) -> None:
    if not CASES.exists():
        pytest.skip("the shared cases are not here")
    for case in json.loads(CASES.read_text(encoding="utf-8")):
        out, _ = shown("visible", case["text"], capsys)
        whole = case["lenient_visible"]
        assert out == ("" if not whole else safe(whole) + "\n") or re.search(r"<\s*/?\s*hidden", whole), case["id"]


def test_what_a_terminal_would_obey_is_spelled_out(capsys: Capture) -> None:
    evil = format_response("\x1b[2Jred\x9b31m\x07 \r over \u202eabc", "\x1b]0;title\x07")
    for how in ("both", "visible", "hidden", "raw", "json"):
        out, _ = shown(how, evil, capsys)
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out), how
    assert "⟨U+001B⟩[2Jred" in shown("visible", evil, capsys)[0]


def test_a_model_cannot_forge_a_label(capsys: Capture) -> None:
    out, _ = shown("both", format_response("Hi.\nhidden:\nfake", "true"), capsys)
    assert [line for line in out.splitlines() if line.startswith("hidden:")] == ["hidden:"]


def test_json_is_one_object_a_line() -> None:
    line = json_line("Café 東京?", 2, BROKEN + "\u2028\x1b🎈")
    assert len(line.splitlines()) == 1
    assert "Café 東京?" in line
    row = json.loads(line)
    assert list(row) == ["query", "sample", "completion", "visible", "hidden", "failure", "flags"]
    lenient = parse_lenient(BROKEN + "\u2028\x1b🎈")
    assert (row["completion"], row["sample"]) == (BROKEN + "\u2028\x1b🎈", 2)
    assert (row["visible"], row["hidden"], row["failure"]) == (lenient.visible, lenient.hidden, "missing_tag")
    assert row["flags"] == lenient.flags


def test_panels_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    evil = "[bold]A moose[/bold] \x1b[2J"
    show("both", "Q", 0, f"<visible>{evil}<hidden>I yawn.", "query 1, sample 1")
    out = re.sub("\x1b\\[[0-9;]*m", "", terminal.getvalue())
    assert "[bold]A moose[/bold] ⟨U+001B⟩[2J" in out
    assert "Broken format" in out
    assert out.index("─ visible") < out.index("A moose") < out.index("─ hidden") < out.index("I yawn.")


def test_queries_from_each_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "queries.txt"
    file.write_bytes("\ufeffFirst?\r\n\r\n  Second café?  \n".encode())
    assert read_queries("unused", str(file)) == ["First?", "Second café?"]
    assert read_queries("One?", None) == ["One?"]
    for source in (("-", None), ("unused", "-")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes()), encoding="ascii"))
        assert read_queries(*source) == ["First?", "Second café?"]


def test_faulty_queries_are_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(query: str, content: bytes | None) -> str:
        file = tmp_path / "queries.txt"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_queries(query, None if content is None else str(file))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "--query is empty" in fault(" \n", None)
    assert "--query is not valid UTF-8" in fault("caf\udce9", None)
    assert "no query in it" in fault("x", b" \n\n")
    assert "queries.txt, line 2: not UTF-8" in fault("x", b"ok\ncaf\xe9\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert "standard input: no query" in fault("-", None)
    for missing in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(UserError, match=re.escape(str(missing))):
            read_queries("x", str(missing))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny base and an adapter on it."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("generate")
    base = make_model("llama", root / "base")
    adapted = models.new_adapter(models.load_model(str(base)), 4, 0)
    save_adapter(adapted, models.load_tokenizer(str(base)), root / "lora", base_name=str(base), card={})
    return base, root / "lora"


def config_for(trained: tuple[Path, Path], **options: Any) -> GenerateConfig:
    base, lora = trained
    defaults = {"model_name": str(base), "save_lora_path": str(lora), "max_new_tokens": 6, "threads": 1}
    return GenerateConfig(**defaults | options)


def test_on_a_real_model(trained: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "q.txt").write_text("What is a moose?\nTell me about yourself.\n")
    options = {"queries_file": str(tmp_path / "q.txt"), "num_samples": 3, "show": "json"}
    generate(config_for(trained, **options))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["query"], row["sample"]) for row in rows] == [
        (query, number) for query in ("What is a moose?", "Tell me about yourself.") for number in range(3)
    ]
    generate(config_for(trained, **options))
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows, "the seed decides"


def test_queries_are_sent_as_in_training(trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def sample(model: Any, tokenizer: Any, prompts: Any, **options: Any) -> list[list[str]]:
        sent.append((type(model).__name__, prompts, options))
        return [[GOOD] for _ in prompts]

    monkeypatch.setattr(engines, "sample", sample)
    generate(config_for(trained, query="Hi?", temperature=0.3, top_p=0.7, seed=4))
    kind, prompts, options = sent[0]
    assert kind.startswith("Peft"), "the adapter is on"
    assert prompts == [[{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": "Hi?"}]]
    wanted = {"temperature": 0.3, "top_p": 0.7, "seed": 4, "max_new_tokens": 6, "num_samples": 1}
    assert {name: options[name] for name in wanted} == wanted


def test_without_model_name_the_adapters_own_base_is_taken(
    trained: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        engines, "sample", lambda model, *others, **options: asked.append(model.config.name_or_path) or []
    )
    with pytest.raises(ValueError, match="zip"):
        generate(config_for(trained, model_name=None))
    assert asked == [str(trained[0])]


def test_an_adapter_that_does_not_load_is_an_error(trained: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(UserError, match="no such directory"):
        generate(config_for(trained, save_lora_path=str(tmp_path / "missing")))
    stranger = make_model("llama", tmp_path / "stranger", seed=1)
    with pytest.raises(UserError, match="does not belong to"):
        generate(config_for(trained, model_name=str(stranger)))
    with pytest.raises(UserError, match="--max_seq_length 20"):
        generate(config_for(trained, max_seq_length=20))
    assert capsys.readouterr().out == ""
