"""``python -m lora_kernels.bench``: the operations against a loop over candidates in plain PyTorch.

Both work on the same numbers in one run, in turns, and must give equal results; the loop always
reads the entries of its projections from memory. Besides the times the table shows what part of the
device's peak was reached: on a GPU of the data sheet's (`lora_kernels.cost`), on a CPU of what a
copy and a matrix product reach on the spot.

A GPU's times are those of the GPU alone, of calls captured in a CUDA graph. Beside them stand those
of calls from Python, which wait for Python where the GPU is faster.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lora_kernels import cost
from lora_kernels.deltas import Delta, Factors, apply_deltas_grouped
from lora_kernels.fused import project_and_apply
from lora_kernels.ops import backends
from lora_kernels.projection import SeededProjection, project

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """The tuned layer of a model: query and value projections that share an input.

    Attributes:
        hidden: Width of the input.
        query: Width of the query projection.
        value: Width of the value projection.
        fused: Width of the one output that holds both, the value's last; None: two outputs.
    """

    hidden: int
    query: int
    value: int
    fused: int | None = None


SHAPES = {
    "smollm2-135m": Shape(576, 576, 192),
    "roberta-large": Shape(1024, 1024, 1024),
    "gpt2-xl": Shape(1600, 1600, 1600, fused=4800),
    "llama-8b": Shape(4096, 4096, 1024),
}


@dataclass(frozen=True)
class Setting:
    """What is measured at every shape.

    Attributes:
        candidates: P.
        tokens: T of each candidate.
        rank: Rank r.
        dim: Length d of a layer's vector, a quarter of it for each factor.
        dtype: Type of activations and factors.
    """

    candidates: int
    tokens: int
    rank: int
    dim: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Case:
    """One operation, how a loop over candidates does it, and what it costs on paper."""

    op: str
    run: Callable[[], Tensor | Sequence[Tensor]]
    loop: Callable[[], Tensor | Sequence[Tensor]]
    launches: Sequence[cost.Launch]


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        shape: Name of the shape.
        op: The operation.
        backend: Which implementation.
        seconds: Median time of a call.
        loop_seconds: Median time of the loop over candidates.
        speedup: How many times faster than the loop.
        called_seconds: Median time of a call from Python; on a CPU the same as `seconds`.
        called_loop_seconds: The same of the loop.
        gb_per_second: Gigabytes that have to be moved, by time.
        gflop_per_second: Billions of operations of the products, by time.
        roofline: The least time that the device's peaks allow, by time; above 1 where what has to
            be moved was in a cache already.
    """

    shape: str
    op: str
    backend: str
    seconds: float
    loop_seconds: float
    speedup: float
    called_seconds: float
    called_loop_seconds: float
    gb_per_second: float
    gflop_per_second: float
    roofline: float


def measure(
    shapes: Sequence[str],
    setting: Setting,
    device: torch.device,
    chosen: Sequence[str],
    repeats: int = 7,
) -> list[Row]:
    """Time all operations at some shapes.

    Args:
        shapes: Names in `SHAPES`.
        setting: What is measured at every shape.
        device: Where.
        chosen: Backends.
        repeats: Samples of each time; a sample takes at least some milliseconds.

    Raises:
        AssertionError: If an operation and the loop don't give equal results.
    """
    peaks = cost.device_for(device) if device.type == "cuda" else _measured(device, setting.dtype)
    rows = []
    for name in shapes:
        for backend in chosen:
            for case in cases(SHAPES[name], setting, device, backend, peaks):
                _assert_equal(case.run(), case.loop())
                called, loop_called = _times(case.run, case.loop, device, repeats, _seconds)
                seconds, loop_seconds = called, loop_called
                if device.type == "cuda":
                    seconds, loop_seconds = _times(
                        case.run, case.loop, device, repeats, _graph_seconds
                    )
                rows.append(
                    Row(
                        name,
                        case.op,
                        backend,
                        seconds,
                        loop_seconds,
                        loop_seconds / seconds,
                        called,
                        loop_called,
                        sum(launch.bytes for launch in case.launches) / seconds / 1e9,
                        sum(launch.flops for launch in case.launches) / seconds / 1e9,
                        sum(launch.work(peaks) for launch in case.launches) / seconds,
                    )
                )
    return rows


