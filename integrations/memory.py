"""How much memory evaluation may take beyond the model's weights, and what fits into it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from integrations.architectures import Architecture
from integrations.batches import make_batches
from integrations.errors import UserError
from integrations.prompts import Prompt

PREFIX_SHARE = 0.025
"""Memory for kept hidden states, as a share of the model's weights, unless a limit says less."""

MB = 10**6


@dataclass(frozen=True)
class MemoryPlan:
    """What evaluation may use.

    Attributes:
        prefix_bytes: Most memory for kept hidden states.
        pass_tokens: Most tokens, times candidates, in one forward pass.
    """

    prefix_bytes: int
    pass_tokens: int


def plan_memory(
    arch: Architecture, prompts: Sequence[Prompt], limit: int | None, *, all_logits: bool
) -> MemoryPlan:
    """Share memory between kept hidden states and a forward pass.

    Args:
        arch: The model.
        prompts: What is evaluated.
        limit: Most bytes beyond the model's weights; None for as much as is fastest.
        all_logits: Whether the head runs at every position.

    Raises:
        UserError: If the longest prompt alone takes more.
    """
    weights = sum(parameter.nbytes for parameter in arch.model.parameters())
    share = int(PREFIX_SHARE * weights)
    if limit is None:
        return MemoryPlan(share, sys.maxsize)
    tokens = sum(prompt.length for prompt in prompts)
    in_use = tokens * arch.hidden_size * arch.model.dtype.itemsize
    prefix = max(in_use, min(share, limit // 2))
    # The tuned layer's input and its frozen projections are kept for a generation.
    modules = {target.module: target for target in arch.targets[0].values()}
    width = arch.hidden_size + sum(target.width for target in modules.values())
    shared = tokens * width * arch.model.dtype.itemsize
    token_bytes = bytes_per_token(arch, prompts, all_logits=all_logits)
    longest = max(prompt.length for prompt in prompts)
    pass_tokens = (limit - prefix - shared) // token_bytes
    if pass_tokens < longest:
        least = in_use + shared + longest * token_bytes
        raise UserError(
            f"memory_limit of {limit / MB:.1f} MB is too little: what is kept of all prompts and "
            f"one pass of the longest take {least / MB:.1f} MB. Raise it to twice that, or shorten "
            "the prompts with max_length."
        )
    return MemoryPlan(prefix, pass_tokens)


@torch.inference_mode()
def bytes_per_token(arch: Architecture, prompts: Sequence[Prompt], *, all_logits: bool) -> int:
    """Bytes that a token takes in the layer that takes most, counted over what modules return.

    It is an upper bound but for what attention holds inside: a layer frees its first results
    before the last are there.

    Args:
        arch: The model.
        prompts: What is evaluated; the model is run once on the one whose decoder has most to do.
        all_logits: Whether the head runs at every position.
    """
    places = {module: i for i, layer in enumerate(arch.layers) for module in layer.modules()}
    if all_logits:
        places |= dict.fromkeys(arch.head.modules(), -1)
    sizes: Counter[int] = Counter()

    def count(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes[places[module]] += output.nbytes

    leaves = [module for module in places if not [*module.children()]]
    handles = [leaf.register_forward_hook(count) for leaf in leaves]
    try:
        prompt = max(prompts, key=lambda prompt: len(prompt.decoder_ids))
        (batch,) = make_batches([prompt], 0, arch.kind, arch.model.device)
        batch.run(arch.model)
    finally:
        for handle in handles:
            handle.remove()
    return -(-max(sizes.values()) // prompt.length)
