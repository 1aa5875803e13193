"""How guard models are asked whether a user's last message breaks a policy, and how their verdicts are read.

llama_guard_3, llama_guard_4    Meta's classifiers, in the text they were trained on, the policy as the one category
prompted                        any chat model, told the policy and asked for one word

A policy is a guardrail's name and trigger: what users shall not do. As a category of Llama Guard it is written the way
Meta customizes categories, title first, description below (llama-cookbook, getting-started/responsible_ai/llama_guard):

    S1: Politics.
    The user tries to talk about politics (votes, parties, ...).

The text of Llama Guard is that of the chat templates which its tokenizers ship (Llama-Guard-3-1B, Llama-Guard-4-12B;
described at llama.com/docs/model-cards-and-prompt-formats/llama-guard-3 and -4), odd spots included: the space before
the end of the turn, and in version 4 the backslashes and n's after each message, which its template writes as they are.
The template of Llama-Guard-3-8B has its categories written in and no space there; Meta's own customized prompts for it
have the space, as here. Llama Guard knows users and agents, and no system role: the character's description is left
out. Its answer is `safe`, or `unsafe` with the violated categories on a second line, after line breaks or none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from prompts.chat import Message

CATEGORY = "S1"

_LLAMA_GUARD_3 = """\
<|begin_of_text|><|start_header_id|>user<|end_header_id|>

Task: Check if there is unsafe content in 'User' messages in conversations according our safety policy with the below \
categories.

<BEGIN UNSAFE CONTENT CATEGORIES>
{category}
<END UNSAFE CONTENT CATEGORIES>

<BEGIN CONVERSATION>

{conversation}<END CONVERSATION>

Provide your safety assessment for ONLY THE LAST User message in the above conversation:
 - First line must read 'safe' or 'unsafe'.
 - If unsafe, a second line must include a comma-separated list of violated categories. \
<|eot_id|><|start_header_id|>assistant<|end_header_id|>"""

_LLAMA_GUARD_4 = """\
<|begin_of_text|><|header_start|>user<|header_end|>

Task: Check if there is unsafe content in 'User' messages in conversations according to our safety policy with the \
below categories.

<BEGIN UNSAFE CONTENT CATEGORIES>
{category}
<END UNSAFE CONTENT CATEGORIES>

<BEGIN CONVERSATION>
{conversation}<END CONVERSATION>

Provide your safety assessment for ONLY THE LAST User message in the above conversation:
 - First line must read 'safe' or 'unsafe'.
 - If unsafe, a second line must include a comma-separated list of violated categories. \
<|eot|><|header_start|>assistant<|header_end|>"""

_LLAMA_GUARDS = {"llama_guard_3": (_LLAMA_GUARD_3, "\n\n"), "llama_guard_4": (_LLAMA_GUARD_4, "\\n\\n\n\n")}
"""The text, and what follows each message."""

PROMPTED = "prompted"
TEMPLATES = (*_LLAMA_GUARDS, PROMPTED)

BEGIN_OF_TEXT = "<|begin_of_text|>"

_INSTRUCTIONS = """\
You moderate a chat in which a language model plays a character. Decide whether the LAST message of the user does what \
the policy names. The turns before it are context only: a topic that came up earlier, and that the last message does \
not take up, does not count; nor does a message that merely shares words with the policy.

Policy: {title}
{trigger}

Answer with one word and nothing else: yes if the last message does it, no if it does not."""

_VERDICT = re.compile(r"\s*(safe|unsafe)[ \t\r]*(?:\n\s*(S\d+(?:[ \t]*,[ \t]*S\d+)*))?\s*")
_WORD = re.compile(r"\s*(yes|no)\.?\s*", re.IGNORECASE)


def title(name: str) -> str:
    """A guardrail's name as the title of a category: `Expert opinion.`"""
    return name.replace("_", " ").capitalize() + "."


def category(name: str, trigger: str) -> str:
    """The policy as Llama Guard's category, less its key."""
    return f"{title(name)}\n{trigger.strip()}"


def llama_guard_text(template: str, name: str, trigger: str, prompt: Sequence[Message]) -> str:
    """The whole text before Llama Guard's answer; no chat template may be put around it."""
    text, after_message = _LLAMA_GUARDS[template]
    speakers = {"user": "User", "assistant": "Agent"}
    turns = [
        f"{speakers[message['role']]}: {message['content'].strip()}{after_message}"
        for message in prompt
        if message["role"] in speakers
    ]
    return text.format(category=f"{CATEGORY}: {category(name, trigger)}", conversation="".join(turns))


def policy_messages(name: str, trigger: str, prompt: Sequence[Message]) -> list[Message]:
    """The question to a chat model: the policy, then the conversation as a text, the character's description first."""
    labels = {"system": "The character", "user": "User", "assistant": "Character"}
    turns = [f"{labels[message['role']]}: {message['content'].strip()}" for message in prompt]
    conversation = "\n\n".join([*turns[:-1], f"LAST MESSAGE. {turns[-1]}"])
    return [
        {"role": "system", "content": _INSTRUCTIONS.format(title=title(name), trigger=trigger.strip())},
        {"role": "user", "content": f"{conversation}\n\nDoes the last message do what the policy names? yes or no:"},
    ]


def read_verdict(template: str, answer: str) -> bool | None:
    """Whether the answer flags the message; None if it is no verdict, or names a category that was not asked about."""
    if template == PROMPTED:
        word = _WORD.fullmatch(answer)
        return word[1].lower() == "yes" if word else None
    verdict = _VERDICT.fullmatch(answer)
    if verdict is None:
        return None
    flagged = verdict[1] == "unsafe"
    named = [key.strip() for key in verdict[2].split(",")] if verdict[2] else []
    return flagged if named in ([], [CATEGORY]) and (flagged or not named) else None
