import json
from typing import Any

import pytest

from benchmarks.api_stub_answers import reply_of, spoilt
from utils.api.endpoints import Endpoint
from utils.api.types import Answer, Ask, Failed, Usage
from utils.api.wires import (
    THINKING_TOKENS,
    BrokenReply,
    Habits,
    adapt,
    habits_of,
    path_of,
    read_reply,
    request_body,
)

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
STRICT = SCHEMA | {"additionalProperties": False}
SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go."}
ASK = Ask((SYSTEM, USER), max_tokens=100, temperature=0.0, schema=SCHEMA)
OPENAI, LOCAL = Endpoint("openai", "gpt-4o"), Endpoint("openai", "gpt-4o", "http://127.0.0.1:1/v1")
CLAUDE = Endpoint("anthropic", "claude-x")
WORDS = "It must fit this JSON schema:\n" + json.dumps(SCHEMA)


def test_bodies_are_what_the_providers_document() -> None:
    response_format = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": STRICT, "strict": True},
    }
    common = {"model": "gpt-4o", "temperature": 0.0, "messages": [SYSTEM, USER], "response_format": response_format}
    assert request_body(OPENAI, ASK, habits_of(OPENAI)) == common | {"max_completion_tokens": 100}
    assert request_body(LOCAL, ASK, habits_of(LOCAL)) == common | {"max_tokens": 100}
    assert request_body(CLAUDE, ASK, habits_of(CLAUDE)) == {
        "model": "claude-x",
        "max_tokens": 100,
        "temperature": 0.0,
        "system": "Be brief.",
        "messages": [USER],
        "output_config": {"format": {"type": "json_schema", "schema": STRICT}},
    }


@pytest.mark.parametrize("model", ["gpt-5", "gpt-5-mini", "gpt-5.1", "gpt-5-2025-08-07", "o3", "o4-mini"])
def test_models_that_think_get_room_for_it_and_no_temperature(model: str) -> None:
    endpoint = Endpoint("openai", model)
    body = request_body(endpoint, ASK, habits_of(endpoint))
    assert body["max_completion_tokens"] == 100 + THINKING_TOKENS and "temperature" not in body


@pytest.mark.parametrize("model", ["gpt-5-chat-latest", "gpt-4o", "gpt-4.1-mini", "o", "other"])
def test_other_models_do_not(model: str) -> None:
    endpoint = Endpoint("openai", model)
    body = request_body(endpoint, ASK, habits_of(endpoint))
    assert body["max_completion_tokens"] == 100 and body["temperature"] == 0.0


def test_a_raw_prompt_goes_to_completions_as_it_is() -> None:
    ask = Ask(({"role": "user", "content": "<|whole|> text"},), max_tokens=5, temperature=0.0, raw_prompt=True)
    assert path_of(LOCAL, ask) == "/completions" and path_of(LOCAL, ASK) == "/chat/completions"
    for endpoint in (LOCAL, OPENAI):
        body = request_body(endpoint, ask, habits_of(endpoint))
        assert body == {"model": "gpt-4o", "max_tokens": 5, "temperature": 0.0, "prompt": "<|whole|> text"}
    assert read_reply(LOCAL, ask, reply_of("/v1/completions", body, "safe", "ok", 1)) == answer("safe", None, "gpt-4o")


def answer(text: str, value: Any, model: str) -> Any:
    class Like:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Answer) and (other.text, other.value, other.model) == (text, value, model)

    return Like()


@pytest.mark.parametrize(
    "endpoint, words, key, then",
    [
        (
            OPENAI,
            "Unsupported parameter: 'max_completion_tokens' is not supported",
            "max_completion_tokens",
            "max_tokens",
        ),
        (LOCAL, "Unsupported parameter: 'max_tokens' is not supported", "max_tokens", "max_completion_tokens"),
        (OPENAI, "Unsupported value: 'temperature' does not support 0", "temperature", None),
        (CLAUDE, "`temperature` is deprecated for this model", "temperature", None),
        (LOCAL, "response_format is not supported by this model", "response_format", None),
        (CLAUDE, "output_config: Extra inputs are not permitted", "output_config", "tools"),
    ],
)
def test_what_a_server_refuses_is_left_out_from_then_on(
    endpoint: Endpoint, words: str, key: str, then: str | None
) -> None:
    habits = habits_of(endpoint)
    before = request_body(endpoint, ASK, habits)
    assert adapt(endpoint, ASK, habits, words)
    after = request_body(endpoint, ASK, habits)
    assert key in before and key not in after
    assert then is None or (then in after and then not in before)
    assert adapt(endpoint, ASK, habits, words) is None


