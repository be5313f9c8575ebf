"""Tile sizes of the Triton kernels, an architecture a row.

The table holds tiles with which every kernel compiles without register spills and within the card's
shared memory, as ``python -m lora_kernels.inspect`` shows. The fused kernels' aside, those of sm_90
are within a tenth of the fastest of some dozens on an H200, over the shapes of
``lora_kernels.bench``; other cards are not measured, and ``autotune=True`` measures there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

Kernel: TypeAlias = Literal[
    "project", "project_seeded", "apply_half", "apply_float32", "fused_half", "fused_float32"
]

MIN_SIDE = 16  # what a tensor core multiplies at least along every side of a product
MAX_GROUP = 4  # candidates a program; the loop over them is unrolled
MAX_RANK = 64
DRAW_DEPTH = 64  # columns of a seeded projection that are drawn in one step; at least 4 * MIN_SIDE


@dataclass(frozen=True)
class Tile:
    """How a kernel divides its work.

    Attributes:
        rows: Rows of the result a program computes: tokens in apply and fused; in project
            candidates at most, fewer where there are fewer.
        depth: Length of the sum taken in one step.
        columns: Columns of the result computed in one step.
        num_warps: Warps a program.
        num_stages: Steps whose loads are in flight at a time.
    """

    rows: int
    depth: int
    columns: int
    num_warps: int
    num_stages: int


TILES: Mapping[str, Mapping[Kernel, Tile]] = {
    "sm_80": {
        "project": Tile(64, 32, 32, 4, 3),
        "project_seeded": Tile(64, 64, 32, 4, 1),
        "apply_half": Tile(64, 64, 64, 4, 4),
        "apply_float32": Tile(32, 32, 64, 4, 2),
        "fused_half": Tile(64, 32, 32, 8, 1),
        "fused_float32": Tile(32, 32, 64, 8, 1),
    },
    "sm_86": {
        "project": Tile(64, 32, 32, 4, 3),
        "project_seeded": Tile(64, 64, 32, 4, 1),
        "apply_half": Tile(64, 64, 64, 4, 3),
        "apply_float32": Tile(32, 32, 64, 4, 2),
        "fused_half": Tile(64, 32, 32, 8, 1),
        "fused_float32": Tile(32, 32, 64, 8, 1),
    },
    "sm_90": {
        "project": Tile(64, 32, 32, 4, 3),
        "project_seeded": Tile(64, 128, 16, 4, 1),
        "apply_half": Tile(64, 64, 64, 4, 4),
        "apply_float32": Tile(32, 32, 64, 4, 3),
        "fused_half": Tile(64, 32, 32, 8, 1),
        "fused_float32": Tile(32, 32, 64, 8, 1),
    },
    "sm_100": {
        "project": Tile(64, 32, 32, 4, 2),
        "project_seeded": Tile(64, 64, 64, 8, 1),
        "apply_half": Tile(64, 64, 64, 4, 3),
        "apply_float32": Tile(64, 32, 64, 8, 3),
        "fused_half": Tile(64, 64, 32, 4, 1),
        "fused_float32": Tile(32, 32, 64, 8, 1),
    },
    "gfx942": {
        "project": Tile(64, 32, 32, 4, 2),
        "project_seeded": Tile(64, 64, 32, 4, 1),
        "apply_half": Tile(64, 64, 64, 4, 2),
        "apply_float32": Tile(64, 32, 64, 4, 2),
        "fused_half": Tile(64, 32, 32, 8, 1),
        "fused_float32": Tile(32, 32, 64, 8, 1),
    },
}

# Shared memory a program may use, in bytes: CUDA programming guide, table of technical
# specifications per compute capability; AMD Instinct MI300 instruction set, local data share.
SHARED_MEMORY: Mapping[str, int] = {
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "gfx942": 64 << 10,
}


def architecture(device: torch.device) -> str:
    """The table's row for a device.

    An architecture without a row gets the one of its maker with the least shared memory. In
    Triton's interpreter, where there is no device, any row will do.
    """
    if device.type != "cuda":
        return "sm_80"
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    name = f"sm_{major}{minor}"
    return name if name in TILES else "sm_86"


def table_tile(kernel: Kernel, device: torch.device) -> Tile:
    """The table's tile of a kernel on a device."""
    return TILES[architecture(device)][kernel]


def all_tiles(kernel: Kernel) -> list[Tile]:
    """Every tile the table has for a kernel, for autotuning."""
    return list(dict.fromkeys(row[kernel] for row in TILES.values()))


def group_size(rank: int, sharing: int) -> int:
    """Candidates that one program of apply or fused works on.

    A tensor core multiplies at least 16 rows at once and a candidate's A has only r, so candidates
    that share x fill the 16 together.

    Args:
        rank: Rank r.
        sharing: Candidates that share one x.
    """
    return min(max(1, MIN_SIDE // next_power(rank)), MAX_GROUP, next_power(sharing))


def split_columns(width: int, columns: int, splits: int) -> tuple[int, int]:
    """Share out columns among programs, in whole steps.

    Args:
        width: Columns to write.
        columns: Columns written in one step.
        splits: Programs wanted.

    Returns:
        How many programs it takes (at most as many as wanted), and the columns of each.
    """
    steps = max(1, -(-width // columns))
    span = -(-steps // max(1, min(steps, splits))) * columns
    return max(1, -(-width // span)), span


def next_power(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << max(0, n - 1).bit_length()
