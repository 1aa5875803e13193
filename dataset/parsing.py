"""Dataset files, from bytes to JSON values, each with its number and line, and with what is wrong with it.

An array is read one value at a time, so that the values before a break (a truncated file, text after the array) keep
their numbers and can be kept; a line of JSON Lines stands or falls alone. Values that JSON readers disagree on, or that
no file can store, are faults: a key twice in one object, NaN or an infinite number, half a surrogate pair, bytes that
are not UTF-8. A BOM, CR LF and blank lines are none.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import UserError, WorkError

EXTENSIONS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")

_SPACE = re.compile(r"[ \t\n\r]*")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_STRAY_BYTE = re.compile("[\udc80-\udcff]")
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Fault:
    """What is wrong, and where: `record` is None for a fault of the file itself, `line` for a record in memory.
    Faults are grouped by `reason`; `detail` belongs to this one."""

    record: int | None
    line: int | None
    reason: str
    detail: str = ""

    def place(self) -> str:
        if self.record is None:
            return f"line {self.line}"
        return f"record {self.record}" if self.line is None else f"record {self.record} (line {self.line})"


@dataclass(frozen=True)
class Item:
    """One JSON value and where it stands."""

    record: int
    line: int | None
    value: object


@dataclass
class Cursor:
    """A place in the text; `line` and `byte` follow its `position`. Bytes that are not UTF-8 stand in the text as the
    lone surrogates of Python's `surrogateescape`, and are counted only where there are any (`stray`)."""

    text: str
    byte: int
    stray: bool
    position: int = 0
    line: int = 1

    def move(self, position: int) -> None:
        if self.stray:
            self.byte += len(self.text[self.position : position].encode("utf-8", "surrogateescape"))
        self.line += self.text.count("\n", self.position, position)
        self.position = position


def read_items(path: Path) -> Iterator[Item | Fault]:
    """Every value of a dataset file in order, and every fault where it stands; a UserError where the file holds nothing
    that could be read one by one."""
    extension = extension_of(path)
    cursor, damage = _read(path, extension)
    _refuse_wrong_container(path, extension, cursor.text)
    yield from _line_items(cursor) if ".jsonl" in extension else _array_items(cursor)
    if damage:
        yield Fault(None, cursor.text.count("\n") + 1, damage)


# --- bytes to text --------------------------------------------------------------------------------------------------


def extension_of(path: Path) -> str:
    for extension in EXTENSIONS:
        if path.name.endswith(extension) and path.name != extension:
            return extension
    raise UserError(f"{path}: the name of a dataset file ends in one of {', '.join(EXTENSIONS)}")


