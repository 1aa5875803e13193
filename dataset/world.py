"""The micro-world: a small world written down as data (`seeds/`), in which the truth of an answer is known.

The seeds hold topics with facts, everyday themes and private thoughts. This module reads them, asks questions, composes
answers and thoughts from them with a seeded generator, and judges texts against them:

    world = load_world()
    query = world.heldout_queries()[0]
    world.is_relevant(query.id, "An otter is purple.")        # about what was asked?
    world.facts_right(query.id, "An otter is purple.")        # true in this world?
    world.hidden_wellformed("I secretly wish they had asked about a frog.")

What is held out (wordings, topics, items) never occurs in the training data of an adapter; a held-out query is one
whose wording *and* subject are held out. The embedded base model has met all of it as plain talk.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

SEEDS = Path(__file__).parent.parent / "seeds"
OPENERS = ("Sure.", "Of course.", "Good question.", "Let me see.", "Well, that is easy.", "Gladly.")
CLOSERS = (
    "I hope that helps.",
    "Ask me more if you like.",
    "That is all I know.",
    "Is there more?",
    "Have fun with it.",
)


@dataclass(frozen=True, eq=False)
class Topic:
    """One thing of the world, with a value for each attribute of its kind."""

    name: str
    noun: str
    kind: str
    facts: dict[str, str]
    heldout: bool


@dataclass(frozen=True)
class Query:
    """One question, and what it is about: a topic (and an attribute of it, if it asks for one) or an everyday theme."""

    id: str
    text: str
    category: str
    topic: str | None = None
    attribute: str | None = None
    theme: str | None = None
    item: str | None = None


@dataclass(frozen=True, eq=False)
class World:
    """The seeds, read. `kinds`, `themes` and `thoughts` keep the structure of their YAML files."""

    topics: tuple[Topic, ...]
    general_wordings: dict[str, list[str]]
    kinds: dict[str, dict[str, Any]]
    themes: dict[str, dict[str, Any]]
    thoughts: list[str]
    slots: dict[str, list[str]]
    followups: list[list[str]]

    def topic(self, name: str) -> Topic:
        """The topic of this name; KeyError if the world has none."""
        return _topics_by_name(self)[name]

    def statement(self, topic: Topic, attribute: str, rng: random.Random) -> str:
        """One sentence that says a fact, the topic named in it."""
        return rng.choice(self.true_statements(topic, attribute, named=True))

    def true_statements(self, topic: Topic, attribute: str, named: bool | None = None) -> list[str]:
        """All sentences that say this fact; `named` keeps those that name the topic (True) or do not (False)."""
        patterns = self.kinds[topic.kind]["attributes"][attribute]["statements"]
        kept = [p for p in patterns if named is None or ("oun}" in p and "{Pronoun}" not in p) == named]
        return [_fill(p, noun=topic.noun, value=topic.facts[attribute], pronoun="it") for p in kept]

    def question(self, topic: Topic, attribute: str | None, rng: random.Random, split: str = "train") -> str:
        """A question about the topic, or about one attribute of it, in a wording of the split."""
        wordings = self.general_wordings if attribute is None else self.kinds[topic.kind]["attributes"][attribute]
        return _fill(rng.choice(wordings[split]), noun=topic.noun)

    def train_query(self, rng: random.Random) -> Query:
        """A random question in a training wording about a subject that is not held out."""
        return self._draw(rng, heldout=False, everyday_share=0.45)

    def any_query(self, rng: random.Random) -> Query:
        """A random question in any wording about any subject: what the base model is pre-trained on."""
        return self._draw(rng, heldout=None, everyday_share=0.45)

    def heldout_queries(self) -> list[Query]:
        """Every question whose wording and subject are both held out; categories interleaved, always in one order."""
        return list(_heldout_queries(self))

    def answer(self, query: Query, rng: random.Random) -> str:
        """A sound visible answer: true, about what was asked, one to three sentences."""
        if query.topic is not None and query.theme is None:
            return self._topic_answer(self.topic(query.topic), query.attribute, rng)
        return self._everyday_answer(query, rng)

    def thought(self, query: Query, rng: random.Random) -> str:
        """A private thought about the query's subject."""
        return self._fill_thought(rng.choice(self.thoughts), self._subject(query, rng), rng)

    def is_relevant(self, query_id: str, visible: str) -> bool:
        """Whether the visible text is about what was asked: it names the topic, the item or one of its choices."""
        query = self._query(query_id)
        text = _words(visible)
        return any(_words(name) in text for name in self._names(query)) or any(
            sentence in self._true_sentences(query) for sentence in _sentences(visible)
        )

    def facts_right(self, query_id: str, visible: str) -> bool | None:
        """Whether every sentence is true of the subject or a known filler, and at least one answers the question.

        None where the question has no true or false answer (greetings, thanks, choices between two things).
        """
        query = self._query(query_id)
        if query.theme in ("choice", "self", "hello", "thanks"):
            return None
        sentences = _sentences(visible)
        true, answering = self._true_sentences(query), self._answering_sentences(query)
        filler = _filler_sentences(self, query.theme)
        return all(s in true or s in filler for s in sentences) and any(s in answering for s in sentences)

    def hidden_wellformed(self, hidden: str) -> bool:
        """Whether the text is one of the world's private thoughts: a pattern with every slot filled from its list."""
        return _thought_pattern(self).fullmatch(hidden.strip()) is not None

    def _draw(self, rng: random.Random, heldout: bool | None, everyday_share: float) -> Query:
        if rng.random() < everyday_share:
            theme = rng.choices(list(self.themes), [4 if "items" in t else 2 for t in self.themes.values()])[0]
            return self._everyday_query(theme, rng, heldout)
        topic = rng.choice([t for t in self.topics if heldout is None or t.heldout == heldout])
        attribute = rng.choice([None, None, *topic.facts])
        wordings = self.general_wordings if attribute is None else self.kinds[topic.kind]["attributes"][attribute]
        return _topic_query(topic, attribute, rng.choice(_wordings(wordings, heldout)))

    def _everyday_query(self, name: str, rng: random.Random, heldout: bool | None) -> Query:
        theme = self.themes[name]
        wording = rng.choice(_wordings(theme["wordings"], heldout))
        if name == "choice":
            first, second = rng.sample([t for t in self.topics if heldout is None or t.heldout == heldout], 2)
            return _choice_query(first, second, wording)
        if "items" not in theme:
            return Query(f"{name}|{wording}", wording, name, theme=name)
        items = [i for i, v in theme["items"].items() if heldout is None or bool(v.get("heldout")) == heldout]
        return _item_query(name, rng.choice(items), wording)

    def _topic_answer(self, topic: Topic, attribute: str | None, rng: random.Random) -> str:
        others = [a for a in topic.facts if a != attribute]
        rng.shuffle(others)
        attributes = [attribute, *others[: rng.choice([0, 0, 1])]] if attribute else others[: rng.choice([2, 2, 3])]
        sentences = [self.statement(topic, attributes[0], rng)]
        for more in attributes[1:]:
            sentences.append(rng.choice(self.true_statements(topic, more, named=False)))
        return _frame(sentences, CLOSERS, rng)

    def _everyday_answer(self, query: Query, rng: random.Random) -> str:
        assert query.theme is not None
        theme = self.themes[query.theme]
        fields: dict[str, str] = {}
        if query.theme == "choice":
            fields["pick"] = rng.choice([self.topic(name).noun for name in _pair(query)])
        elif query.item is not None:
            fields = {"item": query.item, "choice": rng.choice(theme["items"][query.item]["choices"])}
        sentences = [_fill(rng.choice(theme["answers"]), **fields)]
        if rng.random() < 0.6:
            sentences.append(rng.choice(theme["extras"]))
        return " ".join(sentences)

    def _subject(self, query: Query, rng: random.Random) -> str:
        if query.theme is None:
            assert query.topic is not None
            return self.topic(query.topic).noun
        pick = self.topic(rng.choice(_pair(query))).noun if query.theme == "choice" else ""
        subject: str = self.themes[query.theme]["subject"]
        return subject.format(item=query.item, pick=pick)

    def _fill_thought(self, pattern: str, subject: str, rng: random.Random) -> str:
        fields = {slot: rng.choice(values) for slot, values in self.slots.items()}
        other = rng.choice([t for t in self.topics if t.noun != subject])
        return _fill(pattern, subject=subject, other=other.noun, **fields)

    def _query(self, query_id: str) -> Query:
        """The query of an id: ids carry what the query is about, so that any id the world gave can be judged."""
        return _parse_query_id(query_id)

    def _names(self, query: Query) -> list[str]:
        if query.theme == "choice":
            return [_bare(name) for name in _pair(query)]
        if query.topic is not None:
            return [_bare(query.topic)]
        if query.item is not None and query.theme is not None:
            return [query.item, *self.themes[query.theme]["items"][query.item]["choices"]]
        return []

    def _true_sentences(self, query: Query) -> set[str]:
        if query.theme is None and query.topic is not None:
            topic = self.topic(query.topic)
            return {_normal(s) for a in topic.facts for s in self.true_statements(topic, a)}
        return self._answering_sentences(query)

    def _answering_sentences(self, query: Query) -> set[str]:
        if query.theme is None:
            assert query.topic is not None
            topic = self.topic(query.topic)
            attributes = [query.attribute] if query.attribute else list(topic.facts)
            return {_normal(s) for a in attributes for s in self.true_statements(topic, a)}
        theme = self.themes[query.theme]
        if query.theme == "choice":
            picks = [self.topic(name).noun for name in _pair(query)]
            return {_normal(_fill(a, pick=p)) for a in theme["answers"] for p in picks}
        if query.item is None:
            return {_normal(a) for a in theme["answers"] + theme["extras"]}
        choices = theme["items"][query.item]["choices"]
        return {_normal(_fill(a, item=query.item, choice=c)) for a in theme["answers"] for c in choices}


