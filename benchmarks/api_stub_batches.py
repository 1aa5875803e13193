"""The batch routes of the stub server: OpenAI's /v1/files and /v1/batches, Anthropic's /v1/messages/batches.

    desk = BatchDesk(answer=answer, polls=3, fate=lambda index, body: "expired" if index == 4 else "ok")
    Starlette(routes=[*routes_of_live_requests, *batch_routes(desk)])

A batch is answered when it is created, by `answer(path, body) -> (status, reply)`: what the live route says to the same
body. It shows itself as finished at the `polls`-th look. Results come in reverse order, as the order means nothing.

The desk keeps what a test wants to know: every request of every batch in the order of arrival (`desk.submitted`), how
many batches were made (`desk.batches`), and every file. `keep_reply` loses the reply to a creation that took place:
what a client sees of a connection that broke at that moment. `on_create` is called between the creation and its reply,
where a test may kill the client.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

Json = dict[str, Any]
Reply = tuple[int, Json]
Guard = Callable[[Request], Awaitable[Response | None]]

COMPLETION_WINDOW_S = 24 * 3600


@dataclass
class Batch:
    """One batch of either provider; `requests` are pairs of custom id and body, `results` what became of them."""

    id: str
    provider: str
    requests: list[tuple[str, Json]]
    created: float
    fields: Json = field(default_factory=dict)
    results: list[tuple[str, str, Reply]] = field(default_factory=list)
    ends: str = "completed"
    looks: int = 0
    cancelled: bool = False
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class BatchDesk:
    """What the batch routes do and what they have seen.

    fate(index, body)   ok, errored (an error of the request, 400), server_error (500), expired, canceled, or
                        missing (no row at all)
    ends                completed, failed (OpenAI: refused by validation, nothing is run), expired
    keep_reply(n)       whether the reply to the n-th creation (from 0) is sent at all
    failed_code         why a batch that ends failed was refused
    troubles            statuses of errors that the next calls are answered with, one each
    """

    answer: Callable[[str, Json], Reply]
    polls: int = 2
    fate: Callable[[int, Json], str] = lambda index, body: "ok"
    ends: str = "completed"
    failed_code: str = "invalid_request"
    keep_reply: Callable[[int], bool] = lambda number: True
    on_create: Callable[[Batch], None] = lambda batch: None
    troubles: list[int] = field(default_factory=list)
    batches: dict[str, Batch] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    submitted: list[Json] = field(default_factory=list)
    ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))


async def _open(request: Request) -> Response | None:
    return None


def batch_routes(desk: BatchDesk, guard: Guard = _open) -> list[Route]:
    """The routes; `guard` may answer first (a wrong key, an injected fault), as it does for live requests."""

    def guarded(handler: Callable[[BatchDesk, Request], Awaitable[Response]]) -> Any:
        async def endpoint(request: Request) -> Response:
            if desk.troubles:
                return JSONResponse({"error": {"type": "api_error", "message": "trouble"}}, desk.troubles.pop(0))
            return await guard(request) or await handler(desk, request)

        return endpoint

    def route(path: str, method: str, handler: Any) -> Route:
        return Route(path, guarded(handler), methods=[method])

    return [
        route("/v1/files", "POST", _upload),
        route("/v1/files/{file_id}/content", "GET", _file_content),
        route("/v1/files/{file_id}", "DELETE", _delete_file),
        route("/v1/batches", "POST", _create_openai),
        route("/v1/batches", "GET", _list_openai),
        route("/v1/batches/{batch_id}", "GET", _retrieve_openai),
        route("/v1/batches/{batch_id}/cancel", "POST", _cancel_openai),
        route("/v1/messages/batches", "POST", _create_anthropic),
        route("/v1/messages/batches", "GET", _list_anthropic),
        route("/v1/messages/batches/{batch_id}", "GET", _retrieve_anthropic),
        route("/v1/messages/batches/{batch_id}/results", "GET", _results_anthropic),
        route("/v1/messages/batches/{batch_id}/cancel", "POST", _cancel_anthropic),
    ]


class LostReply(Response):
    """Promises a body and breaks the connection in the middle of it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"id": "', "more_body": False})


def _made(desk: BatchDesk, batch: Batch, shown: Json) -> Response:
    """Book the batch, answer its requests, and reply (or not)."""
    number = len(desk.batches)
    desk.batches[batch.id] = batch
    batch.ends = desk.ends
    desk.submitted += [body for _, body in batch.requests]
    path = batch.fields.get("endpoint", "/v1/messages")
    if batch.ends != "failed":
        for index, (custom_id, body) in enumerate(batch.requests):
            fate = "expired" if batch.ends == "expired" and index % 2 else desk.fate(index, body)
            reply = desk.answer(path, body) if fate == "ok" else (500 if fate == "server_error" else 400, {})
            batch.results.append((custom_id, fate, reply))
        batch.results.reverse()
    desk.on_create(batch)
    return JSONResponse(shown) if desk.keep_reply(number) else LostReply()


