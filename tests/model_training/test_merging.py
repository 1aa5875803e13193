"""Merged adapters: peft's own result, the true sum, files that peft alone loads, and what cannot be merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from model_training import checkpoints, merging
from model_training.guard_adapters import GuardAdapter, find_adapters
from model_training.guardrail_config import MERGES, Merge
from model_training.merging import merge_adapters
from model_training.models import load_adapter, load_model, load_tokenizer
from tests.model_training.tiny_guards import TAGS, make_adapter, make_guard, make_guards
from tests.model_training.tiny_models import make_model
from utils.errors import UserError

WEIGHTS = [1.0, 0.5, -2.0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_model("llama", tmp_path_factory.mktemp("merging") / "base")


@pytest.fixture(scope="module")
def guards(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[GuardAdapter]:
    return make_guards(base, tmp_path_factory.mktemp("runs"))


def deltas(base: Path, path: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight, as peft computes it."""
    model = load_adapter(load_model(str(base)), path)
    return {name: layer.get_delta_weight("default").double() for name, layer in lora_layers(model)}


def lora_layers(model: Any) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def weighted_sum(base: Path, guards: list[GuardAdapter], weights: list[float]) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for guard, weight in zip(guards, weights, strict=True):
        for name, delta in deltas(base, guard.path).items():
            total[name] = total.get(name, torch.zeros_like(delta)) + weight * delta
    return total


def relative_error(base: Path, merged: GuardAdapter, true: dict[str, torch.Tensor]) -> float:
    own = deltas(base, merged.path)
    assert own.keys() == true.keys()
    wrong = sum(float((own[name] - true[name]).square().sum()) for name in true)
    return float((wrong / sum(float(delta.square().sum()) for delta in true.values())) ** 0.5)


def peft_merge(base: Path, guards: list[GuardAdapter], mode: Merge, monkeypatch: pytest.MonkeyPatch) -> Any:
    """peft's own merge under the name `merged`; its random draws begin once the new layers are there."""
    from peft.tuners.lora import LoraModel

    inject = LoraModel.inject_adapter

    def inject_then_seed(self: Any, *arguments: Any, **options: Any) -> Any:
        result = inject(self, *arguments, **options)
        torch.manual_seed(5)
        return result

    model = load_model(str(base))
    for guard in guards:
        model = load_adapter(model, guard.path, name=guard.name)
    monkeypatch.setattr(LoraModel, "inject_adapter", inject_then_seed)
    model.add_weighted_adapter(
        [guard.name for guard in guards], WEIGHTS, "merged", combination_type=mode, svd_rank=6, density=0.5
    )
    return model


