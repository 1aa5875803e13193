"""What an error of the SDK means: ask again, stop everything, or give up this one request.

    retry         408, 409, 429, 5xx, 529, no connection, time-out, a reply that breaks off or is none: sent again
    fatal         401, 403, unknown model (404, or the code for it), no money left, and a redirect, as a key goes to the
                  address that was given and to no other: the same for every request
    bad_request   400, 413, 422 and the like: this request is at fault

`Retry-After` comes in seconds, as `retry-after-ms`, or as an HTTP date.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from utils.api.endpoints import Endpoint, Key
from utils.api.wires import one_line

RETRIED = {408, 409, 429}
REFUSED = {301, 302, 303, 307, 308, 401, 402, 403, 404}
RATE_LIMIT = "429"
UNKNOWN_MODEL = {"model_not_found", "invalid_model", "model_not_available"}
NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error"}
_NO_MONEY = re.compile(r"credit balance is too low|exceeded your current quota", re.IGNORECASE)
_KEYS = re.compile(r"\bsk-[\w*.-]{4,}")


@dataclass(frozen=True)
class Fault:
    """kind: what to do; reason: a short name to count by; words: for the user; paid: it may have been paid for."""

    kind: Literal["retry", "fatal", "bad_request"]
    reason: str
    words: str
    wait_s: float | None = None
    paid: bool = False


def fault_of(error: Exception, sdk: ModuleType, endpoint: Endpoint, key: Key, timeout_s: float) -> Fault | None:
    """What this error means; None: it is no fault of server or connection but a bug."""
    if isinstance(error, TimeoutError | sdk.APITimeoutError):
        return Fault("retry", "time-out", f"{endpoint.url} did not answer within {timeout_s:g} s", paid=True)
    if isinstance(error, sdk.APIStatusError):
        return _fault_of_status(error, endpoint, key)
    if isinstance(error, sdk.APIConnectionError):
        cause = error.__cause__
        words = one_line(str(cause or error)) or type(cause).__name__
        if type(cause).__name__ == "ConnectError":
            way_out = "check the address, and that the server runs"
            return Fault("retry", "no connection", f"{endpoint.url} cannot be reached ({words}); {way_out}")
        return Fault("retry", "broken connection", f"{endpoint.url} broke off ({words})", paid=True)
    if isinstance(error, ValueError):
        return Fault("retry", "broken reply", f"{endpoint.url}: {one_line(str(error))}", paid=True)
    return None


def _fault_of_status(error: Any, endpoint: Endpoint, key: Key) -> Fault:
    status = int(error.status_code)
    inner = _inner(error.body)
    codes = {str(inner.get(name)) for name in ("code", "type")}
    said = one_line(without_key(str(inner.get("message") or error.message), key))
    words = f"{endpoint.url} answered {status}: {said}"
    reason = fatal_reason(status, codes, said)
    if reason is not None:
        return Fault("fatal", reason, f"{endpoint}: {words}")
    if status in RETRIED or status >= 500:
        return Fault("retry", str(status), words, retry_after(error.response.headers))
    return Fault("bad_request", "bad_request", words)


def fatal_reason(status: int, codes: set[str], words: str) -> str | None:
    """Why every other request would end as this one: "quota" or "refused"; None: it would not."""
    if codes & NO_MONEY or _NO_MONEY.search(words):
        return "quota"
    return "refused" if status in REFUSED or codes & UNKNOWN_MODEL else None


def without_key(text: str, key: Key) -> str:
    """The text without this key, and without what else looks like one."""
    return _KEYS.sub("sk-...", key.hidden_in(text))


def _inner(body: Any) -> Mapping[str, Any]:
    """The error's own object: one SDK gives it, the other what it stands in."""
    if not isinstance(body, dict):
        return {}
    inner = body.get("error")
    return inner if isinstance(inner, dict) else body


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait; None: it does not say."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        given = headers.get(name)
        if given is None:
            continue
        try:
            wait_s = float(given) * unit_s
        except ValueError:
            date = email.utils.parsedate_tz(given)
            if date is None:
                continue
            wait_s = email.utils.mktime_tz(date) - time.time()
        if wait_s == wait_s and wait_s < float("inf"):
            return max(0.0, wait_s)
    return None
