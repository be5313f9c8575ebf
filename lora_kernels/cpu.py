"""The operations on a CPU: few, large matrix products and no copy that can be saved."""

from __future__ import annotations

import torch
from torch import Tensor

from lora_kernels.philox import normal_rows

# Entries of a seeded projection that exist at one time.
BLOCK_ENTRIES = 1 << 20


def project(z: Tensor, weight: Tensor) -> Tensor:
    """Map each row of z (P, d_part) through weight (n, d_part) to (P, n)."""
    return z @ weight.to(z.dtype).mT


def project_seeded(z: Tensor, n: int, seed: int, stream: int, std: float) -> Tensor:
    """The same with the weight drawn from a Philox stream, a block of rows at a time."""
    wide, d_part = std * z.to(torch.float32), z.shape[1]
    out = z.new_empty(z.shape[0], n)
    rows = max(1, BLOCK_ENTRIES // d_part)
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        out[:, start:stop] = wide @ normal_rows(seed, stream, start, stop, d_part).mT
    return out


def apply_deltas(x: Tensor, base: Tensor, A: Tensor, B: Tensor, scale: float, start: int) -> Tensor:
    """y[p] = base[p] + scale * (x[p] A[p]^T) B[p] in the columns from start on, base[p] elsewhere.

    The products accumulate in float32; x A^T is rounded to the inputs' type in between.

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
    candidates, rank, hidden = A.shape
    tokens, width = base.shape[-2:]
    if x.dim() == 2:  # one product for all candidates: their A are the rows of one matrix
        low = (x @ A.reshape(-1, hidden).mT).view(tokens, candidates, rank).transpose(0, 1)
    else:
        low = x @ A.mT
    everyone = base.expand(candidates, tokens, width)
    if B.shape[2] == width:
        return torch.baddbmm(everyone, low, B, alpha=scale)
    y = everyone.clone(memory_format=torch.contiguous_format)
    y[..., start : start + B.shape[2]].baddbmm_(low, B, alpha=scale)
    return y