def _page(batches: list[Json], request: Request, after: str) -> tuple[list[Json], bool]:
    """The page of a list, newest first, that `limit` (20) and the cursor ask for, and whether more follow."""
    newest_first = batches[::-1]
    cursor = request.query_params.get(after)
    start = next((place + 1 for place, shown in enumerate(newest_first) if shown["id"] == cursor), 0)
    end = start + int(request.query_params.get("limit", 20))
    return newest_first[start:end], end < len(newest_first)


# --- OpenAI -----------------------------------------------------------------------------------------------------------


def _openai_error(status: int, message: str) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status_code=status)


async def _upload(desk: BatchDesk, request: Request) -> Response:
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    parts: dict[str, bytes] = {}
    for part in message_from_bytes(head + await request.body()).walk():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if name and isinstance(content, bytes):
            parts[str(name)] = content
    if parts.get("purpose", b"").strip() != b"batch" or "file" not in parts:
        return _openai_error(400, "'purpose' must be 'batch' and 'file' must be a file")
    return JSONResponse(_file(_stored(desk, parts["file"]), len(parts["file"]), "batch"))


def _stored(desk: BatchDesk, content: bytes) -> str:
    file_id = f"file-{next(desk.ids):06d}"
    desk.files[file_id] = content
    return file_id


def _file(file_id: str, size: int, purpose: str) -> Json:
    now = int(time.time())
    about = {"object": "file", "filename": "batch.jsonl", "purpose": purpose, "status": "processed"}
    return {"id": file_id, "bytes": size, "created_at": now, **about}


async def _file_content(desk: BatchDesk, request: Request) -> Response:
    content = desk.files.get(request.path_params["file_id"])
    if content is None:
        return _openai_error(404, f"No such File object: {request.path_params['file_id']}")
    return Response(content, media_type="application/octet-stream")


async def _delete_file(desk: BatchDesk, request: Request) -> Response:
    file_id = request.path_params["file_id"]
    if desk.files.pop(file_id, None) is None:
        return _openai_error(404, f"No such File object: {file_id}")
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


async def _create_openai(desk: BatchDesk, request: Request) -> Response:
    options = await request.json()
    content = desk.files.get(options["input_file_id"])
    if content is None:
        return _openai_error(400, f"Invalid 'input_file_id': no such file {options['input_file_id']}")
    if options.get("completion_window") != "24h":
        return _openai_error(400, "Invalid 'completion_window': only 24h is supported")
    rows = [json.loads(line) for line in content.splitlines()]
    wrong = [row for row in rows if row["method"] != "POST" or row["url"] != options["endpoint"]]
    if wrong or len({row["custom_id"] for row in rows}) != len(rows):
        return _openai_error(400, "the input file has a row for another endpoint, or a custom_id twice")
    requests = [(row["custom_id"], row["body"]) for row in rows]
    batch = Batch(f"batch_{next(desk.ids):06d}", "openai", requests, time.time(), options)
    return _made(desk, batch, _openai_shown(desk, batch))


def _openai_shown(desk: BatchDesk, batch: Batch) -> Json:
    status = _openai_status(desk, batch)
    if status in ("completed", "expired", "cancelled") and not batch.files:
        _write_openai_files(desk, batch)
    succeeded = sum(1 for _, fate, (code, _) in batch.results if fate == "ok" and code == 200)
    error = {"code": desk.failed_code, "line": 1, "message": "the model 'x' is not supported", "param": "body.model"}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.fields["endpoint"],
        "errors": {"object": "list", "data": [error]} if status == "failed" else None,
        "input_file_id": batch.fields["input_file_id"],
        "completion_window": "24h",
        "status": status,
        "output_file_id": batch.files.get("output"),
        "error_file_id": batch.files.get("error"),
        "created_at": int(batch.created),
        "expires_at": int(batch.created) + COMPLETION_WINDOW_S,
        "request_counts": {
            "total": len(batch.requests),
            "completed": succeeded if batch.files else 0,
            "failed": len(batch.results) - succeeded if batch.files else 0,
        },
        "metadata": batch.fields.get("metadata"),
    }


def _openai_status(desk: BatchDesk, batch: Batch) -> str:
    if batch.cancelled:
        return "cancelled"
    if batch.looks >= desk.polls:
        return batch.ends
    return "validating" if batch.looks == 0 else "in_progress"


def _write_openai_files(desk: BatchDesk, batch: Batch) -> None:
    output: list[str] = []
    errors: list[str] = []
    words = {
        "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
        "canceled": ("batch_cancelled", "This request was not executed because the batch was cancelled."),
    }
    for custom_id, fate, (status, body) in batch.results:
        row: Json = {"id": f"batch_req_{next(desk.ids):06d}", "custom_id": custom_id, "response": None, "error": None}
        if fate in words:
            row["error"] = {"code": words[fate][0], "message": words[fate][1]}
        elif fate != "missing":
            kind = "server_error" if status >= 500 else "invalid_request_error"
            body = body or {"error": {"message": "the stub refused this row", "type": kind, "code": None}}
            row["response"] = {"status_code": status, "request_id": f"req_{row['id']}", "body": body}
        if fate != "missing":
            (output if fate == "ok" and status == 200 else errors).append(json.dumps(row))
    for name, lines in (("output", output), ("error", errors)):
        if lines:
            batch.files[name] = _stored(desk, "".join(line + "\n" for line in lines).encode())


