"""Is our LoTFWA better than the public fireworks algorithms on multimodal functions?

The multimodal functions of CEC 2013, F6 to F28 (Liang, Qu, Suganthan & Hernández-Díaz 2013, Problem
Definitions and Evaluation Criteria for the CEC 2013 Special Session on Real-Parameter
Optimization), in the setting of the LoTFWA paper: 30 dimensions, 300,000 evaluations, the box
[-100, 100]^d, and the error f - f_opt, to the suite's resolution of 1e-8. The functions are the
suite's own C code, which all published figures rest on. It departs from the report's formulas where
T_asy leaves out negative coordinates (F7 to F9, F11 to F13, F20, and compositions of them) and in
F19, which is not rotated. `--suite bbob` takes functions 15 to 24 of COCO's bbob suite instead.

The peers are run as published, from clones in the folder given by --peers:

    git clone https://github.com/cil-lab/fwaopt PEERS/fwaopt
    git clone https://github.com/cilatpku/firework-algorithm PEERS/firework-algorithm

fwaopt also holds the C code of CEC 2013, compiled here with `cc`. Its default amplitude is an
integer, which numpy then truncates; "fwaopt, float" is the same code given a float, so that the
comparison does not rest on that slip.

All sample from numpy generators with the same seed a run; the first 300,000 evaluations of each
count. Two algorithms are compared on a function by the two-sided Wilcoxon rank-sum test.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from common import RESULTS, Done, Observed, console, run_cells, save_plot, write_report
from rich.table import Table
from scipy.stats import mannwhitneyu, rankdata

from dfo_core import LoTFWA

OURS = "dfo_core LoTFWA"
DECIMALS = 8  # to which errors are compared: beyond, the same optimum differs by rounding only
SIGNIFICANCE = 0.05
SUITES = {"cec2013": range(6, 29), "bbob": range(15, 25)}
LIMITS = {"cec2013": 100.0, "bbob": 5.0}
CEC2013 = "fwaopt/mpopt/benchmarks/cec2013/lib"
# Functions made of many cosines are 3 times as fast with the compiler's approximate mathematics,
# which changes their values by a part in 10^11. The others gain little or are sensitive to it.
APPROXIMATE = {9, 16, 17, 18, 25, 26, 27}
peers = Path()


# -- functions: (n, d) points to (n,) errors ------------------------------------------------------


def error_function(suite: str, function: int, dim: int) -> Callable:
    return _cec2013(function) if suite == "cec2013" else _bbob(function, dim)


def _bbob(function: int, dim: int) -> Callable:
    import cocoex

    problem = cocoex.BareProblem("bbob", function, dim, 1)
    f_opt = problem.best_value()
    return lambda x: np.array([problem(row) for row in x]) - f_opt


def _cec2013(function: int) -> Callable:
    library, folder = _compiled(function in APPROXIMATE)
    f_opt = 100.0 * (function - (15 if function <= 14 else 14))

    def errors(x):
        x, losses = np.ascontiguousarray(x, dtype=float), np.empty(len(x))
        library.ceval(x, x.shape[1], len(x), losses, function, folder)
        return losses - f_opt

    return errors


@cache
def _compiled(approximate: bool) -> tuple[ctypes.CDLL, bytes]:
    source = peers / CEC2013
    # No start files: those of -Ofast would round all of Python's tiny numbers to zero.
    flags = ["-Ofast", "-march=native", "-nostartfiles"] if approximate else ["-O2"]
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "cec13.so")
        command = ["cc", *flags, "-w", "-shared", "-fPIC", "-o", binary, source / "cec13.c", "-lm"]
        subprocess.run(command, check=True)
        library = ctypes.CDLL(str(binary))
    array = np.ctypeslib.ndpointer(np.float64, flags="C_CONTIGUOUS")
    library.ceval.argtypes = [array, *2 * [ctypes.c_int], array, ctypes.c_int, ctypes.c_char_p]
    library.ceval.restype = None
    return library, str(source).encode()


# -- algorithms: each runs until the objective raises Done ----------------------------------------


def ours(fun: Observed, dim: int, limit: float, seed: int) -> None:
    opt = LoTFWA((-limit, limit), dim=dim, seed=seed, budget=fun.budget)
    while not opt.stop():
        batch = opt.ask()
        opt.tell(batch, fun(batch.x))


def fwaopt(amplitude: type) -> Callable:
    def run(fun, dim, limit, seed):
        _import_from("fwaopt")
        from mpopt.algorithms.LoTFWA import LoTFWA as Peer
        from mpopt.tools.objective import Evaluator, ObjFunction

        objective = ObjFunction(fun, batch=True, dim=dim, lb=-limit, ub=limit)
        peer = Peer()
        peer.set_params({"init_amp": amplitude(2 * limit)})
        np.random.seed(seed)  # noqa: NPY002
        peer.optimize(Evaluator(objective, max_eval=fun.budget))

    return run


def firework_algorithm(name: str) -> Callable:
    def run(fun, dim, limit, seed):
        _import_from("firework-algorithm")
        from importlib import import_module

        peer = getattr(import_module(f"fwa.{name}"), name)()
        limits = {"lower_bound": -limit, "upper_bound": limit, "init_amp": 2 * limit}
        as_array = name == "LoTFWA"  # BBFWA adds lists of losses up
        peer.load_prob(
            evaluator=lambda x: fun(x) if as_array else fun(np.array(x)).tolist(),
            dim=dim,
            max_eval=fun.budget,
            **limits,
        )
        np.random.seed(seed)  # noqa: NPY002
        peer.run()

    return run


def _import_from(clone: str) -> None:
    # Both call time.clock, gone since Python 3.8, for a seed that is replaced and for a duration.
    time.clock = lambda: 0.0  # type: ignore[attr-defined]
    if str(peers / clone) not in sys.path:
        sys.path.insert(0, str(peers / clone))


ALGORITHMS: dict[str, Callable] = {
    OURS: ours,
    "fwaopt": fwaopt(int),
    "fwaopt, float": fwaopt(float),
    "firework-algorithm LoTFWA": firework_algorithm("LoTFWA"),
    "firework-algorithm BBFWA": firework_algorithm("BBFWA"),
}


# -- one run --------------------------------------------------------------------------------------


def measure(suite: str, function: int, dim: int, budget: int, algorithm: str, run: int) -> dict:
    fun = Observed(error_function(suite, function, dim), budget, targets=())
    start = time.perf_counter()
    with suppress(Done):
        ALGORITHMS[algorithm](fun, dim, LIMITS[suite], 1000 * function + run)
    return {"error_of_best": fun.best, "nfev": fun.nfev, "seconds": time.perf_counter() - start}


# -- what comes out -------------------------------------------------------------------------------


def summarize(rows: list[dict], functions: list[int], names: list[str]) -> dict:
    """Errors, tests against ours and ranks, a function at a time."""
    summary: dict = {}
    for function in functions:
        errors = {
            name: [
                round(row["error_of_best"], DECIMALS)
                for row in rows
                if "error_of_best" in row
                and row["cell"]["function"] == function
                and row["cell"]["algorithm"] == name
            ]
            for name in names
        }
        if not all(errors.values()):
            continue
        ranks = rankdata([np.mean(e) for e in errors.values()])
        summary[function] = {
            name: {
                "mean": float(np.mean(errors[name])),
                "median": float(np.median(errors[name])),
                "std": float(np.std(errors[name], ddof=1)) if len(errors[name]) > 1 else None,
                "runs": len(errors[name]),
                "rank": float(rank),
                **({} if name == OURS else _test(errors[OURS], errors[name])),
            }
            for name, rank in zip(names, ranks, strict=True)
        }
    return summary


def _test(mine: list[float], theirs: list[float]) -> dict:
    p = float(mannwhitneyu(mine, theirs).pvalue) if mine != theirs else 1.0
    verdict = "no difference"
    if p < SIGNIFICANCE:
        ranks = rankdata(mine + theirs)
        better = ranks[: len(mine)].mean() < ranks[len(mine) :].mean()
        verdict = "ours better" if better else "ours worse"
    return {"p": p, "verdict": verdict}


def table(summary: dict, names: list[str], title: str) -> None:
    table = Table(title=title, caption="+ ours is better, - worse, = no significant difference")
    table.add_column("F", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    signs = {"ours better": "+", "ours worse": "-", "no difference": "="}
    for function, cells in summary.items():
        shown = [f"{c['mean']:.3g} {signs.get(c.get('verdict', ''), '')}" for c in cells.values()]
        table.add_row(str(function), *shown)
    table.add_section()
    ranks = [np.mean([cells[name]["rank"] for cells in summary.values()]) for name in names]
    table.add_row("rank", *[f"{rank:.2f}" for rank in ranks])
    table.add_row("+/=/-", *[_count(summary, name) for name in names])
    console.print(table)


def _count(summary: dict, name: str) -> str:
    verdicts = [cells[name].get("verdict") for cells in summary.values()]
    order = ("ours better", "no difference", "ours worse")
    return "" if name == OURS else "/".join(str(verdicts.count(v)) for v in order)


def plot(summary: dict, names: list[str], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(11, 4))
    x = np.arange(len(summary))
    ax.axhline(1, color="C0", linewidth=1.5, label=OURS)
    for i, name in enumerate(n for n in names if n != OURS):
        ratio = [_ratio(cells[name]["mean"], cells[OURS]["mean"]) for cells in summary.values()]
        ax.plot(x, ratio, "os^Dv"[i], color=f"C{i + 1}", label=name, alpha=0.8)
    ax.set(yscale="log", xlabel="function", ylabel="mean error / mean error of ours")
    ax.set_xticks(x, [f"F{function}" for function in summary])
    ax.grid(alpha=0.3)
    ax.legend()
    save_plot(figure, path)


def _ratio(theirs: float, mine: float) -> float:
    least = 10.0**-DECIMALS  # as a ratio needs numbers above zero
    return max(theirs, least) / max(mine, least)


def main(
    peers_folder: Annotated[Path, typer.Option("--peers", help="Folder with the two clones")],
    out: Annotated[Path, typer.Option(help="Folder for what is measured")] = RESULTS,
    suite: Annotated[str, typer.Option(help="cec2013 or bbob")] = "cec2013",
    functions: Annotated[str, typer.Option(help="As in 6,7,8; empty for all")] = "",
    dim: Annotated[int, typer.Option(help="cec2013: 10, 30, 50, ...")] = 30,
    budget: Annotated[int, typer.Option(help="Evaluations a run")] = 300_000,
    runs: Annotated[int, typer.Option(help="Runs of each algorithm on each function")] = 15,
) -> None:
    """Compare our LoTFWA with the public fireworks algorithms on multimodal functions."""
    global peers
    peers = peers_folder.resolve()
    chosen = [int(f) for f in functions.split(",")] if functions else list(SUITES[suite])
    names = list(ALGORITHMS)
    # Run by run, so that an unfinished benchmark already covers all functions.
    cells = [
        {
            "suite": suite,
            "function": function,
            "dim": dim,
            "budget": budget,
            "algorithm": name,
            "run": run,
        }
        for run, function, name in product(range(runs), chosen, names)
    ]
    rows = run_cells(out / "multimodal.jsonl", cells, measure)
    summary = summarize(rows, chosen, names)
    table(summary, names, f"Mean error, {suite}, {dim}-D, {budget} evaluations, {runs} runs")
    settings = {"suite": suite, "dim": dim, "budget": budget, "runs": runs, "test": SIGNIFICANCE}
    settings["seed"] = "1000 function + run"
    settings["peers"] = {path.name: _commit_of(path) for path in sorted(peers.iterdir())}
    stem = f"multimodal-{suite}"
    write_report(out / f"{stem}.json", ("coco-experiment",), settings, summary)
    plot(summary, names, out / f"{stem}.png")


def _commit_of(clone: Path) -> str:
    command = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    typer.run(main)
