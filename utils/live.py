"""Follows a run's files for all who look at it: the page as it is now, and what was logged since, as events.

    follower = Follower(directory, render, load)
    follower.page()              -> (mark, html)         rendered anew when something changed
    follower.greeting(mark)      -> (number, events)     what a viewer who saw up to `mark` has missed
    follower.poll()              -> [(number, event)]    what is new for everybody since the last poll

A mark says what a page or an event has covered: `state.epoch:metrics.completions,...`, the bytes of the two logs of
each run, behind a fingerprint of all that does not only grow (manifests, evaluations). The mark is the id of a
server-sent event, so a browser that reconnects names it (Last-Event-ID), and the logs themselves hold what it missed:
no journal is kept, and a restarted server answers as well. Three kinds of events are sent:

    append    {"charts": [{"key", "run", "kind", "steps", "values", "low", "high"}], "completions": [rows], "progress"}
    progress  {"run", "step", "planned_steps", "eta_s", "eta_of", "step_s", "status"}, every HEARTBEAT_S at least
    reload    nothing; more has changed than can be appended: take up the page anew, and follow from its mark

One poll serves all viewers: what it costs does not depend on how many there are, and no viewer touches the run's files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.columns import parse_row, table_of, to_part
from utils.errors import UserError
from utils.follow import planned_steps
from utils.panels import panels
from utils.report_data import charts, completion, flat, reward_names
from utils.runs import COMPLETIONS, MANIFEST, METRICS
from utils.series import HELD_OUT, STAGE_NAMES, Run, load_run, series_of, stages_of
from utils.terminal import Progress, seconds_a_step, seconds_left, take

WATCHED = (MANIFEST, "evaluation/*.json")
WATCHED_BELOW = (f"*/{MANIFEST}", "*/evaluation/*.json")
POLL_S = 1.0
HEARTBEAT_S = 10.0
RETRY_MS = 2000
SHORTEST_PAUSE_S, PAUSE_FACTOR = 1.0, 5
"""A page is rendered at most once a second, and never for more than a sixth of the time."""
RELOAD_PAUSE_S = 5.0
"""Between two events that make every viewer take up the page anew: a resumed run repeats some steps one by one."""
LONGEST_TAIL = 4 << 20
"""Bytes of a log that are sent as points and texts; a viewer who missed more takes up the page."""
PACE_TAIL = 1 << 17

Offsets = tuple[int, ...]


class Follower:
    """One run directory, its page, and how far its logs have been sent."""

    def __init__(
        self,
        directory: Path,
        render: Callable[[Run, str], str],
        load: Callable[[Path], Run] = load_run,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory, self.render, self.load, self.clock = directory, render, load, clock
        self.lock = threading.RLock()
        self.mark, self.html = "", ""
        self.fault: UserError | None = None
        self.not_before = self.reload_not_before = -float("inf")
        self.run: Run | None = None
        self.state, self.epoch, self.number = "", 0, 0
        self.watched = False
        self.news: list[tuple[int, bytes]] = []
        self.announced: tuple[str, int] | None = None
        self.sent: Offsets = ()
        self.progress: list[Progress] = []
        self.last_steps: dict[tuple[int, str], int] = {}

    def page(self) -> tuple[str, str]:
        """The mark and the page; a UserError where there is nothing to show. A stale page is good enough for a while,
        but not for a viewer who was told to take it up anew."""
        with self.lock:
            started = self.clock()
            state = files_version(self.directory)
            stale = not self.mark.startswith(f"{state}.{self.epoch}:")
            grown = self.mark != self._mark_of(state, self._sizes())
            if stale or (grown and started >= self.not_before):
                try:
                    run = self.load(self.directory)
                    mark = self._mark_of(state, read_of(run))
                    if self.run is None:
                        self._take_up(run, state)
                    self._advance()  # so that no event to come holds what this page has
                    self.html, self.mark, self.fault = self.render(run, mark), mark, None
                except UserError as fault:
                    self.fault = fault
                finally:
                    self.not_before = started + max(SHORTEST_PAUSE_S, PAUSE_FACTOR * (self.clock() - started))
            if self.fault and not self.html:
                raise self.fault
            return self.mark, self.html

    def greeting(self, mark: str) -> tuple[int, bytes]:
        """For a viewer who has seen up to `mark`: the number of the last event sent to everybody, and what it needs."""
        head = b"retry: %d\n\n" % RETRY_MS
        with self.lock:
            try:
                self._advance()
            except UserError:
                return self.number, head + self.heartbeat()
            seen = self._offsets_of(mark)
            news = event("reload", None, self._here()) if seen is None else self._append(seen, self.sent)
            return self.number, head + (news or self.heartbeat())

    def poll(self) -> list[tuple[int, bytes]]:
        """What is new since the last poll, as numbered events for everybody."""
        with self.lock:
            with contextlib.suppress(UserError):  # no run here just now: nothing is new
                self._advance()
            news, self.news = self.news, []
            return news

    def heartbeat(self) -> bytes:
        with self.lock:
            return event("progress", self.standing(), self._here()) if self.run else b": waiting\n\n"

    def standing(self) -> dict[str, Any] | None:
        """How far the training is: of several runs, the one that logged last among those under way. The pace of a
        warm-up tells nothing of the stage behind it: the time left is then the warm-up's, and `eta_of` says so."""
        if not self.progress or self.run is None:
            return None
        runs = runs_of(self.run)
        under_way = [
            (one.rows[-1].get("time") or 0.0, index)
            for index, one in enumerate(self.progress)
            if one.rows and runs[index].manifest.get("status") == "running"
        ]
        index = max(under_way)[1] if under_way else 0
        of_run, run = self.progress[index], runs[index]
        of_run.planned_steps = planned_steps(run.manifest, of_run.rows[-1] if of_run.rows else None)
        return {
            "run": index,
            "step": max(of_run.step, run.last_step),
            "planned_steps": run.planned_steps,
            "eta_s": seconds_left(of_run) if under_way else None,
            "eta_of": None if of_run.planned_steps == run.planned_steps else STAGE_NAMES.get(of_run.split),
            "step_s": seconds_a_step(of_run.rows),
            "status": run.manifest.get("status"),
        }

    # -------------------------------------------------------------------------------------------- what is known

    def _advance(self) -> None:
        """Take up what is new, and keep it for those who watch."""
        self._follow()
        self.announced = self.announced or (self.state, self.epoch)
        news = self._send() if self.announced == (self.state, self.epoch) else None
        if self.announced != (self.state, self.epoch) and self.clock() >= self.reload_not_before:
            self.announced = (self.state, self.epoch)
            self.reload_not_before = self.clock() + RELOAD_PAUSE_S
            news = event("reload", None, self._here())
        if news:
            self.number += 1
            self.news += [(self.number, news)] if self.watched else []

    def _follow(self) -> None:
        """Take the run up if it is new, or if what does not only grow has changed."""
        state = files_version(self.directory)
        shrunk = any(size < sent for size, sent in zip(self._sizes(), self.sent, strict=True))
        if self.run is None or state != self.state or shrunk:
            self._take_up(self.load(self.directory), state)
            self.epoch += shrunk

    def _take_up(self, run: Run, state: str) -> None:
        self.run, self.state, self.sent = run, state, read_of(run)
        self.last_steps = {
            (index, stage.split): stage.last_step for index, one in enumerate(runs_of(run)) for stage in one.stages
        }
        self.progress = [pace(one) for one in runs_of(run)]

    def _logs(self) -> list[Path]:
        return [run.path / name for run in runs_of(self.run) for name in (METRICS, COMPLETIONS)]

    def _sizes(self) -> Offsets:
        return tuple(_stat(path, "size") for path in self._logs())

    def _here(self) -> str:
        return self._mark_of(self.state, self.sent)

    def _mark_of(self, state: str, offsets: Offsets) -> str:
        places = [f"{offsets[index]}.{offsets[index + 1]}" for index in range(0, len(offsets), 2)]
        return f"{state}.{self.epoch}:{','.join(places)}"

    def _offsets_of(self, mark: str) -> Offsets | None:
        """What a viewer of this mark has seen; None where it cannot be continued."""
        head, _, places = mark.partition(":")
        numbers = places.replace(",", ".").split(".")
        if head != f"{self.state}.{self.epoch}" or not all(re.fullmatch("[0-9]{1,18}", number) for number in numbers):
            return None
        seen = tuple(map(int, numbers))
        if len(seen) != len(self.sent) or sum(self.sent) - sum(seen) > LONGEST_TAIL:
            return None
        return seen

    # ------------------------------------------------------------------------------------------------ what is new

    def _send(self) -> bytes | None:
        """The rows logged since the last time; or a new epoch, where they do more than go on."""
        assert self.run is not None
        sizes = self._sizes()
        if sizes == self.sent:
            return None
        if sum(sizes) - sum(self.sent) <= LONGEST_TAIL:
            tails = [tail(path, *span) for path, *span in zip(self._logs(), self.sent, sizes, strict=True)]
            before = self.sent
            self.sent = tuple(start + len(text) for start, text in zip(before, tails, strict=True))
            if self._goes_on(tails):
                return self._append(before, self.sent)
        self._take_up(self.load(self.directory), self.state)
        self.epoch += 1
        return None

    def _goes_on(self, tails: Sequence[bytes]) -> bool:
        """Do these rows only add to what is there? Not where steps are repeated, an alarm is raised, a stage begins or
        a reward has a new name. The paces are kept up on the way."""
        assert self.run is not None
        goes_on = True
        names = set(reward_names(_rows(self.run)))
        for index in range(len(self.progress)):
            for row in rows_of(tails[2 * index]):
                key = (index, str(row.get("split") or "train"))
                take(self.progress[index], row)
                known = key in self.last_steps or key[1] == HELD_OUT
                goes_on &= "alarm" not in row and known and row["step"] > self.last_steps.get(key, -1)
                self.last_steps[key] = row["step"]
            for row in rows_of(tails[2 * index + 1]):
                key = (index, COMPLETIONS)
                rewards = row.get("rewards")
                goes_on &= row["step"] >= self.last_steps.get(key, -1)
                goes_on &= not isinstance(rewards, dict) or set(rewards) <= names
                self.last_steps[key] = row["step"]
        return goes_on

    def _append(self, start: Offsets, end: Offsets) -> bytes | None:
        """The event that takes a viewer from one place to another; None where there is nothing between them."""
        found: dict[str, Any] = {"charts": [], "completions": []}
        logs, names = self._logs(), reward_names(_rows(self.run))
        spans = [(path, begin, stop) for path, begin, stop in zip(logs, start, end, strict=True)]
        if all(begin >= stop for _, begin, stop in spans):
            return None
        for index, run in enumerate(runs_of(self.run)):
            metrics, texts = (list(rows_of(tail(*span))) for span in spans[2 * index : 2 * index + 2])
            found["charts"] += new_points(index, run, metrics)
            found["completions"] += [completion(index, row, names) for row in texts]
        return event("append", found | {"progress": self.standing()}, self._mark_of(self.state, end))


