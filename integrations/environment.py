"""What is installed and usable here: versions, devices, kernels, optimizers."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from transformers import PreTrainedModel

from dfo_core.adapters.native import NAMES
from integrations.architectures import FAMILIES
from integrations.tasks import TASKS
from lora_kernels import backends

PACKAGES = (
    *("dfo-lora", "torch", "transformers", "triton", "numpy", "scipy", "tokenizers"),
    *("safetensors", "datasets", "peft", "matplotlib", "tensorboard"),
)
OPTIMIZER_LIBRARIES = {
    "pycma": "cma", "cmaes": "cmaes", "nevergrad": "nevergrad", "optuna": "optuna",
    "evosax": "evosax", "evotorch": "evotorch",
}  # fmt: skip
"""Names that `dfo_core.as_optimizer` knows libraries by, and what each imports."""


def versions() -> dict[str, str | None]:
    """Versions of Python and of packages; None for those that are not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def circumstances(model: PreTrainedModel) -> dict[str, Any]:
    """What the last digits of a run depend on beside its settings, for JSON."""
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def environment() -> dict[str, Any]:
    """Versions, devices, kernels, model families, tasks and optimizers, for JSON.

    Devices are named as ``--device`` takes them.
    """
    devices = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"}
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        devices[f"cuda:{i}"] = f"{about.name}, {about.total_memory / 1e9:.0f} GB"
    return {
        "versions": versions(),
        "devices": devices,
        "kernels": {name: there.reason or "available" for name, there in backends().items()},
        "families": sorted(FAMILIES),
        "tasks": sorted(TASKS),
        "optimizers": {
            **dict.fromkeys(NAMES, "built in"),
            **{
                name: "installed" if importlib.util.find_spec(module) else "not installed"
                for name, module in OPTIMIZER_LIBRARIES.items()
            },
        },
    }
