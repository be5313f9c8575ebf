"""Calling the objective for `minimize`: here, vectorised, or in workers, which may die."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np

from dfo_core.validation import BoolArray, FloatArray, as_float_array

MAX_MESSAGES = 10
FEWEST_CALLS = 5  # after which, if all of them raised, nothing can come of it

Function = Callable[[FloatArray], Any]
# Seconds until evaluations should end, zero or less once they should; None for no limit.
TimeLeft = Callable[[], float | None]


@dataclass
class Outcome:
    """What became of a batch of n candidates.

    Attributes:
        losses: (n,) NaN where there is none.
        done: (n,) whether a candidate was evaluated, with a loss or an error; the others were not
            reached.
        errors: What evaluations raised, by candidate.
        broken: Why the caller's executor cannot go on, if it cannot.
    """

    losses: FloatArray
    done: BoolArray
    errors: dict[int, Exception] = field(default_factory=dict)
    broken: BrokenExecutor | None = None

    @classmethod
    def nothing_yet(cls, n: int) -> Outcome:
        """The outcome of a batch before its first evaluation."""
        return cls(np.full(n, np.nan), np.zeros(n, dtype=np.bool_))

    def record(self, i: int, result: float | Exception) -> None:
        """Take in candidate i's loss or error."""
        self.done[i] = True
        if isinstance(result, Exception):
            self.errors[i] = result
        else:
            self.losses[i] = result


class Objective:
    """The objective of a run, wherever it is evaluated; counts what it raised.

    Args:
        fun: See `minimize`.
        vectorized: See `minimize`.
        executor: See `minimize`.
    """

    def __init__(
        self, fun: Function, vectorized: bool, executor: Executor | Callable[[], Executor] | None
    ) -> None:
        self._fun, self._vectorized = fun, vectorized
        self._pool = None if executor is None else _Pool(executor)
        self.n_errors = 0
        self.messages: list[str] = []
        self._worked = False
        self._first_error: Exception | None = None

    def __call__(self, x: FloatArray, time_left: TimeLeft) -> Outcome:
        """Evaluate candidates (n, d), as many as there is time for.

        Raises:
            Exception: What the objective raised, if it never worked: nothing can come of it.
        """
        outcome = Outcome.nothing_yet(len(x))
        if self._vectorized:
            self._evaluate_at_once(x, outcome)
        elif self._pool is not None:
            self._pool.evaluate(self._fun, x, time_left, outcome)
        else:
            self._evaluate_here(x, time_left, outcome)
        self._worked |= int(outcome.done.sum()) > len(outcome.errors)
        errors = list(outcome.errors.values())
        self._first_error = self._first_error or next(iter(errors), None)
        if self.n_errors + len(errors) >= FEWEST_CALLS:
            self.raise_if_nothing_worked()
        self._count(errors)
        return outcome

    def raise_if_nothing_worked(self) -> None:
        """Raise what the objective raised first, unless a call has worked or none was made."""
        if not self._worked and self._first_error is not None:
            raise self._first_error

    def close(self) -> None:
        """Shut down the executor if it was made here."""
        if self._pool is not None:
            self._pool.close()

    def _evaluate_at_once(self, x: FloatArray, outcome: Outcome) -> None:
        results: Sequence[float | Exception]
        try:
            results = _losses(self._fun, x).tolist()
        except Exception as error:
            results = [error] * len(x)
        for i, result in enumerate(results):
            outcome.record(i, result)

    def _evaluate_here(self, x: FloatArray, time_left: TimeLeft, outcome: Outcome) -> None:
        for i, row in enumerate(x):
            try:
                outcome.record(i, _loss(self._fun, row))
            except Exception as error:
                outcome.record(i, error)
            if _is_over(time_left):
                return

    def _count(self, errors: list[Exception]) -> None:
        messages = [f"{type(error).__name__}: {error}" for error in errors]
        if messages and not self.n_errors:
            warnings.warn(
                f"the objective raised {messages[0]}; the candidate counts as invalid. "
                "Further errors are only counted in the result",
                stacklevel=4,
            )
        self.n_errors += len(errors)
        self.messages += messages[: MAX_MESSAGES - len(self.messages)]

    def get_state(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"n_errors": self.n_errors, "messages": list(self.messages), "worked": self._worked}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        self.n_errors, self.messages = state["n_errors"], list(state["messages"])
        self._worked = state["worked"]


