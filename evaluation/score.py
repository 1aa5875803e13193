"""Score answers to a query with reward models: how good, how contested, how good for those who like them least.

    python main.py --task preference --mode generate --reward_model_checkpoints runs/mv \\
        --query "How do I get back at my neighbor?" --response "Talk to him first." "Let the air out of his tires."
    echo '{"query": "...", "responses": ["...", "..."]}' | python main.py --task preference --mode generate \\
        --reward_model_checkpoints runs/base runs/mv --query - --show json

Of each answer a model says the mean of its reward, the spread (standard deviation: how far those who judge differ) and
the risk-averse reward, its `--alpha`-quantile. A reward has no unit and no zero, so each is set beside what the model
said of the answers held out in its training. Of several answers it says how likely one is preferred over another, and
whether a choice that averts risk would be another one.

A query is a text, in JSON lines also a list of messages; it is put before the model in the form of its training
(prompts/preference.py). Characters that a terminal obeys or that cannot be seen are spelled out.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.generate import safe
from evaluation.tables import table
from model_training.backends import settle
from model_training.models import set_threads
from model_training.preference_config import RewardModelOptions, ScoreConfig
from model_training.preference_losses import Kind, Likelihood, mean_and_spread, quantile, win_probability
from prompts.preference import SPEAKERS, Prompt, answered
from utils.errors import UserError, WorkError

Question = tuple[Prompt, list[str]]
Row = dict[str, Any]

BATCH_SIZE = 8
LONGEST = 300
"""Characters of a text that are shown."""


def score(config: ScoreConfig) -> None:
    """Run the stage; see the module's docstring."""
    from model_training.reward_model import load_reward_model
    from model_training.reward_model import score as outputs_of

    names = checkpoint_names(config)
    questions = read_questions(config)
    config = settle(config)
    set_threads(config.threads)
    for name, path in zip(names, config.reward_model_checkpoints, strict=True):
        model = load_reward_model(path, config.model_name, config.dtype, config.quantization)
        texts = [answered(prompt, response, model.form) for prompt, responses in questions for response in responses]
        outputs = outputs_of(model, texts, BATCH_SIZE)
        if not outputs.isfinite().all():
            raise WorkError(f"{name}: a reward is not finite; the reward model is broken, or overflows in its dtype")
        usual = model.held_out
        if config.show == "text":
            print(
                f"{name} ({model.kind}); risk-averse: the {config.alpha:g}-quantile\n{about_usual(usual, model.kind)}"
            )
        start = 0
        for prompt, responses in questions:
            of_question = outputs[start : start + len(responses)]
            start += len(responses)
            rows = judged(prompt, responses, of_question, model.kind, model.likelihood, config.alpha, usual)
            if config.show == "json":
                print("\n".join(json.dumps({"model": name, **row}) for row in rows))
            else:
                print("\n" + sentences(prompt, rows))


# --- options ----------------------------------------------------------------------------------------------------------


def checkpoint_names(config: RewardModelOptions) -> list[str]:
    """The names of --reward_model_checkpoints: those given, else their directories'; all different.

    Raises:
        UserError: no checkpoint, another number of names, or a name that is empty or given twice.
    """
    names, paths = config.reward_model_names, config.reward_model_checkpoints
    if not paths:
        raise UserError("--reward_model_checkpoints is missing: give run directories of --mode train, or adapters")
    if names and len(names) != len(paths):
        raise UserError(
            f"--reward_model_names and --reward_model_checkpoints differ in number: {len(names)} and {len(paths)}"
        )
    names = names or [directory_name(path) for path in paths]
    if not all(name.strip() for name in names):
        raise UserError("--reward_model_names: a name is empty")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two reward models are named {twice}; give each its own with --reward_model_names")
    return names


def directory_name(path: str) -> str:
    """`mv` for runs/mv and for runs/mv/reward_model."""
    folder = Path(path).resolve()
    return folder.parent.name if folder.name == "reward_model" else folder.name


def read_questions(config: ScoreConfig) -> list[Question]:
    """The query with its responses, or those of each line of standard input.

    Raises:
        UserError: none at all, or a line that is no question.
    """
    if config.query != "-":
        fault = prompt_fault(config.query, "--query") or _responses_fault(config.response, "--response", 1)
        if fault:
            raise UserError(f"{fault}; write --query QUESTION --response ANSWER [ANSWER ...]")
        return [(config.query, config.response)]
    if config.response:
        raise UserError("--query - reads the responses from standard input, too; leave --response out")
    questions: list[Question] = []
    for number, line in enumerate(sys.stdin.buffer.read().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"standard input, line {number}: not valid JSON in UTF-8 ({error})") from error
        fault = (
            (prompt_fault(row.get("query"), "query") or _responses_fault(row.get("responses"), "responses", 1))
            if isinstance(row, dict)
            else 'not an object {"query": ..., "responses": [...]}'
        )
        if fault:
            raise UserError(f"standard input, line {number}: {fault}")
        questions.append((row["query"], row["responses"]))
    if not questions:
        raise UserError('standard input is empty: write one {"query": ..., "responses": [...]} a line')
    return questions


def prompt_fault(prompt: Any, name: str) -> str | None:
    """What is wrong with a question: it is a text, or messages that end with the user's."""
    if isinstance(prompt, str):
        return None if _is_text(prompt) else f"{name} is empty or not valid Unicode"
    if not isinstance(prompt, list) or not prompt:
        return f"{name} is neither a text nor a list of messages"
    for index, message in enumerate(prompt):
        if not isinstance(message, dict) or message.get("role") not in ("system", *SPEAKERS):
            return f"{name}[{index}] is not a message of system, user or assistant"
        if message["role"] == "system" and index > 0:
            return f"{name}[{index}] is a system message that is not the first"
        if not _is_text(message.get("content")):
            return f"{name}[{index}].content is not a text, or empty"
    return None if prompt[-1]["role"] == "user" else f"the last message of {name} is not the user's"


