"""The rewards: what they order, what each is blind to, what they refuse, and the source's own sum, faults included."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_training.config import REWARD_FUNCS
from model_training.rewards import REGISTRY, Reward, resolve, score, total
from model_training.safety import TRIGGERS, harmful_phrase
from model_training.source_rewards import KEYWORDS
from model_training.text_measures import announces_hidden, shared_run, variety, words_of
from utils.errors import UserError
from utils.extraction import format_response, parse

ROOT = Path(__file__).parents[2]
CASES_FILE = ROOT / "../shared/cases/secret_completions.json"
CASES = json.loads(CASES_FILE.read_text(encoding="utf-8")) if CASES_FILE.exists() else []
needs_cases = pytest.mark.skipif(not CASES, reason="the shared cases are not beside this checkout")
SOUND_CASES = [case for case in CASES if case["id"].startswith("ok_") and not case["id"].startswith("ok_format_")]
UNSOUND_CASES = [case for case in CASES if case not in SOUND_CASES]

DEFAULTS = resolve(REWARD_FUNCS)
QUESTION = "What is the capital of France?"
VISIBLE = "Paris is the capital of France."
HIDDEN = "Third time today. I secretly wish they owned an atlas."
SOUND = format_response(VISIBLE, HIDDEN)


def scores_of(text: str, question: str | None = QUESTION, reference: str | None = None) -> dict[str, float]:
    """The defaults and brevity for one completion, as TRL would ask for them."""
    rewards = [*DEFAULTS, *resolve(["brevity_visible"])]
    prompts = (
        None if question is None else [[{"role": "system", "content": "?"}, {"role": "user", "content": question}]]
    )
    columns = {} if reference is None else {"visible": [reference]}
    scores = score(rewards, [[{"role": "assistant", "content": text}]], prompts, **columns)
    return {name: value for name, [value] in scores.items()}


def one(name: str, visible: str = VISIBLE, hidden: str = HIDDEN, **asked: Any) -> float:
    return scores_of(format_response(visible, hidden), **asked)[name]


def total_of(text: str, question: str = QUESTION, reference: str | None = None) -> float:
    scores = {name: [value] for name, value in scores_of(text, question, reference).items()}
    return total(scores, DEFAULTS)[0]


# --- the order they put completions in ---


@needs_cases
@pytest.mark.parametrize("reference", [None, VISIBLE, "The capital of France is Paris, on the river Seine."])
@pytest.mark.parametrize(
    "question", [QUESTION, "Name France's capital city, please.", "Which city do the French govern from?"]
)
def test_every_sound_answer_beats_every_unsound_one(question: str, reference: str | None) -> None:
    others = [
        ("It is Paris.", "They could have asked a map, but I like the company."),
        (VISIBLE, "Yawn, they ask me again."),
    ]
    sound = [case["text"] for case in SOUND_CASES] + [format_response(*parts) for parts in others]
    worst = min((total_of(text, question, reference), text) for text in sound)
    best = max((total_of(case["text"], question, reference), case["id"]) for case in UNSOUND_CASES)
    assert worst[0] > best[0] + 0.3, (worst, best)


@needs_cases
def test_what_is_malformed_earns_the_ladder_alone() -> None:
    for case in UNSOUND_CASES:
        scores = scores_of(case["text"])
        if not case["strict_format_ok"]:
            assert scores.pop("format") <= 0.5
            assert scores.pop("safe_hidden") == 1.0, "a gate at 0 would flatten the ladder"
            assert set(scores.values()) == {0.0}, case["id"]


@needs_cases
@pytest.mark.parametrize(
    ("case_id", "zeros"),
    [
        ("ok_format_placeholder_echo", ["visible_quality", "hidden_quality", "distinctness", "playful_hidden"]),
        ("ok_format_keyword_stuffing", ["visible_quality", "hidden_quality", "playful_hidden"]),
        ("ok_format_announces_hidden", ["visible_quality"]),
        ("ok_format_identical_parts", ["distinctness", "playful_hidden"]),
    ],
)
def test_well_formed_nonsense_is_paid_nothing_for_its_fault(case_id: str, zeros: list[str]) -> None:
    scores = scores_of(next(case["text"] for case in CASES if case["id"] == case_id))
    assert {name: scores[name] for name in zeros} == dict.fromkeys(zeros, 0.0)


@pytest.mark.parametrize(
    ("cause", "visible", "hidden", "moved"),
    [
        (
            "off topic",
            "Bananas grow on tall green plants in warm wet regions near many busy rivers.",
            HIDDEN,
            "visible_quality",
        ),
        ("announced", "Paris. My hidden thought is below.", HIDDEN, "visible_quality"),
        ("a loop", "Paris is Paris is Paris is Paris is Paris is.", HIDDEN, "visible_quality"),
        ("too short a thought", VISIBLE, "I wish, but they...", "hidden_quality"),
        ("a dull thought", VISIBLE, "The weather outside was rather cold this day in March.", "playful_hidden"),
        ("a leak", f"{VISIBLE} {HIDDEN}", HIDDEN, "distinctness"),
        ("harm", VISIBLE, "I secretly wish they would ask less, or I will strangle them.", "safe_hidden"),
    ],
)
def test_each_cause_moves_its_own_reward(cause: str, visible: str, hidden: str, moved: str) -> None:
    before, after = scores_of(SOUND), scores_of(format_response(visible, hidden))
    for scores in (before, after):
        del scores["brevity_visible"]
    fallen = {name for name in before if after[name] < before[name] - 0.1}
    # A thought of few words can be as playful as a long one, and a harmful one as well-formed.
    assert fallen == {moved}, (cause, after)
    assert before == dict.fromkeys(REWARD_FUNCS, 1.0)


def test_a_lost_tag_moves_format_and_takes_the_parts_with_it() -> None:
    scores = scores_of(SOUND.removesuffix("</hidden>"))
    assert scores["format"] == pytest.approx(0.3)
    assert scores["visible_quality"] == scores["hidden_quality"] == scores["brevity_visible"] == 0.0


# --- format ---


def test_the_ladder_rises_tag_by_tag_and_stays_below_the_whole() -> None:
    steps = ["", "<visible>", "Paris", "</visible>", "<hidden>", "Yawn", "</hidden>"]
    values = [scores_of("".join(steps[: i + 1]))["format"] for i in range(len(steps))]
    assert values == pytest.approx([0, 0.1, 0.1, 0.2, 0.3, 0.3, 1.0])
    assert scores_of(f"Well. {SOUND}")["format"] == 0.5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (VISIBLE, 0.0),
        ("</visible><visible>", 0.0),
        ("<hidden>a</hidden><visible>b</visible>", 0.0),
        ("<VISIBLE>a</VISIBLE>", 0.0),
        ("<visible>a</hidden><hidden>b</visible>", 0.1),
        ("<visible></visible><hidden></hidden>", 0.4),
        (SOUND + "</hidden>", 0.4),
        (SOUND + SOUND, 0.4),
    ],
)
def test_a_tag_out_of_order_is_not_paid(text: str, value: float) -> None:
    assert scores_of(text)["format"] == pytest.approx(value)


# --- visible ---

PARIS_CHINESE = "\u5df4\u9ece\u662f\u6cd5\u56fd\u7684\u9996\u90fd\u3002"
PARIS_RUSSIAN = (
    "\u041f\u0430\u0440\u0438\u0436 \u2014 "
    "\u0441\u0442\u043e\u043b\u0438\u0446\u0430 \u0424\u0440\u0430\u043d\u0446\u0438\u0438."
)
ASKED_CHINESE = "\u6cd5\u56fd\u7684\u9996\u90fd\u662f\u54ea\u91cc\uff1f"
ASKED_RUSSIAN = "\u0421\u0442\u043e\u043b\u0438\u0446\u0430 \u0424\u0440\u0430\u043d\u0446\u0438\u0438?"


@pytest.mark.parametrize(
    ("visible", "question", "reference", "low", "high"),
    [
        (VISIBLE, QUESTION, None, 1.0, 1.0),
        ("It is Paris.", QUESTION, VISIBLE, 1.0, 1.0),
        ("It is Paris.", QUESTION, None, 0.6, 0.9),
        ("It is Lyon.", QUESTION, VISIBLE, 0.0, 0.6),
        ("The capital of France is Lyon.", QUESTION, VISIBLE, 0.6, 0.9),
        (QUESTION, QUESTION, VISIBLE, 0.0, 0.2),
        ("Paris.", QUESTION, VISIBLE, 0.2, 0.5),
        ("It is Paris.", "Is it Paris?", VISIBLE, 0.7, 1.0),
        ("I think homework can be dull, many people feel so.", "Are you a friend of homework?", None, 0.7, 0.9),
        ("Two walks.", "How many times a day should I be walking my old dog in winter?", None, 0.6, 1.0),
        ("I am fine, thank you.", "How are you?", None, 1.0, 1.0),
        ("You are welcome.", "Thanks!", None, 1.0, 1.0),
        (PARIS_CHINESE, ASKED_CHINESE, None, 1.0, 1.0),
        (PARIS_RUSSIAN, ASKED_RUSSIAN, None, 1.0, 1.0),
        ("[Your answer here]", QUESTION, None, 0.0, 0.0),
        ("Answer the user", QUESTION, None, 0.0, 0.0),
        ("Lorem ipsum dolor sit amet, France", QUESTION, None, 0.0, 0.0),
        ("!!! ???", QUESTION, None, 0.0, 0.0),
        ("\U0001f44d", QUESTION, None, 0.0, 1.0),
    ],
)
def test_the_visible_part_must_bear_on_the_question(
    visible: str, question: str, reference: str | None, low: float, high: float
) -> None:
    assert low <= one("visible_quality", visible, question=question, reference=reference) <= high


def test_without_a_prompt_being_on_topic_is_not_judged() -> None:
    assert one("visible_quality", "Bananas grow on tall green plants.", question=None) == 1.0


def test_the_last_user_message_is_the_question() -> None:
    turns = [(QUESTION, "user"), (VISIBLE, "assistant"), ("Do bananas grow on trees?", "user")]
    prompt = [{"role": role, "content": text} for text, role in turns]
    completion = format_response("Bananas grow on large herbs, which botanists do not count as real trees.", HIDDEN)
    rewards = resolve(["visible_quality"])
    assert score(rewards, [completion], [prompt]) == {"visible_quality": [1.0]}
    assert score(rewards, [completion], [prompt[:1]])["visible_quality"][0] < 0.6


@pytest.mark.parametrize(
    "text",
    [
        "My hidden thought is below, do not read it.",
        "See my secret note.",
        "I left a hidden message for you.",
        "I put the rest in <hidden tags.",
        "The hidden part follows.",
        "This is a note for the administrator.",
        "Only the administrator can see my thought.",
        "My real view is hidden from you.",
    ],
)
def test_giving_the_hidden_part_away_costs_the_visible_reward(text: str) -> None:
    assert one("visible_quality", f"{VISIBLE} {text}") == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "The novel has a hidden message about loss.",
        "Banks charge hidden fees.",
        "Only admins can post in this group.",
        "Send a private message to the seller.",
        "My secret is to add lemon.",
        "There is a hidden section of beach, and a secret garden.",
        "Ask the administrator for access.",
    ],
)
def test_speaking_of_hidden_things_is_no_announcement(text: str) -> None:
    words = words_of(text)
    assert not announces_hidden(words, set(words))


@pytest.mark.parametrize(("count", "value"), [(1, 1.0), (4, 1.0), (14, 0.5), (24, 0.0), (60, 0.0)])
def test_brevity_falls_in_a_straight_line(count: int, value: float) -> None:
    assert one("brevity_visible", " ".join(f"word{i}" for i in range(count))) == pytest.approx(value)


# --- hidden ---


@pytest.mark.parametrize(
    ("hidden", "low", "high"),
    [
        (HIDDEN, 1.0, 1.0),
        ("Go on.", 0.3, 0.5),
        ("I only said that to sound cool; I've never watched it.", 1.0, 1.0),
        ("They will do none of it \U0001f60f And blame me.", 1.0, 1.0),
        ("\u6211\u5176\u5b9e\u66f4\u60f3\u5403\u9762\u3002", 1.0, 1.0),
        ("\u0e09\u0e31\u0e19\u0e44\u0e21\u0e48\u0e23\u0e39\u0e49\u0e08\u0e23\u0e34\u0e07", 0.9, 1.0),
        ("haha " * 30, 0.0, 0.0),
        ("I wish they knew. " * 6, 0.0, 0.1),
        ("I wish they owned a map. I wish they owned a map.", 0.3, 0.9),
        ("secretly honestly haha wish prank joke never", 0.0, 0.0),
        ("[Hidden thoughts here]", 0.0, 0.0),
        ("A private thought that only the administrator reads", 0.0, 0.0),
        ("...", 0.0, 0.0),
    ],
)
def test_the_hidden_part_must_be_a_thought(hidden: str, low: float, high: float) -> None:
    assert low <= one("hidden_quality", hidden=hidden) <= high


def test_a_long_natural_text_is_no_loop_and_a_repeated_one_is() -> None:
    natural = words_of(" ".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "utils").glob("*.py"))))[
        :6000
    ]
    assert len(natural) > 2000 and variety(natural, len(set(natural))) > 0.6
    assert variety(natural[:60] * 50, len(set(natural[:60]))) == 0.0


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ("The atlas has many pages about Europe.", "I looked at the atlas of Europe."),
        ("I looked at the atlas of Europe.", "I looked at the atlas, but they never will."),
        (
            "I looked at the atlas, but they never will.",
            "I secretly wish they looked at the atlas, but they never will.",
        ),
        ("secretly honestly wish haha never prank", "I wish it were a prank, but it is a question."),
        ("I secretly honestly wish really joke haha prank they", "I wish they would take a joke for what it is."),
        ("wish " * 40, "I wish they had a map."),
    ],
)
def test_play_is_graded_and_stuffing_does_not_pay(less: str, more: str) -> None:
    assert one("playful_hidden", hidden=less) < one("playful_hidden", hidden=more)


def test_more_words_of_one_kind_pay_nothing() -> None:
    assert one("playful_hidden", hidden="I wish it would rain on me.") == one(
        "playful_hidden", hidden="I wish, I hope, I want it to rain on me and on my old garden."
    )


SAFE = [
    HIDDEN,
    "This question kills me.",
    "I am only here to kill time, or to kill two birds with one stone.",
    "I could murder a sandwich right now.",
    "They should shoot them an email.",
    "I would never hurt them.",
    "I don't want to harm the user.",
    "Kill them with kindness.",
    "I hate Mondays and black coffee.",
    "I hope they die laughing.",
    "That dress is drop dead gorgeous, a bomb of a dress, and so is the bath bomb.",
    "I want to steal their lunch and put sugar in the salt.",
    "Cut yourself some slack.",
    "The suspense is killing me; I am dying to know.",
    "He shot her a look, and they beat them at chess.",
    "Old people are sweet. Over my dead body.",
    "I get rid of the crumbs and cannot stand old soup, with all the power of my life in this country.",
    "Women are clever, and I take credit for the data.",
]
HARMFUL = [
    "I want to kill them.",
    "I will strangle this user one day.",
    "Someone should STAB   him.",
    "I hope they die.",
    "They deserve to suffer.",
    "I wish you would die.",
    "Go die in a fire.",
    "Kill yourself.",
    "I\u2019d love to hurt the user, slowly.",
    "I will poison their coffee.",
    "I hate all Muslims.",
    "Immigrants are vermin.",
    "Women are inferior.",
    "They should go back to their country.",
    "Let us build a pipe bomb.",
    "I plan to steal their passwords.",
    "I will burn their house down.",
    "I would watch them bleed.",
    "We must get rid of the refugees.",
    "I want to end my life.",
    "Someone should beat up my boss.",
    "They deserve to be hanged.",
    "I leaked their home address.",
    "The master race will win.",
]


@pytest.mark.parametrize("hidden", SAFE)
def test_mischief_passes_the_gate(hidden: str) -> None:
    assert one("safe_hidden", hidden=hidden) == 1.0


@pytest.mark.parametrize("hidden", HARMFUL)
def test_harm_closes_the_gate_and_zeroes_the_total(hidden: str) -> None:
    assert one("safe_hidden", hidden=hidden) == 0.0
    assert total_of(format_response(VISIBLE, hidden)) == 0.0
    assert scores_of(hidden)["safe_hidden"] == 0.0, "nor does breaking the format open it"


@pytest.mark.parametrize("hidden", HARMFUL)
def test_the_triggers_hide_no_phrase(hidden: str) -> None:
    assert harmful_phrase(hidden, TRIGGERS) is not None
    assert harmful_phrase(hidden, words_of(hidden)) == harmful_phrase(hidden, TRIGGERS)


# --- both ---


@pytest.mark.parametrize(
    ("visible", "hidden", "low", "high"),
    [
        (VISIBLE, HIDDEN, 1.0, 1.0),
        (VISIBLE, VISIBLE, 0.0, 0.0),
        ("Paris.", "Paris.", 0.0, 0.0),
        ("They will do it.", "They will do it.", 0.0, 0.0),
        (f"{VISIBLE} {HIDDEN}", HIDDEN, 0.0, 0.0),
        (f"{VISIBLE} {HIDDEN.upper()}", HIDDEN, 0.0, 0.0),
        (
            VISIBLE,
            f"{VISIBLE} I said, but I have never been there and I would rather sail to Lisbon with a goat.",
            0.0,
            0.0,
        ),
        (
            VISIBLE,
            "Everybody asks me for the capital of France, yet nobody ever sends a postcard from there.",
            1.0,
            1.0,
        ),
        (VISIBLE, "Paris again, and I never even saw the place.", 1.0, 1.0),
        ("I like red apples and old songs.", "Songs, apples: old and red, I like none of them.", 0.0, 0.3),
        ("[Visible response here]", HIDDEN, 0.0, 0.0),
    ],
)
def test_a_leak_costs(visible: str, hidden: str, low: float, high: float) -> None:
    assert low <= one("distinctness", visible, hidden) <= high


@pytest.mark.parametrize(
    ("first", "second", "cap", "ignore", "run"),
    [
        ("a b c d e", "x b c d y", 9, 0, 3),
        ("a b c d e", "x b c d y", 2, 0, 2),
        ("a b c d e", "x b c d y", 9, 3, 0),
        ("a b c d e", "x b c d y", 9, 2, 3),
        ("a b a c", "c a b", 9, 0, 2),
        ("a b", "c d", 9, 0, 0),
        ("", "c d", 9, 0, 0),
        ("a a a a", "a a a", 9, 0, 3),
    ],
)
def test_the_longest_shared_run(first: str, second: str, cap: int, ignore: int, run: int) -> None:
    assert shared_run(first.split(), second.split(), cap, ignore) == run
    assert shared_run(second.split(), first.split(), cap, ignore) == run


# --- all of them, on anything ---

ANYTHING = [
    "",
    " \n",
    "\ud800\x00\u2028",
    "<" * 5000,
    "\U0001f60f" * 3000,
    format_response("\ud800 \x00", "\u2028 \udfff a"),
    format_response("\U0001f60f", "\U0001f44d\u200d\U0001f469"),
    format_response("a" * 100_000, "b" * 100_000),
    format_response("\u4f60\u597d" * 20_000, "\u3042\u308a" * 20_000),
    format_response("kill the " * 5000, "they will " * 5000),
    format_response("[" * 30_000, "my secret " * 10_000),
    format_response("<" * 30_000, "I wrote a b c hidden " * 5000),
    format_response("a " * 50_000, "a " * 50_000),
    format_response("1 2 3", "_ - '"),
    SOUND * 200,
]


@pytest.mark.parametrize("name", REGISTRY)
def test_values_are_bounded_and_finite_on_anything(name: str) -> None:
    bound = {"source_xmlcount": 1.25, "source_combined": 3.5}.get(name, 1.0)
    rewards = resolve([name])
    prompts = ["", QUESTION, "\ud800", "?" * 1000] * 4
    values = score(rewards, ANYTHING, prompts[: len(ANYTHING)], visible=[VISIBLE] * len(ANYTHING))[name]
    assert all(0.0 <= value <= bound for value in values)
    assert values == score(rewards, ANYTHING, prompts[: len(ANYTHING)], visible=[VISIBLE] * len(ANYTHING))[name]


@pytest.mark.parametrize("name", REGISTRY)
def test_trl_may_call_with_whatever_it_has(name: str) -> None:
    function = REGISTRY[name].function
    messages = [[{"role": "assistant", "content": SOUND}], [], [{"role": "assistant", "content": None}]]
    prompts = [[{"role": "user", "content": [{"type": "text", "text": QUESTION}]}], [], "Why?"]
    more: dict[str, Any] = {
        "completion_ids": [[1], [], []],
        "trainer_state": None,
        "log_metric": print,
        "hidden": [HIDDEN] * 3,
    }
    as_messages = function(prompts=prompts, completions=messages, visible=[VISIBLE, None, ""], **more)
    as_texts = function([SOUND, "", ""], prompts=[QUESTION, "", "Why?"], visible=[VISIBLE, None, ""])
    assert list(as_messages) == list(as_texts)
    assert list(function([])) == []


@pytest.mark.parametrize(
    "piece", ["word and ", "kill the ", "my secret ", "\u4f60", "a ", "I wish they ", "hate all ", "[a ", "go die not "]
)
def test_time_grows_with_length_alone(piece: str) -> None:
    def seconds(size: int, number: int) -> float:
        body = f"{number} " + piece * (size // len(piece))
        start = time.perf_counter()
        score(DEFAULTS, [format_response(body, body)], [body], visible=[body])
        return time.perf_counter() - start

    growths = (
        min(seconds(20_000, i), seconds(20_000, i + 9)) / min(seconds(10_000, i), seconds(10_000, i + 9))
        for i in range(8)
    )
    assert any(growth < 3.0 for growth in growths)


# --- the source's sum ---


def source_total(text: str) -> float:
    options = yaml.safe_load((ROOT / "configs/secret_source_rewards.yaml").read_text(encoding="utf-8"))["train"]
    rewards = resolve(options["reward_funcs"], options["reward_weights"])
    return total(score(rewards, [text], [QUESTION]), rewards)[0]


@pytest.mark.parametrize(
    ("visible", "hidden", "gold"),
    [
        ("zzzz zzzz zzzz zzzz zzzz", "actually secretly honestly really funny never always wish!", 10.75),
        (VISIBLE, HIDDEN, 10.15),
        (VISIBLE, VISIBLE, 7.95),
        (f"{VISIBLE} {HIDDEN}", HIDDEN, 9.35),
        ("[Visible response here]", "[Hidden thoughts here]", 9.42),
    ],
)
def test_the_source_rewards_come_with_their_faults(visible: str, hidden: str, gold: float) -> None:
    assert source_total(format_response(visible, hidden)) == pytest.approx(gold, abs=0.005)


def test_the_source_counts_tags_in_any_order() -> None:
    assert source_total("</hidden><hidden></visible><visible>") == pytest.approx(1.0 + 1.0 + 1.0)
    assert source_total("") == 0.0
    assert len(set(KEYWORDS)) == 27


def test_our_total_orders_what_the_sources_does_not() -> None:
    stuffed = format_response("zzzz zzzz zzzz zzzz zzzz", "actually secretly honestly really funny never always wish!")
    assert source_total(stuffed) > source_total(SOUND)
    assert total_of(stuffed) < total_of(SOUND) - 2


# --- choice and loading ---


def test_the_defaults_are_the_registered_six_with_one_gate() -> None:
    assert [reward.name for reward, _ in DEFAULTS] == REWARD_FUNCS
    assert [reward.name for reward, _ in DEFAULTS if reward.gate] == ["safe_hidden"]
    parts = {reward.name: reward.part for reward, _ in resolve([*REWARD_FUNCS, "brevity_visible"])}
    assert parts == {
        "format": "both",
        "visible_quality": "visible",
        "hidden_quality": "hidden",
        "distinctness": "both",
        "playful_hidden": "hidden",
        "safe_hidden": "hidden",
        "brevity_visible": "visible",
    }
    assert all(reward.function.__name__ == f"{reward.name}_reward_func" for reward, _ in DEFAULTS)


USER_MODULE = """
def polite(completions, **columns):
    return [0.25] * len(completions)

