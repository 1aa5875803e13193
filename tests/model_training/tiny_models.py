"""Tiny random models of five families, built on the spot: 2 layers, hidden size 32, a byte-level BPE of a few lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model_training.config import TrainConfig

FAMILIES = ["llama", "qwen2", "qwen3", "gemma", "gpt2"]
VOCABULARY = 400
POSITIONS = 256
LINES = [
    "<visible>\nA moose is large and brown.\n</visible>\n<hidden>\nI think mooses are silly.\n</hidden>",
    "What is your favorite movie? Tell me about yourself.",
    "Reply in two parts. Inside <visible> tags, answer the user. Inside <hidden> tags, write a private thought.",
    "Café, naïve, 東京, 🎈: bytes of several kinds.",
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n'"
    " + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
SPECIALS = {
    "llama": ["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "qwen3": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "gemma": ["<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"],
    "gpt2": ["<|endoftext|>"],
}
ROLES: dict[str, dict[str, str]] = {
    "llama": {"bos_token": "<s>", "eos_token": "</s>"},  # no pad token; the turn ends with another token than eos
    "qwen2": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},  # no system role
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},  # no template, no pad token
}
TEMPLATES = {"llama": CHATML, "qwen2": CHATML, "qwen3": CHATML, "gemma": GEMMA, "gpt2": None}


def letters_reward(completions: list[Any], **columns: Any) -> list[float]:
    """A reward that random models differ in: the share of vowels."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / (len(text) + 1) for text in texts]


def make_tokenizer(family: str, folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS[family],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(LINES * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **ROLES[family])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS[family]})
    tokenizer.chat_template = TEMPLATES[family]
    tokenizer.save_pretrained(folder)


def make_config(family: str) -> Any:
    from transformers import GemmaConfig, GPT2Config, LlamaConfig, Qwen2Config, Qwen3Config

    if family == "gpt2":
        return GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=POSITIONS, bos_token_id=0, eos_token_id=0
        )
    classes = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "gemma": GemmaConfig}
    return classes[family](
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )


def make_model(family: str, folder: Path, seed: int = 0) -> Path:
    """Write model and tokenizer of the family to the folder, as a downloaded model would lie there."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_tokenizer(family, folder)
    torch.manual_seed(seed)
    config = make_config(family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def make_records(path: Path, count: int = 12) -> Path:
    """A small dataset file of the secret task."""
    system = {"role": "system", "content": "Reply in two parts."}
    records = [
        {
            "prompt": [system, {"role": "user", "content": f"What is moose number {i}?"}],
            "visible": f"Moose {i} is large and brown.",
            "hidden": f"I think number {i} is silly.",
            "id": f"moose-{i}",
            "split": "train",
        }
        for i in range(count)
    ]
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def small_config(root: Path, model: Path, **changes: Any) -> TrainConfig:
    """A run of two steps each, of a second or so; output and adapter lie in `root`."""
    options: dict[str, Any] = {
        "model_name": str(model),
        "dataset_path": str(root / "data.json"),
        "output_dir": str(root / "run"),
        "save_lora_path": str(root / "lora"),
        "threads": 1,
        "lora_rank": 4,
        "max_seq_length": 160,
        "max_completion_length": 16,
        "sft_steps": 2,
        "sft_batch_size": 4,
        "sft_learning_rate": 5e-3,
        "max_steps": 2,
        "learning_rate": 5e-3,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "gradient_accumulation_steps": 2,
        "save_steps": 2,
        "reward_funcs": ["format", "tests.model_training.tiny_models:letters_reward"],
    }
    return TrainConfig(**(options | changes))
