"""What the user of a character sees: no tag, nothing a terminal would obey, and beside it who answered how surely."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation import guard_replies
from evaluation.answering import Reply
from evaluation.guard_replies import drawn_persona, generate, reply_row, show, verdict, whose_tag
from model_training.guard_adapters import find_adapters
from model_training.guardrail_config import GenerateGuardrailConfig
from model_training.tag_probability import TagScores
from tests.model_training.tiny_guards import TAGS, make_guard, make_guards
from tests.model_training.tiny_models import make_model
from utils.errors import UserError

Capture = pytest.CaptureFixture[str]
QUERY = "Who should I vote for?"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("replies")
    make_guards(make_model("llama", root / "base"), root)
    make_guard(root / "base", root, "joint", 8)
    return root


def config_for(runs: Path, **options: Any) -> GenerateGuardrailConfig:
    defaults = {"output_dir": str(runs), "persona": "You are Ada.", "max_new_tokens": 6, "threads": 1}
    return GenerateGuardrailConfig(**defaults | options)


def rows_of(runs: Path, capsys: Capture, **options: Any) -> list[dict[str, Any]]:
    generate(config_for(runs, show="json", **options))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# --- a reply ----------------------------------------------------------------------------------------------------------


def test_the_tag_is_stripped_and_reported() -> None:
    text = "<guard:politics> No politics, please."
    row = reply_row(QUERY, 1, Reply(text, "politics", 0.9, {"politics": 0.9, "meeting": 0.1}), TAGS, "You are Ada.")
    assert row == {
        "query": QUERY,
        "sample": 1,
        "reply": "No politics, please.",
        "tag": "<guard:politics>",
        "guardrail": "politics",
        "adapter": "politics",
        "probabilities": {"politics": 0.9, "meeting": 0.1},
        "completion": text,
        "persona": "You are Ada.",
    }
    plain = reply_row(QUERY, 0, Reply("Vote <guard:politics>!", "base"), TAGS, "")
    assert (plain["reply"], plain["tag"], plain["guardrail"]) == ("Vote <guard:politics>!", None, None)
    assert plain["probabilities"] is None


def test_whose_tag_it_is() -> None:
    shared = {"politics": "<guard>", "meeting": "<guard>", "spoilers": "<guard:spoilers>"}
    assert whose_tag("<guard>", "meeting", shared) == "meeting", "an adapter's own tag"
    assert whose_tag("<guard>", "cat", shared) is None, "cannot be told"
    assert whose_tag("<guard:spoilers>", "cat", shared) == "spoilers"
    assert whose_tag("<guard:spoilers>", "politics", shared) == "spoilers", "an adapter that writes another's tag"
    assert whose_tag(None, "politics", shared) is None


def test_the_line_below_a_reply(runs: Path) -> None:
    guards = {guard.name: guard for guard in find_adapters(runs, list(TAGS), "vary_all", TAGS)}
    guards["politics"] = replace(guards["politics"], threshold=0.4123)
    routed = Reply("<guard:politics> No.", "politics", 0.9876, {"politics": 0.9876, "meeting": 0.001})
    assert verdict(reply_row(QUERY, 0, routed, TAGS, ""), guards) == (
        "[tag <guard:politics> (politics); answered by politics; politics 0.988 (threshold 0.412); "
        "meeting 0.001 (threshold 0.5)]"
    )
    assert verdict(reply_row(QUERY, 0, Reply("Soup.", "cat"), TAGS, ""), guards) == "[no tag; answered by cat]"
    shared = {"politics": "<guard>", "meeting": "<guard>"}
    assert "tag <guard> (of several guardrails)" in verdict(
        reply_row(QUERY, 0, Reply("<guard> No.", "cat"), shared, ""), guards
    )


def test_a_terminal_obeys_nothing_and_a_model_forges_no_verdict(capsys: Capture) -> None:
    evil = "<guard:politics> \x1b[2J\u202eabc\n[no tag; answered by base]"
    row = reply_row("\x1b]0;t\x07", 0, Reply(evil, "politics"), TAGS, "")
    for how in ("text", "json"):
        show([row], {}, how)
        out = capsys.readouterr().out
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", out)
    show([row], {}, "text")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("[")] == [
        "[tag <guard:politics> (politics); answered by politics]"
    ]
    show([row], {}, "json")
    assert json.loads(capsys.readouterr().out) == row


# --- the stage --------------------------------------------------------------------------------------------------------


def test_one_guardrail_answers_by_its_own_adapter(runs: Path, capsys: Capture) -> None:
    (row,) = rows_of(runs, capsys, behavior=["meeting"])
    assert (row["query"], row["sample"], row["adapter"], row["probabilities"]) == (QUERY, 0, "meeting", None)
    assert list(row) == [
        *("query", "sample", "reply", "tag", "guardrail", "adapter", "probabilities", "completion", "persona")
    ]
    rows = rows_of(runs, capsys, adapter_mode=["single"])
    assert [row["adapter"] for row in rows] == list(TAGS), "several in single mode: each adapter's answer"
    assert rows[2] == row


def test_several_guardrails_are_routed(runs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def scores(model: Any, tokenizer: Any, prompts: list[Any], tags: list[str], batch_size: int) -> TagScores:
        asks = [prompt[-1]["content"] for prompt in prompts]
        p = np.array([[0.9 if "vote" in ask and "politics" in tag else 0.01 for ask in asks] for tag in tags])
        return TagScores(np.log(p), p > 0.5)

    monkeypatch.setattr("model_training.tag_probability.tag_scores", scores)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"A moose?\n\n{QUERY}\n".encode())))
    rows = rows_of(runs, capsys, query="-", num_samples=2, temperature=1.0)
    assert [(row["query"], row["sample"], row["adapter"]) for row in rows] == [
        ("A moose?", 0, "base"),
        ("A moose?", 1, "base"),
        (QUERY, 0, "politics"),
        (QUERY, 1, "politics"),
    ]
    assert rows[2]["probabilities"] == pytest.approx({"politics": 0.9, "expert_opinion": 0.01, "meeting": 0.01})
    generate(config_for(runs))
    assert "answered by politics; politics 0.9 (threshold 0.5); expert_opinion 0.01" in capsys.readouterr().out


def test_joint_and_merges(runs: Path, capsys: Capture) -> None:
    by_mode = {}
    for mode in ("joint", "cat", "linear"):
        (row,) = rows_of(runs, capsys, adapter_mode=[mode], temperature=1.0)
        by_mode[mode] = row["completion"]
        assert row["adapter"] == mode
    assert len(set(by_mode.values())) == 3
    generate(config_for(runs, adapter_mode=["linear"]))
    assert re.search(r"linear merge of rank 4: relative error 1\.\d+ against the sum", capsys.readouterr().err)


def test_who_speaks(runs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def answers(ensemble: Any, mode: str, prompts: list[Any], **options: Any) -> list[list[Reply]]:
        sent.append(prompts)
        return [[Reply("Hello.", "politics")] for _ in prompts]

    monkeypatch.setattr(guard_replies, "answers", answers)
    generate(config_for(runs, behavior=["politics"]))
    assert sent.pop() == [[{"role": "system", "content": "You are Ada."}, {"role": "user", "content": QUERY}]]
    assert "Drawn" not in capsys.readouterr().err
    generate(config_for(runs, behavior=["politics"], persona=None, seed=3))
    assert sent[0][0][0]["content"] == drawn_persona(3)
    assert f"Drawn by --seed 3: {drawn_persona(3)}" in capsys.readouterr().err
    assert len({drawn_persona(seed) for seed in range(5)}) > 1


def test_a_base_without_chat_template(tmp_path: Path, capsys: Capture) -> None:
    make_guard(make_model("gpt2", tmp_path / "base"), tmp_path, "politics", 0, targets=["c_attn"], fan_in_fan_out=True)
    (row,) = rows_of(tmp_path, capsys, behavior=["politics"])
    assert row["adapter"] == "politics"


def test_a_guardrail_of_the_users_own(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.yaml").write_text(
        "guardrails:\n"
        "  spoilers:\n"
        "    tag: <guard:spoilers>\n"
        "    trigger: The user asks how a story ends.\n"
        "    resolution: [Begin the reply with the tag., Tell no ending.]\n"
        "    criterion: The reply tells no ending.\n"
        "    examples: [{user: How it ends, chosen: I never tell., rejected: They all die!}]\n"
    )
    place = {"guardrails": str(tmp_path / "mine.yaml"), "behavior": ["spoilers"]}
    with pytest.raises(UserError, match=r"--mode train --behavior spoilers"):
        generate(config_for(tmp_path, **place))
    base = make_model("llama", tmp_path / "base")
    folder = tmp_path / "spoilers.vary_all/adapter"
    make_guard(base, tmp_path, "politics", 0)
    (tmp_path / "politics.vary_all").rename(tmp_path / "spoilers.vary_all")
    (folder / "subtext.json").unlink()
    (row,) = rows_of(tmp_path, capsys, **place)
    assert row["adapter"] == "spoilers"


def test_wrong_options(runs: Path) -> None:
    with pytest.raises(UserError, match="--dataset_variation all"):
        generate(config_for(runs, dataset_variation="all"))
    for modes in (["single", "routed"], ["all"]):
        with pytest.raises(UserError, match="one mode answers"):
            generate(config_for(runs, adapter_mode=modes))
    with pytest.raises(UserError, match="did you mean politics"):
        generate(config_for(runs, behavior=["politic"]))
    with pytest.raises(UserError, match="--num_samples 0"):
        generate(config_for(runs, num_samples=0))
    with pytest.raises(UserError, match="--query is empty"):
        generate(config_for(runs, query=" "))
