"""Random search, the baseline every other optimizer has to beat."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from dfo_core.bounds import Box, infer_dim
from dfo_core.optimizer import Optimizer
from dfo_core.validation import FloatArray, as_positive_float, as_positive_int, as_vector


class RandomSearch(Optimizer):
    """Independent draws: uniform in a box, or normal around a point.

    With finite bounds on every side candidates are uniform within them. Without bounds they are
    normal around x0 with standard deviation sigma0. If x0 is given, it is the first candidate.

    Foreign points (`tell_foreign`) update the best point and nothing else.

    Args:
        bounds: (lower, upper), each a finite number or (d,); None for normal draws.
        x0: (d,) the first candidate, within the bounds; required without bounds.
        sigma0: Standard deviation of normal draws.
        dim: Number of coordinates d, needed if neither `bounds` nor `x0` says it.
        popsize: Candidates a batch.
        seed: Seed of the generator.
        budget: Largest number of evaluations.
        target: Loss at which to stop.

    Raises:
        ValueError: If an argument has the wrong shape or value, or neither bounds nor x0 is given.
    """

    accepts_foreign: ClassVar[bool] = True

    def __init__(
        self,
        bounds: Any = None,
        x0: Any = None,
        *,
        sigma0: float = 1.0,
        dim: int | None = None,
        popsize: int = 1,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> None:
        super().__init__(infer_dim(dim, x0, bounds), seed=seed, budget=budget, target=target)
        who = type(self).__name__
        if bounds is None and x0 is None:
            raise ValueError(f"{who} needs bounds, or x0 to draw around; got neither")
        self.popsize = as_positive_int("popsize", popsize)
        self._sigma = as_positive_float("sigma0", sigma0)
        self._box = None if bounds is None else Box.parse(bounds, self.dim).require_finite(who)
        self._x0 = None if x0 is None else as_vector("x0", x0, self.dim)
        self._center = 0.0 if self._x0 is None else self._x0  # of normal draws
        if self._box is not None and self._x0 is not None:
            self._box.require_inside("x0", self._x0)

    def _sample(self) -> FloatArray:
        if self._x0 is None or self.nit > 0:
            return self._draw(self.popsize)
        return np.concatenate([self._x0[np.newaxis], self._draw(self.popsize - 1)])

    def _draw(self, n: int) -> FloatArray:
        """Draw n points, (n, dim)."""
        if self._box is not None:
            return self._box.uniform(self.rng, n)
        return self._center + self._sigma * self.rng.standard_normal((n, self.dim))

    def _update(self, x: FloatArray, losses: FloatArray) -> None:
        """Do nothing: the base class keeps the best."""

    def _check_foreign(self, x: FloatArray) -> None:
        if self._box is not None:
            self._box.require_inside("foreign points", x)

    def _inject(self, x: FloatArray, losses: FloatArray) -> None:
        """Do nothing: the base class keeps the best."""

    def _settings(self) -> dict[str, Any]:
        box = self._box
        return {
            **super()._settings(),
            "popsize": self.popsize,
            "lower": None if box is None else box.lower,
            "upper": None if box is None else box.upper,
            "x0": self._x0,
            "sigma0": self._sigma,
        }
