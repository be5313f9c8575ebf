"""LM-MA-ES, the limited-memory matrix adaptation evolution strategy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, floor, log, sqrt
from typing import Any

import numpy as np

from dfo_core.cma_parameters import default_popsize
from dfo_core.evolution_strategy import BoundsHandling, EvolutionStrategy
from dfo_core.limited_memory import LimitedMemoryCovariance
from dfo_core.validation import FloatArray, as_positive_int, as_vector

MAX_RATE = 0.4


@dataclass(frozen=True, eq=False)
class LMMAESParameters:
    """The default parameters (Loshchilov, Glasmachers & Beyer 2017, arXiv 1705.06693, Alg. 1).

    Every rate is at most 0.4. The paper's formulas are meant for n well above lambda and leave
    the range in which they mean something where n is below 2 lambda (popsize 20 in 30 dimensions,
    say, or after a few restarts that double it); for n >= 5 lambda nothing is cut.

    Attributes:
        popsize: Population size lambda.
        mu: Number of recombined candidates, floor(lambda / 2).
        weights: (mu,) their weights, ln(mu + 1/2) - ln i, scaled to sum to one.
        mueff: Variance effective selection mass.
        c_sigma: Learning rate of the step-size path, 2 lambda / n.
        c_d: (memory,) weights of the directions in a sample, 1 / (1.5^(i-1) n).
        c_c: (memory,) learning rates of the directions, lambda / (4^(i-1) n).
    """

    popsize: int
    mu: int
    weights: FloatArray
    mueff: float
    c_sigma: float
    c_d: FloatArray
    c_c: FloatArray

    @classmethod
    def default(
        cls, dim: int, popsize: int | None = None, memory: int | None = None
    ) -> LMMAESParameters:
        """Compute the parameters.

        Args:
            dim: Search space dimension n.
            popsize: Population size, at least 2; None for 4 + floor(3 ln n).
            memory: Number of directions m; None for 4 + floor(3 ln n).

        Returns:
            The parameters.

        Raises:
            ValueError: If `popsize` is below 2 or `memory` below 1.
        """
        popsize = default_popsize(dim) if popsize is None else popsize
        popsize = as_positive_int("popsize", popsize, minimum=2)
        memory = 4 + floor(3 * log(dim)) if memory is None else as_positive_int("memory", memory)
        mu = popsize // 2
        weights = log(mu + 0.5) - np.log(np.arange(1, mu + 1))
        weights /= weights.sum()
        i = np.arange(memory)
        return cls(
            popsize=popsize,
            mu=mu,
            weights=weights,
            mueff=float(1 / (weights**2).sum()),
            c_sigma=min(MAX_RATE, 2 * popsize / dim),
            c_d=np.minimum(MAX_RATE, 1 / (1.5**i * dim)),
            c_c=np.minimum(MAX_RATE, popsize / (4.0**i * dim)),
        )


class LMMAES(EvolutionStrategy):
    """LM-MA-ES: CMA-ES's ideas at a cost per candidate linear in d, for d in the thousands.

    Loshchilov, Glasmachers & Beyer, Limited-Memory Matrix Adaptation for Large Scale Black-Box
    Optimization (2017, arXiv 1705.06693; IEEE TEVC 23(2), 2019), Algorithm 1. In place of a d x d
    matrix it keeps about 3 ln d directions, paths of the recombined steps over times that grow by
    a factor of four, and stretches samples along them. Memory and time per candidate are
    O(d log d).

    Below a few hundred coordinates CMAES needs fewer evaluations; on ill-conditioned functions far
    fewer, where it can be afforded.

    Foreign points join the ranking of the next generation, see `EvolutionStrategy`. The step size
    changes by a factor of e at most in a generation, which only they can make it.

    Args:
        x0: (d,) the initial mean, within the bounds.
        sigma0: Initial standard deviation in every coordinate, in the units of x.
        popsize: Candidates a generation, at least 2; None for 4 + floor(3 ln d).
        memory: Number of directions; None for 4 + floor(3 ln d).
        bounds: (lower, upper), each None, a number or (d,); candidates are always within.
        bounds_handling: "transform" or "resample", see `CMAES`.
        elitist: Whether the best point known takes part in every ranking, see `CMAES`.
        mirrored: Whether candidates come in pairs mean + s, mean - s, see `CMAES`.
        stop_options: Thresholds by name, see `StoppingCriteria`; None switches a criterion off.
        seed: Seed of the generator.
        budget: Largest number of evaluations.
        target: Loss at which to stop.

    Attributes:
        parameters: The strategy parameters.

    Raises:
        ValueError: If an argument has the wrong shape or value, or x0 is not within the bounds.
    """

    _covariance: LimitedMemoryCovariance
    _state_fields = (*EvolutionStrategy._state_fields, "_p_sigma")

    def __init__(
        self,
        x0: Any,
        sigma0: float = 1.0,
        popsize: int | None = None,
        *,
        memory: int | None = None,
        bounds: Any = None,
        bounds_handling: BoundsHandling = "transform",
        elitist: bool = False,
        mirrored: bool = False,
        stop_options: Mapping[str, Any] | None = None,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> None:
        dim = as_vector("x0", x0).size
        self.parameters = LMMAESParameters.default(dim, popsize, memory)
        super().__init__(
            x0,
            sigma0,
            self.parameters.popsize,
            self.parameters.mu,
            LimitedMemoryCovariance(self.parameters.c_d, dim),
            bounds=bounds,
            bounds_handling=bounds_handling,
            elitist=elitist,
            mirrored=mirrored,
            stop_options=stop_options,
            seed=seed,
            budget=budget,
            target=target,
        )
        self._p_sigma: FloatArray = np.zeros(dim)

    def _adapt(
        self, parents_z: FloatArray, parents_y: FloatArray, z: FloatArray, y: FloatArray
    ) -> None:
        p = self.parameters
        step = p.weights @ parents_z
        self._mean = self._mean + self._sigma * (p.weights @ parents_y)
        gain = sqrt(p.mueff * p.c_sigma * (2 - p.c_sigma))
        self._p_sigma = (1 - p.c_sigma) * self._p_sigma + gain * step
        self._covariance.update(1 - p.c_c, np.sqrt(p.mueff * p.c_c * (2 - p.c_c)), step)
        length2 = float(self._p_sigma @ self._p_sigma)
        self._sigma *= exp(min(1.0, p.c_sigma / 2 * (length2 / self.dim - 1)))

    def _path(self) -> FloatArray:
        path: FloatArray = self._covariance.color(self._p_sigma[np.newaxis])[0]
        return path

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "memory": len(self.parameters.c_d)}
