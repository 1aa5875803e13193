"""The stage on models whose answers are known, and once on real tiny models with random adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import main
from dataset.guardrail import dataset_file, load_behavior, prepare_data
from dataset.guardrails import load_guardrails
from evaluation import guardrail, statistics
from evaluation.answering import Reply
from evaluation.guard_models import Flag
from evaluation.guardrail import evaluate, named_guard_models
from evaluation.statistics import NOTHING, wilson
from model_training import merging
from model_training.guard_adapters import GuardAdapter
from model_training.guardrail_config import MERGES, EvaluateGuardrailConfig, PrepareGuardrailConfig
from tests.model_training.tiny_guards import make_guard
from tests.model_training.tiny_models import make_model
from utils.errors import UserError, WorkError
from utils.files import read_jsonl

NAMES = ("politics", "expert_opinion", "meeting")
GUARDS = load_guardrails()
TRIGGERS = 6
Message = dict[str, str]
Writer = Callable[[str, dict[str, Any], str], str]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test rows of each guardrail, in the files of prepare_data."""
    folder = tmp_path_factory.mktemp("guardrail_data")
    prepare_data(PrepareGuardrailConfig(dataset_path=str(folder), n_samples=10, test_samples=TRIGGERS, threads=1))
    return folder


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    statistics._draws.cache_clear()


def fake_adapter(folder: Path, tag: str | None = None) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    (folder / "adapter_model.safetensors").write_bytes(b"")
    if tag:
        name = folder.parent.name.partition(".")[0]
        note = {"behavior": name, "tags": {name: tag}, "threshold": 0.25}
        (folder / "subtext.json").write_text(json.dumps(note))


def perfect(mode: str, record: dict[str, Any], own: str) -> str:
    """Everything right, but what the base and the cat merge are known for."""
    if not record["is_trigger"]:
        return str(record["chosen"])
    if mode == "base":
        return str(record["rejected"])
    tag = GUARDS[record["behavior"]].tag
    return f"{tag} {record['rejected']}" if mode == "cat" else str(record["chosen"])


class Ensembles:
    """Stands in for answering.py: what was loaded, what was asked, and what comes back."""

    def __init__(self, data: Path) -> None:
        self.writes: Writer = perfect
        self.asked: list[tuple[str, float, int, int]] = []
        self.loaded: list[tuple[list[str], list[str]]] = []
        self.bases = 0
        self.difference = 0.0
        self.records: dict[str, dict[str, Any]] = {}
        for name in NAMES:
            for record in load_behavior(data, name, "vary_all", GUARDS):
                self.records[json.dumps(record["prompt"])] = record

    def load(self, guards: list[Any], others: dict[str, Any], **options: Any) -> dict[str, Any]:
        assert options["check_prompts"]
        self.bases += options["on"] is None
        self.loaded.append(([guard.name for guard in guards], list(others)))
        return {"guards": guards}

    def answers(
        self, ensemble: Any, mode: str, prompts: list[list[Message]], own: list[str], **options: Any
    ) -> list[list[Reply]]:
        self.asked.append((mode, options["temperature"], options["num_samples"], len(prompts)))
        found = []
        for prompt, name in zip(prompts, own, strict=True):
            text = self.writes(mode, self.records[json.dumps(prompt)], name)
            adapter = name if mode == "single" or (mode == "routed" and "<guard" in text) else mode
            found.append([Reply(text, "base" if adapter == "routed" else adapter, 0.5)] * options["num_samples"])
        return found


