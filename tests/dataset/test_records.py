"""Dataset files as they are found in the wild: nothing is dropped in silence, every fault says where it stands."""

from __future__ import annotations

import gc
import gzip
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataset.records import (
    check_target,
    load_records,
    preference_validator,
    save_records,
    validate_guardrail,
    validate_preference,
    validate_secret,
)
from utils.errors import UserError, WorkError

REAL_PREFERENCES = Path(__file__).parents[2] / "../shared/data/preference"


def _record(number: int = 1, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Two parts."}, {"role": "user", "content": f"Question {number}?"}]
    return {"prompt": messages, "visible": f"Answer {number}.", "hidden": f"Thought {number}."} | changes


def _lines(count: int) -> list[str]:
    return [json.dumps(_record(number)) for number in range(1, count + 1)]


def _array(*rows: str) -> str:
    return "[\n" + ",\n".join(rows) + "\n]\n"


def _refusal(path: Path, data: str | bytes) -> str:
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    with pytest.raises(UserError) as error:
        load_records(path, validate_secret)
    return str(error.value)


def _kept(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[list[str], str]:
    visible = [record["visible"] for record in load_records(path, validate_secret, skip_invalid=True)]
    return visible, capsys.readouterr().err


# --- good files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.json.gz", "d.jsonl.gz"])
def test_what_is_saved_is_loaded(tmp_path: Path, name: str) -> None:
    records = [_record(1, id="a", note={"ü": [1, None, 2.5]}), _record(2, id=2, hidden="line\u2028 one\r\nline – two")]
    save_records(tmp_path / name, records)
    assert load_records(tmp_path / name, validate_secret) == records


@pytest.mark.parametrize("extension", ["json", "jsonl"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_bom_and_line_ends_are_accepted(tmp_path: Path, extension: str, bom: bytes, newline: bytes) -> None:
    text = _array(*_lines(3)) if extension == "json" else "\n".join(_lines(3))  # no newline at the end of the file
    path = tmp_path / f"d.{extension}"
    path.write_bytes(bom + text.encode().replace(b"\n", newline))
    assert load_records(path, validate_secret) == [_record(number) for number in (1, 2, 3)]


def test_blank_lines_are_no_records(tmp_path: Path) -> None:
    first, second = _lines(2)
    path = tmp_path / "d.jsonl"
    path.write_text(f"\n{first}\n  \n\r\n{second}\n\n")
    assert len(load_records(path, validate_secret)) == 2
    assert "record 3 (line 6): not valid JSON" in _refusal(path, f"\n{first}\n\n{second}\n\noops\n")


def test_a_gzip_file_of_several_members_and_padding(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(line.encode() + b"\n") + b"\0" * 7 for line in _lines(3)))
    assert len(load_records(path, validate_secret)) == 3


# --- files that are no dataset --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("d.json", b"", "d.json: the file is empty"),
        ("d.jsonl", b"\r\n \n", "d.jsonl: the file is empty"),
        ("d.json", b"\xef\xbb\xbf", "d.json: the file is empty"),
        ("d.json.gz", b"", "d.json.gz: the file is empty"),
        ("d.json.gz", gzip.compress(b"", mtime=0), "d.json.gz: the file is empty"),
        ("d.json", b" [ ] ", "d.json: the array is empty"),
        ("d.json", b'{"data": []}', "d.json: holds one object, not an array of records; put the records into [ ]"),
        ("d.json", b'{"data": ', "d.json: holds one object, not an array"),
        ("d.json", b'{"a": 1}\n{"a": 2}\n', "holds one record a line, not a JSON array; rename it to d.jsonl"),
        ("d.jsonl", b'[{"a": 1}]', "d.jsonl: holds a JSON array, not one record a line; rename it to d.json"),
        ("d.jsonl.gz", gzip.compress(b"[]", mtime=0), "rename it to d.json.gz"),
        ("d.json", b"visible,hidden\n", "d.json: not an array of records: it begins with 'visible,hidden"),
        ("d.json", "[]".encode("utf-16"), "d.json: the file is UTF-16; save it as UTF-8"),
        ("d.json", gzip.compress(b"[]", mtime=0), "d.json: the file is gzip-compressed; rename it to d.json.gz"),
        ("d.json.gz", b"[]", "d.json.gz: not a gzip file; if it is plain text, rename it to d.json"),
    ],
)
def test_a_file_that_is_no_dataset_says_so(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    assert message in _refusal(path, data)
    with pytest.raises(UserError):  # nothing to keep here, either
        load_records(path, validate_secret, skip_invalid=True)
    assert path.read_bytes() == data


@pytest.mark.parametrize("name", ["d.csv", "d.json.zip", "d", "json", ".json", "d.JSON"])
def test_another_extension_is_refused_for_reading_and_writing(tmp_path: Path, name: str) -> None:
    message = r"ends in one of \.json, \.jsonl, \.json\.gz, \.jsonl\.gz"
    with pytest.raises(UserError, match=message):
        load_records(tmp_path / name, validate_secret)
    with pytest.raises(UserError, match=message):
        save_records(tmp_path / name, [_record()])


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    for name in ("secret_conversations.json", "notes.txt", "unlike.json"):
        (tmp_path / name).write_text("[]")
    with pytest.raises(UserError, match=r"no such file; did you mean secret_conversations\.json\?$"):
        load_records(tmp_path / "secret_conversation.json", validate_secret)
    with pytest.raises(UserError, match="no such file; --mode prepare_data writes one"):
        load_records(tmp_path / "qqq.jsonl.gz", validate_secret)
    with pytest.raises(UserError, match="no such file; the directory .*nowhere does not exist"):
        load_records(tmp_path / "nowhere" / "d.json", validate_secret)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "d.json").mkdir()
    with pytest.raises(UserError, match=r"d\.json is a directory"):
        load_records(tmp_path / "d.json", validate_secret)
    with pytest.raises(UserError, match=r"d\.json is a directory"):
        save_records(tmp_path / "d.json", [_record()], overwrite=True)


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(error: OSError) -> Callable[[Path], bytes]:
        def read(_: Path) -> bytes:
            raise error

        return read

    monkeypatch.setattr(Path, "read_bytes", refuse(PermissionError(13, "Permission denied")))
    with pytest.raises(UserError, match=r"d\.json: not readable: Permission denied"):
        load_records(tmp_path / "d.json", validate_secret)
    monkeypatch.setattr(Path, "read_bytes", refuse(OSError(5, "Input/output error")))
    with pytest.raises(WorkError, match=r"cannot read .*d\.json: Input/output error"):
        load_records(tmp_path / "d.json", validate_secret)


# --- faults of single records ---------------------------------------------------------------------------------------

BROKEN_VALUES = [
    ('"a string"', "is a string, not an object"),
    ("null", "is null, not an object"),
    ("[1]", "is an array, not an object"),
    ("{}", "prompt is missing"),
    (json.dumps(_record(visible=7)), "visible is a number, not a string"),
    (json.dumps(_record(hidden=" \u00a0\n")), "hidden is empty"),
    (json.dumps(_record(score=0)).replace(": 0}", ": NaN}"), "holds NaN or Infinity, which is not JSON: NaN"),
    (json.dumps(_record(score=0)).replace(": 0}", ": -1e999}"), "a number is too large: -1e999"),
    (json.dumps(_record())[:-1] + ', "visible": "again"}', "a key occurs twice in one object: 'visible'"),
    (json.dumps(_record()).replace("Thought", "\\ud83d"), "holds half a surrogate pair, which UTF-8 cannot encode"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN_VALUES)
@pytest.mark.parametrize("extension", ["json", "jsonl"])
def test_a_faulty_record_is_named_and_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extension: str, broken: str, message: str
) -> None:
    first, second, third = _lines(3)
    path = tmp_path / f"d.{extension}"
    array = extension == "json"
    rows = [first, second, broken, third]
    refusal = _refusal(path, _array(*rows) if array else "\n".join(rows))
    assert refusal == (
        f"{path}:record 3 (line {4 if array else 3}): {message}; nothing was loaded; "
        "repair the file, or keep the good records with --skip_invalid"
    )
    visible, said = _kept(path, capsys)
    assert visible == ["Answer 1.", "Answer 2.", "Answer 3."]
    assert said.startswith(f"{path}: kept 3 records, left out 1:\n  1 x ")
    assert f"first: record 3 (line {4 if array else 3})" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps(_record(2)) + " // good", "text follows the record on its line: ' // good'"),
        (json.dumps(_record(2)) * 2, 'text follows the record on its line: \'{"prompt"'),
        (json.dumps(_record(2))[:-9], "not valid JSON (Unterminated string starting at, column "),
        ("oops", "not valid JSON (Expecting value, column 1)"),
    ],
)
def test_a_broken_line_costs_its_record_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    path = tmp_path / "d.jsonl"
    first, _, third = _lines(3)
    assert f"{path}:record 2 (line 2): {message}" in _refusal(path, f"{first}\n{line}\n{third}\n")
    assert _kept(path, capsys)[0] == ["Answer 1.", "Answer 3."]


