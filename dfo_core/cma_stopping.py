"""When CMA-ES should stop: pycma's criteria under pycma's names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np

from dfo_core.covariance import CovarianceModel
from dfo_core.validation import FloatArray

DEFAULTS: Mapping[str, Any] = {
    "maxiter": math.inf,
    "tolfun": 1e-11,
    "tolfunhist": 1e-12,
    "tolfunrel": 0.0,
    "tolx": 1e-11,
    "tolxstagnation": 1e-9,
    "tolfacupx": 1e3,
    "tolupsigma": 1e20,
    "tolflatfitness": 1,
    "tolstagnation": None,
    "tolconditioncov": 1e14,
    "noeffectaxis": True,
    "noeffectcoord": True,
}

_COUNTERS = (
    *("range", "flat", "first_median", "lowest_median"),
    *("resting", "rests", "generations"),
)


class StoppingCriteria:
    """The stop reasons of CMA-ES (Hansen 2016, Section B.3; names and defaults are pycma's).

    - `maxiter` (inf): completed generations.
    - `tolfun` (1e-11): the range of the last generation's losses and of the best losses of the
      last 10 + ceil(30 n / lambda) generations are both below it.
    - `tolfunhist` (1e-12): the range of those best losses alone, once there are ten.
    - `tolfunrel` (0): the range of the last generation's losses is below this fraction of the
      distance between the first generation's median and the lowest median so far.
    - `tolx` (1e-11): every coordinate's standard deviation, and sigma times the path of recent
      steps, are below it. In the units of x.
    - `tolxstagnation` (1e-9): the mean has stayed within this distance of where it was for more
      than 20 generations and a tenth of all. In the units of x. (The distance grows with the root
      of the time over that threshold.)
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

    Of pycma's list, `ftarget` and `maxfevals` are the optimizer's `target` and `budget`, and
    `callback` is `minimize`'s. `timeout` is left to the caller: a run that depends on the clock
    cannot be repeated.

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
        self._first_median = self._lowest_median = math.inf
        self._flat = 0
        # Where the mean came to rest, for how many generations, and whether that is too long.
        self._resting_place: FloatArray = np.full(dim, np.nan)
        self._resting, self._rests = 0, False
        self._generations = 0

    def observe(self, losses: FloatArray, mean: FloatArray) -> None:
        """Record a generation.

        Args:
            losses: (k,) losses of the points sampled in it, sorted; +inf stands for invalid ones.
            mean: (n,) the mean it was sampled around.
        """
        best, middle, worst = losses[[0, len(losses) // 2, -1]].tolist()
        self._best.append(best)
        self._median.append(middle)
        if self._first_median == math.inf:
            self._first_median = middle
        self._lowest_median = min(self._lowest_median, middle)
        self._range = worst - best if len(losses) > 1 and worst < math.inf else math.inf
        flat = len(losses) > 1 and best == losses[int(0.75 * len(losses))] < math.inf
        self._flat = self._flat + 1 if flat else 0
        self._watch(mean)
        self._generations += 1
        # Twice the largest window, trimmed now and then, so that trimming costs nothing.
        if len(self._best) > 40_000:
            self._best, self._median = self._best[-20_000:], self._median[-20_000:]

    def _watch(self, mean: FloatArray) -> None:
        """Note whether the mean has moved (pycma's class `_StopTolXStagnation`)."""
        self._resting += 1
        patience = 20 + 0.1 * self._generations
        distance = _on(self.options["tolxstagnation"])
        distance *= math.sqrt(max(1.0, self._resting / patience))
        moved = mean - self._resting_place
        if not math.sqrt(moved @ moved) <= distance:  # at the start, too, where it is NaN
            self._resting_place, self._resting = mean, 0
        self._rests = self._resting > patience

    def reasons(
        self,
        nit: int,
        mean: FloatArray,
        sigma: float,
        path: FloatArray,
        covariance: CovarianceModel,
    ) -> dict[str, Any]:
        """Return the criteria that hold, each with its threshold.

        Args:
            nit: Completed generations.
            mean: (n,) the distribution's mean.
            sigma: The step size.
            path: (n,) the path of recent steps, in units of sigma.
            covariance: The covariance matrix.

        Returns:
            A mapping from criterion to threshold; to coordinates for `noeffectcoord`.
        """
        if nit == 0:
            return {}
        option = self.options
        recent = self._best[-self._history :]
        lowest, highest = min(recent), max(recent)
        recent_range = highest - lowest if highest < math.inf else math.inf
        variances = covariance.variances
        largest = math.sqrt(variances.max())
        holds: dict[str, bool] = {
            "maxiter": nit >= _on(option["maxiter"], math.inf),
            "tolfun": max(self._range, recent_range) < _on(option["tolfun"]),
            "tolfunhist": len(recent) > 9 and recent_range < _on(option["tolfunhist"]),
            "tolfunrel": self._range
            < _on(option["tolfunrel"], 0.0) * (self._first_median - self._lowest_median),
            "tolxstagnation": self._rests,
            "tolx": sigma * largest < _on(option["tolx"])
            and sigma * float(np.abs(path).max()) < _on(option["tolx"]),
            "tolfacupx": sigma * largest > self._sigma0 * _on(option["tolfacupx"], math.inf),
            "tolupsigma": sigma > self._sigma0 * largest * _on(option["tolupsigma"], math.inf),
            "tolflatfitness": self._flat > _on(option["tolflatfitness"], math.inf),
            "tolstagnation": bool(option["tolstagnation"]) and self._stagnates(nit),
            "tolconditioncov": covariance.condition > _on(option["tolconditioncov"], math.inf),
        }
        reasons = {name: option[name] for name, true in holds.items() if true}
        if option["noeffectaxis"]:
            axis = covariance.axis(nit % len(mean))
            if (mean == mean + 0.1 * sigma * axis).all():
                reasons["noeffectaxis"] = nit % len(mean)
        if option["noeffectcoord"]:
            lost = mean == mean + 0.2 * sigma * np.sqrt(variances)
            if lost.any():
                reasons["noeffectcoord"] = np.flatnonzero(lost).tolist()
        return reasons

    def _stagnates(self, nit: int) -> bool:
        shortest = int(self.options["tolstagnation"])
        window = min(max(shortest, nit // 5), 20_000, len(self._best))
        if window < shortest:
            return False
        third = max(1, int(0.3 * window))
        return all(
            median(history[-third:]) >= median(history[-window:][:third])
            for history in (self._best, self._median)
        )

    def get_state(self) -> dict[str, Any]:
        """Return the recorded history as a dictionary of numbers and arrays."""
        return {
            "best": np.array(self._best),
            "median": np.array(self._median),
            "resting_place": self._resting_place.copy(),
            **{name: getattr(self, f"_{name}") for name in _COUNTERS},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `get_state`."""
        self._best, self._median = state["best"].tolist(), state["median"].tolist()
        self._resting_place = state["resting_place"].copy()
        for name in _COUNTERS:
            setattr(self, f"_{name}", state[name])


def _on(threshold: Any, off: float = -math.inf) -> float:
    """Return the threshold as a float, or `off` if the criterion is switched off."""
    return off if threshold is None or threshold is False else float(threshold)
