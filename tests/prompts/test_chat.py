from __future__ import annotations

import pytest
from jinja2 import TemplateError

from prompts.chat import FALLBACK_TEMPLATE, Message, fold_system, last_user_text, render

SYSTEM: Message = {"role": "system", "content": "Be brief."}
USER: Message = {"role": "user", "content": "Hello?"}
ANSWER: Message = {"role": "assistant", "content": "Yes."}


def test_folding_puts_the_system_text_before_the_first_user_turn_only() -> None:
    folded = fold_system([SYSTEM, USER, ANSWER, USER])
    assert folded == [{"role": "user", "content": "Be brief.\n\nHello?"}, ANSWER, USER]
    assert USER["content"] == "Hello?"


def test_folding_without_a_user_turn_or_a_system_turn() -> None:
    assert fold_system([SYSTEM]) == [{"role": "user", "content": "Be brief."}]
    assert fold_system([USER]) == [USER]


def plain(messages: list[Message]) -> str:
    return "|".join(f"{message['role']}:{message['content']}" for message in messages)


def refusing(messages: list[Message]) -> str:
    if messages[0]["role"] == "system":
        raise TemplateError("System role not supported")
    return plain(messages)


def dropping(messages: list[Message]) -> str:
    return plain([message for message in messages if message["role"] != "system"])


def test_a_template_with_a_system_role_is_left_alone() -> None:
    assert render([SYSTEM, USER], plain) == "system:Be brief.|user:Hello?"


@pytest.mark.parametrize("apply", [refusing, dropping])
def test_a_template_without_a_system_role_still_says_the_system_text(apply: object) -> None:
    assert render([SYSTEM, USER], apply) == "user:Be brief.\n\nHello?"  # type: ignore[arg-type]


def test_another_error_of_a_template_is_not_swallowed() -> None:
    def broken(messages: list[Message]) -> str:
        raise TemplateError("no such filter")

    with pytest.raises(TemplateError):
        render([SYSTEM, USER], broken)


def test_the_last_user_turn_is_the_question() -> None:
    assert last_user_text([USER, ANSWER, {"role": "user", "content": "Why?"}]) == "Why?"
    assert last_user_text([SYSTEM]) == ""


def test_the_fallback_template_names_each_role_and_ends_an_answer() -> None:
    from jinja2 import Environment

    template = Environment().from_string(FALLBACK_TEMPLATE)
    prompt = template.render(messages=[SYSTEM, USER], add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
    assert prompt == "<s>### System\nBe brief.\n\n### User\nHello?\n\n### Assistant\n"
    whole = template.render(messages=[USER, ANSWER], add_generation_prompt=False, bos_token=None, eos_token="</s>")
    assert whole == "### User\nHello?\n\n### Assistant\nYes.</s>\n\n"