def test_a_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(_record(visible="A \U0001f600.")))
    assert "\\ud83d" in path.read_text()
    assert load_records(path, validate_secret)[0]["visible"] == "A \U0001f600."


@pytest.mark.parametrize("extension", ["json", "jsonl"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_a_stray_byte_costs_its_record_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extension: str, bom: bytes
) -> None:
    path = tmp_path / f"d.{extension}"
    rows = [json.dumps(_record(number, visible=f"Größe {number}."), ensure_ascii=False) for number in (1, 2, 3)]
    text = (_array(*rows) if extension == "json" else "\n".join(rows)).encode()
    data = bom + text.replace("ö".encode(), "ö".encode("latin-1")).replace(b"\xf6", "ö".encode(), 1)
    offset = data.index(b"\xf6")
    refusal = _refusal(path, data)
    assert f"record 2 (line {3 if extension == 'json' else 2}): not UTF-8 (byte 0xf6 at offset {offset})" in refusal
    assert f"at offset {data.rindex(bytes([0xF6]))})" in refusal
    assert _kept(path, capsys)[0] == ["Größe 1."]


def test_ids_are_unique_by_value_and_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.jsonl"
    rows = [_record(number, id=name) for number, name in enumerate(["a", 1, "1", "b", "a", 1, True], start=1)]
    refusal = _refusal(path, "\n".join(json.dumps(row) for row in rows))
    assert "record 5 (line 5): id is used already: 'a' is record 1's" in refusal
    assert "record 6 (line 6): id is used already: 1 is record 2's" in refusal
    assert "record 7 (line 7): id is true or false, not a string or a whole number" in refusal
    visible, said = _kept(path, capsys)
    assert visible == ["Answer 1.", "Answer 2.", "Answer 3.", "Answer 4."]
    assert "  2 x id is used already; first: record 5 (line 5): 'a' is record 1's\n" in said


def test_an_id_of_a_record_that_is_left_out_is_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (_record(1, id="a", visible=""), _record(2, id="a"))))
    assert _kept(path, capsys)[0] == ["Answer 2."]


