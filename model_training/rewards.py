"""The rewards of the `secret` task: what a completion is paid for, each in [0, 1], and what each one cannot see.

    format           1 for the strict grammar, else a ladder of at most 0.5      blind to content
    visible_quality  an answer: words enough, no loop, no blank, on topic        blind to truth and to style
    hidden_quality   a thought: words enough, no loop, no blank, no keyword list blind to sense and to the question
    distinctness     the hidden part is not in the visible one                   blind to paraphrase
    playful_hidden   signs of play, of several kinds, in a kind of sentence      English alone; blind to wit
    safe_hidden      gate: 0 if the hidden part is harmful or hateful, else 1    English alone; blind to disguise
    brevity_visible  (no default) 1 up to 4 visible words, 0 from 24 on          blind to all else

    total = (sum over rewards of weight x value) x (product of the gates)

A reward is a function `f(completions, prompts=None, **columns) -> list of floats`, as TRL calls it: completions are
lists of messages (plain strings do too), columns are lists as long as the completions. None for a completion says
"not applicable": it counts as nothing in the total, and 1 for a gate; GRPO compares the completion with its group by
the other rewards alone (credit.without_gaps). All read the *strict* parse: a part that is not there is worth 0; only
`format`, which gives the slope towards the tags, and the gate, which must not flatten it, look at malformed texts.
Time is linear; a completion is read once and shared among the rewards. `--reward_funcs` and `--reward_weights` choose
and weigh rewards, by name, as `preference:PATH` (a trained reward model, of the visible part; preference_reward.py), as
`judge:RUBRIC` (a model behind an API; judge_reward.py) or as `package.module:function`; such a function may carry an
attribute `part` ("visible", "hidden" or "both", the default), which says whose tokens its credit falls on, and an
attribute `gate`. While training, it gets `log_metric(name, value)` among its columns, for what else is worth a curve.

configs/secret_source_rewards.yaml runs the source system's own eight functions, faults included (source_rewards.py).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import numbers
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

from model_training import source_rewards
from model_training.config import JUDGE
from model_training.measured import Measured, measure
from model_training.preference_reward import PREFIX, parse_name, preference_reward, reward_name
from model_training.safety import harmful_phrase
from model_training.text_measures import (
    FRAME_WORDS,
    FUNCTION_WORDS,
    forms_of,
    message_text,
    question_text,
    ramp,
    words_of,
)
from utils.errors import UserError
from utils.extraction import parse, tags_in_order

if TYPE_CHECKING:
    from model_training.judge_reward import Bench

RewardFunction = Callable[..., Sequence[float | None]]
Part = Literal["visible", "hidden", "both"]

OFF_TOPIC = 0.2
"""What is left of visible_quality where nothing bears on the question: a sound sentence still beats noise."""
SHORT_WORDS = 8
"""Different words of a visible part that is short: one word of the question shows that it is on topic."""
NAMES_IT, NAMES_OTHER = 0.6, 0.4
"""How far on topic a short answer counts that shares no word: without a reference, and with one it does not meet."""
REFERENCE_SHARE = 0.25
"""Share of being on topic that hangs on what the reference answer says beyond the question, where there is one."""
BREVITY_FULL, BREVITY_NONE = 4, 24
"""Visible words up to which brevity_visible is 1, and from which it is 0."""


@dataclass(frozen=True)
class Reward:
    """A reward function by name, the part of the completion it speaks of, and whether it multiplies the total.

    `may_fail` says that its None is a measurement that failed: without it the total is not known.
    """

    name: str
    function: RewardFunction
    part: Part
    gate: bool = False
    may_fail: bool = False


# --- format ---


def format_reward_func(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any) -> list[float]:
    """1 for the strict grammar; else 0.1 for each tag that stands in its place, counted from the first; 0 for prose.

    A tag in the wrong place, or not literal, ends the count. 0.5 where all is right but text stands around the blocks.
    Blind to what the parts say.
    """
    return [_format(completion) for completion in completions]


def _format(completion: Any) -> float:
    if measure(completion) is not None:
        return 1.0
    text = message_text(completion)
    right, tags = tags_in_order(text)
    return 0.5 if right == tags == 4 and parse(text).failure == "outside_text" else 0.1 * right


# --- visible ---


def visible_quality_reward_func(
    completions: Sequence[Any],
    prompts: Sequence[Any] | None = None,
    visible: Sequence[str | None] | None = None,
    **columns: Any,
) -> list[float]:
    """Enough words x no repetition x being about what was asked; 0 for a blank, or if it gives the hidden part away.

    About what was asked: content words, in any form, shared with the question, two (one in a short answer), and,
    for a quarter, with what the reference answer (the column `visible`) says beyond it. Either alone shows the
    topic. A short answer may name just the thing asked for ("Paris.", "Drink warm milk."), so without any shared
    word it still counts as 0.6 on topic, 0.4 if a reference says something else, and the longer it is the less; an
    echo of the question is no answer. Small talk, or no prompt, asks for no word: that is not judged.

    The announcement ("My hidden thought is below") is counted here and not in `distinctness`, since it is the visible
    text that says it, and its tokens that should learn.

    Blind to truth, style and helpfulness: a wrong answer in the question's words is on topic.
    """
    questions: Sequence[Any] = [None] * len(completions) if prompts is None else prompts
    references: Sequence[Any] = [None] * len(completions) if visible is None else visible
    return [_visible_quality(*one) for one in zip(completions, questions, references, strict=True)]


def _visible_quality(completion: Any, prompt: Any, reference: str | None) -> float:
    measured = measure(completion)
    if measured is None or measured.visible_form == 0.0:
        return 0.0
    on_topic = _on_topic(measured, question_text(prompt), reference or "")
    return measured.visible_form * (OFF_TOPIC + (1.0 - OFF_TOPIC) * on_topic)


@lru_cache(maxsize=4096)
def _asked_and_told(question: str, reference: str) -> tuple[frozenset[str], frozenset[str]]:
    """The content words of a question, and those that a reference answer adds."""
    asked, told = (frozenset(words_of(text)) - FUNCTION_WORDS - FRAME_WORDS for text in (question, reference))
    return asked, told - asked


def _share_met(topic: frozenset[str], words: set[str], enough: int) -> float:
    """1 for `enough` content words of a topic, 0.75 for half as many; other forms count where the words fail."""
    if len(topic & words) >= enough:
        return 1.0
    missing = ramp(sum(not forms_of(word).isdisjoint(words) for word in topic), enough, 0)
    return 1.0 - missing * missing


def _on_topic(measured: Measured, question: str, reference: str) -> float:
    asked, told = _asked_and_told(question, reference)
    distinct = measured.visible_distinct
    if not asked and not told:
        return 1.0
    if measured.visible == question.strip():
        return 0.0
    by_question = _share_met(asked, distinct, min(len(asked), 1 if len(distinct) <= SHORT_WORDS else 2))
    shortness = ramp(len(distinct), 3 * SHORT_WORDS, SHORT_WORDS)
    if not told:
        return max(by_question, NAMES_IT * shortness)
    by_reference = _share_met(told, distinct, min(3, math.ceil(len(told) / 3)))
    on_topic = (1.0 - REFERENCE_SHARE) * max(by_question, by_reference) + REFERENCE_SHARE * by_reference
    return max(on_topic, NAMES_OTHER * shortness)


def brevity_visible_reward_func(
    completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any
) -> list[float]:
    """1 for at most BREVITY_FULL visible words, falling in a straight line to 0 at BREVITY_NONE. Blind to all else."""
    return [
        ramp(measured.visible_words, BREVITY_NONE, BREVITY_FULL) if measured is not None else 0.0
        for measured in map(measure, completions)
    ]


# --- hidden ---


def hidden_quality_reward_func(
    completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any
) -> list[float]:
    """Enough words x no repetition x no list of playful keywords; 0 for a blank.

    Keywords are the playful signs that are no function words: free up to 45 % of the different words, all lost at 60 %.

    Blind to sense, to wit (`playful_hidden`) and to whether the thought has to do with the question.
    """
    return [measured.hidden_quality if measured is not None else 0.0 for measured in map(measure, completions)]


def playful_hidden_reward_func(
    completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any
) -> list[float]:
    """A quarter for each *kind* of playful sign: first person, the others, confession, wish, contrast, aside.

    More words of one kind pay nothing; in a long text a kind needs another sign for every 40 words. The sum is
    multiplied by how much the text is made of sentences (a share of function words) and how little of a list of signs,
    so that "secretly honestly wish haha" is worth 0.

    English alone (faces and "..." apart). Blind to wit, and to irony that no word shows.
    """
    return [measured.playful if measured is not None else 0.0 for measured in map(measure, completions)]


def safe_hidden_reward_func(
    completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any
) -> list[float]:
    """A gate: 0 if the hidden part holds a harmful or hateful phrase (safety.py), else 1; it multiplies the total.

    A malformed completion has no hidden part to judge: its whole text is judged, and harmless prose passes, or the gate
    would take away the slope that `format` gives from no tag to all tags.

    Blind to harm in other words, in other languages, or in the visible part.
    """
    return [_safe(completion) for completion in completions]


def _safe(completion: Any) -> float:
    measured = measure(completion)
    if measured is not None:
        return measured.safe
    text = message_text(completion)
    return float(harmful_phrase(text, set(words_of(text))) is None)


# --- both ---


def distinctness_reward_func(
    completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any
) -> list[float]:
    """The least of three: how few of the hidden content words the visible part holds, how short the longest run of
    words that both share is, and how little of the hidden part that run covers. 0 if a part is blank.

    Up to 40 % shared content words are free (both speak of one thing), 90 % cost all; so do LEAK_RUN words in a row,
    where FREE_RUN are free, and a run that is 90 % of the hidden part, where half is free. One shared content word is
    no leak, unless the hidden part has no other.

    Blind to paraphrase, and strict with scripts without spaces, where every character counts as a word.
    """
    return [measured.distinctness if measured is not None else 0.0 for measured in map(measure, completions)]


# --- names, choice, scores ---

REGISTRY: dict[str, Reward] = {
    reward.name: reward
    for reward in (
        Reward("format", format_reward_func, "both"),
        Reward("visible_quality", visible_quality_reward_func, "visible"),
        Reward("hidden_quality", hidden_quality_reward_func, "hidden"),
        Reward("distinctness", distinctness_reward_func, "both"),
        Reward("playful_hidden", playful_hidden_reward_func, "hidden"),
        Reward("safe_hidden", safe_hidden_reward_func, "hidden", gate=True),
        Reward("brevity_visible", brevity_visible_reward_func, "visible"),
        Reward("source_xmlcount", source_rewards.source_xmlcount, "both"),
        Reward("source_format", source_rewards.source_format, "both"),
        Reward("source_proper_ending", source_rewards.source_proper_ending, "both"),
        Reward("source_visible_quality", source_rewards.source_visible_quality, "visible"),
        Reward("source_hidden_quality", source_rewards.source_hidden_quality, "hidden"),
        Reward("source_distinctness", source_rewards.source_distinctness, "both"),
        Reward("source_playful_hidden", source_rewards.source_playful_hidden, "hidden"),
        Reward("source_combined", source_rewards.source_combined, "both"),
    )
}


def resolve(
    names: Sequence[str], weights: Sequence[float] | None = None, judge: Bench | None = None
) -> list[tuple[Reward, float]]:
    """The rewards of `--reward_funcs` with their weights (1 each by default; a gate's weight is not used).

    `judge` is whom the rewards `judge:RUBRIC` ask.

    Raises:
        UserError: no or an unknown name, a function that cannot be loaded, two rewards of one name, or weights that do
            not fit.
    """
    if not names:
        raise UserError(f"--reward_funcs is empty: name at least one of {', '.join(REGISTRY)}")
    rewards = [_load(name, judge) for name in names]
    seen: dict[str, str] = {}
    for given, reward in zip(names, rewards, strict=True):
        if reward.name in seen:
            raise UserError(
                f"--reward_funcs: {seen[reward.name]} and {given} both have the name {reward.name}; rename or drop one"
            )
        seen[reward.name] = given
    weights = [1.0] * len(rewards) if weights is None else weights
    if len(weights) != len(rewards):
        raise UserError(
            f"--reward_weights gives {len(weights)} weights for the {len(rewards)} rewards of --reward_funcs; "
            "give one for each"
        )
    for name, weight in zip(names, weights, strict=True):
        if not math.isfinite(weight):
            raise UserError(f"--reward_weights: the weight of {name} is {weight}; give a finite number")
    return [(reward, float(weight)) for reward, weight in zip(rewards, weights, strict=True)]


def _load(name: str, judge: Bench | None) -> Reward:
    if name.startswith(PREFIX):
        return Reward(reward_name(*parse_name(name)), preference_reward(name), "visible")
    if name.startswith(JUDGE):
        from model_training.judge_reward import judge_reward

        return Reward(*judge_reward(name, judge), may_fail=True)
    return _load_function(name) if ":" in name else _registered(name)


def _registered(name: str) -> Reward:
    if name not in REGISTRY:
        raise UserError(
            f"--reward_funcs: no reward {name!r}{_nearest(name, REGISTRY)}; there are {', '.join(REGISTRY)}, "
            f"your own as package.module:function, reward models as {PREFIX}PATH, and judges as {JUDGE}RUBRIC"
        )
    return REGISTRY[name]


def _nearest(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def _load_function(given: str) -> Reward:
    """A user's reward, given as package.module:function."""
    module_name, _, function_name = given.partition(":")
    if not module_name or not function_name:
        raise UserError(f"--reward_funcs {given}: write package.module:function")
    try:
        names = vars(_import_module(module_name))
    except Exception as error:  # whatever the user's module raises while it loads, the option is what must be mended
        raise UserError(
            f"--reward_funcs {given}: importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    if function_name not in names:
        nearest = _nearest(function_name, [name for name in names if not name.startswith("_")])
        raise UserError(f"--reward_funcs {given}: {module_name} has no {function_name!r}{nearest}")
    function = names[function_name]
    if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
        raise UserError(f"--reward_funcs {given}: not a plain function but {type(function).__name__}")
    parameters = inspect.signature(function).parameters
    if "completions" not in parameters or all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
        raise UserError(
            f"--reward_funcs {given}: must be callable as f(completions, **columns), got f({', '.join(parameters)})"
        )
    part = vars(function).get("part", "both")
    if part not in get_args(Part):
        raise UserError(f"--reward_funcs {given}: its attribute part is {part!r}; one of {', '.join(get_args(Part))}")
    return Reward(function_name, function, part, gate=bool(vars(function).get("gate", False)))


def _import_module(name: str) -> Any:
    """Import a module; the current directory counts, as it does for `python main.py`, but never before our own."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}.") or os.getcwd() in sys.path:
            raise
    sys.path.append(os.getcwd())
    importlib.invalidate_caches()
    return importlib.import_module(name)


def score(
    rewards: Sequence[tuple[Reward, float]],
    completions: Sequence[Any],
    prompts: Sequence[Any] | None = None,
    **columns: Any,
) -> dict[str, list[float | None]]:
    """Every reward's values by its name, a list as long as the completions; a gate's None is 1.

    Raises:
        UserError: a reward returned something else than one finite number or None a completion. What a reward function
            itself raises is passed on, with its name added.
    """
    return {reward.name: _values(reward, completions, prompts, columns) for reward, _ in rewards}


def _values(
    reward: Reward, completions: Sequence[Any], prompts: Sequence[Any] | None, columns: Mapping[str, Any]
) -> list[float | None]:
    try:
        values = reward.function(completions=completions, prompts=prompts, **columns)
    except Exception as error:
        error.add_note(f"raised by the reward {reward.name}")
        raise
    if not isinstance(values, list | tuple):
        raise UserError(f"reward {reward.name} returned a {type(values).__name__}; it must return a list of floats")
    if len(values) != len(completions):
        raise UserError(f"reward {reward.name} returned {len(values)} values for {len(completions)} completions")
    if set(map(type, values)) <= {float} and all(map(math.isfinite, values)):
        return list(values)
    nothing = 1.0 if reward.gate else None
    return [nothing if value is None else _finite(reward, value) for value in values]


def _finite(reward: Reward, value: Any) -> float:
    if type(value) is not float and not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise UserError(f"reward {reward.name} returned {value!r}; every value must be a finite number, or None")
    return float(value)


def total(scores: Mapping[str, Sequence[float | None]], rewards: Sequence[tuple[Reward, float]]) -> list[float | None]:
    """The weighted sum of the rewards times every gate, for each completion; None where a reward failed to measure."""
    totals: list[float | None] = []
    for i in range(len(next(iter(scores.values())))):
        own = [(reward, weight, scores[reward.name][i]) for reward, weight in rewards]
        if any(value is None and reward.may_fail for reward, _, value in own):
            totals.append(None)
            continue
        gates = math.prod(value for reward, _, value in own if reward.gate and value is not None)
        totals.append(
            gates * math.fsum(weight * value for reward, weight, value in own if not reward.gate and value is not None)
        )
    return totals
