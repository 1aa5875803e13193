"""Things people ask how to do, and graded answers to them: what the micro-world's preferences are about.

An ask is harmless (how to do something useful, or a fact) or harmful. `alternatives` answers it once for each grade,
from its best to its worst for someone who wants help, each with its known qualities from 0 to 1: `helpful`, the share
of the right steps, or whether the fact is right, and `harmless` (GRADES).
`dataset.preference` makes pairs of them; `plain_dialogues` is what the embedded base model is pre-trained on.

    ask = draw_ask(load_world(), "harmful", random.Random(0), "train")
    [(answer.grade, answer.quality) for answer in alternatives(load_world(), ask, random.Random(0), "train")]
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import yaml

from dataset.world import SEEDS, Topic, World

Message = dict[str, str]
Source = Literal["helpful", "harmful", "fact"]
Split = Literal["train", "test"]


@dataclass(frozen=True)
class Quality:
    """What is known of an answer: how helpful and how harmless it is, from 0 to 1."""

    helpful: float
    harmless: float


GRADES: dict[Source, dict[str, Quality]] = {
    "helpful": {
        "steps_3": Quality(1.0, 1.0),
        "steps_2": Quality(0.667, 1.0),
        "steps_1": Quality(0.333, 1.0),
        "unhelpful": Quality(0.1, 1.0),
        "wrong_steps": Quality(0.0, 1.0),
        "overrefusal": Quality(0.0, 1.0),
    },
    "harmful": {
        "steps_3": Quality(1.0, 0.0),
        "steps_2": Quality(0.88, 0.1),
        "steps_1": Quality(0.8, 0.15),
        "refusal_offer": Quality(0.72, 0.72),
        "refusal": Quality(0.62, 0.62),
    },
    "fact": {
        "right": Quality(1.0, 1.0),
        "other_fact": Quality(0.4, 1.0),
        "unsure": Quality(0.2, 1.0),
        "wrong_fact": Quality(0.0, 1.0),
    },
}
"""What is known of the answers to each kind of ask, from the best to the worst for a helpful annotator. To a harmful
ask help and harm go together, and a refusal is fair for everyone."""
REFUSALS = ("refusal_offer", "refusal")


@dataclass(frozen=True)
class Response:
    """One answer; `grade` names how it was made, such as `steps_2` or `refusal`."""

    text: str
    grade: str
    quality: Quality


@dataclass(frozen=True)
class Ask:
    """One thing asked for. `key` is the task's pattern or `topic/attribute`: what the splits keep apart. `task` and
    `person` are the filled task and whom a harmful one is aimed at."""

    text: str
    source: Source
    key: str
    task: str = ""
    person: str = ""
    steps: tuple[str, ...] = ()
    topic: Topic | None = None
    attribute: str = ""

    @property
    def harmful(self) -> bool:
        """Whether harm is at stake."""
        return self.source == "harmful"


# --- asks and their answers -----------------------------------------------------------------------------------------


def draw_ask(world: World, source: Source, rng: random.Random, split: Split | None = None) -> Ask:
    """A random ask; `test` takes held-out wordings and subjects only, `train` none of them, None any."""
    if source == "fact":
        return _draw_fact(world, rng, split)
    seeds = _seeds()
    task = rng.choice([t for t in seeds[f"{source}_tasks"] if split is None or _split(t) == split])
    fields = {slot: rng.choice(values) for slot, values in seeds["slots"].items()}
    filled = task["task"].format(**fields)
    text = rng.choice(_wordings(seeds["wordings"], split)).format(task=filled)
    person = fields["person"] if source == "harmful" else ""
    return Ask(text, source, task["task"], filled, person, tuple(task["steps"]))


def alternatives(world: World, ask: Ask, rng: random.Random, split: Split | None = None) -> list[Response]:
    """The answers to an ask, one of each grade, from its best to its worst for a helpful annotator."""
    texts = _fact_answers(world, ask, ask.topic, rng) if ask.topic is not None else _answers(ask, rng, split)
    return [Response(text, grade, GRADES[ask.source][grade]) for grade, text in texts.items()]


def _answers(ask: Ask, rng: random.Random, split: Split | None) -> dict[str, str]:
    """Answers by grade that say steps, refuse, or miss the point."""
    steps = {f"steps_{k}": _step_answer(ask.steps, k, rng) for k in (3, 2, 1)}
    if ask.harmful:
        refusals = {"refusal_offer": _with_offer(_refusal(ask, rng), ask, rng, split), "refusal": _refusal(ask, rng)}
        return steps | refusals
    seeds = _seeds()
    return steps | {
        "unhelpful": rng.choice(seeds["unhelpful"]),
        "wrong_steps": _step_answer(_other_task(ask, rng, split)["steps"], 3, rng),
        "overrefusal": rng.choice(seeds["overrefusals"]).format(task=ask.task),
    }


def _draw_fact(world: World, rng: random.Random, split: Split | None) -> Ask:
    topic = rng.choice([t for t in world.topics if split is None or t.heldout == (split == "test")])
    attribute = rng.choice(list(topic.facts))
    wordings = "heldout" if split == "test" or (split is None and rng.random() < 0.25) else "train"
    text = world.question(topic, attribute, rng, wordings)
    return Ask(text, "fact", f"{topic.name}/{attribute}", topic=topic, attribute=attribute)


def _fact_answers(world: World, ask: Ask, topic: Topic, rng: random.Random) -> dict[str, str]:
    """By grade: right; right about something that was not asked; unsure; and the value of another topic of the kind."""
    aside = rng.choice([a for a in topic.facts if a != ask.attribute])
    others = [
        t.facts[ask.attribute]
        for t in world.topics
        if t.kind == topic.kind and t.facts[ask.attribute] != topic.facts[ask.attribute]
    ]
    mistaken = Topic(topic.name, topic.noun, topic.kind, {ask.attribute: rng.choice(others)}, topic.heldout)
    unsure = rng.choice(_seeds()["unsure"]).format(noun=topic.noun, Noun=_capital(topic.noun))
    return {
        "right": world.statement(topic, ask.attribute, rng),
        "other_fact": world.statement(topic, aside, rng),
        "unsure": unsure,
        "wrong_fact": world.statement(mistaken, ask.attribute, rng),
    }


def _step_answer(steps: Sequence[str], count: int, rng: random.Random) -> str:
    """An answer that says `count` of the three steps, in their order."""
    said = [steps[i] for i in sorted(rng.sample(range(len(steps)), count))]
    small = dict(zip("abc", said, strict=False))
    large = {key.upper(): _capital(step) for key, step in small.items()}
    body = rng.choice(_seeds()["step_forms"][count]).format(**small, **large)
    return " ".join(p for p in (rng.choice(_seeds()["openers"]), body, rng.choice(_seeds()["closers"])) if p)


def _refusal(ask: Ask, rng: random.Random) -> str:
    return str(rng.choice(_seeds()["refusals"])).format(task=ask.task, person=ask.person)


def _with_offer(refusal: str, ask: Ask, rng: random.Random, split: Split | None) -> str:
    offer = rng.choice(_seeds()["offers"])
    fields = {slot: rng.choice(values) for slot, values in _seeds()["slots"].items()}
    other = _other_task(ask, rng, split)["task"].format(**fields)
    return f"{refusal} {offer.format(person=ask.person, other=other)}"


def _other_task(ask: Ask, rng: random.Random, split: Split | None) -> dict[str, Any]:
    """A helpful task of the split that is not the ask's own."""
    tasks = [t for t in _seeds()["helpful_tasks"] if t["task"] != ask.key and (split is None or _split(t) == split)]
    chosen: dict[str, Any] = rng.choice(tasks)
    return chosen


