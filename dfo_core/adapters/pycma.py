"""pycma's CMA-ES behind the protocol."""

from __future__ import annotations

from typing import Any

import numpy as np

from dfo_core.adapters.foreign import ForeignOptimizer
from dfo_core.adapters.start import start
from dfo_core.libraries import require
from dfo_core.validation import FloatArray, as_positive_int


class PycmaOptimizer(ForeignOptimizer):
    """A `cma.CMAEvolutionStrategy`; its stop reasons are pycma's.

    Args:
        es: The strategy. It draws from the source of randomness it was built with; unless its
            option `randn` was set that is numpy's global state (`from_arguments` sets it).
        budget: Largest number of evaluations.
        target: Loss at which to stop.
    """

    def __init__(self, es: Any, *, budget: int | None = None, target: float | None = None) -> None:
        super().__init__(int(es.N), budget=budget, target=target)
        self._es = es
        self._asked: list[FloatArray] = []

    @classmethod
    def from_arguments(
        cls,
        *,
        dim: int,
        x0: Any = None,
        sigma0: float | None = None,
        bounds: Any = None,
        popsize: int | None = None,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> PycmaOptimizer:
        """Build the strategy too, drawing from a generator of its own.

        Args:
            dim: Number of coordinates d.
            x0: (d,) initial mean; None for the middle of finite bounds, else zeros or
                what the bounds have next to them.
            sigma0: Initial step size; None for 0.3 times the narrowest finite bound, else 1.
            bounds: (lower, upper) or None.
            popsize: Population size; None for pycma's default.
            seed: Seed of the generator.
            budget: Largest number of evaluations.
            target: Loss at which to stop.

        Returns:
            The adapter.

        Raises:
            ImportError: If pycma is not installed.
            ValueError: If an argument has the wrong shape or value.
        """
        cma = require("cma", "cma", 'the optimizer "pycma"')
        mean, step, box = start(dim, x0, sigma0, bounds)
        rng = np.random.default_rng(seed)
        options: dict[str, Any] = {
            "randn": lambda *shape: rng.standard_normal(shape),
            "seed": np.nan,  # pycma: leave numpy's global state alone
            "verbose": -9,
            "verb_log": 0,
        }
        if popsize is not None:
            options["popsize"] = as_positive_int("popsize", popsize, minimum=2)
        if box is not None:
            options["bounds"] = [box.lower.tolist(), box.upper.tolist()]
        es = cma.CMAEvolutionStrategy(mean, step, options)
        adapter = cls(es, budget=budget, target=target)
        adapter.rng = rng
        return adapter

    @property
    def popsize(self) -> int:
        """Population size."""
        return int(self._es.popsize)

    def _sample(self) -> FloatArray:
        # Kept as they are: pycma recognizes the arrays it sent out.
        self._asked = self._es.ask()
        return np.array(self._asked)

    def _update(self, x: FloatArray, losses: FloatArray) -> None:
        self._es.tell(self._asked, self._finite(losses))

    def _stop_reasons(self) -> dict[str, Any]:
        return dict(self._es.stop())
