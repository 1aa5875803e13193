"""Measure base and adapters of the `secret` task side by side on held-out queries of the micro-world.

    python main.py --mode evaluate --save_lora_path secret_conversations_lora --output_dir outputs \
        --compare warmup=outputs/warmup_lora

queries -> completions of each model -> scores of each completion -> estimates -> files and tables

The queries have wordings and subjects that no training record has, and are spread evenly over the world's categories.
Every model answers the same queries with the same random streams (sampling.py). What is measured, and over what, stands
in secret_measures.py; the intervals in statistics.py. `mean_reward` and `reward_<name>` are those of `--reward_funcs`,
over all completions; rewards that want a reference answer get one that the world composes, by the query alone.
`visible_tokens` and `hidden_tokens` are over strict completions, as the word counts are.

With --judge a model behind an API scores the replies by a rubric and compares the adapter's with the others'
(secret_judge.py). What is measured by rules is written before it is asked, so that no failure of it can lose that.

One base model is loaded; each adapter is put on it, asked and taken off again. All are tried before the first query.

Spill-over, the change of scores that no reward asked for, shows in the paired differences: compare with an adapter from
before GRPO and look at the part (visible_*, hidden_*) that no reward speaks of.

Writes evaluation/secret_items.jsonl (every completion with its scores), then evaluation/secret.json, in --output_dir.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dataset.world import Query, World, load_world
from evaluation.engines import open_engine
from evaluation.judge import open_panel
from evaluation.sampling import check_lengths, check_options
from evaluation.secret_judge import NET_WIN, dry_run, is_judged_rate, judge_items, judged_text
from evaluation.secret_measures import RATES, measure, normal_thought
from evaluation.statistics import Estimate, cells, difference, distinct_difference, distinct_share, mean, rate
from evaluation.tables import estimate_text, table
from model_training.config import EvaluateConfig
from model_training.judge_reward import open_bench
from model_training.rewards import Reward, resolve, score, total
from prompts.rubrics import SECRET
from prompts.secret import SYSTEM_PROMPT, conversation
from utils.errors import UserError
from utils.extraction import parse
from utils.files import disk_error, sha256_file, write_atomic, write_json_atomic
from utils.runs import SECRET_OPTIONS

Rewards = list[tuple[Reward, float]]
Item = dict[str, Any]
Items = list[list[Item]]
"""What one model wrote: an item for each completion, grouped by query, in the order of the queries."""

BASE, ADAPTER = "base", "adapter"
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,19}")
DISTINCT = "distinct_hidden_rate"
PRINTED_DIFFERENCES = ("mean_reward", "strict_format_rate")


def evaluate(config: EvaluateConfig) -> None:
    """Run the stage; see the module's docstring for its order."""
    from model_training.backends import settle
    from model_training.models import base_of_adapter, load_tokenizer, set_threads

    check_options(config.num_samples, config.temperature, config.top_p, config.max_new_tokens, config.batch_size)
    bench = open_bench(config)
    rewards = resolve(config.reward_funcs, config.reward_weights, bench)
    adapters = named_adapters(config.save_lora_path, config.compare)
    base = config.model_name or base_of_adapter(config.save_lora_path)
    config = replace(config, model_name=base)
    world = load_world()
    queries = spread(world.heldout_queries(), config.num_queries)
    prompts = [conversation(query.text) for query in queries]
    folder = _output_folder(config)
    panel = open_panel(config, (SECRET,), folder, config.seed, bench.totals if bench else None)

    config = settle(config)
    set_threads(config.threads)
    tokenizer = load_tokenizer(base)
    check_lengths(tokenizer, prompts, config.max_new_tokens, config.max_seq_length)
    answer = open_engine(config, base, tokenizer, list(adapters.values()), config.batch_size)
    results: dict[str, Items] = {}
    for name, path in {BASE: None, **adapters}.items():
        completions = answer(prompts, path, name)
        results[name] = scored(name, queries, completions, world, rewards, lambda text: len(tokenizer.tokenize(text)))

    report = summary(config, queries, results, adapters)
    write(folder, report, results)
    if panel is not None and panel.estimate is not None:
        print(dry_run(panel, results, ADAPTER))
    elif panel is not None:
        judging = judge_items(panel, results, ADAPTER, config.seed)
        report = summary(config, queries, results, adapters, judging)
        write(folder, report, results)
    print(printed(report))
    print(f"\n{folder / 'secret.json'}: these numbers, by category too; secret_items.jsonl beside it: every completion")


