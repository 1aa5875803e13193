"""The batch endpoints of both providers behind one set of functions: upload, create, find again, look, read the rows.

    provider = batch_provider("openai")
    upload = await provider.upload(sdk, "subtext-1f0c...", lines)
    batch_id = await provider.create(sdk, "subtext-1f0c...", "/v1/chat/completions", upload)
    look = await provider.look(sdk, batch_id)       ->  Look(ended=False, done=120, total=500)
    rows = await provider.rows(sdk, batch_id)       ->  [Row("subtext-1f0c...-17", "succeeded", reply={...}), ...]

`sdk` is an AsyncOpenAI or AsyncAnthropic client. A batch is created once: creation is never repeated here, since a lost
reply does not say that the batch was not made. `find` answers that question:

- OpenAI keeps metadata with a batch, so ours carries its name.
- Anthropic keeps none, but every row has a custom id, which starts with the batch's name. Custom ids are seen in the
  results only: a batch of our size made after our intent is waited for until it has ended, then its first row tells.

Everything else only reads, or uploads a file that nobody runs, and may be repeated. A reply that is none of these APIs
is a BrokenReply.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from utils.api.wires import BrokenReply

TRANSFER_TIMEOUT_S = 600.0
"""Without any progress of an upload or download: files have up to 256 MB, and are checked before the reply."""
CLOCK_SKEW_S = 300.0
"""How far the provider's clock may be behind ours."""
NAME_KEY = "subtext"

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Look:
    """Where a batch stands; `refused` is the provider's message where it would not run any of it."""

    ended: bool
    done: int
    total: int
    status: str
    refused: str | None = None
    code: str = ""


@dataclass(frozen=True)
class Row:
    """What became of one request.

    outcome    succeeded (`reply` is the body the live route would have sent), refused (4xx, the request's own fault),
               unavailable (the provider's fault), expired, cancelled
    status     of the HTTP reply that the live route would have sent; `code` its error's code or type
    """

    custom_id: str
    outcome: str
    reply: dict[str, Any] | None = None
    detail: str = ""
    request_id: str | None = None
    status: int = 200
    code: str = ""


@dataclass(frozen=True)
class Wanted:
    """What is known of a batch whose creation is in doubt; times in seconds since 1970."""

    name: str
    since: float
    size: int
    not_these: frozenset[str]
    pause: Callable[[str], Awaitable[None]]
    """Sleeps until a batch (named by its id) is worth another look."""


@dataclass(frozen=True)
class BatchProvider:
    """Limits of one batch, and the calls."""

    max_requests: int
    max_bytes: int
    line: Callable[[str, str, dict[str, Any]], str]
    """(custom id, path, body) -> what is sent for one request, as JSON."""
    upload: Callable[[Any, str, list[str]], Awaitable[Any]]
    create: Callable[[Any, str, str, Any], Awaitable[str]]
    find: Callable[[Any, Wanted], Awaitable[str | None]]
    look: Callable[[Any, str], Awaitable[Look]]
    rows: Callable[[Any, str], Awaitable[list[Row]]]


def batch_provider(provider: str) -> BatchProvider:
    """The batch endpoint of "openai" or "anthropic"."""
    if provider == "openai":
        return BatchProvider(
            max_requests=50_000,
            max_bytes=200 * MEGABYTE,
            line=_openai_line,
            upload=_upload_openai,
            create=_create_openai,
            find=_find_openai,
            look=_look_openai,
            rows=_rows_openai,
        )
    return BatchProvider(
        max_requests=100_000,
        max_bytes=256 * MEGABYTE,
        line=_anthropic_line,
        upload=_upload_nothing,
        create=_create_anthropic,
        find=_find_anthropic,
        look=_look_anthropic,
        rows=_rows_anthropic,
    )


@contextlib.contextmanager
def _as_documented() -> Iterator[None]:
    """What is not shaped as the API's replies are is a BrokenReply."""
    try:
        yield
    except BrokenReply:
        raise
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BrokenReply("the reply is none of the batch API") from None


