"""Label logits of a model that is run in a method's own way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from integrations.architectures import Architecture
from integrations.batches import PromptBatch
from integrations.patches import Patches
from integrations.population import keep_label_words


def label_logits(
    arch: Architecture,
    batch: PromptBatch,
    label_ids: Tensor,
    run: Callable[[PromptBatch], Any],
    shift: int = 0,
) -> Tensor:
    """Label logits of a batch, the head run at the answers and for the label words only.

    Args:
        arch: The model.
        batch: N prompts, a row each.
        label_ids: (C,) tokens of the label words.
        run: Calls the model, or what is wrapped around it, on the batch.
        shift: Tokens that the head sees before those of the prompt.

    Returns:
        (N, C) float32, with their graph where one is recorded.
    """
    places = batch.answers + shift

    def at_answers(x: Tensor) -> Tensor:
        return x[batch.answer_rows, places].unsqueeze(1)

    with Patches() as patches:
        patches.before(arch.head, at_answers)
        if arch.output is not None:
            keep_label_words(patches, arch.output, label_ids)
        logits: Tensor = run(batch).logits.squeeze(1)
    return (logits if arch.output is not None else logits[:, label_ids]).float()
