"""The algorithms of evosax behind the protocol."""

from __future__ import annotations

from typing import Any

import numpy as np

from dfo_core.adapters.foreign import ForeignOptimizer, draw_seed, refuse, require_known
from dfo_core.adapters.start import start
from dfo_core.libraries import require
from dfo_core.validation import FloatArray, as_positive_float, as_positive_int, as_vector

DEFAULT_POPSIZE = 32  # evosax has no default; even, as its antithetic algorithms insist on that


class EvosaxOptimizer(ForeignOptimizer):
    """An evosax algorithm; its state, parameters and jax keys are kept here.

    Candidates are x0 + sigma0 * y, where y is what the algorithm searches, from y = 0 with the
    step size it has by default (1 for nearly all of them). So every algorithm understands x0 and
    sigma0, which evosax spells in three ways or not at all, and a start far from zero costs none
    of the single precision in which evosax computes (unless jax was told otherwise before it was
    imported). Losses closer than that resolves count as equal. evosax knows no bounds.

    Algorithms that evolve a population rather than a distribution want it evaluated before they
    start: their first batch is x0 and normal draws around it.

    Args:
        algorithm: The instance, built with a `solution` of any structure; x is that structure
            flattened as jax flattens it.
        x0: (d,) start; None for the algorithm's `solution`.
        sigma0: The unit of y.
        seed: Seed of the jax keys.
        budget: Largest number of evaluations.
        target: Loss at which to stop.

    Raises:
        ValueError: If the algorithm searches around several means.
    """

    _precision: type[np.floating[Any]] = np.float32

    def __init__(
        self,
        algorithm: Any,
        *,
        x0: Any = None,
        sigma0: float = 1.0,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> None:
        super().__init__(int(algorithm.num_dims), seed=seed, budget=budget, target=target)
        self._jax = require("jax", "evosax", "an evosax algorithm")
        flatten = require("jax.flatten_util", "evosax", "an evosax algorithm").ravel_pytree
        if hasattr(algorithm, "num_populations"):
            raise ValueError(
                f"evosax's {type(algorithm).__name__} starts from several means; it is not "
                "supported"
            )
        flat, self._unflatten = flatten(algorithm.solution)
        self._flatten = self._jax.vmap(lambda solution: flatten(solution)[0])
        self._x0 = as_vector("x0", np.asarray(flat) if x0 is None else x0, self.dim)
        self._sigma0 = as_positive_float("sigma0", sigma0)
        self._algorithm = algorithm
        self._params = algorithm.default_params
        self._key = self._jax.random.key(draw_seed(self.rng))
        self._state: Any = None
        self._asked: Any = None
        if hasattr(algorithm, "get_mean"):  # others start from an evaluated population
            origin = self._unflatten(self._jax.numpy.zeros(self.dim))
            self._state = algorithm.init(self._next_key(), origin, self._params)

    @classmethod
    def from_arguments(
        cls,
        method: str,
        *,
        dim: int,
        x0: Any = None,
        sigma0: float | None = None,
        bounds: Any = None,
        popsize: int | None = None,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> EvosaxOptimizer:
        """Build the algorithm too.

        Args:
            method: A name of `evosax.algorithms.algorithms`, such as "CMA_ES", "SNES" or "PSO".
            dim: Number of coordinates.
            x0: (d,) start; None for zeros.
            sigma0: Initial step size; None for 1.
            bounds: evosax knows none; a ValueError.
            popsize: Population size; None for 32.
            seed: Seed of the jax keys.
            budget: Largest number of evaluations.
            target: Loss at which to stop.

        Returns:
            The adapter.

        Raises:
            ImportError: If evosax is not installed.
            ValueError: If it has no such algorithm, or the algorithm refuses an argument.
        """
        known = require("evosax.algorithms", "evosax", "an evosax algorithm").algorithms
        require_known("evosax", method, known, "evosax.algorithms.algorithms lists all of them")
        refuse("evosax's algorithms", "they know none", bounds=bounds)
        mean, step, _ = start(dim, x0, sigma0, None)
        size = DEFAULT_POPSIZE if popsize is None else as_positive_int("popsize", popsize)
        try:
            algorithm = known[method](size, np.zeros(dim, cls._precision))
        except (AssertionError, TypeError) as error:
            raise ValueError(
                f"evosax's {method} refuses this: {error}. Where it needs more than a population "
                "size, build it yourself and pass the instance"
            ) from None
        return cls(algorithm, x0=mean, sigma0=step, seed=seed, budget=budget, target=target)

    @property
    def popsize(self) -> int:
        """Population size."""
        return int(self._algorithm.population_size)

    def _sample(self) -> FloatArray:
        if self._state is None:
            y = self.rng.standard_normal((self.popsize, self.dim)).astype(self._precision)
            y[0] = 0.0
            self._asked = self._jax.vmap(self._unflatten)(y)
        else:
            self._asked, self._state = self._algorithm.ask(
                self._next_key(), self._state, self._params
            )
        y = np.asarray(self._flatten(self._asked), dtype=np.float64)
        return self._x0 + self._sigma0 * y

    def _update(self, x: FloatArray, losses: FloatArray) -> None:
        told = self._asked, np.array(self._finite(losses), self._precision)
        if self._state is None:
            self._state = self._algorithm.init(self._next_key(), *told, self._params)
        else:
            self._state, _ = self._algorithm.tell(
                self._next_key(), *told, self._state, self._params
            )

    def _next_key(self) -> Any:
        self._key, key = self._jax.random.split(self._key)
        return key
