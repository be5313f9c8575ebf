"""Deltas on disk in PEFT's LoRA format: ``adapter_config.json`` and ``adapter_model.safetensors``.

Written without PEFT, so that it need not be installed; read from any plain LoRA adapter on the
attention projections, whoever wrote it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from integrations.adapter import Adapter
from integrations.architectures import Architecture, Target
from integrations.errors import UserError
from integrations.files import replace_file
from integrations.model_names import hub_name
from lora_kernels import Factors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TASK_TYPES = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}  # PEFT knows no masked models
# Settings under which a LoRA adapter is more than a multiple of B A added to a projection.
_BEYOND = (
    "use_dora",
    "modules_to_save",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "alora_invocation_tokens",
)
# Inits that change the frozen weights too, unless PEFT converted the adapter when it was saved.
_EDITING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def save_adapter(adapter: Adapter, folder: Path, rank: int) -> None:
    """Write the deltas in place as a PEFT adapter.

    Layers without deltas get zeros, so that the adapter has one rank and one list of modules.
    Targets that share a module (q and v of a fused projection) become one adapter of rank r times
    their number: their A are stacked, and B has each target's columns in its own rows, with zeros
    elsewhere, which gives exactly the same delta. Modules with fewer targets are filled up with
    zeros to that rank.

    Args:
        adapter: The deltas.
        folder: Where to; made if it is missing.
        rank: Rank r of each target's delta.

    Raises:
        UserError: If a soft prompt is in place, for which the format has no room.
    """
    if adapter.prompted:
        raise UserError(
            "a LoRA adapter holds deltas only, and there is a soft prompt in place at layers "
            f"{adapter.prompted}."
        )
    arch = adapter.arch
    first = _by_module(arch.targets[0])
    full_rank = rank * max(len(members) for members in first.values())
    tensors: dict[str, Tensor] = {}
    for layer, targets in enumerate(arch.targets):
        for members in _by_module(targets).values():
            a, b = _stacked(members, adapter.factors[layer] or {}, full_rank)
            path = members[0].path
            tensors[f"{_PREFIX}{path}.lora_A.weight"] = a
            tensors[f"{_PREFIX}{path}.lora_B.weight"] = b
    name = arch.model.name_or_path or ""
    config = {
        "peft_type": "LORA",
        "task_type": _TASK_TYPES.get(arch.kind),
        "base_model_name_or_path": hub_name(name) or name,
        "r": full_rank,
        "lora_alpha": full_rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": _module_names(arch, list(first)),
        "fan_in_fan_out": any(isinstance(m[0].module, Conv1D) for m in first.values()),
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with replace_file(folder / WEIGHTS) as path_beside:
        save_file(tensors, path_beside, metadata={"format": "pt"})
    with replace_file(folder / CONFIG) as path_beside:
        path_beside.write_text(json.dumps(config, indent=2) + "\n")


def load_adapter(arch: Architecture, folder: str | Path) -> Adapter:
    """Read a LoRA adapter in PEFT's format.

    Args:
        arch: The model it belongs to, described with all the targets the adapter may have.
        folder: Where ``adapter_config.json`` and ``adapter_model.safetensors`` are.

    Returns:
        The deltas, in the model's type and on its device.

    Raises:
        UserError: If a file is missing or damaged, the adapter is no plain LoRA, or it does not
            fit the model.
    """
    folder = Path(folder)
    config = read_adapter_config(folder)
    tensors = _read_weights(folder)
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    adapter = Adapter(arch)
    used: set[str] = set()
    for layer, targets in enumerate(arch.targets):
        factors = {}
        for name, target in targets.items():
            keys = [f"{_PREFIX}{target.path}.lora_{side}.weight" for side in "AB"]
            if any(key not in tensors for key in keys):
                continue
            used.update(keys)
            a, b = (tensors[key].to(arch.model.device, arch.model.dtype) for key in keys)
            fitting = (rank, target.in_features), (target.width, rank)
            if (a.shape, b.shape) != fitting:
                raise UserError(
                    f"{folder}: the adapter does not fit {target.path}: its matrices have shapes "
                    f"{tuple(a.shape)} and {tuple(b.shape)}, which must be {fitting[0]} and "
                    f"{fitting[1]} for this model and r = {rank}. Load it with the model it was "
                    f"made for: {config.get('base_model_name_or_path')!r}."
                )
            b = scale * b.mT[:, target.columns_on(b.device)]
            # Of a fused projection, most rows are other targets'.
            own = a.any(dim=1) & b.any(dim=1)
            if own.any():
                factors[name] = Factors(a[own][None], b[own][None])
        if factors:
            adapter.place(layer, factors)
    if left := sorted(tensors.keys() - used):
        raise UserError(
            f"{folder}: the adapter has {left[0]!r}, which is not an attention projection of "
            f"{type(arch.model).__name__} that it was described with; expected LoRA weights of "
            f"{', '.join(arch.targets[0])} only. describe(model, TARGETS) has q, k, v and o."
        )
    return adapter


def _module_names(arch: Architecture, places: list[str]) -> list[str]:
    """The tuned modules by their names in a layer, in full if other modules end like that too."""
    paths = [target.path for targets in arch.targets for target in targets.values()]
    ends = tuple(f".{place}" for place in places)
    others = {name for name, _ in arch.model.named_modules() if name.endswith(ends)} - {*paths}
    return list(dict.fromkeys(paths)) if others else places


def _by_module(targets: Mapping[str, Target]) -> dict[str, list[Target]]:
    """The targets by the module that computes them, which is named by its path in the layer."""
    members: dict[str, list[Target]] = {}
    for target in targets.values():
        members.setdefault(target.place, []).append(target)
    return members


def _stacked(
    members: list[Target], factors: Mapping[str, Factors], rank: int
) -> tuple[Tensor, Tensor]:
    """One module's A (rank, h) and B (width, rank) in PEFT's layout, float32 on the CPU."""
    a = torch.zeros(rank, members[0].in_features)
    b = torch.zeros(members[0].width, rank)
    start = 0
    for target in members:
        if (f := factors.get(target.name)) is not None:
            rows = slice(start, start + f.rank)
            a[rows] = f.A[0].to(a)
            b[target.columns_on(b.device), rows] = f.B[0].mT.to(b)
            start += f.rank
    return a, b


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The configuration of a plain LoRA adapter.

    Raises:
        UserError: If it is missing or damaged, or the adapter is no plain LoRA.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError(f"expected an object, got {type(config).__name__}")
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no adapter: {CONFIG} is missing. Pass the folder that save() wrote."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); save the adapter anew.") from None
    beyond = [name for name in _BEYOND if config.get(name)]
    if str(config.get("init_lora_weights")).startswith(_EDITING_INITS):
        beyond.append(f"init_lora_weights={config['init_lora_weights']}")
    if config.get("peft_type") != "LORA" or beyond:
        raise UserError(
            f"{path}: only plain LoRA adapters can be read; this one is "
            f"{config.get('peft_type')!r}{' with ' + ', '.join(beyond) if beyond else ''}. Merge "
            "it into the model with PEFT instead."
        )
    for name in ("r", "lora_alpha"):
        if not isinstance(config.get(name), (int, float)) or config[name] <= 0:
            raise UserError(f"{path}: {name} must be a positive number; got {config.get(name)!r}.")
    return dict(config)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        hint = " (pickled .bin files are refused, as they can run code)"
        raise UserError(
            f"{folder} holds no {WEIGHTS}{hint if (folder / 'adapter_model.bin').exists() else ''}"
            "; save the adapter as safetensors."
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or no safetensors file ({error}); save the adapter anew."
        ) from None