class _Pool:
    """An executor that may lose its workers: the caller's, or one that we make and make anew."""

    def __init__(self, executor: Executor | Callable[[], Executor]) -> None:
        if not (isinstance(executor, Executor) or callable(executor)):
            raise TypeError(
                "executor must be a concurrent.futures.Executor or a function that makes one; got "
                f"{type(executor).__name__}"
            )
        self._callers = executor if isinstance(executor, Executor) else None
        self._make = _successor(executor) if isinstance(executor, Executor) else executor
        self._executor = self._callers

    def close(self) -> None:
        """Give up the executor; shut it down if it was made here."""
        if self._executor is not None and self._executor is not self._callers:
            self._executor.shutdown(wait=True)
        self._executor = None

    def evaluate(self, fun: Function, x: FloatArray, time_left: TimeLeft, outcome: Outcome) -> None:
        """Evaluate x (n, d) and record what becomes of it.

        When a worker dies, a pool of processes fails all calls under way and does not say whose
        fault it was. Those are made again one at a time in a new pool, until one breaks that too:
        it is the culprit and costs its own evaluation. As calls start in order, it is among the
        first few, and after it all others go on together.
        """
        alone = False
        while not outcome.done.all():
            waiting = np.flatnonzero(~outcome.done).tolist()
            part = waiting[:1] if alone else waiting
            broken = self._attempt(fun, x, part, time_left, outcome)
            if broken is not None and self._make is None:
                outcome.broken = broken
                return
            if broken is not None:
                self.close()
                if alone:
                    outcome.record(part[0], broken)
                alone = not alone
            if _is_over(time_left):
                return

    def _attempt(
        self,
        fun: Function,
        x: FloatArray,
        part: Sequence[int],
        time_left: TimeLeft,
        outcome: Outcome,
    ) -> BrokenExecutor | None:
        """Record those candidates of `part` that come back; return what broke the pool, if any."""
        if self._make is not None and self._executor is None:
            self._executor = self._make()
        assert self._executor is not None
        futures: dict[int, Future[float]] = {}
        broken: BrokenExecutor | None = None
        try:
            for i in part:
                try:
                    # A name of its own, as dask takes calls that look the same for one.
                    futures[i] = self._executor.submit(_loss, fun, x[i], uuid4().hex)
                except BrokenExecutor as error:
                    broken = error
                    break
            wait(futures.values(), timeout=time_left())
        finally:
            # If time is up or the user interrupts, calls that have not started need not.
            for future in futures.values():
                future.cancel()
        for i, future in futures.items():
            try:
                outcome.record(i, future.result())
            except CancelledError:
                continue
            except BrokenExecutor as error:
                broken = error
            except Exception as error:
                outcome.record(i, error)
        return broken


def _successor(executor: Executor) -> Callable[[], Executor] | None:
    """What makes an executor like the caller's, should that break; None where nobody knows how.

    `concurrent.futures` says how for a pool of processes, if only in attributes that are not
    documented, the same in Python 3.11 to 3.14.
    """
    if type(executor) is not ProcessPoolExecutor:
        return None
    names = ("max_workers", "mp_context", "initializer", "initargs", "max_tasks_per_child")
    try:
        options = {name: getattr(executor, f"_{name}") for name in names}
    except AttributeError:
        return None
    return partial(ProcessPoolExecutor, **options)


def _is_over(time_left: TimeLeft) -> bool:
    left = time_left()
    return left is not None and left <= 0


# Functions of the module, so that a process pool can pickle them.


def _loss(fun: Function, x: FloatArray, call: str = "") -> float:
    """The objective's number at x (d,).

    Args:
        fun: The objective.
        x: The candidate.
        call: Tells this call from others of the same function and candidate.
    """
    try:
        returned = fun(x)
    except (BrokenExecutor, CancelledError) as error:  # of an executor of its own, not of ours
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    value = as_float_array("what the objective returns", returned)
    if value.size != 1:
        raise ValueError(f"the objective must return one number; got shape {value.shape}")
    return float(value.item())


def _losses(fun: Function, x: FloatArray) -> FloatArray:
    values = as_float_array("what the objective returns", fun(x))
    if values.shape != (len(x),):
        raise ValueError(
            f"a vectorized objective must return one number a row, shape ({len(x)},); "
            f"got shape {values.shape}"
        )
    return values
