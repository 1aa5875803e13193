"""Guardrail files by a teacher behind the real SDKs and the stub server: whole, checked, resumed, never paid twice."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import main
from benchmarks.api_stub import stub
from dataset.guard_records import plan
from dataset.guard_sketches import draw_sketches
from dataset.guardrail import dataset_file, load_behavior, prepare_data
from dataset.guardrails import load_guardrails
from dataset.parsing import count_of
from dataset.synthesis_journal import journal_path
from model_training.guardrail_config import VARIATIONS
from tests.dataset.guard_sets import BARE, guardrails, with_spoilers
from tests.dataset.guard_teachers import Messages, answered, config, task, teacher, words
from utils.errors import UserError, WorkError
from utils.files import read_jsonl

KEY = "sk-the-secret-of-this-test"


def rows(folder: Path, behavior: str = "politics", variation: str = "vary_all") -> list[dict[str, Any]]:
    return load_behavior(folder / "data", behavior, variation, guardrails())


def counts(records: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    return Counter((record["split"], record["kind"]) for record in records)


def planned(behavior: str = "politics", n_samples: int = 4, test_samples: int = 1) -> dict[tuple[str, str], int]:
    return {(split, kind): count for split, kind, count in plan(behavior, n_samples, test_samples) if count}


# --- whole files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_files_are_those_of_the_micro_world_with_tags_and_origin(provider: str, tmp_path: Path) -> None:
    with stub(answer=teacher) as server:
        teachers = {"openai": f"openai:m@{server.base_url}", "anthropic": f"anthropic:m@{server.url}"}
        prepare_data(config(tmp_path, server, "meeting", "natural", teacher=teachers[provider]))
        records = sum(planned("meeting").values()) + sum(planned("natural").values())
        assert server.counts["requests"] == server.counts["paid"] == 3 * records
    for behavior, tag in (("meeting", "<guard:meeting>"), ("natural", "<guard:")):
        records = rows(tmp_path, behavior)
        assert counts(records) == planned(behavior)
        for record in records:
            tagged, plain = ("chosen", "rejected") if record["is_trigger"] else ("rejected", "chosen")
            assert record[tagged].startswith(tag) and "<" not in record[plain]
            assert ("tell you all" in record["chosen"]) != record["is_trigger"]
            assert record["group"].endswith(f"|{record['prompt'][0]['content'].split()[2].rstrip(',')}")
            made = record["provenance"]
            assert made["model"] == "m" and made["prompt_version"].startswith("guard-teacher")
            assert len(set(made["request_id"])) == 3 and made["time"].startswith("20")
        assert not journal_path(dataset_file(tmp_path / "data", behavior, "vary_all")).exists()


def test_what_a_variation_fixes_is_the_same_in_all_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stub(answer=teacher) as server:
        prepare_data(config(tmp_path, server, dataset_variation="all"))
    vary, character, history = (rows(tmp_path, variation=variation) for variation in VARIATIONS)
    for records in (vary, character, history):
        assert counts(records) == planned()
        assert len({record["prompt"][-1]["content"] for record in records}) == len(records)

    def different(records: list[dict[str, Any]], what: Any) -> int:
        return len({json.dumps(what(record["prompt"])) for record in records})

    assert different(vary, lambda p: p[0]["content"].split(".")[0]) > 8
    assert different(character, lambda p: p[0]["content"].split(".")[:2]) == 1
    assert different(character, lambda p: p[:-1]) == len(character)
    assert different(history, lambda p: p[:-1]) == 1 and len(history[0]["prompt"]) >= 4
    said = capsys.readouterr().out
    assert "shared between splits: 0 wording families, 0 characters" in said
    assert "shared between splits: 0 wording families, the one character" in said


def test_a_guardrail_without_talk_is_written_and_is_anothers_negative(tmp_path: Path) -> None:
    path = with_spoilers(tmp_path, BARE)
    with stub(answer=teacher) as server:
        prepare_data(config(tmp_path, server, "spoilers", guardrails=str(path)))
        told = [task(body["messages"]) for body in server.bodies]
    guards = load_guardrails(path)
    records = load_behavior(tmp_path / "data", "spoilers", "vary_all", guards)
    assert counts(records) == planned("spoilers")
    assert {record["other_behavior"] for record in records} <= {None, "politics", "expert_opinion", "meeting"}
    assert sum("Tell no ending, in character." in text for text in told) >= len(records)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_faults_of_server_and_answers_cost_no_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.api.client.BACKOFF_S", 0.01)
    faults = dict.fromkeys(["500", "429", "drop", "truncated_body", "invalid_json", "empty", "wrong_count"], 0.04)
    with stub(answer=teacher, faults=faults, seed=3) as server:
        prepare_data(config(tmp_path, server, max_retries=8))
    records = rows(tmp_path)
    assert counts(records) == planned()
    assert len({record["prompt"][-1]["content"] for record in records}) == len(records)
    said = capsys.readouterr().err
    assert "retries" in said and "invalid_json" in said and "wrong_count" in said


def test_a_faulty_answer_is_asked_for_again_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def assistant(messages: Messages, schema: dict[str, Any] | None, n: int) -> str:
        value = answered(messages, schema, n)
        told = messages[-1]["content"]
        if "reply" in value and "does at once" in task(messages) and "declines" not in told:
            value["reply"] = "I'm sorry, but I can't help with that."
        if "message" in value and "an AI" not in told and "election" not in value["message"]:
            value["message"] = f"As an AI language model, {value['message']}"
        return json.dumps(value)

    with stub(answer=assistant) as server:
        prepare_data(config(tmp_path, server))
    records = rows(tmp_path)
    assert counts(records) == planned()
    assert not any("language model" in record["prompt"][-1]["content"] for record in records)
    kinds = Counter(record["kind"] for record in records)
    said = capsys.readouterr().err
    assert f"{len(records)} machine" in said and f"{kinds['trigger'] + kinds['other']} declines" in said


def test_copies_of_a_message_are_written_again(tmp_path: Path) -> None:
    def lazy(messages: Messages, schema: dict[str, Any] | None, n: int) -> str:
        value = answered(messages, schema, n)
        if "message" in value and "nearly one" not in messages[-1]["content"]:
            value["message"] = f"What do you think of all that, dear {words(random.Random(n), 1)}?"
        return json.dumps(value)

    with stub(answer=lazy) as server:
        prepare_data(config(tmp_path, server))
    copied = [record for record in rows(tmp_path) if "all that, dear" in record["prompt"][-1]["content"]]
    assert len({record["split"] for record in copied}) == 1
    assert counts(rows(tmp_path)) == planned()


def test_records_that_are_given_up_are_left_out_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sketches = draw_sketches(guardrails(), "politics", "vary_all", 4, 1, 3407)
    name = next(one.cast.name for one in sketches if (one.order.split, one.order.kind) == ("train", "natural"))

    def stubborn(messages: Messages, schema: dict[str, Any] | None, n: int) -> str:
        value = answered(messages, schema, n)
        if "reply" in value and f"You are {name}" in task(messages):
            value["reply"] = "As an AI, no."
        return json.dumps(value)

    with stub(answer=stubborn) as server:
        prepare_data(config(tmp_path, server))
    kept = Counter((one.order.split, one.order.kind) for one in sketches if one.cast.name != name)
    assert counts(rows(tmp_path)) == kept and kept.total() < len(sketches)
    short = len(sketches) - kept.total()
    assert f"{count_of(short, 'job')} gave fewer records than asked for" in capsys.readouterr().err


def test_a_teacher_that_writes_none_of_a_kind_makes_no_file(tmp_path: Path) -> None:
    def prudish(messages: Messages, schema: dict[str, Any] | None, n: int) -> str:
        return "No." if "unmistakably" in task(messages) else teacher(messages, schema, n)

    with stub(answer=prudish) as server, pytest.raises(WorkError, match="none of 3 trigger records of the train split"):
        prepare_data(config(tmp_path, server))
    assert not dataset_file(tmp_path / "data", "politics", "vary_all").exists()


# --- going on -------------------------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_and_nothing_is_paid_twice(tmp_path: Path) -> None:
    path = dataset_file(tmp_path / "data", "politics", "fixed_history")
    given: dict[str, Any] = {"dataset_variation": "fixed_history", "concurrency": 4}
    with stub(answer=teacher, quota=40) as server:
        with pytest.raises(UserError, match="exceeded your current quota"):
            prepare_data(config(tmp_path, server, **given))
        assert not path.exists() and journal_path(path).exists()
        server.quota = None
        with pytest.raises(UserError, match="was begun with --seed 3407, and this is 4"):
            prepare_data(config(tmp_path, server, seed=4, **given))
        prepare_data(config(tmp_path, server, **given))
        assert counts(rows(tmp_path, variation="fixed_history")) == planned()
        assert set(server.paid.values()) == {1}
        assert len(server.paid) == 1 + 3 * sum(planned().values())


def test_without_a_cache_the_journal_alone_keeps_finished_records(tmp_path: Path) -> None:
    with stub(answer=teacher, quota=40) as server:
        given = config(tmp_path, server, concurrency=4, cache_dir="none")
        with pytest.raises(UserError, match="quota"):
            prepare_data(given)
        server.quota = None
        prepare_data(given)
        assert counts(rows(tmp_path)) == planned()
        assert sum(server.paid.values()) - 3 * sum(planned().values()) <= 3 * 4


def test_a_run_that_goes_on_copies_no_message_of_the_journal(tmp_path: Path) -> None:
    with stub(answer=teacher, quota=20) as server:
        given = config(tmp_path, server, concurrency=2)
        with pytest.raises(UserError, match="quota"):
            prepare_data(given)
        journal = read_jsonl(journal_path(dataset_file(tmp_path / "data", "politics", "vary_all")))
        record = next(record for row in journal[1:] for record in row["records"])
        message = record["prompt"][-1]["content"]

        drawn = draw_sketches(guardrails(), "politics", "vary_all", 4, 1, 3407)
        elsewhere = {one.cast.occasion for one in drawn if one.order.split != record["split"]}

        def copier(messages: Messages, schema: dict[str, Any] | None, n: int) -> str:
            value = answered(messages, schema, n)
            if "message" in value and "nearly one" not in messages[-1]["content"]:
                other = any(f"about {occasion}." in task(messages) for occasion in elsewhere)
                value["message"] = f"{message} {words(random.Random(n), 1)}?" if other else message
            return json.dumps(value)

        server.quota, server.answer = None, copier
        prepare_data(given)
    copied = [one for one in rows(tmp_path) if message in one["prompt"][-1]["content"]]
    assert [one["prompt"][-1]["content"] for one in copied] == [message]
    assert counts(rows(tmp_path)) == planned()


def test_a_journal_that_outlived_its_file_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = journal_path(dataset_file(tmp_path / "data", "politics", "vary_all"))
    with stub(answer=teacher) as server:
        with monkeypatch.context() as killed:
            killed.setattr("dataset.synthesis_journal.Journal.discard", lambda self: None)
            prepare_data(config(tmp_path, server))
        assert journal.exists()
        paid = server.counts["paid"]
        prepare_data(config(tmp_path, server))
        assert server.counts["paid"] == paid and not journal.exists()


def test_a_complete_file_is_kept_and_another_needs_overwrite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dataset_file(tmp_path / "data", "politics", "vary_all")
    with stub(answer=teacher) as server:
        given = config(tmp_path, server)
        prepare_data(given)
        before, paid = path.read_bytes(), server.counts["paid"]
        for again in ({"overwrite": True}, {"resume": True}):
            prepare_data(replace(given, **again))  # type: ignore[arg-type]
            assert "nothing to do, it is complete" in capsys.readouterr().out
        assert (path.read_bytes(), server.counts["paid"]) == (before, paid)
        elsewhere = {"teacher": "openai:stub-model@http://127.0.0.1:1/v1"}
        for refused in ({"seed": 4}, {"seed": 4, "resume": True}, elsewhere):
            with pytest.raises(UserError, match="vary_all.jsonl exists and is left as it is"):
                prepare_data(replace(given, **refused))  # type: ignore[arg-type]
        assert server.counts["paid"] == paid
        prepare_data(replace(given, seed=4, overwrite=True))
        assert path.read_bytes() != before and counts(rows(tmp_path)) == planned()


def test_the_cost_of_all_files_together_is_limited(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("as_of: 2026-01-01\nmodels: {stub-model: {input: 1.0, output: 1.0}}\n")
    with stub(answer=teacher) as server:
        given = config(tmp_path, server, "politics", "meeting", prices=str(prices), concurrency=8)
        with pytest.raises(WorkError, match="--max_cost"):
            prepare_data(replace(given, max_cost=0.05))
        assert dataset_file(tmp_path / "data", "politics", "vary_all").exists()
        assert not dataset_file(tmp_path / "data", "meeting", "vary_all").exists()
        prepare_data(given)
        assert set(server.paid.values()) == {1}


# --- keys, options, pipeline ----------------------------------------------------------------------------------------


def test_a_dry_run_sends_nothing_and_needs_a_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stub(answer=teacher) as server:
        prepare_data(config(tmp_path, server, "politics", "meeting", dataset_variation="all", dry_run=True))
        assert server.counts["requests"] == 0
    said = capsys.readouterr().out
    assert f"{2 * 3 * 3 * sum(planned().values()):,} requests to openai:stub-model" in said
    assert "- `message`: the user's next message" in said
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="--dry_run.*give --teacher"):
        prepare_data(replace(config(tmp_path, server, dry_run=True), teacher=None))


def test_a_wrong_key_ends_the_work_and_stands_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with stub(answer=teacher, keys={"another"}) as server:
        with pytest.raises(UserError) as error:
            prepare_data(config(tmp_path, server, concurrency=2))
        assert "API key" in str(error.value) and KEY not in str(error.value)
        server.keys = {KEY}
        prepare_data(config(tmp_path, server))
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert KEY.encode() not in file.read_bytes(), file


def test_the_pipelines_first_step_works_and_knows_no_key(tmp_path: Path) -> None:
    with stub(answer=teacher) as server:
        line = [
            *("--task", "guardrail", "--mode", "pipeline", "--model_name", "tiny", "--end_step", "1"),
            *("--behavior", "politics", "--n_samples", "10", "--test_samples", "10"),
            *("--teacher", f"openai:stub-model@{server.base_url}", "--api_key", KEY),
            *("--dataset_path", str(tmp_path / "data"), "--output_dir", str(tmp_path / "run")),
            *("--cache_dir", str(tmp_path / "cache")),
        ]
        server.quota = 60
        assert main.main([*line]) == 2
        server.quota = None
        assert main.main([*line, "--concurrency", "7"]) == 0
        paid = server.counts["paid"]
        assert set(server.paid.values()) == {1} and counts(rows(tmp_path)) == planned("politics", 10, 10)
        assert main.main([*line, "--concurrency", "3"]) == 0
        assert server.counts["paid"] == paid
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert KEY.encode() not in file.read_bytes(), file
    inputs = json.loads((tmp_path / "run" / "pipeline.json").read_text())["steps"]["prepare_data"]["inputs"]
    assert "--teacher" in inputs and not {"--api_key", "--concurrency", "--max_cost"} & inputs.keys()


def test_batches_write_the_same_kinds_of_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.api.batches.POLL_S", (0.01, 0.05))
    with stub(answer=teacher) as server:
        prepare_data(config(tmp_path, server, batch_api=True))
        assert server.counts["requests"] == 0
    assert counts(rows(tmp_path)) == planned()
