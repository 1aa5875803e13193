from __future__ import annotations

import json
from pathlib import Path

import pytest

from utils.sound import sound_evaluation, sound_manifest, unix_time

WHOLE = {"task": "secret", "config": {"seed": 1}, "status": "done", "started": "2026-09-21T14:13:20+00:00"}


def manifest_of(run: Path, value: object) -> tuple[dict[str, object], tuple[str, ...]]:
    (run / "manifest.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return sound_manifest(run)


def test_unknown_fields_of_another_version_pass(tmp_path: Path) -> None:
    newer = WHOLE | {"schema": 9, "cluster": {"nodes": 4}}
    assert manifest_of(tmp_path, newer) == (newer, ())


@pytest.mark.parametrize(
    ("name", "value"),
    [("config", [1]), ("config", "a"), ("task", 3), ("status", {}), ("started", "soon"), ("started", 1e300),
     ("ended", True), ("resumes", "two"), ("dataset", "data.json"), ("reason", [])],
)  # fmt: skip
def test_a_field_of_another_type_is_left_out_and_named(tmp_path: Path, name: str, value: object) -> None:
    manifest, faults = manifest_of(tmp_path, WHOLE | {name: value})
    assert name not in manifest and f'"{name}" is not' in faults[0]


def test_a_dataset_is_named_in_words(tmp_path: Path) -> None:
    manifest, faults = manifest_of(tmp_path, WHOLE | {"dataset": {"path": ["a"], "sha256": 5, "more": None}})
    assert manifest["dataset"] == {"path": "['a']", "sha256": "5"} and faults == ()


def test_missing_fields_are_named_with_what_is_lost(tmp_path: Path) -> None:
    manifest, faults = manifest_of(tmp_path, {"seed": 1, "config": None})
    assert manifest == {"seed": 1} and len(faults) == 3
    assert 'manifest.json has no "config": the options, and with them the command' in " ".join(faults)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\x01", "[" * 100_000, '"' + "x" * 100])
def test_a_manifest_that_is_none_is_a_fault(tmp_path: Path, text: str) -> None:
    manifest, faults = manifest_of(tmp_path, text)
    assert manifest == {} and len(faults) == 1 and faults[0].startswith("manifest.json: ")


def test_a_missing_manifest_is_a_fault_beside_a_log_alone(tmp_path: Path) -> None:
    assert sound_manifest(tmp_path) == ({}, ())
    (tmp_path / "metrics.jsonl").touch()
    assert "manifest.json is missing" in sound_manifest(tmp_path)[1][0]


def test_an_evaluation_keeps_what_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "secret.json"
    models = {
        "good": {"metrics": {"a": {"value": 1}}},
        "bad": 3,
        "odd": {"metrics": [], "by_category": {"x": 1, "y": {}}},
    }
    file.write_text(json.dumps({"models": models, "paired": {"a - b": {}, "c": 1}, "more": 1}))
    found, faults = sound_evaluation([file], None)
    assert found is not None and "2 entries" in faults[0]
    assert found["models"] == {"good": {"metrics": {"a": {"value": 1}}}, "odd": {"by_category": {"y": {}}}}
    assert found["paired"] == {"a - b": {}} and found["more"] == 1


def test_the_evaluation_of_another_task_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "guardrail.json").write_text("{")
    assert sound_evaluation([tmp_path / "guardrail.json"], "secret") == (None, ())
    assert sound_evaluation([], None) == (None, ())


def test_times() -> None:
    assert unix_time("1970-01-01T00:01:00+00:00") == 60.0 and unix_time(60) == 60.0
    no_times: list[object] = [None, True, "soon", [], 1e300, float("nan")]
    assert [unix_time(value) for value in no_times] == [None] * 6
