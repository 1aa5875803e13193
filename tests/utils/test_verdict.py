from __future__ import annotations

import json
from pathlib import Path

from tests.utils.make_run import make_run
from utils.series import load_run
from utils.verdict import verdict


def test_the_numbers_are_told_with_their_intervals_against_the_base(tmp_path: Path) -> None:
    measured, compared, alarmed = verdict(load_run(make_run(tmp_path)))
    assert measured.startswith(
        "Held-out, adapter against base: strict format rate 98.8\u00a0% (97.4 to 100.0\u00a0%, base 1.2\u00a0%); "
    )
    assert "mean reward 4.53 (4.45 to 4.61, base 0.31)" in measured
    assert compared.startswith("Mean reward, paired by prompt: adapter - base +4.22 (+4.11 to +4.33: a gain); ")
    assert (
        alarmed
        == "1 alarm; the first at step 141: dead groups: no group of the last 10 logs had two different rewards."
    )


def test_a_difference_is_a_gain_only_where_its_interval_excludes_0(tmp_path: Path) -> None:
    run = make_run(tmp_path, alarms=False)
    path = run / "evaluation" / "secret.json"
    evaluation = json.loads(path.read_text())
    for (low, high), words in (
        ((-1, -0.5), "a loss"),
        ((-0.5, 0.5), "not told apart from 0"),
        ((0, 1), "not told apart"),
    ):
        cell = {"value": (low + high) / 2, "n": 9, "low": low, "high": high}
        path.write_text(json.dumps(evaluation | {"paired": {"adapter - base": {"mean_reward": cell}}}))
        assert words in verdict(load_run(run))[1]


def test_nothing_is_said_of_what_was_not_measured(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", evaluation=False, alarms=False)
    (told,) = verdict(load_run(run))
    assert told.startswith("Total reward while training: ")
    empty = make_run(tmp_path / "b", evaluation=False, sft_steps=0, grpo_steps=0)
    assert verdict(load_run(empty)) == []
