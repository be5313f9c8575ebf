"""The base class of CMA-ES and LM-MA-ES: sampling, ranking, bounds and foreign points."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from math import sqrt
from typing import Any, ClassVar, Literal

import numpy as np

from dfo_core.bounds import BoundTransform, Box
from dfo_core.cma_stopping import StoppingCriteria
from dfo_core.covariance import CovarianceModel
from dfo_core.optimizer import Optimizer
from dfo_core.selection import winners_of_pairs
from dfo_core.validation import FloatArray, as_positive_float, as_vector

BoundsHandling = Literal["transform", "resample"]
MAX_RESAMPLES = 100


class EvolutionStrategy(Optimizer):
    """Sample from N(mean, sigma^2 C), rank by loss, and let `_adapt` learn from the ranking.

    Points are mean + sigma y with y = A z, A A^T = C and z standard normal. The ranking has
    `popsize` places. An algorithm writes `_adapt` and `_path`, and hands over the covariance model
    it learns.

    Foreign points (`tell_foreign`) join the ranking of the next generation that is asked for, in
    the place of sampled points (Hansen 2011, Injecting External Solutions Into CMA-ES, arXiv
    1110.4181): that generation hands out fewer candidates. At most half a population is injected
    at a time, the best; a step to a foreign point is cut to the length c_y = sqrt(n) + 2n/(n+2) in
    units of the distribution.

    A generation in which no candidate has a finite loss changes nothing but the counts.

    Args:
        x0: (d,) the initial mean, within the bounds.
        sigma0: Initial standard deviation in every coordinate.
        popsize: Candidates a generation, lambda.
        mu: How many of them are recombined.
        covariance: The covariance model.
        bounds: As `Box.parse` takes them, or None.
        bounds_handling: "transform" or "resample".
        elitist: Whether the best point known takes part in every ranking.
        mirrored: Whether candidates come in pairs on opposite sides of the mean.
        stop_options: Thresholds by name, see `StoppingCriteria`.
        seed: Seed of the generator.
        budget: Largest number of evaluations.
        target: Loss at which to stop.

    Raises:
        ValueError: If an argument has the wrong shape or value, or x0 is not within the bounds.
    """

    accepts_foreign: ClassVar[bool] = True
    _state_fields: ClassVar[tuple[str, ...]] = (
        *("_mean", "_sigma", "_z", "_y", "_injected"),
        *("_foreign_x", "_foreign_losses"),
    )

    def __init__(
        self,
        x0: Any,
        sigma0: float,
        popsize: int,
        mu: int,
        covariance: CovarianceModel,
        *,
        bounds: Any,
        bounds_handling: BoundsHandling,
        elitist: bool,
        mirrored: bool,
        stop_options: Mapping[str, Any] | None,
        seed: Any,
        budget: int | None,
        target: float | None,
    ) -> None:
        mean = as_vector("x0", x0)
        super().__init__(mean.size, seed=seed, budget=budget, target=target)
        if bounds_handling not in ("transform", "resample"):
            raise ValueError(
                f'bounds_handling must be "transform" or "resample"; got {bounds_handling!r}'
            )
        if mirrored and bounds is not None and bounds_handling == "resample":
            raise ValueError(
                "mirrored pairs cannot be resampled, as both must be within the bounds: "
                'use bounds_handling="transform" or mirrored=False'
            )
        self._popsize, self._mu = popsize, mu
        self._elitist, self._mirrored = bool(elitist), bool(mirrored)
        self._bounds_handling = bounds_handling
        self._sigma = self._sigma0 = as_positive_float("sigma0", sigma0)
        self._box = None if bounds is None else Box.parse(bounds, self.dim)
        self._transform: BoundTransform | None = None
        if self._box is not None:
            self._box.require_inside("x0", mean)
            if bounds_handling == "transform":
                self._transform = BoundTransform(self._box)
                mean = self._transform.inverse(mean)
        self._mean = mean
        self._covariance = covariance
        self._longest = sqrt(self.dim) + 2 * self.dim / (self.dim + 2)  # c_y, Hansen 2011
        self._stopping = StoppingCriteria(stop_options, self.dim, popsize, self._sigma)
        # The generation under way: y = A z, x = mean + sigma y; first the injected points with
        # their known losses, then the sampled ones.
        self._z: FloatArray = np.empty((0, self.dim))
        self._y: FloatArray = np.empty((0, self.dim))
        self._injected: FloatArray = np.empty(0)
        # Foreign points for the next generation, best first.
        self._foreign_x: FloatArray = np.empty((0, self.dim))
        self._foreign_losses: FloatArray = np.empty(0)

    # -- what an algorithm writes ------------------------------------------------------------

    @abstractmethod
    def _adapt(
        self, parents_z: FloatArray, parents_y: FloatArray, z: FloatArray, y: FloatArray
    ) -> None:
        """Learn from a generation: move the mean, and adapt sigma and C.

        Args:
            parents_z: (mu, n) the steps to recombine, best first, in units of the distribution.
            parents_y: (mu, n) the same with y = A z.
            z: (popsize, n) all steps, best first.
            y: (popsize, n) the same with y = A z.
        """

    @abstractmethod
    def _path(self) -> FloatArray:
        """Return the path of recent steps y, (n,), that the stop criterion `tolx` looks at."""

    # -- one generation ----------------------------------------------------------------------

    def _sample(self) -> FloatArray:
        self._injected = self._foreign_losses
        n_new = self._popsize - len(self._injected)
        if self._mirrored:
            half = self.rng.standard_normal(((n_new + 1) // 2, self.dim))
            z = np.repeat(half, 2, axis=0)[:n_new]
            z[1::2] *= -1
        else:
            z = self.rng.standard_normal((n_new, self.dim))
        y = self._covariance.color(z)
        if self._box is not None and self._transform is None:
            z, y = self._resample(self._box, z, y)
        if len(self._injected):
            y_foreign, z_foreign = self._steps_to(self._foreign_x)
            z, y = np.concatenate([z_foreign, z]), np.concatenate([y_foreign, y])
            self._foreign_x, self._foreign_losses = np.empty((0, self.dim)), np.empty(0)
        self._z, self._y = z, y
        x: FloatArray = self._mean + self._sigma * y[len(self._injected) :]
        if self._transform is not None:
            return self._transform.forward(x)
        if self._box is not None:  # rounding can leave a clipped point just outside
            np.clip(x, self._box.lower, self._box.upper, out=x)
        return x

    def _resample(self, box: Box, z: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Redraw points outside the box; those still outside after MAX_RESAMPLES are clipped."""
        for attempt in range(MAX_RESAMPLES + 1):
            x = self._mean + self._sigma * y
            outside = np.flatnonzero(((x < box.lower) | (x > box.upper)).any(axis=1))
            if not outside.size:
                break
            if attempt < MAX_RESAMPLES:
                z[outside] = self.rng.standard_normal((outside.size, self.dim))
                y[outside] = self._covariance.color(z[outside])
            else:
                y[outside], z[outside] = self._steps_to(
                    np.clip(x[outside], box.lower, box.upper), cut=False
                )
        return z, y

    def _update(self, x: FloatArray, losses: FloatArray) -> None:
        # What was injected may be the same again and again, and says nothing of the search.
        self._stopping.observe(np.sort(losses), self._mean)
        if len(self._injected):
            losses = np.concatenate([self._injected, losses])
        order = np.argsort(losses, kind="stable")
        losses = losses[order]
        if losses[0] == np.inf:
            return
        z, y = self._z[order], self._y[order]
        parents_z, parents_y = z, y
        if self._mirrored:
            winners = winners_of_pairs(order, first=len(self._injected))
            parents_z, parents_y = z[winners], y[winners]
        if self._elitist and self._best_fun < losses[0]:
            y_best, z_best = self._steps_to(self._best_x[np.newaxis])
            # One place must be given up: as in pycma, the one between parents and the rest.
            z = np.concatenate([z_best, np.delete(z, self._mu - 1, axis=0)])
            y = np.concatenate([y_best, np.delete(y, self._mu - 1, axis=0)])
            parents_z = np.concatenate([z_best, parents_z])
            parents_y = np.concatenate([y_best, parents_y])
        self._adapt(parents_z[: self._mu], parents_y[: self._mu], z, y)

    def _steps_to(self, x: FloatArray, cut: bool = True) -> tuple[FloatArray, FloatArray]:
        """Return y and z, (k, n) each, of points (k, n); cut to the length c_y if asked for."""
        u = x if self._transform is None else self._transform.inverse(x, near=self._mean)
        y = (u - self._mean) / self._sigma
        z = self._covariance.whiten(y)
        if not cut:
            return y, z
        length = np.linalg.norm(z, axis=1, keepdims=True)
        factor = self._longest / np.maximum(length, self._longest)
        return y * factor, z * factor

    # -- foreign points ----------------------------------------------------------------------

    def _check_foreign(self, x: FloatArray) -> None:
        if self._box is not None:
            self._box.require_inside("foreign points", x)

    def _inject(self, x: FloatArray, losses: FloatArray) -> None:
        known = (x[:, np.newaxis] == self._foreign_x).all(axis=2).any(axis=0)
        x = np.concatenate([self._foreign_x[~known], x])
        losses = np.concatenate([self._foreign_losses[~known], losses])
        best = np.argsort(losses, kind="stable")[: self._popsize // 2]
        self._foreign_x, self._foreign_losses = x[best], losses[best]

    # -- what is known -----------------------------------------------------------------------

    @property
    def popsize(self) -> int:
        """Population size lambda."""
        return self._popsize

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
            self.nit, self._mean, self._sigma, self._path(), self._covariance
        )

    # -- state -------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        return {
            **super()._settings(),
            "popsize": self._popsize,
            "bounds_handling": self._bounds_handling,
            "elitist": self._elitist,
            "mirrored": self._mirrored,
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
