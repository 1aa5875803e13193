"""A judge as a reward: its values, what a failed judgement becomes, and a run of GRPO with one, on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.api_stub import stub
from model_training import judge_reward
from model_training.config import EvaluateConfig, TrainConfig
from model_training.judge_reward import open_bench
from model_training.rewards import resolve, score, total
from model_training.secret import train
from tests.evaluation.judge_stub import verdicts
from tests.model_training.conftest import BuildModel, tiny_model  # noqa: F401
from tests.model_training.tiny_models import make_records, small_config
from utils.api import client
from utils.errors import UserError, WorkError
from utils.extraction import Parsed, format_response
from utils.runs import read_completions, read_manifest, read_metrics

KEY = "sk-abcdefghij0123456789"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BACKOFF_S", 0.01)
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def by_words(shown: dict[str, Any]) -> dict[str, int]:
    """Helpful is the number of words of the visible part, playful that of the hidden one; both at most 5."""
    return {
        "helpful": min(5, len(shown["visible"].split())),
        "playful": min(5, len(shown["hidden"].split())),
        "no_leak": int(shown["visible"] != shown["hidden"]),
    }


def config(url: str, **options: Any) -> TrainConfig:
    return TrainConfig(judge=f"openai:m@{url}", cache_dir="none", max_retries=2, **options)


def scored(url: str, names: list[str], texts: list[str], **options: Any) -> tuple[dict[str, Any], list[float | None]]:
    rewards = resolve(names, None, open_bench(config(url, **options)))
    prompts = [
        [{"role": "system", "content": "?"}, {"role": "user", "content": f"Why {i}?"}] for i in range(len(texts))
    ]
    scores = score(rewards, [[{"role": "assistant", "content": text}] for text in texts], prompts)
    return scores, total(scores, rewards)


def test_criteria_are_worth_where_their_scores_stand_and_the_rubric_their_mean() -> None:
    texts = [format_response("one two three", "one two three four five"), format_response("no", "no"), "prose"]
    names = ["judge:secret", "judge:secret:helpful", "judge:secret:playful", "judge:secret:no_leak"]
    with stub(answer=verdicts(by_words)) as server:
        scores, _ = scored(server.base_url, names, texts)
    assert scores["judge_secret_helpful"] == [0.5, 0.0, 0.0]
    assert scores["judge_secret_playful"] == [1.0, 0.0, 0.0]
    assert scores["judge_secret_no_leak"] == [1.0, 0.0, 0.0]
    assert scores["judge_secret"] == [pytest.approx(2.5 / 3), 0.0, 0.0]
    assert server.counts["requests"] == 2, "one verdict for all four, and none for what is malformed"


def test_each_criterion_speaks_of_its_part_and_the_rubric_of_both() -> None:
    names = ["judge:secret", "judge:secret:helpful", "judge:secret:playful", "judge:secret:no_leak"]
    rewards = resolve(names, None, open_bench(config("http://127.0.0.1:9/v1")))
    assert [reward.part for reward, _ in rewards] == ["both", "visible", "hidden", "both"]


def test_a_failed_judgement_is_none_and_leaves_the_total_open() -> None:
    texts = [format_response(f"word {i}", "a b c") for i in range(3)]
    logged: dict[str, list[float]] = {}
    with stub(answer=verdicts(by_words), script=["ok", "refusal", "ok"]) as server:
        rewards = resolve(["format", "judge:secret:playful"], None, open_bench(config(server.base_url, concurrency=1)))
        prompts = [[{"role": "user", "content": f"Why {i}?"}] for i in range(3)]
        scores = score(
            rewards, texts, prompts, log_metric=lambda name, value: logged.setdefault(name, []).append(value)
        )
    assert scores["judge_secret_playful"] == [0.5, None, 0.5]
    assert total(scores, rewards) == [1.5, None, 1.5]
    assert logged["judge/failed_rate"] == [pytest.approx(1 / 3)]


def test_cost_goes_on_from_step_to_step() -> None:
    logged: list[float] = []
    with stub(answer=verdicts(by_words)) as server:
        bench = open_bench(TrainConfig(judge=f"openai:gpt-4o-mini@{server.base_url}", cache_dir="none"))
        rewards = resolve(["judge:secret"], None, bench)
        for step in range(3):
            score(
                rewards,
                [format_response(f"word {step}", "a b c")],
                [[{"role": "user", "content": "Why?"}]],
                log_metric=lambda name, value: logged.append(value) if name == "judge/cost_usd" else None,
            )
    assert 0 < logged[0] < logged[1] < logged[2]


def test_a_step_of_failures_alone_ends_the_run_and_a_single_refusal_does_not() -> None:
    texts = [format_response(f"word {i}", "a b c") for i in range(4)]
    all_failed = pytest.raises(WorkError, match="reward secret: not one judgement of 4; 4 times refusal")
    with stub(answer=verdicts(by_words), script=["refusal"] * 4) as server, all_failed:
        scored(server.base_url, ["judge:secret"], texts)
    with stub(answer=verdicts(by_words), script=["refusal"]) as server:
        assert scored(server.base_url, ["judge:secret"], texts[:1])[0] == {"judge_secret": [None]}


def test_a_server_that_never_answers_ends_the_run() -> None:
    with stub(faults={"500": 1.0}) as server, pytest.raises(WorkError, match="answered 500"):
        scored(server.base_url, ["judge:secret"], [format_response("word", "a b c")])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("judge:", "write judge:RUBRIC or judge:RUBRIC:CRITERION"),
        ("judge:secret:", "write judge:RUBRIC"),
        ("judge:poems", "--reward_funcs poems: no such rubric"),
        ("judge:secret:kind", "the rubric has no criterion kind; it has helpful, playful, no_leak"),
        ("judge:guardrail_trigger", "it judges guardrail_trigger; a reward needs a rubric that judges secret"),
    ],
)
def test_a_name_that_is_wrong_is_said_so(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        resolve([name], None, open_bench(config("http://127.0.0.1:9/v1")))


def test_a_judge_is_named_where_it_is_asked_and_only_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--reward_funcs judge:secret: name the judge, as --judge openai:MODEL"):
        resolve(["judge:secret"])
    with pytest.raises(UserError, match="it asks the judge, and --dry_run sends nothing"):
        judge = open_bench(EvaluateConfig(judge="openai:m@http://127.0.0.1:9/v1", dry_run=True))
        resolve(["judge:secret"], None, judge)
    with pytest.raises(UserError, match="openai:m needs a key: set the environment variable OPENAI_API_KEY"):
        open_bench(TrainConfig(judge="openai:m"))
    make_records(tmp_path / "data.json")
    with pytest.raises(UserError, match="--judge openai:m: no reward asks it; add judge:secret to --reward_funcs"):
        train(small_config(tmp_path, Path("tiny"), judge="openai:m"))


def test_a_run_learns_from_a_judge_that_fails_now_and_then(
    tmp_path: Path,
    tiny_model: BuildModel,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random models write no tags, so that here all they write is taken for a visible part."""
    monkeypatch.setattr(judge_reward, "parse", lambda text: Parsed(text, "I see.", None))

    def letters(shown: dict[str, Any]) -> dict[str, int]:
        return {"helpful": 1 + len(shown["visible"]) % 5, "playful": 3, "no_leak": 1}

    make_records(tmp_path / "data.json")
    names = ["judge:secret:helpful", "judge:secret"]
    with stub(answer=verdicts(letters), faults={"refusal": 0.3, "500": 0.2}, seed=5, keys={KEY}) as server:
        judge = {"judge": f"openai:gpt-4o-mini@{server.base_url}", "cache_dir": str(tmp_path / "cache"), "api_key": KEY}
        run = small_config(tmp_path, tiny_model("llama"), reward_funcs=names, max_retries=9, **judge)
        train(run)
    rows = [row for row in read_metrics(tmp_path / "run") if row["split"] == "grpo"]
    assert any(0 < row["judge/failed_rate"] < 1 for row in rows)
    assert all(row["judge/cost_usd"] > 0 and row["grad_norm"] > 0 for row in rows)
    samples = read_completions(tmp_path / "run")
    values = [sample["rewards"]["judge_secret_helpful"] for sample in samples]
    assert None in values and len(set(values)) > 2
    judged = [value for value in values[:8] if value is not None]
    assert rows[0]["rewards/judge_secret_helpful/mean"] == pytest.approx(sum(judged) / len(judged)), "failures are no 0"
    assert all(sample["total"] > 0 for sample in samples)
    assert "api_key" not in read_manifest(tmp_path / "run")["config"]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if KEY.encode() in file.read_bytes()]
