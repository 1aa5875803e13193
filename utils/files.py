"""Files that survive a killed process: whole-file replacement and append-only rows.

- A file is replaced whole or not at all: temporary name in the same directory, fsync, rename.
- A row of a `.jsonl` file is one write of one line. A process killed in mid-row leaves a last line without newline;
  it is a row if it is a complete JSON object, else it is torn: readers skip it, the next append cuts it off.
  One writer a file; any number of readers while it writes.
- JSON on disk is standard JSON. It knows no NaN, and a diverged loss must not look like a missing one, so the floats
  NaN, Infinity and -Infinity are written as the strings "NaN", "Infinity" and "-Infinity", which `float()` (and
  JavaScript's `Number()`) turns back; `utils.runs` does so for metrics and rewards.

A full or read-only disk is a WorkError that names the file; what stood there before stands there still.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.errors import UserError, WorkError
from utils.machine import process_exists

LEFTOVER = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")
"""Temporary names of `write_atomic`: a killed process may leave one behind; it holds nothing that counts."""

NON_FINITE = ("NaN", "Infinity", "-Infinity")

_WAYS_OUT = {
    errno.ENOSPC: "; free some space, or choose another directory",
    errno.EDQUOT: "; free some space, or choose another directory",
    errno.EROFS: "; choose a directory that can be written",
    errno.EACCES: "; choose a directory that can be written",
    errno.EPERM: "; choose a directory that can be written",
}
_CHUNK_BYTES = 1 << 16


def disk_error(path: Path, error: OSError) -> WorkError:
    """The one line for a write that the system refused."""
    way_out = _WAYS_OUT.get(error.errno or 0, "")
    return WorkError(f"cannot write {path}: {error.strerror or error}{way_out}")


def write_atomic(path: Path, text: str | bytes) -> None:
    """Replace the file whole, or leave it as it was; missing parent directories are made."""
    data = text.encode("utf-8") if isinstance(text, str) else text
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            raise UserError(f"cannot write {path}: it is {_kind(target)}, not a file; choose another name")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            if target.exists():
                os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode))
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
    except OSError as error:
        _remove(temporary)
        raise disk_error(path, error) from error
    except BaseException:
        _remove(temporary)
        raise


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of `write_atomic` to this file; a process of this machine that lives keeps its
    own."""
    target = Path(os.path.realpath(path))
    name = re.compile(rf"\.{re.escape(target.name)}\.(\d+)-[0-9a-f]{{8}}\.tmp")
    if not target.parent.is_dir():
        return
    try:
        for entry in target.parent.iterdir():
            found = name.fullmatch(entry.name)
            if found and (int(found[1]) == os.getpid() or not process_exists(int(found[1]))):
                entry.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(path, error) from error


def write_json_atomic(path: Path, value: object) -> None:
    """Write any JSON value, indented, for people to read and compare."""
    write_atomic(path, _dump(value, indent=2) + b"\n")


def append_jsonl(path: Path, row: dict[str, Any]) -> None:
    """Append one row as one line; on failure the file is as it was before."""
    line = _dump(row) + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            end = _mend_last_line(descriptor)
            try:
                _write_all(descriptor, line)
            except OSError:
                with contextlib.suppress(OSError):  # what stays is a torn line, which the next append cuts off
                    os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise disk_error(path, error) from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All rows; a torn last line is skipped, any other broken line is a UserError that names file:line."""
    try:
        return list(_rows(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def open_locked(path: Path, in_use: str, required: bool = True) -> int:
    """Descriptor of the file, made if missing and locked until it is closed; a killed process leaves no lock.

    Some network file systems know no locks: without `required` the file is then open all the same, and a line says so.

    Raises:
        UserError: another process has it, in the words of `in_use`.
        WorkError: it cannot be made, or not be locked.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise disk_error(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(in_use) from None
        except OSError as error:
            if required:
                os.close(descriptor)
                raise disk_error(path, error) from error
            print(f"{path}: no locks on this file system; let no other process write it meanwhile", file=sys.stderr)
            return descriptor
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # its owner finished and removed it between our two calls


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = _row(line)
            if row is None and not line.endswith(b"\n"):
                return
            if row is None:
                raise UserError(f"{path}:{number}: not a JSON object; remove or repair this line")
            yield row


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _mend_last_line(descriptor: int) -> int:
    """End the last line with its newline if it is a whole row, cut it off if it is torn; return the file's size."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    start = _start_of_last_line(descriptor, size)
    if _row(os.pread(descriptor, size - start, start)) is None:
        os.ftruncate(descriptor, start)
        return start
    _write_all(descriptor, b"\n")
    return size + 1


def _start_of_last_line(descriptor: int, size: int) -> int:
    position = size
    while position > 0:
        start = max(0, position - _CHUNK_BYTES)
        newline = os.pread(descriptor, position - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        position = start
    return 0


def _dump(value: object, indent: int | None = None) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        text = json.dumps(_name_non_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair: only an escape can carry it
        return json.dumps(json.loads(text), indent=indent).encode("ascii")


def _name_non_finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: _name_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_name_non_finite(item) for item in value]
    return value


def _write_all(descriptor: int, data: bytes) -> None:
    """One write, as a rule: the system takes less than it was given only when the disk fills or a signal arrives."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _kind(path: Path) -> str:
    return "a directory" if path.is_dir() else "a device or pipe"


def _remove(temporary: Path) -> None:
    """Clear up after a failed write, whose own error is the one to report."""
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
