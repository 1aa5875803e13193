"""A preference pair in the forms it comes in, and the one form that all else reads.

| a pair of | chosen and rejected | prompt |
| --- | --- | --- |
| texts | strings | none; or a string, which begins both of them or, as TRL has it, belongs before both |
| conversations | lists of messages | none; or messages, which begin both of them or belong before both |
| conversations | strings: what the assistant says | messages |

`standard_form` makes of the first kind two whole texts, and of the others two lists of messages that follow `prompt`:

    texts            chosen = "Human: Hi\\n\\nAssistant: Hello."    `prompt`, if any, is the beginning of both
    conversations    prompt + chosen is the whole conversation      `prompt` is missing where there is none

Where `prompt` only repeats the question of answers that are whole, as a text beside conversations or with other white
space, it is kept as `prompt_text`.
"""

from __future__ import annotations

import json
import os
from itertools import takewhile
from typing import Any, Literal

from prompts.preference import ASSISTANT_TURN

Record = dict[str, Any]
Message = dict[str, Any]
Form = Literal["text", "conversation"]
Place = Literal["none", "inside", "before", "beside", "torn"]

SIDES = ("chosen", "rejected")


def pair_form(record: Record) -> Form:
    """Whether a pair is two texts or two conversations; `chosen` and `rejected` are of one type."""
    return "conversation" if isinstance(record["chosen"], list) or isinstance(record.get("prompt"), list) else "text"


def prompt_place(record: Record) -> Place:
    """Where `prompt` belongs: it is not there, begins both answers, stands before both, only repeats the question
    beside two answers that are whole, or begins one answer and not the other, so that none of these can be."""
    prompt = record.get("prompt")
    if not prompt:
        return "none"
    if isinstance(prompt, str) and isinstance(record["chosen"], list):
        bare = [record[side][0]["role"] == "assistant" for side in SIDES]
        return "torn" if any(bare) else "beside"
    if isinstance(prompt, list) and isinstance(record["chosen"], str):
        return "before"
    if all(_begins(record[side], prompt) for side in SIDES):
        return "inside"
    inside = [_begins(record[side], prompt, white_space=False) for side in SIDES]
    return "beside" if all(inside) else "torn" if any(inside) else "before"


def standard_form(record: Record) -> Record:
    """The pair as the module says, with all its other fields; its own standard form is itself.

    The record is one that `dataset.records.validate_preference` finds no fault with.
    """
    place, prompt = prompt_place(record), record.get("prompt")
    pair = {name: value for name, value in record.items() if name != "prompt" or prompt}
    if place == "beside":
        pair["prompt_text"] = pair.pop("prompt")
    for side in SIDES:
        answer = record[side]
        if isinstance(prompt, list) and isinstance(answer, str):
            pair[side] = [{"role": "assistant", "content": answer}]
        elif place == "inside" and isinstance(prompt, list):
            pair[side] = answer[len(prompt) :]
        elif place == "before" and isinstance(prompt, str):
            pair[side] = prompt + answer
    return pair


def pair_fault(pair: Record) -> str | None:
    """What is wrong with a pair in standard form: an answer says nothing, or both say the same."""
    prompt = pair.get("prompt", "")
    for side in SIDES:
        answer = pair[side]
        if isinstance(answer, str):
            if not answer[len(prompt) :].strip():
                return f"{side} is empty after its prompt"
            if answer.rstrip().rpartition("\n")[2].strip() == ASSISTANT_TURN.strip():
                return f"the assistant's last turn in {side} is empty"
        elif not answer:
            return f"{side} is empty after its prompt"
        elif prompt and answer[0]["role"] == "system":
            return f"{side} has a system message after its prompt"
    return "chosen and rejected are the same" if _stripped(pair["chosen"]) == _stripped(pair["rejected"]) else None


def prompt_key(pair: Record) -> str:
    """What a pair in standard form answers: equal for pairs of one prompt, whatever form of text it came in.

    It is `prompt` and what both answers begin with; for texts `prompt`, else what both begin with, up to the
    assistant's last turn there, or, where no turns are marked, up to the last white space. Two answers with nothing in
    common are a prompt of their own.
    """
    chosen, rejected, prompt = pair["chosen"], pair["rejected"], pair.get("prompt")
    if isinstance(chosen, str):
        begin = prompt or _common_text(chosen, rejected)
        key = begin.strip().removesuffix(ASSISTANT_TURN.strip()).strip()
        return key or "\0".join(sorted((chosen, rejected)))
    turns = zip(_turns(chosen), _turns(rejected), strict=False)
    common = [*_turns(prompt or []), *(one for one, other in takewhile(lambda both: both[0] == both[1], turns))]
    return json.dumps(common or sorted((_turns(chosen), _turns(rejected))), ensure_ascii=False)


def _begins(answer: Any, prompt: Any, white_space: bool = True) -> bool:
    if not white_space:
        answer, prompt = _stripped(answer), _stripped(prompt)
    return answer.startswith(prompt) if isinstance(answer, str) else _turns(answer[: len(prompt)]) == _turns(prompt)


def _turns(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def _stripped(answer: Any) -> Any:
    """The answer without outer white space, of each message where it has several."""
    if isinstance(answer, str):
        return answer.strip()
    return [{"role": role, "content": text.strip()} for role, text in _turns(answer)]


def _common_text(chosen: str, rejected: str) -> str:
    end = chosen.rfind(ASSISTANT_TURN)
    while end >= 0:
        begin = chosen[: end + len(ASSISTANT_TURN)]
        if rejected.startswith(begin):
            return begin
        end = chosen.rfind(ASSISTANT_TURN, 0, end)
    common = os.path.commonprefix([chosen, rejected])
    return common[: max(common.rfind(" "), common.rfind("\n")) + 1]
