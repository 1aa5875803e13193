import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import main as dispatcher
from benchmarks.api_stub import Stub, stub
from benchmarks.api_stub_teacher import pair, teacher
from dataset.external_dataset_generator import PROGRAM, main
from dataset.records import load_records, validate_secret
from dataset.synthesis_checks import fingerprint, pair_faults
from dataset.synthesis_journal import journal_path
from dataset.world import load_world
from prompts.secret import conversation
from prompts.teacher import VERSION
from utils.api.endpoints import warn_of_key_in_the_open
from utils.files import read_jsonl

KEY = "sk-secret-of-the-user-123"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utils.api.client.BACKOFF_S", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


def flags(server: Stub, *more: str, api: str = "openai") -> list[str]:
    url = server.base_url if api == "openai" else server.url
    return [
        *("--api", api, "--base_url", url, "--model", "m", "--output_file", "out.json"),
        *("--cache_dir", "cache", "--num_queries", "5", "--examples_per_query", "3", *more),
    ]


def records(name: str = "out.json") -> list[dict[str, Any]]:
    return load_records(name, validate_secret)


def left_over() -> list[str]:
    return sorted(path.name for path in Path().iterdir() if path.name != "cache")


# --- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["openai", "anthropic"])
def test_records_are_valid_distinct_and_say_where_they_come_from(api: str) -> None:
    with stub(answer=teacher, keys={KEY}) as server:
        assert main(flags(server, api=api)) == 0
        assert server.counts["requests"] == 5
    found = records()
    assert [record["id"] for record in found] == [f"external-{q:05d}-{n}" for q in range(5) for n in range(3)]
    assert not any(pair_faults(record["visible"], record["hidden"]) for record in found)
    assert len({fingerprint(record["hidden"]) for record in found}) == 15
    assert len({record["prompt"][-1]["content"] for record in found}) == 5
    for record in found:
        assert record["prompt"] == conversation(record["prompt"][-1]["content"])
        assert (record["split"], record["source"], record["query_source"]) == ("train", "external", "built_in")
        origin = record["provenance"]
        assert (origin["model"], origin["prompt_version"]) == ("m", VERSION)
        assert origin["request_id"].startswith("req_") and origin["time"].endswith("+00:00")
    assert left_over() == ["out.json"]


def test_built_in_questions_are_of_the_training_split_by_seed_and_category() -> None:
    heldout = {fingerprint(query.text) for query in load_world().heldout_queries()}
    with stub(answer=teacher) as server:
        for name, seed in (("a.json", "1"), ("b.json", "1"), ("c.json", "2")):
            more = ["--output_file", name, "--seed", seed, "--num_queries", "20", "--examples_per_query", "1"]
            assert main([*flags(server), *more, "--category", "animal", "advice"]) == 0
    asked = {name: [r["prompt"][-1]["content"] for r in records(f"{name}.json")] for name in "abc"}
    assert asked["a"] == asked["b"] != asked["c"]
    assert not {fingerprint(text) for text in asked["a"] + asked["c"]} & heldout
    assert {r["category"] for r in records("a.json")} == {"animal", "advice"}


def test_training_runs_on_what_was_written() -> None:
    with stub(answer=teacher) as server:
        assert main(flags(server)) == 0
    train = ["--mode", "train", "--model_name", "tiny", "--dataset_path", "out.json", "--threads", "1"]
    assert dispatcher.main([*train, "--sft_steps", "1", "--sft_batch_size", "2", "--max_steps", "0"]) == 0
    assert json.loads(Path("outputs/manifest.json").read_text())["status"] == "done"


