"""The optimizers of the package `cmaes` behind the protocol."""

from __future__ import annotations

from typing import Any

import numpy as np

from dfo_core.adapters.foreign import ForeignOptimizer, draw_seed, is_from, require_known
from dfo_core.adapters.start import start
from dfo_core.libraries import require
from dfo_core.validation import FloatArray, as_positive_int

METHODS = ("CMA", "SepCMA", "CMAwM", "XNES", "DXNESIC", "MAPCMA")


class CmaesOptimizer(ForeignOptimizer):
    """A `cmaes.CMA`, or another class of that package that searches vectors of numbers.

    That package gives one point an ask, insists on a whole population in a tell and sorts the list
    it is told; here a batch is the population and nobody else's list is touched. Its stop criteria
    come as the stop reason "should_stop".

    `CMAwM` hands out two forms of a point: the rounded one is what is evaluated here, the raw one
    goes back to it. Its classes for categories and for several objectives (`CatCMA`, `CatCMAwM`,
    `COMOCatCMAwM`) do not fit the protocol and are refused.

    Args:
        optimizer: The instance, before its first ask.
        seed: Seeds its generator anew; None leaves that as it is.
        budget: Largest number of evaluations.
        target: Loss at which to stop.

    Raises:
        TypeError: If it is of a class that does not search vectors.
    """

    def __init__(
        self,
        optimizer: Any,
        *,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> None:
        if not is_from("cmaes", optimizer, *METHODS):
            raise TypeError(
                f"{type(optimizer).__name__} searches something else than vectors of numbers; of "
                f"the package cmaes these fit: {', '.join(METHODS)}"
            )
        super().__init__(int(optimizer.dim), seed=seed, budget=budget, target=target)
        if seed is not None:
            # CMAwM's generator is that of the CMA inside it, which its own method reseeds.
            optimizer.reseed_rng(draw_seed(self.rng))
        self._optimizer = optimizer
        self._asked: list[FloatArray] = []

    @classmethod
    def from_arguments(
        cls,
        method: str = "CMA",
        *,
        dim: int,
        x0: Any = None,
        sigma0: float | None = None,
        bounds: Any = None,
        popsize: int | None = None,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> CmaesOptimizer:
        """Build the instance too.

        Args:
            method: One of `METHODS`.
            dim: Number of coordinates.
            x0: (d,) initial mean; None for the middle of finite bounds, else zeros or
                what the bounds have next to them.
            sigma0: Initial step size; None for 0.3 times the narrowest finite bound, else 1.
            bounds: (lower, upper) or None. `CMAwM` treats every coordinate as continuous.
            popsize: Population size, at least 2; None for the class's default.
            seed: Seed of its generator.
            budget: Largest number of evaluations.
            target: Loss at which to stop.

        Returns:
            The adapter.

        Raises:
            ImportError: If the package cmaes is not installed.
            ValueError: If it has no such class, or the class refuses an argument.
        """
        cmaes = require("cmaes", "cmaes", 'the optimizer "cmaes"')
        require_known("cmaes", method, METHODS, f"Known are {', '.join(METHODS)}")
        if bounds is None and method == "CMAwM":
            bounds = (None, None)  # it insists on some
        mean, step, box = start(dim, x0, sigma0, bounds)
        options: dict[str, Any] = {}
        if box is not None:
            options["bounds"] = np.stack([box.lower, box.upper], axis=1)
        if method == "CMAwM":
            options["steps"] = np.zeros(dim)
        if popsize is not None:
            options["population_size"] = as_positive_int("popsize", popsize, minimum=2)
        try:
            optimizer = getattr(cmaes, method)(mean, step, **options)
        except AssertionError as error:
            raise ValueError(f"cmaes.{method} refuses this: {error}") from None
        return cls(optimizer, seed=seed, budget=budget, target=target)

    @property
    def popsize(self) -> int:
        """Population size."""
        return int(self._optimizer.population_size)

    def _sample(self) -> FloatArray:
        asked = [self._optimizer.ask() for _ in range(self.popsize)]
        pairs = [point if isinstance(point, tuple) else (point, point) for point in asked]
        self._asked = [raw for _, raw in pairs]
        return np.array([evaluated for evaluated, _ in pairs])

    def _update(self, x: FloatArray, losses: FloatArray) -> None:
        self._optimizer.tell(list(zip(self._asked, self._finite(losses), strict=True)))

    def _stop_reasons(self) -> dict[str, Any]:
        return {"should_stop": True} if self._optimizer.should_stop() else {}
