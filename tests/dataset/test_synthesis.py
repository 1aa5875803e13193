import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.api_stub import Stub, stub
from dataset.synthesis import (
    Desk,
    GivenUp,
    Job,
    Outcome,
    Unanswered,
    Written,
    ask_until,
    open_journal,
    provenance,
    synthesize,
    write_valid,
)
from dataset.synthesis_journal import journal_path
from utils.api.client import ApiClient, run
from utils.api.endpoints import Endpoint
from utils.api.options import ApiOptions
from utils.api.types import Answer, Ask
from utils.errors import UserError, WorkError
from utils.files import read_jsonl

SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string"}},
    "required": ["word"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.api.client.BACKOFF_S", 0.01)


@pytest.fixture
def options(tmp_path: Path) -> ApiOptions:
    return ApiOptions(cache_dir=str(tmp_path / "cache"), max_retries=1, request_timeout=5)


def endpoint(server: Stub) -> Endpoint:
    return Endpoint("openai", "m", server.base_url)


def words(*said: str) -> Any:
    """A teacher that says these words, one after another."""
    waiting: Iterator[str] = iter(said)
    return lambda messages, schema, n: json.dumps({"word": next(waiting)})


def ask(text: str = "Say a word.", sample: int = 0) -> Ask:
    return Ask(({"role": "user", "content": text},), schema=SCHEMA, sample=sample)


def not_bad(value: Any) -> list[str]:
    return ["bad: this word is bad", "bad: indeed", "Say a good one."] if value["word"].startswith("bad") else []


def write_one(
    server: Stub, options: ApiOptions, take: Any = not_bad, attempts: int = 4, request: Ask | None = None
) -> tuple[Desk, Written | Exception]:
    """One answer; the desk, and what was written or raised."""

    async def work(client: ApiClient) -> tuple[Desk, Written | Exception]:
        desk = Desk(client.ask, attempts)
        try:
            return desk, await write_valid(desk, request or ask(), take)
        except (GivenUp, Unanswered) as error:
            return desk, error

    return run(endpoint(server), options, work)


# --- one answer -----------------------------------------------------------------------------------------------------


def test_a_rejected_answer_goes_back_with_all_reasons_and_the_next_is_taken(options: ApiOptions) -> None:
    with stub(answer=words("bad1", "bad2", "good")) as server:
        desk, written = write_one(server, options)
    assert isinstance(written, Written) and written.value == {"word": "good"}
    assert desk.rejections == {"bad": 4}
    first, second, third = (body["messages"] for body in server.bodies)
    assert second[: len(first)] == first and third[: len(second)] == second
    assert second[-2] == {"role": "assistant", "content": '{"word": "bad1"}'}
    assert second[-1]["role"] == "user"
    assert "- this word is bad\n- indeed\n- Say a good one." in second[-1]["content"]
    assert third[-2]["content"] == '{"word": "bad2"}'


def test_after_its_attempts_an_answer_is_given_up_with_the_last_reasons(options: ApiOptions) -> None:
    with stub(answer=words("bad1", "bad2", "good")) as server:
        desk, error = write_one(server, options, attempts=2)
    assert isinstance(error, GivenUp) and error.reasons[0] == "bad: this word is bad"
    assert server.counts["requests"] == 2 and desk.rejections == {"bad": 4}


@pytest.mark.parametrize(("fault", "reason"), [("empty", "empty"), ("cut", "truncated")])
def test_where_there_is_nothing_to_answer_to_the_same_words_are_sent_again(
    options: ApiOptions, fault: str, reason: str
) -> None:
    with stub(answer=words("lost", "also lost", "good"), script=[fault, fault]) as server:
        desk, written = write_one(server, options)
    assert isinstance(written, Written) and written.value == {"word": "good"}
    assert desk.rejections == {reason: 2}
    assert server.bodies[0] == server.bodies[1] == server.bodies[2]


@pytest.mark.parametrize(("fault", "reason"), [("invalid_json", "invalid_json"), ("off_schema", "off_schema")])
def test_broken_answers_are_shown_to_their_author(options: ApiOptions, fault: str, reason: str) -> None:
    with stub(answer=words("lost", "good"), script=[fault]) as server:
        desk, written = write_one(server, options)
    assert isinstance(written, Written) and desk.rejections == {reason: 1}
    assert [message["role"] for message in server.bodies[1]["messages"]] == ["user", "assistant", "user"]
    assert "JSON" in server.bodies[1]["messages"][-1]["content"]


def test_a_request_that_the_provider_refuses_is_not_repeated(options: ApiOptions) -> None:
    with stub(answer=words("good"), script=["400"]) as server:
        desk, error = write_one(server, options)
    assert isinstance(error, GivenUp) and error.reasons[0].startswith("bad_request: ")
    assert server.counts["requests"] == 1 and desk.rejections == {"bad_request": 1}


def test_a_text_without_schema_is_its_own_value(options: ApiOptions) -> None:
    seen: list[Any] = []
    with stub(answer=lambda messages, schema, n: "A plain text.") as server:
        _, written = write_one(
            server,
            options,
            take=lambda value: seen.append(value) or [],
            request=Ask(({"role": "user", "content": "?"},)),
        )
    assert isinstance(written, Written) and written.value == "A plain text." and seen == ["A plain text."]


def test_who_takes_in_parts_sees_each_whole_answer(options: ApiOptions) -> None:
    seen: list[Answer] = []

    def look(answer: Answer) -> list[str]:
        seen.append(answer)
        return not_bad(answer.value)

    async def work(client: ApiClient) -> Answer:
        return await ask_until(Desk(client.ask), ask(), look)

    with stub(answer=words("bad", "good")) as server:
        answer = run(endpoint(server), options, work)
    assert [one.request_id for one in seen] == ["req_0", "req_1"] and answer == seen[1]
    assert provenance(answer, "v1") == {
        "model": "m",
        "prompt_version": "v1",
        "time": answer.time,
        "request_id": "req_1",
    }


def test_keys_are_claimed_all_or_none() -> None:
    desk = Desk(lambda ask: None)  # type: ignore[arg-type, return-value]
    assert desk.claim(["a", "b"])
    assert not desk.claim(["c", "a"]) and desk.claim(["c"])
    desk.release(["a"])
    assert desk.claim(["a"])


# --- all jobs -------------------------------------------------------------------------------------------------------


async def write(desk: Desk, job: Job) -> Outcome:
    """A record of one word, no word twice."""

    def take(value: Any) -> list[str]:
        return not_bad(value) or ([] if desk.claim([value["word"]]) else ["duplicate: said already"])

    written = await write_valid(desk, ask(f"Say a word for {job.id}."), take)
    return Outcome([{"job": job.id, "word": written.value["word"]}])


def make(
    server: Stub, options: ApiOptions, output: Path, jobs: list[str], attempts: int = 3, write: Any = write
) -> list[dict[str, Any]]:
    with open_journal(output, {"--seed": 1}) as journal:
        return synthesize(
            endpoint(server),
            options,
            [Job(name) for name in jobs],
            write,
            journal,
            keys_of=lambda record: [record["word"]],
            label="words",
            attempts=attempts,
        )


def journaled(output: Path) -> list[str]:
    return [row["job"] for row in read_jsonl(journal_path(output))[1:]]


def by_number(messages: Any, schema: Any, n: int) -> str:
    return json.dumps({"word": f"word{n}"})


def test_records_come_in_the_order_of_the_jobs_whatever_was_done_first(tmp_path: Path, options: ApiOptions) -> None:
    names = [f"job{n}" for n in range(20)]
    with stub(answer=by_number, script=["429_retry_after", "500"], retry_after="0.2") as server:
        records = make(server, options, tmp_path / "out.json", names)
    assert [record["job"] for record in records] == names
    assert journaled(tmp_path / "out.json") != names and sorted(journaled(tmp_path / "out.json")) == sorted(names)


def test_a_second_run_asks_only_for_what_is_not_done(tmp_path: Path, options: ApiOptions) -> None:
    options.cache_dir = "none"
    with stub(answer=by_number) as server:
        first = make(server, options, tmp_path / "out.json", ["a", "b"])
        more = make(server, options, tmp_path / "out.json", ["a", "c", "b"])
        assert server.counts["requests"] == 3
    assert [more[0], more[2]] == first and more[1]["job"] == "c"


def test_a_duplicate_is_asked_for_again_also_of_an_earlier_run(
    tmp_path: Path, options: ApiOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    options.concurrency = 1
    with stub(answer=words("tree", "tree", "leaf")) as server:
        make(server, options, tmp_path / "out.json", ["a"])
        records = make(server, options, tmp_path / "out.json", ["a", "b"])
    assert [record["word"] for record in records] == ["tree", "leaf"]
    assert "said already" in server.bodies[2]["messages"][-1]["content"]
    assert "asked for again or given up in this run: 1 duplicate" in capsys.readouterr().err


def test_a_job_that_is_given_up_is_final_and_reported(
    tmp_path: Path, options: ApiOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    options.concurrency = 1
    with stub(answer=words("bad1", "bad2", "good")) as server:
        records = make(server, options, tmp_path / "out.json", ["a", "b"], attempts=2)
        assert [record["job"] for record in records] == ["b"]
        assert make(server, options, tmp_path / "out.json", ["a", "b"], attempts=2) == records
        assert server.counts["requests"] == 3
    shown = capsys.readouterr().err
    assert "words: 1 record from 2 of 2 jobs" in shown and "1 job gave fewer records than asked for" in shown
    assert "1 x bad; Say a good one." in shown


def test_a_job_without_an_answer_is_not_done_and_the_next_run_takes_it_up(tmp_path: Path, options: ApiOptions) -> None:
    options.concurrency = 1
    with stub(answer=by_number, script=["ok", "500", "500"]) as server:
        with pytest.raises(
            WorkError, match=r"words: 1 of 3 jobs got no answer \(b: .*\); the others are safe in .*out"
        ):
            make(server, options, tmp_path / "out.json", ["a", "b", "c"])
        assert journaled(tmp_path / "out.json") == ["a", "c"]
        records = make(server, options, tmp_path / "out.json", ["a", "b", "c"])
        assert [record["job"] for record in records] == ["a", "b", "c"] and server.counts["requests"] == 5


def test_an_empty_account_stops_all_at_once_and_what_is_done_stays(
    tmp_path: Path, options: ApiOptions, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"job{n}" for n in range(50)]
    options.concurrency = 4
    with stub(answer=by_number, quota=10) as server:
        with pytest.raises(UserError, match="You exceeded your current quota"):
            make(server, options, tmp_path / "out.json", names)
        assert server.counts["requests"] <= 10 + options.concurrency
        done = journaled(tmp_path / "out.json")
        assert len(done) == 10
    assert "stopped; what is finished is safe in" in capsys.readouterr().err
    with stub(answer=lambda messages, schema, n: by_number(messages, schema, n + 1000)) as server:
        records = make(server, options, tmp_path / "out.json", names)
        assert [record["job"] for record in records] == names and server.counts["requests"] == 40
    assert len({record["word"] for record in records}) == 50


def test_a_bug_in_a_writer_is_no_silent_loss(tmp_path: Path, options: ApiOptions) -> None:
    async def faulty(desk: Desk, job: Job) -> Outcome:
        if job.id == "b":
            raise KeyError("a bug")
        return await write(desk, job)

    options.concurrency = 1
    with stub(answer=by_number) as server, pytest.raises(KeyError, match="a bug"):
        make(server, options, tmp_path / "out.json", ["a", "b", "c"], write=faulty)
    assert journaled(tmp_path / "out.json") == ["a"]


def test_two_jobs_of_one_name_are_a_bug(tmp_path: Path, options: ApiOptions) -> None:
    with stub() as server, pytest.raises(ValueError, match="two jobs have one id"):
        make(server, options, tmp_path / "out.json", ["a", "a"])


def test_with_batches_all_jobs_ask_together_in_rounds(
    tmp_path: Path, options: ApiOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.api.batches.POLL_S", (0.01, 0.01))
    options.batch_api = True

    def answer(messages: Any, schema: Any, n: int) -> str:
        asked_again = len(messages) > 1
        return json.dumps({"word": f"good{n}" if asked_again or n % 2 else f"bad{n}"})

    names = [f"job{n}" for n in range(10)]
    with stub(answer=answer) as server:
        records = make(server, options, tmp_path / "out.json", names)
        assert server.desk is not None
        sizes = [len(batch.requests) for batch in server.desk.batches.values()]
        assert make(server, options, tmp_path / "out.json", names) == records
        assert len(server.desk.batches) == 2
    assert sizes == [10, 5] and server.counts["requests"] == 0
    assert [record["job"] for record in records] == names
