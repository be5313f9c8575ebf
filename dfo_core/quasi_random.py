"""Quasi-random search: points that fill the space more evenly than independent draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from dfo_core.random_search import RandomSearch
from dfo_core.validation import FloatArray

Sequence = Literal["sobol", "halton"]
BITS = 30


class QuasiRandom(RandomSearch):
    """A scrambled Sobol or Halton sequence: in a box, or mapped to a normal distribution.

    With finite bounds on every side the points fill the box evenly. Without bounds the normal
    quantile function maps them around x0 with standard deviation sigma0. Their projections onto few
    coordinates are even too, which is why such points can be better than independent ones in
    search (Bergstra & Bengio 2012, Random Search for Hyper-Parameter Optimization, JMLR 13,
    Section 5). Bounded or not, the points of all batches are one sequence: the batches' size makes
    no difference.

    Sobol points (Owen scrambling) are balanced after each power of two: choose budgets like 256 or
    1024 where that matters. If x0 is given, it is the first candidate, and the sequence's points
    come after it: 257 or 1025 then.

    Foreign points (`tell_foreign`) update the best point and nothing else.

    Args:
        bounds: (lower, upper), each a finite number or (d,); None for a normal distribution.
        x0: (d,) the first candidate, within the bounds; required without bounds.
        sequence: "sobol", up to 21201 coordinates and 2^30 points, or "halton", whose points are
            less even beyond some ten coordinates.
        sigma0: Standard deviation of the normal distribution.
        dim: Number of coordinates d, needed if neither `bounds` nor `x0` says it.
        popsize: Candidates a batch.
        seed: Seed of the scrambling.
        budget: Largest number of evaluations.
        target: Loss at which to stop.

    Raises:
        ValueError: If an argument has the wrong shape or value, neither bounds nor x0 is given, or
            the Sobol sequence has too few coordinates or points.
    """

    _state_fields = ("_scramble_seed", "_n_drawn")

    def __init__(
        self,
        bounds: Any = None,
        x0: Any = None,
        *,
        sequence: Sequence = "sobol",
        sigma0: float = 1.0,
        dim: int | None = None,
        popsize: int = 16,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> None:
        super().__init__(
            bounds,
            x0,
            sigma0=sigma0,
            dim=dim,
            popsize=popsize,
            seed=seed,
            budget=budget,
            target=target,
        )
        if sequence not in ("sobol", "halton"):
            raise ValueError(f'sequence must be "sobol" or "halton"; got {sequence!r}')
        self._sequence = sequence
        self._scramble_seed = int(self.rng.integers(2**63))
        self._n_drawn = 0
        self._engine = self._build_engine()

    def _build_engine(self) -> Any:
        from scipy.stats import qmc  # slow to import

        if self._sequence == "halton":
            return qmc.Halton(self.dim, seed=self._scramble_seed)
        if self.dim > qmc.Sobol.MAXDIM:
            raise ValueError(
                f"the Sobol sequence has at most {qmc.Sobol.MAXDIM} coordinates; got {self.dim}. "
                'Use sequence="halton" or RandomSearch'
            )
        return qmc.Sobol(self.dim, bits=BITS, seed=self._scramble_seed)

    def _draw(self, n: int) -> FloatArray:
        # One point first: scipy warns if a sequence begins with another number than a power of
        # two, although the number that have been drawn in the end is what matters.
        head = min(n, 1) if self._n_drawn == 0 else 0
        unit = np.concatenate([self._engine.random(head), self._engine.random(n - head)])
        self._n_drawn += n
        if self._box is not None:
            inside: FloatArray = self._box.lower + unit * self._box.width
            return inside
        from scipy.special import ndtri  # slow to import

        # Points lie on a grid that begins with zero, whose quantile is infinite: take the cells'
        # middles.
        cell = 2.0**-BITS
        z = ndtri(np.minimum(unit + cell / 2, 1 - cell / 2))
        x: FloatArray = self._center + self._sigma * z
        return x

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "sequence": self._sequence}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        super()._set_state(state)
        self._engine = self._build_engine()
        if self._n_drawn:
            self._engine.fast_forward(self._n_drawn)