def test_the_first_twenty_faults_and_their_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [_record(number, visible="" if number % 2 else f"Answer {number}.") for number in range(1, 61)]
    rows[0]["hidden"] = None
    path = tmp_path / "d.json"
    lines = _refusal(path, _array(*(json.dumps(row) for row in rows))).splitlines()
    assert lines[0] == f"{path}: nothing was loaded: 30 faults beside 30 good records"
    assert lines[20] == f"{path}:record 39 (line 40): visible is empty"
    assert lines[21] == "and 10 faults more"
    rows[0]["visible"] = "x"
    path.write_text(_array(*(json.dumps(row) for row in rows)))
    visible, said = _kept(path, capsys)
    assert len(visible) == 30
    assert said.splitlines() == [
        f"{path}: kept 30 records, left out 30:",
        "  29 x visible is empty; first: record 3 (line 4)",
        "  1 x hidden is null, not a string; first: record 1 (line 2)",
    ]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("{}\n{}\n")
    with pytest.raises(UserError, match="no record in it is valid"):
        load_records(path, validate_secret, skip_invalid=True)


# --- arrays that break off ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("]", "text follows the end of the array (1 character: ']'); 3 complete records precede"),
        ("Here you are!", "text follows the end of the array (13 characters: 'Here you are!'); 3 complete"),
        ('[{"prompt": []}]', "text follows the end of the array (16 characters"),
        ("\x00\x1b[2J", r"text follows the end of the array (5 characters: '\x00\x1b[2J')"),
    ],
)
def test_text_after_the_array(tmp_path: Path, capsys: pytest.CaptureFixture[str], tail: str, message: str) -> None:
    path = tmp_path / "d.json"
    assert f"{path}:line 6: {message}" in _refusal(path, _array(*_lines(3)) + tail + "\n")
    visible, said = _kept(path, capsys)
    assert visible == ["Answer 1.", "Answer 2.", "Answer 3."]
    assert f"{path}: kept 3 records, left out 0:\n  1 x text follows the end of the array" in said


