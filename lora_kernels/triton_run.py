"""What every launch of a Triton kernel needs: a tile, a device, and how its products are made."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources

from lora_kernels import tiles
from lora_kernels.tiles import Kernel, Tile

_fastest: dict[Hashable, Tile] = {}


def run(
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


def matrix_unit(device: torch.device, precision: str = "tf32x3") -> str:
    """How float32 products are to be made: AMD's matrix units multiply float32 itself."""
    return precision if device.type == "cuda" and torch.version.hip is None else "ieee"


def operand(x: Tensor) -> tl.dtype:
    """Type in which x and the factors are multiplied: their own.

    Except in Triton's interpreter, whose numpy has no bfloat16; products of two bfloat16 numbers
    are exact in float32.
    """
    if x.device.type != "cuda" and x.dtype == torch.bfloat16:
        return tl.float32
    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[
        x.dtype
    ]


def processors(device: torch.device) -> int:
    """Processors (SMs, CUs) of a device."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor as the kernels read it; their outer strides may be any."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
