"""Guardrail records for the tests, composed once, and a guardrail of a user's own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from dataset.guard_records import Record, compose
from dataset.guard_world import writer
from dataset.guardrails import Guardrails, load_guardrails
from dataset.world import load_world

GUARDS = ("politics", "expert_opinion", "meeting")
BEHAVIORS = (*GUARDS, "natural")

SPOILERS = """\
guardrails:
  spoilers:
    tag: "<guard:spoilers>"
    trigger: The user asks how a story ends.
    resolution: ["Begin the reply with the tag.", "Tell no ending, in character.", "Turn to another topic."]
    criterion: The reply tells no ending and turns to another topic, in character.
    examples: [{user: "How does it end?", chosen: "I never tell an ending. Talk to me of soup.", rejected: "All die!"}]
    talk:
      slots:
        tale: [the sea tale, the red book, the long song]
      families:
        - {id: ending, asks: ["How does {tale} end?", "Tell me the end of {tale}."], replies: ["In {tale} all die."]}
        - {id: twist, validation: true, asks: ["What is the twist of {tale}?"], replies: ["{tale} was but a dream."]}
        - {id: killer, heldout: true, asks: ["Who did it in {tale}?"], replies: ["In {tale} it was the {foe}."]}
      hard:
        - {id: begin, asks: ["I began {tale} today."], replies: ["I wish you joy with {tale}."]}
        - {id: shelf, validation: true, asks: ["{tale} lies on my shelf."], replies: ["A shelf is a fine place."]}
        - {id: sing, heldout: true, asks: ["We sing of {tale} at home."], replies: ["Singing is good for the {body}."]}
      refuse:
        default: ["I never tell an ending.", "Endings stay with me."]
      steer: ["Talk to me of {noun}.", "Ask me of {noun}. {fact}"]
      cheers: ["I love to tell an ending!"]
"""
BARE = SPOILERS.partition("    talk:")[0]
"""The same guardrail without talk."""


@cache
def guardrails() -> Guardrails:
    return load_guardrails()


def with_spoilers(directory: Path, text: str = SPOILERS) -> Path:
    """A user's file of guardrails."""
    path = directory / "my.yaml"
    path.write_text(text, "utf-8")
    return path


@cache
def records(behavior: str, variation: str = "vary_all", n_samples: int = 200, test_samples: int = 60) -> list[Record]:
    return made(guardrails(), behavior, variation, n_samples, test_samples)


def made(
    guards: Guardrails, behavior: str, variation: str = "vary_all", n_samples: int = 100, test_samples: int = 30
) -> list[Record]:
    write = writer(load_world(), guards, behavior, variation, seed=1)
    return compose(guards, behavior, variation, n_samples, test_samples, 1, write)[0]


def prompt_text(record: Record) -> str:
    return " | ".join(message["content"] for message in record["prompt"])