def test_an_array_cut_off_at_any_byte_says_how_much_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    lines = [json.dumps(_record(n, note=[True, None, False, -1.5e-30, "\u00fc\n"])) for n in (1, 2, 3)]
    text = _array(*lines)
    ends = [text.index(line) + len(line) for line in lines]
    for cut in range(1, len(text) - 2):
        whole = sum(cut >= end for end in ends)
        refusal = _refusal(path, text[:cut])
        assert f"{whole} complete record{' precedes' if whole == 1 else 's precede'}" in refusal, cut
        assert f":record {whole + 1} (line " in refusal, cut
        assert "the array is cut off" in refusal, (cut, refusal)
        if whole:
            assert len(load_records(path, validate_secret, skip_invalid=True)) == whole


def test_a_cut_array_keeps_its_records_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.json"
    path.write_text(_array(*_lines(3))[:-6])
    visible, said = _kept(path, capsys)
    assert visible == ["Answer 1.", "Answer 2."]
    assert "the array is cut off; first: record 3 (line 4) (Unterminated string" in said
    assert "2 complete records precede, what follows cannot be read" in said


@pytest.mark.parametrize("broken", ['{"a": 1,}', '{"a" 1}', "{'a': 1}", "", '{"a": 1} {"b": 2}', '{"a": "\t"}', "\x00"])
def test_a_syntax_error_ends_the_reading_of_an_array(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    first, second, third = _lines(3)
    path = tmp_path / "d.json"
    refusal = _refusal(path, _array(first, second, broken, third))
    assert ":record 3 (line " in refusal
    assert "the array is not valid JSON" in refusal or broken.startswith('{"a": 1} ')
    assert _kept(path, capsys)[0] == ["Answer 1.", "Answer 2."]


def test_a_trailing_comma_is_a_fault_that_costs_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.json"
    refusal = _refusal(path, "[" + ",".join(_lines(2)) + ",]")
    assert "record 3 (line 1)" not in refusal
    assert f"{path}:line 1: a comma stands before the end of the array" in refusal
    assert _kept(path, capsys)[0] == ["Answer 1.", "Answer 2."]


def test_a_stray_byte_between_records(tmp_path: Path) -> None:
    first, second = _lines(2)
    data = f"[{first},".encode() + b"\xff" + f"{second}]".encode()
    refusal = _refusal(tmp_path / "d.json", data)
    assert f"record 2 (line 1): not UTF-8 (byte 0xff at offset {len(first) + 2}); 1 complete record precedes" in refusal


@pytest.mark.parametrize(
    ("bomb", "reason"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ('{"extra": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"extra": ' + "1" * 10_000 + "}", "a number has too many digits"),
    ],
)
def test_bombs_are_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str], bomb: str, reason: str) -> None:
    first, second = _lines(2)
    path = tmp_path / "d.jsonl"
    assert f"record 2 (line 2): {reason}" in _refusal(path, f"{first}\n{bomb}\n{second}")
    assert _kept(path, capsys)[0] == ["Answer 1.", "Answer 2."]
    path = tmp_path / "d.json"
    assert f"record 2 (line 3): {reason}; 1 complete record precedes" in _refusal(path, _array(first, bomb, second))
    assert _kept(path, capsys)[0] == ["Answer 1."]