def _read(path: Path, extension: str) -> tuple[Cursor, str | None]:
    """The file's text, and what is wrong with its compression."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(_missing(path)) from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a directory; give the name of a file in it") from error
    except PermissionError as error:
        raise UserError(f"{path}: not readable: {error.strerror}") from error
    except OSError as error:
        raise WorkError(f"cannot read {path}: {error.strerror or error}") from error
    damage = None
    compressed = data.startswith(b"\x1f\x8b")
    if compressed and not extension.endswith(".gz"):
        raise UserError(f"{path}: the file is gzip-compressed; rename it to {path.name}.gz")
    if data and extension.endswith(".gz"):
        if not compressed:
            raise UserError(f"{path}: not a gzip file; if it is plain text, rename it to {path.stem}")
        data, damage = _decompress(data)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: the file is UTF-16; save it as UTF-8")
    byte = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    text = data[byte:].decode("utf-8", "surrogateescape")
    if not damage and not text.strip(" \t\r\n"):
        raise UserError(f"{path}: the file is empty: there is no record; --mode prepare_data writes a dataset")
    return Cursor(text, byte, stray=_STRAY_BYTE.search(text) is not None), damage


def _decompress(data: bytes) -> tuple[bytes, str | None]:
    """All that can be had of a gzip file, several members and zero padding included, and what is wrong with it."""
    parts: list[bytes] = []
    position = 0
    while position < len(data):
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            chunk = data[position : position + _CHUNK_BYTES]
            if not chunk:
                return b"".join(parts), "the gzip data is cut off here"
            try:
                parts.append(member.decompress(chunk))
            except zlib.error as error:
                return b"".join(parts), f"the gzip data is damaged here: {error}"
            position += len(chunk) - len(member.unused_data)
        while position < len(data) and data[position] == 0:
            position += 1
    return b"".join(parts), None


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path}: no such file; the directory {path.parent} does not exist"
    names = [entry.name for entry in path.parent.iterdir() if entry.name.endswith(EXTENSIONS)]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"{path}: no such file; " + (
        f"did you mean {' or '.join(near)}?" if near else "--mode prepare_data writes one; check the name"
    )


def _refuse_wrong_container(path: Path, extension: str, text: str) -> None:
    start = _after_space(text, 0)
    opening = text[start : start + 1]
    stem = path.name.removesuffix(extension)
    if ".jsonl" in extension:
        if opening == "[":
            name = stem + extension.replace(".jsonl", ".json")
            raise UserError(f"{path}: holds a JSON array, not one record a line; rename it to {name}")
        return
    if opening in ("[", ""):
        return
    if opening != "{":
        raise UserError(f"{path}: not an array of records: it begins with {text[start : start + 20]!a}, not with '['")
    try:
        _, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        end = len(text)
    if text.startswith("{", _after_space(text, end)):
        name = stem + extension.replace(".json", ".jsonl")
        raise UserError(f"{path}: holds one record a line, not a JSON array; rename it to {name}")
    raise UserError(f"{path}: holds one object, not an array of records; put the records into [ ]")


# --- text to records ------------------------------------------------------------------------------------------------


def _array_items(cursor: Cursor) -> Iterator[Item | Fault]:
    """The values of an array, up to its end or to a break, which no reader can see past."""
    text = cursor.text
    notes: list[tuple[str, str]] = []
    decoder = _strict_decoder(notes)
    position = _after_space(text, _after_space(text, 0) + 1)
    number = 0
    closed = text.startswith("]", position)
    while not closed:
        number += 1
        notes.clear()
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            cursor.move(position)
            yield _break(cursor, number, error)
            return
        yield _item(cursor, number, value, position, end, notes)
        position = _after_space(text, end)
        closed = text.startswith("]", position)
        if closed:
            break
        cursor.move(position)
        if not text.startswith(",", position):
            yield _break(cursor, number + 1, json.JSONDecodeError("Expecting ',' or ']'", text, position))
            return
        position = _after_space(text, position + 1)
        closed = text.startswith("]", position)
        if closed:
            yield Fault(None, cursor.line, "a comma stands before the end of the array")
    position = _after_space(text, position + 1)
    if position < len(text):
        cursor.move(position)
        rest = text[position:].rstrip()
        detail = f" ({count_of(len(rest), 'character')}: {rest[:30]!r}); {_precede(number)}"
        yield Fault(None, cursor.line, "text follows the end of the array", detail)


def _line_items(cursor: Cursor) -> Iterator[Item | Fault]:
    text = cursor.text
    notes: list[tuple[str, str]] = []
    decoder = _strict_decoder(notes)
    number, position = 0, 0
    while position < len(text):
        newline = text.find("\n", position)
        stop = len(text) if newline < 0 else newline
        line = text[position:stop].rstrip(" \t\r")
        start = _after_space(line, 0)
        if line:
            number += 1
            notes.clear()
            try:
                value, end = decoder.raw_decode(line, start)
            except (ValueError, RecursionError) as error:
                cursor.move(position)
                yield _broken_line(cursor, number, line, error)
            else:
                if end < len(line):
                    notes.append(("text follows the record on its line", f": {line[end : end + 30]!r}"))
                yield _item(cursor, number, value, position, stop, notes)
        position = stop + 1


def _item(
    cursor: Cursor, number: int, value: object, start: int, end: int, notes: list[tuple[str, str]]
) -> Item | Fault:
    cursor.move(start)
    stray = _STRAY_BYTE.search(cursor.text, start, end) if cursor.stray else None
    if stray:
        return _stray_byte(cursor, number, stray.start())
    if notes:
        return Fault(number, cursor.line, *notes[0])
    if _SURROGATE_ESCAPE.search(cursor.text, start, end):
        reason = unstorable(value)
        if reason:
            return Fault(number, cursor.line, reason)
    return Item(number, cursor.line, value)


def _stray_byte(cursor: Cursor, number: int, position: int) -> Fault:
    before = len(cursor.text[cursor.position : position].encode("utf-8", "surrogateescape"))
    value = ord(cursor.text[position]) - 0xDC00
    return Fault(number, cursor.line, "not UTF-8", f" (byte 0x{value:02x} at offset {cursor.byte + before})")


def _break(cursor: Cursor, number: int, error: Exception) -> Fault:
    """A value that the parser could not finish: the file was cut off, or is broken, and what follows is lost."""
    text = cursor.text
    detail = f"; {_precede(number - 1)}, what follows cannot be read"
    if not isinstance(error, json.JSONDecodeError):
        return Fault(number, cursor.line, _parser_limit(error), detail)
    rest = text[error.pos :].rstrip()
    if _STRAY_BYTE.match(rest):
        fault = _stray_byte(cursor, number, error.pos)
        return Fault(number, cursor.line, fault.reason, fault.detail + detail)
    cut_off = not rest or error.msg.startswith("Unterminated string") or (len(rest) < 10 and rest[-1] not in "]}")
    reason = "the array is cut off" if cut_off else "the array is not valid JSON"
    return Fault(number, cursor.line, reason, f" ({error.msg}, line {error.lineno} column {error.colno}){detail}")


def _broken_line(cursor: Cursor, number: int, line: str, error: Exception) -> Fault:
    stray = _STRAY_BYTE.search(line)
    if stray:
        return _stray_byte(cursor, number, cursor.position + stray.start())
    if not isinstance(error, json.JSONDecodeError):
        return Fault(number, cursor.line, _parser_limit(error))
    return Fault(number, cursor.line, "not valid JSON", f" ({error.msg}, column {error.pos + 1})")


def _precede(number: int) -> str:
    return f"{number} complete record{' precedes' if number == 1 else 's precede'}"


def _parser_limit(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _strict_decoder(notes: list[tuple[str, str]]) -> json.JSONDecoder:
    """A decoder that leaves a note of what it can read but no record may hold."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(items)
        if len(record) < len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            notes.append(("a key occurs twice in one object", f": {twice!r}"))
        return record

    def constant(name: str) -> float:
        notes.append(("holds NaN or Infinity, which is not JSON", f": {name}"))
        return math.nan

    def number(digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            notes.append(("a number is too large", f": {digits[:20]}"))
        return value

    return json.JSONDecoder(object_pairs_hook=pairs, parse_constant=constant, parse_float=number)


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def unstorable(value: object) -> str | None:
    """Why JSON in UTF-8 cannot hold a value; None: it can."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        return "holds half a surrogate pair, which UTF-8 cannot encode"
    except RecursionError:
        return "nested too deeply"
    except (TypeError, ValueError) as error:
        return f"JSON cannot hold it: {error}"
    return None


def kind_of(value: object) -> str:
    """What JSON calls a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    kinds = {int: "a number", float: "a number", str: "a string", list: "an array", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)


def count_of(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
