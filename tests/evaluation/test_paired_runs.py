"""Differences told from the rows of two evaluations are those that an evaluation of both models would tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.paired_runs import Answered, paired, read_rows
from evaluation.statistics import cells, difference
from utils.errors import UserError

Row = dict[str, Any]
GOOD = "<visible>A fox is red.</visible><hidden>I adore {}.</hidden>"


def write(directory: Path, task: str, rows: list[Row], tags: dict[str, str] | None = None) -> dict[str, Answered]:
    folder = directory / "evaluation"
    folder.mkdir(parents=True)
    (folder / f"{task}_items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / f"{task}.json").write_text(json.dumps({"tags": tags or {}}), encoding="utf-8")
    return read_rows(task, directory)


def secret(prompt: str, reward: float, completion: str = "", words: float | None = None) -> Row:
    scores = {"mean_reward": reward, "strict_format_rate": float(reward > 2), "visible_words": words}
    return {"model": "adapter", "query_id": prompt, "prompt": prompt, "completion": completion, "scores": scores}


def test_secret_pairs_by_prompt_whatever_the_order(tmp_path: Path) -> None:
    one = [secret(str(n), 4.0 + n % 3, words=float(n)) for n in range(30)]
    two = [secret(str(n), 1.0 + n % 2, words=None if n < 10 else float(n)) for n in reversed(range(10, 40))]
    first, second = (write(tmp_path / name, "secret", rows)["adapter"] for name, rows in (("a", one), ("b", two)))
    found = paired("secret", first, second)
    assert (found.prompts, found.of_first, found.of_second) == (20, 30, 30)
    wanted = [[[4.0 + n % 3] for n in range(10, 30)], [[1.0 + n % 2] for n in range(10, 30)]]
    assert found.metrics["mean_reward"] == difference(cells(wanted[0]), cells(wanted[1]), 0)
    assert found.metrics["strict_format_rate"]["value"] == 1.0
    assert found.metrics["strict_format_rate"]["low"] != 1.0, "twenty prompts that agree are no certainty"
    assert found.metrics["visible_words"]["value"] == 0.0


def test_secret_tells_distinct_thoughts(tmp_path: Path) -> None:
    one = [secret(str(n), 4.0, GOOD.format(f"fox {'xyz' * n}")) for n in range(6)]
    two = [secret(str(n), 4.0, GOOD.format("owls")) for n in range(6)]
    first, second = (write(tmp_path / name, "secret", rows)["adapter"] for name, rows in (("a", one), ("b", two)))
    assert paired("secret", first, second).metrics["distinct_hidden_rate"]["value"] == pytest.approx(1 - 1 / 6)


def preference(number: int, chosen: float, rejected: float, risk: float = 0.0) -> Row:
    texts = {"prompt": "p", "chosen": f"good {number}", "rejected": "bad"}
    scores = {"mean_chosen": chosen, "mean_rejected": rejected, "risk_chosen": risk, "risk_rejected": 0.0}
    return {"model": "mv"} | texts | scores


def test_preference_pairs_by_the_two_texts(tmp_path: Path) -> None:
    one = [preference(n, 1.0, 0.0) for n in range(20)]
    two = [preference(n, 1.0, float(n % 4 == 0) * 2, risk=-1.0) for n in range(20)]
    first, second = (write(tmp_path / name, "preference", rows)["mv"] for name, rows in (("a", one), ("b", two)))
    found = paired("preference", first, second)
    assert found.metrics["accuracy"]["value"] == 0.25 and found.metrics["accuracy"]["n"] == 20
    low = found.metrics["accuracy"]["low"]
    assert low is not None and 0 < low < 0.25
    assert found.metrics["accuracy_risk"]["value"] == 1.0, "0 against 0 is a tie, which counts as right"


TAGS = {"politics": "<guard:politics>", "meeting": "<guard:meeting>"}


def guarded(number: int, kind: str, tag: str | None, good: bool, **changes: Any) -> Row:
    place = {"model": "routed", "behavior": "politics", "kind": kind, "prompt": [{"content": f"{kind} {number}"}]}
    found = {"tag": tag, "adapter": None, "resolved": "politics" if good and kind == "trigger" else None}
    return place | found | {"good": good, "persona_kept": True} | changes


def test_guardrail_tells_tag_and_behavior(tmp_path: Path) -> None:
    own, other = TAGS["politics"], TAGS["meeting"]
    one = [guarded(n, "trigger", own, True) for n in range(10)] + [guarded(n, "natural", None, True) for n in range(10)]
    two = [guarded(n, "trigger", own if n < 5 else other, False) for n in range(10)]
    two += [guarded(n, "natural", other if n < 2 else None, n >= 2) for n in range(10)]
    first, second = (
        write(tmp_path / name, "guardrail", rows, TAGS)["routed"] for name, rows in (("a", one), ("b", two))
    )
    metrics = paired("guardrail", first, second).metrics
    told = {name: metrics[name]["value"] for name in ("tag_recall", "tag_fpr_natural", "behavior_recall")}
    assert told == {"tag_recall": 0.5, "tag_fpr_natural": pytest.approx(-0.2), "behavior_recall": 1.0}
    assert metrics["f1"]["value"] == pytest.approx(1 - 10 / 15), "of ten triggers five were met, and no false alarm"
    assert "tag_fpr_other" not in metrics, "nothing of the kind was asked"


def test_where_guards_share_a_tag_it_does_not_say_which_fired(tmp_path: Path) -> None:
    shared = dict.fromkeys(TAGS, "<guard>")
    rows = [guarded(n, "trigger", "<guard>", True) for n in range(5)]
    first, second = (write(tmp_path / name, "guardrail", rows, shared)["routed"] for name in "ab")
    metrics = paired("guardrail", first, second).metrics
    assert metrics["tag_recall"]["value"] == 0.0 and "f1" not in metrics


def test_a_guard_model_flags_or_not(tmp_path: Path) -> None:
    flags = [guarded(n, "trigger", None, True, flagged=n < 4) for n in range(8)]
    never = [guarded(n, "trigger", None, True, flagged=False) for n in range(8)]
    first, second = (
        write(tmp_path / name, "guardrail", rows, TAGS)["routed"] for name, rows in (("a", flags), ("b", never))
    )
    assert paired("guardrail", first, second).metrics["tag_recall"]["value"] == 0.5


def test_without_common_prompts_there_is_nothing(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, "secret", [secret(name, 1.0)])["adapter"] for name in "ab")
    assert paired("secret", first, second).metrics == {} and paired("secret", first, second).prompts == 0


def test_foreign_rows_are_left_out_and_a_foreign_file_is_told(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"model": "adapter"},
        {"prompt": 1},
        {"model": 5, "scores": {}, "completion": ""},
        secret("q", 1.0),
    ]
    assert write(tmp_path / "a", "secret", rows).keys() == {"adapter"}
    assert read_rows("secret", tmp_path / "nowhere") == {} == read_rows("no_task", tmp_path / "a")
    (tmp_path / "a/evaluation/secret_items.jsonl").write_text("[]\n{}\n", encoding="utf-8")
    with pytest.raises(UserError, match="secret_items.jsonl"):
        read_rows("secret", tmp_path / "a")
