"""The kinds of calls that compile to different code, with the types and constants of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import triton.language as tl

from lora_kernels import tiles
from lora_kernels.tiles import Kernel, Tile
from lora_kernels.triton_apply import apply_deltas_kernel
from lora_kernels.triton_fused import project_apply_kernel
from lora_kernels.triton_launch import apply_constants, fused_constants, project_constants
from lora_kernels.triton_project import project_kernel, project_seeded_kernel

TYPES = {"fp32": tl.float32, "fp16": tl.float16, "bf16": tl.bfloat16}

# Arguments that are multiples of 16 in practice; Triton then loads 16 bytes at a time. Widths of
# layers are, the length of a vector part (500 / 4 in the paper) is not.
ALIGNED = {"hidden", "width", "left", "right", "start", "stop", "span", "n"}
ALIGNED |= {f"{name}_stride_{axis}" for name in ("x", "base", "y") for axis in "pt"}
ALIGNED |= {f"{name}_stride_{axis}" for name in ("a", "b") for axis in "pr"}
OTHER_TYPES = dict.fromkeys(("scale", "std", "std_a", "std_b"), "fp32")
for _name in ("seed", "stream"):
    OTHER_TYPES |= dict.fromkeys((_name, f"{_name}_a", f"{_name}_b"), "i64")

# Arguments of apply_deltas_kernel that have one entry a delta.
PER_DELTA = {"base", "y", "a", "b", "left", "right", "start", "stop", "rank"}
PER_DELTA |= {"base_stride_p", "base_stride_t", "y_stride_p", "y_stride_t"}
PER_DELTA |= {"a_stride_p", "a_stride_r", "b_stride_p", "b_stride_r"}

# Rank, how many candidates share x, targets: four, two or one candidate a program.
CALLS = ((4, 20, 2), (4, 20, 1), (8, 20, 1), (4, 1, 2), (32, 20, 1), (64, 1, 3))


@dataclass(frozen=True)
class Variant:
    """A kernel with the types and constants of one kind of call.

    Attributes:
        kernel: Its name in the tile table.
        label: What kind of call it is.
        function: The kernel itself.
        pointers: Element type of each tensor argument.
        tile: Tile sizes.
        constants: Compile-time arguments.
        tuples: Arguments that are tuples, and how long those are.
    """

    kernel: Kernel
    label: str
    function: Any
    pointers: Mapping[str, str]
    tile: Tile
    constants: Mapping[str, Any]
    tuples: Mapping[str, int] = field(default_factory=dict)

    def signature(self) -> tuple[dict[str, Any], dict[tuple[int, ...], list[list[Any]]]]:
        """The type of each argument, and which of them are multiples of 16, as Triton wants it."""
        signature: dict[str, Any] = {}
        attributes: dict[tuple[int, ...], list[list[Any]]] = {}
        for place, name in enumerate(self.function.arg_names):
            if name in self.constants:
                signature[name] = "constexpr"
                continue
            kind = OTHER_TYPES.get(name, "i32")
            if name in self.pointers:
                kind = f"*{self.pointers[name]}"
            length = self.tuples.get(name)
            signature[name] = kind if length is None else (kind,) * length
            if name in self.pointers or name in ALIGNED:
                paths = [(place,)] if length is None else [(place, i) for i in range(length)]
                attributes |= {path: [["tt.divisibility", 16]] for path in paths}
        return signature, attributes


def variants(arch: str) -> list[Variant]:
    """All kinds of calls with an architecture's tiles; the commonest of each kernel comes first."""
    exact = "ieee" if arch.startswith("gfx") else "tf32x3"
    return [*_project(arch, exact), *_apply(arch, exact), *_fused(arch, exact)]


def commonest(found: Sequence[Variant]) -> list[Variant]:
    """The first variant of each kernel."""
    return list({variant.kernel: variant for variant in reversed(found)}.values())[::-1]


def _project(arch: str, exact: str) -> Iterator[Variant]:
    row = tiles.TILES[arch]
    for candidates in (20, 5, 64):
        for weight in ("fp32", "bf16") if candidates == 20 else ("fp32",):
            yield Variant(
                "project",
                f"{candidates} candidates, {weight} weight",
                project_kernel,
                {"z": "fp32", "weight": weight, "out": "fp32"},
                row["project"],
                project_constants(row["project"], candidates, exact),
            )
        yield Variant(
            "project_seeded",
            f"{candidates} candidates",
            project_seeded_kernel,
            {"z": "fp32", "out": "fp32"},
            row["project_seeded"],
            project_constants(row["project_seeded"], candidates, exact),
        )


def _apply(arch: str, exact: str) -> Iterator[Variant]:
    row = tiles.TILES[arch]
    whole = [("bf16", exact), ("fp32", exact)]
    products = [*whole, ("fp16", exact)]
    if exact == "tf32x3":
        products.append(("fp32", "tf32"))
    for dtype, precision in products:
        kernel: Kernel = "apply_float32" if dtype == "fp32" else "apply_half"
        # fp16 and bf16 differ in one field of the instructions, tf32 is part of tf32x3: one tells.
        for rank, sharing, targets in CALLS if (dtype, precision) in whole else CALLS[:1]:
            label = f"rank {rank}, {dtype}" + (f" as {precision}" if dtype == "fp32" else "")
            shared = "shared" if sharing > 1 else "own"
            yield Variant(
                kernel,
                f"{label}, {shared} x, {targets} target{'s' * (targets > 1)}",
                apply_deltas_kernel,
                dict.fromkeys(("x", "base", "a", "b", "y"), dtype),
                row[kernel],
                apply_constants(row[kernel], rank, sharing, sharing > 1, TYPES[dtype], precision),
                dict.fromkeys(PER_DELTA, targets),
            )


def _fused(arch: str, exact: str) -> Iterator[Variant]:
    row = tiles.TILES[arch]
    for dtype in ("bf16", "fp32"):
        kernel: Kernel = "fused_float32" if dtype == "fp32" else "fused_half"
        for rank, sharing in ((4, 20), (4, 1), (64, 1)):
            constants = fused_constants(
                row[kernel], rank, sharing, sharing > 1, TYPES[dtype], exact, exact
            )
            yield Variant(
                kernel,
                f"rank {rank}, {dtype}, {'shared' if sharing > 1 else 'own'} x",
                project_apply_kernel,
                {**dict.fromkeys(("x", "base", "y"), dtype), "z_a": "fp32", "z_b": "fp32"},
                row[kernel],
                constants,
            )
