"""Any object with `ask` and `tell` behind the protocol."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from dfo_core.adapters.foreign import ForeignOptimizer, refuse
from dfo_core.validation import FloatArray, as_float_array, as_points, as_positive_int


def require_ask_and_tell(obj: Any) -> None:
    """Raise TypeError if an object lacks `ask` or `tell`."""
    for method in ("ask", "tell"):
        if not callable(getattr(obj, method, None)):
            raise TypeError(
                f"{type(obj).__name__} has no method {method}(): wrap it in an object with "
                "ask() -> points and tell(points, losses)"
            )


class AskTellOptimizer(ForeignOptimizer):
    """An object with `ask` and `tell`, whichever of the usual forms they have.

    `ask()` may return

    - points: an array (n, d), a list of arrays (d,), or an object with such an `x`;
    - one point: an array or a list of numbers (d,). Then a batch is made of `popsize` calls.

    `tell` may take

    - two arguments: `tell(xs, losses)` if `ask` returns points, and `tell(x, loss)`, once a
      candidate, if it returns one point;
    - one argument: `tell([(x, loss), ...])`, once a batch.

    `xs` is the very object that `ask` returned; losses are a list of floats.

    Args:
        obj: The object. Its first `ask` is called at once to see what it returns.
        popsize: Candidates a batch where `ask` returns one point; None for the object's
            `population_size` or `popsize` if it has one, else 1.
        dim: Number of coordinates to insist on; None for what `ask` returns.
        budget: Largest number of evaluations.
        target: Loss at which to stop.

    Raises:
        TypeError: If the object lacks `ask` or `tell`.
        ValueError: If `ask` returns something else than points of that dimension, or batches whose
            size `popsize` cannot change.
    """

    def __init__(
        self,
        obj: Any,
        *,
        popsize: int | None = None,
        dim: int | None = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> None:
        require_ask_and_tell(obj)
        first = obj.ask()
        points = _points(first)
        if points.ndim not in (1, 2) or points.size == 0:
            raise ValueError(
                f"{type(obj).__name__}.ask() must return points (n, d) or one point (d,); "
                f"got shape {points.shape}"
            )
        super().__init__(dim or points.shape[-1], budget=budget, target=target)
        self._obj = obj
        self._single = points.ndim == 1
        self._pairs = _required_arguments(obj.tell) == 1
        if popsize is None:
            popsize = getattr(obj, "population_size", None) or getattr(obj, "popsize", None) or 1
        elif not self._single:
            who = f"{type(obj).__name__}, whose ask() returns a batch"
            refuse(who, "set it where the object is built", popsize=popsize)
        self._n_asks = as_positive_int("popsize", popsize) if self._single else 1
        self._ahead = [first]  # answers not yet handed out
        self._asked: list[Any] = []

    def _sample(self) -> FloatArray:
        self._asked = [
            self._ahead.pop() if self._ahead else self._obj.ask() for _ in range(self._n_asks)
        ]
        who = f"{type(self._obj).__name__}.ask()"
        if self._single:
            return np.concatenate([as_points(who, _points(x), self.dim) for x in self._asked])
        return as_points(who, _points(self._asked[0]), self.dim)

    def _update(self, x: FloatArray, losses: FloatArray) -> None:
        finite = self._finite(losses)
        asked = self._asked if self._single else self._asked[0]
        if self._pairs:
            points = asked if self._single or not hasattr(asked, "x") else asked.x
            self._obj.tell(list(zip(points, finite, strict=True)))
        elif self._single:
            for point, loss in zip(asked, finite, strict=True):
                self._obj.tell(point, loss)
        else:
            self._obj.tell(asked, finite)


def _points(answer: Any) -> FloatArray:
    return as_float_array("what ask() returns", getattr(answer, "x", answer))


def _required_arguments(method: Any) -> int:
    """How many positional arguments a method insists on; 2 if it does not say."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return 2
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return len(needed) if needed else 2
