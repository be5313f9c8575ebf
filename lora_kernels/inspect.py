"""``python -m lora_kernels.inspect``: what the compiler made of every kernel, as a table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context

from rich.console import Console
from rich.table import Table

from lora_kernels.aot import Report, compile_variant
from lora_kernels.tiles import TILES
from lora_kernels.variants import Variant, commonest, variants


def reports(archs: Sequence[str], quick: bool = False, jobs: int = 1) -> list[Report]:
    """Compile the kernels for some architectures.

    Args:
        archs: Rows of the tile table.
        quick: Compile the commonest call of each kernel only.
        jobs: Processes that compile.
    """
    calls = [(arch, number) for arch in archs for number in range(len(_chosen(arch, quick)))]
    if jobs == 1:
        return [_report(arch, number, quick) for arch, number in calls]
    # Kernels can't be sent to another process, their numbers can.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_report, *zip(*calls, strict=True), repeat(quick)))


def _chosen(arch: str, quick: bool) -> list[Variant]:
    found = variants(arch)
    return commonest(found) if quick else found


def _report(arch: str, number: int, quick: bool) -> Report:
    return compile_variant(_chosen(arch, quick)[number], arch)


def as_table(found: Sequence[Report]) -> Table:
    """One row a kernel and architecture."""
    table = Table(title="Triton kernels, compiled ahead of time")
    table.add_column("arch")
    table.add_column("kernel")
    table.add_column("call")
    table.add_column("tile")
    table.add_column("tensor-core instructions")
    table.add_column("registers", justify="right")
    table.add_column("spills", justify="right")
    table.add_column("shared KiB", justify="right")
    table.add_column("verdict")
    for report in found:
        table.add_row(
            report.arch,
            report.kernel,
            report.label,
            report.tile,
            ", ".join(f"{n} {name}" for name, n in report.matrix_instructions.items()),
            str(report.registers),
            str(report.spills),
            f"{report.shared / 1024:.0f} of {report.shared_limit // 1024}",
            "; ".join(report.problems) or "ok",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; the exit status is 1 if any kernel has a problem."""
    parser = argparse.ArgumentParser(prog="python -m lora_kernels.inspect", description=__doc__)
    parser.add_argument("archs", nargs="*", metavar="arch", help=f"any of {', '.join(TILES)}")
    parser.add_argument("--quick", action="store_true", help="the commonest call of each kernel")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile (default 1)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if unknown := [arch for arch in options.archs if arch not in TILES]:
        parser.error(f"no such architecture: {', '.join(unknown)}; there are {', '.join(TILES)}")
    found = reports(options.archs or list(TILES), options.quick, options.jobs)
    if options.json:
        rows = [{**dataclasses.asdict(r), "problems": r.problems} for r in found]
        print(json.dumps(rows, indent=1))
    else:
        console = Console()
        # A table cut off at the width of a pipe would be of no use.
        Console(width=None if console.is_terminal else 180).print(as_table(found))
    return any(report.problems for report in found)


if __name__ == "__main__":
    sys.exit(main())
