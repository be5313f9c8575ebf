"""Restarts of any optimizer with growing populations: IPOP and BIPOP."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import floor, inf, sqrt
from typing import Any

import numpy as np

from dfo_core.bounds import Box, infer_dim
from dfo_core.cma_parameters import default_popsize
from dfo_core.optimizer import Optimizer
from dfo_core.validation import (
    FloatArray,
    IntArray,
    as_positive_float,
    as_positive_int,
    as_vector,
)

Algorithm = Callable[..., Optimizer]


@dataclass(frozen=True)
class Run:
    """One run of the restarted algorithm.

    Attributes:
        regime: "first", "large" or "small".
        popsize: Its population size.
        sigma0: Its initial standard deviation.
        max_nfev: Evaluations after which it ends at the latest; inf for no limit.
        nfev: Evaluations it took.
        fun: The best loss it found.
        stop: Why it ended: the algorithm's own reasons, "maxiter" or "max_nfev".
    """

    regime: str
    popsize: int
    sigma0: float
    max_nfev: float = inf
    nfev: int = 0
    fun: float = inf
    stop: Mapping[str, Any] = field(default_factory=dict)


class Restarts(Optimizer):
    """Runs of an algorithm one after the other, each with its population and step size.

    A run ends when the algorithm has a reason to stop, after 100 + 50 (d + 3)^2 / sqrt(popsize)
    generations ("maxiter", Hansen 2009), or at the limit the strategy sets ("max_nfev"); always
    between two of its batches. The next run begins with the next `ask`. The best point, `nfev`,
    `nit`, budget and target are over all runs.

    The first run starts at x0. Later ones start at points drawn uniformly from `restart_box`, by
    default the bounds if these are finite; without either, at x0 + sigma0 N(0, I), cut to the
    bounds. Without x0 the first run starts where a later one would.

    Foreign points go to the run under way, if its algorithm takes any; `supports_state` too is the
    algorithm's.

    Args:
        algorithm: One of the package's classes, such as `CMAES`, a `functools.partial` of one, or
            any function that returns an optimizer. It is called with the keyword arguments x0,
            sigma0, popsize, seed, and bounds if there are any. Budget and target stay out here.
        x0: (d,) start of the first run.
        sigma0: Initial standard deviation.
        bounds: (lower, upper), each None, a number or (d,).
        restart_box: (lower, upper), finite and within the bounds; where runs start.
        dim: Number of coordinates d, needed if neither x0 nor bounds say it.
        popsize: Population size of the first run; None for 4 + floor(3 ln d).
        factor: What the population size is multiplied with, above 1.
        max_restarts: Largest number of restarts with a larger population; None for no limit.
        seed: Seed of the generator, from which each run's seed is drawn.
        budget: Largest number of evaluations.
        target: Loss at which to stop.

    Raises:
        TypeError: If `algorithm` does not return an optimizer.
        ValueError: If an argument has the wrong shape or value.
    """

    _state_fields = ("_run_x0", "_run_seed", "_ids", "_over", "_n_large", "_past_nit")

    def __init__(
        self,
        algorithm: Algorithm,
        x0: Any = None,
        sigma0: float = 1.0,
        *,
        bounds: Any = None,
        restart_box: Any = None,
        dim: int | None = None,
        popsize: int | None = None,
        factor: float = 2.0,
        max_restarts: int | None = 9,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> None:
        dim = infer_dim(dim, x0, bounds if bounds is not None else restart_box)
        super().__init__(dim, seed=seed, budget=budget, target=target)
        self._algorithm = algorithm
        self._sigma0 = as_positive_float("sigma0", sigma0)
        self._popsize0 = (
            default_popsize(dim) if popsize is None else as_positive_int("popsize", popsize)
        )
        self._factor = as_positive_float("factor", factor)
        if self._factor <= 1:
            raise ValueError(f"factor must be above 1; got {factor!r}")
        self._max_restarts = (
            None if max_restarts is None else as_positive_int("max_restarts", max_restarts, 0)
        )
        self._box = Box.parse((None, None) if bounds is None else bounds, dim)
        self._bounded = bounds is not None
        self._x0 = None if x0 is None else self._box.require_inside("x0", as_vector("x0", x0, dim))
        self._center = np.zeros(dim) if self._x0 is None else self._x0
        self._restart_box = self._parse_restart_box(restart_box)
        if self._x0 is None and self._restart_box is None:
            raise ValueError("a start is needed: give x0, finite bounds or a restart_box")
        self._runs: list[Run] = []
        self._n_large = 0  # restarts with a larger population so far
        self._past_nit = 0
        self._begin(Run("first", self._popsize0, self._sigma0))

    def _parse_restart_box(self, restart_box: Any) -> Box | None:
        if restart_box is None:
            return self._box if self._box.is_finite else None
        box = Box.parse(restart_box, self.dim).require_finite("restart_box")
        self._box.require_inside("restart_box", np.stack([box.lower, box.upper]))
        return box

    @abstractmethod
    def _next_run(self) -> Run:
        """Plan the next run; called once the one before is among `runs`."""

    def _large_run(self) -> Run:
        """The next run with a larger population."""
        popsize = floor(self._popsize0 * self._factor ** (self._n_large + 1))
        return Run("large", popsize, self._sigma0)

    # -- runs --------------------------------------------------------------------------------

    def _begin(self, run: Run) -> None:
        self._run = run
        self._n_large += run.regime == "large"
        self._run_x0 = self._start_point()
        self._run_seed = int(self.rng.integers(2**31))  # pycma, for one, takes no larger ones
        self._inner = self._build(run, self._run_x0, self._run_seed)
        self._ids: IntArray = np.empty(0, dtype=np.int64)  # the candidates under way, in the run
        self._over: dict[str, Any] = {}  # why the run is over; empty while it is not

    def _start_point(self) -> FloatArray:
        if self._x0 is not None and not self._runs:
            return self._x0
        if self._restart_box is not None:
            return self._restart_box.uniform(self.rng, 1).ravel()
        step = self._sigma0 * self.rng.standard_normal(self.dim)
        return np.clip(self._center + step, self._box.lower, self._box.upper)

    def _build(self, run: Run, x0: FloatArray, seed: int) -> Optimizer:
        arguments: dict[str, Any] = {"bounds": self._box} if self._bounded else {}
        inner = self._algorithm(
            x0=x0,
            sigma0=run.sigma0,
            popsize=run.popsize,
            seed=seed,
            **arguments,
        )
        if not isinstance(inner, Optimizer):
            raise TypeError(
                f"algorithm must return an Optimizer; got {type(inner).__name__}. "
                "as_optimizer makes one of another library's"
            )
        if inner.dim != self.dim:
            raise ValueError(
                f"algorithm must return an optimizer of {self.dim} coordinates; got {inner.dim}"
            )
        return inner

    def _reasons(self) -> dict[str, Any]:
        """Why the run under way is over; empty while it is not."""
        reasons = self._inner.stop()
        max_nit = 100 + 50 * (self.dim + 3) ** 2 / sqrt(self._run.popsize)
        if self._inner.nit >= max_nit:
            reasons["maxiter"] = max_nit
        if self._inner.nfev >= self._run.max_nfev:
            reasons["max_nfev"] = self._run.max_nfev
        return reasons

    def _finished(self) -> Run:
        """The run under way with what is known of it now."""
        found = {"nfev": self._inner.nfev, "fun": self._inner.result.fun, "stop": self._over}
        return Run(**{**asdict(self._run), **found})

    # -- ask and tell ------------------------------------------------------------------------

    def _sample(self) -> FloatArray:
        if self._over and not self._exhausted:
            self._runs.append(self._finished())
            self._past_nit += self._inner.nit
            self._begin(self._next_run())
        batch = self._inner.ask()
        self._ids = batch.ids
        return batch.x

    def _update(self, x: FloatArray, losses: FloatArray) -> None:
        self._inner.tell(self._ids, losses)
        self._over = self._reasons()

    @property
    def _exhausted(self) -> bool:
        return self._max_restarts is not None and self._n_large >= self._max_restarts

    def _stop_reasons(self) -> dict[str, Any]:
        return {"restarts": self._max_restarts} if self._over and self._exhausted else {}

    # -- what the algorithm under way does ----------------------------------------------------

    @property
    def accepts_foreign(self) -> bool:  # type: ignore[override]
        """Whether the algorithm takes foreign points."""
        return self._inner.accepts_foreign

    @property
    def supports_state(self) -> bool:  # type: ignore[override]
        """Whether the algorithm's state can be saved."""
        return self._inner.supports_state

    def _check_foreign(self, x: FloatArray) -> None:
        self._box.require_inside("foreign points", x)

    def _inject(self, x: FloatArray, losses: FloatArray) -> None:
        self._inner.tell_foreign(x, losses)

    def reset_best(self) -> None:
        """Forget the best point, here and in the run under way."""
        super().reset_best()
        self._inner.reset_best()

    @property
    def remembered(self) -> FloatArray:
        """Points (k, dim) that the run under way compares new candidates with; a copy."""
        return self._inner.remembered

    @property
    def nit(self) -> int:
        """Number of completed generations, over all runs."""
        return self._past_nit + self._inner.nit

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs, the one under way last."""
        return (*self._runs, self._finished())

    # -- state -------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        start = self._restart_box
        return {
            **super()._settings(),
            "x0": self._x0,
            "popsize": self._popsize0,
            "sigma0": self._sigma0,
            "factor": self._factor,
            "max_restarts": self._max_restarts,
            "lower": self._box.lower,
            "upper": self._box.upper,
            "restart_lower": None if start is None else start.lower,
            "restart_upper": None if start is None else start.upper,
        }

    def _get_state(self) -> dict[str, Any]:
        return {
            **super()._get_state(),
            "runs": [asdict(run) for run in self._runs],
            "run": asdict(self._run),
            "inner": self._inner.state_dict(),
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        run = Run(**state["run"])
        inner = self._build(run, state["_run_x0"], state["_run_seed"])
        inner.load_state_dict(state["inner"])
        super()._set_state(state)
        self._runs = [Run(**run) for run in state["runs"]]
        self._run, self._inner = run, inner


class IPOP(Restarts):
    """Restarts with an increasing population.

    Auger & Hansen, A Restart CMA Evolution Strategy With Increasing Population Size, CEC 2005: the
    k-th restart has the population size popsize * factor^k and the same sigma0.

        IPOP(CMAES, bounds=(-5, 5), dim=10, sigma0=2.0)
        IPOP(partial(CMAES, covariance="diagonal"), x0, 0.5)

    Stop reasons: "restarts", after the last run.

    See `Restarts` for the arguments, start points and what ends a run; `max_restarts` is 9.
    """

    def _next_run(self) -> Run:
        return self._large_run()


class BIPOP(Restarts):
    """Restarts with large populations in turn with short ones with small populations.

    Hansen, Benchmarking a BI-Population CMA-ES on the BBOB-2009 Function Testbed, GECCO 2009. The
    two regimes get the same number of evaluations: each time the one that has used fewer is next,
    "large" if both are equal. The first run counts as small, as in pycma.

        BIPOP(CMAES, bounds=(-5, 5), dim=10, sigma0=2.0, budget=100_000)

    - "large": the population size doubles from one to the next, as in IPOP.
    - "small": population size floor(popsize (popsize_large / (factor popsize))^(U^2)), where
      popsize_large is that of the last large run and factor is 2; step size sigma0 10^(-2 U'), U
      and U' uniform in [0, 1); at most half the evaluations of the last large run.

    Stop reasons: "restarts", after the last large run.

    See `Restarts` for the arguments, start points and what ends a run; `max_restarts` counts the
    large runs, and is 9.
    """

    def _next_run(self) -> Run:
        large = [run for run in self._runs if run.regime == "large"]
        used_by_large = sum(run.nfev for run in large)
        if used_by_large <= self.nfev - used_by_large:
            return self._large_run()
        ratio = max(1.0, large[-1].popsize / self._popsize0 / self._factor)
        popsize = floor(self._popsize0 * ratio ** (self.rng.random() ** 2))
        sigma0 = self._sigma0 * 10 ** (-2 * self.rng.random())
        return Run("small", popsize, sigma0, max_nfev=large[-1].nfev / 2)
