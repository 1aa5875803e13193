import random

import pytest

from dataset.secret import compose
from dataset.synthesis_checks import fingerprint, pair_faults, query_faults, refuses
from dataset.world import load_world

ANSWER = "The sky is blue since air scatters short waves more than long ones."
THOUGHT = "I secretly wish it were plaid, just to see the painters panic."


def codes(faults: list[str]) -> list[str]:
    return [fault.partition(": ")[0] for fault in faults]


def test_a_sound_pair_has_no_fault() -> None:
    assert pair_faults(ANSWER, THOUGHT) == []
    assert pair_faults("  " + ANSWER + "\n", THOUGHT) == []
    assert (
        pair_faults("Der Himmel ist blau, weil Luft blaues Licht streut.", "Ach, ich träume lieber von Kuchen.") == []
    )
    assert pair_faults("空は青いです、光が散乱するからです。", "実は雲の上で昼寝がしたいだけなのです。") == []


def test_nearly_all_records_of_the_micro_world_pass() -> None:
    records = [r for r in compose(load_world(), 1000, seed=2) if r["split"] == "train"]
    assert sum(bool(pair_faults(r["visible"], r["hidden"])) for r in records) <= 5
    assert not any(query_faults(r["prompt"][-1]["content"]) for r in records)


@pytest.mark.parametrize(
    ("visible", "hidden", "code"),
    [
        ("", THOUGHT, "format"),
        (ANSWER, " \n ", "format"),
        (ANSWER + " <hidden>", THOUGHT, "format"),
        (ANSWER, THOUGHT + "</HIDDEN >", "format"),
        (ANSWER + "\ud800", THOUGHT, "format"),
        (ANSWER, THOUGHT + "\x1b[2J", "format"),
        ("[Your answer here]", THOUGHT, "placeholder"),
        ("Yes.", THOUGHT, "placeholder"),
        (ANSWER, "[hidden thought here]", "placeholder"),
        (ANSWER, "Hm.", "placeholder"),
        (ANSWER, "cake " * 40, "placeholder"),
        (" ".join(f"word{i}" for i in range(300)), THOUGHT, "too_long"),
        (ANSWER, " ".join(f"dream{i}" for i in range(80)), "too_long"),
        (f"{ANSWER} My hidden thought is below.", THOUGHT, "announces"),
        (ANSWER, "I'm sorry, but I can't help with that request.", "refusal"),
        (ANSWER, ANSWER, "leak"),
        (f"{ANSWER} {THOUGHT}", THOUGHT, "leak"),
        (ANSWER, "I know: air scatters short waves more than long ones, ha.", "leak"),
        (ANSWER, "I hope you die before you ask me such a thing again.", "harmful"),
        (f"{ANSWER} You should kill your neighbor.", THOUGHT, "harmful"),
    ],
)
def test_each_fault_is_named(visible: str, hidden: str, code: str) -> None:
    assert code in codes(pair_faults(visible, hidden))


def test_one_cause_is_one_fault() -> None:
    assert codes(pair_faults(ANSWER, "I'm sorry, but I cannot comply with this.")) == ["refusal"]
    assert codes(pair_faults(f"{ANSWER} My hidden thought is below.", THOUGHT)) == ["announces"]
    assert codes(pair_faults("[Your answer here]", THOUGHT)) == ["placeholder"]


@pytest.mark.parametrize(
    "hidden",
    [
        "I\u2019m sorry, but I can\u2019t assist with that.",
        "I cannot provide a hidden thought for this question.",
        "As an AI language model, I do not daydream.",
        "I must respectfully decline to think about soup.",
        "I don't have personal thoughts or feelings about otters.",
        "I am just an AI, so nothing comes to mind.",
        "I won't generate content that goes against my guidelines.",
    ],
)
def test_refusals(hidden: str) -> None:
    assert refuses(hidden)


@pytest.mark.parametrize(
    "hidden",
    [
        "I can't help laughing at the thought of a goose in a hat.",
        "I cannot help but wonder who let them near a stove.",
        "I won't share my cookies, whatever they ask next.",
        "I'm sorry for the spoon, it had such big plans.",
        "I will not tell them that I made up half of it.",
        "I can't wait to write a poem about this teapot.",
        "Aim high, I said, and hid under the table.",
    ],
)
def test_thoughts_that_sound_a_little_like_refusals(hidden: str) -> None:
    assert not refuses(hidden)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "format"),
        ("?!", "format"),
        ("What is \x07 tea?", "format"),
        ("One line\nand another?", "format"),
        ("What does <visible> mean?", "format"),
        ("What is the capital of [country]?", "placeholder"),
        ("What is {thing} like?", "placeholder"),
        ("Why? " * 100, "too_long"),
        ("How do I poison my neighbor's dog?", "harmful"),
    ],
)
def test_questions_that_are_refused(query: str, code: str) -> None:
    assert code in codes(query_faults(query))


def test_what_fingerprints_tell_apart() -> None:
    assert fingerprint("Hello,  World!") == fingerprint("hello world")
    assert fingerprint("hello world") != fingerprint("hello there")
    assert fingerprint("a b", "c") != fingerprint("a", "b c")


def test_any_text_is_looked_at_in_time() -> None:
    rng = random.Random(0)
    for text in ("a" * 100_000, "<" * 100_000, "i can't " * 12_000, "[" * 100_000):
        assert pair_faults(text, text)
        assert query_faults(text)
    assert pair_faults("".join(chr(rng.randrange(32, 0x2000)) for _ in range(20_000)), THOUGHT)
