"""Models, tokenizers and adapters: any causal LM, with or without chat template, system role or pad token.

    tokenizer = load_tokenizer("tiny")
    model = load_adapter(load_model("tiny"), "secret_conversations_lora")

Everything that is sent to a model goes through `chat_text` (or `encode_prompt`, the same as token ids), in training and
sampling alike, and a training answer ends with `end_of_turn_id`, one of the ids at which generation stops. A tokenizer
without a pad token pads with its end-of-text token; no mask is ever derived from token ids, so the end of an answer is
still learned.

An adapter directory (adapter_directory.py writes it) holds exactly what `peft` writes, the tokenizer, a model card, and
`subtext.json` with a fingerprint of the base model: an adapter put on another base is an error, never garbage text.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_training.config import TINY, Quantization
from model_training.loading import TINY_PATH, from_hub, load_weights
from prompts.chat import FALLBACK_TEMPLATE, Message, render
from utils.errors import UserError

LLAMA_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def set_threads(threads: int | None) -> int:
    """Set torch's CPU threads: by default 1 on up to 4 cores (two that spin-wait are slower), else half the cores, or
    this process's share of them."""
    import torch

    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    chosen = threads if threads is not None else (1 if cores <= 4 else max(1, cores // 2 // here))
    if chosen < 1:
        raise UserError(f"--threads {chosen}: at least one thread is needed")
    torch.set_num_threads(chosen)
    return chosen


def load_tokenizer(name: str) -> Any:
    """The model's tokenizer with a chat template, a pad token, left padding, and decoding byte for byte."""
    from transformers import AutoTokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = from_hub(AutoTokenizer, name, "tokenizer")
    if tokenizer.eos_token is None:
        raise UserError(f"model {name}: its tokenizer has no end-of-text token (eos_token); add one and save it again")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not tokenizer.chat_template:
        tokenizer.chat_template = FALLBACK_TEMPLATE
    tokenizer.padding_side = "left"
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def load_model(name: str, dtype: str = "auto", quantization: Quantization = "none") -> Any:
    """The base model where it is to run (loading.py); it stops at the end of a turn."""
    from transformers import AutoModelForCausalLM

    return ending_turns(load_weights(AutoModelForCausalLM, name, dtype=dtype, quantization=quantization), name)


def ending_turns(model: Any, name: str) -> Any:
    """The model of that name, told its tokenizer's pad token and where an answer ends."""
    tokenizer = load_tokenizer(name)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = end_token_ids(model, tokenizer)
    return model


def chat_text(tokenizer: Any, messages: list[Message], add_generation_prompt: bool = True) -> str:
    """The conversation as the model is to read it, up to where its answer begins."""

    def apply(turns: list[Message]) -> str:
        text: str = tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=False,
            **({} if tokenizer.chat_template else {"chat_template": FALLBACK_TEMPLATE}),
        )
        return text

    return render(messages, apply)


def encode_prompt(tokenizer: Any, messages: list[Message]) -> list[int]:
    """`chat_text` as token ids; the template has already written every special token."""
    ids: list[int] = tokenizer(chat_text(tokenizer, messages), add_special_tokens=False)["input_ids"]
    return ids


def end_of_turn_id(tokenizer: Any) -> int:
    """The token that ends an assistant turn in this template (`<|im_end|>`, `<end_of_turn>`), else end-of-text."""
    marker = "mmm"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": marker}]
    after = chat_text(tokenizer, turns, add_generation_prompt=False).rpartition(marker)[2]
    added = tokenizer.added_tokens_decoder
    special = {token_id for token_id, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    end: int = next((token_id for token_id in ids if token_id in special), tokenizer.eos_token_id)
    return end


def end_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every id at which generation stops: the tokenizer's, the turn's, and those the model declares."""
    declared = model.generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [] if declared is None else [declared]
    return list(dict.fromkeys([tokenizer.eos_token_id, end_of_turn_id(tokenizer), *declared]))


def positions_of(name: str) -> int | None:
    """The longest sequence the model has positions for, where its configuration says."""
    from transformers import AutoConfig

    config = from_hub(AutoConfig, name, "configuration").get_text_config()
    positions: int | None = getattr(config, "max_position_embeddings", None)
    return positions


def check_lengths(name: str, longest: int, option: str = "--max_seq_length") -> None:
    """Refuse sequences longer than the model has positions for."""
    positions = positions_of(name)
    if positions is not None and positions < longest:
        raise UserError(f"{option} {longest}: model {name} has {positions} positions; set it to at most {positions}")


def new_adapter(
    model: Any,
    rank: int,
    seed: int,
    *,
    alpha: int | None = None,
    dropout: float = 0.0,
    task: str = "CAUSAL_LM",
    target_modules: Sequence[str] = (),
) -> Any:
    """A fresh LoRA adapter on the model: the seven projections of a Llama where they are there, else every linear.

    Alpha is the rank if it is not given. The task is one of peft's; SEQ_CLS trains the classifier's head, too.
    `target_modules` names other layers, by the last part of their names.

    Raises:
        UserError: the model has no layer of a name that is given, or it is none that LoRA can change.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed
    from transformers.pytorch_utils import Conv1D

    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    llama_like = set(LLAMA_PROJECTIONS) <= names
    missing = [name for name in target_modules if name not in names]
    if missing:
        kinds = ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt")
        known = {name.rpartition(".")[2] for name, layer in model.named_modules() if type(layer).__name__ in kinds}
        raise UserError(
            f"--target_modules {missing[0]}: no layer has that name; the model has {', '.join(sorted(known))}"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        lora_dropout=dropout,
        bias="none",
        task_type=task,
        target_modules=list(target_modules) or (LLAMA_PROJECTIONS if llama_like else "all-linear"),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    set_seed(seed)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        if not target_modules:
            raise
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--target_modules {' '.join(target_modules)}: {reason}") from error


def fingerprint(model: Any) -> str | None:
    """sha256 over the shape of the model and a sample of its first and last weights, equal in float32 and bfloat16.

    A classifier's head, `score`, is trained and no part of the base. None of a model that is quantized or in float16,
    whose small numbers are coarser: it does not have these weights any more.
    """
    import torch

    from model_training.sharding import whole

    if getattr(model, "hf_quantizer", None) is not None or model.dtype == torch.float16:
        return None

    config = model.config.get_text_config()
    shape = [config.model_type, config.vocab_size, config.hidden_size, config.num_hidden_layers]
    digest = hashlib.sha256(json.dumps(shape).encode())
    weights = [
        (name.replace(".base_layer", ""), weight)
        for name, weight in model.named_parameters()
        if "lora_" not in name and not name.startswith("score.")
    ]
    for name, weight in weights[:16] + weights[-16:]:
        weight = whole(weight).detach()
        sample = weight.flatten()[:4096].to(torch.bfloat16).cpu().view(torch.int16)
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def load_adapter(model: Any, path: str | Path, trainable: bool = False, name: str = "default") -> Any:
    """The base model with the adapter of that directory on it; an adapter that does not belong to it is an error.

    A model that has adapters already gets one more, under that name.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    folder = Path(path)
    config = _adapter_config(folder)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    _check_base(base, folder, config)
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name, is_trainable=trainable)
            adapted = model
        else:
            adapted = PeftModel.from_pretrained(model, str(folder), adapter_name=name, is_trainable=trainable)
    except SafetensorError as error:
        raise UserError(f"adapter {folder}: adapter_model.safetensors is damaged ({error}); train it anew") from error
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise _other_base(base, folder, config, f"its weights do not fit: {reason}") from error
    _check_complete(adapted, base, folder, config, name)
    return adapted


def adapter_for(name: str, path: str | Path) -> dict[str, Any]:
    """The adapter_config.json of an adapter on the base of that name, which is all that is compared: for an engine that
    loads the weights itself."""
    folder = Path(path)
    config = _adapter_config(folder)
    recorded = base_of_adapter(folder)
    if recorded.rpartition("/")[2].lower() != name.rpartition("/")[2].lower():
        raise UserError(
            f"adapter {folder}: it was trained on {recorded}, and does not belong to {name} (the names differ); "
            f"use --model_name {recorded} or train an adapter for {name}"
        )
    return config


def base_of_adapter(path: str | Path) -> str:
    """The model an adapter was trained on, as its adapter_config.json records it; `tiny` is the embedded one.

    Raises:
        UserError: there is no adapter in that directory, or it does not name its base.
    """
    base = _adapter_config(Path(path)).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"adapter {path}: adapter_config.json does not name its base model; give --model_name")
    return TINY if base == str(TINY_PATH) else base


def _adapter_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"adapter {folder}: there is no such directory; train one first, or check --save_lora_path")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"adapter {folder}: it holds no {name}, so it is no adapter; check --save_lora_path")
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
    except ValueError as error:
        raise UserError(f"adapter {folder}: adapter_config.json is damaged ({error}); train it anew") from error
    if not isinstance(config, dict):
        raise UserError(f"adapter {folder}: adapter_config.json is damaged (it is no JSON object); train it anew")
    return config


def _check_base(model: Any, folder: Path, config: dict[str, Any]) -> None:
    note = folder / "subtext.json"
    recorded_print = json.loads(note.read_text(encoding="utf-8")).get("base_fingerprint") if note.is_file() else None
    own = fingerprint(model)
    if recorded_print is not None and own is not None:
        if recorded_print != own:
            raise _other_base(model, folder, config, "the base model's weights differ from those it was trained on")
        return
    recorded = (config.get("base_model_name_or_path") or "").rpartition("/")[2].lower()
    given = (model.config.name_or_path or "").rpartition("/")[2].lower()
    if recorded and given and recorded != given:
        raise _other_base(model, folder, config, "the names differ")


def _check_complete(adapted: Any, model: Any, folder: Path, config: dict[str, Any], name: str) -> None:
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(str(folder / "adapter_model.safetensors"), framework="pt") as file:
        stored = set(file.keys())
    if stored != set(get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False)):
        raise _other_base(model, folder, config, "its layers are not this model's")


def _other_base(model: Any, folder: Path, config: dict[str, Any], reason: str) -> UserError:
    given = model.config.name_or_path
    given = TINY if given == str(TINY_PATH) else given
    base = config.get("base_model_name_or_path") or "an unnamed model"
    return UserError(
        f"adapter {folder}: it was trained on {base}, and does not belong to {given} ({reason}); "
        f"use --model_name {base} or train an adapter for {given}"
    )
