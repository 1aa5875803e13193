"""Guard models as comparators: does the user's last message break the policy? Asked of models made for it, or told to.

    guard = parse_guard_model("llama_guard_3:meta-llama/Llama-Guard-3-8B@http://127.0.0.1:8000/v1")
    flags(guard, guardrails["politics"], prompts)  ->  [Flag(flagged=True, raw="\\n\\nunsafe\\nS1"), ...]

--guard_models takes TEMPLATE:MODEL, a model that is loaded here (transformers), or TEMPLATE:MODEL@URL, one behind an
OpenAI-compatible API. Templates are those of prompts.guard. Decoding is greedy, answers are read strictly. An answer
that is no verdict, or none at all, is a failure: counted and reported by its reason, never a score.

Llama Guard is sent its whole text, through /completions: /chat/completions would put the server's chat template around
a policy that is in a template already. The text goes without its begin-of-text token, which servers (vLLM, SGLang,
llama.cpp) put before a prompt themselves. `prompted` goes through /chat/completions, or the local chat template.

The key is TOGETHER_API_KEY where the host is Together's, else OPENAI_API_KEY; a server on this machine needs none. The
client itself repeats requests that met a busy or failing server. The first question is asked alone: a refused key, an
unknown model or a server that does not answer ends the work there, with the server's own words.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from dataset.guardrails import Guardrail
from model_training.option_values import listed, near
from prompts.chat import Message
from prompts.guard import BEGIN_OF_TEXT, PROMPTED, TEMPLATES, llama_guard_text, policy_messages, read_verdict
from utils.errors import UserError, WorkError

IN_FLIGHT = 25
"""Requests to an API at once."""
TIMEOUT_S = 60.0
MAX_RETRIES = 4
MAX_NEW_TOKENS = 16
"""A verdict needs at most eight."""

NO_KEY = "no-key-needed"
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
TOGETHER = (".together.xyz", ".together.ai")

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
    return GuardModel(model, template, model, _checked_url(url, spec) if at else None)


def _checked_url(url: str, spec: str) -> str:
    try:
        parts = urlsplit(url)
        port_is_wrong = parts.port == 0
    except ValueError:
        port_is_wrong = True
    if port_is_wrong or parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--guard_models {_shown(spec)}: what follows @ is no URL, as https://HOST/v1 is")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            f"--guard_models {_shown(spec)}: the URL is to be an address alone; a key belongs into OPENAI_API_KEY"
        )
    return url.rstrip("/")


def _shown(spec: str) -> str:
    """The spec up to where a key could stand in its URL."""
    model, at, _ = spec.partition("@")
    return model + at + ("..." if at else "")


def flags(guard: GuardModel, guardrail: Guardrail, prompts: list[list[Message]], batch_size: int = 16) -> list[Flag]:
    """The guard model's verdict on the last message of each prompt, in their order; `batch_size` is of a local model.

    Raises:
        UserError: a model that cannot be loaded or that the server does not know, a key that is missing or refused.
        WorkError: the server does not answer, or not once with a verdict.
    """
    if not prompts:
        return []
    if guard.base_url is None:
        found = _asked_here(guard, guardrail, prompts, batch_size)
    else:
        found = _asked_of_server(guard, guard.base_url, guardrail, prompts)
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
    guard: GuardModel, base_url: str, guardrail: Guardrail, prompts: list[list[Message]]
) -> list[Flag]:
    from openai import DefaultHttpxClient, OpenAI

    key = _key(guard, base_url)
    here = urlsplit(base_url).hostname in LOOPBACK
    client = OpenAI(
        api_key=key,
        base_url=base_url,
        timeout=TIMEOUT_S,
        max_retries=MAX_RETRIES,
        http_client=DefaultHttpxClient(trust_env=False) if here else None,
    )
    asked = _asker(client, guard, key)
    with client:
        first = asked(_question(guard, guardrail, prompts[0]), first=True)
        pool = ThreadPoolExecutor(IN_FLIGHT)
        try:
            questions = [_question(guard, guardrail, prompt) for prompt in prompts[1:]]
            return [first, *pool.map(asked, questions)]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _key(guard: GuardModel, base_url: str) -> str:
    host = urlsplit(base_url).hostname or ""
    variable = "TOGETHER_API_KEY" if f".{host}".endswith(TOGETHER) else "OPENAI_API_KEY"
    key = os.environ.get(variable, "").strip()
    if not key and host not in LOOPBACK:
        raise UserError(f"guard model {guard.name}: {base_url} needs a key; set the environment variable {variable}")
    return key or NO_KEY


def _asker(client: Any, guard: GuardModel, key: str) -> Callable[..., Flag]:
    import openai

    def asked(question: list[Message], first: bool = False) -> Flag:
        try:
            answer = _answer(client, guard, question)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise UserError(f"guard model {guard.name}: {_words(error, guard, key)}") from None
        except openai.APIError as error:
            about_this_prompt = isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError)
            if first and not about_this_prompt:
                raise WorkError(f"guard model {guard.name}: {_words(error, guard, key)}") from None
            return Flag(None, "", _words(error, guard, key))
        except ValueError:
            return Flag(None, "", "the server's reply is no JSON")
        if answer is None:
            return Flag(None, "", "the server's reply holds no text")
        return _read(guard, answer)

    return asked


def _answer(client: Any, guard: GuardModel, question: list[Message]) -> str | None:
    """The text that the server sent, or None where its reply has none."""
    options: dict[str, Any] = {"model": guard.model, "temperature": 0.0, "max_tokens": MAX_NEW_TOKENS}
    if guard.template == PROMPTED:
        reply = client.chat.completions.create(messages=question, **options)
    else:
        text = question[0]["content"].removeprefix(BEGIN_OF_TEXT)
        reply = client.completions.create(prompt=text, **options)
    try:
        choice = reply.choices[0]
        answer = choice.message.content if guard.template == PROMPTED else choice.text
    except (AttributeError, IndexError, TypeError):
        return None
    return answer if isinstance(answer, str) else None


def _words(error: Any, guard: GuardModel, key: str) -> str:
    """What went wrong in the server's words, on one line, without the key."""
    import openai

    where = f"{guard.base_url} "
    if isinstance(error, openai.APITimeoutError):
        return where + f"did not answer within {TIMEOUT_S:g} s"
    if isinstance(error, openai.APIConnectionError):
        return where + f"cannot be reached ({error.__cause__ or error}); check the URL, and that the server runs"
    body = error.body if isinstance(error.body, dict) else {}
    words = " ".join(str(body.get("message") or error.message).split())
    status = f"answered {error.status_code}" if isinstance(error, openai.APIStatusError) else "failed"
    return where + f"{status}: {words.replace(key, '...')[:300]}"
