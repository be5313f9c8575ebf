"""CMA-ES, the covariance matrix adaptation evolution strategy."""

from __future__ import annotations

from collections.abc import Mapping
from math import exp, sqrt
from typing import Any, ClassVar

import numpy as np

from dfo_core.bounds import BoundTransform, Box
from dfo_core.cma_parameters import CMAParameters, Covariance
from dfo_core.cma_stopping import StoppingCriteria
from dfo_core.covariance import CovarianceModel, DiagonalCovariance, FullCovariance
from dfo_core.optimizer import Optimizer
from dfo_core.validation import FloatArray, as_positive_float, as_vector


class CMAES(Optimizer):
    """CMA-ES with active covariance adaptation and lazy factorization.

    Follows Hansen, The CMA Evolution Strategy: A Tutorial (2016, arXiv 1604.00772); equation
    numbers in the code are the tutorial's. Each generation samples `popsize` points from
    N(mean, sigma^2 C). The factor of C is a Cholesky factor, see `FullCovariance`.

    Foreign points (`tell_foreign`) join the ranking of the next generation that is asked for, in
    the place of sampled points (Hansen 2011, Injecting External Solutions Into CMA-ES, arXiv
    1110.4181): that generation hands out fewer candidates. At most half a population is injected
    at a time, the best; a step to a foreign point is cut to the length c_y = sqrt(n) + 2n/(n+2) in
    units of the distribution.

    A generation in which no candidate has a finite loss changes nothing but the counts.

    Args:
        x0: (d,) the initial mean, within the bounds.
        sigma0: Initial standard deviation in every coordinate, in the units of x. A third of the
            distance to where the optimum is expected is a good choice.
        popsize: Candidates a generation, at least 2; None for 4 + floor(3 ln d).
        bounds: (lower, upper), each None, a number or (d,); candidates are always within. The
            search runs in coordinates that a smooth map takes into the box, see `BoundTransform`.
        covariance: "full", or "diagonal" for sep-CMA-ES: linear in d, and enough where the
            objective's axes are the coordinates'.
        active: Whether the worse half of the candidates shrinks C in their directions.
        stop_options: Thresholds by name, see `StoppingCriteria`; None switches a criterion off.
        seed: Seed of the generator.
        budget: Largest number of evaluations.
        target: Loss at which to stop.

    Attributes:
        parameters: The strategy parameters.

    Raises:
        ValueError: If an argument has the wrong shape or value, or x0 is not within the bounds.
    """

    accepts_foreign: ClassVar[bool] = True
    _state_fields = (
        *("_mean", "_sigma", "_p_sigma", "_p_c", "_z", "_y", "_injected"),
        *("_foreign_x", "_foreign_losses"),
    )

    def __init__(
        self,
        x0: Any,
        sigma0: float = 1.0,
        popsize: int | None = None,
        *,
        bounds: Any = None,
        covariance: Covariance = "full",
        active: bool = True,
        stop_options: Mapping[str, Any] | None = None,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> None:
        mean = as_vector("x0", x0)
        super().__init__(mean.size, seed=seed, budget=budget, target=target)
        if covariance not in ("full", "diagonal"):
            raise ValueError(f'covariance must be "full" or "diagonal"; got {covariance!r}')
        self._kind, self._active = covariance, bool(active)
        self._sigma = self._sigma0 = as_positive_float("sigma0", sigma0)
        self.parameters = CMAParameters.default(
            self.dim, popsize, active=active, covariance=covariance
        )
        self._box = None if bounds is None else Box.parse(bounds, self.dim)
        self._transform: BoundTransform | None = None
        if self._box is not None:
            self._box.require_inside("x0", mean)
            self._transform = BoundTransform(self._box)
            mean = self._transform.inverse(mean)
        self._mean = mean
        self._covariance: CovarianceModel = (
            DiagonalCovariance(self.dim)
            if covariance == "diagonal"
            else FullCovariance(self.dim, self.parameters.lag, self.popsize + 1)
        )
        self._p_sigma: FloatArray = np.zeros(self.dim)
        self._p_c: FloatArray = np.zeros(self.dim)
        self._stopping = StoppingCriteria(stop_options, self.dim, self.popsize, self._sigma)
        # The generation under way: y = A z, x = mean + sigma y; first the injected points with
        # their known losses, then the sampled ones.
        self._z: FloatArray = np.empty((0, self.dim))
        self._y: FloatArray = np.empty((0, self.dim))
        self._injected: FloatArray = np.empty(0)
        # Foreign points for the next generation, best first.
        self._foreign_x: FloatArray = np.empty((0, self.dim))
        self._foreign_losses: FloatArray = np.empty(0)

    # -- one generation ----------------------------------------------------------------------

    def _sample(self) -> FloatArray:
        y_foreign, z_foreign = self._take_foreign()
        z = self.rng.standard_normal((self.popsize - len(z_foreign), self.dim))
        y = self._covariance.color(z)  # Eq. 39
        self._z = np.concatenate([z_foreign, z])
        self._y = np.concatenate([y_foreign, y])
        return self._to_x(self._mean + self._sigma * y)  # Eq. 40

    def _update(self, x: FloatArray, losses: FloatArray) -> None:
        losses = np.concatenate([self._injected, losses])
        order = np.argsort(losses, kind="stable")
        losses = losses[order]
        self._stopping.observe(losses)
        if not np.isfinite(losses[0]):
            return
        z, y = self._z[order], self._y[order]
        p = self.parameters
        positive = p.weights[: p.mu]

        step = positive @ y[: p.mu]  # Eq. 41
        self._mean = self._mean + self._sigma * step  # Eq. 42, c_m = 1

        # Eq. 43, with A^-1 step, which is the same combination of the z, for C^-1/2 step.
        gain = sqrt(p.c_sigma * (2 - p.c_sigma) * p.mueff)
        self._p_sigma = (1 - p.c_sigma) * self._p_sigma + gain * (positive @ z[: p.mu])
        length = float(np.linalg.norm(self._p_sigma))
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
        self._covariance.update(  # Eq. 47
            decay, np.concatenate([self._p_c[np.newaxis], y]), np.append(p.c_1, p.c_mu * weights)
        )

    # -- foreign points ----------------------------------------------------------------------

    def _check_foreign(self, x: FloatArray) -> None:
        if self._box is not None:
            self._box.require_inside("foreign points", x)

    def _inject(self, x: FloatArray, losses: FloatArray) -> None:
        known = (x[:, np.newaxis] == self._foreign_x).all(axis=2).any(axis=0)
        x = np.concatenate([self._foreign_x[~known], x])
        losses = np.concatenate([self._foreign_losses[~known], losses])
        best = np.argsort(losses, kind="stable")[: self.popsize // 2]
        self._foreign_x, self._foreign_losses = x[best], losses[best]

    def _take_foreign(self) -> tuple[FloatArray, FloatArray]:
        """Move the waiting foreign points into this generation; returns their y and z, (k, n)."""
        u = self._foreign_x if self._transform is None else self._transform.inverse(self._foreign_x)
        y = (u - self._mean) / self._sigma
        z = self._covariance.whiten(y) if len(y) else y
        length = np.linalg.norm(z, axis=1, keepdims=True)
        longest = sqrt(self.dim) + 2 * self.dim / (self.dim + 2)  # c_y, Hansen 2011
        factor = longest / np.maximum(length, longest)
        self._injected = self._foreign_losses
        self._foreign_x = np.empty((0, self.dim))
        self._foreign_losses = np.empty(0)
        return y * factor, z * factor

    # -- what is known -----------------------------------------------------------------------

    @property
    def popsize(self) -> int:
        """Population size lambda."""
        return self.parameters.popsize

    @property
    def mean(self) -> FloatArray:
        """The distribution's mean as a point of the search space, (d,)."""
        return self._to_x(self._mean)

    @property
    def sigma(self) -> float:
        """The step size."""
        return self._sigma

    @property
    def covariance_matrix(self) -> FloatArray:
        """The covariance matrix C without sigma^2, (d, d); a copy, computed when asked for."""
        return self._covariance.matrix()

    def _to_x(self, u: FloatArray) -> FloatArray:
        return u.copy() if self._transform is None else self._transform.forward(u)

    def _stop_reasons(self) -> dict[str, Any]:
        return self._stopping.reasons(
            self.nit, self._mean, self._sigma, self._p_c, self._covariance
        )

    # -- state -------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        return {
            **super()._settings(),
            "popsize": self.popsize,
            "covariance": self._kind,
            "active": self._active,
            "lower": None if self._box is None else self._box.lower,
            "upper": None if self._box is None else self._box.upper,
        }

    def _get_state(self) -> dict[str, Any]:
        return {
            **super()._get_state(),
            "covariance": self._covariance.get_state(),
            "stopping": self._stopping.get_state(),
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        super()._set_state(state)
        self._covariance.set_state(state["covariance"])
        self._stopping.set_state(state["stopping"])
