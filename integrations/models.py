"""Frozen models and their tokenizers, by name or folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from integrations.architectures import AUTO_MODELS, family_of
from integrations.errors import UserError
from integrations.int8 import quantize_layers
from integrations.smollm2 import NAME as SMOLLM2
from integrations.smollm2 import fetch

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.float32,  # of everything but the layers' weights
}
DEVICES = ("cpu", "cuda")


def hush() -> None:
    """Keep transformers' own progress bars and notes from the terminal."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def require_device(kind: str) -> None:
    """Raise UserError unless there are kernels for a kind of device."""
    if kind not in DEVICES:
        raise UserError(
            f"a model must be on a CPU (cpu) or an NVIDIA or AMD GPU (cuda), where deltas can be "
            f"applied; got {kind!r}."
        )


def require_tunable(model: object) -> None:
    """Raise UserError unless a model can be evaluated with deltas as it is."""
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"model must be a transformers PreTrainedModel or a name; got {type(model).__name__}."
        )
    require_device(model.device.type)
    places = {str(p.device) for p in model.parameters() if not p.is_meta}  # meta: offloaded
    if len(places) > 1:
        raise UserError(
            f"the model lies on several devices ({', '.join(sorted(places))}), and a replica has "
            "one; load it on one of them, and give each of the others a replica with workers=..."
        )
    if model.dtype not in DTYPES.values():
        types = dict.fromkeys(DTYPES.values())
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in types)
        raise UserError(f"the model is of type {model.dtype}; convert it to one of {names}.")
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            raise UserError(
                f"{name} has a LoRA adapter of PEFT in it already; merge that into the weights "
                "with PEFT's merge_and_unload(), or load the model without it."
            )


def own_device() -> str:
    """Where this process's model goes: a GPU if there is one, under torchrun that of its rank."""
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK")
    return "cuda" if rank is None else f"cuda:{int(rank) % torch.cuda.device_count()}"


def load_model(
    name: str, *, dtype: str | None = None, device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model with its language head, and its tokenizer.

    Args:
        name: A folder, a Hub name, or ``"smollm2-135m"``, whose weights come from the Python
            package index.
        dtype: ``"float32"``, ``"float16"`` or ``"bfloat16"``; or ``"int8"``, float32 with layers'
            weights of eight bits: a quarter of their memory, and on a CPU half as fast again,
            for predictions that change a little (see `integrations.int8`). None: bfloat16 on a GPU
            that has it, else float32.
        device: Where the model goes, such as ``"cuda:1"``; None: a GPU if there is one, and under
            torchrun one for each of its processes.

    Raises:
        UserError: If there is no such model, its family is not in the table, it was saved without
            its language head, or the device or type cannot be used.
    """
    if device is None:
        device = own_device()
    if dtype is None:
        bf16 = device.startswith("cuda") and torch.cuda.is_bf16_supported()
        dtype = "bfloat16" if bf16 else "float32"
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
    place = str(fetch()) if name == SMOLLM2 else name
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        what = "folder holds no config.json" if Path(place).is_dir() else "no such folder"
        raise UserError(
            f"model {name!r} cannot be loaded ({what}, and not found on the Hub: "
            f"{type(error).__name__}); pass a folder with a saved model, a Hub name, or "
            f"{SMOLLM2!r}."
        ) from error
    family = family_of(config.model_type)
    try:
        require_device(torch.device(device).type)
        model: Any
        model, report = AUTO_MODELS[family.kind].from_pretrained(
            place, dtype=DTYPES[dtype], output_loading_info=True, **family.settings
        )
        model.to(device)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, RuntimeError) as error:
        line = str(error).strip().splitlines()[0]
        raise UserError(f"model {name!r} cannot be loaded on {device}: {line}") from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"model {name!r} was saved without some weights of {type(model).__name__}, such as "
            f"{missing[0]!r}; choose one that was trained with its language head."
        )
    if dtype == "int8":
        model = quantize_layers(model)
    return model.eval(), tokenizer
