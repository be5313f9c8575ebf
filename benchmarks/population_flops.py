"""The arithmetic that a population needs, and how fast this machine multiplies such matrices.

Counted are the products only: no padding, no logits but the label words', in the last layer nothing
but keys and values away from the answer positions, and the frozen projections that have deltas once
for all candidates. So the share of the matrix product's speed that is reached says what norms,
activations, attention's softmax, the deltas' bookkeeping and Python take.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from integrations.architectures import Architecture, describe
from integrations.onednn import use_onednn
from integrations.patches import Patches
from integrations.prompts import Prompt
from integrations.weights import LINEAR, weight_of
from lora_kernels import Factors
from lora_kernels.bench import wait


def products(layer: nn.Module) -> list[nn.Module]:
    """A layer's modules that multiply with a weight matrix."""
    return [module for module in layer.modules() if isinstance(module, LINEAR)]


def entries(modules: Sequence[nn.Module]) -> int:
    """Entries of the modules' weight matrices."""
    return sum(module.weight.numel() for module in modules)


def useful_flops(
    arch: Architecture,
    prompts: Sequence[Prompt],
    labels: int,
    layer: int,
    candidates: Mapping[str, Factors],
) -> float:
    """Floating-point operations that the losses of a layer's candidates need."""
    every = describe(arch.model, ("q", "k", "v", "o")).targets
    lengths = [len(prompt.ids) for prompt in prompts]
    tokens, answers = sum(lengths), len(prompts)
    count = len(next(iter(candidates.values())))
    width = every[0]["o"].in_features
    seen = [n * (n + 1) / 2 if arch.kind == "causal" else n * n for n in lengths]
    shared = {target.module for target in arch.targets[layer].values()}
    one = once = 0.0
    for index in range(layer, len(arch.layers)):
        matrices = products(arch.layers[index])
        here = [module for module in matrices if not (index == layer and module in shared)]
        if index == len(arch.layers) - 1:
            everywhere = [m for m in here if m in {every[index][t].module for t in "kv"}]
            elsewhere = [m for m in here if m not in everywhere]
            one += 2 * (tokens * entries(everywhere) + answers * entries(elsewhere))
            one += 4 * width * tokens  # the answers' scores and their sums of values
        else:
            one += 2 * tokens * entries(here) + 4 * width * sum(seen)
    once = 2 * tokens * entries([*shared])
    for factors in candidates.values():
        one += 2 * tokens * factors.rank * (factors.A.shape[2] + factors.B.shape[2])
    one += 2 * answers * labels * arch.hidden_size
    return count * one + once


def product_rate(
    arch: Architecture, prompts: Sequence[Prompt], copies: int = 1, repeats: int = 20
) -> float:
    """Operations a second of the model's largest feed-forward product on all prompts' tokens.

    By the library that is the faster one here (`integrations.onednn`).

    Args:
        arch: The model; the product is made where it is, in its type.
        prompts: The prompts.
        copies: How often the tokens are repeated.
        repeats: The median of so many counts.
    """
    largest = max(products(arch.layers[0]), key=lambda module: module.weight.numel())
    weight = weight_of(largest)
    rows = copies * sum(len(prompt.ids) for prompt in prompts)
    x = torch.randn(rows, weight.shape[1], device=weight.device, dtype=weight.dtype)
    seconds = []
    with torch.inference_mode(), Patches() as patches:
        use_onednn(patches, [largest])
        for _ in range(repeats):
            wait(weight.device)
            start = time.perf_counter()
            largest(x)
            wait(weight.device)
            seconds.append(time.perf_counter() - start)
    return 2 * x.shape[0] * weight.numel() / statistics.median(seconds)