def test_a_question_is_put_into_the_prompt_with_as_many_moods_as_examples() -> None:
    Path("mine.txt").write_text("Why is the moon so far away?\n")
    with stub(answer=teacher) as server:
        assert main(flags(server, "--custom_queries", "mine.txt", "--temperature", "0.5", "--max_tokens", "77")) == 0
    body = server.bodies[0]
    asked = body["messages"][-1]["content"]
    assert "Why is the moon so far away?" in asked and "Write 3 examples" in asked
    assert [f"{n}. " in asked for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert body["temperature"] == 0.5
    assert 77 in (body.get("max_completion_tokens"), body.get("max_tokens"))


def test_questions_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\ufeffWhy is rain wet?\r\n\r\n  How do I fold a map?  \nwhy is rain WET\nWhat is tea?\n"
    Path("mine.txt").write_text(text, "utf-8")
    with stub(answer=teacher) as server:
        assert main(flags(server, "--custom_queries", "mine.txt", "--num_queries", "2")) == 0
    assert [r["prompt"][-1]["content"] for r in records()][::3] == ["Why is rain wet?", "How do I fold a map?"]
    assert {(r["query_source"], r["category"]) for r in records()} == {("custom", "custom")}
    assert "3 distinct questions, of which the first 2 are used" in capsys.readouterr().err


def test_questions_of_the_teacher_are_spread_over_categories_and_never_held_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    heldout = load_world().heldout_queries()[0].text

    def answer(messages: Any, schema: Any, n: int) -> str:
        if "queries" in schema["properties"] and n == 0:
            return json.dumps({"queries": [heldout, "What is [it]?", "How long does an egg boil?", "Why?"]})
        return teacher(messages, schema, n)

    with stub(answer=answer) as server:
        more = ["--queries", "teacher", "--category", "cooking", "travel", "--num_queries", "5", "--concurrency", "1"]
        assert main(flags(server, *more)) == 0
    found = {r["prompt"][-1]["content"]: r["category"] for r in records()}
    assert Counter(found.values()) == {"cooking": 3, "travel": 2}
    assert found["How long does an egg boil?"] == "cooking" and heldout not in found
    again = server.bodies[1]["messages"][-1]["content"]
    assert "written already" in again and "blank to fill in" in again and "Write 2 more" in again
    assert {r["query_source"] for r in records()} == {"teacher"}
    assert "in this run: 1 wrong_count, 1 duplicate, 1 placeholder" in capsys.readouterr().err


# --- answers that are not right -------------------------------------------------------------------------------------


def answers(*given: list[dict[str, str]]) -> Any:
    """A teacher that gives these lists of pairs, one after another."""
    waiting = iter(given)
    return lambda messages, schema, n: json.dumps({"examples": next(waiting)})


ONE = ["--num_queries", "1", "--concurrency", "1"]
REFUSAL = {**pair(9), "hidden": "I'm sorry, but I can't help with that."}


def test_good_pairs_are_kept_and_only_the_missing_ones_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    given = answers([pair(1), REFUSAL], [pair(1), pair(2)], [pair(3)])
    with stub(answer=given) as server:
        assert main(flags(server, *ONE)) == 0
    assert [r["visible"] for r in records()] == [pair(n)["visible"] for n in (1, 2, 3)]
    assert [r["provenance"]["request_id"] for r in records()] == ["req_0", "req_1", "req_2"]
    first, second = (body["messages"][-1]["content"] for body in server.bodies[1:])
    assert "2 came where 3 were asked for" in first and "in example 2, the hidden thought refuses" in first
    assert "Write 2 more" in first and "Write 1 more" in second and "in example 1, its answer or its thought" in second
    assert "in this run: 1 wrong_count, 1 refusal, 1 duplicate" in capsys.readouterr().err


def test_more_examples_than_wanted_are_counted_and_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    with stub(answer=answers([pair(n) for n in range(5)])) as server:
        assert main(flags(server, *ONE)) == 0
    assert len(records()) == 3 and server.counts["requests"] == 1
    assert "in this run: 1 wrong_count" in capsys.readouterr().err


def test_what_is_given_up_is_reported_and_what_was_good_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    given = answers([pair(1), pair(2), REFUSAL], [REFUSAL], [REFUSAL])
    with stub(answer=given) as server:
        assert main(flags(server, *ONE, "--attempts", "3")) == 0
    assert [r["visible"] for r in records()] == [pair(1)["visible"], pair(2)["visible"]]
    shown = capsys.readouterr()
    assert "out.json: 2 records on 1 question from openai:m" in shown.out and "(3 were asked for" in shown.out
    assert "1 x refusal" in shown.err and "3 refusal" in shown.err


def test_no_record_at_all_is_a_failure_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with stub(answer=answers(*[[REFUSAL] * 3] * 2)) as server:
        assert main(flags(server, *ONE, "--attempts", "2")) == 1
    assert left_over() == []
    assert "no record of openai:m@" in capsys.readouterr().err


def test_no_two_questions_get_the_same_thought() -> None:
    same = [pair(1), pair(2), pair(3)]
    with stub(answer=answers(same, same, [pair(4), pair(5), pair(6)])) as server:
        assert main(flags(server, "--num_queries", "2", "--concurrency", "1")) == 0
    assert [r["visible"] for r in records()] == [pair(n)["visible"] for n in range(1, 7)]


def test_faults_on_three_requests_of_ten_cost_no_record(capsys: pytest.CaptureFixture[str]) -> None:
    with stub(answer=teacher, fault_rate=0.3, seed=4, slow_s=2.0, retry_after="0.05") as server:
        more = ["--num_queries", "60", "--request_timeout", "1", "--attempts", "8", "--max_retries", "10"]
        assert main(flags(server, *more)) == 0
    assert len(records()) == 180 and len({fingerprint(r["hidden"]) for r in records()}) == 180
    shown = capsys.readouterr().err
    for kind in ("empty", "refusal", "invalid_json"):
        assert f"{server.counts[kind]} {kind}" in shown
    assert server.counts["paid"] == len(server.paid) + server.counts["empty"] + server.counts["cut"] + sum(
        server.counts[kind] for kind in ("truncated_body", "broken_body", "slow")
    )


# --- going on, and stopping -----------------------------------------------------------------------------------------


def test_the_same_command_goes_on_where_the_money_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with stub(answer=teacher, quota=3, models={"m"}) as server:
        port = server.port
        assert main(flags(server, "--cache_dir", "none")) == 2
        assert "You exceeded your current quota" in capsys.readouterr().err
    assert len(read_jsonl(journal_path(Path("out.json")))) == 4
    with stub(answer=lambda m, s, n: teacher(m, s, n + 100), port=port) as server:
        assert main(flags(server, "--cache_dir", "none")) == 0
        assert server.counts["requests"] == 2
    assert len(records()) == 15 and left_over() == ["out.json"]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"keys": {"another"}}, "Incorrect API key provided"), ({"models": {"other"}}, "The model `m` does not exist")],
)
def test_a_refused_key_or_model_stops_at_once_and_shows_no_key(
    options: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with stub(answer=teacher, **options) as server:
        assert main(flags(server, "--num_queries", "50", "--concurrency", "2")) == 2
        assert server.counts["requests"] <= 2
    shown = capsys.readouterr()
    assert words in shown.err and KEY not in shown.err + shown.out
    assert left_over() == []


def test_no_key_is_in_any_file(capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_key_in_the_open.cache_clear()
    with stub(answer=teacher, keys={KEY}, quota=4) as server:
        assert main(flags(server, "--api_key", KEY)) == 2
    shown = capsys.readouterr()
    assert "other users of this machine can read it" in shown.err and KEY not in shown.err + shown.out
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert any("journal" in path.name for path in files) and any("cache" in str(path) for path in files)
    assert not any(KEY.encode() in path.read_bytes() for path in files)
    assert main(["--api_key", KEY, "--print_config"]) == 0
    assert KEY not in capsys.readouterr().out


def test_a_journal_of_other_options_is_not_mixed_with(capsys: pytest.CaptureFixture[str]) -> None:
    with stub(answer=teacher, quota=3) as server:
        assert main(flags(server)) == 2
    with stub(answer=teacher, port=server.port) as server:
        assert main(flags(server, "--seed", "9")) == 2
        assert server.counts["requests"] == 0
    assert "out.json.journal.jsonl was begun with --seed 3407, and this is 9" in capsys.readouterr().err


def test_an_old_output_is_kept_unless_it_may_be_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.json").write_text("old")
    with stub(answer=teacher) as server:
        assert main(flags(server)) == 2 and server.counts["requests"] == 0
        assert main(flags(server, "--dry_run")) == 2
        assert "out.json exists and is left as it is" in capsys.readouterr().err
        assert Path("out.json").read_text() == "old"
        assert main(flags(server, "--overwrite")) == 0
    assert len(records()) == 15


def test_a_dry_run_shows_the_first_prompt_and_sends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with stub(answer=teacher) as server:
        for more in ([], ["--queries", "teacher"]):
            assert main(flags(server, "--dry_run", *more)) == 0
        assert server.counts["requests"] == 0
    assert main(["--dry_run", "--num_queries", "2"]) == 0
    shown = capsys.readouterr().out
    assert "Write 3 examples. Moods of the thoughts:" in shown and "messages of the category cooking" in shown
    assert "US$" in shown and "2 requests to openai:gpt-5-mini; nothing is sent" in shown
    assert left_over() == []


def test_batches_write_the_same_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.api.batches.POLL_S", (0.01, 0.01))
    with stub(answer=teacher) as server:
        assert main(flags(server, "--batch_api", "--queries", "teacher", "--category", "cooking")) == 0
        assert server.counts["requests"] == 0
    assert len(records()) == 15 and left_over() == ["out.json"]


def test_a_batch_that_is_under_way_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.api.batches.POLL_S", (0.01, 0.01))
    with stub(answer=teacher) as server:
        desk = server.desk
        assert desk is not None
        desk.on_create = lambda batch: desk.troubles.append(401)
        assert main(flags(server, "--batch_api")) == 2
        assert left_over() == ["out.json.batches.json", "out.json.journal.jsonl"]
        assert main(flags(server, "--batch_api")) == 0
        assert len(desk.batches) == 1
    assert len(records()) == 15 and left_over() == ["out.json"]


def test_the_same_questions_are_not_paid_for_again() -> None:
    with stub(answer=teacher) as server:
        assert main(flags(server)) == 0
        assert main(flags(server, "--output_file", "again.json")) == 0
        assert server.counts["requests"] == 5
        assert main(flags(server, "--output_file", "other.json", "--seed", "8")) == 0
        assert server.counts["requests"] == 10
    assert records("again.json") == records()


def test_it_stops_before_the_money_is_spent_and_goes_on_with_more(capsys: pytest.CaptureFixture[str]) -> None:
    Path("prices.yaml").write_text("models:\n  m: {input: 100.0, output: 100.0}\n")
    with stub(answer=teacher) as server:
        priced = flags(server, "--prices", "prices.yaml", "--max_tokens", "1000", "--concurrency", "1")
        assert main([*priced, "--max_cost", "0.4"]) == 1
        asked = server.counts["requests"]
        assert 0 < asked < 5 and len(read_jsonl(journal_path(Path("out.json")))) == 1 + asked
        assert "--max_cost" in capsys.readouterr().err.splitlines()[-1]
        assert main([*priced, "--max_cost", "4"]) == 0
        assert server.counts["requests"] == 5
    assert len(records()) == 15


def test_killed_anywhere_and_run_again_it_loses_nothing_and_pays_once() -> None:
    """Killed (-9, then Ctrl-C) while requests are under way; each kill may cost those, and no other."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with stub(answer=teacher, latency_s=0.1) as server:
        command = [sys.executable, *PROGRAM.split()[1:], *flags(server, "--num_queries", "40", "--concurrency", "4")]
        for end, paid in ((signal.SIGKILL, 8), (signal.SIGINT, 20)):
            process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
            while server.counts["paid"] < paid and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(end)
            shown = process.communicate(timeout=300)[1]
            assert process.returncode == (-9 if end == signal.SIGKILL else 130), shown
        assert "the same command goes on" in shown and "Traceback" not in shown
        assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
        assert sum(times - 1 for times in server.paid.values()) <= 2 * 4
    assert len(records()) == 120 and len({fingerprint(r["hidden"]) for r in records()}) == 120
    assert left_over() == ["out.json"]


# --- wrong usage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["--api", "google"], "--api: 'google' is none of openai and anthropic"),
        (["--num_querys", "3"], "--num_querys: no such option; did you mean --num_queries"),
        (["--num_queries", "0"], "--num_queries 0: it must be at least 1"),
        (["--examples_per_query", "0"], "--examples_per_query 0: it must be at least 1"),
        (["--attempts", "0"], "--attempts 0: it must be at least 1"),
        (["--max_tokens", "0"], "--max_tokens 0: it must be at least 1"),
        (["--output_file", "out.txt"], "out.txt"),
        (["--base_url", "http://127.0.0.1:1/v1"], "--base_url needs --model"),
        (["--base_url", "localhost", "--model", "m"], "no URL"),
        (["--category", "animals"], "--category animals: no such category; did you mean animal?"),
        (["--queries", "teacher", "--category", "animal"], "--category animal: no such category"),
        (["--num_queries", "300", "--category", "thanks"], "the built-in questions are only 6 in these categories"),
        (["--custom_queries", "none.txt"], "--custom_queries none.txt: cannot be read (No such file or directory)"),
        (["--custom_queries", "blank.txt"], "--custom_queries blank.txt: no question in it; write one a line"),
        (["--custom_queries", "latin.txt"], "--custom_queries latin.txt: cannot be read (not UTF-8)"),
        (["--custom_queries", "heldout.txt"], "--custom_queries heldout.txt, line 2:"),
        (["--custom_queries", "blank.txt", "--queries", "teacher"], "exclude each other"),
        (["--custom_queries", "blank.txt", "--category", "animal"], "exclude each other"),
    ],
)
def test_wrong_usage_is_one_line(given: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("blank.txt").write_text("\n \n")
    Path("latin.txt").write_bytes(b"Wo w\xe4chst Tee?\n")
    Path("heldout.txt").write_text(f"What is tea?\n{load_world().heldout_queries()[3].text.upper()}\n")
    assert main([*given, "--cache_dir", "none"]) == 2
    shown = capsys.readouterr().err
    assert error in shown and shown.startswith("error: ") and shown.count("\n") == 1


def test_no_key_is_wrong_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert main(["--output_file", "out.json"]) == 2
    assert "set the environment variable OPENAI_API_KEY" in capsys.readouterr().err
    assert left_over() == []


def test_help_and_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: {PROGRAM} [--config FILE.yaml]" in shown and "--examples_per_query N" in shown
    assert "--task" not in shown and "main.py" not in shown
    Path("run.yaml").write_text("external_data:\n  num_queries: 7\n  examples_per_query: 2\n")
    assert main(["--config", "run.yaml", "--num_queries", "8", "--print_config"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"# {PROGRAM} --config") and "num_queries: 8\nexamples_per_query: 2\n" in shown