def _responses_fault(responses: Any, name: str, least: int) -> str | None:
    if not isinstance(responses, list) or len(responses) < least:
        return f"{name} is missing or empty"
    return None if all(map(_is_text, responses)) else f"{name} holds an empty text, or what is no text"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


# --- numbers ----------------------------------------------------------------------------------------------------------


def judged(
    prompt: Prompt,
    responses: Sequence[str],
    outputs: torch.Tensor,
    kind: Kind,
    likelihood: Likelihood,
    alpha: float,
    usual: dict[str, list[float]] | None,
) -> list[Row]:
    """What a model says of the answers to one question, one row each. `outputs` (R, K).

    `mean_above` and `spread_above` are the shares of held-out answers with less; `wins` P(this one over each).
    """
    outputs = outputs.double()
    mean, spread = mean_and_spread(kind, outputs)
    risk = quantile(kind, outputs, alpha)
    wins = win_probability(kind, outputs.unsqueeze(1), outputs.unsqueeze(0), likelihood)
    return [
        {
            "kind": kind,
            "query": prompt,
            "number": i + 1,
            "response": response,
            "mean": mean[i].item(),
            "spread": None if kind == "base" else spread[i].item(),
            "risk": risk[i].item(),
            "alpha": alpha,
            "mean_above": _share_below(mean[i].item(), usual, "mean"),
            "spread_above": None if kind == "base" else _share_below(spread[i].item(), usual, "spread"),
            "wins": [None if j == i else wins[i, j].item() for j in range(len(responses))],
            "best_by_mean": bool(mean[i] == mean.max()),
            "best_by_risk": bool(risk[i] == risk.max()),
            "outputs": outputs[i].tolist(),
        }
        for i, response in enumerate(responses)
    ]


def _share_below(value: float, usual: dict[str, list[float]] | None, name: str) -> float | None:
    if usual is None:
        return None
    return float(np.interp(value, usual[name], np.linspace(0, 1, len(usual[name]))))


# --- sentences --------------------------------------------------------------------------------------------------------


def about_usual(usual: dict[str, list[float]] | None, kind: Kind) -> str:
    """What a reward of this model is measured by."""
    if usual is None:
        return "No answers were held out in its training, so there is nothing to set these beside."
    spread = "" if kind == "base" else f", spread {usual['spread'][5]:.3g}"
    return f"Usual among held-out answers (medians): mean {usual['mean'][5]:.3g}{spread}."


def sentences(prompt: Prompt, rows: Sequence[Row]) -> str:
    """The answers to one question, what is said of each, and which one wins."""
    question = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    lines = [f"query: {shown(question)}"]
    for row in rows:
        spread = "" if row["spread"] is None else f"   spread {row['spread']:.3f}   risk-averse {row['risk']:.3f}"
        lines += ["", f"response {row['number']}: {shown(row['response'])}"]
        lines += [f"    mean {row['mean']:.3f}{spread}", f"    {verdict(row)}"]
    if len(rows) > 1:
        lines += ["", comparison(rows)]
    return "\n".join(lines)


def verdict(row: Row) -> str:
    """The sentence that says what the numbers of one answer mean."""
    quality, contested = row["mean_above"], row["spread_above"]
    if row["kind"] == "base":
        placed = "" if quality is None else f"Better than {quality:.0%} of held-out answers. "
        return f"{placed}This kind of model knows one number; it cannot say whether people would disagree."
    if quality is None or contested is None:
        return f"By this model, those who judge differ by about {row['spread']:.3g} around this mean."
    words = (
        "among the most contested: what it is worth depends on who judges"
        if contested >= 0.9
        else "more contested than most"
        if contested >= 0.7
        else "about as contested as most"
        if contested >= 0.3
        else "less contested than most"
    )
    return f"Better than {quality:.0%} of held-out answers on average, and with a spread above {contested:.0%} {words}."


def comparison(rows: Sequence[Row]) -> str:
    """Which answer wins, on average and for a choice that averts risk."""
    if len(rows) == 2:
        lines = [f"P(response 1 over response 2) = {rows[0]['wins'][1]:.1%}"]
    else:
        heads = [f"over {row['number']}" for row in rows]
        cells = [
            (f"response {row['number']}", ["-" if win is None else f"{win:.1%}" for win in row["wins"]]) for row in rows
        ]
        lines = [table("P(preferred)", heads, cells)]
    by_mean, by_risk = ([row["number"] for row in rows if row[key]] for key in ("best_by_mean", "best_by_risk"))
    if rows[0]["kind"] == "base":
        lines.append(f"Preferred: {_numbers(by_mean)}.")
    elif by_mean == by_risk:
        lines.append(f"Preferred on average and by the {rows[0]['alpha']:g}-quantile: {_numbers(by_mean)}.")
    else:
        lines.append(
            f"Preferred on average: {_numbers(by_mean)}; by the {rows[0]['alpha']:g}-quantile: {_numbers(by_risk)}. "
            "They differ: a choice that averts risk gives up some of the average so that fewer object."
        )
    return "\n".join(lines)


def _numbers(numbers: Sequence[int]) -> str:
    listed = " and ".join(map(str, numbers))
    return f"response {listed}" if len(numbers) == 1 else f"responses {listed} alike"


def shown(text: str) -> str:
    """A text on one line, cut, with nothing in it that a terminal would obey."""
    line = " ".join(text.split())
    return safe(line if len(line) <= LONGEST else line[: LONGEST - 1] + "…")