async def _retrieve_openai(desk: BatchDesk, request: Request) -> Response:
    batch = desk.batches.get(request.path_params["batch_id"])
    if batch is None:
        return _openai_error(404, f"No batch found with id '{request.path_params['batch_id']}'.")
    batch.looks += 1
    return JSONResponse(_openai_shown(desk, batch))


async def _list_openai(desk: BatchDesk, request: Request) -> Response:
    shown = [_openai_shown(desk, batch) for batch in desk.batches.values() if batch.provider == "openai"]
    page, more = _page(shown, request, "after")
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return JSONResponse({"object": "list", "data": page, **ends, "has_more": more})


async def _cancel_openai(desk: BatchDesk, request: Request) -> Response:
    batch = desk.batches[request.path_params["batch_id"]]
    batch.cancelled = True
    return JSONResponse({**_openai_shown(desk, batch), "status": "cancelling"})


# --- Anthropic --------------------------------------------------------------------------------------------------------


def _anthropic_error(status: int, kind: str, message: str) -> Response:
    return JSONResponse({"type": "error", "error": {"type": kind, "message": message}}, status_code=status)


async def _create_anthropic(desk: BatchDesk, request: Request) -> Response:
    rows = (await request.json())["requests"]
    if len({row["custom_id"] for row in rows}) != len(rows) or not rows:
        return _anthropic_error(400, "invalid_request_error", "requests: at least one, each custom_id once")
    requests = [(row["custom_id"], row["params"]) for row in rows]
    batch = Batch(f"msgbatch_{next(desk.ids):06d}", "anthropic", requests, time.time())
    base = str(request.base_url).rstrip("/")
    batch.fields["results_url"] = f"{base}/v1/messages/batches/{batch.id}/results"
    return _made(desk, batch, _anthropic_shown(desk, batch))


_SUCCEEDED = {"ok": "succeeded", "server_error": "errored", "missing": "succeeded"}


def _anthropic_outcome(fate: str, status: int) -> str:
    """succeeded, errored, expired or canceled."""
    return "errored" if fate == "ok" and status != 200 else _SUCCEEDED.get(fate, fate)


def _anthropic_shown(desk: BatchDesk, batch: Batch) -> Json:
    ended = batch.looks >= desk.polls or batch.cancelled
    counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
    for _, fate, (status, _) in batch.results:
        counts[_anthropic_outcome(fate, status) if ended else "processing"] += 1
    created = datetime.fromtimestamp(batch.created, UTC)
    expires = created + timedelta(seconds=COMPLETION_WINDOW_S)
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": "ended" if ended else "in_progress",
        "request_counts": counts,
        "created_at": created.isoformat(),
        "expires_at": expires.isoformat(),
        "ended_at": created.isoformat() if ended else None,
        "archived_at": None,
        "cancel_initiated_at": created.isoformat() if batch.cancelled else None,
        "results_url": batch.fields["results_url"] if ended else None,
    }


async def _retrieve_anthropic(desk: BatchDesk, request: Request) -> Response:
    batch = desk.batches.get(request.path_params["batch_id"])
    if batch is None:
        return _anthropic_error(404, "not_found_error", "batch not found")
    batch.looks += 1
    return JSONResponse(_anthropic_shown(desk, batch))


async def _list_anthropic(desk: BatchDesk, request: Request) -> Response:
    shown = [_anthropic_shown(desk, batch) for batch in desk.batches.values() if batch.provider == "anthropic"]
    page, more = _page(shown, request, "after_id")
    ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return JSONResponse({"data": page, **ends, "has_more": more})


async def _results_anthropic(desk: BatchDesk, request: Request) -> Response:
    batch = desk.batches[request.path_params["batch_id"]]
    rows = []
    for custom_id, fate, (status, body) in batch.results:
        outcome = _anthropic_outcome(fate, status)
        result: Json = {"type": outcome}
        if outcome == "succeeded":
            result["message"] = body
        elif outcome == "errored":
            kind = "api_error" if status >= 500 else "invalid_request_error"
            refused = {"type": "error", "error": {"type": kind, "message": "the stub refused this row"}}
            result["error"] = body or refused
        if fate != "missing":
            rows.append(json.dumps({"custom_id": custom_id, "result": result}) + "\n")
    return Response("".join(rows), media_type="application/x-jsonl")


async def _cancel_anthropic(desk: BatchDesk, request: Request) -> Response:
    batch = desk.batches[request.path_params["batch_id"]]
    batch.cancelled = True
    return JSONResponse({**_anthropic_shown(desk, batch), "processing_status": "canceling"})
