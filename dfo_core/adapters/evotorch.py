"""The functional algorithms of evotorch behind the protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dfo_core.adapters.foreign import ForeignOptimizer, draw_seed, refuse, require_known
from dfo_core.adapters.start import start
from dfo_core.libraries import require
from dfo_core.validation import FloatArray, as_positive_int

METHODS = ("cem", "pgpe")
STATES = {"CEMState": "cem", "PGPEState": "pgpe"}
DEFAULT_POPSIZE = 50  # evotorch has no default; even, as symmetric PGPE insists on that


class EvotorchOptimizer(ForeignOptimizer):
    """A state of evotorch's functional `cem` or `pgpe`.

    These two are what evotorch has in ask/tell form. Its `SearchAlgorithm` objects (`SNES`,
    `XNES`, `CMAES`, `GeneticAlgorithm`, ...) call the objective from inside `step()`, so they
    cannot be asked; they are refused with a TypeError.

    evotorch draws from torch's global generator; that is swapped for one of ours while it runs.
    Candidates and losses have the precision of the state's tensors. It knows no bounds.

    Args:
        state: What `evotorch.algorithms.functional.cem` or `pgpe` returned, not batched, with
            `objective_sense="min"`.
        popsize: Candidates a generation; even for symmetric `pgpe`, its default.
        seed: Seed of the generator that stands in for torch's.
        budget: Largest number of evaluations.
        target: Loss at which to stop.

    Raises:
        TypeError: If it is an object of evotorch that cannot be asked.
        ValueError: If the state maximises, is batched, or the population size is odd where it must
            be even.
    """

    def __init__(
        self,
        state: Any,
        *,
        popsize: int = DEFAULT_POPSIZE,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> None:
        method = STATES.get(type(state).__name__)
        if method is None:
            raise TypeError(
                f"evotorch's {type(state).__name__} calls the objective itself, inside step(), and "
                "cannot be asked; pass a state of evotorch.algorithms.functional.cem or pgpe"
            )
        functional = require("evotorch.algorithms.functional", "evotorch", "an evotorch algorithm")
        self._torch = require("torch", "torch", "an evotorch algorithm")
        center = state.center if method == "cem" else state.optimizer_state.center
        if center.ndim != 1:
            raise ValueError(
                f"the state must hold one search; got a batch of shape {tuple(center.shape[:-1])}"
            )
        if state.maximize:
            raise ValueError('losses are minimised: build the state with objective_sense="min"')
        super().__init__(center.numel(), seed=seed, budget=budget, target=target)
        self.popsize = as_positive_int("popsize", popsize, minimum=2)
        if method == "cem" and self.popsize * state.parenthood_ratio < 2:
            raise ValueError(
                "popsize must leave two parents, whose spread is taken: with a parenthood_ratio of "
                f"{state.parenthood_ratio:g} at least {math.ceil(2 / state.parenthood_ratio)}; got "
                f"{popsize}"
            )
        if getattr(state, "symmetric", False) and self.popsize % 2:
            raise ValueError(f"popsize must be even for symmetric pgpe; got {popsize}")
        self._ask = getattr(functional, f"{method}_ask")
        self._tell = getattr(functional, f"{method}_tell")
        self._state = state
        self._precision = np.float64 if center.dtype == self._torch.float64 else np.float32
        self._device = center.device
        generator = self._torch.Generator(self._device).manual_seed(draw_seed(self.rng))
        self._random_state = generator.get_state()
        self._asked: Any = None

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
    ) -> EvotorchOptimizer:
        """Build the state too, in double precision on the CPU.

        "cem" takes the better half as parents. "pgpe" is symmetric with the optimizer ClipUp, its
        speeds set from the initial radius as the ClipUp paper advises (Toklu, Liskowski,
        Srivastava, PPSN 2020: maximum speed a fifteenth of the radius, step half of that, learning
        rate of the standard deviations 0.1). Other settings: pass a state.

        Args:
            method: "cem" or "pgpe".
            dim: Number of coordinates.
            x0: (d,) initial center; None for zeros.
            sigma0: Initial standard deviation; None for 1.
            bounds: evotorch's functional algorithms know none; a ValueError.
            popsize: Candidates a generation; None for 50.
            seed: Seed of the generator.
            budget: Largest number of evaluations.
            target: Loss at which to stop.

        Returns:
            The adapter.

        Raises:
            ImportError: If evotorch is not installed.
            ValueError: If it has no such algorithm in functional form, or an argument does not fit.
        """
        functional = require("evotorch.algorithms.functional", "evotorch", "an evotorch algorithm")
        torch = require("torch", "torch", "an evotorch algorithm")
        where = "Its others evaluate inside step(): see EvotorchOptimizer"
        require_known("evotorch in ask/tell form", method, METHODS, where)
        refuse("evotorch's functional algorithms", "they know none", bounds=bounds)
        mean, step, _ = start(dim, x0, sigma0, None)
        options: dict[str, Any] = {"parenthood_ratio": 0.5}
        if method == "pgpe":
            max_speed = step * dim**0.5 / 15
            options = {"center_learning_rate": max_speed / 2, "stdev_learning_rate": 0.1}
            options["optimizer_config"] = {"max_speed": max_speed}
        state = getattr(functional, method)(
            center_init=torch.as_tensor(mean), stdev_init=step, objective_sense="min", **options
        )
        size = DEFAULT_POPSIZE if popsize is None else popsize
        return cls(state, popsize=size, seed=seed, budget=budget, target=target)

    def _sample(self) -> FloatArray:
        with self._own_randomness():
            self._asked = self._ask(self._state, popsize=self.popsize)
        return np.asarray(self._asked.double().cpu().numpy())

    def _update(self, x: FloatArray, losses: FloatArray) -> None:
        evals = self._torch.as_tensor(
            self._finite(losses), dtype=self._asked.dtype, device=self._device
        )
        self._state = self._tell(self._state, self._asked, evals)

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Let our generator stand in for torch's global one on the state's device."""
        on_gpu = self._device.type == "cuda"
        random = self._torch.cuda if on_gpu else self._torch.random
        where = [self._device] if on_gpu else []
        with self._torch.random.fork_rng(where):
            random.set_rng_state(self._random_state, *where)
            yield
            self._random_state = random.get_rng_state(*where)
