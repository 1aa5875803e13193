"""The options that every command which asks a model behind an API shares.

    @dataclass(kw_only=True)
    class MyConfig(ApiOptions):
        ...

They become flags, YAML entries and help by model_training.options. The key is best left in the environment or in a
file; it is in no repr, and utils.runs keeps `api_key` out of manifests.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from utils.errors import UserError


@dataclass(kw_only=True)
class RequestOptions:
    """What commands share that ask while they do something else, as training with a judge does."""

    api_key: str | None = field(default=None, repr=False)
    """Key of the API. Other users of the machine can read a command line: prefer OPENAI_API_KEY, ANTHROPIC_API_KEY or
    TOGETHER_API_KEY in the environment, or --api_key_file."""
    api_key_file: str | None = None
    """File that holds nothing but the key."""
    base_url: str | None = None
    """Address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1. None: the provider's own."""
    concurrency: int = 25
    """Requests under way at once."""
    requests_per_minute: int | None = None
    """Limit of requests a minute, retries included. None: as many as --concurrency allows."""
    tokens_per_minute: int | None = None
    """Limit of tokens a minute, in and out. None: no limit."""
    request_timeout: float = 120.0
    """Seconds until a request without a whole answer is given up and sent again."""
    max_retries: int = 6
    """How often a request is sent again after a fault of the server or of the connection. A limit of the server's (429)
    counts only after two minutes without any reply."""
    max_cost: float | None = None
    """Stop before more than this many US$ are spent; the model must be in the price table."""
    prices: str | None = None
    """YAML table of prices in US$ per million tokens. None: seeds/prices.yaml."""
    cache_dir: str | None = None
    """Directory of the cache of answers. None: ~/.cache/subtext/api; the word none: no cache."""


@dataclass(kw_only=True)
class ApiOptions(RequestOptions):
    """What commands share that know all their requests beforehand."""

    dry_run: bool = False
    """Print the first prompt and the estimated cost, and send nothing."""
    batch_api: bool = False
    """Use the provider's batch endpoint: half the price, answers within a day instead of seconds."""


def share(options: ApiOptions, clients: int) -> ApiOptions:
    """The options of one of several clients that ask at the same time: the limits hold for all of them together.

    Raises:
        UserError: a limit of whole requests or tokens is too small to be shared.
    """
    if clients == 1:
        return options

    def part(name: str, limit: int) -> int:
        if limit < clients:
            raise UserError(f"--{name} {limit}: {clients} processes share it, so it must be at least {clients}")
        return limit // clients

    requests, tokens, cost = options.requests_per_minute, options.tokens_per_minute, options.max_cost
    return replace(
        options,
        concurrency=part("concurrency", options.concurrency),
        requests_per_minute=None if requests is None else part("requests_per_minute", requests),
        tokens_per_minute=None if tokens is None else part("tokens_per_minute", tokens),
        max_cost=None if cost is None else cost / clients,
    )
