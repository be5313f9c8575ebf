"""The operations on a GPU: from tensors to a kernel's arguments, constants and grid."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources

from lora_kernels import tiles, triton_kernels
from lora_kernels.tiles import Kernel, Tile

MIN_SIDE = 16  # what a tensor core multiplies at least along every side of a product
MAX_GROUP = 4  # candidates a program; the loop over them is unrolled
MAX_RANK = 64

_fastest: dict[Hashable, Tile] = {}


def project(z: Tensor, weight: Tensor, autotune: bool = False) -> Tensor:
    """Map each row of z (P, d_part) through weight (n, d_part) to (P, n)."""
    z, weight = _unit_stride(z), _unit_stride(weight)
    candidates, d_part = z.shape
    n = weight.shape[0]
    out = z.new_empty(candidates, n)

    def launch(tile: Tile) -> None:
        constants = project_constants(tile, candidates, _matrix_unit(z.device))
        triton_kernels.project_kernel[_project_grid(constants, candidates, n)](
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
        _run("project", launch, z.device, autotune, (candidates, n, d_part, weight.dtype))
    return out


def project_seeded(
    z: Tensor, n: int, seed: int, stream: int, std: float, autotune: bool = False
) -> Tensor:
    """The same with the weight drawn from a Philox stream, in registers."""
    z = _unit_stride(z)
    candidates, d_part = z.shape
    out = z.new_empty(candidates, n)

    def launch(tile: Tile) -> None:
        constants = project_constants(tile, candidates, _matrix_unit(z.device))
        triton_kernels.project_seeded_kernel[_project_grid(constants, candidates, n)](
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
        _run("project_seeded", launch, z.device, autotune, (candidates, n, d_part))
    return out


def apply_deltas(
    x: Tensor,
    base: Tensor,
    A: Tensor,
    B: Tensor,
    scale: float,
    start: int,
    precision: str = "tf32x3",
    autotune: bool = False,
) -> Tensor:
    """y[p] = base[p] + scale * (x[p] A[p]^T) B[p] in the columns from start on, base[p] elsewhere.

    Args:
        x: (T, h) or (P, T, h).
        base: (T, width) or (P, T, width).
        A: (P, r, h), r at most 64.
        B: (P, r, o).
        scale: Factor of the deltas.
        start: First column that gets the delta; the last is start + o - 1.
        precision: "tf32x3" or "tf32", for float32 on NVIDIA tensor cores.
        autotune: Measure tiles instead of taking the table's.

    Returns:
        (P, T, width).

    Raises:
        ValueError: If the rank is above 64.
    """
    candidates, rank, hidden = A.shape
    if rank > MAX_RANK:
        raise ValueError(f"the triton backend takes ranks up to {MAX_RANK}; got {rank}")
    tokens, width = base.shape[-2:]
    x, base, A, B = map(_unit_stride, (x, base, A, B))
    y = base.new_empty(candidates, tokens, width)
    x_shared, base_shared = x.dim() == 2, base.dim() == 2

    def launch(tile: Tile) -> None:
        constants = apply_constants(
            tile,
            rank,
            candidates if x_shared else 1,
            base_shared,
            _operand(x),
            _matrix_unit(x.device, precision),
        )
        groups = triton.cdiv(candidates, constants["GROUP"])
        blocks = triton.cdiv(tokens, tile.rows) * groups
        # Few tokens and candidates would leave processors idle: then several programs share the
        # columns, and each computes x A^T anew.
        steps = triton.cdiv(width, tile.columns)
        splits = min(steps, triton.cdiv(4 * _processors(x.device), blocks))
        span = triton.cdiv(steps, splits) * tile.columns
        splits = triton.cdiv(width, span)
        triton_kernels.apply_deltas_kernel[(blocks * splits,)](
            x,
            base,
            A,
            B,
            y,
            scale,
            candidates,
            tokens,
            hidden,
            width,
            start,
            start + B.shape[2],
            groups,
            splits,
            span,
            0 if x_shared else x.stride(0),
            x.stride(-2),
            0 if base_shared else base.stride(0),
            base.stride(-2),
            A.stride(0),
            A.stride(1),
            B.stride(0),
            B.stride(1),
            **constants,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )

    if y.numel():
        kernel: Kernel = "apply_float32" if x.dtype == torch.float32 else "apply_half"
        size = (candidates, triton.next_power_of_2(tokens), hidden, width, rank)
        key = (*size, x_shared, base_shared, x.dtype, precision)
        _run(kernel, launch, x.device, autotune, key)
    return y


def project_constants(tile: Tile, candidates: int, precision: str) -> dict[str, Any]:
    """Compile-time constants of project_kernel and project_seeded_kernel."""
    return {
        "PRECISION": precision,
        "BLOCK_P": min(tile.rows, max(MIN_SIDE, triton.next_power_of_2(candidates))),
        "BLOCK_D": tile.depth,
        "BLOCK_N": tile.columns,
    }


def apply_constants(
    tile: Tile, rank: int, sharing: int, base_shared: bool, operand: tl.dtype, precision: str
) -> dict[str, Any]:
    """Compile-time constants of apply_deltas_kernel.

    Args:
        tile: Tile sizes.
        rank: Rank r.
        sharing: Candidates that share one x.
        base_shared: Whether all candidates share one base.
        operand: Type of the products' operands.
        precision: How the products treat float32.
    """
    padded = triton.next_power_of_2(rank)
    group = min(max(1, MIN_SIDE // padded), MAX_GROUP, triton.next_power_of_2(sharing))
    return {
        "RANK": rank,
        "GROUP": group,
        "LANES": max(MIN_SIDE, padded),
        "BASE_SHARED": base_shared,
        "OPERAND": operand,
        "PRECISION": precision,
        "BLOCK_T": tile.rows,
        "BLOCK_H": tile.depth,
        "BLOCK_O": tile.columns,
    }


def _run(
    kernel: Kernel,
    launch: Callable[[Tile], None],
    device: torch.device,
    autotune: bool,
    key: tuple[Hashable, ...],
) -> None:
    """Launch with the table's tile or, autotuned, with the one that was fastest for this key."""
    if autotune and device.type != "cuda":
        raise ValueError(f"autotune=True measures on a GPU; the tensors are on {device}")
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(device if device.type == "cuda" else -1):
        if autotune:
            place = (kernel, device, key)
            if place not in _fastest:
                _fastest[place] = _measure(kernel, launch)
            launch(_fastest[place])
        else:
            launch(tiles.table_tile(kernel, device))


