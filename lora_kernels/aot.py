"""Ahead-of-time compilation of every kernel for every architecture, without a GPU.

A kernel compiles on any machine; what the compiler and the assembler made of it says much of how
it will run: whether its products are on tensor cores, whether it fits into the registers and into
the card's shared memory. ``python -m lora_kernels.inspect`` prints it as a table.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lora_kernels import tiles, triton_kernels
from lora_kernels.tiles import Kernel, Tile
from lora_kernels.triton_launch import apply_constants, project_constants

TYPES = {"fp32": tl.float32, "fp16": tl.float16, "bf16": tl.bfloat16}

# Instructions that run on tensor cores: PTX of sm_80, sm_90 and sm_100, and AMD's.
MATRIX_INSTRUCTIONS = ("mma.sync", "wgmma.mma_async", "tcgen05.mma", "v_mfma")

# Arguments that are multiples of 16 in practice; Triton then loads 16 bytes at a time. Widths of
# layers are, the length of a vector part (500 / 4 in the paper) is not.
ALIGNED = {"hidden", "width", "start", "stop", "span", "n"}
ALIGNED |= {f"{name}_stride_{axis}" for name in ("x", "base") for axis in "pt"}
ALIGNED |= {f"{name}_stride_{axis}" for name in ("a", "b") for axis in "pr"}
OTHER_TYPES = {"seed": "i64", "stream": "i64", "scale": "fp32", "std": "fp32"}

# Rank, and how many candidates share x: four, two or one of them share a program.
CALLS = ((4, 20), (8, 20), (4, 1), (32, 20), (64, 1))


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
    """

    kernel: Kernel
    label: str
    function: Any
    pointers: Mapping[str, str]
    tile: Tile
    constants: Mapping[str, Any]


@dataclass(frozen=True)
class Report:
    """What became of a variant on an architecture.

    Attributes:
        arch: The architecture.
        kernel: The kernel's name in the tile table.
        label: What kind of call it is.
        tile: Rows x depth x columns, warps and stages.
        matrix_instructions: Number of each kind of tensor-core instruction in the assembly.
        registers: Registers a thread.
        spills: Bytes of registers spilled to memory and back (on AMD: registers spilled).
        stack: Bytes of a thread's stack frame.
        shared: Bytes of shared memory a program.
        shared_limit: Bytes of shared memory the card allows.
    """

    arch: str
    kernel: str
    label: str
    tile: str
    matrix_instructions: Mapping[str, int]
    registers: int
    spills: int
    stack: int
    shared: int
    shared_limit: int

    @property
    def problems(self) -> list[str]:
        """What keeps the kernel from running as it should; empty if nothing does."""
        found = []
        if not self.matrix_instructions:
            found.append("no tensor-core instructions")
        if self.spills:
            found.append(f"register spills ({self.spills})")
        if self.stack:
            found.append(f"a stack frame ({self.stack} bytes)")
        if self.shared > self.shared_limit:
            found.append(f"{self.shared} bytes of shared memory, {self.shared_limit} allowed")
        return found


def target(arch: str) -> GPUTarget:
    """Triton's name for an architecture of the tile table."""
    if arch.startswith("gfx"):
        return GPUTarget("hip", arch, 64)
    return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)


def variants(arch: str) -> Iterator[Variant]:
    """The kinds of calls that compile to different code, with an architecture's tiles."""
    exact = "ieee" if arch.startswith("gfx") else "tf32x3"
    row = tiles.TILES[arch]
    for candidates in (5, 20, 64):
        for weight in ("fp32", "bf16"):
            yield Variant(
                "project",
                f"{candidates} candidates, {weight} weight",
                triton_kernels.project_kernel,
                {"z": "fp32", "weight": weight, "out": "fp32"},
                row["project"],
                project_constants(row["project"], candidates, exact),
            )
        yield Variant(
            "project_seeded",
            f"{candidates} candidates",
            triton_kernels.project_seeded_kernel,
            {"z": "fp32", "out": "fp32"},
            row["project_seeded"],
            project_constants(row["project_seeded"], candidates, exact),
        )
    products = [("bf16", exact), ("fp16", exact), ("fp32", exact)]
    if exact == "tf32x3":
        products.append(("fp32", "tf32"))
    for dtype, precision in products:
        kernel: Kernel = "apply_float32" if dtype == "fp32" else "apply_half"
        # fp16 and bf16 differ in one field of the instructions: one call tells.
        for rank, sharing in CALLS if dtype != "fp16" else CALLS[:1]:
            label = f"rank {rank}, {dtype}" + (f" as {precision}" if dtype == "fp32" else "")
            yield Variant(
                kernel,
                f"{label}, {'shared' if sharing > 1 else 'own'} x",
                triton_kernels.apply_deltas_kernel,
                dict.fromkeys(("x", "base", "a", "b", "y"), dtype),
                row[kernel],
                apply_constants(row[kernel], rank, sharing, sharing > 1, TYPES[dtype], precision),
            )