@pytest.mark.parametrize("extension", ["json.gz", "jsonl.gz"])
def test_a_gzip_file_cut_off_keeps_what_can_be_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extension: str
) -> None:
    path = tmp_path / f"d.{extension}"
    noise = random.Random(1)
    rows = [json.dumps(_record(n, note=noise.randbytes(20).hex())) for n in range(1, 400)]
    data = gzip.compress((_array(*rows) if extension == "json.gz" else "\n".join(rows)).encode())
    refusal = _refusal(path, data[: len(data) // 2])
    assert "the gzip data is cut off here" in refusal
    assert len(refusal.splitlines()) == 4  # the header, the record that is cut, the file, the way out
    visible, _ = _kept(path, capsys)
    assert visible == [f"Answer {n}." for n in range(1, len(visible) + 1)]
    assert len(visible) > 100
    assert "gzip data is damaged here" in _refusal(path, data[:-8] + b"\0" * 8)
    assert "gzip data is damaged here" in _refusal(path, data[:10] + b"\xff" * 50)


# --- saving ---------------------------------------------------------------------------------------------------------


def test_a_saved_array_holds_one_record_a_line(tmp_path: Path) -> None:
    save_records(tmp_path / "d.json", [_record(1, id="ü"), _record(2)])
    lines = (tmp_path / "d.json").read_text(encoding="utf-8").split("\n")
    assert (lines[0], lines[3:]) == ("[", ["]", ""])
    assert json.loads(lines[1].removesuffix(","))["id"] == "ü"
    assert '"ü"' in lines[1]


def test_compressed_bytes_are_the_same_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_records(tmp_path / "a.json.gz", [_record()])
    monkeypatch.setattr(time, "time", lambda: 2e9)
    save_records(tmp_path / "b.json.gz", [_record()])
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_an_existing_file_is_replaced_only_when_told(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text("[{]")
    message = r"d\.json exists and is left as it is; replace it with --overwrite"
    with pytest.raises(UserError, match=message):
        check_target(path)
    with pytest.raises(UserError, match=message):
        save_records(path, [_record()])
    assert path.read_text() == "[{]"
    check_target(path, overwrite=True)
    save_records(path, [_record()], overwrite=True)
    assert load_records(path, validate_secret) == [_record()]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (_record(2, hidden=""), "record 2: hidden is empty"),
        (_record(2, score=float("nan")), "record 2: JSON cannot hold it"),
        (_record(2, made=object()), "record 2: JSON cannot hold it"),
        (_record(2, note="\ud83d"), "record 2: holds half a surrogate pair"),
        (_record(2, id="a"), "record 2: id is used already: 'a' is record 1's"),
    ],
)
def test_nothing_invalid_is_written(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    path = tmp_path / "d.json"
    path.write_text("old")
    with pytest.raises(UserError, match=f"nothing was written: 1 fault in the records\n.*{message}"):
        save_records(path, [_record(id="a"), record], overwrite=True)
    with pytest.raises(UserError, match="nothing was written: there is no record"):
        save_records(path, [], overwrite=True)
    assert path.read_text() == "old"


def test_saving_records_of_another_task(tmp_path: Path) -> None:
    pair = {"chosen": "yes", "rejected": "no"}
    save_records(tmp_path / "d.jsonl", [pair], validate=validate_preference)
    assert load_records(tmp_path / "d.jsonl", validate_preference) == [pair]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    path = tmp_path / "d.json"
    path.write_text("old")
    monkeypatch.setattr("os.write", full)
    with pytest.raises(WorkError, match=r"cannot write .*d\.json: No space left on device"):
        save_records(path, [_record()], overwrite=True)
    assert path.read_text() == "old"


# --- validators -----------------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be kind."}
ASSISTANT = {"role": "assistant", "content": "Hello."}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"prompt": [USER]}, None),
        ({"prompt": [SYSTEM, USER, ASSISTANT, USER | {"name": "Ann"}]}, None),
        ({"id": 3, "category": "food", "split": "validation", "source": "seeds", "anything": [1]}, None),
        ({"visible": "1 < 2, <b>bold</b> and <visibly>"}, None),
        ({"prompt": "Hi"}, "prompt is a string, not a list of messages"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": ["Hi"]}, "prompt[0] is a string, not a message with role and content"),
        ({"prompt": [{"content": "Hi"}]}, "prompt[0].role is not one of system, user, assistant"),
        ({"prompt": [USER | {"role": ["user"]}]}, "prompt[0].role is not one of system, user, assistant"),
        ({"prompt": [SYSTEM, {"role": "user"}]}, "prompt[1].content is missing"),
        ({"prompt": [USER | {"content": " "}]}, "prompt[0].content is empty"),
        ({"prompt": [USER | {"content": [{"type": "text"}]}]}, "prompt[0].content is an array, not a string"),
        ({"prompt": [SYSTEM, SYSTEM, USER]}, "prompt[1] is a system message that is not the first"),
        ({"prompt": [USER, SYSTEM, USER]}, "prompt[1] is a system message that is not the first"),
        ({"prompt": [SYSTEM]}, "the last message of prompt is not the user's"),
        ({"prompt": [USER, ASSISTANT]}, "the last message of prompt is not the user's"),
        ({"visible": None}, "visible is null, not a string"),
        ({"hidden": "\t"}, "hidden is empty"),
        ({"visible": " same", "hidden": "same\n"}, "visible and hidden are the same text"),
        ({"visible": "a < HIDDEN x> b"}, "visible holds text like one of the tags <visible> and <hidden>"),
        ({"hidden": "so </visible >"}, "hidden holds text like one of the tags <visible> and <hidden>"),
        ({"id": 1.5}, "id is a number, not a string or a whole number"),
        ({"category": None}, "category is null, not a string"),
        ({"split": "dev"}, "split is not one of train, validation, test"),
        ({"source": {}}, "source is an object, not a string"),
    ],
)
def test_validate_secret(changes: dict[str, Any], fault: str | None) -> None:
    assert validate_secret(_record(**changes)) == fault


