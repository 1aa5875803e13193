"""Reward models on a language model: build a new one, load a trained one, score texts and pairs.

    reward_model = load_reward_model("runs/mv")                        # a run directory, or an adapter's directory
    outputs = score(reward_model, conversations)                       # (N, K) raw outputs
    mean, spread = mean_and_spread(reward_model.kind, outputs)         # preference_losses.py: what K numbers mean

A reward model is a causal language model whose next-token head gives way to a small linear one, `score`, that reads the
final hidden state of a text's last token: transformers' own `AutoModelForSequenceClassification` with K labels. LoRA
adapts the model below; the head is trained whole, from initial weights scaled by 0.01, so that the first rewards are
near 0 and the first steps are not spent on unlearning them. The head computes in float32 whatever the rest does: in
bfloat16 rewards of like answers would tie.

A text is read in the form it was trained in. `text`: one string, tokenised whole. `conversation`: messages, through the
model's chat template. The scored token is the last that is not the pad token, as in transformers; where padding is the
end-of-text token, as in models without a pad token, an end-of-text that ends the text is dropped, too.

The directory of a reward model holds what peft writes, the tokenizer, a model card, and `subtext.json` with all that is
needed to score, so that nothing is retyped. It loads without this project:

    base = AutoModelForSequenceClassification.from_pretrained(BASE, num_labels=K)
    base.config.pad_token_id = AutoTokenizer.from_pretrained(DIRECTORY).pad_token_id
    model = PeftModel.from_pretrained(base, DIRECTORY)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from dataset.pair_forms import Form, pair_form
from model_training.config import Quantization
from model_training.loading import load_weights
from model_training.models import chat_text, load_adapter, load_tokenizer, new_adapter
from model_training.pairs import Pair, collate_pairs, pair_outputs, row_length
from model_training.preference_config import TrainPreferenceConfig
from model_training.preference_losses import KINDS, Kind, Likelihood, mean_and_spread
from prompts.chat import Message
from utils.errors import UserError
from utils.runs import MANIFEST, read_manifest

Record = dict[str, Any]
Text = str | list[Message]
"""One whole text: a string, or the messages of a conversation, the answer last."""

Scale = dict[str, list[Any]]
"""`mean` and `spread` of held-out answers, each as 11 numbers, the least, the nine deciles, the largest; and `outputs`,
the raw outputs of at most SCALE_ANSWERS of them, (N, K), from which the scale of any quantile follows."""
SCALE_ANSWERS = 200

FOLDER = "reward_model"
"""Where a run directory has its reward model."""
HEAD_SCALE = 0.01
CHUNK = 1000


@dataclass(frozen=True)
class RewardModel:
    """A trained reward model, ready to score; `max_length` bounds what it was trained on, in tokens."""

    model: Any
    tokenizer: Any
    kind: Kind
    num_outputs: int
    form: Form
    max_length: int
    likelihood: Likelihood
    shared_prompt: bool
    held_out: Scale | None
    """None where no pairs were held out."""
    name: str
    base_name: str


class Head(nn.Linear):  # type: ignore[misc]
    """A linear layer that computes in float32, under autocast too: (..., H) to (..., K)."""

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight.float())  # FSDP2 gathers in bfloat16


# --- build ----------------------------------------------------------------------------------------------------------


def build(
    name: str,
    num_outputs: int,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    seed: int,
    dtype: str = "auto",
    quantization: Quantization = "none",
) -> Any:
    """A new reward model on the base of that name: a peft model with a trainable adapter and head."""
    model = load_classifier(name, num_outputs, dtype, quantization)
    generator = torch.Generator().manual_seed(seed)
    initial = torch.randn(model.score.weight.shape, generator=generator) * model.config.initializer_range * HEAD_SCALE
    with torch.no_grad():
        model.score.weight.copy_(initial)
    return new_adapter(model, rank, seed, alpha=alpha, dropout=dropout, task="SEQ_CLS")


def load_classifier(name: str, num_outputs: int, dtype: str = "auto", quantization: Quantization = "none") -> Any:
    """The base as a sequence classifier with that many outputs, a head yet to be set, and the tokenizer's pad token."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report that the head is new
    try:
        classifier = AutoModelForSequenceClassification
        model = load_weights(
            classifier,
            name,
            dtype=dtype,
            quantization=quantization,
            num_labels=num_outputs,
            ignore_mismatched_sizes=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    if not isinstance(getattr(model, "score", None), nn.Linear):
        raise UserError(
            f"model {name}: {type(model).__name__} is no causal language model with a `score` head; choose another "
            "--model_name"
        )
    head = Head(model.score.in_features, num_outputs, bias=False, device=model.device, dtype=torch.float32)
    model.score = head
    model.config.get_text_config().pad_token_id = load_tokenizer(name).pad_token_id
    return model


def describe(base_name: str, rows: dict[str, Any]) -> str:
    """The model card; `rows` are the options that shaped the model, and `num_outputs`."""
    from model_training.adapter_directory import card_frame

    body = (
        f"# Reward model ({rows['reward_model_type']})\n\n"
        "A LoRA adapter and a head that score an answer. Distributional preference learning: where people disagree "
        "about an answer, its reward has a wide distribution. Raw outputs of a text: `base`, the reward; "
        "`mean_and_variance`, the mean and, through softplus, the standard deviation; `categorical`, logits of atoms "
        "evenly from 0 to 1.\n\n"
        "```python\nfrom peft import PeftModel\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("this/directory")\n'
        f'base = AutoModelForSequenceClassification.from_pretrained("{base_name}", num_labels={rows["num_outputs"]})\n'
        "base.config.pad_token_id = tokenizer.pad_token_id\n"
        'model = PeftModel.from_pretrained(base, "this/directory")\n```\n'
    )
    return card_frame(base_name, "text-classification", ["reward-model"], body, rows)


# --- load -----------------------------------------------------------------------------------------------------------


def load_reward_model(
    path: str | Path, base_name: str | None = None, dtype: str = "auto", quantization: Quantization = "none"
) -> RewardModel:
    """The reward model of a run directory, or of a directory that holds one.

    `base_name` says where the base model stands, if no longer where the reward model recorded it.

    Raises:
        UserError: there is none, its run has not finished, it is an adapter of another task, or the base is another.
    """
    folder = reward_model_folder(path)
    note = read_note(folder)
    base = base_name or note["base_model"]
    model = load_adapter(load_classifier(base, note["num_outputs"], dtype, quantization), folder)
    return RewardModel(
        model=model,
        tokenizer=load_tokenizer(str(folder)),
        kind=note["reward_model_type"],
        num_outputs=note["num_outputs"],
        form=note["form"],
        max_length=note["max_length"],
        likelihood=note["likelihood"],
        shared_prompt=note["shared_prompt"],
        held_out=note["held_out"],
        name=Path(path).resolve().name if Path(path) != folder else folder.resolve().parent.name,
        base_name=base,
    )


def reward_model_folder(path: str | Path) -> Path:
    """The directory of the adapter: the path itself, or `reward_model/` of the run in it."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"reward model {folder}: there is no such directory; train one, or check the path")
    if (folder / FOLDER / "adapter_config.json").is_file():
        return folder / FOLDER
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        if manifest["task"] != "preference" or manifest["mode"] != "train":
            raise UserError(
                f"reward model {folder}: it holds a run of --task {manifest['task']}, not of preference; check the path"
            )
        if manifest["config"].get("env"):
            raise UserError(f"reward model {folder}: it holds a synthetic experiment, which scores no texts")
        raise UserError(
            f"reward model {folder}: its training has not finished ({manifest['status']}); finish it by the command "
            f"that started it with --resume (python main.py --task preference --mode train --output_dir {folder} ...)"
        )
    return folder


def read_note(folder: Path) -> dict[str, Any]:
    """What `subtext.json` of a reward model says: its base, kind, number of outputs, form of texts and bounds."""
    file = folder / "subtext.json"
    if not file.is_file():
        what = "an adapter of another origin" if (folder / "adapter_config.json").is_file() else "no reward model"
        raise UserError(
            f"reward model {folder}: it holds {what} ({file.name} is missing); train one, or check the path"
        )
    try:
        note: dict[str, Any] = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"reward model {folder}: {file.name} is damaged ({error}); train it anew") from error
    if note.get("reward_model_type") not in KINDS:
        raise UserError(f"reward model {folder}: it holds an adapter that answers, not one that scores; check the path")
    missing = {
        "base_model",
        "num_outputs",
        "form",
        "max_length",
        "likelihood",
        "shared_prompt",
        "held_out",
    } - note.keys()
    if missing or note["form"] not in get_args(Form):
        wrong = f"{', '.join(sorted(missing))} missing" if missing else f"form {note['form']!r}"
        raise UserError(f"reward model {folder}: {file.name} is damaged ({wrong}); train it anew")
    return note


# --- texts to tokens ------------------------------------------------------------------------------------------------


def encode(tokenizer: Any, texts: Sequence[Text], form: Form) -> list[list[int]]:
    """Token ids of whole texts of the form, without trailing pad tokens."""
    wrong = next((i for i, text in enumerate(texts) if isinstance(text, str) != (form == "text")), None)
    if wrong is not None:
        wanted, given = ("texts", "a conversation") if form == "text" else ("conversations", "a plain text")
        raise UserError(f"the reward model reads {wanted}, and number {wrong + 1} to score is {given}; give {wanted}")
    if form == "text":
        plain, special = [str(text).strip() for text in texts], True
    else:
        plain, special = [chat_text(tokenizer, text, add_generation_prompt=False) for text in texts], False  # type: ignore[arg-type]
    rows: list[list[int]] = []
    for start in range(0, len(plain), CHUNK):  # the tokenizer keeps far more of each text than its ids
        rows += tokenizer(plain[start : start + CHUNK], add_special_tokens=special)["input_ids"]
    for number, row in enumerate(rows, start=1):
        while row and row[-1] == tokenizer.pad_token_id:
            row.pop()
        if not row:
            raise UserError(f"text {number} to score is empty; there is no token to score")
    return rows


def pair_texts(record: Record, form: Form) -> tuple[Text, Text]:
    """Both whole texts, chosen and rejected, of a record in the standard form of `dataset.pair_forms`."""
    found = pair_form(record)
    if found != form:
        name = record.get("id", "a pair")
        raise UserError(f"the reward model reads pairs in the form {form}, and {name} is a {found}; give such pairs")
    if form == "text":
        return record["chosen"], record["rejected"]
    prompt = record.get("prompt") or []
    return [*prompt, *record["chosen"]], [*prompt, *record["rejected"]]


def encode_pairs(tokenizer: Any, records: Sequence[Record], form: Form) -> list[Pair]:
    """Token ids (chosen, rejected) of each record."""
    texts = [text for record in records for text in pair_texts(record, form)]
    rows = encode(tokenizer, texts, form)
    return list(zip(rows[::2], rows[1::2], strict=True))


def encode_pair(tokenizer: Any, record: Record, form: Form) -> Pair:
    """Token ids (chosen, rejected) of one record."""
    return encode_pairs(tokenizer, [record], form)[0]


# --- score ----------------------------------------------------------------------------------------------------------


def score(reward_model: RewardModel, texts: Sequence[Text], batch_size: int = 8) -> Tensor:
    """Raw outputs of whole texts or conversations: (N, K), float32, on the CPU."""
    rows = encode(reward_model.tokenizer, texts, reward_model.form)
    _check_positions(reward_model, [len(row) for row in rows])
    model, pad = reward_model.model, reward_model.tokenizer.pad_token_id
    outputs = torch.zeros(len(rows), reward_model.num_outputs)
    for batch in _batches([len(row) for row in rows], batch_size):
        width = max(len(rows[i]) for i in batch)
        ids = torch.tensor([rows[i] + [pad] * (width - len(rows[i])) for i in batch])
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (width - len(rows[i])) for i in batch])
        with torch.inference_mode():
            found = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
        outputs[batch] = found.logits.float().cpu()
    return outputs


def score_pairs(reward_model: RewardModel, records: Sequence[Record], batch_size: int = 8) -> tuple[Tensor, Tensor]:
    """Raw outputs of the two texts of each pair, their common prompt computed once: (N, K) and (N, K), as `score`."""
    pairs = encode_pairs(reward_model.tokenizer, records, reward_model.form)
    _check_positions(reward_model, [max(map(len, pair)) for pair in pairs])
    return outputs_of_pairs(
        reward_model.model, pairs, reward_model.tokenizer.pad_token_id, reward_model.shared_prompt, batch_size
    )


def outputs_of_pairs(
    model: Any, pairs: Sequence[Pair], pad_id: int, shared: bool, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Raw outputs of token pairs, in their order, without gradients: (N, K) and (N, K), float32, on the CPU."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for batch in _batches([row_length(pair, shared) for pair in pairs], batch_size):
        with torch.no_grad():
            collated = collate_pairs([pairs[i] for i in batch], pad_id, shared).to(model.device)
            chosen, rejected = pair_outputs(model, collated)
        found |= dict(zip(batch, zip(chosen.float().cpu(), rejected.float().cpu(), strict=True), strict=True))
    columns = list(zip(*(found[i] for i in range(len(pairs))), strict=True))
    if not columns:
        raise UserError("there are no pairs to score")
    return torch.stack(columns[0]), torch.stack(columns[1])


def scale_of_rewards(model: Any, config: TrainPreferenceConfig, pairs: Sequence[Pair], pad_id: int) -> Scale:
    """What the model says of both texts of held-out pairs: rewards have no unit, so others are set beside these."""
    model.eval()
    outputs = torch.cat(outputs_of_pairs(model, pairs, pad_id, config.shared_prompt, config.per_device_eval_batch_size))
    deciles = torch.linspace(0, 1, 11, dtype=torch.float64)
    moments = mean_and_spread(config.reward_model_type, outputs.double())
    kept = outputs[:: max(1, math.ceil(len(outputs) / SCALE_ANSWERS))]
    found = {
        name: torch.quantile(values, deciles).tolist() for name, values in zip(("mean", "spread"), moments, strict=True)
    }
    return found | {"outputs": kept.tolist()}


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Numbers of the texts, the longest first: what does not fit into memory fails at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _check_positions(reward_model: RewardModel, lengths: Sequence[int]) -> None:
    positions = getattr(reward_model.model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and lengths and max(lengths) > positions:
        number = lengths.index(max(lengths)) + 1
        raise UserError(
            f"number {number} to score has {max(lengths)} tokens, and model {reward_model.base_name} has {positions} "
            "positions; leave it out or shorten it"
        )
