"""What the stub server says: answers that are valid by a schema, the replies around them, and their spoilt forms."""

from __future__ import annotations

import json
import re
from typing import Any

Json = dict[str, Any]

MARK = "It must fit this JSON schema:\n"
"""What stands before a schema that is given in words (utils.api.structured)."""


def answer_by_schema(messages: list[dict[str, str]], schema: Json | None, n: int) -> str:
    """Valid data for the schema, different for each n; without one a sentence."""
    return f"This is answer {n}." if schema is None else json.dumps(_value(schema, n, ""))


def _value(schema: Json, n: int, name: str) -> Any:
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][n % len(schema["enum"])]
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {key: _value(part, n, key) for key, part in schema.get("properties", {}).items()}
    if kind == "array":
        in_words = re.search(r"minItems: (\d+)", schema.get("description", ""))  # where Anthropic's SDK puts it
        count = max(1, int(in_words[1]) if in_words else int(schema.get("minItems", 0)))
        return [_value(schema["items"], 1000 * n + index, name) for index in range(count)]
    if kind in ("integer", "number"):
        return int(schema.get("minimum", 0)) + n % (1 + int(schema.get("maximum", 10)) - int(schema.get("minimum", 0)))
    if kind == "boolean":
        return n % 2 == 0
    return None if kind == "null" else f"{name or 'text'} number {n}"


def schema_of(body: Json) -> tuple[Json | None, list[dict[str, str]]]:
    """The schema that a request asks for, in whatever way, and its messages with the system prompt."""
    messages = list(body.get("messages") or [{"role": "user", "content": str(body.get("prompt"))}])
    if body.get("system"):
        messages = [{"role": "system", "content": body["system"]}, *messages]
    if "response_format" in body:
        return body["response_format"]["json_schema"]["schema"], messages
    if "output_config" in body:
        return body["output_config"]["format"]["schema"], messages
    if "tools" in body:
        return body["tools"][0]["input_schema"], messages
    _, mark, words = messages[0]["content"].partition(MARK)
    return (json.JSONDecoder().raw_decode(words)[0] if mark else None), messages


def spoilt(text: str, fault: str) -> str:
    """The content that a fault makes of an answer."""
    if fault == "invalid_json":
        return text[: max(1, len(text) - 2)].replace("}", "") + " and so on"
    if fault == "off_schema":
        return json.dumps({"unheard": "of"})
    if fault == "cut":
        return text[: len(text) // 2]
    if fault in ("empty", "refusal"):
        return ""
    if fault == "wrong_count":
        return _one_less(text)
    return text


def _one_less(text: str) -> str:
    """The answer without the last item of its first list."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    for part in value.values() if isinstance(value, dict) else []:
        if isinstance(part, list) and part:
            part.pop()
            break
    return json.dumps(value)


def reply_of(path: str, body: Json, text: str, fault: str, n: int) -> Json:
    """The whole reply, as the provider forms it."""
    tokens_in, tokens_out = max(1, len(json.dumps(body)) // 4), max(1, len(text) // 4)
    if path == "/v1/messages":
        return _message(body, text, fault, n, tokens_in, tokens_out)
    choice: Json = {"index": 0, "logprobs": None, "finish_reason": "length" if fault == "cut" else "stop"}
    if path == "/v1/completions":
        choice["text"] = text
    else:
        refusal = "I'm sorry, I can't help with that." if fault == "refusal" else None
        content = None if refusal else text
        choice["message"] = {"role": "assistant", "content": content, "refusal": refusal, "annotations": []}
    return {
        "id": f"chatcmpl-stub{n}",
        "object": "text_completion" if path == "/v1/completions" else "chat.completion",
        "created": 1_750_000_000,
        "model": body.get("model"),
        "choices": [choice],
        "usage": {
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
        },
    }


def _message(body: Json, text: str, fault: str, n: int, tokens_in: int, tokens_out: int) -> Json:
    content: list[Json] = [{"type": "text", "text": text}] if text else []
    stop = {"refusal": "refusal", "cut": "max_tokens"}.get(fault, "end_turn")
    if "tools" in body and text and fault not in ("invalid_json", "cut"):
        content = [
            {"type": "tool_use", "id": f"toolu_stub{n}", "name": body["tools"][0]["name"], "input": json.loads(text)}
        ]
        stop = "tool_use"
    return {
        "id": f"msg_stub{n}",
        "type": "message",
        "role": "assistant",
        "model": body.get("model"),
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": tokens_in, "output_tokens": tokens_out},
    }


def wrong_parameter(provider: str, body: Json, refuse: set[str]) -> str | None:
    """Why the body is refused, in the provider's words; None: it is not."""
    for name in sorted(refuse & body.keys()):
        if provider == "anthropic":
            return f"{name}: Extra inputs are not permitted"
        if name == "temperature":
            return "Unsupported value: 'temperature' does not support this value with this model."
        return f"Unsupported parameter: '{name}' is not supported with this model."
    if provider == "anthropic":
        return _wrong_message(body)
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    open_at = None if schema is None else _open_object(schema, "schema")
    return None if open_at is None else f"Invalid schema for response_format 'answer': {open_at}"


def _wrong_message(body: Json) -> str | None:
    if "max_tokens" not in body:
        return "max_tokens: Field required"
    for index, message in enumerate(body.get("messages", [])):
        if message["role"] not in ("user", "assistant"):
            return f'messages: Unexpected role "{message["role"]}".'
        if not message["content"]:
            return f"messages.{index}: text content blocks must be non-empty"
    schema = body.get("output_config", {}).get("format", {}).get("schema")
    open_at = None if schema is None else _open_object(schema, "output_config.format.schema")
    return open_at


def _open_object(schema: Any, place: str) -> str | None:
    """Where a strict mode finds an object that is not closed."""
    if isinstance(schema, dict):
        if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
            return f"In {place}, 'additionalProperties' is required to be supplied and to be false."
        parts = [(f"{place}.{name}", part) for name, part in schema.items() if name not in ("enum", "const")]
    else:
        parts = [(place, part) for part in schema] if isinstance(schema, list) else []
    return next((found for name, part in parts if (found := _open_object(part, name)) is not None), None)
