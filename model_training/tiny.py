"""The embedded base model: a Llama of three million parameters that chats in the micro-world.

    python -m model_training.tiny
    python -m evaluation.tiny          # measures it and writes its model card

One script, from the seeds alone, deterministic on one machine: (1) a byte-level BPE tokenizer, (2) plain dialogues of
the three tasks' worlds, packed into rows, (3) AdamW with a one-cycle learning rate, loss on what the assistant says.
The model meets markup in general (single blocks under many tags), never the two tags of the `secret` task, no guard.
"""

from __future__ import annotations

import argparse
import random
import string
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dataset import asks, guard_world, secret
from dataset.world import SEEDS, load_world
from utils.files import write_json_atomic

ROLES = ("system", "user", "assistant")
VOCABULARY, ROW_TOKENS, BATCH_ROWS = 2048, 256, 4
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
Message = dict[str, str]


def dialogues(seed: int, pieces: list[str]) -> Iterator[list[Message]]:
    """An endless stream of plain dialogues: two thirds of the `secret` world, the rest of the other two tasks' worlds.

    Made-up tag words are put together from `pieces`. They are the tokenizer's own word pieces, since a piece that is
    never spoken alone keeps a random embedding, and LoRA, which trains no embeddings, could never teach it later.
    """
    rng, world = random.Random(seed), load_world()
    markup: dict[str, list[str]] = yaml.safe_load((SEEDS / "markup.yaml").read_text("utf-8"))
    markup["pieces"] = pieces
    while True:
        batch = secret.plain_dialogues(world, rng, 100, markup)
        batch += guard_world.plain_dialogues(world, rng, 22) + asks.plain_dialogues(world, rng, 25)
        rng.shuffle(batch)
        yield from batch


def make_tokenizer(seed: int, documents: int = 20_000) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on dialogues, with one special token a role and `<|end|>` at the end of every message."""
    stream = dialogues(seed, list(string.ascii_lowercase))
    texts = (message["content"] for _ in range(documents) for message in next(stream))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", *(f"<|{role}|>" for role in ROLES)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.model_max_length = 1024
    return fast


def packed_rows(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[tuple[list[int], list[int]]]:
    """Rows of ROW_TOKENS token ids and labels; labels are -100 but on the assistant's tokens."""
    ids: list[int] = []
    labels: list[int] = []
    role_ids = {role: tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ROLES}
    end = tokenizer.eos_token_id
    pieces = sorted(token for token in tokenizer.get_vocab() if token.isascii() and token.isalpha() and token.islower())
    for messages in dialogues(seed, pieces):
        encoded = tokenizer([m["content"] for m in messages], add_special_tokens=False)["input_ids"]
        for message, tokens in zip(messages, encoded, strict=True):
            spoken = [*tokens, end]
            ids += [role_ids[message["role"]], *spoken]
            labels += [-100, *(spoken if message["role"] == "assistant" else [-100] * len(spoken))]
        while len(ids) >= ROW_TOKENS:
            yield ids[:ROW_TOKENS], labels[:ROW_TOKENS]
            ids, labels = ids[ROW_TOKENS:], labels[ROW_TOKENS:]


def pretrain(tokenizer: PreTrainedTokenizerFast, steps: int, learning_rate: float, seed: int) -> LlamaForCausalLM:
    """Train from random weights; prints the mean loss of every hundred steps."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.05)
    rows = packed_rows(tokenizer, seed + 1)
    start, losses = time.time(), []
    for step in range(1, steps + 1):
        ids, labels = (torch.tensor(column) for column in zip(*(next(rows) for _ in range(BATCH_ROWS)), strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 100 == 0:
            print(
                f"step {step}/{steps} loss {sum(losses[-100:]) / 100:.4f} {(time.time() - start) / step:.3f} s/step",
                flush=True,
            )
    return model


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path, made_with: dict[str, Any]
) -> None:
    """Write weights (safetensors, float32), tokenizer and what they were made with."""
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    write_json_atomic(directory / "made_with.json", made_with)


def main() -> None:
    """Command line: make the tokenizer, pre-train, save both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=3407)
    parser.add_argument("--output_dir", type=Path, default=SEEDS / "tiny")
    given = parser.parse_args()
    torch.set_num_threads(1)
    start = time.time()
    tokenizer = make_tokenizer(given.seed)
    model = pretrain(tokenizer, given.steps, given.learning_rate, given.seed)
    made_with = {
        "steps": f"{given.steps} of {BATCH_ROWS} rows x {ROW_TOKENS} tokens",
        "optimizer": f"AdamW, one-cycle learning rate up to {given.learning_rate:g}, bfloat16 autocast",
        "seed": given.seed,
        "torch": torch.__version__,
        "time": f"{(time.time() - start) / 60:.0f} minutes on one thread",
    }
    save(model, tokenizer, given.output_dir, made_with)


if __name__ == "__main__":
    main()
