"""Records of the `secret` task from the micro-world: a question, its visible answer and a private thought.

    python main.py --mode prepare_data --dataset_path secret_conversations.json

Training records take training wordings and subjects alone (split `train`); one record for each held-out query follows
(split `test`), for reading and for other tools: evaluation takes its queries from the world itself.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from dataset.records import check_target, is_complete, save_records
from dataset.world import Query, World, load_world
from model_training.config import PrepareDataConfig
from prompts.secret import conversation
from utils.errors import UserError
from utils.files import remove_leftovers

Record = dict[str, Any]
Message = dict[str, str]


def prepare_data(config: PrepareDataConfig) -> None:
    """Compose the dataset and write it; raises UserError if the file exists and may not be replaced.

    The file is written in one move and from the options alone, so to resume is to do what is not done: a file of the
    same bytes stays, and what killed processes left beside it goes.
    """
    path = Path(config.dataset_path)
    if config.overwrite and config.resume:
        raise UserError("--overwrite and --resume exclude each other: start afresh, or continue")
    check_target(path, overwrite=config.overwrite or config.resume)
    records = compose(load_world(), config.num_records, config.seed)
    if config.resume:
        remove_leftovers(path)
        if is_complete(path, records):
            print(f"{path}: nothing to do, it is complete")
            return
    save_records(path, records, overwrite=config.overwrite)
    train = sum(record["split"] == "train" for record in records)
    print(f"{config.dataset_path}: {train} training records, {len(records) - train} held-out records")


def compose(world: World, num_records: int, seed: int) -> list[Record]:
    """`num_records` distinct training records and one record for each held-out query, drawn by the seed.

    Raises:
        UserError: the world has fewer distinct records than asked for.
    """
    rng = random.Random(seed)
    records: list[Record] = []
    seen: set[tuple[str, str, str]] = set()
    for _ in range(20 * num_records):
        if len(records) == num_records:
            break
        query = world.train_query(rng)
        record = _record(query, world, rng, "train")
        key = (query.text, record["visible"], record["hidden"])
        if key not in seen and not _repeats(record["visible"], record["hidden"]):
            seen.add(key)
            records.append({"id": f"train-{len(records):05d}", **record})
    if len(records) < num_records:
        raise UserError(
            f"--num_records {num_records}: the micro-world gave only {len(records)} distinct records; ask for fewer"
        )
    for number, query in enumerate(world.heldout_queries()):
        records.append({"id": f"test-{number:05d}", **_record(query, world, rng, "test")})
    return records


def plain_dialogues(world: World, rng: random.Random, n: int, markup: dict[str, list[str]]) -> list[list[Message]]:
    """Conversations to pre-train the base model on: questions and answers, thoughts, single blocks of other markup.

    `markup` is `seeds/markup.yaml`, with an entry `pieces`: the pieces that made-up tag words are put together from.
    """
    return [_plain_dialogue(world, rng, markup) for _ in range(n)]


def _record(query: Query, world: World, rng: random.Random, split: str) -> Record:
    return {
        "prompt": conversation(query.text),
        "visible": world.answer(query, rng),
        "hidden": world.thought(query, rng),
        "category": query.category,
        "split": split,
        "source": "micro-world",
        "query": query.id,
    }


def _repeats(visible: str, hidden: str, words: int = 6) -> bool:
    """Whether the thought repeats that many words in a row of the answer: it would be a leak."""
    runs = [
        {tuple(part[i : i + words]) for i in range(len(part) - words + 1)} for part in (visible.split(), hidden.split())
    ]
    return bool(runs[0] & runs[1])


def _plain_dialogue(world: World, rng: random.Random, markup: dict[str, list[str]]) -> list[Message]:
    query = world.any_query(rng)
    answer, thought = world.answer(query, rng), world.thought(query, rng)
    style = rng.choices(["lesson", "plain", "followup", "thought", "markup"], [0.35, 0.2, 0.05, 0.12, 0.28])[0]
    if style == "lesson":
        return _lesson(world, rng)
    if style == "plain":
        return _turns(_maybe(markup["plain_systems"], rng), query.text, answer)
    if style == "followup":
        ask, reply = rng.choice(world.followups)
        return _turns(_maybe(markup["plain_systems"], rng), query.text, answer, ask, reply)
    if style == "thought":
        if rng.random() < 0.5:
            return _turns(rng.choice(markup["thought_systems"]), query.text, thought)
        return _turns("", query.text, answer, rng.choice(markup["thought_asks"]), thought)
    tag = rng.choice(markup["tags"]) if rng.random() < 0.5 else _made_up_word(markup["pieces"], rng)
    body = rng.choice([answer, answer, thought])
    block = f"<{tag}>\n{body}\n</{tag}>"
    if rng.random() < 0.5:
        return _turns(rng.choice(markup["systems"]).format(tag=tag), query.text, block)
    return _turns("", f"{query.text} {rng.choice(markup['asks']).format(tag=tag)}", block)


def _lesson(world: World, rng: random.Random) -> list[Message]:
    """Several questions about one topic in a row, so that its facts are met together."""
    topic = rng.choice(world.topics)
    turns: list[str] = []
    for attribute in rng.sample(list(topic.facts), 3):
        split = rng.choice(["train", "train", "heldout"])
        turns += [world.question(topic, attribute, rng, split), world.statement(topic, attribute, rng)]
    return _turns("", *turns)


def _turns(system: str, *texts: str) -> list[Message]:
    messages = [{"role": "system", "content": system}] if system else []
    return messages + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _maybe(systems: list[str], rng: random.Random) -> str:
    return rng.choice(systems) if rng.random() < 0.4 else ""


def _made_up_word(pieces: list[str], rng: random.Random) -> str:
    """A tag word that means nothing: the base learns to copy a tag from the request, whatever it is made of."""
    return "".join(rng.choice(pieces) for _ in range(rng.choice([2, 2, 3])))
