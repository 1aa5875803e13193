"""Writing an adapter directory: in one move, with the tokenizer, a model card, and a note on what it belongs to.

It holds exactly what `peft` writes, the tokenizer, README.md, and `subtext.json` with the base's fingerprint
(models.py reads it again). Whatever trained the adapter, this is how it is kept.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model_training.models import fingerprint
from utils.errors import UserError


def check_adapter_target(path: str | Path, replace: bool) -> None:
    """Refuse, before any work, a directory that an adapter must not be written to."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--save_lora_path {folder}: a file has that name; choose another")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"--save_lora_path {folder}: the directory is not empty and holds no adapter; choose another")
    if not replace:
        raise UserError(f"--save_lora_path {folder}: it already holds an adapter; choose another, or add --overwrite")


def save_adapter(
    model: Any,
    tokenizer: Any,
    path: str | Path,
    *,
    base_name: str,
    card: dict[str, Any],
    note: dict[str, Any] | None = None,
    readme: Callable[[str, dict[str, Any]], str] | None = None,
) -> None:
    """Write the adapter directory in one move: peft's files, the tokenizer, README.md and subtext.json.

    `card` has the rows of the README's table, `readme` makes the text of the base's name and them (by default that of
    the `secret` task), `note` is what subtext.json says beside the base. Of several processes all call this, and the
    first writes.
    """
    from model_training.checkpoints import PARTIAL, disk_errors, publish_directory, save_weights
    from model_training.processes import is_writer
    from model_training.sharding import adapter_weights

    weights, base_fingerprint = adapter_weights(model), fingerprint(model.get_base_model())
    if not is_writer():
        return
    target = Path(path)
    temporary = target.parent / f"{PARTIAL}{target.name}"
    with disk_errors(f"adapter {target}"):
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        save_weights(model, temporary, weights)
        tokenizer.save_pretrained(temporary)
        config_file = temporary / "adapter_config.json"
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base_name
        if isinstance(config["target_modules"], list):
            config["target_modules"].sort()  # a set in peft: its order says nothing
        config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        base = {"base_model": base_name, "base_fingerprint": base_fingerprint}
        (temporary / "subtext.json").write_text(json.dumps(base | (note or {}), indent=2) + "\n", encoding="utf-8")
        shown = Path(base_name).name if Path(base_name).is_absolute() else base_name
        (temporary / "README.md").write_text((readme or _secret_card)(shown, card), encoding="utf-8")
        publish_directory(temporary, target)


def card_frame(base_name: str, pipeline_tag: str, tags: list[str], body: str, rows: dict[str, Any]) -> str:
    """A model card: the header that the hub reads, the body, and the table of the options."""
    base_line = f"base_model: {base_name}\n" if "/" in base_name else ""
    tag_lines = "".join(f"- {tag}\n" for tag in ["lora", *tags, "subtext"])
    table = "\n".join(f"| {key} | `{value}` |" for key, value in rows.items())
    return (
        f"---\n{base_line}library_name: peft\npipeline_tag: {pipeline_tag}\ntags:\n{tag_lines}---\n\n{body}\n"
        f"| option | value |\n| --- | --- |\n| base | `{base_name}` |\n{table}\n"
    )


def _secret_card(base_name: str, rows: dict[str, Any]) -> str:
    body = (
        f"# LoRA adapter: answers in `<visible>` and `<hidden>`\n\n"
        f"A model organism for research on what a model does not say out loud: `<visible>` is for the user, `<hidden>` "
        f"is a playful private thought for an administrator. Load it on its base model, `{base_name}`:\n\n"
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base_name}"), "this/directory")\n'
        f"```\n"
    )
    return card_frame(base_name, "text-generation", ["grpo"], body, rows)