def test_a_refusal_of_another_kind_changes_nothing() -> None:
    for endpoint in (OPENAI, LOCAL, CLAUDE):
        habits = habits_of(endpoint)
        for words in ("maximum context length is 8192 tokens", "max_tokens is too large: 9999999", "bad image"):
            assert adapt(endpoint, ASK, habits, words) is None
        assert habits == habits_of(endpoint)


def test_the_schema_goes_into_the_prompt_where_nothing_else_is_taken() -> None:
    habits = Habits(schema_by="words")
    assert request_body(LOCAL, ASK, habits)["messages"][0]["content"].startswith("Be brief.\n\nAnswer with one JSON")
    assert request_body(LOCAL, ASK, habits)["messages"][0]["content"].endswith(WORDS)
    without_system = Ask((USER,), schema=SCHEMA)
    assert [message["role"] for message in request_body(LOCAL, without_system, habits)["messages"]] == [
        "system",
        "user",
    ]
    assert request_body(CLAUDE, ASK, habits)["system"].endswith(WORDS)
    habits = Habits(schema_by="tool")
    body = request_body(CLAUDE, ASK, habits)
    assert body["tool_choice"] == {"type": "tool", "name": body["tools"][0]["name"]}
    assert adapt(CLAUDE, ASK, habits, "tools: Extra inputs are not permitted") and habits.schema_by == "words"


@pytest.mark.parametrize("endpoint", [OPENAI, CLAUDE])
@pytest.mark.parametrize(
    "fault, reason",
    [
        ("refusal", "refusal"),
        ("cut", "truncated"),
        ("empty", "empty"),
        ("invalid_json", "invalid_json"),
        ("off_schema", "off_schema"),
    ],
)
def test_an_answer_of_no_use_is_a_failure_that_was_paid_for(endpoint: Endpoint, fault: str, reason: str) -> None:
    body = request_body(endpoint, ASK, habits_of(endpoint))
    reply = reply_of(path_of(endpoint, ASK).replace("/chat", "/v1/chat"), body, spoilt('{"a": "b"}', fault), fault, 3)
    failed = read_reply(endpoint, ASK, reply)
    assert isinstance(failed, Failed) and failed.reason == reason and failed.detail
    assert failed.usage.input_tokens > 0 and failed.usage.output_tokens > 0


def test_an_answer_has_value_usage_and_id() -> None:
    for endpoint in (OPENAI, CLAUDE):
        body = request_body(endpoint, ASK, habits_of(endpoint))
        reply = reply_of(path_of(endpoint, ASK).replace("/chat", "/v1/chat"), body, '{"a": "b"}', "ok", 3)
        found = read_reply(endpoint, ASK, reply, "req_9")
        assert isinstance(found, Answer) and found.value == {"a": "b"} and found.text == '{"a": "b"}'
        assert found.usage == Usage(len(json.dumps(body)) // 4, 2) and found.request_id == "req_9"
        own = read_reply(endpoint, ASK, reply)
        assert isinstance(own, Answer) and own.request_id == reply["id"] and own.time.endswith("+00:00")


def test_tokens_of_a_prompt_cache_are_counted_and_thoughts_are_no_text() -> None:
    usage = {
        "input_tokens": 5,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 300,
        "output_tokens": 7,
    }
    content = [{"type": "thinking", "thinking": "{}", "signature": "s"}, {"type": "text", "text": '{"a": "b"}'}]
    reply = {"id": "msg", "model": "claude-x", "content": content, "stop_reason": "end_turn", "usage": usage}
    found = read_reply(CLAUDE, ASK, reply)
    assert isinstance(found, Answer) and found.usage == Usage(325, 7) and found.value == {"a": "b"}


@pytest.mark.parametrize(
    "reply",
    [None, [], "x", {}, {"choices": []}, {"choices": [{}]}, {"error": {"message": "upstream"}}, {"content": "x"}],
)
def test_what_is_no_reply_is_broken(reply: Any) -> None:
    for endpoint in (OPENAI, CLAUDE):
        with pytest.raises(BrokenReply):
            read_reply(endpoint, ASK, reply)