def runs_of(run: Run | None) -> list[Run]:
    """The runs that a page shows, in the order in which its data counts them."""
    return [one for _, one in flat([("", run)])] if run else []


def read_of(run: Run) -> Offsets:
    """The bytes that a loaded run holds of each of its logs."""
    return tuple(end for one in runs_of(run) for end in one.read)


def _rows(run: Run | None) -> Iterator[dict[str, Any]]:
    return (row for one in runs_of(run) for row in one.completions)


def event(name: str, data: object, mark: str) -> bytes:
    """One server-sent event; JSON in ASCII has no line breaks, and half a surrogate pair stands as its escape."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return f"id: {mark}\nevent: {name}\ndata: {text}\n\n".encode("ascii")


def new_points(index: int, run: Run, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a log as pieces of lines: charts as a page of these rows alone would have them."""
    splits: dict[str, int] = {}
    table = table_of([to_part(rows, splits)], splits)
    logged = series_of(table)
    piece = replace(run, series=logged, stages=stages_of(table))
    found = [
        {"key": chart["key"], "run": index, **{name: line[name] for name in ("kind", "steps", "values", "low", "high")}}
        for chart in charts([piece], max(4, len(rows)))
        for line in chart["lines"]
        if line["kind"] == "value"
    ]
    shown = {panel.key for panel in panels(run)}
    for name, series in logged.items():
        metric = name.removeprefix(f"{HELD_OUT}/")
        key = "loss/train" if metric == "loss" else metric
        if name != metric and key in shown:
            points = {"steps": list(series.steps), "values": list(series.values), "low": None, "high": None}
            found.append({"key": key, "run": index, "kind": "held_out", **points})
    return found


