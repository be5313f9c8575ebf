"""Candidates' vectors to factors: what one Triton program does. ``triton_launch.py`` starts it.

Tile sizes (BLOCK_*) come from ``tiles.py``. All sums are float32. Innermost strides are 1.
"""

# Arguments of kernels have no Python types: Triton gives them those of each launch.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from lora_kernels.triton_random import normals


@triton.jit
def _load_z(z, stride, candidate, column, candidates, d_part):
    mask = (candidate < candidates)[:, None] & (column < d_part)[None, :]
    tile = tl.load(z + candidate[:, None] * stride + column[None, :], mask=mask, other=0.0)
    return tile.to(tl.float32)


@triton.jit(do_not_specialize=["candidates"])
def project_kernel(
    z,  # (P, d_part), row stride z_stride
    weight,  # (n, d_part), row stride weight_stride
    out,  # (P, n), contiguous
    candidates,
    n,
    d_part,
    z_stride,
    weight_stride,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One tile of z weight^T: BLOCK_N entries of BLOCK_P candidates' factors."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    candidate = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    row_start = row.to(tl.int64) * weight_stride
    acc = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for start in range(0, d_part, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        mask = (row < n)[:, None] & (column < d_part)[None, :]
        w = tl.load(weight + row_start[:, None] + column[None, :], mask=mask, other=0.0)
        z_tile = _load_z(z, z_stride, candidate, column, candidates, d_part)
        acc = tl.dot(z_tile, tl.trans(w.to(tl.float32)), acc, input_precision=PRECISION)
    mask = (candidate < candidates)[:, None] & (row < n)[None, :]
    where = candidate.to(tl.int64)[:, None] * n + row[None, :]
    tl.store(out + where, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["candidates", "seed", "stream"])
def project_seeded_kernel(
    z,  # (P, d_part), row stride z_stride
    out,  # (P, n), contiguous
    seed: tl.int64,
    stream: tl.int64,
    std: tl.float32,
    candidates,
    n,
    d_part,
    z_stride,
    PRECISION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The same, drawing the weight's entries where project_kernel loads them.

    A Philox call gives four neighbouring entries of a row. Rather than interleave them into one
    tile, each of the four is multiplied with every fourth column of z.
    """
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    candidate = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    acc = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for start in range(0, d_part, BLOCK_D):
        group = start // 4 + tl.arange(0, BLOCK_D // 4)
        w0, w1, w2, w3 = normals(seed, stream, row[None, :], group[:, None])
        # Entries past d_part are drawn as well and meet zeros in z.
        z0 = _load_z(z, z_stride, candidate, 4 * group, candidates, d_part)
        z1 = _load_z(z, z_stride, candidate, 4 * group + 1, candidates, d_part)
        z2 = _load_z(z, z_stride, candidate, 4 * group + 2, candidates, d_part)
        z3 = _load_z(z, z_stride, candidate, 4 * group + 3, candidates, d_part)
        acc = tl.dot(z0, w0, acc, input_precision=PRECISION)
        acc = tl.dot(z1, w1, acc, input_precision=PRECISION)
        acc = tl.dot(z2, w2, acc, input_precision=PRECISION)
        acc = tl.dot(z3, w3, acc, input_precision=PRECISION)
    mask = (candidate < candidates)[:, None] & (row < n)[None, :]
    where = candidate.to(tl.int64)[:, None] * n + row[None, :]
    tl.store(out + where, (std * acc).to(out.dtype.element_ty), mask=mask)
