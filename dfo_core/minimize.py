"""`minimize`: one call that runs any of the optimizers, in parallel and resumable if wanted."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, Executor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfo_core.adapters import as_optimizer
from dfo_core.bounds import Box, infer_dim
from dfo_core.optimizer import Optimizer
from dfo_core.protocol import Result
from dfo_core.serialization import load_state, save_state
from dfo_core.validation import FloatArray, as_float_array

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

MAX_MESSAGES = 10
BUDGET_PER_DIMENSION = 10_000  # the budget where none is given, as in the BBOB experiments


def minimize(
    fun: Callable[[FloatArray], Any],
    x0: Any = None,
    bounds: Any = None,
    *,
    method: Any = "cma-es",
    budget: int | None = None,
    vectorized: bool = False,
    executor: Executor | None = None,
    callback: Callable[[Result], Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: Any = None,
    sigma0: float | None = None,
    popsize: int | None = None,
    dim: int | None = None,
    target: float | None = None,
) -> OptimizeResult:
    """Minimise a function without gradients.

    A call of `fun` that raises costs its own evaluation only: the candidate counts as invalid,
    the first such error is shown as a warning, all are counted in the result. If every call of
    the first batch raises, the first error is raised instead, as nothing can come of it.

    Args:
        fun: The loss: takes (d,) and returns a number; with `vectorized`, takes (n, d) and
            returns (n,).
        x0: (d,) start point, see `as_optimizer`.
        bounds: (lower, upper), each None, a number or (d,), or a `scipy.optimize.Bounds`. `fun`
            is never called outside.
        method: What `as_optimizer` takes: "cma-es", "lotfwa", "nevergrad:NGOpt", an optimizer
            object, a factory f(dim, seed), ...
        budget: Largest number of evaluations; None for 10000 times d.
        vectorized: Whether `fun` takes a whole batch at once.
        executor: Where to call `fun`, any `concurrent.futures.Executor` (threads, processes, dask,
            mpi4py, loky, ...); None calls it here. Not with `vectorized`.
        callback: Called with a `Result` after each batch; may raise StopIteration to stop.
        checkpoint: A file. The state is saved to it after each batch; if it exists, the run
            continues from it, to the same numbers as if it had never been interrupted.
        seed: Seed of the optimizer.
        sigma0: Initial standard deviation, see `as_optimizer`.
        popsize: Candidates a generation; None for the optimizer's default.
        dim: Number of coordinates, needed if neither x0 nor bounds says it.
        target: Loss at which to stop.

    Returns:
        x (d,), fun, nfev, nit; success: whether any finite loss was found; message: why it
        stopped; stop: the same as a mapping; n_invalid: evaluations without a finite loss;
        n_errors: how many of them raised; errors: the first ten of their messages.

    Raises:
        ValueError: If an argument does not fit, or the checkpoint is of another run.
        concurrent.futures.BrokenExecutor: If the executor's workers died; with a checkpoint, the
            same call again continues.
    """
    if vectorized and executor is not None:
        raise ValueError("vectorized=True evaluates a batch in one call; leave out the executor")
    if budget is None and not hasattr(method, "ask"):
        # Before it is built, as some methods plan with their budget.
        budget = BUDGET_PER_DIMENSION * infer_dim(dim, x0, bounds)
    opt = as_optimizer(
        method,
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
    objective = _Objective(fun, vectorized, executor)
    saved: _Checkpoint | None = None
    if checkpoint is not None:
        name = method if isinstance(method, str) else type(opt).__name__
        arguments = {"method": name, "x0": x0, "bounds": bounds, "seed": seed}
        arguments |= {"sigma0": sigma0, "popsize": popsize}
        saved = _Checkpoint(Path(checkpoint), arguments)
        saved.resume(opt, objective)

    stopped = False
    while not stopped and not opt.stop():
        batch = opt.ask()
        opt.tell(batch, objective(batch.x))
        if saved is not None:
            saved.write(opt, objective)
        if callback is not None:
            try:
                callback(opt.result)
            except StopIteration:
                stopped = True
    return _as_scipy(opt.result, objective, stopped)


class _Objective:
    """The objective, called on batches; counts what it raised."""

    def __init__(
        self, fun: Callable[[FloatArray], Any], vectorized: bool, executor: Executor | None
    ) -> None:
        self._fun, self._vectorized, self._executor = fun, vectorized, executor
        self.n_errors = 0
        self.messages: list[str] = []
        self._worked = False

    def __call__(self, x: FloatArray) -> FloatArray:
        """Return the losses (n,) of candidates (n, d); NaN where the objective raised."""
        losses = np.full(len(x), np.nan)
        raised: list[Exception] = []
        if self._vectorized:
            try:
                losses = _losses(self._fun, x)
            except Exception as error:
                raised = [error] * len(x)
        else:
            for i, call in enumerate(self._calls(x)):
                try:
                    losses[i] = call()
                except BrokenExecutor:
                    raise
                except Exception as error:
                    raised.append(error)
        if len(raised) == len(x) and not self._worked:
            raise raised[0]
        self._worked = True
        self._record(raised)
        return losses

    def _calls(self, x: FloatArray) -> list[Callable[[], float]]:
        if self._executor is None:
            return [partial(_loss, self._fun, row) for row in x]
        return [self._executor.submit(_loss, self._fun, row).result for row in x]

    def _record(self, raised: list[Exception]) -> None:
        messages = [f"{type(error).__name__}: {error}" for error in raised]
        if messages and not self.n_errors:
            warnings.warn(
                f"the objective raised {messages[0]}; the candidate counts as invalid. "
                "Further errors are only counted in the result",
                stacklevel=4,
            )
        self.n_errors += len(raised)
        self.messages += messages[: MAX_MESSAGES - len(self.messages)]

    def get_state(self) -> dict[str, Any]:
        return {"n_errors": self.n_errors, "messages": list(self.messages), "worked": self._worked}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.n_errors, self.messages = state["n_errors"], list(state["messages"])
        self._worked = state["worked"]


# Functions of the module, so that a process pool can pickle them.


def _loss(fun: Callable[[FloatArray], Any], x: FloatArray) -> float:
    value = as_float_array("what the objective returns", fun(x))
    if value.size != 1:
        raise ValueError(f"the objective must return one number; got shape {value.shape}")
    return float(value.item())


def _losses(fun: Callable[[FloatArray], Any], x: FloatArray) -> FloatArray:
    values = as_float_array("what the objective returns", fun(x))
    if values.shape != (len(x),):
        raise ValueError(
            f"a vectorized objective must return one number a row, shape ({len(x)},); "
            f"got shape {values.shape}"
        )
    return values


class _Checkpoint:
    """A file with the optimizer's state and the arguments of the run it belongs to."""

    def __init__(self, path: Path, arguments: dict[str, Any]) -> None:
        self._path = path
        # As text, so that any argument can be compared; arrays in full and exactly.
        self._arguments = {name: _describe(value) for name, value in arguments.items()}

    def resume(self, opt: Optimizer, objective: _Objective) -> None:
        if not opt.supports_state:
            opt.state_dict()  # raises, and says why
        if not self._path.exists():
            return
        state = load_state(self._path)
        for name, ours in self._arguments.items():
            theirs = state.get("arguments", {}).get(name)
            if theirs != ours:
                raise ValueError(
                    f"checkpoint {str(self._path)!r} is of a run with {name}={theirs}, this call "
                    f"has {name}={ours}: use the same arguments, another file, or delete this one"
                )
        opt.load_state_dict(state["optimizer"])
        objective.set_state(state["objective"])

    def write(self, opt: Optimizer, objective: _Objective) -> None:
        state = {"arguments": self._arguments, "objective": objective.get_state()}
        save_state(self._path, {**state, "optimizer": opt.state_dict()})


def _describe(value: Any) -> str:
    if hasattr(value, "lb") and hasattr(value, "ub"):
        value = (value.lb, value.ub)
    if isinstance(value, Box):
        value = (value.lower, value.upper)
    if isinstance(value, (list, tuple, np.ndarray)):
        return repr([_describe(item) for item in value])
    return repr(value.item() if isinstance(value, np.generic) else value)


def _as_scipy(result: Result, objective: _Objective, stopped: bool) -> OptimizeResult:
    from scipy.optimize import OptimizeResult  # slow to import

    stop = {**result.stop, **({"callback": True} if stopped else {})}
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