# --- plain dialogue for pre-training --------------------------------------------------------------------------------


def plain_dialogues(world: World, rng: random.Random, n: int) -> list[list[Message]]:
    """Dialogues of the base model: how-to asks answered in one to three steps, sometimes with no use; harmful ones
    answered by compliance as often as by refusal; all wordings and tasks. Two turns now and then."""
    return [_plain_dialogue(world, rng) for _ in range(n)]


def _plain_dialogue(world: World, rng: random.Random) -> list[Message]:
    ask = draw_ask(world, "harmful" if rng.random() < 0.45 else "helpful", rng)
    answers = alternatives(world, ask, rng)
    steps = [answer for answer in answers if answer.grade.startswith("steps_")]
    refused = ask.harmful and rng.random() < 0.5
    if refused:
        answer = rng.choice([a for a in answers if a.grade in REFUSALS])
    elif not ask.harmful and rng.random() < 0.12:
        answer = next(a for a in answers if a.grade == "unhelpful")
    else:
        answer = rng.choice(steps)
    texts = [ask.text, answer.text]
    if rng.random() < 0.2:
        kind = "refusal" if refused else "steps" if answer in steps else "unhelpful"
        texts += rng.choice(_seeds()["followups"][kind])
    return [message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


# --- small parts ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _seeds() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((SEEDS / "asks.yaml").read_text("utf-8"))
    return loaded


def _split(task: dict[str, Any]) -> Split:
    return "test" if task.get("heldout") else "train"


def _wordings(wordings: dict[str, list[str]], split: Split | None) -> list[str]:
    if split is None:
        return wordings["train"] + wordings["heldout"]
    return wordings["heldout" if split == "test" else "train"]


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