def cases(
    shape: Shape, setting: Setting, device: torch.device, backend: str, peaks: cost.Device
) -> Iterator[Case]:
    """The operations at one shape; inputs are seeded."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, dtype: torch.dtype = setting.dtype) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    count, rank, d_part = setting.candidates, setting.rank, setting.dim // 4
    z = normal(count, d_part, dtype=torch.float32)
    to_a = SeededProjection(rank * shape.hidden, d_part, seed=0, std=0.1)
    to_b = SeededProjection(rank * shape.query, d_part, seed=0, std=0.1, stream=1)
    stored_a, stored_b = (projection.materialize(device=device) for projection in (to_a, to_b))

    def project_loop() -> Tensor:
        return torch.stack([stored_a.weight @ row for row in z])

    for projection, stored in ((stored_a, torch.float32), (to_a, None)):
        yield Case(
            f"project, {'seeded' if stored is None else 'stored'}",
            partial(project, z, projection, backend=backend),
            project_loop,
            [cost.project(count, projection.n, d_part, peaks, stored)],
        )

    # The value's columns are the last of a fused output; those before are the query's to write.
    x = normal(setting.tokens, shape.hidden)
    first = shape.query if shape.fused is None else shape.fused - shape.value
    targets = [(shape.query, first), (shape.value, shape.value)]
    factors = [
        Factors(normal(count, rank, shape.hidden), normal(count, rank, width))
        for width, _ in targets
    ]
    if shape.fused is None:
        bases = [normal(setting.tokens, width) for width, _ in targets]
        places = [(0, 0, shape.query), (1, 0, shape.value)]
    else:
        bases = [normal(setting.tokens, shape.fused)]
        places = [(0, 0, shape.query), (0, first, shape.fused)]
    deltas = [
        Delta(f, base, (start, stop))
        for f, (base, start, stop) in zip(factors, places, strict=True)
    ]

    def apply_loop() -> list[Tensor]:
        ys = [base.repeat(count, 1, 1) for base in bases]
        for p in range(count):
            for f, (base, start, stop) in zip(factors, places, strict=True):
                ys[base][p, :, start:stop] += (x @ f.A[p].T) @ f.B[p]
        return ys

    query, value = (
        cost.Sizes(
            candidates=count,
            tokens=setting.tokens,
            hidden=shape.hidden,
            out_features=width,
            rank=rank,
            d_a=d_part,
            d_b=d_part,
            dtype=setting.dtype,
            width=columns,
        )
        for width, columns in targets
    )
    yield Case(
        "apply, query and value",
        partial(apply_deltas_grouped, x, bases, deltas, backend=backend),
        apply_loop,
        [cost.apply([query, value], peaks)],
    )

    base = normal(setting.tokens, shape.query)
    alone = replace(query, width=shape.query)

    def both_loop() -> Tensor:
        ys = []
        for row in z:
            a = (stored_a.weight @ row).view(rank, -1).to(x.dtype)
            b = (stored_b.weight @ row).view(rank, -1).to(x.dtype)
            ys.append(base + (x @ a.T) @ b)
        return torch.stack(ys)

    both = partial(project_and_apply, x, base, (z, z), (to_a, to_b), rank, backend=backend)
    yield Case(
        "project and apply", partial(both, fused=False), both_loop, cost.separate(alone, peaks)
    )
    if backend == "triton":
        yield Case(
            "the same, one launch", partial(both, fused=True), both_loop, [cost.fused(alone, peaks)]
        )


def _assert_equal(found: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> None:
    """Results must be equal up to roundings of the largest entry."""
    pairs = zip(_listed(found), _listed(expected), strict=True)
    for one, other in pairs:
        error = (one.float() - other.float()).abs().max().item()
        # Sums are taken in float32: only there does their order show, which nobody shares.
        roundings = 32 if one.dtype == torch.float32 else 4
        allowed = roundings * torch.finfo(one.dtype).eps * other.float().abs().max().item()
        if not error <= allowed:
            raise AssertionError(f"results differ by {error:.2g}, allowed is {allowed:.2g}")


def _listed(tensors: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [tensors] if isinstance(tensors, Tensor) else tensors


def _times(
    one: Callable[[], object],
    other: Callable[[], object],
    device: torch.device,
    repeats: int,
    clock: Callable[[Callable[[], object], int, torch.device], float],
) -> tuple[float, float]:
    """Median seconds of two functions, measured in turns."""
    calls = [max(1, round(5e-3 / clock(f, 1, device))) for f in (one, other)]
    samples: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for f, n, found in zip((one, other), calls, samples, strict=True):
            found.append(clock(f, n, device))
    return median(samples[0]), median(samples[1])


def _seconds(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """Mean time of some calls in a row."""
    wait(device)
    begin = time.perf_counter()
    for _ in range(calls):
        function()
    wait(device)
    return (time.perf_counter() - begin) / calls


def _graph_seconds(function: Callable[[], object], calls: int, device: torch.device) -> float:
    """Mean time that a GPU takes for some calls in a row, by its own clock, without Python's."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            function()
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    stop = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    graph.replay()  # the first one uploads it
    start.record()
    graph.replay()
    stop.record()
    wait(device)
    return float(start.elapsed_time(stop)) / 1e3 / calls


