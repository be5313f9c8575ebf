"""Prompts of a causal model that begin alike: the shared beginning is read once."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from integrations.architectures import Architecture
from integrations.batches import PromptBatch, make_batches
from integrations.methods.answers import label_logits
from integrations.patches import Patches, evaluating
from integrations.prompts import Encoder
from integrations.tasks import Example

# A batch holds the shared keys and values once a row, so it has few rows.
REST_TOKENS = 512


@torch.inference_mode()
def logits_after_shared(
    arch: Architecture, encoder: Encoder, examples: Sequence[Example]
) -> np.ndarray:
    """Label logits of a frozen causal model.

    Args:
        arch: The model.
        encoder: Makes the prompts.
        examples: At least one.

    Returns:
        (N, C) float32, as if each prompt were read as a whole.
    """
    prompts = encoder.encode(examples)
    device = arch.model.device
    label_ids = torch.tensor(encoder.label_ids, device=device)
    # Every prompt keeps a token of its own, from which its label word is predicted.
    most = min(prompt.answer for prompt in prompts)
    columns = zip(*(prompt.ids[:most] for prompt in prompts), strict=True)
    shared = [column[0] for column in takewhile(lambda ids: len(set(ids)) == 1, columns)]
    rest = [
        replace(prompt, ids=prompt.ids[len(shared) :], answer=prompt.answer - len(shared))
        for prompt in prompts
    ]
    # transformers 5.24 gave the argument a shorter name.
    names = inspect.signature(arch.model.forward).parameters
    name = "cache" if "cache" in names else "past_key_values"

    def call(ids: Tensor, cache: DynamicCache) -> Any:
        return arch.model(input_ids=ids, use_cache=True, **{name: cache})

    def run(batch: PromptBatch) -> Any:
        own = copy.deepcopy(read)
        own.batch_repeat_interleave(batch.rows)
        return call(batch.ids, own)

    out = np.empty((len(prompts), len(label_ids)), dtype=np.float32)
    with evaluating(arch.model):
        read = DynamicCache(config=arch.model.config)
        if shared:
            with Patches() as patches:
                patches.before(arch.head, lambda x: x[:, :1])  # nothing is read from it
                call(torch.tensor([shared], device=device), read)
        for batch in make_batches(rest, encoder.pad_id, arch.kind, device, max_tokens=REST_TOKENS):
            out[batch.order.numpy()] = label_logits(arch, batch, label_ids, run).cpu().numpy()
    return out
