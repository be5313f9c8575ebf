"""The operations on a GPU: from tensors to a kernel's arguments, constants and grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lora_kernels.tiles import (
    DRAW_DEPTH,
    MAX_RANK,
    MIN_SIDE,
    Kernel,
    Tile,
    group_size,
    next_power,
    split_columns,
)
from lora_kernels.triton_apply import apply_deltas_kernel
from lora_kernels.triton_fused import project_apply_kernel
from lora_kernels.triton_project import project_kernel, project_seeded_kernel
from lora_kernels.triton_run import matrix_unit, operand, processors, run, unit_stride


def project(z: Tensor, weight: Tensor, dtype: torch.dtype, autotune: bool = False) -> Tensor:
    """Map each row of z (P, d_part) through weight (n, d_part) to (P, n) of a type."""
    z, weight = unit_stride(z), unit_stride(weight)
    candidates, d_part = z.shape
    n = weight.shape[0]
    out = z.new_empty(candidates, n, dtype=dtype)

    def launch(tile: Tile) -> None:
        constants = project_constants(tile, candidates, matrix_unit(z.device))
        project_kernel[_project_grid(constants, candidates, n)](
            z,
            weight,
            out,
            candidates,
            n,
            d_part,
            z.stride(0),
            weight.stride(0),
            **constants,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )

    if candidates:
        run("project", launch, z.device, autotune, (candidates, n, d_part, weight.dtype))
    return out


def project_seeded(
    z: Tensor,
    n: int,
    seed: int,
    stream: int,
    std: float,
    dtype: torch.dtype,
    autotune: bool = False,
) -> Tensor:
    """The same with the weight drawn from a Philox stream, in registers."""
    z = unit_stride(z)
    candidates, d_part = z.shape
    out = z.new_empty(candidates, n, dtype=dtype)

    def launch(tile: Tile) -> None:
        constants = project_constants(tile, candidates, matrix_unit(z.device))
        project_seeded_kernel[_project_grid(constants, candidates, n)](
            z,
            out,
            seed,
            stream,
            std,
            candidates,
            n,
            d_part,
            z.stride(0),
            **constants,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )

    if candidates:
        run("project_seeded", launch, z.device, autotune, (candidates, n, d_part))
    return out


def apply_deltas(
    x: Tensor,
    bases: Sequence[Tensor],
    A: Sequence[Tensor],
    B: Sequence[Tensor],
    into: Sequence[int],
    start: Sequence[int],
    scale: float,
    precision: str = "tf32x3",
    autotune: bool = False,
) -> list[Tensor]:
    """Each base plus the deltas that go into it, all in one launch.

    Args:
        x: (T, h) or (P, T, h).
        bases: (T, width) or (P, T, width) each.
        A: (P, r, h) for each delta, r at most 64.
        B: (P, r, o) for each delta.
        into: Which base each delta goes into, in rising order.
        start: Its first column there, in rising order for one base; deltas don't overlap.
        scale: Factor of the deltas.
        precision: "tf32x3" or "tf32", for float32 on NVIDIA tensor cores.
        autotune: Measure tiles instead of taking the table's.

    Returns:
        (P, T, width) for each base.

    Raises:
        ValueError: If a rank is above 64.
    """
    candidates, hidden = A[0].shape[0], A[0].shape[2]
    ranks = [a.shape[1] for a in A]
    _check_rank(max(ranks))
    x, tokens = unit_stride(x), x.shape[-2]
    bases, A, B = ([unit_stride(t) for t in tensors] for tensors in (bases, A, B))
    ys = [base.new_empty(candidates, tokens, base.shape[-1]) for base in bases]
    x_shared, base_shared = x.dim() == 2, all(base.dim() == 2 for base in bases)
    stop = [first + b.shape[2] for first, b in zip(start, B, strict=True)]
    left, right = _territories([base.shape[-1] for base in bases], into, start)
    y, base = [ys[i] for i in into], [bases[i] for i in into]

    def launch(tile: Tile) -> None:
        constants = apply_constants(
            tile,
            max(ranks),
            candidates if x_shared else 1,
            base_shared,
            operand(x),
            matrix_unit(x.device, precision),
        )
        groups = triton.cdiv(candidates, constants["GROUP"])
        blocks = triton.cdiv(tokens, tile.rows) * groups
        # Few tokens and candidates would leave processors idle: then several programs share the
        # columns, and each computes x A^T anew.
        wanted = triton.cdiv(4 * processors(x.device), blocks * len(A))
        widest = max(end - begin for begin, end in zip(left, right, strict=True))
        splits, _ = split_columns(widest, tile.columns, wanted)
        apply_deltas_kernel[(blocks * splits * len(A),)](
            x,
            tuple(base),
            tuple(y),
            tuple(A),
            tuple(B),
            tuple(left),
            tuple(right),
            tuple(start),
            tuple(stop),
            tuple(ranks),
            tuple(_candidate_stride(t) for t in base),
            tuple(t.stride(-2) for t in base),
            tuple(t.stride(0) for t in y),
            tuple(t.stride(1) for t in y),
            tuple(a.stride(0) for a in A),
            tuple(a.stride(1) for a in A),
            tuple(b.stride(0) for b in B),
            tuple(b.stride(1) for b in B),
            _candidate_stride(x),
            x.stride(-2),
            scale,
            candidates,
            tokens,
            hidden,
            groups,
            blocks,
            splits,
            **constants,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )

    if candidates * tokens:
        kernel: Kernel = "apply_float32" if x.dtype == torch.float32 else "apply_half"
        size = (candidates, triton.next_power_of_2(tokens), hidden, *left, *right, *ranks)
        key = (*size, x_shared, base_shared, x.dtype, precision)
        run(kernel, launch, x.device, autotune, key)
    return ys


def project_apply(
    x: Tensor,
    base: Tensor,
    z_a: Tensor,
    z_b: Tensor,
    rank: int,
    seeds: Sequence[int],
    stds: Sequence[float],
    scale: float,
    start: int,
    stop: int,
    precision: str = "tf32x3",
    autotune: bool = False,
) -> Tensor:
    """One target's base plus its deltas, whose factors are drawn and projected in registers.

    Args:
        x: (T, h) or (P, T, h).
        base: (T, width) or (P, T, width).
        z_a: (P, d_a), the vectors that become A.
        z_b: (P, d_b), those that become B.
        rank: Rank r, at most 64.
        seeds: Seed and stream of A's projection, seed and stream of B's.
        stds: Standard deviation of the entries of A's projection and of B's.
        scale: Factor of the deltas.
        start: First column that gets the delta.
        stop: Column after the last.
        precision: "tf32x3" or "tf32", for float32 on NVIDIA tensor cores.
        autotune: Measure tiles instead of taking the table's.

    Returns:
        (P, T, width).

    Raises:
        ValueError: If the rank is above 64.
    """
    _check_rank(rank)
    x, base, z_a, z_b = map(unit_stride, (x, base, z_a, z_b))
    candidates, hidden = z_a.shape[0], x.shape[-1]
    tokens, width = base.shape[-2:]
    y = base.new_empty(candidates, tokens, width)
    x_shared, base_shared = x.dim() == 2, base.dim() == 2

    def launch(tile: Tile) -> None:
        constants = fused_constants(
            tile,
            rank,
            candidates if x_shared else 1,
            base_shared,
            operand(x),
            matrix_unit(x.device, precision),
            matrix_unit(x.device),
        )
        groups = triton.cdiv(candidates, constants["GROUP"])
        blocks = triton.cdiv(tokens, tile.rows) * groups
        # Programs that share the columns draw all of A each, so there is one a processor at most.
        splits, span = split_columns(width, tile.columns, processors(x.device) // blocks)
        project_apply_kernel[(blocks * splits,)](
            x,
            base,
            y,
            z_a,
            z_b,
            seeds[0],
            seeds[1],
            stds[0],
            seeds[2],
            seeds[3],
            stds[1],
            scale,
            candidates,
            tokens,
            hidden,
            width,
            rank,
            start,
            stop,
            z_a.shape[1],
            z_b.shape[1],
            groups,
            splits,
            span,
            _candidate_stride(x),
            x.stride(-2),
            _candidate_stride(base),
            base.stride(-2),
            z_a.stride(0),
            z_b.stride(0),
            **constants,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )

    if y.numel():
        kernel: Kernel = "fused_float32" if x.dtype == torch.float32 else "fused_half"
        size = (candidates, triton.next_power_of_2(tokens), hidden, width, rank)
        sizes = (*size, start, stop, z_a.shape[1], z_b.shape[1])
        key = (*sizes, x_shared, base_shared, x.dtype, precision)
        run(kernel, launch, x.device, autotune, key)
    return y


def project_constants(tile: Tile, candidates: int, precision: str) -> dict[str, Any]:
    """Compile-time constants of project_kernel and project_seeded_kernel."""
    return {
        "PRECISION": precision,
        "BLOCK_P": min(tile.rows, max(MIN_SIDE, next_power(candidates))),
        "BLOCK_D": tile.depth,
        "BLOCK_N": tile.columns,
    }


def apply_constants(
    tile: Tile, rank: int, sharing: int, base_shared: bool, operand: tl.dtype, precision: str
) -> dict[str, Any]:
    """Compile-time constants of apply_deltas_kernel.

    Args:
        tile: Tile sizes.
        rank: The largest rank r.
        sharing: Candidates that share one x.
        base_shared: Whether all candidates share every base.
        operand: Type of the products' operands.
        precision: How the products treat float32.
    """
    return {
        "GROUP": group_size(rank, sharing),
        "LANES": max(MIN_SIDE, next_power(rank)),
        "BASE_SHARED": base_shared,
        "OPERAND": operand,
        "PRECISION": precision,
        "BLOCK_T": tile.rows,
        "BLOCK_H": tile.depth,
        "BLOCK_O": tile.columns,
    }


def fused_constants(
    tile: Tile,
    rank: int,
    sharing: int,
    base_shared: bool,
    operand: tl.dtype,
    precision: str,
    draw_precision: str,
) -> dict[str, Any]:
    """Compile-time constants of project_apply_kernel: those of apply_deltas_kernel, and its draws'.

    The factors are made as project makes them, in draw_precision, whatever precision is.
    """
    constants = apply_constants(tile, rank, sharing, base_shared, operand, precision)
    return {**constants, "DRAW_PRECISION": draw_precision, "BLOCK_D": DRAW_DEPTH}


def _territories(
    widths: Sequence[int], into: Sequence[int], start: Sequence[int]
) -> tuple[list[int], list[int]]:
    """First and last column, plus one, of what each delta's programs write.

    Each of a base's columns is written once: those without a delta by the programs of the delta
    before them, or of the first.
    """
    left, right = [], []
    for i, base in enumerate(into):
        is_first = i == 0 or into[i - 1] != base
        is_last = i + 1 == len(into) or into[i + 1] != base
        left.append(0 if is_first else start[i])
        right.append(widths[base] if is_last else start[i + 1])
    return left, right


def _project_grid(constants: dict[str, Any], candidates: int, n: int) -> tuple[int, int]:
    return triton.cdiv(n, constants["BLOCK_N"]), triton.cdiv(candidates, constants["BLOCK_P"])


def _candidate_stride(tensor: Tensor) -> int:
    return 0 if tensor.dim() == 2 else tensor.stride(0)


def _check_rank(rank: int) -> None:
    if rank > MAX_RANK:
        raise ValueError(f"the triton backend takes ranks up to {MAX_RANK}; got {rank}")
