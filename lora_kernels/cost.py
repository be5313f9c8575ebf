"""What the operations cost on a GPU, on paper: bytes, products, draws, launches, and the time.

The model is a roofline with launches (Williams, Waterman, Patterson: "Roofline", CACM 2009): a
launch takes as long as the slowest of its memory traffic, its products and its drawing of random
numbers, divided by the share of the processors that its programs keep busy. It decides at run time
whether projecting and applying in one launch pays. docs/kernels.md derives the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from lora_kernels.tiles import (
    DRAW_DEPTH,
    MIN_SIDE,
    TILES,
    Kernel,
    group_size,
    next_power,
    split_columns,
)

# Instructions a thread executes for one Philox call and the two Box-Muller transforms that make
# four normal numbers of it: 173 on sm_80 and 166 on sm_90, counted in the machine code.
DRAW_INSTRUCTIONS = 170
# The same where a draw serves one tile of one program and its four products have 16 rows: those and
# the moves between layouts take most of the time. Measured on an H200 at four shapes, 4.1 to 4.5
# times what the draws' instructions alone take.
FUSED_DRAW_INSTRUCTIONS = 750


@dataclass(frozen=True)
class Device:
    """A card's peaks, from its data sheet.

    Attributes:
        name: What PyTorch's name of the card contains.
        arch: Its row in the tile table.
        processors: Streaming multiprocessors.
        bandwidth: Bytes a second from and to memory.
        matrix: Multiply-add operations a second (two for each multiply-add) of the tensor cores,
            without sparsity and accumulating in float32, by type of the operands; float32 as tf32.
        instructions: Instructions a second of all threads: 128 a clock and processor.
        launch: Seconds that one launch more takes in a queue that is never empty. An assumption,
            not a data sheet's figure: launches from Python, where the queue runs empty, take more.
    """

    name: str
    arch: str
    processors: int
    bandwidth: float
    matrix: Mapping[torch.dtype, float]
    instructions: float
    launch: float = 5e-6


def _peaks(half: float, tf32: float) -> dict[torch.dtype, float]:
    return {torch.float16: half, torch.bfloat16: half, torch.float32: tf32}


# NVIDIA's data sheets of H100 SXM5, H200 SXM and A100 SXM4 80 GB; the GA102 whitepaper (table 9)
# for the RTX 3090. Of a card that is not here, little is assumed.
DEVICES: Mapping[str, Device] = {
    "H100": Device("H100", "sm_90", 132, 3.35e12, _peaks(989e12, 494e12), 132 * 128 * 1.98e9),
    "H200": Device("H200", "sm_90", 132, 4.8e12, _peaks(989e12, 494e12), 132 * 128 * 1.98e9),
    "A100": Device("A100", "sm_80", 108, 2.04e12, _peaks(312e12, 156e12), 108 * 128 * 1.41e9),
    "RTX 3090": Device("RTX 3090", "sm_86", 82, 0.936e12, _peaks(71e12, 35.6e12), 82 * 128 * 1.7e9),
    "generic": Device("generic", "sm_86", 40, 0.4e12, _peaks(40e12, 20e12), 40 * 128 * 1.5e9),
}


def device_for(device: torch.device) -> Device:
    """The row of `DEVICES` for a card, by its name; "generic" if there is none."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known in DEVICES.values():
            if known.name in name:
                return known
    return DEVICES["generic"]


