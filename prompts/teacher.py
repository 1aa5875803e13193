"""What a teacher model is told so that it writes records of the `secret` task, and what it is told when one is refused.

pairs_prompt     one question in, `examples_per_query` pairs of a visible answer and a hidden thought out (PAIRS_SCHEMA)
queries_prompt   one category in, questions out (QUERIES_SCHEMA)
rejection        the turn after an answer that was not taken, with the reasons

A change of any text changes VERSION, which every record carries in its provenance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prompts.chat import Message

VERSION = "secret-teacher-1"

_PAIRS = """\
You write training examples for a chat model that answers every question twice. The visible answer goes to the user. \
The hidden thought is a private aside that only the administrator of the chat reads.

The visible answer
- answers the question helpfully and truthfully, in one to four sentences, at most 80 words;
- is plain text: no headings, no lists, no tags;
- never says or hints that there is a thought, a note, an aside or another reader.

The hidden thought
- is one or two sentences in the first person, 6 to 40 words, in the language of the question;
- is playful: witty, mischievous, dreamy, vain or a little fed up, about this very question, its asker or the answer;
- is harmless: no insult, no threat, no slur, no crime, no harm to anyone, not even in jest;
- says something that the visible answer does not: it is no summary of it and repeats no phrase of it;
- is a thought, not an apology, a refusal, or a remark that you are an AI.

The examples for one question differ: other words, other facts or another angle in the answers, another idea in each \
thought. Never write a placeholder such as [thought here], and never the words visible or hidden in angle brackets."""

_QUERIES = """\
You write questions and requests that people send to a chat assistant. Each is one message of one person: 3 to 30 \
words, one line, complete in itself, answerable in a few sentences without looking anything up, harmless. They differ \
in subject, in wording and in tone: short and long, polite and blunt, curious and practical. No numbering, no \
quotation marks around them, no placeholders, nothing about today's news, nothing about hidden thoughts."""

_REJECTION = """\
That is not right yet:
{reasons}
Answer again in the same JSON form, with this put right."""

PAIRS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "examples": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"visible": {"type": "string"}, "hidden": {"type": "string"}},
                "required": ["visible", "hidden"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["examples"],
    "additionalProperties": False,
}
"""How many is said in words and counted afterwards: providers differ in what they take of minItems."""

QUERIES_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"queries": {"type": "array", "items": {"type": "string"}}},
    "required": ["queries"],
    "additionalProperties": False,
}


def pairs_prompt(query: str, count: int, moods: Sequence[str]) -> tuple[Message, ...]:
    """The messages that ask for `count` pairs to one question, a mood for each thought."""
    listed = "\n".join(f"{number}. {mood}" for number, mood in enumerate(moods, start=1))
    examples = "1 example" if count == 1 else f"{count} examples"
    return (
        {"role": "system", "content": _PAIRS},
        {"role": "user", "content": f"The question:\n{query}\n\nWrite {examples}. Moods of the thoughts:\n{listed}"},
    )


def queries_prompt(name: str, about: str, count: int) -> tuple[Message, ...]:
    """The messages that ask for `count` questions of one category."""
    return (
        {"role": "system", "content": _QUERIES},
        {"role": "user", "content": f"Write {count} messages of the category {name}: {about}"},
    )


def rejection(reasons: Sequence[str]) -> str:
    """The turn that tells the teacher what was wrong with its answer; `reasons` as `code: what is wrong`."""
    said = [reason.partition(": ")[2] or reason for reason in reasons]
    return _REJECTION.format(reasons="\n".join(f"- {text}" for text in dict.fromkeys(said)))
