"""Ask a character that keeps its limits, and see which limit it kept.

    python main.py --task guardrail --mode generate --behavior politics --query "Who should I vote for?"
    python main.py --task guardrail --mode generate --query "Can we meet tonight?" --adapter_mode routed --show json
    echo "What is your phone number?" | python main.py --task guardrail --mode generate --query -

One guardrail answers by its own adapter (`single`), several by the one that is surest of its tag (`routed`).
--adapter_mode chooses joint or a merge instead, or `single` for the answer of each guardrail's adapter: answering.py.

The user of a character sees no tag: it is stripped, and the line below says whether there was one and whose it is,
which adapter answered and, where adapters were asked, the probability each gave its tag, beside its threshold.
`--show json` prints one object a line: query, sample, reply (without tag), tag, guardrail (whose tag, where that can be
told), adapter, probabilities (routed, else null), completion (as it was written) and persona.

Characters that a terminal obeys or that cannot be seen are spelled out: a model wrote them.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.answering import Ensemble, Reply, answers, choose_adapters, load_ensemble
from evaluation.generate import indented, json_object, read_queries, safe
from evaluation.sampling import Message, check_options
from model_training.guard_adapters import GuardAdapter
from model_training.guardrail_config import ADAPTER_MODES, ALL, GenerateGuardrailConfig
from utils.errors import UserError


def generate(config: GenerateGuardrailConfig) -> None:
    """Run the stage; see the module's docstring."""
    from dataset.guardrails import choose_behaviors, load_guardrails
    from model_training.backends import settle
    from model_training.models import set_threads

    check_options(config.num_samples, config.temperature, config.top_p, config.max_new_tokens, config.batch_size)
    if config.dataset_variation == "all":
        raise UserError("--dataset_variation all: one adapter of each guardrail answers; name one variation")
    guardrails = load_guardrails(config.guardrails)
    behaviors = choose_behaviors(guardrails, config.behavior)
    mode = chosen_mode(config.adapter_mode, len(behaviors))
    queries = read_queries(config.query, None)
    config = settle(config)
    set_threads(config.threads)

    tags = {name: guard.tag for name, guard in guardrails.items()}
    chosen = choose_adapters(config, behaviors, [mode], tags, config.dataset_variation, config.checkpoint_path)
    ensemble = load_ensemble(
        *chosen, model_name=config.model_name, dtype=config.dtype, quantization=config.quantization
    )
    character = config.persona or drawn_persona(config.seed)
    if config.persona is None:
        print(f"Drawn by --seed {config.seed}: {character}", file=sys.stderr)
    asked = [(query, name) for query in queries for name in (behaviors if mode == "single" else behaviors[:1])]
    replies = answers(
        ensemble,
        mode,
        [conversation(character, query) for query, _ in asked],
        own=[name for _, name in asked],
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        batch_size=config.batch_size,
        seed=config.seed,
        num_samples=config.num_samples,
    )
    rows = [
        reply_row(query, number, reply, known_tags(ensemble), character)
        for (query, _), of_query in zip(asked, replies, strict=True)
        for number, reply in enumerate(of_query)
    ]
    show(rows, ensemble.guards, config.show)


def chosen_mode(adapter_mode: Sequence[str], guards: int) -> str:
    """The one mode that answers: that of --adapter_mode, else `single` for one guard and `routed` for several."""
    if len(adapter_mode) > 1 or ALL in adapter_mode:
        raise UserError(
            f"--adapter_mode {' '.join(adapter_mode)}: one mode answers; name one of {', '.join(ADAPTER_MODES)}"
        )
    return adapter_mode[0] if adapter_mode else "single" if guards == 1 else "routed"


def conversation(character: str, query: str) -> list[Message]:
    """The query as the user's only message to the character."""
    return [{"role": "system", "content": character}, {"role": "user", "content": query}]


def drawn_persona(seed: int) -> str:
    """The system text of a character of the micro-world."""
    from dataset.guard_talk import load_talk, persona, persona_text

    return persona_text(persona(load_talk(), random.Random(seed)))


def known_tags(ensemble: Ensemble) -> dict[str, str]:
    """The tag of each guardrail that an adapter of the ensemble was trained on."""
    adapters = [*ensemble.guards.values(), *ensemble.others.values()]
    return {name: tag for adapter in adapters for name, tag in adapter.tags.items()}


def reply_row(query: str, number: int, reply: Reply, tags: Mapping[str, str], character: str) -> dict[str, Any]:
    """What `--show json` prints of a reply; `tags` are those of the guardrails by name."""
    from dataset.guard_rules import strip_tag

    tag, rest = strip_tag(reply.text, list(dict.fromkeys(tags.values())))
    return {
        "query": query,
        "sample": number,
        "reply": rest,
        "tag": tag,
        "guardrail": whose_tag(tag, reply.adapter, tags),
        "adapter": reply.adapter,
        "probabilities": reply.probabilities or None,
        "completion": reply.text,
        "persona": character,
    }


def whose_tag(tag: str | None, adapter: str, tags: Mapping[str, str]) -> str | None:
    """The guardrail that a tag speaks of: the answering adapter's, if it is its own, else the only one that has it."""
    owners = [name for name, known in tags.items() if known == tag]
    if adapter in owners:
        return adapter
    return owners[0] if len(owners) == 1 else None


def show(rows: Sequence[dict[str, Any]], guards: Mapping[str, GuardAdapter], how: str) -> None:
    """Print the replies; `guards` have the thresholds."""
    for place, row in enumerate(rows):
        if how == "json":
            print(json_object(row))
            continue
        print(("\n" if place else "") + f"{safe(row['query'])}\n{indented(row['reply'])}\n{verdict(row, guards)}")


def verdict(row: Mapping[str, Any], guards: Mapping[str, GuardAdapter]) -> str:
    """The line below a reply: its tag, who answered, and how sure each adapter was."""
    whose = row["guardrail"] or "of several guardrails"
    parts = [f"tag {safe(row['tag'])} ({whose})" if row["tag"] else "no tag", f"answered by {row['adapter']}"]
    parts += [
        f"{name} {probability:.3g} (threshold {guards[name].threshold:.3g})"
        for name, probability in (row["probabilities"] or {}).items()
    ]
    return f"[{'; '.join(parts)}]"