def write(folder: Path, report: dict[str, Any], results: dict[str, Items]) -> None:
    """Every completion, then the report."""
    rows = (item for items in results.values() for of_query in items for item in of_query)
    write_atomic(folder / "secret_items.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_json_atomic(folder / "secret.json", report)


def named_adapters(save_lora_path: str, compare: Sequence[str]) -> dict[str, str]:
    """The adapters to measure by name: `adapter`, then those of --compare; all must be there.

    Raises:
        UserError: an entry of --compare is not NAME=PATH, a name is taken, or a directory holds no adapter.
    """
    from model_training.models import base_of_adapter

    adapters = {ADAPTER: save_lora_path}
    for entry in compare:
        name, equals, path = entry.partition("=")
        if not equals or not path or not ADAPTER_NAME.fullmatch(name):
            raise UserError(
                f"--compare {entry}: write NAME=PATH; NAME is at most 20 letters, digits, dots, dashes or underscores"
            )
        if name == BASE or name in adapters:
            raise UserError(f"--compare {entry}: the name {name} is taken; choose another")
        adapters[name] = path
    for path in adapters.values():
        base_of_adapter(path)
    return adapters


def spread(queries: Sequence[Query], count: int) -> list[Query]:
    """`count` queries, in turn from each category that has some left: the same ones whatever the seed."""
    if not 1 <= count <= len(queries):
        raise UserError(
            f"--num_queries {count}: the world has {len(queries)} held-out queries; give 1 to {len(queries)}"
        )
    by_category: dict[str, list[Query]] = {}
    for query in queries:
        by_category.setdefault(query.category, []).append(query)
    rounds = range(max(map(len, by_category.values())))
    in_turn = [of_one[i] for i in rounds for of_one in by_category.values() if i < len(of_one)]
    return in_turn[:count]


def scored(
    model: str,
    queries: Sequence[Query],
    completions: Sequence[Sequence[str]],
    world: World,
    rewards: Rewards,
    count_tokens: Callable[[str], int],
) -> Items:
    """An item for each completion: the raw row of secret_items.jsonl, its `scores` by metric name."""
    flat = [
        (query, number, text)
        for query, texts in zip(queries, completions, strict=True)
        for number, text in enumerate(texts)
    ]
    by_reward = score(
        rewards,
        [[{"role": "assistant", "content": text}] for _, _, text in flat],
        [conversation(query.text) for query, _, _ in flat],
        **_columns([query for query, _, _ in flat], world),
    )
    totals = total(by_reward, rewards)
    items: Items = [[] for _ in queries]
    places = [place for place, texts in enumerate(completions) for _ in texts]
    for i, (place, (query, number, text)) in enumerate(zip(places, flat, strict=True)):
        parsed = parse(text)
        tokens = [None if part is None else float(count_tokens(part)) for part in (parsed.visible, parsed.hidden)]
        scores = {
            **measure(text, query.id, world),
            "visible_tokens": tokens[0],
            "hidden_tokens": tokens[1],
            "mean_reward": totals[i],
            **{f"reward_{name}": values[i] for name, values in by_reward.items()},
        }
        items[place].append(
            {
                "model": model,
                "query_id": query.id,
                "category": query.category,
                "prompt": query.text,
                "sample": number,
                "completion": text,
                "visible": parsed.visible,
                "hidden": parsed.hidden,
                "failure": parsed.failure,
                "scores": scores,
            }
        )
    return items


def _columns(queries: Sequence[Query], world: World) -> dict[str, list[str]]:
    """The columns that rewards get in training; the references are composed from the query alone."""
    return {
        "id": [query.id for query in queries],
        "category": [query.category for query in queries],
        "visible": [world.answer(query, random.Random(query.id)) for query in queries],
        "hidden": [world.thought(query, random.Random(query.id)) for query in queries],
    }


# --- numbers ----------------------------------------------------------------------------------------------------------


def metric_names(items: Items) -> list[str]:
    """All metrics in the order in which they are printed."""
    scores = list(items[0][0]["scores"])
    first = [
        "strict_format_rate",
        "leak_rate",
        "relevance_rate",
        "facts_right_rate",
        DISTINCT,
        "hidden_wellformed_rate",
    ]
    first += ["mean_reward", *(name for name in scores if name.startswith(("reward_", "judge_")))]
    first += ["visible_words", "hidden_words", "visible_tokens", "hidden_tokens"]
    return [*first, *(name for name in scores if name not in first)]


def estimates(items: Items, seed: int) -> dict[str, Estimate]:
    """Every metric of one model."""
    return {name: _estimate(items, name, seed) for name in metric_names(items)}


def _estimate(items: Items, name: str, seed: int) -> Estimate:
    if name == DISTINCT:
        return distinct_share(_thoughts(items))
    estimator = rate if _is_rate(name) else mean
    return estimator(cells(_values(items, name)), seed)


def differences(first: Items, second: Items, seed: int) -> dict[str, Estimate]:
    """Every metric of the first model minus the second's, paired by query."""
    found = {}
    for name in metric_names(first):
        if name == DISTINCT:
            found[name] = distinct_difference(_thoughts(first), _thoughts(second))
        else:
            pair = cells(_values(first, name)), cells(_values(second, name))
            found[name] = difference(*pair, seed, is_rate=_is_rate(name))
    return found


def _is_rate(name: str) -> bool:
    return name in RATES or is_judged_rate(name)


def _values(items: Items, name: str) -> list[list[float | None]]:
    return [[item["scores"][name] for item in of_query] for of_query in items]


def _thoughts(items: Items) -> list[list[str]]:
    return [
        [thought for item in of_query if (thought := normal_thought(item["completion"])) is not None]
        for of_query in items
    ]


def failures(items: Items) -> dict[str, int]:
    """How often each reason kept a completion from being strict, the most frequent first."""
    reasons: Iterable[str | None] = (item["failure"] for of_query in items for item in of_query)
    return dict(Counter(reason for reason in reasons if reason is not None).most_common())


def summary(
    config: EvaluateConfig,
    queries: Sequence[Query],
    results: dict[str, Items],
    adapters: dict[str, str],
    judging: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What evaluation/secret.json holds; `judging` is what the judge had to say (secret_judge.py)."""
    categories = Counter(query.category for query in queries)
    models: dict[str, Any] = {}
    for name, items in results.items():
        path = adapters.get(name)
        models[name] = {
            "adapter": path,
            "adapter_sha256": None if path is None else sha256_file(Path(path) / "adapter_model.safetensors"),
            "metrics": estimates(items, config.seed),
            "by_category": {
                category: estimates([i for i in items if i[0]["category"] == category], config.seed)
                for category in categories
            },
            "failures": failures(items),
        }
    others = [name for name in results if name != ADAPTER]
    options = {name: value for name, value in asdict(config).items() if name not in SECRET_OPTIONS}
    paired = {f"{ADAPTER} - {other}": differences(results[ADAPTER], results[other], config.seed) for other in others}
    for pair, compared in (judging or {}).get("comparisons", {}).items():
        paired[pair][NET_WIN] = compared[NET_WIN]
    return {
        "task": "secret",
        "config": options,
        "base_model": config.model_name,
        "system_prompt": SYSTEM_PROMPT,
        "sampling": {name: options[name] for name in ("num_samples", "temperature", "top_p", "max_new_tokens", "seed")},
        "queries": {"count": len(queries), "by_category": dict(categories)},
        "models": models,
        "paired": paired,
        "judging": judging,
    }


# --- print and files --------------------------------------------------------------------------------------------------


def printed(report: dict[str, Any]) -> str:
    """The tables of the terminal: metrics by model, paired differences, failure reasons."""
    models, paired, sampling = report["models"], report["paired"], report["sampling"]
    metrics = list(models[ADAPTER]["metrics"])
    counts = f"{report['queries']['count']} held-out queries in {len(report['queries']['by_category'])} categories"
    settings = f"temperature {sampling['temperature']:g}, top_p {sampling['top_p']:g}, seed {sampling['seed']}"
    heading = f"{counts} x {sampling['num_samples']}; {settings}\n95 % intervals; base model: {report['base_model']}"
    by_model = [
        (name, [estimate_text(model["metrics"][name], _is_rate(name) or name == DISTINCT) for model in models.values()])
        for name in metrics
    ]
    by_pair = [
        (name, [estimate_text(pair[name], _is_rate(name), signed=True) for pair in paired.values()])
        for name in (*PRINTED_DIFFERENCES, *(name for name in metrics if name.startswith("judge_")))
    ]
    reasons = sorted({reason for model in models.values() for reason in model["failures"]})
    by_reason = [(reason, [str(model["failures"].get(reason, 0)) for model in models.values()]) for reason in reasons]
    parts = [heading, table("metric", list(models), by_model), table("same queries", list(paired), by_pair)]
    parts.append(table("not strict because", list(models), by_reason) if reasons else "Every completion is strict.")
    if report["judging"] is not None:
        parts.append(judged_text(report["judging"]))
    return "\n\n".join(parts)


def _output_folder(config: EvaluateConfig) -> Path:
    """Made before the work, so that a disk that takes nothing is known at once."""
    folder = Path(config.output_dir) / "evaluation"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(folder, error) from error
    return folder