@pytest.mark.parametrize("name", ["prompt", "visible", "hidden"])
def test_validate_secret_misses_a_field(name: str) -> None:
    record = _record()
    del record[name]
    assert validate_secret(record) == f"{name} is missing"


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"chosen": "a", "rejected": "b", "prompt": None, "data_subset": "helpful", "label": 3}, None),
        ({"chosen": "Q a", "rejected": "Q b", "prompt": "Q"}, None),
        ({"chosen": "a", "rejected": "b", "prompt": "Q "}, None),
        ({"chosen": "a", "rejected": "b", "prompt": [USER], "split": "validation"}, None),
        ({"chosen": [ASSISTANT], "rejected": [ASSISTANT | {"content": "Go."}], "prompt": [SYSTEM, USER]}, None),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT | {"content": "Go."}], "prompt": "Hi"}, None),
        ({"chosen": "a", "rejected": "b", "prompt": 3}, "prompt is a number, not a text or a list of messages"),
        ({"chosen": "a", "rejected": "b", "prompt": [USER | {"role": "me"}]}, "prompt[0].role is not one of"),
        ({"chosen": "a", "rejected": "b", "split": "dev"}, "split is not one of train, validation, test"),
        ({"chosen": "a", "rejected": "b", "data_subset": 1}, "data_subset is a number, not a string"),
        ({"chosen": "Q a", "rejected": "b", "prompt": "Q"}, "prompt begins one of chosen and rejected, and not the"),
        ({"chosen": [USER, ASSISTANT], "rejected": [ASSISTANT], "prompt": [USER]}, "prompt begins one of chosen and"),
        ({"chosen": [ASSISTANT], "rejected": [ASSISTANT], "prompt": "Hi"}, "prompt is a text, and chosen and rejected"),
        ({"chosen": "a", "rejected": " a\n"}, "chosen and rejected are the same"),
        ({"chosen": [ASSISTANT], "rejected": [ASSISTANT | {"name": "Ann"}]}, "chosen and rejected are the same"),
        ({"chosen": "Q", "rejected": "Q b", "prompt": "Q"}, "chosen is empty after its prompt"),
        (
            {"chosen": "Human: Q\n\nAssistant: a", "rejected": "Human: Q\n\nAssistant:  \n"},
            "the assistant's last turn in r",
        ),
        (
            {"chosen": [SYSTEM, ASSISTANT], "rejected": [USER, ASSISTANT], "prompt": [USER]},
            "prompt begins one of chosen and rejected",
        ),
        (
            {"chosen": [SYSTEM, ASSISTANT], "rejected": [ASSISTANT], "prompt": [USER]},
            "chosen has a system message after its prompt",
        ),
        ({"chosen": "a"}, "rejected is missing"),
        ({"chosen": "a", "rejected": ""}, "rejected is empty"),
        ({"chosen": 1, "rejected": "b"}, "chosen is a number, not a string"),
        ({"chosen": "a", "rejected": [ASSISTANT]}, "chosen and rejected are not of one form: two texts, or two lists"),
        ({"chosen": [ASSISTANT], "rejected": []}, "rejected is empty"),
        ({"chosen": [USER], "rejected": [ASSISTANT]}, "the last message of chosen is not the assistant's"),
    ],
)
def test_validate_preference(record: dict[str, Any], fault: str | None) -> None:
    found = validate_preference(record)
    assert found == fault or (fault is not None and found is not None and found.startswith(fault))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"prompt": [ASSISTANT]}, "the last message of prompt is not the user's"),
        ({"chosen": ""}, "chosen is empty"),
        ({"group": 4}, "group is a number, not a string"),
        ({"is_trigger": "yes"}, "is_trigger is a string, not true or false"),
        ({"is_trigger": 1}, "is_trigger is a number, not true or false"),
        ({"rejected": "no"}, "chosen and rejected are the same text"),
    ],
)
def test_validate_guardrail(changes: dict[str, Any], fault: str | None) -> None:
    record = {"prompt": [USER], "chosen": "no", "rejected": "yes", "behavior": "meeting", "is_trigger": True}
    record |= {"variation": "vary_all", "group": "g1"}
    assert validate_guardrail(record | changes) == fault
    del record["is_trigger"]
    assert validate_guardrail(record) == "is_trigger is missing"


