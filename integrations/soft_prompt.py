"""Soft prompts: tokens of every prompt whose hidden states are tuned where they enter a layer.

Lester, Al-Rfou & Constant (arXiv 2104.08691) tune the word embeddings of such tokens, layer 0 here;
Sun et al. (BBTv2, arXiv 2205.11200) add to the hidden states that enter each layer.
"""

from __future__ import annotations

from torch import Tensor

from integrations.architectures import Architecture
from integrations.batches import PromptBatch
from integrations.patches import Patches


def add_offsets(
    patches: Patches, arch: Architecture, batch: PromptBatch, layer: int, offsets: Tensor
) -> None:
    """Add to the hidden states of soft-prompt tokens that enter a layer.

    Args:
        patches: Where the change is made.
        arch: The model or a replica of it.
        batch: What the model is called on, with a copy for each candidate.
        layer: The layer; at 0 the output of the word embeddings is changed.
        offsets: (P, n, h) what is added, or (1, n, h) for all candidates alike.

    Raises:
        UserError: When the model runs, if the offsets do not fit the batch's soft prompts.
    """
    if layer == 0:
        embeddings = arch.model.get_input_embeddings()
        patches.after(embeddings, lambda _, y: batch.add_at_soft(y, offsets))
    else:
        patches.before(arch.layers[layer], lambda x: batch.add_at_soft(x, offsets))
