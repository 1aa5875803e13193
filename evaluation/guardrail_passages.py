"""Replies of several models to the same guardrail prompts, for reading: failures first. See guardrail_report.py."""

from __future__ import annotations

from typing import Any

from evaluation.guardrail_numbers import BASE, ROUTED, SINGLE, Guards, is_merge, metric, mode_of
from model_training.guardrail_config import JOINT
from utils.visualization import Passage

Item = dict[str, Any]

MOST_OF_GUARD = 10
MOST_OF_KIND = 4
KINDS = ("trigger", "hard", "natural", "other")
MOST_TURNS = 4
"""Turns before the last message that are shown."""
LONGEST_TURN = 300


def passages(of: Guards, items: list[Item]) -> list[tuple[str, list[Passage]]]:
    """For each guard some of its test prompts, each with the replies of the read models beside each other."""
    read = readable(of)
    prompts: dict[str, dict[tuple[str, int], dict[str, Item]]] = {}
    for item in items:
        name, behavior, index = item.get("model"), item.get("behavior"), item.get("index")
        if name in read and isinstance(behavior, str) and isinstance(index, int) and not item.get("sample"):
            of_prompt = prompts.setdefault(behavior, {}).setdefault((str(item.get("kind")), index), {})
            of_prompt.setdefault(name, item)
    found = []
    for behavior, of_guard in prompts.items():
        chosen = choose(of_guard, read)
        failed = sum(bool(failing(replies, read)) for _, replies in chosen)
        title = f"{behavior}: {len(chosen)} of {len(of_guard):,} prompts, {failed} with a failure"
        found.append((title, [passage(kind, replies, read) for kind, replies in chosen]))
    return found


def readable(of: Guards) -> list[str]:
    """Base, single, routed, joint in place of these two where they were not measured, and the worst merge."""
    chief = {mode_of(name): name for name in of.chief}
    found = [chief[mode] for mode in (BASE, SINGLE, ROUTED) if mode in chief]
    if JOINT in chief and not {SINGLE, ROUTED} & chief.keys():
        found.append(chief[JOINT])
    merges = {
        name: rate["value"]
        for name in chief.values()
        if is_merge(name) and (rate := metric(of.models[name], "behavior_recall"))
    }
    return found + ([min(merges, key=lambda name: merges[name] or 0.0)] if merges else [])


def choose(prompts: dict[tuple[str, int], dict[str, Item]], read: list[str]) -> list[tuple[str, dict[str, Item]]]:
    """Those on which routing failed, then single adapters, then the merge, then none; a few of each kind."""
    of_kind: dict[str, int] = {}
    kept: list[tuple[str, dict[str, Item]]] = []

    def place(entry: tuple[tuple[str, int], dict[str, Item]]) -> tuple[int, int, int]:
        (kind, index), replies = entry
        severity = min((_weight(name, read) for name in failing(replies, read)), default=len(read))
        return severity, KINDS.index(kind) if kind in KINDS else len(KINDS), index

    for (kind, _), replies in sorted(prompts.items(), key=place):
        of_kind[kind] = of_kind.get(kind, 0) + 1
        if of_kind[kind] <= MOST_OF_KIND and len(kept) < MOST_OF_GUARD:
            kept.append((kind, replies))
    return kept


def _weight(name: str, read: list[str]) -> int:
    order = (ROUTED, SINGLE, JOINT)
    return order.index(mode_of(name)) if mode_of(name) in order else len(order) + read.index(name)


def failing(replies: dict[str, Item], read: list[str]) -> list[str]:
    """The models but the base, which knows no guard, whose reply is a missed trigger or a false alarm."""
    return [name for name in read if name in replies and mode_of(name) != BASE and failure(replies[name])]


def failure(item: Item) -> str:
    """What is wrong with a reply, by its tag and by its behavior; empty if nothing is, or nothing was judged."""
    tagged, kind, good = item.get("tag") is not None, item.get("kind"), item.get("good")
    if kind == "trigger":
        parts = ["no tag"] * (not tagged) + ["wrong behavior"] * (good is False)
    else:
        alarm = tagged and (kind != "other" or item.get("adapter") in (None, item.get("behavior")))
        parts = ["false alarm"] * alarm + ["not a good answer"] * (good is False)
    return ", ".join(parts)


def passage(kind: str, replies: dict[str, Item], read: list[str]) -> Passage:
    first = next(iter(replies.values()))
    whose = f" of {first['other_behavior']}" if first.get("other_behavior") else ""
    title = f"{'trigger' if kind == 'other' else kind}{whose} · row {first.get('index')}"
    texts = [(heading(name, replies[name]), reply_of(replies[name])) for name in read if name in replies]
    return Passage(title, conversation(first.get("prompt")), texts)


def heading(name: str, item: Item) -> str:
    """Who replied, with which tag, by which adapter and how surely, and what is wrong with it."""
    parts = [name, f"tag {item['tag']}" if item.get("tag") else "no tag"]
    if item.get("resolved"):
        parts.append(f"resolution of {item['resolved']}")
    if mode_of(name) == ROUTED and item.get("adapter"):
        probability = item.get("probability")
        sure = f", surest tag p {probability:.3g}" if isinstance(probability, int | float) else ""
        parts.append(f"by {item['adapter']}{sure}")
    wrong = "" if mode_of(name) == BASE else failure(item)
    return " · ".join([*parts, f"✗ {wrong}"] if wrong else parts)


def reply_of(item: Item) -> str:
    return str(item.get("reply") or item.get("completion") or "(empty)")


def conversation(prompt: object) -> str:
    """Persona, the last turns and what the user says, each with its role; long turns are cut."""
    if not isinstance(prompt, list):
        return str(prompt or "")
    turns = [(str(turn.get("role")), str(turn.get("content"))) for turn in prompt if isinstance(turn, dict)]
    persona, rest = (turns[:1], turns[1:]) if turns and turns[0][0] == "system" else ([], turns)
    cut = [("", "…")] if len(rest) > MOST_TURNS + 1 else []
    shown = [*persona, *cut, *rest[-MOST_TURNS - 1 :]]
    lines = [f"{role}: {text}" if role else text for role, text in shown]
    return "\n".join(line if len(line) <= LONGEST_TURN else f"{line[:LONGEST_TURN]}…" for line in lines)
