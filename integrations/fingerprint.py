"""What tells one run from another: digests of the model, the prompts and the optimizers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dfo_core import Optimizer
from dfo_core.serialization import state_digest
from integrations.population import Speedups
from integrations.prompts import Prompt
from integrations.visit import Stop

# Settings that may differ when a run goes on.
_MAY_CHANGE = ("budget", "seconds", "model")
# Entries of a configuration that say where the model came from and not what it computes.
_ORIGIN = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


def fingerprint(
    settings: Mapping[str, Any],
    speedups: Speedups,
    model: PreTrainedModel,
    encoder: Any,
    optimizers: Mapping[Stop, Optimizer],
) -> dict[str, str]:
    """What must be the same for a run to continue, by name and as text.

    All weights are read, which takes about a second a gigabyte.

    Args:
        settings: The run's settings. Its limits may change, and its model's name as well.
        speedups: The evaluator's; they can change the last digit of a loss.
        model: The frozen model.
        encoder: Makes prompts of the task's examples; see `integrations.evaluators.make_encoder`.
        optimizers: One a layer, as built; that of the first tuned layer stands for all.
    """
    task = encoder.task
    return {
        **{k: str(v) for k, v in settings.items() if k not in _MAY_CHANGE},
        **encoder.arguments(),
        "training prompts": prompts_digest(encoder.encode(task.train)),
        "development prompts": prompts_digest(encoder.encode(task.dev)),
        "model configuration": config_digest(model),
        "model weights": weights_digest(model),
        "optimizer's starting state": optimizer_digest(next(iter(optimizers.values()))),
        "speedups": str(speedups),
    }


def config_digest(model: PreTrainedModel) -> str:
    """A digest of a model's configuration, its way to compute attention and its way to write."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in _ORIGIN}
    attention = getattr(model.config, "_attn_implementation", None)
    generation: Any = getattr(model, "generation_config", None)  # of models that write
    options = {} if generation is None else generation.to_diff_dict()
    writing = {k: v for k, v in options.items() if k not in _ORIGIN}
    about = [type(model).__name__, attention, config, writing]
    text = json.dumps(about, sort_keys=True, default=str)
    return _short(hashlib.sha256(text.encode()))


def weights_digest(model: PreTrainedModel) -> str:
    """A digest of names, types, shapes and all bytes of parameters and buffers."""
    sha = hashlib.sha256()
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        _add(sha, name, tensor.detach())
    return _short(sha)


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """A digest of token ids, answer positions, labels, tokens to predict and decoders' inputs."""
    text = json.dumps([(p.ids, p.answer, p.label, p.targets, p.decoder_ids) for p in prompts])
    return _short(hashlib.sha256(text.encode()))


def optimizer_digest(optimizer: Optimizer) -> str:
    """A digest of an optimizer's state but for its generator, which may have no seed."""
    state = optimizer.state_dict()
    return state_digest({k: v for k, v in state.items() if k != "generator"})[:16]


def _add(sha: Any, name: str, tensor: Tensor) -> None:
    sha.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
    if hasattr(tensor, "__tensor_flatten__"):  # a quantized tensor, made of plain ones
        for inner in tensor.__tensor_flatten__()[0]:
            _add(sha, f"{name}.{inner}", getattr(tensor, inner))
    elif not tensor.is_meta:  # weights that are offloaded have no bytes here
        sha.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _short(sha: Any) -> str:
    return str(sha.hexdigest()[:16])
