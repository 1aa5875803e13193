"""YAML files of options, read with the line of every entry, so that an error can say *file:line*.

Flat, or keyed by mode for a file that holds several modes:

    lora_rank: 8                 train:
    max_steps: 100                 lora_rank: 8
                                 evaluate:
                                   num_samples: 2

YAML's own looseness is refused where it hides mistakes: a key given twice, a key that is no text, mappings merged
in (`<<`). `5e-6`, which YAML 1.1 reads as text, is a number here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError


class _Loader(yaml.SafeLoader):
    """The safe loader, with numbers such as `5e-6`."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Entry:
    """One option of a file: `section` is the mode it stands under, None in a flat file."""

    section: str | None
    name: str
    value: Any
    place: str


def read_entries(file: Path, sections: Collection[str]) -> list[Entry]:
    """All options of a file, in its order; it is keyed if its top-level keys are all names of sections."""
    path = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    with _reading(path, "--config") as loader:
        node = loader.get_single_node()
        if node is None:
            return []
        top = _pairs(node, path)
        keyed = [key for key, _, _ in top if key in sections]
        if not keyed:
            return [Entry(None, key, _value(loader, value, place), place) for key, value, place in top]
        mixed = [(key, place) for key, _, place in top if key not in sections]
        if mixed:
            key, place = mixed[0]
            raise UserError(
                f"{place}: {key} stands beside {keyed[0]}, the options of one mode; move it under the mode it is for"
            )
        return [
            Entry(section, key, _value(loader, value, place), place)
            for section, options, _ in top
            if not _is_null(options)
            for key, value, place in _pairs(options, path)
        ]


def read_document(file: Path, option: str) -> Any:
    """The value that another YAML file holds, every key of it given once; None for an empty one. `option` named it."""
    with _reading(file, option) as loader:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(node, file)
        return _value(loader, node, f"{file}:1")


@contextlib.contextmanager
def _reading(path: Path, option: str) -> Iterator[_Loader]:
    """A loader of the file; what YAML finds wrong is a UserError that names the line."""
    loader = None
    try:
        loader = _Loader(_text(path, option))
        yield loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from error
    finally:
        if loader is not None:
            loader.dispose()


def _value(loader: _Loader, node: yaml.Node, place: str) -> Any:
    try:
        return loader.construct_object(node, deep=True)
    except ValueError as error:  # such as the 31st of February
        raise UserError(f"{place}: not a value: {error}") from error


def _text(path: Path, option: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; check {option}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check {option}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _pairs(node: yaml.Node, path: Path) -> list[tuple[str, yaml.Node, str]]:
    """Keys, values and places of a mapping; each key once."""
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"{path}:{node.start_mark.line + 1}: expected options, one a line, as `name: value`")
    pairs: list[tuple[str, yaml.Node, str]] = []
    for key, value in node.value:
        place = f"{path}:{key.start_mark.line + 1}"
        if key.tag != "tag:yaml.org,2002:str":
            raise UserError(f"{place}: expected the name of an option, as `name: value`")
        if key.value in {name for name, _, _ in pairs}:
            raise UserError(f"{place}: {key.value} is given twice; keep one")
        pairs.append((key.value, value, place))
    return pairs


def _check_keys(node: yaml.Node, path: Path) -> None:
    """Refuse a key given twice, at any depth."""
    if isinstance(node, yaml.MappingNode):
        for _, value, _ in _pairs(node, path):
            _check_keys(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value, path)


def _is_null(node: yaml.Node) -> bool:
    return node.tag == "tag:yaml.org,2002:null"