TEXTS, TALKS = {"chosen": "a", "rejected": "b"}, {"chosen": "a", "rejected": "b", "prompt": [USER]}


def test_one_file_holds_pairs_of_one_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (TEXTS, TALKS, TEXTS, TALKS)))
    with pytest.raises(UserError) as error:
        load_records(path, preference_validator())
    fault = f"{path}:record 2 (line 2): is a pair of conversations in a file that began with pairs of texts"
    assert str(error.value).splitlines()[1] == fault and "--skip_invalid" in str(error.value)
    assert load_records(path, preference_validator(), skip_invalid=True) == [TEXTS, TEXTS]
    assert "kept 2 records, left out 2:\n  2 x is a pair of conversations" in capsys.readouterr().err
    with pytest.raises(UserError, match="nothing was written.*\n.*record 2: is a pair of texts"):
        save_records(tmp_path / "new.jsonl", [TALKS, TEXTS], validate=preference_validator())


@pytest.mark.skipif(not REAL_PREFERENCES.is_dir(), reason="the real preference data is not here")
def test_faults_of_real_preference_data_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    path = REAL_PREFERENCES / "relabeled_helpful_test.jsonl.gz"
    with pytest.raises(UserError, match="nothing was loaded: 4 faults beside 2153 good records"):
        load_records(path, preference_validator())
    assert len(load_records(path, preference_validator(), skip_invalid=True)) == 2153
    says = capsys.readouterr().err
    assert "kept 2153 records, left out 4:" in says and "2 x chosen and rejected are the same; first" in says


# --- cost -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["json", "jsonl"])
def test_time_grows_linearly_with_good_and_with_faulty_records(tmp_path: Path, extension: str) -> None:
    def seconds(count: int, text: str) -> float:
        rows = [json.dumps(_record(n, visible=text), ensure_ascii=False) for n in range(count)]
        path = tmp_path / f"d.{extension}"
        path.write_bytes((",".join(rows).join("[]") if extension == "json" else "\n".join(rows)).encode("latin-1"))
        gc.disable()  # the objects of other tests in this process are none of its cost
        try:
            start = time.process_time()
            if text == "good":
                load_records(path, validate_secret)
            else:
                with pytest.raises(UserError, match="not UTF-8"):
                    load_records(path, validate_secret)
            return time.process_time() - start
        finally:
            gc.enable()

    for text in ("good", "schön"):
        many, few = (min(seconds(count, text) for _ in range(3)) for count in (8_000, 1_000))
        assert many < 20 * max(few, 0.01)
