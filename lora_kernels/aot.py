"""Ahead-of-time compilation of every kernel for every architecture, without a GPU.

A kernel compiles on any machine; what the compiler and the assembler made of it says much of how
it will run: whether its products are on tensor cores, whether it fits into the registers and into
the card's shared memory. ``python -m lora_kernels.inspect`` prints it as a table.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lora_kernels import tiles
from lora_kernels.variants import Variant

# Instructions that run on tensor cores: PTX of sm_80, sm_90 and sm_100, and AMD's.
MATRIX_INSTRUCTIONS = ("mma.sync", "wgmma.mma_async", "tcgen05.mma", "v_mfma")


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


def compile_variant(variant: Variant, arch: str) -> Report:
    """Compile one variant for an architecture and read what became of it.

    Raises:
        RuntimeError: If Triton is set to interpret kernels, or the assembler's report is not as
            expected.
    """
    function, tile = variant.function, variant.tile
    if not isinstance(function, triton.JITFunction):
        raise RuntimeError("kernels don't compile with TRITON_INTERPRET=1 in the environment")
    signature, attributes = variant.signature()
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
            # Triton compiles with this register allocation; ptxas 13's own spills without need.
            [str(ptxas), "-v", "--regAllocOptLevel=2", name, str(source), "-o", f"{folder}/cubin"],
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
