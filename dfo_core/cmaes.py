"""CMA-ES, the covariance matrix adaptation evolution strategy."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, sqrt
from typing import Any

import numpy as np

from dfo_core.cma_parameters import CMAParameters, Covariance
from dfo_core.covariance import DiagonalCovariance, FullCovariance, LearnedCovariance
from dfo_core.evolution_strategy import BoundsHandling, EvolutionStrategy
from dfo_core.validation import FloatArray, as_vector


class CMAES(EvolutionStrategy):
    """CMA-ES with active covariance adaptation and lazy factorization.

    Follows Hansen, The CMA Evolution Strategy: A Tutorial (2016, arXiv 1604.00772); equation
    numbers in the code are the tutorial's. Each generation samples `popsize` points from
    N(mean, sigma^2 C). The factor of C is a Cholesky factor, see `FullCovariance`.

    Foreign points join the ranking of the next generation, see `EvolutionStrategy`.

    Args:
        x0: (d,) the initial mean, within the bounds.
        sigma0: Initial standard deviation in every coordinate, in the units of x. A third of the
            distance to where the optimum is expected is a good choice.
        popsize: Candidates a generation, at least 2; None for 4 + floor(3 ln d).
        bounds: (lower, upper), each None, a number or (d,); candidates are always within.
        bounds_handling: "transform" searches in coordinates that a smooth map takes into the box,
            see `BoundTransform`. "resample" redraws candidates outside the box, up to 100 times,
            and then moves what is left to the nearest point of the box. The distribution stays
            in the units of x everywhere, but each round costs a sampling product, with many
            active bounds hardly a draw is inside, and on a steep slope into a border the step
            size may shrink before the border is reached.
        covariance: "full", or "diagonal" for sep-CMA-ES: linear in d, and enough where the
            objective's axes are the coordinates'.
        active: Whether the worse half of the candidates shrinks C in their directions.
        elitist: Whether the best point known takes part in every ranking, as pycma's CMA_elitist:
            in a generation without a better point it is put first, and of the sampled ones that
            of rank mu, the last to be recombined without it, is left out. Its step is cut like
            a foreign point's. Apt to impair the search on multimodal functions.
        mirrored: Whether candidates come in pairs mean + s, mean - s (Brockhoff et al. 2010), of
            which only the better is recombined (Auger et al. 2011); see `winners_of_pairs`. The
            covariance update ranks all candidates, as a step's sign makes no difference to it.
        stop_options: Thresholds by name, see `StoppingCriteria`; None switches a criterion off.
        seed: Seed of the generator.
        budget: Largest number of evaluations.
        target: Loss at which to stop.

    Attributes:
        parameters: The strategy parameters.

    Raises:
        ValueError: If an argument has the wrong shape or value, or x0 is not within the bounds.
    """

    _covariance: LearnedCovariance
    _state_fields = (*EvolutionStrategy._state_fields, "_p_sigma", "_p_c")

    def __init__(
        self,
        x0: Any,
        sigma0: float = 1.0,
        popsize: int | None = None,
        *,
        bounds: Any = None,
        bounds_handling: BoundsHandling = "transform",
        covariance: Covariance = "full",
        active: bool = True,
        elitist: bool = False,
        mirrored: bool = False,
        stop_options: Mapping[str, Any] | None = None,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> None:
        dim = as_vector("x0", x0).size
        if covariance not in ("full", "diagonal"):
            raise ValueError(f'covariance must be "full" or "diagonal"; got {covariance!r}')
        self.parameters = CMAParameters.default(dim, popsize, active=active, covariance=covariance)
        self._kind, self._active = covariance, bool(active)
        super().__init__(
            x0,
            sigma0,
            self.parameters.popsize,
            self.parameters.mu,
            DiagonalCovariance(dim)
            if covariance == "diagonal"
            else FullCovariance(dim, self.parameters.lag, self.parameters.popsize + 1),
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
        self._p_c: FloatArray = np.zeros(dim)

    def _adapt(
        self, parents_z: FloatArray, parents_y: FloatArray, z: FloatArray, y: FloatArray
    ) -> None:
        p = self.parameters
        positive = p.weights[: p.mu]

        step = positive @ parents_y  # Eq. 41
        self._mean = self._mean + self._sigma * step  # Eq. 42, c_m = 1

        # Eq. 43, with A^-1 step, which is the same combination of the z, for C^-1/2 step.
        gain = sqrt(p.c_sigma * (2 - p.c_sigma) * p.mueff)
        self._p_sigma = (1 - p.c_sigma) * self._p_sigma + gain * (positive @ parents_z)
        length = sqrt(self._p_sigma @ self._p_sigma)
        # Eq. 44; the change is limited to a factor of e because of foreign points (Hansen 2011,
        # Delta_sigma^max = 1).
        log_change = (p.c_sigma / p.d_sigma) * (length / p.chi_n - 1)
        self._sigma *= exp(min(1.0, log_change))

        # h_sigma stops the rank-one path while the step size is still growing fast.
        unbiased = length / sqrt(1 - (1 - p.c_sigma) ** (2 * self.nit))
        h_sigma = float(unbiased < (1.4 + 2 / (self.dim + 1)) * p.chi_n)
        gain = h_sigma * sqrt(p.c_c * (2 - p.c_c) * p.mueff)
        self._p_c = (1 - p.c_c) * self._p_c + gain * step  # Eq. 45

        # Eq. 46: a negatively weighted step counts with unit length in the units of C.
        bad = z[p.mu :]
        weights = p.weights.copy()
        # The floor is for a foreign point at the mean, which has no direction to count.
        weights[p.mu :] *= self.dim / np.maximum((bad * bad).sum(axis=1), np.finfo(float).eps)
        lost = (1 - h_sigma) * p.c_c * (2 - p.c_c)  # what p_c lacks while it is stopped
        decay = 1 + p.c_1 * lost - p.c_1 - p.c_mu * float(p.weights.sum())
        rows = np.concatenate([self._p_c[np.newaxis], y])
        coefficients = np.concatenate([[p.c_1], p.c_mu * weights])
        self._covariance.update(decay, rows, coefficients)  # Eq. 47

    def _path(self) -> FloatArray:
        return self._p_c

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "covariance": self._kind, "active": self._active}
