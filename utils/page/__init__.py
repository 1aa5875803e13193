"""The page's style and script, its data in a form that no text can break out of, and the policy it runs under.

The script is one text, put together of the files of this folder in the order of SCRIPTS; `policy` names it by its
SHA-256, so that a browser runs it and nothing else. uPlot (MIT, vendor/) draws the charts; the rest is ours, without a
build step. Data is gzip in base64: small, and free of every character that means something to HTML.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from functools import cache
from pathlib import Path

from markupsafe import Markup

HERE = Path(__file__).parent
TEMPLATE = "report.html.jinja"
STYLES = ("vendor/uPlot.min.css", "report.css")
SCRIPTS = (
    "vendor/uPlot.iife.min.js",
    "text.js",
    "state.js",
    "lines.js",
    "charts.js",
    "pointer.js",
    "rows.js",
    "browser.js",
    "live.js",
    "report.js",
)
ROWS_A_BLOCK = 2000
"""So many completions the page takes up at a time, between two of which it answers its reader."""


@cache
def script() -> Markup:
    return Markup(_joined(SCRIPTS))


@cache
def style() -> Markup:
    return Markup(_joined(STYLES))


def _joined(names: tuple[str, ...]) -> str:
    return "\n".join((HERE / name).read_text(encoding="utf-8").strip() for name in names)


def policy(live: bool) -> str:
    """The Content-Security-Policy: this script, no other host; the server's own addresses where it is `live`."""
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    rules = [
        "default-src 'none'",
        f"script-src 'sha256-{digest}'",
        "style-src 'unsafe-inline'",
        "img-src 'self' data:" if live else "img-src data:",
        *(["connect-src 'self'", "frame-ancestors 'none'"] if live else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(rules)


def pack(data: object) -> str:
    """JSON as gzip in base64. Lone surrogates pass as the escapes that JSON has for them."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("ascii"), compresslevel=4, mtime=0)).decode("ascii")


def pack_rows(rows: list[dict[str, object]]) -> list[str]:
    return [pack(rows[first : first + ROWS_A_BLOCK]) for first in range(0, len(rows), ROWS_A_BLOCK)]