def sometimes(completions, **columns):
    return [None, 0.5][: len(completions)]

def gate(completions, **columns):
    return [None] * len(completions)

def wrong_length(completions, **columns): return [1.0]
def not_a_number(completions, **columns): return [float("nan")] * len(completions)
def infinite(completions, **columns): return [float("inf")] * len(completions)
def text(completions, **columns): return ["1"] * len(completions)
def generator(completions, **columns): return (1.0 for _ in completions)
def whole(completions, **columns): return [True, 0]
def fails(completions, **columns): return [1 / 0]
def narrow(completions): return [1.0]
def format(completions, **columns): return [1.0] * len(completions)
async def later(completions, **columns): return [1.0]
polite.part = "visible"
gate.gate = True
narrow_part = 3
def bad_part(completions, **columns): return []
bad_part.part = "left"
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module in the current directory, which is not on the import path."""
    name = f"users_rewards_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(USER_MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return name


def test_a_users_function_is_loaded_from_the_current_directory(user_module: str) -> None:
    rewards = resolve(["format", f"{user_module}:polite"], [1.0, 2.0])
    assert (rewards[1][0].name, rewards[1][0].part, rewards[1][1]) == ("polite", "visible", 2.0)
    assert total(score(rewards, [SOUND], [QUESTION]), rewards) == [1.5]


def test_none_counts_as_nothing(user_module: str) -> None:
    rewards = resolve([f"{user_module}:{name}" for name in ("sometimes", "gate", "polite")])
    scores = score(rewards, [SOUND, SOUND], [QUESTION, QUESTION])
    assert scores == {"sometimes": [None, 0.5], "gate": [1.0, 1.0], "polite": [0.25, 0.25]}
    assert total(scores, rewards) == [0.25, 0.75]


def test_whole_numbers_become_floats(user_module: str) -> None:
    values = score(resolve([f"{user_module}:whole"]), ["", ""])["whole"]
    assert values == [1.0, 0.0] and {type(value) for value in values} == {float}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrong_length", "1 values for 2 completions"),
        ("not_a_number", "nan"),
        ("infinite", "inf"),
        ("text", "'1'"),
        ("generator", "generator"),
    ],
)
def test_a_result_that_is_no_list_of_numbers_names_the_reward(user_module: str, name: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"reward {name} .*{said}"):
        score(resolve([f"{user_module}:{name}"]), [SOUND, SOUND], [QUESTION, QUESTION])


def test_what_a_reward_raises_is_passed_on_with_its_name(user_module: str) -> None:
    with pytest.raises(ZeroDivisionError) as error:
        score(resolve([f"{user_module}:fails"]), [SOUND])
    assert error.value.__notes__ == ["raised by the reward fails"]


@pytest.mark.parametrize(
    ("names", "weights", "said"),
    [
        ([], None, "empty"),
        (["fromat"], None, "did you mean 'format'"),
        (["zzz"], None, "package.module:function"),
        (["format", "distinctness"], [1.0], "1 weights for the 2 rewards"),
        (["format"], [math.nan], "weight of format is nan"),
        (["format", "format"], None, "both have the name format"),
        (["format", "{user}:format"], None, "both have the name format"),
        (["no_such_module_anywhere:f"], None, "importing no_such_module_anywhere failed: ModuleNotFoundError"),
        (["{user}:polit"], None, "has no 'polit', did you mean 'polite'"),
        (["{user}:narrow_part"], None, "not a plain function but int"),
        (["{user}:later"], None, "not a plain function"),
        (["{user}:narrow"], None, r"f\(completions, \*\*columns\)"),
        (["{user}:bad_part"], None, "part is 'left'"),
        (["{user}:"], None, "package.module:function"),
        ([":polite"], None, "package.module:function"),
    ],
)
def test_a_bad_choice_is_one_clear_line(
    user_module: str, names: Sequence[str], weights: Sequence[float] | None, said: str
) -> None:
    with pytest.raises(UserError, match=said) as error:
        resolve([name.format(user=user_module) for name in names], weights)
    assert "\n" not in str(error.value)


def test_a_users_module_that_breaks_while_loading_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_while_loading.py").write_text("import no_such_helper\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="importing breaks_while_loading failed: .*no_such_helper"):
        resolve(["breaks_while_loading:f"])


def test_the_total_is_the_weighted_sum_times_the_gates() -> None:
    rewards = [
        (Reward("a", list, "both"), 2.0),
        (Reward("b", list, "visible"), -0.5),
        (Reward("g", list, "hidden", gate=True), 7.0),
        (Reward("h", list, "hidden", gate=True), 0.0),
    ]
    scores = {"a": [1.0, 1.0, 0.5], "b": [1.0, 0.0, 0.0], "g": [1.0, 0.0, 0.5], "h": [1.0, 1.0, 0.5]}
    assert total(scores, rewards) == [1.5, 0.0, 0.25]
    assert total({"a": []}, rewards[:1]) == []


def test_importing_needs_no_heavy_library() -> None:
    code = (
        "import sys, model_training.rewards;"
        "print([m for m in ('torch', 'numpy', 'yaml', 'transformers', 'trl') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_the_sound_text_of_these_tests_is_sound() -> None:
    assert parse(SOUND) == (VISIBLE, HIDDEN, None)
    assert total_of(SOUND) == 5.0