def _measure(kernel: Kernel, launch: Callable[[Tile], None]) -> Tile:
    milliseconds: dict[Tile, float] = {}
    for tile in tiles.all_tiles(kernel):
        try:
            milliseconds[tile] = triton.testing.do_bench(partial(launch, tile))
        except OutOfResources:
            continue  # another architecture's tile that this card has no room for
    return min(milliseconds, key=milliseconds.__getitem__)


def _project_grid(constants: dict[str, Any], candidates: int, n: int) -> tuple[int, int]:
    return triton.cdiv(n, constants["BLOCK_N"]), triton.cdiv(candidates, constants["BLOCK_P"])


def _matrix_unit(device: torch.device, precision: str = "tf32x3") -> str:
    """How float32 products are to be made: AMD's matrix units multiply float32 itself."""
    return precision if device.type == "cuda" and torch.version.hip is None else "ieee"


def _operand(x: Tensor) -> tl.dtype:
    """Type in which x and the factors are multiplied: their own.

    Except in Triton's interpreter, whose numpy has no bfloat16; products of two bfloat16 numbers
    are exact in float32.
    """
    if x.device.type != "cuda" and x.dtype == torch.bfloat16:
        return tl.float32
    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[
        x.dtype
    ]


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _unit_stride(tensor: Tensor) -> Tensor:
    """The tensor as the kernels read it; their outer strides may be any."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
