"""Strategy parameters of CMA-ES: everything that follows from dimension and population size."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log, sqrt
from typing import Literal

import numpy as np

from dfo_core.validation import FloatArray, as_positive_int

Covariance = Literal["full", "diagonal"]


@dataclass(frozen=True, eq=False)
class CMAParameters:
    """The default strategy parameters (Hansen 2016, arXiv 1604.00772, Table 1).

    Attributes:
        dim: Search space dimension n.
        popsize: Population size lambda.
        mu: Number of positive weights, floor(lambda / 2).
        weights: (popsize,) recombination weights in rank order; the first mu sum to one, those
            after are negative (active CMA) or zero.
        mueff: Variance effective selection mass of the positive weights.
        c_sigma: Learning rate of the step-size path.
        d_sigma: Damping of the step size.
        c_c: Learning rate of the rank-one path.
        c_1: Learning rate of the rank-one update.
        c_mu: Learning rate of the rank-mu update.
        chi_n: Expectation of the norm of an n-dimensional standard normal vector.
        lag: Generations between two factorizations of the covariance matrix.
    """

    dim: int
    popsize: int
    mu: int
    weights: FloatArray
    mueff: float
    c_sigma: float
    d_sigma: float
    c_c: float
    c_1: float
    c_mu: float
    chi_n: float
    lag: int

    @classmethod
    def default(
        cls,
        dim: int,
        popsize: int | None = None,
        *,
        active: bool = True,
        covariance: Covariance = "full",
    ) -> CMAParameters:
        """Compute the parameters.

        Args:
            dim: Search space dimension.
            popsize: Population size, at least 2; None for 4 + floor(3 ln n).
            active: Whether the worse half gets negative weights in the covariance update.
            covariance: "diagonal" multiplies the covariance matrix' learning rates by (n + 2) / 3
                (Ros & Hansen 2008, A Simple Modification in CMA-ES Achieving Linear Time and Space
                Complexity, Section 3), as there are only n entries to learn.

        Returns:
            The parameters.

        Raises:
            ValueError: If `popsize` is below 2.
        """
        n = as_positive_int("dim", dim)
        popsize = default_popsize(n) if popsize is None else popsize
        popsize = as_positive_int("popsize", popsize, minimum=2)
        mu = popsize // 2

        raw = log((popsize + 1) / 2) - np.log(np.arange(1, popsize + 1))  # Eq. 49
        mueff = _mueff(raw[:mu])  # Eq. 8
        c_1 = 2 / ((n + 1.3) ** 2 + mueff)  # Eq. 57
        c_mu = min(1 - c_1, 2 * (0.25 + mueff + 1 / mueff - 2) / ((n + 2) ** 2 + mueff))  # Eq. 58
        if covariance == "diagonal":
            c_1 = min(1.0, c_1 * (n + 2) / 3)
            c_mu = min(1 - c_1, c_mu * (n + 2) / 3)

        weights = np.where(np.arange(popsize) < mu, raw / raw[:mu].sum(), 0.0)  # Eq. 53
        if active:
            mueff_minus = _mueff(raw[mu:])
            limit = min(
                1 + c_1 / c_mu,  # Eq. 50: the decay of C on average vanishes
                1 + 2 * mueff_minus / (mueff + 2),  # Eq. 51
                (1 - c_1 - c_mu) / (n * c_mu),  # Eq. 52: C stays positive definite
            )
            weights[mu:] = raw[mu:] * limit / -raw[mu:].sum()

        c_sigma = (mueff + 2) / (n + mueff + 5)  # Eq. 55
        return cls(
            dim=n,
            popsize=popsize,
            mu=mu,
            weights=weights,
            mueff=mueff,
            c_sigma=c_sigma,
            d_sigma=1 + 2 * max(0.0, sqrt((mueff - 1) / (n + 1)) - 1) + c_sigma,  # Eq. 55
            c_c=(4 + mueff / n) / (n + 4 + 2 * mueff / n),  # Eq. 56
            c_1=c_1,
            c_mu=c_mu,
            chi_n=sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2)),
            lag=max(1, floor(1 / (10 * n * (c_1 + c_mu)))),  # Section B.2
        )


def default_popsize(dim: int) -> int:
    """Return 4 + floor(3 ln n), the tutorial's Eq. 48."""
    return 4 + floor(3 * log(dim))


def _mueff(weights: FloatArray) -> float:
    return float(weights.sum() ** 2 / (weights**2).sum())
