"""The state file of batches: what was made at the provider, or was about to be, when the process ended.

    with claimed(path):                             one process at a time
        state = read_state(path, endpoint)          an empty one where there is no file
        state.batches.append(Batch("subtext-1f0c...", keys, habits, since=time.time()))
        state.save()                                before the batch is made, and again when its id is known

It holds names, ids, times and request keys (hashes): no prompt, no answer, no API key.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from utils.api.endpoints import Endpoint
from utils.errors import UserError
from utils.files import open_locked, write_json_atomic

FORMAT = 1


@dataclass
class Batch:
    """A batch that was made or is about to be. `keys` are those of its requests, in the order of their custom ids."""

    name: str
    keys: list[str]
    habits: dict[str, Any]
    """As which the bodies were written: see `wires.Habits`."""
    since: float
    """Seconds since 1970: not made before."""
    id: str | None = None
    collected: bool = False
    """Whether its rows were read, and what they hold handed to the cache."""

    def custom_id(self, index: int) -> str:
        return f"{self.name}-{index}"


@dataclass
class State:
    path: Path
    endpoint: str
    batches: list[Batch] = field(default_factory=list)

    def save(self) -> None:
        batches = [asdict(batch) for batch in self.batches]
        write_json_atomic(self.path, {"format": FORMAT, "endpoint": self.endpoint, "batches": batches})


def read_state(path: Path, endpoint: Endpoint) -> State:
    """The state that the file holds; an empty one without a file, or where it holds read batches of another endpoint.

    Raises:
        UserError: it cannot be read, is none, or has batches of another endpoint that were not read.
    """
    if not path.exists():
        return State(path, str(endpoint))
    try:
        held = json.loads(path.read_text("utf-8"))
        if held["format"] != FORMAT:
            raise ValueError
        state = State(path, held["endpoint"], [Batch(**batch) for batch in held["batches"]])
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: not a list of batches of this version; remove it to begin anew (its batches are paid for again)"
        ) from None
    if state.endpoint != str(endpoint) and all(batch.collected for batch in state.batches):
        return State(path, str(endpoint))
    if state.endpoint != str(endpoint):
        raise UserError(
            f"{path}: batches of {state.endpoint} are under way, this run asks {endpoint}; give that model to go on, "
            "or remove the file to begin anew"
        )
    return state


@contextlib.contextmanager
def claimed(state: Path) -> Iterator[None]:
    """One process at a time: two with the same state would each make the batches.

    Raises:
        UserError: another process has it.
    """
    path = state.with_name(f"{state.name}.lock")
    descriptor = open_locked(path, f"{state}: another process waits for these batches; wait until it has ended")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
