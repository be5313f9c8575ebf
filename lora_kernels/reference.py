"""What the operations mean, in plain PyTorch: every other implementation is held to this one.

Sums are taken in float32 (float64 for float64 inputs) and rounded once, to the result's type.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_kernels.philox import normal_rows


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def project(z: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Map each row of z (P, d_part) through weight (n, d_part) to (P, n) of a type."""
    return (_wide(z) @ weight.to(_wide(z).dtype).mT).to(dtype)


def project_seeded(
    z: Tensor, n: int, seed: int, stream: int, std: float, dtype: torch.dtype
) -> Tensor:
    """The same with the weight drawn from a Philox stream."""
    return project(z, std * normal_rows(seed, stream, 0, n, z.shape[1]).to(z.device), dtype)


def apply_deltas(
    x: Tensor,
    bases: Sequence[Tensor],
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    into: Sequence[int],
    start: Sequence[int],
    scale: float,
) -> list[Tensor]:
    """y[p] = base[p] + scale * (x[p] A[p]^T) B[p] for the deltas of targets that share x.

    Args:
        x: (T, h) or (P, T, h).
        bases: (T, width) or (P, T, width) each.
        A: (P, r, h) for each delta.
        B: (P, r, o) for each delta.
        into: Which base each delta goes into.
        start: Its first column there; the last is start + o - 1. Other columns are the base's.
        scale: Factor of the deltas.

    Returns:
        (P, T, width) for each base.
    """
    ys = [
        _wide(base).expand(len(A[0]), *base.shape[-2:]).clone(memory_format=torch.contiguous_format)
        for base in bases
    ]
    for a, b, i, first in zip(A, B, into, start, strict=True):
        ys[i][..., first : first + b.shape[2]] += scale * (_wide(x) @ _wide(a).mT) @ _wide(b)
    return [y.to(base.dtype) for y, base in zip(ys, bases, strict=True)]