def _json(row: dict[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(row, ensure_ascii=False)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BrokenReply("the reply holds no id")
    return value


# --- OpenAI -----------------------------------------------------------------------------------------------------------


def _openai_line(custom_id: str, path: str, body: dict[str, Any]) -> str:
    return _json({"custom_id": custom_id, "method": "POST", "url": path, "body": body})


async def _upload_openai(sdk: Any, name: str, lines: list[str]) -> Any:
    content = "".join(line + "\n" for line in lines).encode()
    uploader = sdk.with_options(timeout=TRANSFER_TIMEOUT_S)
    with _as_documented():
        return _text((await uploader.files.create(file=(f"{name}.jsonl", content), purpose="batch")).id)


async def _create_openai(sdk: Any, name: str, path: str, upload: Any) -> str:
    with _as_documented():
        made = await sdk.batches.create(
            input_file_id=upload, endpoint=path, completion_window="24h", metadata={NAME_KEY: name}
        )
        return _text(made.id)


async def _find_openai(sdk: Any, wanted: Wanted) -> str | None:
    with _as_documented():
        async for batch in sdk.batches.list(limit=100):
            if batch.created_at < wanted.since - CLOCK_SKEW_S:
                return None
            if (batch.metadata or {}).get(NAME_KEY) == wanted.name:
                return _text(batch.id)
    return None


async def _look_openai(sdk: Any, batch_id: str) -> Look:
    with _as_documented():
        batch = await sdk.batches.retrieve(batch_id)
        counts = batch.request_counts
        done, total = (counts.completed + counts.failed, counts.total) if counts else (0, 0)
        refused, code = None, ""
        if batch.status == "failed":
            faults = (batch.errors.data if batch.errors else None) or []
            words = [f"{fault.message}" + (f" (line {fault.line})" if fault.line else "") for fault in faults[:3]]
            refused, code = "; ".join(words) or "no reason given", str(faults[0].code) if faults else ""
        ended = batch.status in ("completed", "failed", "expired", "cancelled")
        return Look(ended, done, total, batch.status, refused, code)


async def _rows_openai(sdk: Any, batch_id: str) -> list[Row]:
    reader = sdk.with_options(timeout=TRANSFER_TIMEOUT_S)
    rows: list[Row] = []
    with _as_documented():
        batch = await reader.batches.retrieve(batch_id)
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            content = (await reader.files.content(file_id)).content
            rows += [_openai_row(json.loads(line)) for line in content.splitlines() if line.strip()]
    return rows


def _openai_row(row: dict[str, Any]) -> Row:
    custom_id, response, error = str(row["custom_id"]), row.get("response"), row.get("error")
    if response and response["status_code"] == 200:
        return Row(custom_id, "succeeded", response["body"], request_id=response.get("request_id"))
    if response:
        status = int(response["status_code"])
        fault = (response.get("body") or {}).get("error") or {}
        outcome = "unavailable" if status >= 500 or status in (408, 409, 429) else "refused"
        said = str(fault.get("message") or f"status {status}")
        return Row(custom_id, outcome, None, said, status=status, code=str(fault.get("code") or fault.get("type")))
    code = str((error or {}).get("code") or "")
    outcomes = {"batch_expired": "expired", "batch_cancelled": "cancelled"}
    return Row(custom_id, outcomes.get(code, "unavailable"), None, str((error or {}).get("message") or code))


# --- Anthropic --------------------------------------------------------------------------------------------------------

_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
}


def _anthropic_line(custom_id: str, path: str, body: dict[str, Any]) -> str:
    return _json({"custom_id": custom_id, "params": body})


async def _upload_nothing(sdk: Any, name: str, lines: list[str]) -> Any:
    """The requests themselves are sent when the batch is created."""
    return [json.loads(line) for line in lines]


async def _create_anthropic(sdk: Any, name: str, path: str, upload: Any) -> str:
    creator = sdk.with_options(timeout=TRANSFER_TIMEOUT_S)
    with _as_documented():
        return _text((await creator.messages.batches.create(requests=upload)).id)


async def _find_anthropic(sdk: Any, wanted: Wanted) -> str | None:
    with _as_documented():
        async for batch in sdk.messages.batches.list(limit=100):
            if batch.created_at.timestamp() < wanted.since - CLOCK_SKEW_S:
                return None
            counts = batch.request_counts
            size = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
            if size != wanted.size or batch.id in wanted.not_these:
                continue
            if (await _first_custom_id(sdk, batch.id, wanted)).startswith(f"{wanted.name}-"):
                return _text(batch.id)
    return None


async def _first_custom_id(sdk: Any, batch_id: str, wanted: Wanted) -> str:
    """The custom id of a row, once the batch has ended; "" where it has none to show."""
    while not (await _look_anthropic(sdk, batch_id)).ended:
        await wanted.pause(batch_id)
    rows = await _rows_anthropic(sdk, batch_id)
    return rows[0].custom_id if rows else ""


async def _look_anthropic(sdk: Any, batch_id: str) -> Look:
    with _as_documented():
        batch = await sdk.messages.batches.retrieve(batch_id)
        counts = batch.request_counts
        done = counts.succeeded + counts.errored + counts.canceled + counts.expired
        return Look(batch.processing_status == "ended", done, done + counts.processing, batch.processing_status)


async def _rows_anthropic(sdk: Any, batch_id: str) -> list[Row]:
    """The rows of an ended batch; none where the provider keeps them no longer. They are fetched from the address that
    was given, whatever `results_url` says: the key goes nowhere else."""
    import httpx2

    reader = sdk.with_options(timeout=TRANSFER_TIMEOUT_S)
    with _as_documented():
        if (await reader.messages.batches.retrieve(batch_id)).results_url is None:
            return []
        response = await reader.get(f"/v1/messages/batches/{quote(batch_id, safe='')}/results", cast_to=httpx2.Response)
        return [_anthropic_row(json.loads(line)) for line in response.content.splitlines() if line.strip()]


def _anthropic_row(row: dict[str, Any]) -> Row:
    custom_id, result = str(row["custom_id"]), row["result"]
    if result["type"] == "succeeded":
        return Row(custom_id, "succeeded", result["message"])
    if result["type"] == "errored":
        fault = result["error"]["error"]
        status = _STATUS.get(fault["type"], 500)
        outcome = "refused" if status < 500 else "unavailable"
        return Row(custom_id, outcome, None, str(fault["message"]), status=status, code=str(fault["type"]))
    outcome = "cancelled" if result["type"] == "canceled" else "expired"
    return Row(custom_id, outcome, None, f"the request was {outcome}, not run")
