"""Deltas added into a model's weights, for programs that know nothing of adapters."""

from __future__ import annotations

import torch

from integrations.adapter import Adapter
from integrations.architectures import Target
from integrations.errors import UserError
from integrations.weights import is_plain, weight_of


@torch.no_grad()
def merge(adapter: Adapter) -> None:
    """Add deltas into the weights of the model they belong to, which is edited for good.

    Its outputs are then, up to rounding, those with the deltas in place. The sum is taken in
    float32 and rounded once to the weights' type.

    Args:
        adapter: The deltas.

    Raises:
        UserError: If a projection is quantized, where a small delta would be lost in its rounding,
            or a soft prompt is in place. No weight has been changed then.
    """
    if adapter.prompted:
        raise UserError(
            "weights can take in deltas only, and there is a soft prompt in place at layers "
            f"{adapter.prompted}."
        )
    deltas = adapter.deltas(adapter.arch, 0, len(adapter.arch.layers))
    for target, _ in deltas:
        require_plain(target)
    for target, factors in deltas:
        weight = weight_of(target.module)
        delta = factors.B[0].float().mT @ factors.A[0].float()
        columns = target.columns_on(weight.device)  # the model may have moved since
        weight[columns] = (weight[columns].float() + delta).to(weight.dtype)


def require_plain(target: Target) -> None:
    """Raise UserError unless a projection's weight is a matrix of floating-point numbers."""
    if not is_plain(target.module):
        raise UserError(
            f"{target.path} is quantized ({type(target.module).__name__}), and deltas cannot be "
            "merged into it without rounding them; load the model in float32 or bfloat16 and merge "
            "there."
        )
