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
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from common import RESULTS, Done, Observed, console, run_cells, save_plot, write_report
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
        array.set_mutation(sigma=SIGMA0)
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


def solved(rows: list[dict], **where) -> float:
    """Share of the targets that the runs with these settings reached."""
    hits = [row["hits"] for row in rows if _matches(row, where)]
    return float(np.mean([[hit is not None for hit in run] for run in hits]))


def spread(rows: list[dict], instances, **where) -> dict[str, float]:
    """Share of targets reached: over all instances, and the least and most of a single one."""
    each = [solved(rows, instance=i, **where) for i in instances]
    return {"mean": float(np.mean(each)), "min": min(each), "max": max(each)}


def _matches(row: dict, where: dict) -> bool:
    return "hits" in row and all(
        row["cell"][k] in v if isinstance(v, range) else row["cell"][k] == v
        for k, v in where.items()
    )


def tables(rows: list[dict], names: list[str], settings: dict) -> dict:
    dims, instances = settings["dims"], settings["instances"]
    by_dim = Table(title=f"Targets solved after {settings['budget']} d evaluations, % (instances)")
    by_group = Table(title="The same by group of functions, all dimensions, %")
    groups = {g: fs for g, fs in GROUPS.items() if set(fs) & set(settings["functions"])}
    for table, heads in ((by_dim, [f"d = {d}" for d in dims]), (by_group, groups)):
        table.add_column("optimizer")
        for head in heads:
            table.add_column(head, justify="right")
    results: dict = {}
    for name in names:
        each = {str(d): spread(rows, instances, optimizer=name, dim=d) for d in dims}
        group = {g: spread(rows, instances, optimizer=name, function=f) for g, f in groups.items()}
        results[name] = {"dims": each, "groups": group}
        by_dim.add_row(name, *map(_show, each.values()))
        by_group.add_row(name, *map(_show, group.values()))
    console.print(by_dim, by_group)
    return results


def _show(share: dict[str, float]) -> str:
    return f"{100 * share['mean']:.1f} ({100 * share['min']:.0f}–{100 * share['max']:.0f})"


def plot(rows: list[dict], names: list[str], settings: dict, path: Path) -> None:
    import matplotlib.pyplot as plt

    dims, budget = settings["dims"], settings["budget"]
    figure, axes = plt.subplots(1, len(dims), figsize=(4.2 * len(dims), 4.4), sharey=True)
    for dim, ax in zip(dims, np.atleast_1d(axes), strict=True):
        for i, name in enumerate(names):
            runs = [r["hits"] for r in rows if _matches(r, {"optimizer": name, "dim": dim})]
            runtimes = np.array([np.inf if h is None else h for run in runs for h in run]) / dim
            x = np.append(np.sort(runtimes[np.isfinite(runtimes)]), budget)
            y = np.append(np.arange(1, len(x)), len(x) - 1) / len(runtimes)
            style = "-" if name.startswith("dfo_core") else "--"
            ax.step(x, y, style, where="post", color=f"C{i}", label=name, linewidth=1.4)
        ax.set(xscale="log", title=f"d = {dim}", xlabel="evaluations / d", ylim=(0, 1))
        ax.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("share of function, instance, target triples")
    handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=5, bbox_to_anchor=(0.5, 0.0))
    save_plot(figure, path)


def main(
    subset: Annotated[str, typer.Option(help="full, or ci: a minute")] = "full",
    out: Annotated[Path, typer.Option(help="Folder for what is measured")] = RESULTS,
    budget: Annotated[int | None, typer.Option(help="Evaluations a dimension")] = None,
    only: Annotated[list[str] | None, typer.Option(help="An optimizer; repeat for more")] = None,
) -> None:
    """Measure the share of BBOB targets that each optimizer reaches."""
    settings = {key: list(v) if key != "budget" else v for key, v in SUBSETS[subset].items()}
    settings["budget"] = budget or settings["budget"]
    names = list(only or OPTIMIZERS)
    # Instance by instance, so that an unfinished run already covers all functions.
    order = product(settings["instances"], settings["functions"], settings["dims"], names)
    cells = [
        {"function": f, "dim": d, "instance": i, "budget": settings["budget"], "optimizer": name}
        for i, f, d, name in order
    ]
    rows = run_cells(out / "bbob.jsonl", cells, measure)
    stem = "bbob" if subset == "full" else f"bbob-{subset}"
    settings |= {"targets": TARGETS, "box": LIMIT, "sigma0": SIGMA0}
    settings["seed"] = "1000 function + 10 dim + instance"
    write_report(out / f"{stem}.json", PACKAGES, settings, tables(rows, names, settings))
    plot(rows, names, settings, out / f"{stem}.png")


if __name__ == "__main__":
    typer.run(main)
