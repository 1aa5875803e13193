"""From a name to weights where they are to run: a hub name, a local path or `tiny`; dtype, quantization, device.

    model = load_weights(AutoModelForCausalLM, "tiny", dtype="bfloat16", quantization="none")

models.py and reward_model.py make of it what answers and what scores.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_training.config import TINY, Quantization
from utils.errors import UserError
from utils.hub import hub_reachable

if TYPE_CHECKING:
    import torch

TINY_PATH = Path(__file__).resolve().parents[1] / "seeds" / "tiny"


def model_path(name: str) -> str:
    """What `from_pretrained` takes: the embedded model's directory for `tiny`, else the name itself."""
    return str(TINY_PATH) if name == TINY else name


def load_weights(
    auto_class: Any, name: str, *, dtype: str = "auto", quantization: Quantization = "none", **options: Any
) -> Any:
    """The model of that class on this process's GPU, if there is one, in bfloat16, else on the CPU in float32.

    `dtype` names another precision. 8 and 4 bit are quantized while they are loaded (bitsandbytes, on a GPU).
    """
    import torch
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # after a training under ZeRO-3 transformers would load slices, and adapters of nothing
    cuda = torch.cuda.is_available()
    auto = torch.bfloat16 if cuda else torch.float32
    precision = auto if dtype == "auto" else getattr(torch, dtype)
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if quantization != "none":
        options |= {"quantization_config": quantized(quantization, precision), "device_map": {"": device}}
    model = from_hub(auto_class, name, "weights", dtype=precision, use_safetensors=True, **options)
    if cuda and quantization == "none":
        model.to(device)
    return model


def quantized(quantization: Quantization, compute: torch.dtype) -> Any:
    """QLoRA's 4-bit normal floats with double quantization, computed in that dtype, or int8."""
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def from_hub(auto_class: Any, name: str, what: str, **options: Any) -> Any:
    """`auto_class.from_pretrained` for a hub name, a local path or `tiny`; what goes wrong is one line."""
    path = model_path(name)
    looks_local = name == TINY or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not Path(path).is_dir():
        way_out = "restore it from the repository" if name == TINY else "check --model_name"
        raise UserError(f"model {name}: there is no directory {path}; {way_out}")
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()
    if not Path(path).is_dir() and not hub_reachable():
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = True  # only what is cached; its client would retry each of several files for long
    try:
        return auto_class.from_pretrained(path, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        where = "in that directory" if Path(path).is_dir() else "no such directory, and the hub did not deliver it"
        raise UserError(
            f"model {name}: cannot load its {what} ({where}): {reason} "
            "Check --model_name, the network, and HF_TOKEN for a gated model; only safetensors are loaded"
        ) from error
