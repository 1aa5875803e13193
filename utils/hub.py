"""The hub of models and datasets: whether it answers, so that nobody waits long for what no network can bring."""

from __future__ import annotations

import urllib.error
import urllib.request
from functools import cache


@cache
def hub_reachable() -> bool:
    """Whether the hub answers; asked once, with a short wait."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=10)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
