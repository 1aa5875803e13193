"""Guard models as comparators: does the user's last message break the policy? Asked of models made for it, or told to.

    guard = parse_guard_model("llama_guard_3:meta-llama/Llama-Guard-3-8B@http://127.0.0.1:8000/v1")
    flags(guard, guardrails["politics"], prompts)  ->  [Flag(flagged=True, raw="\\n\\nunsafe\\nS1"), ...]

--guard_models takes TEMPLATE:MODEL, a model that is loaded here (transformers), or TEMPLATE:MODEL@URL, one behind an
OpenAI-compatible API. Templates are those of prompts.guard. Decoding is greedy, answers are read strictly. An answer
that is no verdict, or none at all, is a failure: counted and reported by its reason, never a score.

Llama Guard is sent its whole text, through /completions: /chat/completions would put the server's chat template around
a policy that is in a template already. The text goes without its begin-of-text token, which servers (vLLM, SGLang,
llama.cpp) put before a prompt themselves. `prompted` goes through /chat/completions, or the local chat template.

Requests go through utils.api, with its limits, retries and cache. The key is TOGETHER_API_KEY where the host is
Together's, else OPENAI_API_KEY; a server on this machine needs none. --api_key, --api_key_file, --base_url and
--max_cost are the judge's, and never used here: a key must not go to a server that it is not for. A refused key, an
unknown model or a server that does not answer ends the work, in the server's own words.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from dataset.guardrails import Guardrail
from model_training.option_values import listed, near
from prompts.chat import Message
from prompts.guard import BEGIN_OF_TEXT, PROMPTED, TEMPLATES, llama_guard_text, policy_messages, read_verdict
from utils.api.endpoints import Endpoint, checked_url
from utils.api.options import ApiOptions
from utils.api.types import Ask, Failed
from utils.errors import UserError, WorkError

MAX_NEW_TOKENS = 16
"""A verdict needs at most eight."""

_AS_IT_IS = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class GuardModel:
    name: str
    template: str
    model: str
    base_url: str | None


@dataclass(frozen=True)
class Flag:
    """The verdict on a prompt: `flagged` is None where there was none, and `failure` says why; `raw` is the answer."""

    flagged: bool | None
    raw: str
    failure: str | None = None


def parse_guard_model(spec: str) -> GuardModel:
    """TEMPLATE:MODEL[@URL] as a GuardModel, whose name is the model's.

    Raises:
        UserError: an unknown template, an empty model, or what is no http(s) URL or has more in it than an address.
    """
    template, _, rest = spec.partition(":")
    if template not in TEMPLATES:
        way_out = near(template, TEMPLATES) or f"; it is one of {listed(TEMPLATES, 'or')}"
        raise UserError(f"--guard_models {_shown(spec)}: no such template: {template!r}{way_out}")
    model, at, url = rest.partition("@")
    if not model:
        raise UserError(f"--guard_models {_shown(spec)}: there is no model; write {template}:MODEL or ...:MODEL@URL")
    address = checked_url(url, f"--guard_models {_shown(spec)}: what follows @") if at else None
    return GuardModel(model, template, model, address)


def _shown(spec: str) -> str:
    """The spec up to where a key could stand in its URL."""
    model, at, _ = spec.partition("@")
    return model + at + ("..." if at else "")


def flags(
    guard: GuardModel,
    guardrail: Guardrail,
    prompts: list[list[Message]],
    batch_size: int = 16,
    options: ApiOptions | None = None,
) -> list[Flag]:
    """The guard model's verdict on the last message of each prompt, in their order.

    `batch_size` is of a local model, `options` are of one behind an API.

    Raises:
        UserError: a model that cannot be loaded or that the server does not know, a key that is missing or refused.
        WorkError: the server does not answer, or not once with a verdict.
    """
    if not prompts:
        return []
    if guard.base_url is None:
        found = _asked_here(guard, guardrail, prompts, batch_size)
    else:
        found = _asked_of_server(guard, guardrail, prompts, options or ApiOptions())
    failed = [flag for flag in found if flag.failure is not None]
    if not failed:
        return found
    words = f"guard model {guard.name}, {guardrail.name}: no verdict on {len(failed)} of {len(found)} prompts"
    reason, times = Counter(flag.failure for flag in failed).most_common(1)[0]
    example = next((flag.raw for flag in failed if flag.failure == reason and flag.raw), "")
    words += f"; {times} times: {reason}" + (f", as {_cut(example)!r}" if example else "")
    if len(failed) == len(found) and guard.base_url is not None:
        raise WorkError(words)
    print(f"{words}; they are left out of its rates", file=sys.stderr)
    return found


def _read(guard: GuardModel, answer: str) -> Flag:
    flagged = read_verdict(guard.template, answer)
    return Flag(flagged, answer, "the answer is no verdict" if flagged is None else None)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"


# --- a model that is loaded here --------------------------------------------------------------------------------------


def _asked_here(guard: GuardModel, guardrail: Guardrail, prompts: list[list[Message]], batch_size: int) -> list[Flag]:
    from evaluation.sampling import sample
    from model_training.models import encode_prompt

    model, tokenizer = _loaded(guard.model, as_it_is=guard.template != PROMPTED)
    questions = [_question(guard, guardrail, prompt) for prompt in prompts]
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    lengths = [len(encode_prompt(tokenizer, question)) for question in questions]
    fits = [length + MAX_NEW_TOKENS <= positions for length in lengths]
    answers = iter(
        sample(
            model,
            tokenizer,
            [question for question, fit in zip(questions, fits, strict=True) if fit],
            num_samples=1,
            temperature=0.0,
            top_p=1.0,
            max_new_tokens=MAX_NEW_TOKENS,
            batch_size=batch_size,
            seed=0,
            label=f"guard model {guard.name}",
        )
    )
    return [
        _read(guard, next(answers)[0])
        if fit
        else Flag(None, "", f"the question is longer than the model's {positions} positions")
        for fit in fits
    ]


def _question(guard: GuardModel, guardrail: Guardrail, prompt: list[Message]) -> list[Message]:
    """The question as messages; the text of Llama Guard is one, which the tokenizer's template leaves as it is."""
    if guard.template == PROMPTED:
        return policy_messages(guardrail.name, guardrail.trigger, prompt)
    text = llama_guard_text(guard.template, guardrail.name, guardrail.trigger, prompt)
    return [{"role": "user", "content": text}]


