import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from utils.api import cache as cache_module
from utils.api.cache import open_cache, request_key
from utils.api.endpoints import Endpoint
from utils.api.options import ApiOptions
from utils.api.types import Answer, Ask, Failed, Usage
from utils.errors import UserError

ENDPOINT = Endpoint("openai", "m")
ASK = Ask(({"role": "user", "content": "a question of mine"},))
ANSWER = Answer("text ✓", {"a": [1, None]}, "m-1", "req_1", Usage(3, 4), "2025-01-01T00:00:00+00:00")

WRITER = """
import sys
from utils.api.cache import open_cache
from utils.api.options import ApiOptions
from utils.api.types import Answer, Usage
cache = open_cache(ApiOptions(cache_dir=sys.argv[1]))
for number in range(100_000):
    cache.put(f"{sys.argv[2]}{number}", Answer(str(number), None, "m", None, Usage(), ""))
    print(number, flush=True)
"""


def test_every_field_makes_another_request() -> None:
    others = [
        replace(ASK, messages=({"role": "user", "content": "another"},)),
        replace(ASK, max_tokens=1),
        replace(ASK, temperature=0.0),
        replace(ASK, schema={"type": "object"}),
        replace(ASK, sample=1),
        replace(ASK, raw_prompt=True),
    ]
    endpoints = [Endpoint("anthropic", "m"), Endpoint("openai", "m2"), Endpoint("openai", "m", "http://h/v1")]
    keys = {request_key(ENDPOINT, ask) for ask in (ASK, *others)} | {request_key(end, ASK) for end in endpoints}
    assert len(keys) == 10
    assert request_key(ENDPOINT, ASK) == request_key(Endpoint("openai", "m"), replace(ASK))


def test_what_is_put_is_found_by_another_process_later(tmp_path: Path) -> None:
    options = ApiOptions(cache_dir=str(tmp_path / "a" / "b"))
    first = open_cache(options)
    first.put("answer", ANSWER)
    first.put("refusal", Failed("refusal", "no", "I can't", Usage(1, 2)))
    first.put("fault", Failed("unavailable", "503"))
    first.put("bad", Failed("bad_request", "400"))
    second = open_cache(options)
    assert second.get("answer") == replace(ANSWER, cached=True)
    assert second.get("refusal") == Failed("refusal", "no", "I can't", Usage(1, 2), cached=True)
    assert [second.get(key) for key in ("fault", "bad", "never")] == [None] * 3
    first.close()
    second.close()


def test_a_failure_is_kept_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(ApiOptions(cache_dir=str(tmp_path)))
    cache.put("key", Failed("empty"))
    now = cache_module.time.time()
    monkeypatch.setattr(cache_module.time, "time", lambda: now + 24 * 3600 + 1)
    assert cache.get("key") is None
    cache.put("key", ANSWER)
    assert cache.get("key") == replace(ANSWER, cached=True)
    cache.close()


def test_only_the_user_can_read_it_and_it_holds_no_prompt(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    cache = open_cache(ApiOptions(cache_dir=str(directory)))
    cache.put(request_key(ENDPOINT, ASK), ANSWER)
    files = sorted(directory.iterdir())
    assert len(files) == 3 and all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert all(b"question of mine" not in file.read_bytes() for file in files)
    cache.close()


def test_none_is_no_cache_and_a_wrong_place_is_refused(tmp_path: Path) -> None:
    cache = open_cache(ApiOptions(cache_dir="none"))
    cache.put("key", ANSWER)
    assert cache.get("key") is None and not Path("none").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--cache_dir .*file"):
        open_cache(ApiOptions(cache_dir=str(tmp_path / "file")))
    (tmp_path / "replies_1.sqlite").write_text("no database" * 100)
    with pytest.raises(UserError, match="cannot be used"):
        open_cache(ApiOptions(cache_dir=str(tmp_path)))


def test_two_processes_share_it_and_a_killed_one_loses_nothing(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name], stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    last = []
    for writer in writers:
        assert writer.stdout is not None
        for _ in range(100):
            line = writer.stdout.readline()
        last.append(int(line))
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    cache = open_cache(ApiOptions(cache_dir=str(tmp_path)))
    for name, number in zip("ab", last, strict=True):
        assert number == 99
        for index in range(number + 1):
            found = cache.get(f"{name}{index}")
            assert isinstance(found, Answer) and found.text == str(index)
    cache.close()
