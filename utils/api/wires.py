"""What goes over the wire and what comes back, for both providers: bodies of requests and the reading of replies.

    body = request_body(endpoint, ask, habits_of(endpoint))
    reply = read_reply(endpoint, ask, json_object, request_id)      Answer or Failed, both paid for

The one place for that: live requests and batches (utils.api.batches) send the same bodies and read the same replies.

Servers differ in what they take. `Habits` is what is known of one: it begins with what the provider documents, and is
changed when the server answers 400 and names the parameter (`adapt`), once for all later requests.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from utils.api.endpoints import Endpoint
from utils.api.structured import NoJson, OffSchema, in_words, parse, strict
from utils.api.types import Answer, Ask, Failed, Usage

Json = dict[str, Any]
SchemaBy = Literal["parameter", "tool", "words"]

TOOL = "answer"
HALF_PAIR = "the prompt holds half a surrogate pair, which is no text"
"""Why some requests cannot be sent at all: UTF-8 has no bytes for it."""
THINKING_TOKENS = 8192
"""Room beside `max_tokens` for what a model of OpenAI's thinks before it answers, which counts as output."""
_THINKS = re.compile(r"(gpt-5(?!.*-chat)|o[134])([.-]|$)")
_LINE = re.compile(r"\s+")


class BrokenReply(ValueError):
    """A reply that is no reply of this wire: worth asking again, as after a fault of the connection."""


@dataclass
class Habits:
    """What a server takes. schema_by: how it is told the schema; limit: its name for `max_tokens`."""

    schema_by: SchemaBy = "parameter"
    limit: str = "max_tokens"
    temperature: bool = True


def habits_of(endpoint: Endpoint) -> Habits:
    """What the provider documents; OpenAI-compatible servers know `max_tokens` best."""
    if endpoint.provider == "openai" and endpoint.is_official:
        return Habits(limit="max_completion_tokens", temperature=not thinks(endpoint))
    return Habits()


def thinks(endpoint: Endpoint) -> bool:
    """Whether a model of OpenAI's spends tokens on thoughts; such models take no temperature."""
    return endpoint.provider == "openai" and endpoint.is_official and bool(_THINKS.match(endpoint.model))


def tokens_out(endpoint: Endpoint, ask: Ask) -> int:
    """The most tokens that an answer can cost."""
    return ask.max_tokens + (THINKING_TOKENS if thinks(endpoint) else 0)


def path_of(endpoint: Endpoint, ask: Ask) -> str:
    """Path of the request below the SDK's base URL."""
    if endpoint.provider == "anthropic":
        return "/v1/messages"
    return "/completions" if ask.raw_prompt else "/chat/completions"


def request_body(endpoint: Endpoint, ask: Ask, habits: Habits) -> Json:
    """The JSON body of the request."""
    if endpoint.provider == "anthropic":
        return _anthropic_body(endpoint, ask, habits)
    return _openai_body(endpoint, ask, habits)


def can_be_sent(ask: Ask) -> bool:
    """Whether the prompt is text that UTF-8 can carry; see HALF_PAIR."""
    try:
        json.dumps(ask.messages, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _openai_body(endpoint: Endpoint, ask: Ask, habits: Habits) -> Json:
    body: Json = {"model": endpoint.model, habits.limit: tokens_out(endpoint, ask)}
    if ask.temperature is not None and habits.temperature:
        body["temperature"] = ask.temperature
    if ask.raw_prompt:
        body["max_tokens"] = body.pop(habits.limit)
        return body | {"prompt": ask.messages[0]["content"]}
    messages = list(ask.messages)
    if ask.schema is not None and habits.schema_by == "parameter":
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": TOOL, "schema": strict(ask.schema), "strict": True},
        }
    elif ask.schema is not None:
        messages = _with_words(messages, in_words(ask.schema))
    return body | {"messages": messages}


def _with_words(messages: list[dict[str, str]], words: str) -> list[dict[str, str]]:
    """The messages with `words` at the end of the system prompt, which is made where there is none."""
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{words}"}, *messages[1:]]
    return [{"role": "system", "content": words}, *messages]


def _anthropic_body(endpoint: Endpoint, ask: Ask, habits: Habits) -> Json:
    body: Json = {"model": endpoint.model, "max_tokens": ask.max_tokens}
    if ask.temperature is not None and habits.temperature:
        body["temperature"] = ask.temperature
    system = [message["content"] for message in ask.messages if message["role"] == "system"]
    if ask.schema is not None and habits.schema_by == "parameter":
        from anthropic import transform_schema

        body["output_config"] = {"format": {"type": "json_schema", "schema": transform_schema(ask.schema)}}
    elif ask.schema is not None and habits.schema_by == "tool":
        body["tools"] = [{"name": TOOL, "description": "Gives the answer.", "input_schema": ask.schema}]
        body["tool_choice"] = {"type": "tool", "name": TOOL}
    elif ask.schema is not None:
        system.append(in_words(ask.schema))
    if system:
        body["system"] = "\n\n".join(system)
    return body | {"messages": [message for message in ask.messages if message["role"] != "system"]}


