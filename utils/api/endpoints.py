"""Which model is asked, where, and with which key.

    endpoint = parse_endpoint("openai:gpt-5-mini", None, "--teacher")
    endpoint = parse_endpoint("openai:my-model@http://127.0.0.1:8000/v1", None, "--judge")
    key = key_of(endpoint, options)

The key is --api_key, else the content of --api_key_file, else TOGETHER_API_KEY where the host is Together's, else
OPENAI_API_KEY or ANTHROPIC_API_KEY by provider. A server on this machine needs none, and is reached past any proxy.
The address is the one given here, or the provider's own: variables like OPENAI_BASE_URL are not read.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from utils.api.options import ApiOptions
from utils.errors import UserError

Provider = Literal["openai", "anthropic"]
PROVIDERS: tuple[Provider, ...] = ("openai", "anthropic")
OFFICIAL = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
TOGETHER = (".together.xyz", ".together.ai")
NO_KEY = "no-key-needed"


@dataclass(frozen=True)
class Endpoint:
    """A model of a provider; `base_url` None is the provider's own address."""

    provider: Provider
    model: str
    base_url: str | None = None

    @property
    def url(self) -> str:
        return self.base_url or OFFICIAL[self.provider]

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def is_official(self) -> bool:
        return self.host == urlsplit(OFFICIAL[self.provider]).hostname

    @property
    def is_here(self) -> bool:
        """Whether the server runs on this machine."""
        return self.host in LOOPBACK

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}" + (f"@{self.base_url}" if self.base_url else "")


class Key:
    """A key that shows itself only to who asks for its `value`."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Key(...)"

    def hidden_in(self, text: str) -> str:
        """The text with the key, wherever it stands, replaced."""
        return text.replace(self.value, "...") if self.value != NO_KEY else text


def parse_endpoint(spec: str, base_url: str | None, option: str) -> Endpoint:
    """PROVIDER:MODEL or PROVIDER:MODEL@URL as an Endpoint; `base_url` counts where the spec has no URL of its own.

    Raises:
        UserError: no such provider, an empty model, or what is no http(s) address; names `option`.
    """
    provider, _, rest = spec.partition(":")
    if provider not in PROVIDERS:
        raise UserError(f"{option} {_shown(spec)}: write openai:MODEL or anthropic:MODEL, then @URL for another server")
    model, at, url = rest.partition("@")
    if not model:
        raise UserError(f"{option} {_shown(spec)}: there is no model; write {provider}:MODEL or {provider}:MODEL@URL")
    if at:
        address: str | None = checked_url(url, f"{option} {_shown(spec)}: what follows @")
    else:
        address = checked_url(base_url, f"--base_url for {option} {spec}: it") if base_url else None
    return Endpoint(provider, model, address)


def checked_url(url: str, what: str) -> str:
    """The address without a slash at its end; `what` begins the message of the UserError that refuses it."""
    try:
        parts = urlsplit(url)
        port_is_wrong = parts.port == 0
    except ValueError:
        port_is_wrong = True
    if port_is_wrong or parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{what} is no URL, as https://HOST/v1 is")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(f"{what} is to be an address alone; a key belongs into the environment or --api_key_file")
    return url.rstrip("/")


def key_of(endpoint: Endpoint, options: ApiOptions) -> Key:
    """The key for this endpoint.

    Raises:
        UserError: there is none, or the file cannot be read or holds something else.
    """
    if options.api_key is not None and options.api_key_file is not None:
        raise UserError("--api_key and --api_key_file exclude each other: one key is enough")
    if options.api_key is not None:
        warn_of_key_in_the_open(_variable(endpoint))
        return _checked_key(options.api_key, "--api_key")
    if options.api_key_file is not None:
        return _key_in_file(Path(options.api_key_file))
    variable = _variable(endpoint)
    value = os.environ.get(variable, "").strip()
    if value:
        return _checked_key(value, variable)
    if endpoint.is_here:
        return Key(NO_KEY)
    raise UserError(f"{endpoint} needs a key: set the environment variable {variable}, or give --api_key_file FILE")


@cache
def warn_of_key_in_the_open(variable: str) -> None:
    """Once a process."""
    print(
        "--api_key: other users of this machine can read it in the list of processes, and it stays in the history of "
        f"the shell; --api_key_file or the environment variable {variable} is safer",
        file=sys.stderr,
    )


def _key_in_file(path: Path) -> Key:
    try:
        text = path.expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--api_key_file {path}: cannot be read ({getattr(error, 'strerror', None) or 'no text'})"
        ) from None
    return _checked_key(text, f"--api_key_file {path}")


def _checked_key(text: str, origin: str) -> Key:
    value = text.strip()
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise UserError(f"{origin}: expected one key, a word of printable ASCII characters, and nothing else")
    return Key(value)


def _variable(endpoint: Endpoint) -> str:
    if f".{endpoint.host}".endswith(TOGETHER):
        return "TOGETHER_API_KEY"
    return {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}[endpoint.provider]


def _shown(spec: str) -> str:
    """The spec up to where a key could stand in its URL."""
    model, at, _ = spec.partition("@")
    return model + at + ("..." if at else "")
