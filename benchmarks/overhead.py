"""What does an optimizer itself cost: milliseconds a generation of ask and tell?

Everything is measured in one process, round robin: in each round every library runs one block of
generations, and the median over the rounds is reported. Between two decompositions of the
covariance matrix the tutorial lets max(1, 1/(10 n (c1 + cmu))) generations pass; a block is a whole
number of such gaps, so that libraries that decompose lazily pay their share in every block. Losses,
of the sphere function, are computed outside the clock. All in double precision.

Beside them, in the same rounds, stands the linear algebra that CMA-ES with a full matrix consists
of: a Cholesky factor once a gap, and in every generation the rank-mu update as one matrix product
and the product that colours the samples.

Timings mean something on a quiet machine only. Run it with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from common import RESULTS, console, save_plot, write_report
from rich.progress import track
from rich.table import Table

from dfo_core import CMAES, LMMAES, LoTFWA
from dfo_core.cma_parameters import CMAParameters

POPSIZE = 20
BASELINE = "linear algebra alone"
MIN_BLOCK = 8  # generations a block; fewer are too short to time
PACKAGES = ("cma", "cmaes", "nevergrad", "evotorch", "torch")

# A library's `build(dim)` returns a function that runs one generation and returns the seconds that
# ask and tell took.
Step = Callable[[], float]


def sphere(x):
    return np.einsum("ij,ij->i", x, x)


def timed(ask: Callable, losses_of: Callable, tell: Callable) -> Step:
    def step():
        start = time.perf_counter()
        asked = ask()
        middle = time.perf_counter()
        losses = losses_of(asked)
        resume = time.perf_counter()
        tell(asked, losses)
        return middle - start + time.perf_counter() - resume

    return step


def ours(build: Callable) -> Callable[[int], Step]:
    def make(dim):
        opt = build(dim)
        batch = timed(opt.ask, lambda asked: sphere(asked.x), opt.tell)

        def step():
            # Until the generation is complete, as one of LoTFWA is several batches.
            generation, seconds = opt.nit, 0.0
            while opt.nit == generation:
                seconds += batch()
            return seconds

        return step

    return make


def pycma(diagonal: bool) -> Callable[[int], Step]:
    def make(dim):
        import cma

        options = {"popsize": POPSIZE, "seed": 1, "verbose": -9, "CMA_diagonal": diagonal}
        es = cma.CMAEvolutionStrategy(np.ones(dim), 1.0, options)
        return timed(es.ask, lambda x: sphere(np.array(x)).tolist(), es.tell)

    return make


def cmaes(name: str) -> Callable[[int], Step]:
    def make(dim):
        import cmaes as library

        opt = getattr(library, name)(np.ones(dim), 1.0, population_size=POPSIZE, seed=1)
        return timed(
            lambda: [opt.ask() for _ in range(POPSIZE)],
            lambda x: sphere(np.array(x)).tolist(),
            lambda x, losses: opt.tell(list(zip(x, losses, strict=True))),
        )

    return make


def nevergrad(dim):
    import nevergrad as ng

    warnings.simplefilter("ignore")  # it hands pycma points that pycma does not know
    array = ng.p.Array(init=np.ones(dim))
    opt = ng.families.ParametrizedCMA(popsize=POPSIZE)(array, budget=10**9, num_workers=POPSIZE)

    def tell(candidates, losses):
        for candidate, loss in zip(candidates, losses, strict=True):
            opt.tell(candidate, loss)

    return timed(
        lambda: [opt.ask() for _ in range(POPSIZE)],
        lambda candidates: sphere(np.array([c.value for c in candidates])).tolist(),
        tell,
    )


def evotorch(dim):
    import torch
    from evotorch import Problem
    from evotorch.algorithms import CMAES as EvotorchCMAES
    from evotorch.tools import set_default_logger_config

    set_default_logger_config(logger_level=logging.ERROR, override=True)
    losses_took = [0.0]

    def losses_of(x):
        start = time.perf_counter()
        losses = (x * x).sum(dim=-1)
        losses_took[0] = time.perf_counter() - start
        return losses

    problem = Problem(
        "min",
        losses_of,
        solution_length=dim,
        initial_bounds=(-1, 1),
        dtype=torch.float64,
        vectorized=True,
    )
    opt = EvotorchCMAES(problem, stdev_init=1.0, popsize=POPSIZE, center_init=torch.ones(dim))

    def step():
        # It owns the loop, so the losses' time is taken out of a whole step.
        start = time.perf_counter()
        opt.step()
        return time.perf_counter() - start - losses_took[0]

    return step


def linear_algebra(dim):
    from scipy.linalg.lapack import dpotrf

    rng = np.random.default_rng(0)
    half = rng.standard_normal((dim, dim))
    C = np.asfortranarray(half @ half.T / dim + np.eye(dim))
    A = np.linalg.cholesky(C)
    y, z = rng.standard_normal((2, POPSIZE, dim))
    weights = np.full(POPSIZE, 1 / POPSIZE)
    generation = [0]

    def step():
        start = time.perf_counter()
        z @ A.T
        (weights * y.T) @ y
        if generation[0] % lag(dim) == 0:
            dpotrf(C, lower=1)
        generation[0] += 1
        return time.perf_counter() - start

    return step


def lag(dim: int) -> int:
    """Generations between two decompositions."""
    return CMAParameters.default(dim, POPSIZE).lag


def block(dim: int) -> int:
    """Generations a block: the smallest multiple of the lag that is long enough to time."""
    return lag(dim) * -(-MIN_BLOCK // lag(dim))


def lotfwa(dim):
    return LoTFWA((-5, 5), np.ones(dim), popsize=POPSIZE, seed=1)


def lmmaes(dim):
    return LMMAES(np.ones(dim), 1.0, POPSIZE, seed=1)


def cma(covariance: str) -> Callable:
    return lambda dim: CMAES(np.ones(dim), 1.0, POPSIZE, covariance=covariance, seed=1)


LIBRARIES: dict[str, Callable[[int], Step]] = {
    BASELINE: linear_algebra,
    "dfo_core CMAES": ours(cma("full")),
    "pycma": pycma(diagonal=False),
    "cmaes": cmaes("CMA"),
    "nevergrad CMA": nevergrad,
    "evotorch CMAES": evotorch,
    "dfo_core CMAES diagonal": ours(cma("diagonal")),
    "pycma diagonal": pycma(diagonal=True),
    "cmaes SepCMA": cmaes("SepCMA"),
    "dfo_core LMMAES": ours(lmmaes),
    "dfo_core LoTFWA": ours(lotfwa),
}


def measure(dim: int, rounds: int, limit: float) -> dict[str, dict]:
    """Run the blocks of all libraries in turn; returns a cell a library."""
    cells: dict[str, dict] = {}
    steps: dict[str, Step] = {}
    for name, build in LIBRARIES.items():
        try:
            steps[name] = build(dim)
            first = steps[name]()
        except Exception as error:
            cells[name] = {"error": f"{type(error).__name__}: {error}"}
        else:
            cells[name] = {"blocks_ms": []}
            if first > limit:
                cells[name] = {"error": f"> {limit:g} s"}
    # The first round warms up: caches, and a covariance matrix that is no longer the identity.
    for i in track(range(rounds + 1), f"d = {dim}", console=console):
        for name, cell in cells.items():
            if "error" in cell:
                continue
            try:
                seconds = sum(steps[name]() for _ in range(block(dim)))
            except Exception as error:
                cells[name] = {"error": f"{type(error).__name__}: {error}"}
                continue
            if i > 0:
                cell["blocks_ms"].append(1000 * seconds / block(dim))
    for cell in cells.values():
        if "blocks_ms" in cell:
            cell["median_ms"] = float(np.median(cell["blocks_ms"]))
    return cells


def table(results: dict[int, dict]) -> None:
    table = Table(
        title=f"Milliseconds of ask and tell a generation of {POPSIZE}, and times {BASELINE}"
    )
    table.add_column("")
    for dim in results:
        table.add_column(f"d = {dim}", justify="right")
    for name in LIBRARIES:
        table.add_row(name, *[_cell(cells, name) for cells in results.values()])
        if name == BASELINE:
            table.add_section()
    console.print(table)


def _cell(cells: dict[str, dict], name: str) -> str:
    cell, baseline = cells[name], cells[BASELINE]
    if "error" in cell:
        return cell["error"][:30]
    ratio = "" if name == BASELINE else f"  {cell['median_ms'] / baseline['median_ms']:6.1f} x"
    return f"{cell['median_ms']:.2f}{ratio}"


def plot(results: dict[int, dict], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(7.5, 5))
    for i, name in enumerate(LIBRARIES):
        found = {d: cells[name]["median_ms"] for d, cells in results.items() if _ok(cells[name])}
        style = ":" if name == BASELINE else "o-" if name.startswith("dfo_core") else "s--"
        color = "black" if name == BASELINE else plt.get_cmap("tab20")(i)
        ax.plot(found.keys(), found.values(), style, label=name, markersize=4, color=color)
    ax.set(xscale="log", yscale="log", xlabel="d", ylabel="ms a generation of ask and tell")
    ax.set_xticks(list(results), [str(dim) for dim in results])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    save_plot(figure, path)


def _ok(cell: dict) -> bool:
    return "median_ms" in cell


def main(
    dims: Annotated[str, typer.Option(help="Dimensions")] = "100,400,800,1600",
    rounds: Annotated[int, typer.Option(help="Blocks of each library")] = 7,
    limit: Annotated[float, typer.Option(help="Seconds the first generation may take")] = 30.0,
    out: Annotated[Path, typer.Option(help="Folder for what is measured")] = RESULTS,
) -> None:
    """Measure what ask and tell cost in each library."""
    out.mkdir(parents=True, exist_ok=True)
    results = {dim: measure(dim, rounds, limit) for dim in map(int, dims.split(","))}
    table(results)
    settings = {"popsize": POPSIZE, "rounds": rounds, "limit": limit, "seed": 1}
    settings["generations_a_block"] = {dim: block(dim) for dim in results}
    write_report(out / "overhead.json", PACKAGES, settings, results)
    plot(results, out / "overhead.png")


if __name__ == "__main__":
    typer.run(main)
