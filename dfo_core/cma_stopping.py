"""When CMA-ES should stop: pycma's criteria under pycma's names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dfo_core.covariance import CovarianceModel
from dfo_core.validation import FloatArray

DEFAULTS: Mapping[str, Any] = {
    "maxiter": math.inf,
    "tolfun": 1e-11,
    "tolfunhist": 1e-12,
    "tolx": 1e-11,
    "tolfacupx": 1e3,
    "tolupsigma": 1e20,
    "tolflatfitness": 1,
    "tolstagnation": None,
    "tolconditioncov": 1e14,
    "noeffectaxis": True,
    "noeffectcoord": True,
}


class StoppingCriteria:
    """The stop reasons of CMA-ES (Hansen 2016, Section B.3; names and defaults are pycma's).

    - `maxiter` (inf): completed generations.
    - `tolfun` (1e-11): the range of the last generation's losses and of the best losses of the
      last 10 + ceil(30 n / lambda) generations are both below it.
    - `tolfunhist` (1e-12): the range of those best losses alone, once there are ten.
    - `tolx` (1e-11): every coordinate's standard deviation, and sigma times the rank-one path,
      are below it. In the units of x.
    - `tolfacupx` (1e3): a standard deviation is above tolfacupx * sigma0: sigma0 was far too small
      or the search diverges.
    - `tolupsigma` (1e20): sigma has grown by this factor more than C's largest axis.
    - `tolflatfitness` (1): more than this many generations in a row in which the best and the
      75 % quantile loss are equal.
    - `tolstagnation` (120 + 30 n / lambda): the shortest window, in generations, over which
      stagnation is judged; the window is the last 20 % of all generations, between this and
      20000. It holds if neither the best nor the median losses' median over the window's last
      30 % is better than over its first 30 %.
    - `tolconditioncov` (1e14): condition number of C. Of a full matrix a lower bound is known, the
      squared ratio of its Cholesky factor's pivots; a matrix that cannot be factorized counts as
      infinitely ill-conditioned.
    - `noeffectaxis` (True): adding 0.1 sigma times a column of C's factor (in turn, one a
      generation; pycma: a principal axis) leaves the mean unchanged.
    - `noeffectcoord` (True): adding 0.2 standard deviations leaves a coordinate of the mean
      unchanged.

    Args:
        options: Thresholds that replace the defaults. None or False switches a criterion off;
            only `tolstagnation` takes None for its default.
        dim: Search space dimension.
        popsize: Population size.
        sigma0: Initial step size.

    Raises:
        ValueError: If an option is unknown or no number.
    """

    def __init__(
        self, options: Mapping[str, Any] | None, dim: int, popsize: int, sigma0: float
    ) -> None:
        options = {} if options is None else options
        unknown = sorted(options.keys() - DEFAULTS.keys())
        if unknown:
            raise ValueError(f"unknown stop option {unknown[0]!r}; known are {', '.join(DEFAULTS)}")
        for name, value in options.items():
            if not (value is None or isinstance(value, (bool, int, float, np.number))):
                raise ValueError(f"stop option {name} must be a number or None; got {value!r}")
        self.options: dict[str, Any] = {**DEFAULTS, **options}
        if self.options["tolstagnation"] is None:
            self.options["tolstagnation"] = 120 + math.ceil(30 * dim / popsize)
        self._sigma0 = sigma0
        self._history = 10 + math.ceil(30 * dim / popsize)
        self._best: list[float] = []
        self._median: list[float] = []
        self._range = math.inf
        self._flat = 0

    def observe(self, losses: FloatArray) -> None:
        """Record a generation's losses, (k,), sorted; +inf stands for invalid ones."""
        self._best.append(float(losses[0]))
        self._median.append(float(losses[len(losses) // 2]))
        self._range = float(losses[-1] - losses[0]) if np.isfinite(losses[-1]) else math.inf
        flat = losses[0] == losses[int(0.75 * len(losses))] < np.inf
        self._flat = self._flat + 1 if flat else 0
        # Twice the largest window, trimmed now and then, so that trimming costs nothing.
        if len(self._best) > 40_000:
            self._best, self._median = self._best[-20_000:], self._median[-20_000:]

    def reasons(
        self,
        nit: int,
        mean: FloatArray,
        sigma: float,
        p_c: FloatArray,
        covariance: CovarianceModel,
    ) -> dict[str, Any]:
        """Return the criteria that hold, each with its threshold.

        Args:
            nit: Completed generations.
            mean: (n,) the distribution's mean.
            sigma: The step size.
            p_c: (n,) the rank-one path.
            covariance: The covariance matrix.

        Returns:
            A mapping from criterion to threshold; to coordinates for `noeffectcoord`.
        """
        if nit == 0:
            return {}
        option = self.options
        recent = self._best[-self._history :]
        recent_range = max(recent) - min(recent) if math.isfinite(max(recent)) else math.inf
        std = sigma * np.sqrt(covariance.variances)
        longest_axis = float(np.sqrt(covariance.variances.max()))
        holds: dict[str, bool] = {
            "maxiter": nit >= _on(option["maxiter"], math.inf),
            "tolfun": max(self._range, recent_range) < _on(option["tolfun"]),
            "tolfunhist": len(recent) > 9 and recent_range < _on(option["tolfunhist"]),
            "tolx": max(float(std.max()), sigma * float(np.abs(p_c).max())) < _on(option["tolx"]),
            "tolfacupx": float(std.max()) > self._sigma0 * _on(option["tolfacupx"], math.inf),
            "tolupsigma": sigma > self._sigma0 * longest_axis * _on(option["tolupsigma"], math.inf),
            "tolflatfitness": self._flat > _on(option["tolflatfitness"], math.inf),
            "tolstagnation": bool(option["tolstagnation"]) and self._stagnates(nit),
            "tolconditioncov": covariance.condition > _on(option["tolconditioncov"], math.inf),
        }
        reasons = {name: option[name] for name, true in holds.items() if true}
        if option["noeffectaxis"]:
            axis = covariance.axis(nit % len(mean))
            if np.array_equal(mean, mean + 0.1 * sigma * axis):
                reasons["noeffectaxis"] = nit % len(mean)
        if option["noeffectcoord"]:
            lost = np.flatnonzero(mean == mean + 0.2 * std)
            if lost.size:
                reasons["noeffectcoord"] = lost.tolist()
        return reasons

    def _stagnates(self, nit: int) -> bool:
        shortest = int(self.options["tolstagnation"])
        window = min(max(shortest, nit // 5), 20_000, len(self._best))
        if window < shortest:
            return False
        third = max(1, int(0.3 * window))
        return all(
            np.median(history[-third:]) >= np.median(history[-window:][:third])
            for history in (self._best, self._median)
        )

    def get_state(self) -> dict[str, Any]:
        """Return the recorded history as a dictionary of numbers and arrays."""
        history = {"best": np.array(self._best), "median": np.array(self._median)}
        return {**history, "range": self._range, "flat": self._flat}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `get_state`."""
        self._best, self._median = state["best"].tolist(), state["median"].tolist()
        self._range, self._flat = state["range"], state["flat"]


def _on(threshold: Any, off: float = -math.inf) -> float:
    """Return the threshold as a float, or `off` if the criterion is switched off."""
    return off if threshold is None or threshold is False else float(threshold)