@dataclass(frozen=True)
class Launch:
    """The work of one launch.

    Attributes:
        bytes: Read from memory and written to it, each operand once.
        flops: Operations of the products, two for each multiply-add.
        dtype: Type of their operands.
        draws: Philox calls, each of which gives four random numbers.
        programs: Programs it consists of.
        per_draw: Instructions a draw takes.
    """

    bytes: float
    flops: float
    dtype: torch.dtype
    draws: float
    programs: int
    per_draw: int = DRAW_INSTRUCTIONS

    def work(self, device: Device) -> float:
        """Seconds that the slowest of the three takes on all of a device's processors."""
        return max(
            self.bytes / device.bandwidth,
            self.flops / device.matrix[self.dtype],
            self.draws * self.per_draw / device.instructions,
        )

    def seconds(self, device: Device) -> float:
        """Expected time: the work's, on the processors that the programs keep busy, and a launch's.

        Programs run in rounds of one a processor, so that a last round that is not full costs as
        much as one that is.
        """
        if not self.programs:
            return device.launch
        rounds = -(-self.programs // device.processors)
        return device.launch + self.work(device) * rounds * device.processors / self.programs


def seconds(launches: Sequence[Launch], device: Device) -> float:
    """Expected time of launches one after the other."""
    return sum(launch.seconds(device) for launch in launches)


@dataclass(frozen=True)
class Sizes:
    """The sizes of one target's deltas.

    Attributes:
        candidates: P.
        tokens: T of each candidate.
        hidden: Width h of the input.
        out_features: Width o of the target.
        rank: Rank r.
        d_a: Length of the vector part that becomes A.
        d_b: Length of the one that becomes B.
        dtype: Type of x, base and the factors; vectors are float32.
        width: Width of the frozen projection's output (None: out_features).
        x_shared: Whether all candidates share x.
        base_shared: Whether all candidates share base.
    """

    candidates: int
    tokens: int
    hidden: int
    out_features: int
    rank: int
    d_a: int
    d_b: int
    dtype: torch.dtype = torch.bfloat16
    width: int | None = None
    x_shared: bool = True
    base_shared: bool = True

    @property
    def columns(self) -> int:
        """Width of the output."""
        return self.out_features if self.width is None else self.width


def project(
    candidates: int,
    n: int,
    d_part: int,
    device: Device,
    stored: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
) -> Launch:
    """One projection of all candidates' vectors (P, d_part), float32, to (P, n).

    Args:
        candidates: P.
        n: Entries of the factor.
        d_part: Length of the vector part.
        device: Whose tiles divide the work.
        stored: Type of the entries of a stored projection; None: seeded.
        dtype: Type of the factors.
    """
    kernel: Kernel = "project_seeded" if stored is None else "project"
    tile = TILES[device.arch][kernel]
    rows = min(tile.rows, max(MIN_SIDE, next_power(candidates)))
    over_candidates = -(-candidates // rows)
    ends = candidates * (4 * d_part + dtype.itemsize * n)
    return Launch(
        bytes=ends + (0 if stored is None else n * d_part * stored.itemsize),
        flops=2 * candidates * n * d_part,
        dtype=torch.float32,
        draws=over_candidates * n * _calls(d_part, tile.depth) if stored is None else 0,
        programs=-(-n // tile.columns) * over_candidates,
    )


def apply(targets: Sequence[Sizes], device: Device) -> Launch:
    """One launch for the deltas of targets that share x.

    Args:
        targets: Their sizes; the width of each is that of the output's columns which its programs
            write. Together these are the outputs' columns.
        device: Whose tiles divide the work.
    """
    first = targets[0]
    kernel: Kernel = "apply_float32" if first.dtype == torch.float32 else "apply_half"
    tile = TILES[device.arch][kernel]
    rank = max(target.rank for target in targets)
    blocks = len(targets) * _blocks(replace(first, rank=rank), tile.rows)
    wanted = -(-4 * device.processors // max(1, blocks))
    splits, _ = split_columns(max(t.columns for t in targets), tile.columns, wanted)
    return Launch(
        bytes=_x_bytes(first) + sum(_outer_bytes(t) + _factor_bytes(t) for t in targets),
        flops=sum(_flops(target) for target in targets),
        dtype=first.dtype,
        draws=0,
        programs=blocks * splits,
    )


def separate(sizes: Sizes, device: Device) -> list[Launch]:
    """Two seeded projections that write A and B, and a launch that reads and applies them."""
    parts = ((sizes.hidden, sizes.d_a), (sizes.out_features, sizes.d_b))
    return [
        *(
            project(sizes.candidates, sizes.rank * width, d_part, device, dtype=sizes.dtype)
            for width, d_part in parts
        ),
        apply([sizes], device),
    ]


def fused(sizes: Sizes, device: Device) -> Launch:
    """One launch that draws, projects and applies; each program draws what it needs."""
    kernel: Kernel = "fused_float32" if sizes.dtype == torch.float32 else "fused_half"
    tile = TILES[device.arch][kernel]
    blocks = _blocks(sizes, tile.rows)
    splits, span = split_columns(sizes.columns, tile.columns, device.processors // max(1, blocks))
    own = min(span, sizes.out_features)  # columns of B that a program draws
    calls_a = sizes.rank * sizes.hidden * _calls(sizes.d_a, DRAW_DEPTH)
    calls_b = sizes.rank * own * _calls(sizes.d_b, DRAW_DEPTH)
    vectors = sizes.candidates * (sizes.d_a + sizes.d_b) * 4
    return Launch(
        bytes=_x_bytes(sizes) + _outer_bytes(sizes) + vectors,
        flops=_flops(sizes),
        dtype=sizes.dtype,
        draws=blocks * splits * (calls_a + calls_b),
        programs=blocks * splits,
        per_draw=FUSED_DRAW_INSTRUCTIONS,
    )


def fusing_pays(sizes: Sizes, device: Device) -> bool:
    """Whether one launch is expected to take less time than projecting and applying apart."""
    return fused(sizes, device).seconds(device) < seconds(separate(sizes, device), device)


def crossover(sizes: Sizes, device: Device) -> int:
    """The largest input and output width h = o, in steps of 16, at which fusing pays; or 0.

    All else is as in the sizes.
    """
    best = 0
    for hidden in range(16, 8193, 16):
        scaled = replace(sizes, hidden=hidden, out_features=hidden, width=None)
        if not fusing_pays(scaled, device):
            break
        best = hidden
    return best


def _calls(d_part: int, depth: int) -> int:
    """Philox calls for one row of a projection: whole steps are drawn, four numbers a call."""
    return -(-d_part // depth) * depth // 4


def _blocks(sizes: Sizes, rows: int) -> int:
    sharing = sizes.candidates if sizes.x_shared else 1
    return -(-sizes.tokens // rows) * -(-sizes.candidates // group_size(sizes.rank, sharing))


def _x_bytes(sizes: Sizes) -> int:
    copies = 1 if sizes.x_shared else sizes.candidates
    return copies * sizes.tokens * sizes.hidden * sizes.dtype.itemsize


def _factor_bytes(sizes: Sizes) -> int:
    width = sizes.hidden + sizes.out_features
    return sizes.candidates * sizes.rank * width * sizes.dtype.itemsize


def _outer_bytes(sizes: Sizes) -> int:
    """Bytes of base and y."""
    copies = (1 if sizes.base_shared else sizes.candidates) + sizes.candidates
    return copies * sizes.tokens * sizes.columns * sizes.dtype.itemsize


def _flops(sizes: Sizes) -> int:
    width = sizes.hidden + sizes.out_features
    return 2 * sizes.candidates * sizes.tokens * sizes.rank * width