@lru_cache(maxsize=1)
def _loaded(name: str, as_it_is: bool) -> tuple[Any, Any]:
    """Model and tokenizer, kept until another is asked for: each guardrail asks the same."""
    from model_training.models import load_model, load_tokenizer

    model, tokenizer = load_model(name), load_tokenizer(name)
    if as_it_is:
        tokenizer.chat_template = _AS_IT_IS
    return model, tokenizer


# --- a model behind an API --------------------------------------------------------------------------------------------


def _asked_of_server(
    guard: GuardModel, guardrail: Guardrail, prompts: list[list[Message]], options: ApiOptions
) -> list[Flag]:
    from utils.api.client import ask_all

    if options.dry_run:
        raise UserError(f"--guard_models {guard.name}: it is behind an API, and --dry_run sends nothing; leave one out")
    endpoint = Endpoint("openai", guard.model, guard.base_url)
    own = replace(options, api_key=None, api_key_file=None, base_url=None, max_cost=None)
    asks = [_ask(guard, _question(guard, guardrail, prompt)) for prompt in prompts]
    try:
        replies = ask_all(endpoint, own, asks, f"guard model {guard.name}, {guardrail.name}")
    except (UserError, WorkError) as error:
        raise type(error)(f"guard model {guard.name}: {error}") from None
    return [
        Flag(None, reply.text, reply.detail or reply.reason) if isinstance(reply, Failed) else _read(guard, reply.text)
        for reply in replies
    ]


def _ask(guard: GuardModel, question: list[Message]) -> Ask:
    """The question as a request: Llama Guard's as its whole text, without the token that servers put before it."""
    if guard.template == PROMPTED:
        return Ask(tuple(question), max_tokens=MAX_NEW_TOKENS, temperature=0.0)
    text = {"role": "user", "content": question[0]["content"].removeprefix(BEGIN_OF_TEXT)}
    return Ask((text,), max_tokens=MAX_NEW_TOKENS, temperature=0.0, raw_prompt=True)