def adapt(endpoint: Endpoint, ask: Ask, habits: Habits, words: str) -> str | None:
    """Change `habits` after a 400 with these words so that the next body leaves out what the server refused.

    Returns what was changed, in words for the user; None: the refusal is of another kind.
    """
    text = words.lower()
    if re.search(r"max_completion_tokens|max_tokens", text) and re.search(
        r"unsupported|not supported|unrecognized|unknown|extra|not permitted|unexpected", text
    ):
        refused = re.search(r"max_completion_tokens|max_tokens", text)
        if endpoint.provider == "openai" and refused and refused.group() == habits.limit and not ask.raw_prompt:
            habits.limit = "max_tokens" if habits.limit == "max_completion_tokens" else "max_completion_tokens"
            return f"it takes {habits.limit}"
    if ask.temperature is not None and habits.temperature and "temperature" in text:
        habits.temperature = False
        return "it takes no temperature: its own is used"
    if ask.schema is not None and _is_about_schema(text, habits):
        if endpoint.provider == "anthropic" and habits.schema_by == "parameter":
            habits.schema_by = "tool"
            return "it takes no output schema: a tool call is asked for"
        habits.schema_by = "words"
        return "it takes no schema of the answer: the schema goes into the prompt"
    return None


def _is_about_schema(text: str, habits: Habits) -> bool:
    names = {
        "parameter": r"response_format|json_schema|output_config|output_format|output format|structured|guided|grammar",
        "tool": r"\btools?\b|tool_choice|input_schema",
        "words": r"(?!)",
    }
    return bool(re.search(names[habits.schema_by], text))


# --- replies ----------------------------------------------------------------------------------------------------------


def read_reply(endpoint: Endpoint, ask: Ask, reply: Any, request_id: str | None = None) -> Answer | Failed:
    """What a reply of status 200 says; `request_id` is that of its header, else the reply's own is taken.

    Raises:
        BrokenReply: it has not the shape that the wire's replies have.
    """
    try:
        text, stop, usage = _anthropic_parts(reply) if endpoint.provider == "anthropic" else _openai_parts(reply, ask)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise BrokenReply("the reply is none of this API") from None
    if stop == "refusal":
        return Failed("refusal", "the model refused", text, usage)
    if stop == "truncated":
        return Failed("truncated", f"longer than the {ask.max_tokens} tokens of max_tokens", text, usage)
    if not text.strip():
        return Failed("empty", "the answer is empty", text, usage)
    value = None
    if ask.schema is not None:
        try:
            value = parse(text, ask.schema)
        except NoJson as error:
            return Failed("invalid_json", str(error), text, usage)
        except OffSchema as error:
            return Failed("off_schema", str(error), text, usage)
    model, own_id = reply.get("model"), reply.get("id")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Answer(text, value, str(model or endpoint.model), request_id or own_id, usage, now)


def _openai_parts(reply: Json, ask: Ask) -> tuple[str, str, Usage]:
    """Text, how it ended, and tokens of a reply to /chat/completions or /completions."""
    choice = reply["choices"][0]
    used = reply.get("usage") or {}
    usage = Usage(int(used.get("prompt_tokens") or 0), int(used.get("completion_tokens") or 0))
    finish = choice.get("finish_reason")
    message = {"content": choice["text"]} if ask.raw_prompt else choice["message"]
    if message.get("refusal"):
        return str(message["refusal"]), "refusal", usage
    stop = {"content_filter": "refusal", "length": "truncated"}.get(finish, "end")
    return _text(message.get("content")), stop, usage


def _anthropic_parts(reply: Json) -> tuple[str, str, Usage]:
    """Text, how it ended, and tokens of a reply to /v1/messages."""
    used = reply["usage"]
    inputs = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    usage = Usage(sum(int(used.get(name) or 0) for name in inputs), int(used.get("output_tokens") or 0))
    stops = {"refusal": "refusal", "max_tokens": "truncated", "model_context_window_exceeded": "truncated"}
    stop = stops.get(reply["stop_reason"], "end")
    blocks = reply["content"]
    tool = next((block["input"] for block in blocks if block["type"] == "tool_use"), None)
    if tool is not None:
        return json.dumps(tool, ensure_ascii=False), stop, usage
    return "".join(_text(block["text"]) for block in blocks if block["type"] == "text"), stop, usage


def _text(content: Any) -> str:
    """Content as text; a server that sends none for an empty answer sends null."""
    if content is None:
        return ""
    if not isinstance(content, str):
        raise TypeError("content is no text")
    return content


def one_line(text: str, limit: int = 300) -> str:
    return _LINE.sub(" ", text).strip()[:limit]
