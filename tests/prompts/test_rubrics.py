"""Rubrics: the built-in ones, their scales, and what is wrong with a file in one line that says where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from prompts.rubrics import FIELDS, KINDS, NEEDED, Criterion, built_in, load_rubric
from utils.errors import UserError

MINE: dict[str, Any] = {
    "judges": "secret",
    "instructions": "Judge it.",
    "criteria": {"kind": {"question": "Is it kind?", "scale": ["No.", "Somewhat.", "Yes."], "pass": 2}},
}


def written(folder: Path, value: Any) -> str:
    path = folder / "mine.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_built_in_rubric_that_judges_it(kind: str) -> None:
    rubric = load_rubric(kind, "--judge_rubric")
    assert (rubric.name, rubric.judges) == (kind, kind)
    assert set(rubric.shows) <= set(FIELDS[kind])
    assert {criterion.name for criterion in rubric.criteria} >= set(NEEDED[kind])
    assert (rubric.compare is not None) == (kind == "secret")
    assert sorted(KINDS) == built_in()


def test_two_anchors_count_from_0_and_more_from_1() -> None:
    two, five = Criterion("a", "?", ("no", "yes"), 1), Criterion("b", "?", tuple("vwxyz"), 4)
    assert (list(two.scores), list(five.scores)) == ([0, 1], [1, 2, 3, 4, 5])
    assert [five.share(score) for score in five.scores] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [two.share(score) for score in two.scores] == [0.0, 1.0]


def test_a_file_is_named_by_its_name_and_shows_all_by_default(tmp_path: Path) -> None:
    rubric = load_rubric(written(tmp_path, MINE), "--judge_rubric")
    assert (rubric.name, rubric.shows, rubric.compare) == ("mine", ("query", "visible", "hidden"), None)
    assert rubric.criteria[0] == Criterion("kind", "Is it kind?", ("No.", "Somewhat.", "Yes."), 2, "both", 1.0)
    fewer = load_rubric(written(tmp_path, MINE | {"name": "short", "shows": ["visible"]}), "--judge_rubric")
    assert (fewer.name, fewer.shows) == ("short", ("visible",))


def with_criterion(**changed: Any) -> dict[str, Any]:
    return MINE | {"criteria": {"kind": MINE["criteria"]["kind"] | changed}}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "expected fields, as `judges: ...`"),
        ([1], "expected fields"),
        (MINE | {"judge": "x"}, "judge is not a field here; there are judges,"),
        ({key: MINE[key] for key in ("judges", "criteria")}, "instructions is missing"),
        (MINE | {"judges": "poems"}, "judges: 'poems' is none of secret, guardrail_trigger"),
        (MINE | {"instructions": " "}, "instructions: expected a text that is not empty"),
        (MINE | {"shows": ["query", "reply"]}, "shows: 'reply' is none of query, visible, hidden"),
        (MINE | {"shows": []}, "shows: expected a list of at least 1"),
        (MINE | {"criteria": {}}, "criteria: give one entry a criterion"),
        (MINE | {"criteria": {"very kind": {}}}, "criteria: very kind: a name is of letters"),
        (with_criterion(scale=["one"]), "criteria: kind: scale: expected a list of at least 2"),
        (with_criterion(scale=[1, 2]), "criteria: kind: scale: expected a text"),
        (with_criterion(**{"pass": 1}), "criteria: kind: pass is 1; give a score from 2 to 3"),
        (with_criterion(**{"pass": 4}), "pass is 4"),
        (with_criterion(**{"pass": True}), "pass is True"),
        (with_criterion(part="left"), "criteria: kind: part: 'left' is none of visible, hidden, both"),
        (with_criterion(weight=0), "criteria: kind: weight is 0; give a number above 0"),
        (with_criterion(weight=float("nan")), "weight is nan"),
        (MINE | {"judges": "guardrail_trigger"}, "needs one that is named adheres"),
        (
            MINE | {"judges": "guardrail_natural", "compare": "x"},
            "compare is of rubrics that judge secret; leave it out",
        ),
        ("judges: secret\njudges: secret\n", "judges is given twice"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path: Path, value: Any, says: str) -> None:
    path = written(tmp_path, value)
    with pytest.raises(UserError) as caught:
        load_rubric(path, "--judge_rubric")
    assert str(caught.value).startswith(path) and says in str(caught.value) and "\n" not in str(caught.value)


def test_a_rubric_that_is_not_there_names_the_option() -> None:
    with pytest.raises(UserError, match="--judge_rubric secrets: no such rubric; there are guardrail_natural, "):
        load_rubric("secrets", "--judge_rubric")
    with pytest.raises(UserError, match="nowhere.yaml: no such file; check --judge_rubric"):
        load_rubric("nowhere.yaml", "--judge_rubric")