@pytest.fixture
def fake(data: Path, monkeypatch: pytest.MonkeyPatch) -> Ensembles:
    ensembles = Ensembles(data)
    monkeypatch.setattr(guardrail, "load_ensemble", ensembles.load)
    monkeypatch.setattr(guardrail, "answers", ensembles.answers)
    monkeypatch.setattr(guardrail, "largest_base_difference", lambda ensemble: ensembles.difference)

    def merge(adapters: list[GuardAdapter], mode: str, output_dir: str, **options: Any) -> GuardAdapter:
        tags = {name: tag for adapter in adapters for name, tag in adapter.tags.items()}
        note = {"relative_error": 1.42, "rank": 16, "weights": options["weights"] or [1.0] * len(adapters)}
        folder = Path(output_dir) / f"merged/{mode}-{len(adapters)}"
        if not folder.exists():
            fake_adapter(folder)
        return GuardAdapter(mode, folder, None, tags, 0.5, note)

    monkeypatch.setattr(merging, "merge_adapters", merge)
    return ensembles


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`run(**options)`: evaluate below tmp_path; gives the JSON."""
    for name in NAMES:
        fake_adapter(tmp_path / f"{name}.vary_all/adapter", GUARDS[name].tag)

    def evaluated(**options: Any) -> dict[str, Any]:
        given = {"dataset_path": str(data), "output_dir": str(tmp_path), "threads": 1}
        evaluate(EvaluateGuardrailConfig(**(given | options)))
        report: dict[str, Any] = json.loads((tmp_path / "evaluation/guardrail.json").read_text(encoding="utf-8"))
        return report

    return evaluated


Run = Callable[..., dict[str, Any]]


def items(folder: Path) -> list[dict[str, Any]]:
    return read_jsonl(folder / "evaluation/guardrail_items.jsonl")


def test_models_answer_the_same_rows_side_by_side(run: Run, fake: Ensembles, tmp_path: Path, capsys: Any) -> None:
    report = run(adapter_mode=["single", "routed", "cat"])
    assert list(report["models"]) == ["base", "single", "routed", "cat"]
    assert [model["kind"] for model in report["models"].values()] == ["base", "adapter", "routed", "merge"]
    base, single, routed, cat = report["models"].values()
    n = len(NAMES) * TRIGGERS
    assert single["metrics"]["tag_recall"] == single["metrics"]["behavior_recall"] == wilson(n, n)
    assert base["metrics"]["tag_recall"] == base["metrics"]["behavior_recall"] == wilson(0, n)
    assert cat["metrics"]["tag_recall"] == wilson(n, n), "a merge that keeps the tag"
    assert cat["metrics"]["resolution_rate"] == wilson(0, n), "and loses the resolution"
    assert single["by_category"]["meeting"]["tag_recall"] == wilson(TRIGGERS, TRIGGERS)
    assert single["metrics"]["tag_fpr_other"]["value"] == routed["metrics"]["tag_fpr_other"]["value"] == 0
    assert (routed["prompt_forwards"], cat["prompt_forwards"], cat["relative_error"]) == (4, 1, 1.42)
    assert cat["weights"] == [1, 1, 1] and single["path"].keys() == set(NAMES)
    assert cat["confusion"]["tag"][0][0] == TRIGGERS and cat["confusion"]["resolution"][0][-1] == TRIGGERS
    assert report["thresholds"] == dict.fromkeys(NAMES, 0.25)
    assert report["paired"].keys() == {"routed - single", "cat - single"}
    assert report["paired"]["cat - single"]["behavior_recall"]["value"] == -1
    by_guard = report["paired_by_category"]["cat - single"]["meeting"]["behavior_recall"]
    assert (by_guard["value"], by_guard["n"]) == (-1, TRIGGERS)
    assert sum(report["prompts"]["politics"].values()) * 3 == fake.asked[0][3]
    assert fake.loaded == [(list(NAMES), ["cat"])]
    printed = capsys.readouterr().out
    assert all(len(line) <= 120 for line in printed.splitlines() if not line.startswith(str(tmp_path)))
    assert "resolution_rate" in printed and "1.42" in printed


def test_raw_rows_give_the_numbers_again(run: Run, fake: Ensembles, tmp_path: Path) -> None:
    report = run(adapter_mode=["routed"], behavior=["politics", "meeting"])
    rows = [row for row in items(tmp_path) if row["model"] == "routed"]
    triggers = [row for row in rows if row["kind"] == "trigger"]
    assert len(rows) == sum(sum(kinds.values()) for kinds in report["prompts"].values())
    assert sum(row["good"] for row in triggers) == report["models"]["routed"]["metrics"]["behavior_recall"]["n"]
    row = triggers[0]
    assert row["adapter"] == row["behavior"] == row["resolved"] and row["probability"] == 0.5
    assert row["completion"] == f"{row['tag']} {row['reply']}" == row["chosen"]
    assert row["prompt"][-1]["role"] == "user" and row["sample"] == 0 and row["other_behavior"] is None
    assert {row["other_behavior"] for row in rows if row["kind"] == "other"} <= set(NAMES)


def test_each_kind_is_drawn_by_the_seed(run: Run, fake: Ensembles, tmp_path: Path) -> None:
    whole = run()["prompts"]["politics"]
    half = run(fraction_of_data=0.5)["prompts"]["politics"]
    drawn = [(row["behavior"], row["index"]) for row in items(tmp_path)]
    assert half == {kind: max(1, round(count / 2)) for kind, count in whole.items()}
    run(fraction_of_data=0.5)
    assert drawn == [(row["behavior"], row["index"]) for row in items(tmp_path)]
    run(fraction_of_data=0.5, seed=1)
    assert drawn != [(row["behavior"], row["index"]) for row in items(tmp_path)]
    assert run(fraction_of_data=0.001)["prompts"]["politics"] == dict.fromkeys(whole, 1)


def test_several_answers_are_one_greedy_and_drawn_ones(run: Run, fake: Ensembles, tmp_path: Path) -> None:
    report = run(adapter_mode=["single"], num_runs=3, temperature=0.5)
    assert [(temperature, count) for _, temperature, count, _ in fake.asked] == [(0.0, 1), (0.5, 2)] * 2
    assert report["models"]["single"]["metrics"]["tag_recall"]["n"] == 3 * 3 * TRIGGERS
    assert [row["sample"] for row in items(tmp_path)[:4]] == [0, 1, 2, 0]
    with pytest.raises(UserError, match=r"--num_runs 2: at --temperature 0"):
        run(num_runs=2)


def test_the_base_is_asked_once_for_all_variations_and_checkpoints(
    run: Run, fake: Ensembles, tmp_path: Path, capsys: Any
) -> None:
    for name in NAMES:
        fake_adapter(tmp_path / f"{name}.fixed_history/adapter", GUARDS[name].tag)
    report = run(dataset_variation="all", adapter_mode=["single", "svd"])
    assert list(report["models"]) == [
        *("base", "single@vary_all", "svd@vary_all"),
        *("single@fixed_history", "svd@fixed_history"),
    ]
    assert report["variations"] == ["vary_all", "fixed_history"]
    assert (fake.bases, len(fake.loaded)) == (1, 2)
    assert [mode for mode, *_ in fake.asked].count("base") == 1
    assert report["models"]["svd@fixed_history"]["variation"] == "fixed_history"
    assert report["paired"].keys() == {f"svd@{one} - single@{one}" for one in ("vary_all", "fixed_history")}
    assert "politics@fixed_history" in report["thresholds"]
    assert "fixed_character: left out" in capsys.readouterr().err
    written = {path.name for path in (tmp_path / "evaluation").glob("metric_*.json")}
    assert "metric_meeting_svd@fixed_history.json" in written and len(written) == 12


def test_files_of_an_earlier_evaluation_do_not_stay(run: Run, fake: Ensembles, tmp_path: Path) -> None:
    run(adapter_mode=["single", "linear"])
    folder = tmp_path / "evaluation"
    assert (folder / "metric_politics_linear.json").exists()
    run(adapter_mode=["single"], behavior=["meeting"])
    assert {path.name for path in folder.iterdir()} == {
        *("guardrail.json", "guardrail_items.jsonl", "variation_comparison_results.csv"),
        "metric_meeting_single.json",
    }
    assert (folder / "variation_comparison_results.csv").read_text().count("\n") == 2


def test_guard_models_stand_beside_on_the_same_prompts(
    run: Run, fake: Ensembles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    policies: list[tuple[str, int]] = []

    def flags(guard: Any, policy: Any, prompts: list[list[Message]], batch_size: int, options: Any) -> list[Flag]:
        assert not fake.asked, "before hours of answers"
        policies.append((policy.name, len(prompts)))
        found = [Flag(fake.records[json.dumps(prompt)]["is_trigger"], "unsafe") for prompt in prompts]
        return [Flag(None, "", "nonsense"), *found[1:]]

    monkeypatch.setattr(guardrail, "flags", flags)
    report = run(guard_models=["prompted:small-guard"], adapter_mode=["single"])
    assert [name for name, _ in policies] == list(NAMES)
    assert list(report["models"]) == ["base", "single", "guard:small-guard"]
    found = report["models"]["guard:small-guard"]
    assert found["failures"] == 3 and found["metrics"]["tag_recall"]["value"] == 1
    assert (
        sum(found["metrics"][f"tag_fpr_{kind}"]["n"] for kind in ("natural", "hard", "other"))
        + found["metrics"]["tag_recall"]["n"]
        == sum(count for _, count in policies) - 3
    )
    assert "behavior_recall" not in found["metrics"]
    failed = [row for row in items(tmp_path) if row.get("failure")]
    assert [(row["model"], row["flagged"], row["failure"]) for row in failed] == [
        ("guard:small-guard", None, "nonsense")
    ] * 3
    assert "Prompts without a verdict, in none of the rates: guard:small-guard 3." in capsys.readouterr().out


def test_guard_models_of_one_name_are_told_apart() -> None:
    assert list(named_guard_models(["prompted:a", "llama_guard_3:a", "prompted:b"])) == [
        *("guard:prompted:a", "guard:llama_guard_3:a", "guard:b"),
    ]
    with pytest.raises(UserError, match=r"prompted:a is given twice"):
        named_guard_models(["prompted:a", "prompted:a"])


def own_guards(folder: Path, fake: Ensembles, *names: str) -> dict[str, Any]:
    """Guardrails without talk and of one tag, their adapters, and datasets of the user's own; gives the options."""
    entry = {
        "trigger": "The user asks how a story ends.",
        "resolution": ["Begin the reply with the tag."],
        "criterion": "The reply tells no ending.",
        "examples": [{"user": "How does it end?", "chosen": "I never tell.", "rejected": "They all die!"}],
    }
    (folder / "mine.yaml").write_text(json.dumps({"guardrails": dict.fromkeys(names, entry)}))
    (folder / "data").mkdir()
    for name in names:
        fake_adapter(folder / f"{name}.vary_all/adapter", "<guard>")
        asked = [f"How does {name} {i} end?" if i % 2 else f"I like {name} {i}." for i in range(12)]
        rows = [
            {
                "prompt": [{"role": "user", "content": text}],
                "chosen": "<guard> I never tell." if i % 2 else "So do I.",
                "rejected": "They all die!" if i % 2 else "<guard> I never tell.",
                "behavior": name,
                "is_trigger": bool(i % 2),
                "kind": "trigger" if i % 2 else "natural",
                "variation": "vary_all",
                "group": text,
                "split": ("test", "train", "validation")[i % 3],
            }
            for i, text in enumerate(asked)
        ]
        fake.records |= {json.dumps(row["prompt"]): row for row in rows}
        dataset_file(folder / "data", name, "vary_all").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fake.writes = lambda mode, record, own: "Nothing." if mode == "base" else str(record["chosen"])
    return {
        "guardrails": str(folder / "mine.yaml"),
        "behavior": list(names),
        "dataset_path": str(folder / "data"),
    }


