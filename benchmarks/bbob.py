"""Which share of the BBOB targets does each optimizer reach, and how fast?

The noiseless bbob suite of COCO (Hansen et al. 2021, COCO: A Platform for Comparing Continuous
Optimizers in a Black-Box Setting, Optimization Methods and Software 36(1)): 24 functions, instances
of each shifted and rotated differently. A target is a precision f - f_opt; there are COCO's default
51, evenly spaced on a log scale from 1e2 to 1e-8. The runtime of a target is the number of
evaluations until the best so far reaches it; a target not reached within the budget is unsolved.
What is reported is the empirical cumulative distribution of runtimes over all targets, functions
and instances (Hansen et al. 2016, COCO: Performance Assessment, arXiv 1605.03560, Section 5), and
its value at the end of the budget. Unlike COCO's own plots nothing is added to runs that stopped
early (no simulated restarts): an optimizer that gives up forgoes the rest of its budget.

Every optimizer starts at the same point, uniform in [-4, 4]^d, with step size 2 if it has one, and
searches the same box [-5, 5]^d; restarts begin in [-4, 4]^d. Library defaults otherwise.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from common import (
    RESULTS,
    Done,
    Observed,
    console,
    recorded,
    run_cells,
    save_plot,
    write_report,
)
from rich.table import Table

from dfo_core import BIPOP, CMAES, as_optimizer

TARGETS = np.logspace(2, -8, 51).tolist()
LIMIT = 5.0  # of the search box, [-5, 5]^d
START = 4.0  # of where runs and restarts begin, [-4, 4]^d
SIGMA0 = 2.0
GROUPS = {
    "separable": range(1, 6),
    "moderate": range(6, 10),
    "ill-conditioned": range(10, 15),
    "multimodal": range(15, 20),
    "weak structure": range(20, 25),
}
SUBSETS = {
    "full": {
        "functions": range(1, 25),
        "dims": (2, 5, 10, 20),
        "instances": (1, 2, 3),
        "budget": 1000,
    },
    "ci": {"functions": (1, 8, 15, 21), "dims": (2, 5), "instances": (1,), "budget": 200},
}
PACKAGES = ("coco-experiment", "cma", "cmaes", "nevergrad")


# -- the optimizers: each runs until the objective raises Done, or it stops by itself -------------


def ours(name: str, **options: float) -> Callable:
    def run(fun, x0, seed, budget):
        box = (-LIMIT, LIMIT)
        opt = as_optimizer(name, x0=x0, bounds=box, seed=seed, budget=budget, **options)
        while not opt.stop():
            batch = opt.ask()
            opt.tell(batch, fun(batch.x))

    return run


def our_bipop(fun, x0, seed, budget):
    limits = {"bounds": (-LIMIT, LIMIT), "restart_box": (-START, START)}
    opt = BIPOP(CMAES, x0, SIGMA0, **limits, seed=seed, budget=budget)
    while not opt.stop():
        batch = opt.ask()
        opt.tell(batch, fun(batch.x))


def pycma(bipop: bool) -> Callable:
    def run(fun, x0, seed, budget):
        import cma

        rng = np.random.default_rng(seed)
        starts = iter([x0])
        options = {"bounds": [-LIMIT, LIMIT], "maxfevals": budget, "seed": seed, "verbose": -9}
        cma.fmin2(
            fun.one,
            lambda: next(starts, rng.uniform(-START, START, len(x0))),  # restarts begin elsewhere
            SIGMA0,
            options,
            restarts=9 if bipop else 0,
            bipop=bipop,
        )

    return run


def cmaes(fun, x0, seed, budget):
    from cmaes import CMA

    opt = CMA(x0, SIGMA0, bounds=np.tile([-LIMIT, LIMIT], (len(x0), 1)), seed=seed)
    while not opt.should_stop():
        points = [opt.ask() for _ in range(opt.population_size)]
        opt.tell([(x, fun.one(x)) for x in points])


def nevergrad(name: str) -> Callable:
    def run(fun, x0, seed, budget):
        import nevergrad as ng

        warnings.simplefilter("ignore")  # it hands pycma points that pycma does not know
        array = ng.p.Array(init=x0, lower=-LIMIT, upper=LIMIT)
        # Within bounds nevergrad's CMA begins with a part of what it is given.
        part = 1.0 if name != "CMA" else 0.3 if len(x0) < 18 else 0.15
        array.set_mutation(sigma=SIGMA0 / part)
        array.random_state.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 (some of nevergrad's methods draw from it)
        opt = ng.optimizers.registry[name](array, budget=budget)
        while True:
            candidate = opt.ask()
            opt.tell(candidate, fun.one(candidate.value))

    return run


def differential_evolution(fun, x0, seed, budget):
    from scipy.optimize import differential_evolution as scipy_de

    # No polish, which is a gradient method, and no stop before the budget is spent.
    bounds = [(-LIMIT, LIMIT)] * len(x0)
    scipy_de(fun.one, bounds, x0=x0, rng=seed, polish=False, tol=0, maxiter=budget)


OPTIMIZERS: dict[str, Callable] = {
    "dfo_core CMAES": ours("cma-es", sigma0=SIGMA0),
    "dfo_core BIPOP": our_bipop,
    "dfo_core LoTFWA": ours("lotfwa"),
    "dfo_core random": ours("random", popsize=100),
    "pycma": pycma(bipop=False),
    "pycma BIPOP": pycma(bipop=True),
    "cmaes": cmaes,
    "nevergrad CMA": nevergrad("CMA"),
    "nevergrad NGOpt": nevergrad("NGOpt"),
    "scipy DE": differential_evolution,
}


STYLES = {
    "dfo_core CMAES": {"color": "C0", "linestyle": "-", "linewidth": 2},
    "dfo_core BIPOP": {"color": "C3", "linestyle": "-", "linewidth": 2},
    "dfo_core LoTFWA": {"color": "C2", "linestyle": "-", "linewidth": 2},
    "dfo_core random": {"color": "0.6", "linestyle": "-", "linewidth": 2},
    "pycma": {"color": "C0", "linestyle": "--"},
    "pycma BIPOP": {"color": "C3", "linestyle": "--"},
    "cmaes": {"color": "C0", "linestyle": ":"},
    "nevergrad CMA": {"color": "C0", "linestyle": "-."},
    "nevergrad NGOpt": {"color": "C4", "linestyle": "-."},
    "scipy DE": {"color": "C1", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
}


# -- one run --------------------------------------------------------------------------------------


def measure(function: int, dim: int, instance: int, budget: int, optimizer: str) -> dict:
    """Run one optimizer on one problem; `budget` is in evaluations a dimension."""
    import cocoex

    problem = cocoex.BareProblem("bbob", function, dim, instance)
    f_opt = problem.best_value()
    fun = Observed(lambda x: np.array([problem(row) for row in x]) - f_opt, budget * dim, TARGETS)
    seed = 1000 * function + 10 * dim + instance
    x0 = np.random.default_rng(seed).uniform(-START, START, dim)
    start = time.perf_counter()
    with suppress(Done):
        OPTIMIZERS[optimizer](fun, x0, seed, budget * dim)
    return {
        "seed": seed,
        "hits": fun.hits,
        "best": fun.best,
        "nfev": fun.nfev,
        "seconds": round(time.perf_counter() - start, 3),
    }


# -- what comes out -------------------------------------------------------------------------------


def whole_instances(rows: list[dict], settings: dict, **where) -> list[list]:
    """The runs with these settings, each as its hits, a list an instance.

    Instances of which a run is missing, because it failed or was not made, are left out.
    """
    functions = set(settings["functions"]) & set(where.get("function", settings["functions"]))
    n_problems = len(functions) * (1 if "dim" in where else len(settings["dims"]))
    each = (
        [row["hits"] for row in rows if _matches(row, {"instance": i, **where})]
        for i in settings["instances"]
    )
    return [hits for hits in each if len(hits) == n_problems]


def spread(rows: list[dict], settings: dict, **where) -> dict[str, float] | None:
    """Share of targets reached: over all instances, and the least and most of a single one."""
    runs = whole_instances(rows, settings, **where)
    each = [float(np.mean([[hit is not None for hit in run] for run in hits])) for hits in runs]
    return {"mean": float(np.mean(each)), "min": min(each), "max": max(each)} if each else None


def _matches(row: dict, where: dict) -> bool:
    return "hits" in row and all(
        row["cell"][k] in v if isinstance(v, range) else row["cell"][k] == v
        for k, v in where.items()
    )


def tables(rows: list[dict], names: list[str], settings: dict) -> dict:
    dims = settings["dims"]
    by_dim = Table(title=f"Targets solved after {settings['budget']} d evaluations, % (instances)")
    by_group = Table(title="The same by group of functions, all dimensions, %")
    groups = {g: fs for g, fs in GROUPS.items() if set(fs) & set(settings["functions"])}
    for table, heads in ((by_dim, [*(f"d = {d}" for d in dims), "all"]), (by_group, groups)):
        table.add_column("optimizer")
        for head in heads:
            table.add_column(head, justify="right")
    results: dict = {}
    for name in names:
        each = {str(d): spread(rows, settings, optimizer=name, dim=d) for d in dims}
        group = {g: spread(rows, settings, optimizer=name, function=f) for g, f in groups.items()}
        everything = spread(rows, settings, optimizer=name)
        results[name] = {"dims": each, "groups": group, "all": everything}
        by_dim.add_row(name, *map(_show, each.values()), _show(everything))
        by_group.add_row(name, *map(_show, group.values()))
    console.print(by_dim, by_group)
    return results


def _show(share: dict[str, float] | None) -> str:
    if share is None:
        return "–"
    return f"{100 * share['mean']:.1f} ({100 * share['min']:.0f}–{100 * share['max']:.0f})"


def plot(rows: list[dict], names: list[str], settings: dict, path: Path) -> None:
    """Draw the runtime distributions: an algorithm has a colour, a library a kind of line."""
    import matplotlib.pyplot as plt

    dims, budget = settings["dims"], settings["budget"]
    shape = {"nrows": -(-len(dims) // 2), "ncols": min(2, len(dims))}
    figure, axes = plt.subplots(
        **shape,
        figsize=(5.2 * shape["ncols"], 3.9 * shape["nrows"]),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for ax in axes.flat[len(dims) :]:
        ax.remove()
    lines = {}
    for dim, ax in zip(dims, axes.flat, strict=False):
        for name in names:
            runs = chain(*whole_instances(rows, settings, optimizer=name, dim=dim))
            hits = [np.inf if hit is None else hit for run in runs for hit in run]
            if not hits:
                continue
            runtimes = np.sort(hits) / dim
            n_solved = np.count_nonzero(np.isfinite(runtimes))
            x = np.append(runtimes[:n_solved], budget)
            y = np.append(np.arange(1, n_solved + 1), n_solved) / len(runtimes)
            (lines[name],) = ax.step(x, y, where="post", **STYLES[name])
        ax.set(xscale="log", xlim=(1, budget), ylim=(0, 1), title=f"d = {dim}")
        ax.grid(alpha=0.3)
    figure.supxlabel("evaluations / d")
    figure.supylabel("share of function, instance, target triples")
    figure.legend(lines.values(), lines.keys(), loc="outside right center", handlelength=3)
    save_plot(figure, path)


def main(
    subset: Annotated[str, typer.Option(help="full, or ci: a minute")] = "full",
    out: Annotated[Path, typer.Option(help="Folder for what is measured")] = RESULTS,
    budget: Annotated[int | None, typer.Option(help="Evaluations a dimension")] = None,
    only: Annotated[list[str] | None, typer.Option(help="An optimizer; repeat for more")] = None,
    dims: Annotated[str | None, typer.Option(help="Dimensions: 2,5")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that measure side by side")] = 1,
    report_only: Annotated[bool, typer.Option(help="Measure nothing, show what there is")] = False,
) -> None:
    """Measure the share of BBOB targets that each optimizer reaches."""
    settings = {key: list(v) if key != "budget" else v for key, v in SUBSETS[subset].items()}
    settings["budget"] = budget or settings["budget"]
    if dims is not None:
        settings["dims"] = [int(dim) for dim in dims.split(",")]
    names = list(only or OPTIMIZERS)
    # Instance by instance, so that an unfinished run already covers all functions.
    order = product(settings["instances"], settings["functions"], settings["dims"], names)
    cells = [
        {"function": f, "dim": d, "instance": i, "budget": settings["budget"], "optimizer": name}
        for i, f, d, name in order
    ]
    path = out / "bbob.jsonl"
    rows = recorded(path, cells) if report_only else run_cells(path, cells, measure, jobs)
    stem = "bbob" if subset == "full" else f"bbob-{subset}"
    settings |= {"targets": TARGETS, "box": LIMIT, "sigma0": SIGMA0}
    settings["seed"] = "1000 function + 10 dim + instance"
    write_report(out / f"{stem}.json", PACKAGES, settings, tables(rows, names, settings))
    plot(rows, names, settings, out / f"{stem}.png")


if __name__ == "__main__":
    typer.run(main)
