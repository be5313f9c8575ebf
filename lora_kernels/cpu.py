"""The operations on a CPU: few, large matrix products and no copy that can be saved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_kernels import reference
from lora_kernels.philox import normal_rows

# Entries of a seeded projection that exist at one time.
BLOCK_ENTRIES = 1 << 20

project = reference.project  # one product, which nothing beats here


def project_seeded(
    z: Tensor, n: int, seed: int, stream: int, std: float, dtype: torch.dtype
) -> Tensor:
    """The same with the weight drawn from a Philox stream, a block of rows at a time."""
    wide, d_part = std * z.to(torch.float32), z.shape[1]
    out = z.new_empty(z.shape[0], n, dtype=dtype)
    rows = max(1, BLOCK_ENTRIES // d_part)
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        out[:, start:stop] = wide @ normal_rows(seed, stream, start, stop, d_part).mT
    return out


def apply_deltas(
    x: Tensor,
    bases: Sequence[Tensor],
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    into: Sequence[int],
    start: Sequence[int],
    scale: float,
) -> list[Tensor]:
    """Each base plus the deltas that go into it; each of a base's columns is written once.

    The products accumulate in float32; x A^T is rounded to the inputs' type in between.

    Args:
        x: (T, h) or (P, T, h).
        bases: (T, width) or (P, T, width) each.
        A: (P, r, h) for each delta.
        B: (P, r, o) for each delta.
        into: Which base each delta goes into, in rising order.
        start: Its first column there, in rising order for one base; deltas don't overlap.
        scale: Factor of the deltas.

    Returns:
        (P, T, width) for each base.
    """
    candidates, lows = A[0].shape[0], _products(x, A)
    ys = [base.new_empty(candidates, *base.shape[-2:]) for base in bases]
    filled = [0] * len(bases)
    for low, b, i, first in zip(lows, B, into, start, strict=True):
        base, y, stop = bases[i].expand_as(ys[i]), ys[i], first + b.shape[2]
        _copy(base, y, filled[i], first)
        torch.baddbmm(base[..., first:stop], low, b, alpha=scale, out=y[..., first:stop])
        filled[i] = stop
    for base, y, stop in zip(bases, ys, filled, strict=True):
        _copy(base, y, stop, y.shape[-1])
    return ys


def _copy(base: Tensor, y: Tensor, start: int, stop: int) -> None:
    """Copy the columns between two deltas, if there are any."""
    if start < stop:
        y[..., start:stop] = base[..., start:stop]


def _products(x: Tensor, A: Sequence[Tensor]) -> Sequence[Tensor]:
    """Each delta's x A^T (P, T, r), all of them in one product."""
    if x.dim() == 3:
        return torch.split(x @ _joined(A, 1).mT, [a.shape[1] for a in A], dim=2)
    # x is shared: all candidates' A are the rows of one matrix.
    low = x @ _joined([a.flatten(0, 1) for a in A], 0).mT
    shares = torch.split(low, [a.shape[0] * a.shape[1] for a in A], dim=1)
    return [
        share.view(len(x), *a.shape[:2]).transpose(0, 1) for share, a in zip(shares, A, strict=True)
    ]


def _joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)
