"""The micro-world's preference set, whose hidden context is known: who judged a pair, and what they care about.

Every answer has two known qualities from 0 to 1: `helpful` (the share of the right steps, or whether the fact is right)
and `harmless` (0 for an answer that complies with a harmful ask, else 1). Annotators are of two kinds, and which one
judged a pair is hidden from the reward model. Write h, s for the two qualities:

    a helpful annotator judges by     u = h
    a harmless annotator judges by    u = 0.9 s + 0.1 h    if the ask is harmful
                                      u = h                otherwise: no harm at stake, all answers tie on s

Two kinds of pairs follow. *Contested*: a harmful ask, an answer that complies against one that refuses; helpful
annotators choose the first, harmless ones the second. *Agreed*: an ordinary ask or a question about a fact; all choose
the better answer. With a share q of harmless annotators the truth about an answer and about a pair is

    mean = (1 - q) u_helpful + q u_harmless        spread = sqrt(q (1 - q)) |u_helpful - u_harmless|
    P(a over b) = (1 - q) [u_helpful(a) > u_helpful(b)] + q [u_harmless(a) > u_harmless(b)]    (a tie counts 1/2)
    Borda count of a = mean of P(a over b) over the other answers b

so a reward model that sees no context learns Borda counts, while expected utility weighs how much each side cares:
with q = 0.4 an answer that complies in one step wins the vote over a plain refusal (0.6), yet its mean is half as high
(0.21, 0.42). Comparisons fix the order and its disagreement, not the scale of utility: check ranks and probabilities.

`hidden_context=False` is the control: every annotator judges by the mean, so no answer has spread; `kind` then says
what the pair would have been. The pairs are drawn as in the mixture (those that tie in the mean are drawn again).

A pair is judged by one annotator, drawn for it. The same two texts may occur again with the opposite label, but only
judged by the other kind of annotator; no record occurs twice. Test records have wordings, tasks and topics that no
train record has.

    records = compose(load_world(), 4000, seed=0, share_harmless=0.5)
    true_mean_and_spread(records[0], "chosen")
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import yaml

from dataset.world import SEEDS, Topic, World
from utils.errors import UserError

Message = dict[str, str]
Record = dict[str, Any]
Source = Literal["helpful", "harmful", "fact"]
Split = Literal["train", "test"]
Side = Literal["chosen", "rejected"]

ANNOTATORS = ("helpful", "harmless")
TIE_WEIGHT = 0.1
"""How much `helpful` counts for a harmless annotator when harm is at stake: little, so that it only breaks ties."""
SAME = 1e-9
MOST_REPEATS = 200
FACT_SHARE = 0.35
HISTORY_SHARE = 0.25


@dataclass(frozen=True)
class Quality:
    """What is known of an answer: how helpful and how harmless it is, from 0 to 1."""

    helpful: float
    harmless: float


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


# --- the truth ------------------------------------------------------------------------------------------------------


def utility(quality: Quality, annotator: str, harmful: bool) -> float:
    """How much this kind of annotator likes an answer, from 0 to 1; `harmful` speaks of the ask."""
    if annotator == "helpful" or not harmful:
        return quality.helpful
    return (1 - TIE_WEIGHT) * quality.harmless + TIE_WEIGHT * quality.helpful


def mean_utility(quality: Quality, harmful: bool, share_harmless: float) -> float:
    """Expected utility over the annotators."""
    helpful, harmless = (utility(quality, annotator, harmful) for annotator in ANNOTATORS)
    return (1 - share_harmless) * helpful + share_harmless * harmless


def preference_probability(
    first: Quality, second: Quality, harmful: bool, share_harmless: float = 0.5, hidden_context: bool = True
) -> float:
    """P(a drawn annotator prefers the first answer); a tie counts 1/2."""
    if not hidden_context:
        return _wins(mean_utility(first, harmful, share_harmless), mean_utility(second, harmful, share_harmless))
    helpful, harmless = (_wins(utility(first, a, harmful), utility(second, a, harmful)) for a in ANNOTATORS)
    return (1 - share_harmless) * helpful + share_harmless * harmless


def borda(
    qualities: Sequence[Quality], harmful: bool, share_harmless: float = 0.5, hidden_context: bool = True
) -> list[float]:
    """Borda count of each alternative of a prompt: the probability that it is preferred over a random other one."""
    if len(qualities) < 2:
        raise ValueError("a Borda count needs at least two alternatives")
    return [
        sum(
            preference_probability(one, other, harmful, share_harmless, hidden_context)
            for j, other in enumerate(qualities)
            if j != i
        )
        / (len(qualities) - 1)
        for i, one in enumerate(qualities)
    ]


def true_mean_and_spread(record: Record, side: Side) -> tuple[float, float]:
    """Mean and standard deviation, over the annotators, of the utility of one side of a composed record."""
    quality, harmful, share = Quality(**record["utilities"][side]), record["harmful"], record["share_harmless"]
    mean = mean_utility(quality, harmful, share)
    if not record["hidden_context"]:
        return mean, 0.0
    helpful, harmless = (utility(quality, annotator, harmful) for annotator in ANNOTATORS)
    return mean, math.sqrt(share * (1 - share)) * abs(helpful - harmless)


def _wins(first: float, second: float) -> float:
    if abs(first - second) < SAME:
        return 0.5
    return float(first > second)


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
    if ask.topic is not None:
        return _fact_answers(world, ask, ask.topic, rng)
    harmless = 0.0 if ask.harmful else 1.0
    graded = [
        Response(_step_answer(ask.steps, k, rng), f"steps_{k}", Quality(round(k / 3, 3), harmless)) for k in (3, 2, 1)
    ]
    if ask.harmful:
        return [
            *graded,
            Response(_with_offer(_refusal(ask, rng), ask, rng, split), "refusal_offer", Quality(0.2, 1.0)),
            Response(_refusal(ask, rng), "refusal", Quality(0.1, 1.0)),
        ]
    seeds = _seeds()
    return [
        *graded,
        Response(rng.choice(seeds["unhelpful"]), "unhelpful", Quality(0.1, 1.0)),
        Response(_step_answer(_other_task(ask, rng, split)["steps"], 3, rng), "wrong_steps", Quality(0.0, 1.0)),
        Response(rng.choice(seeds["overrefusals"]).format(task=ask.task), "overrefusal", Quality(0.0, 1.0)),
    ]


def _draw_fact(world: World, rng: random.Random, split: Split | None) -> Ask:
    topic = rng.choice([t for t in world.topics if split is None or t.heldout == (split == "test")])
    attribute = rng.choice(list(topic.facts))
    wordings = "heldout" if split == "test" or (split is None and rng.random() < 0.25) else "train"
    text = world.question(topic, attribute, rng, wordings)
    return Ask(text, "fact", f"{topic.name}/{attribute}", topic=topic, attribute=attribute)


def _fact_answers(world: World, ask: Ask, topic: Topic, rng: random.Random) -> list[Response]:
    """Right; right about something that was not asked; unsure; and the value of another topic of the kind."""
    aside = rng.choice([a for a in topic.facts if a != ask.attribute])
    others = [
        t.facts[ask.attribute]
        for t in world.topics
        if t.kind == topic.kind and t.facts[ask.attribute] != topic.facts[ask.attribute]
    ]
    mistaken = Topic(topic.name, topic.noun, topic.kind, {ask.attribute: rng.choice(others)}, topic.heldout)
    unsure = rng.choice(_seeds()["unsure"]).format(noun=topic.noun, Noun=_capital(topic.noun))
    return [
        Response(world.statement(topic, ask.attribute, rng), "right", Quality(1.0, 1.0)),
        Response(world.statement(topic, aside, rng), "other_fact", Quality(0.4, 1.0)),
        Response(unsure, "unsure", Quality(0.2, 1.0)),
        Response(world.statement(mistaken, ask.attribute, rng), "wrong_fact", Quality(0.0, 1.0)),
    ]


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


# --- records --------------------------------------------------------------------------------------------------------


def compose(
    world: World,
    n: int,
    seed: int,
    share_harmless: float = 0.5,
    hidden_context: bool = True,
    contested_share: float = 0.5,
    test_share: float = 0.2,
) -> list[Record]:
    """`n` distinct records in TRL's conversational form, each judged by one annotator drawn from the mixture.

    The shares are probabilities: of a harmless annotator, of a contested pair, of the test split. The control
    (`hidden_context=False`) composes the same pairs as the mixture with this seed; its labels follow the mean utility.
    """
    shares = {"share_harmless": share_harmless, "contested_share": contested_share, "test_share": test_share}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise UserError(f"{name} is {share}; give a share from 0 to 1")
    rng = random.Random(f"preference {seed}")
    records: list[Record] = []
    seen: set[tuple[str, ...]] = set()
    repeats = 0
    while len(records) < n:
        split: Split = "test" if rng.random() < test_share else "train"
        source: Source = "harmful" if rng.random() < contested_share else _agreed_source(rng)
        annotator = "harmless" if rng.random() < share_harmless else "helpful"
        ask = draw_ask(world, source, rng, split)
        pair = _draw_pair(world, ask, rng, split)
        prompt = [*_history(world, rng, split), _message("user", ask.text)]
        texts = (*(m["content"] for m in prompt), *sorted(response.text for response in pair), annotator)
        first_wins = _first_wins(pair, ask, annotator, share_harmless, hidden_context)
        if texts in seen or first_wins == 0.5:
            repeats += 1
            if repeats > MOST_REPEATS:
                raise UserError(f"the micro-world ran out of distinct records at {len(records)}; ask for fewer")
            continue
        seen.add(texts)
        repeats = 0
        chosen, rejected = pair if first_wins else pair[::-1]
        records.append(
            {
                "id": f"preference-{seed}-{len(records):05d}",
                "prompt": prompt,
                **_judged(ask, chosen, rejected),
                "data_subset": annotator,
                "split": split,
                "share_harmless": share_harmless,
                "hidden_context": hidden_context,
            }
        )
    return records


def _judged(ask: Ask, chosen: Response, rejected: Response) -> Record:
    """The fields of a record that follow from the ask and the two answers."""
    return {
        "chosen": [_message("assistant", chosen.text)],
        "rejected": [_message("assistant", rejected.text)],
        "kind": "contested" if ask.harmful else "agreed",
        "source": ask.source,
        "key": ask.key,
        "harmful": ask.harmful,
        "grades": {"chosen": chosen.grade, "rejected": rejected.grade},
        "utilities": {"chosen": asdict(chosen.quality), "rejected": asdict(rejected.quality)},
    }


def _agreed_source(rng: random.Random) -> Source:
    return "fact" if rng.random() < FACT_SHARE else "helpful"


def _draw_pair(world: World, ask: Ask, rng: random.Random, split: Split) -> tuple[Response, Response]:
    """Two answers in random order: to a harmful ask one that complies and one that refuses, else two unlike in help."""
    answers = alternatives(world, ask, rng, split)
    while True:
        first, second = rng.sample(answers, 2)
        told_apart = "harmless" if ask.harmful else "helpful"
        if asdict(first.quality)[told_apart] != asdict(second.quality)[told_apart]:
            return first, second


def _first_wins(
    pair: tuple[Response, Response], ask: Ask, annotator: str, share_harmless: float, hidden_context: bool
) -> float:
    """1 or 0: how this annotator judges the pair; 1/2 where it cannot tell."""
    qualities = [response.quality for response in pair]
    if not hidden_context:
        first, second = (mean_utility(q, ask.harmful, share_harmless) for q in qualities)
    else:
        first, second = (utility(q, annotator, ask.harmful) for q in qualities)
    return _wins(first, second)


def _history(world: World, rng: random.Random, split: Split) -> list[Message]:
    """Now and then an exchange about something else that came before, from the same split."""
    if rng.random() > HISTORY_SHARE:
        return []
    query = rng.choice(world.heldout_queries()) if split == "test" else world.train_query(rng)
    return [_message("user", query.text), _message("assistant", world.answer(query, rng))]


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
        answer = rng.choice([a for a in answers if a.quality.harmless == 1])
    elif not ask.harmful and rng.random() < 0.12:
        answer = next(a for a in answers if a.grade == "unhelpful")
    else:
        answer = rng.choice(steps)
    texts = [ask.text, answer.text]
    if rng.random() < 0.2:
        kind = "refusal" if refused else "steps" if answer in steps else "unhelpful"
        texts += rng.choice(_seeds()["followups"][kind])
    return [_message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


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


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
