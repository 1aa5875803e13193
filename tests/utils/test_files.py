"""Crash-safe files: replaced whole or not at all, rows that survive a kill, errors that name the file."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.errors import UserError, WorkError
from utils.files import LEFTOVER, append_jsonl, read_jsonl, sha256_file, write_atomic, write_json_atomic

ROOT = Path(__file__).parents[2]


def _full_disk(monkeypatch: pytest.MonkeyPatch, after_bytes: int) -> None:
    """Let the disk take some bytes, then be full: a short write first, ENOSPC next."""
    real, left = os.write, [after_bytes]

    def write(descriptor: int, data: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(descriptor, bytes(data)[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", write)


# --- whole files ----------------------------------------------------------------------------------------------------


def test_write_atomic_makes_parents_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_atomic(path, "one")
    write_atomic(path, "zwei – 二".encode())
    assert path.read_text(encoding="utf-8") == "zwei – 二"
    assert os.listdir(path.parent) == ["b.txt"]


def test_write_atomic_keeps_mode_and_follows_a_link(tmp_path: Path) -> None:
    real = tmp_path / "real.txt"
    real.write_text("old")
    real.chmod(0o640)
    link = tmp_path / "link.txt"
    link.symlink_to(real)
    write_atomic(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("taken", [0, 3])
def test_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    path = tmp_path / "report.html"
    write_atomic(path, "old")
    _full_disk(monkeypatch, taken)
    with pytest.raises(WorkError, match=r"cannot write .*report\.html: No space left on device; free some space"):
        write_atomic(path, "new and longer")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_read_only_place_is_a_work_error() -> None:
    with pytest.raises(WorkError, match=r"cannot write /proc/nowhere\.json: "):
        write_atomic(Path("/proc/nowhere.json"), "x")
    with pytest.raises(WorkError, match=r"cannot write /proc/nowhere\.jsonl: "):
        append_jsonl(Path("/proc/nowhere.jsonl"), {})


def test_read_only_file_system_says_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(WorkError, match=r"x\.json: Read-only file system; choose a directory that can be written"):
        write_json_atomic(tmp_path / "x.json", 1)


def test_a_device_or_directory_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is a device or pipe"):
        write_atomic(Path("/dev/full"), "x")
    assert Path("/dev/full").is_char_device()
    with pytest.raises(UserError, match="it is a directory"):
        write_atomic(tmp_path, "x")


def test_interruption_removes_the_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", "x")
    assert os.listdir(tmp_path) == []


def test_temporary_names_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.extend(os.listdir(tmp_path)))
    write_atomic(tmp_path / "manifest.json", "x")
    assert len(seen) == 1
    assert LEFTOVER.fullmatch(seen[0])
    assert not LEFTOVER.fullmatch("manifest.json")


def test_json_is_standard_readable_and_keeps_non_finite_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json_atomic(path, {"ü": [1.5, math.nan, {"deep": (math.inf, -math.inf)}]})
    text = path.read_text(encoding="utf-8")
    assert '"ü"' in text
    assert text.endswith("}\n")

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(text, parse_constant=refuse) == {"ü": [1.5, "NaN", {"deep": ["Infinity", "-Infinity"]}]}


def test_sha256_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(UserError, match="cannot read .*missing: No such file"):
        sha256_file(tmp_path / "missing")


# --- rows -----------------------------------------------------------------------------------------------------------


def test_rows_come_back_in_order_as_one_line_each(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[dict[str, object]] = [{"text": "a\nb\r\u2028c – \x00"}, {"half": "\ud83d"}, {"loss": math.nan}, {}]
    for row in rows:
        append_jsonl(path, row)
    assert path.read_bytes().count(b"\n") == 4
    assert read_jsonl(path) == [*rows[:2], {"loss": "NaN"}, {}]


def test_a_row_cut_at_any_byte_is_skipped_then_cut_off_and_never_joined(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, {"step": 1})
    start = path.stat().st_size
    append_jsonl(path, {"step": 2, "text": "naïve \n {}"})
    whole = path.read_bytes()
    for end in range(start, len(whole) + 1):
        path.write_bytes(whole[:end])
        kept = [1, 2] if end >= len(whole) - 1 else [1]  # without its newline, a complete object is a row
        assert [row["step"] for row in read_jsonl(path)] == kept, end
        append_jsonl(path, {"step": 3})
        assert [row["step"] for row in read_jsonl(path)] == [*kept, 3], end
        assert path.read_bytes().endswith(b'\n{"step": 3}\n')


def test_a_torn_row_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for head in (b"", b'{"step": 1}\n'):
        path.write_bytes(head + b'{"text": "' + b"x" * 200_000)
        append_jsonl(path, {"step": 2})
        assert path.read_bytes() == head + b'{"step": 2}\n'


def test_a_broken_line_elsewhere_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for broken in (b'{"a": 1', b"[1]", b"\xff", b"[" * 100_000):
        path.write_bytes(b'{"a": 0}\n\n' + broken + b'\n{"a": 2}\n')
        with pytest.raises(UserError, match=r"rows\.jsonl:3: not a JSON object"):
            read_jsonl(path)


def test_read_accepts_non_finite_numbers_and_refuses_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": NaN, "b": -Infinity}\n')
    (row,) = read_jsonl(path)
    assert math.isnan(row["a"])
    assert row["b"] == -math.inf
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl"):
        read_jsonl(tmp_path / "none.jsonl")


@pytest.mark.parametrize("taken", [0, 7])
def test_full_disk_takes_the_begun_row_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, {"step": 1})
    with monkeypatch.context() as patch:
        _full_disk(patch, taken)
        with pytest.raises(WorkError, match=r"cannot write .*rows\.jsonl: No space left"):
            append_jsonl(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n'
    append_jsonl(path, {"step": 3})
    assert [row["step"] for row in read_jsonl(path)] == [1, 3]


def test_the_full_device_refuses_a_row() -> None:
    with pytest.raises(WorkError, match="cannot write /dev/full: No space left"):
        append_jsonl(Path("/dev/full"), {"step": 1})


_WRITER = """
import itertools, sys
from pathlib import Path
from utils.files import append_jsonl
path, start = Path(sys.argv[1]), int(sys.argv[2])
for step in itertools.count(start):
    append_jsonl(path, {"step": step, "text": "x" * (step * 7919 % 100_000)})
"""


def test_twenty_kills_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    chance = random.Random(3407)
    written = 0
    for _ in range(20):
        command = [sys.executable, "-S", "-c", _WRITER, str(path), str(written)]
        size = path.stat().st_size if path.exists() else 0
        process = subprocess.Popen(command, cwd=ROOT)
        deadline = time.monotonic() + 20
        while (not path.exists() or path.stat().st_size == size) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        process.wait()
        steps = [row["step"] for row in read_jsonl(path)]
        assert steps == list(range(len(steps)))
        assert len(steps) >= written
        written = len(steps)
    assert written >= 10
    append_jsonl(path, {"step": written})
    assert [row["step"] for row in read_jsonl(path)] == list(range(written + 1))
