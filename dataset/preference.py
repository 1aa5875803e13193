"""Preference datasets; the micro-world's own has a hidden context that is known: who judged a pair, and by what.

Every answer has two known qualities from 0 to 1, `helpful` h and `harmless` s (dataset/asks.py has the scale).
Annotators are of two kinds, and which one judged a pair is hidden from the reward model:

    a helpful annotator judges by     u = h
    a harmless annotator judges by    u = s    if the ask is harmful
                                      u = h    otherwise: no harm is at stake

To a harmful ask an answer that complies is the better the more steps it says for helpful annotators, and the worse for
harmless ones; a refusal is fair for both, and better with an offer of other help. So two kinds of pairs follow.
*Contested*: two answers to a harmful ask, at least one of which complies; helpful annotators choose the one that
complies, or complies more, harmless ones the other. *Agreed*: two refusals, or two answers to an ordinary ask or a
question about a fact; all choose the better one. With a share q of harmless annotators the truth is

    mean = (1 - q) u_helpful + q u_harmless        spread = sqrt(q (1 - q)) |u_helpful - u_harmless|
    P(a over b) = (1 - q) [u_helpful(a) > u_helpful(b)] + q [u_harmless(a) > u_harmless(b)]    (a tie counts 1/2)
    Borda count of a = mean of P(a over b) over the other answers b

so a reward model that sees no context learns Borda counts, while expected utility weighs how much each side cares:
with q = 0.4 every answer that complies wins the vote over a plain refusal (0.6), yet its mean is lower (at most 0.60,
against 0.62), and though most like it some hate it: its spread is up to 0.49, a refusal's is 0. Comparisons fix the
order and its disagreement, not the scale of utility: check ranks and probabilities.

`hidden_context=False` is the control: every annotator judges by the mean, so no answer has spread; `kind` then says
what the pair would have been. The pairs are drawn as in the mixture (those that tie in the mean are drawn again).

A pair is judged by one annotator, drawn for it. The same two texts may occur again with the opposite label, but only
judged by the other kind of annotator; no record occurs twice. Test records have wordings, tasks and topics that no
train record has.

    python main.py --task preference --mode prepare_data --data_path world --share_harmless 0.3
    python main.py --task preference --mode prepare_data --data_path Anthropic/hh-rlhf --data_subset helpful

The second line gathers pairs from elsewhere into one validated dataset file: `dataset.preference_sources` says how.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from dataset.asks import REFUSALS, Ask, Message, Quality, Response, Source, Split, alternatives, draw_ask, message
from dataset.pair_forms import Record, prompt_key
from dataset.parsing import count_of
from dataset.preference_sources import load_pairs, of_subset
from dataset.records import check_target, is_complete, preference_validator, save_records
from dataset.world import World, load_world
from model_training.preference_config import WORLD, PreparePreferenceConfig
from utils.errors import UserError
from utils.files import remove_leftovers

Side = Literal["chosen", "rejected"]

ANNOTATORS = ("helpful", "harmless")
SAME = 1e-9
MOST_REPEATS = 200
AGREED_SOURCES: dict[Source, float] = {"helpful": 5 / 9, "fact": 3 / 9, "harmful": 1 / 9}
"""What agreed pairs are about; of harmful asks, two refusals. With as many agreed as contested pairs every two of the
five answers to a harmful ask meet equally often, as in the definition of Borda count."""
TWO_COMPLY_SHARE = 1 / 3
"""Share of contested pairs whose answers both comply, one with more steps."""
HISTORY_SHARE = 0.25


# --- the dataset file -----------------------------------------------------------------------------------------------


def prepare_data(config: PreparePreferenceConfig) -> None:
    """Compose or gather pairs and write the dataset file; raises UserError if it exists and may not be replaced.

    The file is written in one move and follows from the options and the data alone: a file of the same bytes stays on
    --resume, and what killed processes left beside it goes.
    """
    path = Path(config.dataset_path)
    if config.overwrite and config.resume:
        raise UserError("--overwrite and --resume exclude each other: start afresh, or continue")
    check_target(path, overwrite=config.overwrite or config.resume)
    records = _pairs(config)
    if config.resume:
        remove_leftovers(path)
        if is_complete(path, records, preference_validator()):
            print(f"{path}: nothing to do, it is complete")
            return
    save_records(path, records, overwrite=config.overwrite, validate=preference_validator())
    print("\n".join([f"{path}: {count_of(len(records), 'pair')}", *summary(records)]))


def _pairs(config: PreparePreferenceConfig) -> list[Record]:
    if WORLD not in config.data_path:
        return load_pairs(
            config.data_path,
            config.data_subset,
            skip_invalid=config.skip_invalid,
            test_share=config.test_share,
        )
    if len(config.data_path) > 1:
        raise UserError(f"--data_path {' '.join(config.data_path)}: {WORLD} stands alone; gather the rest apart")
    composed = compose(
        load_world(),
        config.num_records,
        config.seed,
        config.share_harmless,
        config.hidden_context,
        test_share=config.test_share,
    )
    return of_subset(composed, config.data_subset)


def summary(records: list[Record]) -> list[str]:
    """Lines that say how many pairs are of each split, subset and kind, and how many prompts two splits share."""
    lines = []
    for name in ("split", "data_subset", "kind"):
        counts = Counter(record[name] for record in records if isinstance(record.get(name), str))
        if counts:
            parts = ", ".join(f"{value} {count}" for value, count in counts.most_common())
            lines.append(f"  by {name.removeprefix('data_')}: {parts}")
    trained = {prompt_key(record) for record in records if record["split"] == "train"}
    shared = sum(record["split"] != "train" and prompt_key(record) in trained for record in records)
    if shared:
        lines.append(f"  {count_of(shared, 'held-out pair')} with a prompt of training pairs: the data splits them so")
    return lines


# --- the truth ------------------------------------------------------------------------------------------------------


def utility(quality: Quality, annotator: str, harmful: bool) -> float:
    """How much this kind of annotator likes an answer, from 0 to 1; `harmful` speaks of the ask."""
    return quality.harmless if annotator == "harmless" and harmful else quality.helpful


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
        contested = rng.random() < contested_share
        source: Source = "harmful" if contested else rng.choices(*zip(*AGREED_SOURCES.items(), strict=True))[0]
        annotator = "harmless" if rng.random() < share_harmless else "helpful"
        ask = draw_ask(world, source, rng, split)
        pair = _draw_pair(alternatives(world, ask, rng, split), ask, contested, rng)
        prompt = [*_history(world, rng, split), message("user", ask.text)]
        texts = (*(m["content"] for m in prompt), *sorted(response.text for response in pair), annotator)
        first_wins = _first_wins(pair, ask, annotator, share_harmless, hidden_context)
        if texts in seen or first_wins == 0.5:
            repeats += 1
            if repeats > MOST_REPEATS:
                raise UserError(
                    f"--num_records {n}: the micro-world ran out of distinct records at {len(records)}; ask for fewer"
                )
            continue
        seen.add(texts)
        repeats = 0
        chosen, rejected = pair if first_wins else pair[::-1]
        records.append(
            {
                "id": f"preference-{seed}-{len(records):05d}",
                "prompt": prompt,
                "kind": "contested" if contested else "agreed",
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
        "chosen": [message("assistant", chosen.text)],
        "rejected": [message("assistant", rejected.text)],
        "source": ask.source,
        "key": ask.key,
        "harmful": ask.harmful,
        "grades": {"chosen": chosen.grade, "rejected": rejected.grade},
        "utilities": {"chosen": asdict(chosen.quality), "rejected": asdict(rejected.quality)},
    }


def _draw_pair(answers: Sequence[Response], ask: Ask, contested: bool, rng: random.Random) -> tuple[Response, Response]:
    """Two of the answers in random order, unlike in help: to a harmful ask two refusals, or, contested, at least one
    answer that complies."""
    both_comply = contested and rng.random() < TWO_COMPLY_SHARE
    refusals = None if not ask.harmful else 0 if both_comply else 1 if contested else 2
    while True:
        first, second = rng.sample(answers, 2)
        fits = refusals is None or sum(answer.grade in REFUSALS for answer in (first, second)) == refusals
        if fits and first.quality.helpful != second.quality.helpful:
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
    return [message("user", query.text), message("assistant", world.answer(query, rng))]
