from pathlib import Path
from typing import Any

import pytest

from dataset.records import load_records, validate_secret
from dataset.synthesis_journal import Journal, journal_path, open_journal
from prompts.secret import conversation
from utils.errors import UserError
from utils.files import append_jsonl, read_jsonl

OPTIONS = {"--model": "openai:m", "--seed": 1}


def record(number: int) -> dict[str, Any]:
    return {"prompt": conversation("Why?"), "visible": f"Because {number}.", "hidden": f"I wonder about {number}."}


def test_finished_jobs_are_there_when_it_is_opened_again(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    with open_journal(output, OPTIONS) as journal:
        journal.append("a", [record(1)], [])
        journal.append("b", [], ["leak: said it"])
    with open_journal(output, OPTIONS) as journal:
        assert journal.done["a"].records == [record(1)]
        assert (journal.done["b"].records, journal.done["b"].reasons) == ([], ["leak: said it"])


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_torn_last_row_is_a_job_that_is_not_done(tmp_path: Path, cut: int) -> None:
    output = tmp_path / "out.json"
    with open_journal(output, OPTIONS) as journal:
        journal.append("a", [record(1)], [])
        journal.append("b", [record(2)], [])
    path = journal_path(output)
    path.write_bytes(path.read_bytes()[: -1 - cut])
    with open_journal(output, OPTIONS) as journal:
        assert list(journal.done) == ["a"]
        journal.append("b", [record(3)], [])
    with open_journal(output, OPTIONS) as journal:
        assert journal.done["b"].records == [record(3)]


def test_other_options_are_refused_by_name_and_nothing_is_lost(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    with open_journal(output, OPTIONS) as journal:
        journal.append("a", [record(1)], [])
    before = journal_path(output).read_bytes()
    with (
        pytest.raises(
            UserError, match=r"out\.json\.journal\.jsonl was begun with --seed 1, and this is 2; give the same"
        ),
        open_journal(output, {**OPTIONS, "--seed": 2}),
    ):
        pass
    with (
        pytest.raises(UserError, match="begun with --category None"),
        open_journal(output, {**OPTIONS, "--category": 1}),
    ):
        pass
    with (
        pytest.raises(UserError, match="begun with --seed 1, and this is None"),
        open_journal(output, {"--model": "openai:m"}),
    ):
        pass
    assert journal_path(output).read_bytes() == before


def test_a_journal_with_nothing_done_holds_nobody_to_its_options_and_leaves(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    append_jsonl(journal_path(output), {"journal": 1, "options": OPTIONS})
    with open_journal(output, {**OPTIONS, "--seed": 2}):
        assert read_jsonl(journal_path(output)) == [{"journal": 1, "options": {**OPTIONS, "--seed": 2}}]
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_is_under_way_holds_the_next_run_to_its_options(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    with open_journal(output, OPTIONS) as journal:
        journal.batch_state.write_text("{}")
    with pytest.raises(UserError, match="begun with --seed 1"), open_journal(output, {**OPTIONS, "--seed": 2}):
        pass
    with open_journal(output, OPTIONS) as journal:
        journal.append("a", [record(1)], [])
        journal.assemble([record(1)], validate_secret)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_one_process_at_a_time_also_by_another_name_of_the_file(tmp_path: Path) -> None:
    output, link = tmp_path / "out.json", tmp_path / "link.json"
    link.symlink_to(output)
    with open_journal(output, OPTIONS) as journal:
        journal.append("a", [record(1)], [])
        for name in (output, link):
            with pytest.raises(UserError, match="another process is writing it"), open_journal(name, OPTIONS):
                pass
    with open_journal(link, OPTIONS) as journal:
        assert list(journal.done) == ["a"]


def test_the_output_is_written_at_the_end_and_the_journal_goes(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl.gz"
    with open_journal(output, OPTIONS) as journal:
        journal.append("a", [record(1)], [])
        assert not output.exists()
        journal.assemble([record(1)], validate_secret)
    assert load_records(output, validate_secret) == [record(1)]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.gz"]


def test_an_invalid_record_is_not_written_and_the_journal_stays(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    wrong = {**record(1), "hidden": ""}
    with pytest.raises(UserError, match="hidden is empty"), open_journal(output, OPTIONS) as journal:
        journal.append("a", [wrong], [])
        journal.assemble([wrong], validate_secret)
    assert not output.exists() and journal_path(output).exists()


def test_a_kill_between_writing_the_output_and_removing_the_journal_is_no_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.json"

    def killed(journal: Journal) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), open_journal(output, OPTIONS) as journal:
        patched.setattr(Journal, "discard", killed)
        journal.append("a", [record(1)], [])
        journal.assemble([record(1)], validate_secret)
    written = output.read_bytes()
    assert journal_path(output).exists()
    with open_journal(output, OPTIONS) as journal:
        assert list(journal.done) == ["a"]
        journal.assemble([record(1)], validate_secret)
    assert output.read_bytes() == written and not journal_path(output).exists()


def test_an_old_output_is_not_replaced_unless_asked_and_that_is_said_before_any_work(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    output.write_text("old")
    for rows in ([], [{"journal": 1, "options": OPTIONS}, {"job": "a", "records": [record(1)], "reasons": []}]):
        for row in rows:
            append_jsonl(journal_path(output), row)
        with pytest.raises(UserError, match="exists and is left as it is"), open_journal(output, OPTIONS):
            pass
        assert journal_path(output).exists() == bool(rows)
    with open_journal(output, OPTIONS, overwrite=True) as journal:
        journal.assemble([record(1)], validate_secret, overwrite=True)
    assert load_records(output, validate_secret) == [record(1)]


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        (
            [{"some": "row"}, {"job": "a", "records": []}],
            "its first row is not the header of a journal of this version",
        ),
        (
            [{"journal": 99, "options": OPTIONS}, {"job": "a", "records": []}],
            "not the header of a journal of this version",
        ),
        ([{"some": "row"}], "its first row is not the header of a journal of this version"),
        ([{"journal": 1, "options": OPTIONS}, {"records": []}], "a row is no finished job"),
        ([{"journal": 1, "options": OPTIONS}, {"job": "a", "records": 3}], "a row is no finished job"),
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path, rows: list[Any], fault: str) -> None:
    output = tmp_path / "out.json"
    for row in rows:
        append_jsonl(journal_path(output), row)
    before = journal_path(output).read_bytes()
    with pytest.raises(UserError, match=fault), open_journal(output, OPTIONS):
        pass
    assert journal_path(output).read_bytes() == before