def compile_variant(variant: Variant, arch: str) -> Report:
    """Compile one variant for an architecture and read what became of it.

    Raises:
        RuntimeError: If Triton is set to interpret kernels, or the assembler's report is not as
            expected.
    """
    function, tile = variant.function, variant.tile
    if not isinstance(function, triton.JITFunction):
        raise RuntimeError("kernels don't compile with TRITON_INTERPRET=1 in the environment")
    signature, attributes = {}, {}
    for place, name in enumerate(function.arg_names):
        if name in variant.constants:
            signature[name] = "constexpr"
        elif name in variant.pointers:
            signature[name] = f"*{variant.pointers[name]}"
        else:
            signature[name] = OTHER_TYPES.get(name, "i32")
        if name in variant.pointers or name in ALIGNED:
            attributes[(place,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(function, signature, dict(variant.constants), attributes),
        target=target(arch),
        options={"num_warps": tile.num_warps, "num_stages": tile.num_stages},
    )
    if arch.startswith("gfx"):
        assembly = compiled.asm["amdgcn"]
        registers, spills, stack = _amd_resources(assembly)
    else:
        assembly = compiled.asm["ptx"]
        registers, spills, stack = _nvidia_resources(assembly, arch)
    counts = {name: assembly.count(name) for name in MATRIX_INSTRUCTIONS}
    return Report(
        arch=arch,
        kernel=variant.kernel,
        label=variant.label,
        tile=f"{tile.rows}x{tile.depth}x{tile.columns} w{tile.num_warps} s{tile.num_stages}",
        matrix_instructions={name: count for name, count in counts.items() if count},
        registers=registers,
        spills=spills,
        stack=stack,
        shared=compiled.metadata.shared,
        shared_limit=tiles.SHARED_MEMORY[arch],
    )


def _nvidia_resources(ptx: str, arch: str) -> tuple[int, int, int]:
    """Registers, bytes spilled and bytes of stack, from ptxas's own report."""
    # sm_90 and later have instructions of that one architecture, named by the suffix a.
    number = int(arch.removeprefix("sm_"))
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    ptxas = tools / ("ptxas-blackwell" if number >= 100 else "ptxas")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        name = f"--gpu-name={arch}{'a' if number >= 90 else ''}"
        report = subprocess.run(
            [str(ptxas), "-v", name, str(source), "-o", f"{folder}/kernel.cubin"],
            check=True,
            capture_output=True,
            text=True,
        ).stderr
    used = re.search(r"Used (\d+) registers", report)
    memory = re.search(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report
    )
    if used is None or memory is None:
        raise RuntimeError(f"ptxas reported neither registers nor spills:\n{report}")
    stack, stores, loads = map(int, memory.groups())
    return int(used.group(1)), stores + loads, stack


def _amd_resources(amdgcn: str) -> tuple[int, int, int]:
    """Registers, registers spilled and bytes of stack, from the metadata in AMD's assembly."""
    values = dict(
        re.findall(r"\.(vgpr_count|\wgpr_spill_count|private_segment_fixed_size):\s+(\d+)", amdgcn)
    )
    spills = int(values["vgpr_spill_count"]) + int(values["sgpr_spill_count"])
    return int(values["vgpr_count"]), spills, int(values["private_segment_fixed_size"])
