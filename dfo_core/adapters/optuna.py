"""Optuna's samplers behind the protocol."""

from __future__ import annotations

from typing import Any

import numpy as np

from dfo_core.adapters.foreign import ForeignOptimizer, draw_seed, is_from, refuse, require_known
from dfo_core.bounds import Box
from dfo_core.libraries import require
from dfo_core.validation import FloatArray, as_positive_int, as_vector

METHODS = ("TPE", "CmaEs", "GP", "QMC", "Random", "NSGAII", "NSGAIII")


class OptunaOptimizer(ForeignOptimizer):
    """An optuna study, asked and told trial by trial.

    Coordinate i is a float parameter named "x{i}" that is uniform between its bounds. A candidate
    with a NaN or infinite loss is told as a failed trial, which optuna leaves out of its models;
    the others are told with their losses. A batch of several trials is suggested before any of
    them is told: TPE then assumes bad losses for those under way (its `constant_liar`), the other
    samplers ignore them.

    Optuna suggests each coordinate in Python, so a candidate of hundreds of coordinates takes it
    much longer than the other libraries.

    Args:
        study: The study; it minimises one objective.
        bounds: (lower, upper), each a finite number or (d,).
        dim: Number of coordinates d, needed if `bounds` does not say it.
        x0: (d,) the first trial; None leaves it to the sampler.
        popsize: Trials a batch.
        budget: Largest number of evaluations.
        target: Loss at which to stop.

    Raises:
        ValueError: If the study maximises or has several objectives, or the bounds are not finite.
    """

    def __init__(
        self,
        study: Any,
        bounds: Any,
        *,
        dim: int,
        x0: Any = None,
        popsize: int = 1,
        budget: int | None = None,
        target: float | None = None,
    ) -> None:
        super().__init__(dim, budget=budget, target=target)
        optuna = require("optuna", "optuna", "an optuna study")
        if [direction.name for direction in study.directions] != ["MINIMIZE"]:
            raise ValueError('the study must minimise one loss: create_study(direction="minimize")')
        if bounds is None:
            raise ValueError("optuna needs bounds=(lower, upper)")
        box = Box.parse(bounds, self.dim).require_finite("optuna")
        self.popsize = as_positive_int("popsize", popsize)
        self._study = study
        self._failed = optuna.trial.TrialState.FAIL
        self._parameters = {
            f"x{i}": optuna.distributions.FloatDistribution(low, high)
            for i, (low, high) in enumerate(
                zip(box.lower.tolist(), box.upper.tolist(), strict=True)
            )
        }
        if x0 is not None:
            first = box.require_inside("x0", as_vector("x0", x0, self.dim))
            study.enqueue_trial(dict(zip(self._parameters, first.tolist(), strict=True)))
        self._asked: list[Any] = []

    @staticmethod
    def builds(obj: Any) -> bool:
        """Whether `from_arguments` takes it: optuna's samplers and studies."""
        return is_from("optuna", obj, "BaseSampler", "Study")

    @classmethod
    def from_arguments(
        cls,
        method: Any,
        *,
        dim: int,
        x0: Any = None,
        sigma0: float | None = None,
        bounds: Any = None,
        popsize: int | None = None,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> OptunaOptimizer:
        """Build the study and, from a name, the sampler too.

        Args:
            method: One of `METHODS`, a sampler or a study.
            dim: Number of coordinates d.
            x0: (d,) the first trial. "CmaEs" starts in the middle of the bounds all the same, with
                a sixth of their width as step size: optuna deprecates its options for both.
            sigma0: No sampler takes it; a ValueError.
            bounds: (lower, upper), each a finite number or (d,); required.
            popsize: Trials a batch, and the population size of "CmaEs" and of the two NSGA; None
                for 1 and the sampler's default.
            seed: Seed of the sampler; a sampler or study that exists has one already.
            budget: Largest number of evaluations.
            target: Loss at which to stop.

        Returns:
            The adapter.

        Raises:
            ImportError: If optuna is not installed.
            ValueError: If it has no such sampler, or an argument cannot have an effect.
        """
        optuna = require("optuna", "optuna", "an optuna sampler")
        refuse("optuna's samplers", "build the sampler yourself and pass it", sigma0=sigma0)
        if bounds is None:
            raise ValueError("optuna needs bounds=(lower, upper)")
        if isinstance(method, str):
            study = _study(optuna, _sampler(optuna, method, dim, popsize, seed))
        else:
            refuse("an optuna sampler or study", "seed it where it is built", seed=seed)
            study = method if is_from("optuna", method, "Study") else _study(optuna, method)
        return cls(
            study,
            bounds,
            dim=dim,
            x0=x0,
            popsize=1 if popsize is None else popsize,
            budget=budget,
            target=target,
        )

    def _sample(self) -> FloatArray:
        # Trials that a budget leaves no room for would stay unfinished in the caller's study.
        left = self.popsize if self.budget is None else self.budget - self._nfev
        n = min(self.popsize, left)
        self._asked = [self._study.ask(self._parameters) for _ in range(n)]
        return np.array(
            [[trial.params[name] for name in self._parameters] for trial in self._asked]
        )

    def _update(self, x: FloatArray, losses: FloatArray) -> None:
        for trial, loss in zip(self._asked, losses.tolist(), strict=True):
            if np.isfinite(loss):
                self._study.tell(trial, loss)
            else:
                self._study.tell(trial, state=self._failed)


def _sampler(optuna: Any, name: str, dim: int, popsize: int | None, seed: Any) -> Any:
    """Build the sampler of that name with those of the arguments that it has."""
    require_known("optuna", name, METHODS, f"Known are {', '.join(METHODS)}")
    options: dict[str, Any] = {"seed": draw_seed(np.random.default_rng(seed))}
    if popsize is not None and (name == "CmaEs" or name.startswith("NSGA")):
        popsize = as_positive_int("popsize", popsize, minimum=2)
    if name == "CmaEs":
        if dim == 1:
            raise ValueError(
                'optuna\'s "CmaEs" only draws at random where there is one coordinate; use another'
            )
        require("cmaes", "cmaes", 'the optimizer "optuna:CmaEs"')
        options["popsize"] = popsize
    elif name == "QMC":
        options["scramble"] = True  # without it the seed would have no effect
    elif name.startswith("NSGA") and popsize is not None:
        options["population_size"] = popsize
    return getattr(optuna.samplers, f"{name}Sampler")(**options)


def _study(optuna: Any, sampler: Any) -> Any:
    """Create a study in memory without the line that optuna logs about each."""
    logging = optuna.logging
    level = logging.get_verbosity()
    logging.set_verbosity(max(level, logging.WARNING))
    try:
        return optuna.create_study(sampler=sampler)
    finally:
        logging.set_verbosity(level)
