"""Saved outputs of every form, and every way in which such a file can be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.preference_outputs import drawn, read_outputs, stored
from utils.errors import UserError


def write(path: Path, *rows: Any) -> str:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def pair(chosen: Any, rejected: Any, **others: Any) -> dict[str, Any]:
    return {"reward_output_chosen": chosen, "reward_output_rejected": rejected, **others}


def test_published_pairs_are_one_model_a_file_named_by_it(tmp_path: Path) -> None:
    rows = [pair([1.5], [0.5], data_subset="helpful"), pair([0.25], [0.5], data_subset="harmless", label=1)]
    found = read_outputs([write(tmp_path / "eval_results_both.jsonl.gz", *rows)])
    assert list(found.pairs) == ["eval_results_both"] and not found.jailbreaks
    of = found.pairs["eval_results_both"]
    assert (of.kind, of.likelihood) == ("base", "logistic")
    assert of.outputs.tolist() == [[[1.5], [0.5]], [[0.25], [0.5]]]
    assert of.records == [{"data_subset": "helpful"}, {"data_subset": "harmless", "label": 1}]


@pytest.mark.parametrize(
    ("count", "kind"), [(1, "base"), (2, "mean_and_variance"), (3, "categorical"), (10, "categorical")]
)
def test_the_number_of_outputs_says_the_kind(tmp_path: Path, count: int, kind: str) -> None:
    path = write(tmp_path / "x.jsonl", pair([0.5] * count, [1] * count))
    assert read_outputs([path]).pairs["x"].kind == kind


def test_a_single_output_may_stand_without_brackets(tmp_path: Path) -> None:
    assert read_outputs([write(tmp_path / "x.jsonl", pair(2, -1.5))]).pairs["x"].outputs.tolist() == [[[2], [-1.5]]]


def test_names_are_given_in_the_order_of_the_files_without_one(tmp_path: Path) -> None:
    first, second = (write(tmp_path / f"{name}.jsonl", pair([1], [0])) for name in ("a", "b"))
    own = write(tmp_path / "own.jsonl", pair([1], [0], model="ours", reward_model_type="base", likelihood="probit"))
    assert list(read_outputs([second, own, first], ["one", "two"]).pairs) == ["ours", "one", "two"]
    assert set(read_outputs([second, own, first]).pairs) == {"ours", "a", "b"}


def test_our_own_pairs_say_their_model_kind_and_likelihood(tmp_path: Path) -> None:
    about = {"reward_model_type": "categorical", "likelihood": "probit", "mean_chosen": 0.7, "risk_rejected": 0.1}
    rows = [
        pair([0, 1], [1, 0], model="cat", index=0, id="p", **about),
        pair([3], [4], model="base", index=0, id="p"),
        pair([0, 2], [2, 0], model="cat", index=1, id="q", **about),
    ]
    found = read_outputs([write(tmp_path / "items.jsonl", *rows)]).pairs
    assert list(found) == ["cat", "base"]
    assert (found["cat"].kind, found["cat"].likelihood) == ("categorical", "probit")
    assert found["cat"].records == [{"id": "p"}, {"id": "q"}], "scores of an earlier evaluation are computed anew"
    assert found["base"].outputs.shape == (1, 2, 1)


def test_jailbreak_rows_hold_several_models(tmp_path: Path) -> None:
    first = [{"id": i, "reward_outputs_a": [[1.0], [i]], "reward_outputs_b_c": [[0, 1], [1, 0]]} for i in range(3)]
    second = [{"id": i, "reward_outputs_d": [[1] * 10, [0] * 10]} for i in range(3)]
    found = read_outputs([write(tmp_path / "1.jsonl", *first), write(tmp_path / "2.jsonl", *second)])
    assert not found.pairs
    assert [(name, of.kind) for name, of in found.jailbreaks.items()] == [
        ("a", "base"),
        ("b_c", "mean_and_variance"),
        ("d", "categorical"),
    ]
    assert found.jailbreaks["a"].outputs[2].tolist() == [[1], [2]]
    assert found.jailbreaks["a"].rows == found.jailbreaks["d"].rows == [{"id": 0}, {"id": 1}, {"id": 2}]


FAULTS = [
    ([pair([1], [2, 3])], r"x.jsonl:record 1 \(line 1\): has 2 reward outputs where 1 stand before"),
    ([pair([1], [2]), pair([1, 2], [1, 2])], r"record 2 \(line 2\): has 2 reward outputs where 1 stand before"),
    ([pair([1], [2]), {"reward_output_chosen": [1]}], "record 2.*reward_output_rejected is missing"),
    ([pair([], [])], "reward_output_chosen is empty"),
    ([pair([1], ["2"])], r'reward_output_rejected holds a string where a number should stand: "2"'),
    ([pair([1], [True])], "holds true or false where a number"),
    ([pair([1], None)], "holds null where a number"),
    ([pair([1], [[2]])], "holds an array where a number"),
    (['{"reward_output_chosen": [NaN], "reward_output_rejected": [1]}'], "record 1.*NaN or Infinity"),
    (['{"reward_output_chosen": [1e999], "reward_output_rejected": [1]}'], "record 1.*too large"),
    ([pair([10**400], [1])], "record 1.*not finite"),
    ([pair([1], [2]), "[1, 2]"], "record 2.*is an array, not an object"),
    ([pair([1], [2]), '{"reward_output_chosen": [1], "rew'], "record 2.*not valid JSON"),
    ([{"prompt": "Hi", "completion": "Ho"}], "record 1: holds no reward outputs: neither reward_outputs_NAME"),
    ([pair([1], [2], model="a"), pair([1], [2])], "record 2.*names no model, as the first row does"),
    ([pair([1], [2], model="")], "model is not a name"),
    ([pair([1], [2], model="a", reward_model_type="categorical")], "no kind of model with 1 reward output"),
    ([pair([1, 2], [2, 1], model="a", reward_model_type="base")], "no kind of model with 2 reward outputs"),
    ([pair([1, 2], [2, 1], model="a", reward_model_type="dpl")], "no kind of model with 2 reward outputs"),
    (
        [pair([1, 2], [2, 1], model="a", reward_model_type="categorical"), pair([1, 2], [2, 1], model="a")],
        "record 2.*reward_model_type or likelihood differs from the rows before",
    ),
    ([pair([1], [2], model="a", reward_model_type="mean_and_variance")], "no kind of model with 1 reward output"),
    ([pair([1], [2], likelihood="cauchy")], "likelihood is not one of probit, logistic"),
    ([{"reward_outputs_a": [[1], [2], [3]]}], "reward_outputs_a is not a list of two"),
    ([{"reward_outputs_a": [[1], [2, 3]]}], "has 2 reward outputs where 1 stand before"),
    ([{"reward_outputs_a": [[1], [None]]}], "reward_outputs_a holds null"),
    ([{"reward_outputs_a": [[1], [2]]}, pair([1], [2])], r"record 2.*not the outputs of.*\(reward_outputs_a\)"),
    ([{"reward_outputs_a": [[1], [2]]}, {"reward_outputs_b": [[1], [2]]}], "not the outputs of the same models"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), FAULTS, ids=range(len(FAULTS)))
def test_faults_are_told_with_file_record_and_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_outputs([write(tmp_path / "x.jsonl", *rows)])


def test_faulty_rows_are_left_out_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", pair([1], [2]), pair([1, 2], [1, 2]), "{", pair([3], [4]))
    found = read_outputs([path], skip_invalid=True).pairs["x"]
    assert found.outputs.tolist() == [[[1], [2]], [[3], [4]]]
    said = capsys.readouterr().err
    assert "kept 2 rows, left out 2" in said and "record 2" in said and "record 3" in said


def test_many_faults_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", pair([1], [2]), *[pair([1], [])] * 30)
    with pytest.raises(UserError, match="and 10 more|and 10 faults more") as caught:
        read_outputs([path])
    assert str(caught.value).count("record") == 20


def test_names_that_do_not_fit(tmp_path: Path) -> None:
    first, second = (write(tmp_path / f"{name}.jsonl", pair([1], [0])) for name in ("a", "b"))
    jailbreaks = write(tmp_path / "j.jsonl", {"reward_outputs_a": [[1], [2]]})
    for paths, names, message in (
        ([first, second], ["one"], "gives 1 name for 2 files"),
        ([jailbreaks], ["one"], "gives 1 name for 0 files.*name their models themselves"),
        ([first, second], ["one", "one"], "two files hold outputs of a model 'one'"),
        ([first, first], [], "a file is named twice"),
        ([jailbreaks, write(tmp_path / "k.jsonl", {"reward_outputs_a": [[1], [2]]})], [], "two files hold.*'a'"),
        ([jailbreaks, write(tmp_path / "c.jsonl", pair([1, 2], [3, 4]))], ["a"], "a names two models"),
    ):
        with pytest.raises(UserError, match=message):
            read_outputs(paths, names)
    both = read_outputs([jailbreaks, first])
    assert list(both.pairs) == list(both.jailbreaks) == ["a"], "one model, measured on both"


def test_stored_numbers_keep_every_float32() -> None:
    outputs = torch.randn(200, 2, 3)
    outputs[0, 0, 0] = 1e-30
    again = torch.tensor(stored(outputs), dtype=torch.float64)
    assert torch.equal(again.float(), outputs)
    assert max(len(json.dumps(value)) for value in again.flatten().tolist()) <= 15


def test_some_are_drawn_by_the_seed_in_their_order() -> None:
    things = list(range(50))
    assert drawn(things, 0, 1) == drawn(things, 50, 1) == drawn(things, 99, 1) == things
    some = drawn(things, 20, 1)
    assert len(some) == 20 and some == sorted(some) == drawn(things, 20, 1) != drawn(things, 20, 2)