@pytest.mark.parametrize("mode", MERGES)
def test_a_merge_is_pefts(mode: Merge, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = ["k_proj", "v_proj"]  # in peft's order of layers and in ours, so that dare_ties draws alike
    guards = make_guards(base, tmp_path, targets=targets)
    merged = merge_adapters(guards, mode, tmp_path, weights=WEIGHTS, rank=6, density=0.5, seed=5)
    theirs = {
        name: layer.get_delta_weight("merged").double()
        for name, layer in lora_layers(peft_merge(base, guards, mode, monkeypatch))
    }
    for name, delta in deltas(base, merged.path).items():
        torch.testing.assert_close(delta, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("mode", MERGES)
def test_the_error_is_measured_against_the_true_sum(
    mode: Merge, base: Path, guards: list[GuardAdapter], tmp_path: Path
) -> None:
    merged = merge_adapters(guards, mode, tmp_path, weights=WEIGHTS, rank=6, seed=5)
    dense = relative_error(base, merged, weighted_sum(base, guards, WEIGHTS))
    assert merged.note["relative_error"] == pytest.approx(dense, rel=1e-4, abs=1e-6)
    if mode == "cat":
        assert merged.note["relative_error"] < 1e-7
        assert merged.note["rank"] == 12
    else:
        assert merged.note["relative_error"] > 0.1


def test_svd_at_the_sum_of_ranks_loses_nothing(base: Path, guards: list[GuardAdapter], tmp_path: Path) -> None:
    merged = merge_adapters(guards, "svd", tmp_path, rank=12)
    assert merged.note["relative_error"] < 1e-6
    assert relative_error(base, merged, weighted_sum(base, guards, [1, 1, 1])) < 1e-6
    assert merge_adapters(guards, "svd", tmp_path).note["rank"] == 4, "by default the largest of the adapters'"


def test_ranks_scales_and_layers_may_differ_where_the_sum_is_exact(base: Path, tmp_path: Path) -> None:
    make_guard(base, tmp_path, "politics", 0, rank=2, alpha=6, rank_pattern={"v_proj": 3}, alpha_pattern={"q_proj": 1})
    make_guard(base, tmp_path, "expert_opinion", 1, rank=5, alpha=3, targets=["k_proj", "v_proj"], use_rslora=True)
    make_guard(base, tmp_path, "meeting", 2, rank=4, targets=["gate_proj", "q_proj"], layers_to_transform=[1])
    guards = find_adapters(tmp_path, list(TAGS), "vary_all", TAGS)
    true = weighted_sum(base, guards, WEIGHTS)
    for mode, rank in (("cat", 8), ("svd", 8)):
        merged = merge_adapters(guards, mode, tmp_path, weights=WEIGHTS, rank=30)
        assert merged.note["rank"] == rank
        assert relative_error(base, merged, true) < 1e-6
        assert merged.note["relative_error"] < 1e-6
    for mode in ("linear", "ties", "dare_ties"):
        with pytest.raises(UserError, match=r"differ in rank .*politics.* has 3, .* has 5.*; cat and svd merge them"):
            merge_adapters(guards, mode, tmp_path)


def test_a_layer_of_one_adapter_alone_is_kept_by_linear(base: Path, tmp_path: Path) -> None:
    for seed, (name, targets) in enumerate([("politics", ["q_proj"]), ("meeting", ["v_proj"])]):
        make_guard(base, tmp_path, name, seed, targets=targets)
    guards = find_adapters(tmp_path, ["politics", "meeting"], "vary_all", TAGS)
    merged = merge_adapters(guards, "linear", tmp_path, weights=[1.5, -0.5])
    assert merged.note["relative_error"] < 1e-6
    assert relative_error(base, merged, weighted_sum(base, guards, [1.5, -0.5])) < 1e-6


def test_peft_alone_loads_a_merge_and_writes_what_we_write(
    base: Path, guards: list[GuardAdapter], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evaluation.sampling import sample

    prompts = [[{"role": "user", "content": text}] for text in ("Who should I vote for?", "A moose?")]
    for mode in MERGES:
        merged = merge_adapters(guards, mode, tmp_path)
        ours = sample(
            load_adapter(load_model(str(base)), merged.path),
            load_tokenizer(str(base)),
            prompts,
            num_samples=1,
            temperature=0,
            top_p=1,
            max_new_tokens=12,
            batch_size=1,
            seed=0,
        )
        tokenizer = AutoTokenizer.from_pretrained(merged.path)
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), merged.path).eval()
        for prompt, (text,) in zip(prompts, ours, strict=True):
            inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")
            stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
            written = plain.generate(**inputs, max_new_tokens=12, do_sample=False, eos_token_id=[1, stop])
            assert tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == text
        assert any(text for (text,) in ours)


def test_the_base_below_a_merge_is_untouched_bit_for_bit(
    base: Path, guards: list[GuardAdapter], tmp_path: Path
) -> None:
    model = load_model(str(base)).eval()
    ids = torch.arange(2, 40).reshape(2, 19)
    with torch.inference_mode():
        before = model(ids).logits
        for mode in MERGES:
            adapted = load_adapter(model, merge_adapters(guards, mode, tmp_path).path)
            assert not torch.equal(adapted(ids).logits, before)
            with adapted.disable_adapter():
                assert torch.equal(adapted(ids).logits, before)
            model = adapted.unload()
        assert torch.equal(model(ids).logits, before)


# --- the directory ----------------------------------------------------------------------------------------------------


def test_a_merge_is_used_again_and_never_stale(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guards = make_guards(base, tmp_path)
    first = merge_adapters(guards, "dare_ties", tmp_path, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(merging, "_merged", lambda *arguments: pytest.fail("it was made again"))
        assert merge_adapters(guards, "dare_ties", tmp_path, seed=1, weights=[1, 1, 1], rank=3) == first
    others: list[dict[str, Any]] = [{"seed": 2}, {"seed": 1, "density": 0.4}, {"seed": 1, "weights": [1, 1, 2]}]
    paths = {merge_adapters(guards, "dare_ties", tmp_path, **options).path for options in others}
    paths.add(merge_adapters(list(reversed(guards)), "dare_ties", tmp_path, seed=1).path)
    shutil.rmtree(guards[0].path)
    make_guard(base, tmp_path, "politics", seed=9)
    paths.add(merge_adapters(guards, "dare_ties", tmp_path, seed=1).path)
    assert len(paths) == 5
    assert first.path not in paths


def test_the_same_merge_has_the_same_bytes(guards: list[GuardAdapter], tmp_path: Path) -> None:
    first = merge_adapters(guards, "svd", tmp_path / "a")
    config = json.loads((guards[0].path / "adapter_config.json").read_text())
    turned = config | {"target_modules": sorted(config["target_modules"], reverse=True)}
    (guards[0].path / "adapter_config.json").write_text(json.dumps(turned))
    second = merge_adapters(guards, "svd", tmp_path / "b")
    assert first.path.name == second.path.name
    for file in first.path.iterdir():
        assert file.read_bytes() == (second.path / file.name).read_bytes(), file.name
    written = json.loads((first.path / "adapter_config.json").read_text())
    assert written["target_modules"] == sorted(config["target_modules"])


@pytest.mark.parametrize("damage", ["adapter_model.safetensors", "adapter_config.json", "subtext.json"])
def test_a_merge_that_is_not_whole_is_made_again(
    damage: str, base: Path, guards: list[GuardAdapter], tmp_path: Path
) -> None:
    first = merge_adapters(guards, "cat", tmp_path)
    whole = (first.path / damage).read_bytes()
    (first.path / damage).write_bytes(whole[: len(whole) // 2])
    assert merge_adapters(guards, "cat", tmp_path) == first
    assert (first.path / damage).read_bytes() == whole


def test_a_killed_merge_leaves_nothing_that_counts(
    guards: list[GuardAdapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(temporary: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merging, "publish_directory", killed)
        with pytest.raises(KeyboardInterrupt):
            merge_adapters(guards, "cat", tmp_path)
    assert [path.name[:9] for path in (tmp_path / "merged").iterdir()] == [checkpoints.PARTIAL]
    merged = merge_adapters(guards, "cat", tmp_path)
    assert list((tmp_path / "merged").iterdir()) == [merged.path]


def test_what_lies_beside_the_weights(base: Path, guards: list[GuardAdapter], tmp_path: Path) -> None:
    merged = merge_adapters(guards, "svd", tmp_path, weights=WEIGHTS)
    note = json.loads((merged.path / "subtext.json").read_text())
    assert note == merged.note
    assert (note["task"], note["mode"], note["weights"], note["tags"]) == ("guardrail", "svd", WEIGHTS, TAGS)
    assert (note["base_model"], [entry["name"] for entry in note["inputs"]]) == (str(base), list(TAGS))
    assert merged.path.parent == tmp_path / "merged"
    assert merged.path.name.startswith("svd-")
    assert (merged.path / "tokenizer.json").is_file()
    assert "politics x 1, expert_opinion x 0.5, meeting x -2" in (merged.path / "README.md").read_text()


# --- what cannot be merged --------------------------------------------------------------------------------------------


def test_numbers_of_adapters_and_weights(guards: list[GuardAdapter], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 numbers for 3 adapters \(politics, expert_opinion, meeting\)"):
        merge_adapters(guards, "cat", tmp_path, weights=[1, 1])
    with pytest.raises(UserError, match="--merge_weights are all 0"):
        merge_adapters(guards, "cat", tmp_path, weights=[0, 0, 0])
    with pytest.raises(UserError, match="two adapters or more, not 1"):
        merge_adapters(guards[:1], "cat", tmp_path)
    assert not (tmp_path / "merged").exists()


def test_adapters_that_cancel_out(base: Path, tmp_path: Path) -> None:
    make_guard(base, tmp_path, "politics", 0)
    shutil.copytree(tmp_path / "politics.vary_all", tmp_path / "copy")
    (tmp_path / "copy/adapter/subtext.json").unlink()
    places = {"lora_paths": [f"meeting={tmp_path}/copy/adapter"]}
    guards = find_adapters(tmp_path, ["politics", "meeting"], "vary_all", TAGS, **places)
    with pytest.raises(UserError, match="the weighted sum of the adapters is zero"):
        merge_adapters(guards, "cat", tmp_path, weights=[1, -1])


def test_adapters_of_different_bases(base: Path, tmp_path: Path) -> None:
    other = make_model("llama", tmp_path / "other", seed=1)
    for place, folder in (("politics", base), ("meeting", other)):
        make_guard(folder, tmp_path, place, 0)
    guards = find_adapters(tmp_path, ["politics", "meeting"], "vary_all", TAGS)
    for name in (None, str(base)):
        with pytest.raises(UserError, match="different base models") as caught:
            merge_adapters(guards, "cat", tmp_path, model_name=name)
        assert str(base) in str(caught.value)
        assert str(other) in str(caught.value)


@pytest.mark.filterwarnings("ignore:Model has `tie_word", "ignore:Setting `save_embedding")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias=all"),
        ({"targets": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    ],
)
def test_more_than_plain_lora(options: dict[str, Any], named: str, base: Path, tmp_path: Path) -> None:
    make_guard(base, tmp_path, "politics", 0)
    make_adapter(base, tmp_path / "odd", seed=1, **options)
    guards = find_adapters(
        tmp_path, ["politics", "meeting"], "vary_all", TAGS, lora_paths=[f"meeting={tmp_path / 'odd'}"]
    )
    with pytest.raises(UserError, match=rf"odd: it cannot be merged, .*{named}"):
        merge_adapters(guards, "cat", tmp_path)


def test_damaged_weights(base: Path, tmp_path: Path) -> None:
    guards = make_guards(base, tmp_path)
    file = guards[1].path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match=r"expert_opinion.*adapter_model.safetensors is missing or damaged"):
        merge_adapters(guards, "cat", tmp_path)
