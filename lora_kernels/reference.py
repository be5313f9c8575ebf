"""What the operations mean, in plain PyTorch: every other implementation is held to this one.

Sums are taken in float32 (float64 for float64 inputs) and rounded once, to the input's type.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lora_kernels.philox import normal_rows


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def project(z: Tensor, weight: Tensor) -> Tensor:
    """Map each row of z (P, d_part) through weight (n, d_part) to (P, n)."""
    return (_wide(z) @ weight.to(_wide(z).dtype).mT).to(z.dtype)


def project_seeded(z: Tensor, n: int, seed: int, stream: int, std: float) -> Tensor:
    """The same with the weight drawn from a Philox stream."""
    return project(z, std * normal_rows(seed, stream, 0, n, z.shape[1]).to(z.device))


def apply_deltas(x: Tensor, base: Tensor, A: Tensor, B: Tensor, scale: float, start: int) -> Tensor:
    """y[p] = base[p] + scale * (x[p] A[p]^T) B[p] in the columns from start on, base[p] elsewhere.

    Args:
        x: (T, h) or (P, T, h).
        base: (T, width) or (P, T, width).
        A: (P, r, h).
        B: (P, r, o).
        scale: Factor of the deltas.
        start: First column that gets the delta; the last is start + o - 1.

    Returns:
        (P, T, width).
    """
    y = _wide(base).expand(A.shape[0], *base.shape[-2:]).clone()
    y[..., start : start + B.shape[2]] += scale * (_wide(x) @ _wide(A).mT) @ _wide(B)
    return y.to(base.dtype)