def pace(run: Run) -> Progress:
    """How fast a run goes, by its last log events."""
    progress = Progress(run.path.name)
    end = run.read[0]
    for row in rows_of(tail(run.path / METRICS, max(0, end - PACE_TAIL), end)):
        take(progress, row)
    return progress


def tail(path: Path, start: int, end: int) -> bytes:
    """The whole lines between two places of a log; the last one may lack its newline."""
    if end <= start or not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(start)
        text = file.read(end - start)
    whole = text.rfind(b"\n") + 1
    return text if parse_row(text[whole:]) else text[:whole]


def rows_of(text: bytes) -> Iterator[dict[str, Any]]:
    return (row for line in text.split(b"\n") if (row := parse_row(line)) is not None)


def files_version(directory: Path, patterns: Sequence[str] | None = None) -> str:
    """Changes whenever a file does that is replaced rather than appended to, or one of these patterns; and whenever a
    log is another file."""
    seen = hashlib.sha256()
    if patterns is None:
        is_run = any((directory / name).exists() for name in (MANIFEST, METRICS))
        patterns = WATCHED if is_run else WATCHED + WATCHED_BELOW
        for path in sorted([*directory.glob("*.jsonl"), *([] if is_run else directory.glob("*/*.jsonl"))]):
            seen.update(f"{path.name} {_stat(path, 'ino')}\n".encode(errors="replace"))
    for pattern in patterns:
        for path in sorted(directory.glob(pattern)):
            facts = " ".join(str(_stat(path, name)) for name in ("size", "mtime_ns", "ino"))
            seen.update(f"{path.name} {facts}\n".encode(errors="replace"))
    return seen.hexdigest()[:16]


def _stat(path: Path, name: str) -> int:
    try:
        return int(getattr(path.stat(), f"st_{name}"))
    except FileNotFoundError:  # removed since the listing, by --overwrite
        return 0
