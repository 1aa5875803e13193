"""Paid answers on disk: the same request has the same answer, and is never paid twice.

    cache = open_cache(options)
    key = request_key(endpoint, ask)
    cache.get(key)  ->  Answer(..., cached=True) | Failed(..., cached=True) | None
    cache.put(key, reply)

One SQLite file in the cache directory, readable by its user alone, in WAL mode: a reply is committed before it is
handed on, a killed process loses none, and several processes may share it. The key is the SHA-256 of provider, address,
model and every field of the Ask: prompts are not stored, answers are. To forget everything, delete the directory.

A reply that cannot be used (a refusal, broken JSON, ...) was paid for, too: it is kept for a day, so that a run that
was killed goes on where it was, and asked for afresh after that. Faults of the server are never kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from utils.api.endpoints import Endpoint
from utils.api.options import ApiOptions
from utils.api.types import Answer, Ask, Failed, Usage
from utils.errors import UserError, WorkError

DEFAULT = Path("~/.cache/subtext/api")
FAILURE_KEPT_S = 24 * 3600
PAID_FAILURES = {"refusal", "truncated", "empty", "invalid_json", "off_schema"}
BUSY_S = 60.0
"""How long another process may hold the file."""


def request_key(endpoint: Endpoint, ask: Ask) -> str:
    """Hexadecimal SHA-256 of what makes two requests the same."""
    parts = [endpoint.provider, endpoint.url, endpoint.model, asdict(ask)]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class Cache:
    """Replies by request key. `path` None: nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file = None if path is None else _opened(path)

    def get(self, key: str) -> Answer | Failed | None:
        if self._file is None:
            return None
        with self._reported():
            row = self._file.execute("SELECT time, reply FROM replies WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        fields = json.loads(row[1])
        fields["usage"] = Usage(**fields["usage"])
        if "reason" not in fields:
            return Answer(**fields, cached=True)
        return Failed(**fields, cached=True) if time.time() - row[0] < FAILURE_KEPT_S else None

    def put(self, key: str, reply: Answer | Failed) -> None:
        """Keep a reply that was paid for; on return it is on disk."""
        if self._file is None or (isinstance(reply, Failed) and reply.reason not in PAID_FAILURES):
            return
        fields = asdict(reply)
        del fields["cached"]
        with self._reported():
            self._file.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?, ?)",
                (key, time.time(), json.dumps(fields, ensure_ascii=True)),
            )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise WorkError(f"cache {self.path}: {error}; free some space, or choose another --cache_dir") from None


def open_cache(options: ApiOptions) -> Cache:
    """The cache that the options name.

    Raises:
        UserError: its directory cannot be made, or the file is no cache.
    """
    if options.cache_dir == "none":
        return Cache(None)
    directory = Path(options.cache_dir or DEFAULT).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = directory / "replies_1.sqlite"
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise UserError(f"--cache_dir {directory}: {error.strerror or error}; choose another, or none") from None
    return Cache(path)


def _opened(path: Path) -> sqlite3.Connection:
    try:
        file = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = NORMAL")
        file.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, time REAL, reply TEXT) WITHOUT ROWID")
    except sqlite3.Error as error:
        raise UserError(
            f"--cache_dir: {path} cannot be used ({error}); delete it, or choose another directory"
        ) from None
    return file
