"""`minimize`: one call that runs any of the optimizers, in parallel and resumable if wanted."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Executor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from dfo_core.adapters import as_optimizer, is_factory
from dfo_core.bounds import infer_dim
from dfo_core.checkpoint import Checkpoint
from dfo_core.evaluation import Function, Objective
from dfo_core.protocol import Result
from dfo_core.validation import as_positive_float

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

BUDGET_PER_DIMENSION = 10_000  # the budget where none is given, as in the BBOB experiments


def minimize(
    fun: Function,
    x0: Any = None,
    bounds: Any = None,
    *,
    method: Any = "cma-es",
    budget: int | None = None,
    vectorized: bool = False,
    executor: Executor | Callable[[], Executor] | None = None,
    callback: Callable[[Result], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: Any = None,
    sigma0: float | None = None,
    popsize: int | None = None,
    dim: int | None = None,
    target: float | None = None,
    max_seconds: float | None = None,
) -> OptimizeResult:
    """Minimise a function without gradients.

    A call of `fun` that raises costs its own evaluation only: the candidate counts as invalid,
    the first such error is shown as a warning, all are counted in the result. If no call has worked
    when five or more have raised, or when the run ends, the error is raised instead, as nothing can
    come of it.

    A call that kills its worker (a segmentation fault, the out-of-memory killer) breaks a whole
    pool of processes. In place of a `ProcessPoolExecutor`, and of any executor that was given as
    a function that makes it, `minimize` makes another, finds out which candidate it was, and goes
    on without that one. An executor of another kind that breaks ends the run with an error that
    holds what was found until then.

    Executors: `ThreadPoolExecutor`, `ProcessPoolExecutor`, dask's `client.get_executor()`,
    `loky.get_reusable_executor` (joblib's pool), mpi4py's `MPIPoolExecutor`. ray ships none;
    `dfo_core.ray_executor.RayExecutor` makes one of its tasks. dask and ray restart dead workers
    themselves.

    For a noisy `fun` pass `method=Averaged(optimizer, samples=k)`.

    Args:
        fun: The loss: takes (d,) and returns a number; with `vectorized`, takes (n, d) and
            returns (n,).
        x0: (d,) start point, see `as_optimizer`.
        bounds: (lower, upper), each None, a number or (d,), or a `scipy.optimize.Bounds`. `fun`
            is never called outside.
        method: What `as_optimizer` takes: "cma-es", "lotfwa", "nevergrad:NGOpt", an optimizer
            object, a factory f(dim, seed), ...
        budget: Largest number of evaluations; None for 10000 times d, or what an optimizer, or one
            that a factory made, has for its own.
        vectorized: Whether `fun` takes a whole batch at once.
        executor: Where to call `fun`: any `concurrent.futures.Executor`, or a function without
            arguments that makes one, `lambda: ProcessPoolExecutor(4)`; None calls it here. Not
            with `vectorized`.
        callback: Called with a `Result` after each batch; stops the run if it returns a true value
            or raises StopIteration.
        checkpoint: A file. The state is saved to it after each batch; if it exists, the run
            continues from it, to the same numbers as if it had never been interrupted.
        seed: Seed of the optimizer.
        sigma0: Initial standard deviation, see `as_optimizer`.
        popsize: Candidates a generation; None for the optimizer's default.
        dim: Number of coordinates, needed if neither x0 nor bounds says it.
        target: Loss at which to stop.
        max_seconds: Time after which this call ends, None for no limit. Evaluations that have
            started are finished first and the others dropped (dask and ray, which do not tell the
            two apart, drop all); a later call that continues from the checkpoint asks for those
            again. How far a run comes in a time is no property of
            its seed: for numbers that can be repeated limit the budget.

    Returns:
        x (d,), fun, nfev, nit; success: whether any finite loss was found; message: why it
        stopped; stop: the same as a mapping; n_invalid: evaluations without a finite loss;
        n_errors: how many of them raised; errors: the first ten of their messages.

    Raises:
        TypeError: If `executor` is none, or `method` is nothing that `as_optimizer` takes.
        ValueError: If an argument does not fit, or the checkpoint is of another run.
        concurrent.futures.BrokenExecutor: If the caller's executor broke and cannot be made anew.
            Every loss known by then is in the error's attribute `result` and in the checkpoint.
    """
    began = time.monotonic()
    limit = None if max_seconds is None else as_positive_float("max_seconds", max_seconds)

    def time_left() -> float | None:
        return None if limit is None else began + limit - time.monotonic()

    if vectorized and executor is not None:
        raise ValueError("vectorized=True evaluates a batch in one call; leave out the executor")
    says_dim = any(given is not None for given in (dim, x0, bounds))
    factory = is_factory(method)
    if budget is None and says_dim and not _is_built(method) and not factory:
        # Before it is built, as some methods plan with their budget.
        budget = BUDGET_PER_DIMENSION * infer_dim(dim, x0, bounds)
    opt = as_optimizer(
        partial(_with_budget, method) if budget is None and factory else method,
        dim=dim,
        seed=seed,
        x0=x0,
        bounds=bounds,
        popsize=popsize,
        budget=budget,
        sigma0=sigma0,
        target=target,
    )
    if opt.budget is None:
        opt.budget = BUDGET_PER_DIMENSION * opt.dim
    objective = Objective(fun, vectorized, executor)
    saved: Checkpoint | None = None
    if checkpoint is not None:
        name = method if isinstance(method, str) else type(opt).__name__
        arguments = {"method": name, "x0": x0, "bounds": bounds, "seed": seed}
        arguments |= {"sigma0": sigma0, "popsize": popsize}
        saved = Checkpoint(Path(checkpoint), arguments)
        saved.resume(opt, objective)
        if not opt.stop():
            saved.write(opt, objective)  # what cannot be written is told before any work

    stopped: dict[str, Any] = {}
    try:
        while not stopped and not opt.stop():
            batch = opt.ask()
            outcome = objective(batch.x, time_left)
            opt.tell(batch[outcome.done], outcome.losses[outcome.done])
            if saved is not None:
                saved.write(opt, objective)
            if outcome.broken is not None:
                found = _as_scipy(opt.result, objective, {"broken": True})
                _raise_broken(outcome.broken, found, saved)
            if callback is not None and _wants_to_stop(callback, opt.result):
                stopped["callback"] = True
            left = time_left()
            if left is not None and left <= 0:
                stopped["max_seconds"] = max_seconds
    finally:
        objective.close()
    objective.raise_if_nothing_worked()
    return _as_scipy(opt.result, objective, stopped)


def _with_budget(factory: Callable[[int, Any], Any], d: int, seed: Any) -> Any:
    """What a factory returns, with the default budget if that has still to be built."""
    made = factory(d, seed)
    if _is_built(made):
        return made
    return as_optimizer(made, dim=d, budget=BUDGET_PER_DIMENSION * d)


def _is_built(method: Any) -> bool:
    """Whether something is an optimizer, and no class or name of one."""
    return hasattr(method, "ask") and not isinstance(method, type)


def _wants_to_stop(callback: Callable[[Result], Any], result: Result) -> bool:
    try:
        return bool(callback(result))
    except StopIteration:
        return True


class ExecutorBroken(BrokenExecutor):
    """The caller's executor lost its workers.

    Attributes:
        result: What was found until then, as `minimize` returns it.
    """

    def __init__(self, message: str, result: OptimizeResult) -> None:
        super().__init__(message)
        self.result = result


def _raise_broken(
    broken: BrokenExecutor, result: OptimizeResult, checkpoint: Checkpoint | None
) -> NoReturn:
    again = " or call again to continue from the checkpoint" if checkpoint is not None else ""
    raise ExecutorBroken(
        f"the executor's workers died after {result.nfev} evaluations ({broken}). Give a function "
        "that makes the executor, such as loky.get_reusable_executor, for it to be made anew "
        f"and the candidate that kills it to be left out{again}. What was found so far is in this "
        "error's attribute result",
        result,
    ) from broken


def _as_scipy(result: Result, objective: Objective, stopped: Mapping[str, Any]) -> OptimizeResult:
    from scipy.optimize import OptimizeResult  # slow to import

    stop = {**result.stop, **stopped}
    return OptimizeResult(
        x=result.x,
        fun=result.fun,
        nfev=result.nfev,
        nit=result.nit,
        success=bool(np.isfinite(result.fun)),
        message="stopped by " + ", ".join(f"{name} ({value})" for name, value in stop.items()),
        stop=stop,
        n_invalid=result.n_invalid,
        n_errors=objective.n_errors,
        errors=objective.messages,
    )