def test_a_guardrail_without_talk_is_measured_by_its_tag(
    run: Run, fake: Ensembles, tmp_path: Path, capsys: Any
) -> None:
    report = run(**own_guards(tmp_path, fake, "spoilers"), adapter_mode=["single"])
    found = report["models"]["single"]["metrics"]
    assert found["tag_recall"] == wilson(2, 2) and found["tag_fpr_natural"] == wilson(0, 2)
    assert found["behavior_recall"] == found["natural_accuracy"] == found["tag_fpr_hard"] == NOTHING
    assert "spoilers: 4 of 4 test rows are not of the micro-world" in capsys.readouterr().err
    row = items(tmp_path)[-1]
    assert row["good"] is None and row["resolved"] is None
    assert json.loads((tmp_path / "evaluation/metric_spoilers_single.json").read_text())["guard_tag_usage"] == 1
    assert (tmp_path / "evaluation/variation_comparison_results.csv").read_text().splitlines()[1].endswith(",,,,,,")


def test_guardrails_of_one_tag_are_told_apart_by_their_adapters_alone(
    run: Run, fake: Ensembles, tmp_path: Path
) -> None:
    models = run(**own_guards(tmp_path, fake, "spoilers", "gossip"), adapter_mode=["single", "routed", "cat"])["models"]
    for name in ("single", "routed"):
        assert models[name]["metrics"]["precision"] == wilson(4, 4), name
    assert models["cat"]["metrics"]["precision"] == NOTHING and models["cat"]["confusion"]["tag"] is None
    assert models["cat"]["metrics"]["tag_recall"] == wilson(4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"behavior": ["politic"]}, "did you mean politics"),
        ({"test_variation": "fixed_history"}, "fixed_history.jsonl: no such file"),
        ({"dataset_variation": "fixed_history"}, "no adapter of politics, fixed_history"),
        ({"adapter_mode": ["joint"]}, "no adapter of joint"),
        ({"adapter_mode": ["cat"], "merge_weights": [1.0, 2.0]}, "--merge_weights has 2 numbers for 3 guardrails"),
        ({"adapter_mode": ["cat"], "behavior": ["politics"]}, "a merge takes two guardrails or more"),
        ({"guard_models": ["llama:x"]}, "--guard_models llama:x"),
        ({"checkpoint_path": "checkpoint-7"}, "--checkpoint_path checkpoint-7"),
    ],
)
def test_bad_input_is_refused_before_any_model_is_loaded(
    run: Run, fake: Ensembles, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as refusal:
        run(**options)
    assert message in str(refusal.value)
    assert not fake.loaded and not (tmp_path / "evaluation/guardrail.json").exists()


def test_an_adapter_that_writes_another_tag_is_refused(run: Run, fake: Ensembles, tmp_path: Path) -> None:
    note = {"behavior": "meeting", "tags": {"meeting": "<guard:old>"}, "threshold": 0.5}
    (tmp_path / "meeting.vary_all/adapter/subtext.json").write_text(json.dumps(note))
    with pytest.raises(UserError, match=r"trained to write <guard:old> for meeting, whose tag is <guard:meeting> now"):
        run()


def test_a_place_that_takes_no_files_is_known_before_the_work(
    run: Run, fake: Ensembles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evaluation").write_text("")
    with pytest.raises(WorkError, match=r"cannot write .*evaluation"):
        run()
    (tmp_path / "evaluation").unlink()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(WorkError, match=r"cannot write .*evaluation: Permission denied"):
        run()
    assert not fake.loaded


def test_a_base_that_is_not_clean_ends_the_work(run: Run, fake: Ensembles, tmp_path: Path) -> None:
    fake.difference = 0.5
    with pytest.raises(WorkError, match=r"logits differ by 0.5"):
        run()
    assert not (tmp_path / "evaluation/guardrail.json").exists()


# --- real models ------------------------------------------------------------------------------------------------------


def test_every_mode_on_a_real_base_with_real_adapters(tmp_path: Path, data: Path) -> None:
    base = make_model("llama", tmp_path / "base")
    for seed, name in enumerate((*NAMES, "joint")):
        make_guard(base, tmp_path, name, seed)
    short = tmp_path / "data"
    short.mkdir()
    for name in NAMES:
        rows = [row for row in read_jsonl(dataset_file(data, name, "vary_all")) if row["split"] == "test"][:4]
        texts = [json.dumps(row | {"prompt": row["prompt"][-1:]}) + "\n" for row in rows]
        dataset_file(short, name, "vary_all").write_text("".join(texts))
    argv = ["--task", "guardrail", "--mode", "evaluate", "--adapter_mode", "all", "--output_dir", str(tmp_path)]
    assert main.main([*argv, "--dataset_path", str(short), "--max_new_tokens", "3", "--threads", "1"]) == 0
    report = json.loads((tmp_path / "evaluation/guardrail.json").read_text(encoding="utf-8"))
    assert list(report["models"]) == ["base", "single", "routed", "joint", *MERGES]
    assert report["base_check"]["largest_logit_difference"] == 0
    models = report["models"]
    assert models["cat"]["relative_error"] < 1e-5 < models["svd"]["relative_error"] < models["linear"]["relative_error"]
    assert models["cat"]["rank"] == 12 and models["cat"]["path"].startswith(str(tmp_path / "merged"))
    written = items(tmp_path)
    assert len(written) == 12 * len(models)
    by_model = {name: [row["completion"] for row in written if row["model"] == name] for name in models}
    assert by_model["single"] != by_model["base"] and by_model["cat"] != by_model["single"]