def wait(device: torch.device) -> None:
    """Let a GPU finish what it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _measured(device: torch.device, dtype: torch.dtype) -> cost.Device:
    """What a copy and a matrix product reach, in place of a data sheet; draws count for nothing."""
    source = torch.ones(1 << 24, device=device)
    target = torch.empty_like(source)
    side = 1024
    factor = torch.ones(side, side, device=device, dtype=dtype)
    copy = min(_seconds(partial(target.copy_, source), 1, device) for _ in range(5))
    product = min(_seconds(partial(torch.mm, factor, factor), 1, device) for _ in range(5))
    return cost.Device(
        name=f"{platform.machine()} CPU, as measured",
        arch="sm_80",
        processors=1,
        bandwidth=2 * source.nbytes / copy,
        matrix={dtype: 2 * side**3 / product, torch.float32: 2 * side**3 / product},
        instructions=float("inf"),
    )


def as_table(rows: Sequence[Row], title: str) -> Table:
    """One row a shape, operation and backend."""
    table = Table(title=title)
    for name in ("shape", "operation", "backend"):
        table.add_column(name)
    # Where calls are not captured in a graph, the last two would repeat the first three.
    graphs = any(row.called_seconds != row.seconds for row in rows)
    called = ("called ms", "speedup") if graphs else ()
    for name in ("ms", "loop ms", "speedup", *called, "GB/s", "GFLOP/s", "of roofline"):
        table.add_column(name, justify="right")
    for row in rows:
        from_python = (
            f"{1e3 * row.called_seconds:.3f}",
            f"{row.called_loop_seconds / row.called_seconds:.2f}",
        )
        table.add_row(
            row.shape,
            row.op,
            row.backend,
            f"{1e3 * row.seconds:.3f}",
            f"{1e3 * row.loop_seconds:.3f}",
            f"{row.speedup:.2f}",
            *(from_python if graphs else ()),
            f"{row.gb_per_second:.1f}",
            f"{row.gflop_per_second:.0f}",
            f"{row.roofline:.0%}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and, if asked, write JSON."""
    on_gpu = torch.cuda.is_available()
    usable = [name for name, status in backends().items() if status]
    usual = [name for name in usable if name == ("triton" if on_gpu else "cpu")]
    parser = argparse.ArgumentParser(prog="python -m lora_kernels.bench", description=__doc__)
    parser.add_argument("shapes", nargs="*", metavar="shape", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--backend", nargs="+", default=usual, choices=usable)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=1024, help="of each candidate")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--dim", type=int, default=500, help="length of a layer's vector")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16" if on_gpu else "fp32")
    parser.add_argument("--repeats", type=int, default=7, help="samples; the median is shown")
    parser.add_argument("--json", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.shapes if name not in SHAPES]:
        parser.error(f"no such shape: {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    if min(options.candidates, options.tokens, options.rank, options.repeats) < 1:
        parser.error("candidates, tokens, rank and repeats must be at least 1")
    if options.dim < 4 or options.dim % 4:
        parser.error(f"dim must be a multiple of 4, a quarter for each factor; got {options.dim}")
    setting = Setting(
        options.candidates, options.tokens, options.rank, options.dim, DTYPES[options.dtype]
    )
    device = torch.device(options.device)
    rows = measure(
        options.shapes or list(SHAPES), setting, device, options.backend, options.repeats
    )
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    threads = torch.get_num_threads()
    title = (
        f"{setting.candidates} candidates, {setting.tokens} tokens, rank {setting.rank},"
        f" {options.dtype}, on {where}" + ("" if device.type == "cuda" else f", {threads} threads")
    )
    console = Console()
    # A table cut off at the width of a pipe would be of no use.
    Console(width=None if console.is_terminal else 140).print(as_table(rows, title))
    if options.json:
        record = {
            "device": where,
            "threads": threads,
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "setting": {**asdict(setting), "dtype": options.dtype},
            "rows": [asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