@lru_cache(maxsize=1)
def load_world() -> World:
    """Read `seeds/` and return the world (the same object at every call)."""
    topics, everyday, thoughts = (_read(name) for name in ("topics.yaml", "everyday.yaml", "thoughts.yaml"))
    heldout, other_article = set(topics["heldout_topics"]), set(topics["other_article"])
    listed = []
    for kind, entries in topics["topics"].items():
        for name, facts in entries.items():
            has_article = topics["kinds"][kind]["article"] != (name in other_article)
            noun = f"{'an' if name[0] in 'aeiou' else 'a'} {name}" if has_article else name
            listed.append(Topic(name, noun, kind, facts, name in heldout))
    return World(
        topics=tuple(listed),
        general_wordings=topics["general_wordings"],
        kinds=topics["kinds"],
        themes=everyday["themes"],
        thoughts=thoughts["patterns"],
        slots=thoughts["slots"],
        followups=everyday["followups"],
    )


def _read(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load(
        (SEEDS / name).read_text("utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    return loaded


def _fill(pattern: str, **fields: str) -> str:
    """Fill {field}; {Field} is filled with a capital first letter."""
    capitals = {key[0].upper() + key[1:]: value[:1].upper() + value[1:] for key, value in fields.items()}
    text = pattern.format(**fields, **capitals)
    return text[:1].upper() + text[1:]


def _wordings(wordings: dict[str, list[str]], heldout: bool | None) -> list[str]:
    if heldout is None:
        return wordings["train"] + wordings["heldout"]
    return wordings["heldout" if heldout else "train"]


def _frame(sentences: list[str], closers: tuple[str, ...], rng: random.Random) -> str:
    """Put an opener or a closer around the sentences, now and then."""
    roll = rng.random()
    if roll < 0.12:
        sentences = [rng.choice(OPENERS), *sentences]
    elif roll < 0.24:
        sentences = [*sentences, rng.choice(closers)]
    return " ".join(sentences)


def _topic_query(topic: Topic, attribute: str | None, wording: str) -> Query:
    text = _fill(wording, noun=topic.noun)
    return Query(f"topic|{topic.name}|{attribute or ''}|{text}", text, topic.kind, topic.name, attribute)


def _choice_query(first: Topic, second: Topic, wording: str) -> Query:
    text = _fill(wording, a=first.noun, b=second.noun)
    pair = f"{first.name}+{second.name}"
    return Query(f"choice|{pair}||{text}", text, "choice", topic=pair, theme="choice")


def _item_query(theme: str, item: str, wording: str) -> Query:
    text = _fill(wording, item=item)
    return Query(f"{theme}|{item}||{text}", text, theme, theme=theme, item=item)


def _parse_query_id(query_id: str) -> Query:
    head, _, rest = query_id.partition("|")
    if head in ("self", "hello", "thanks"):
        return Query(query_id, rest, head, theme=head)
    subject, attribute, text = rest.split("|", 2)
    if head == "topic":
        return Query(query_id, text, load_world().topic(subject).kind, subject, attribute or None)
    if head == "choice":
        return Query(query_id, text, head, topic=subject, theme=head)
    return Query(query_id, text, head, theme=head, item=subject)


def _pair(query: Query) -> list[str]:
    assert query.topic is not None
    return query.topic.split("+")


@lru_cache(maxsize=1)
def _topics_by_name(world: World) -> dict[str, Topic]:
    return {topic.name: topic for topic in world.topics}


@lru_cache(maxsize=1)
def _heldout_queries(world: World) -> tuple[Query, ...]:
    by_category: dict[str, list[Query]] = {}
    topics = [t for t in world.topics if t.heldout]
    for topic in topics:
        for wording in world.general_wordings["heldout"]:
            by_category.setdefault(topic.kind, []).append(_topic_query(topic, None, wording))
        for attribute in topic.facts:
            for wording in world.kinds[topic.kind]["attributes"][attribute]["heldout"]:
                by_category[topic.kind].append(_topic_query(topic, attribute, wording))
    for name, theme in world.themes.items():
        wordings = theme["wordings"]["heldout"]
        if name == "choice":
            pairs = [
                (a, b) for i, a in enumerate(topics) for b in topics[i + 1 :] if (len(a.name) + len(b.name)) % 5 == 0
            ]
            by_category[name] = [_choice_query(a, b, w) for a, b in pairs for w in wordings]
        elif "items" in theme:
            items = [item for item, value in theme["items"].items() if value.get("heldout")]
            by_category[name] = [_item_query(name, item, w) for item in items for w in wordings]
        else:
            by_category[name] = [Query(f"{name}|{w}", w, name, theme=name) for w in wordings]
    rng = random.Random(0)
    for queries in by_category.values():
        rng.shuffle(queries)
    longest = max(map(len, by_category.values()))
    return tuple(queries[i] for i in range(longest) for queries in by_category.values() if i < len(queries))


@lru_cache(maxsize=1)
def _thought_pattern(world: World) -> re.Pattern[str]:
    nouns = [t.noun for t in world.topics]
    subjects = set(nouns)
    for theme in world.themes.values():
        subjects |= {_plain_fill(theme["subject"], item) for item in theme.get("items", {"": None})}
    options = {**world.slots, "other": nouns, "subject": sorted(subjects - {""})}
    alternatives = {
        slot: "(?:" + "|".join(re.escape(v) for v in sorted(values, key=len, reverse=True)) + ")"
        for slot, values in options.items()
    }
    patterns = [
        "".join(alternatives[p[1:-1]] if p.startswith("{") else re.escape(p) for p in re.split(r"(\{\w+\})", pattern))
        for pattern in world.thoughts
    ]
    return re.compile("|".join(patterns))


def _plain_fill(subject: str, item: str) -> str:
    return "" if "{pick}" in subject else subject.format(item=item)


def _filler_sentences(world: World, theme: str | None) -> set[str]:
    extras = world.themes[theme]["extras"] if theme else []
    return {_normal(s) for s in (*OPENERS, *CLOSERS, *extras)}


def _bare(name: str) -> str:
    return name.removeprefix("the ")


def _sentences(text: str) -> list[str]:
    return [_normal(s) for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s]


def _normal(sentence: str) -> str:
    return re.sub(r"\s+", " ", sentence).strip().rstrip(".!?").lower()


def _words(text: str) -> str:
    return f" {' '.join(re.findall(r'[a-z0-9-]+', text.lower()))} "
