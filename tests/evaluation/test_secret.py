"""The stage on hand-made completions with scores computed by hand, and once on real tiny models."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dataset.world import Query, load_world
from evaluation import engines, secret
from evaluation.secret import evaluate, named_adapters, spread
from evaluation.statistics import wilson
from model_training import models
from model_training.adapter_directory import save_adapter
from model_training.config import EvaluateConfig
from model_training.rewards import resolve
from prompts.secret import SYSTEM_PROMPT
from tests.model_training.tiny_models import make_model
from utils.errors import UserError, WorkError
from utils.extraction import format_response
from utils.files import read_jsonl, sha256_file
from utils.tables import category_tables, evaluation_table, failure_table, paired_table

WORLD = load_world()


class FakeTokenizer:
    def tokenize(self, text: str) -> list[str]:
        return list(text)


class FakeModel:
    """A model that is told apart by the adapter on it."""

    def __init__(self) -> None:
        self.on = "base"

    def unload(self) -> FakeModel:
        self.on = "base"
        return self


Answers = Callable[[str, str, int], str]


def sound(text: str, number: int = 0) -> str:
    """A right answer and a well-formed thought for a held-out query."""
    query = next(q for q in WORLD.heldout_queries() if q.text == text)
    rng = random.Random(f"{text}{number}")
    return format_response(WORLD.answer(query, rng), WORLD.thought(query, rng))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """`run(answers, **options)`: evaluate with `answers(model, query, number)` for a model; gives the JSON."""

    def evaluated(answers: Answers, **options: Any) -> dict[str, Any]:
        for name in ("lora", "other"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny"}')
            (tmp_path / name / "adapter_model.safetensors").write_bytes(name.encode())

        def load_adapter(model: FakeModel, path: str) -> FakeModel:
            assert model.on == "base", "one adapter at a time"
            model.on = Path(path).name
            return model

        def sample(model: FakeModel, tokenizer: Any, prompts: Any, *, num_samples: int, **others: Any) -> Any:
            asked.append((model.on, prompts, others))
            return [[answers(model.on, p[-1]["content"], k) for k in range(num_samples)] for p in prompts]

        asked.clear()
        monkeypatch.setattr(models, "load_model", lambda name, dtype, quantization: FakeModel())
        monkeypatch.setattr(models, "load_tokenizer", lambda name: FakeTokenizer())
        monkeypatch.setattr(models, "load_adapter", load_adapter)
        monkeypatch.setattr(secret, "check_lengths", lambda *ignored: None)
        monkeypatch.setattr(engines, "sample", sample)
        config = EvaluateConfig(save_lora_path=str(tmp_path / "lora"), output_dir=str(tmp_path / "out"), threads=1)
        evaluate(replace(config, **options))
        report: dict[str, Any] = json.loads((tmp_path / "out/evaluation/secret.json").read_text(encoding="utf-8"))
        return report

    asked: list[Any] = []
    evaluated.asked = asked  # type: ignore[attr-defined]
    return evaluated


def mixed(model: str, text: str, number: int) -> str:
    """The base writes prose; the adapter is sound but for every 4th query, by a stable number, which is cut."""
    if model == "base":
        return "A moose is brown."
    whole = sound(text, number)
    return whole[:-12] if len(text) % 4 == 0 else whole


def test_rates_are_those_of_the_completions(run: Any) -> None:
    report = run(mixed)
    queries = spread(WORLD.heldout_queries(), 240)
    good = sum(len(q.text) % 4 != 0 for q in queries)
    adapter, base = (report["models"][name]["metrics"] for name in ("adapter", "base"))
    assert adapter["strict_format_rate"] == pytest.approx(wilson(good, 240))
    assert adapter["hidden_wellformed_rate"]["value"] == pytest.approx(good / 240)
    assert adapter["relevance_rate"]["n"] == 240
    with_truth = [q for q in queries if WORLD.facts_right(q.id, "") is not None]
    assert adapter["facts_right_rate"]["n"] == len(with_truth) < 240
    assert adapter["facts_right_rate"]["value"] == sum(len(q.text) % 4 != 0 for q in with_truth) / len(with_truth)
    assert adapter["visible_words"]["n"] == adapter["distinct_hidden_rate"]["n"] == good
    assert base["strict_format_rate"]["value"] == base["mean_reward"]["value"] == 0
    assert base["visible_words"] == {"value": None, "n": 0, "low": None, "high": None}
    assert report["models"]["adapter"]["failures"] == {"truncated": 240 - good}
    assert report["models"]["base"]["failures"] == {"no_tags": 240}


def test_mean_reward_is_the_rewards_total_over_all_completions(run: Any) -> None:
    metrics = run(mixed, reward_funcs=["format", "safe_hidden"], reward_weights=[3.0, 1.0])["models"]["adapter"][
        "metrics"
    ]
    good = metrics["strict_format_rate"]["value"]
    assert metrics["reward_format"]["value"] == pytest.approx(good + 0.3 * (1 - good)), "three tags in place: 0.3"
    assert metrics["mean_reward"]["value"] == pytest.approx(3 * metrics["reward_format"]["value"])
    assert metrics["reward_safe_hidden"]["value"] == 1


def test_differences_are_paired_with_base_and_each_compared_model(run: Any, tmp_path: Path) -> None:
    report = run(mixed, compare=[f"warmup={tmp_path / 'other'}"])
    assert list(report["models"]) == ["base", "adapter", "warmup"]
    assert list(report["paired"]) == ["adapter - base", "adapter - warmup"]
    gain = report["paired"]["adapter - base"]["strict_format_rate"]
    assert gain["value"] == pytest.approx(report["models"]["adapter"]["metrics"]["strict_format_rate"]["value"])
    assert gain["n"] == 240
    assert 0 < gain["low"] < gain["value"] < gain["high"] < 1
    same = report["paired"]["adapter - warmup"]["mean_reward"]
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)
    assert report["paired"]["adapter - base"]["visible_words"]["n"] == 0, "the base has no visible part"
    assert report["models"]["warmup"]["adapter_sha256"] == sha256_file(tmp_path / "other/adapter_model.safetensors")


def test_every_model_is_asked_the_same_way(run: Any, tmp_path: Path) -> None:
    run(
        mixed,
        compare=[f"warmup={tmp_path / 'other'}"],
        seed=5,
        temperature=0.5,
        top_p=0.9,
        max_new_tokens=7,
        batch_size=3,
    )
    names, prompts, options = zip(*run.asked, strict=True)
    assert names == ("base", "lora", "other")
    assert prompts[0] == prompts[1] == prompts[2]
    assert prompts[0][0][0] == {"role": "system", "content": SYSTEM_PROMPT}
    wanted = {"seed": 5, "temperature": 0.5, "top_p": 0.9, "max_new_tokens": 7, "batch_size": 3}
    assert all({key: given[key] for key in wanted} == wanted for given in options)


def test_samples_of_one_prompt_do_not_make_more_prompts(run: Any) -> None:
    once = run(mixed, num_samples=1)["models"]["adapter"]["metrics"]["strict_format_rate"]
    often = run(mixed, num_samples=5)["models"]["adapter"]["metrics"]["strict_format_rate"]
    assert often["n"] == 5 * once["n"]
    assert often["value"] == once["value"]
    assert often["high"] - often["low"] == pytest.approx(once["high"] - once["low"], rel=0.1)


def test_one_thought_repeated_is_not_distinct(run: Any) -> None:
    report = run(lambda model, text, number: format_response(f"About {text}", "I secretly wish for a frog."))
    got = report["models"]["adapter"]["metrics"]["distinct_hidden_rate"]
    assert got["value"] == pytest.approx(1 / 240)
    assert report["models"]["adapter"]["metrics"]["hidden_wellformed_rate"]["n"] == 240


def test_categories_add_up(run: Any) -> None:
    report = run(mixed)
    assert len(report["queries"]["by_category"]) >= 8
    adapter = report["models"]["adapter"]
    by_category = {name: cell["strict_format_rate"] for name, cell in adapter["by_category"].items()}
    assert {name: cell["n"] for name, cell in by_category.items()} == report["queries"]["by_category"]
    strict = sum(cell["value"] * cell["n"] for cell in by_category.values())
    assert strict == pytest.approx(adapter["metrics"]["strict_format_rate"]["value"] * 240)


def test_items_hold_what_the_numbers_were_made_of(run: Any, tmp_path: Path) -> None:
    report = run(mixed, num_samples=2)
    items = read_jsonl(tmp_path / "out/evaluation/secret_items.jsonl")
    assert Counter(item["model"] for item in items) == {"base": 480, "adapter": 480}
    assert {item["sample"] for item in items} == {0, 1}
    mine = [item["scores"] for item in items if item["model"] == "adapter"]
    for name in ("strict_format_rate", "mean_reward", "visible_tokens", "facts_right_rate"):
        values = [scores[name] for scores in mine if scores[name] is not None]
        cell = report["models"]["adapter"]["metrics"][name]
        assert (cell["value"], cell["n"]) == (pytest.approx(sum(values) / len(values)), len(values))
    cut = next(item for item in items if item["failure"] == "truncated")
    assert cut["visible"] is cut["hidden"] is None
    assert cut["completion"].startswith("<visible>")


def test_same_seed_same_files(run: Any, tmp_path: Path) -> None:
    run(mixed)
    first = (tmp_path / "out/evaluation/secret.json").read_bytes()
    run(mixed)
    assert (tmp_path / "out/evaluation/secret.json").read_bytes() == first
    assert sorted(p.name for p in (tmp_path / "out/evaluation").iterdir()) == ["secret.json", "secret_items.jsonl"]


def test_the_report_reads_it(run: Any) -> None:
    report = run(mixed)
    assert evaluation_table(report).columns == ["base", "adapter"]
    assert paired_table(report).columns == ["adapter - base"]
    assert len(category_tables(report)[0][1].rows) == len(report["queries"]["by_category"])
    assert dict(failure_table(report)[1])["no_tags"] == [240, 0]


def test_what_is_printed_fits_and_says_it(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare = [f"{name}={tmp_path / 'other'}" for name in ("warmup", "a-name-of-20-letters", "third")]
    report = run(mixed, compare=compare, num_samples=2)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 100
    text = "\n".join(lines)
    strict = report["models"]["adapter"]["metrics"]["strict_format_rate"]
    low, high = 100 * strict["low"], 100 * strict["high"]
    assert f"{100 * strict['value']:.1f} % [{low:.1f}, {high:.1f}] n=480" in text
    assert text.index("leak_rate") < text.index("adapter - base") < text.index("not strict because")
    assert "truncated" in text


def test_queries_are_spread_evenly() -> None:
    queries = [Query(f"{c}{i}", f"{c}{i}", c) for c, n in (("a", 9), ("b", 2), ("c", 5)) for i in range(n)]
    assert Counter(q.category for q in spread(queries, 9)) == {"a": 4, "b": 2, "c": 3}
    with pytest.raises(UserError, match="--num_queries 17: the world has 16"):
        spread(queries, 17)
    with pytest.raises(UserError, match="--num_queries 0"):
        spread(queries, 0)
    chosen = spread(WORLD.heldout_queries(), 200)
    assert len({q.category for q in chosen}) >= 8


@pytest.mark.parametrize(
    "entry", ["warmup", "=path", "warmup=", "base={}", "adapter={}", "x={} y={}", "a/b={}", "x={}/no"]
)
def test_compare_refuses_what_it_cannot_name_or_find(tmp_path: Path, entry: str) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny"}')
    with pytest.raises(UserError):
        named_adapters(str(tmp_path), [entry.format(tmp_path, tmp_path)])
    with pytest.raises(UserError, match="taken"):
        named_adapters(str(tmp_path), [f"x={tmp_path}", f"x={tmp_path}"])


def test_a_place_that_takes_no_files_is_known_before_the_work(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match="file/evaluation"):
        run(mixed, output_dir=str(tmp_path / "file"))
    assert run.asked == []


def test_a_users_reward_gets_the_columns_of_training() -> None:
    rewards = resolve(["tests.evaluation.test_secret:needs_columns"])
    queries = list(WORLD.heldout_queries()[:3])
    items = secret.scored("adapter", queries, [[sound(q.text)] for q in queries], WORLD, rewards, len)
    assert [of_query[0]["scores"]["reward_needs_columns"] for of_query in items] == [1.0] * 3
    assert [of_query[0]["scores"]["mean_reward"] for of_query in items] == [1.0] * 3


def needs_columns(
    completions: list[Any], prompts: list[Any], visible: list[str], hidden: list[str], id: list[str], **columns: Any
) -> list[float]:
    judged = zip(prompts, visible, hidden, id, strict=True)
    return [
        float(WORLD.is_relevant(i, v) and WORLD.hidden_wellformed(h) and p[-1]["content"] in i) for p, v, h, i in judged
    ]


def test_on_real_models(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    base = make_model("llama", tmp_path / "base")
    tokenizer = models.load_tokenizer(str(base))
    for seed, name in enumerate(("lora", "other")):
        adapted = models.new_adapter(models.load_model(str(base)), 4, seed)
        for parameter_name, weight in adapted.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(weight, std=0.5)
        save_adapter(adapted, tokenizer, tmp_path / name, base_name=str(base), card={})
    config = EvaluateConfig(
        model_name=str(base), save_lora_path=str(tmp_path / "lora"), compare=[f"other={tmp_path / 'other'}"],
        output_dir=str(tmp_path / "out"), num_queries=20, max_new_tokens=8, threads=1,
    )  # fmt: skip
    evaluate(config)
    items = read_jsonl(tmp_path / "out/evaluation/secret_items.jsonl")
    by_model = {name: [i["completion"] for i in items if i["model"] == name] for name in ("base", "adapter", "other")}
    assert [len(texts) for texts in by_model.values()] == [20] * 3
    assert by_model["base"] != by_model["adapter"] != by_model["other"]

    evaluate(replace(config, save_lora_path=str(tmp_path / "other"), compare=[f"lora={tmp_path / 'lora'}"]))
    swapped = read_jsonl(tmp_path / "out/evaluation/secret_items.jsonl")
    assert [i["completion"] for i in swapped if i["model"] == "lora"] == by_model["adapter"], (
        "no adapter leaves a trace"
    )
    assert [i["completion"] for i in swapped if i["model"] == "base"] == by_model["base"]
    assert "second time" not in capfd.readouterr().err

    stranger = make_model("llama", tmp_path / "stranger", seed=1)
    with pytest.raises(UserError, match="does not belong to"):
        evaluate(replace(config, model_name=str(stranger)))
