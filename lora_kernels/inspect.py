"""``python -m lora_kernels.inspect``: what the compiler made of every kernel, as a table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lora_kernels.aot import Report, compile_variant, variants
from lora_kernels.tiles import TILES


def reports(archs: Sequence[str]) -> list[Report]:
    """Compile all kernels for some architectures."""
    return [compile_variant(variant, arch) for arch in archs for variant in variants(arch)]


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
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if unknown := [arch for arch in options.archs if arch not in TILES]:
        parser.error(f"no such architecture: {', '.join(unknown)}; there are {', '.join(TILES)}")
    found = reports(options.archs or list(TILES))
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
