"""The provider's own SDK, opened for an endpoint: no retries, no proxy and no key from elsewhere."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from utils.api.endpoints import Endpoint, Key
from utils.api.options import ApiOptions


@dataclass(frozen=True)
class Sdk:
    """module: openai or anthropic; server: its asynchronous client, to be closed by who opened it."""

    module: ModuleType
    server: Any


def open_sdk(endpoint: Endpoint, options: ApiOptions, key: Key) -> Sdk:
    """The SDK's client for this endpoint; a server on this machine is reached past any proxy."""
    import httpx2

    http: dict[str, Any] = {
        "limits": httpx2.Limits(max_connections=None, max_keepalive_connections=options.concurrency),
        "trust_env": not endpoint.is_here,
        "verify": _tls(not endpoint.is_here),
        "follow_redirects": False,
    }
    settings: dict[str, Any] = {"api_key": key.value, "timeout": options.request_timeout, "max_retries": 0}
    if endpoint.provider == "anthropic":
        import anthropic

        url = endpoint.url.removesuffix("/v1")  # its paths begin with /v1 themselves
        # Anthropic's own kind of client goes by the environment's proxies whatever it is told.
        make = httpx2.AsyncClient if endpoint.is_here else anthropic.DefaultAsyncHttpxClient
        client = make(**http)
        return Sdk(anthropic, anthropic.AsyncAnthropic(**settings, base_url=url, http_client=client))
    import openai

    client = openai.DefaultAsyncHttpxClient(**http)
    return Sdk(openai, openai.AsyncOpenAI(**settings, base_url=endpoint.url, http_client=client))


@cache
def _tls(trust_env: bool) -> ssl.SSLContext:
    """The check of certificates, loaded once: it takes as long as everything else together."""
    import httpx2

    return httpx2.create_ssl_context(trust_env=trust_env)
