"""The names of this package's own optimizers."""

from __future__ import annotations

from typing import Any

from dfo_core.adapters.foreign import refuse
from dfo_core.adapters.start import start
from dfo_core.cma_parameters import Covariance
from dfo_core.cmaes import CMAES
from dfo_core.lmmaes import LMMAES
from dfo_core.lotfwa import LoTFWA
from dfo_core.optimizer import Optimizer
from dfo_core.quasi_random import QuasiRandom
from dfo_core.random_search import RandomSearch
from dfo_core.restarts import BIPOP, IPOP

NAMES = (
    *("cma-es", "sep-cma-es", "lm-ma-es", "ipop-cma-es", "bipop-cma-es", "lotfwa"),
    *("random", "quasi-random"),
)


def build_native(
    name: str,
    *,
    dim: int,
    x0: Any,
    sigma0: float | None,
    bounds: Any,
    popsize: int | None,
    **common: Any,
) -> Optimizer:
    """Build one of ours from the arguments of `as_optimizer`.

    Args:
        name: One of `NAMES`.
        dim: Number of coordinates.
        x0: Start point or None.
        sigma0: Step size or None.
        bounds: (lower, upper) or None.
        popsize: Candidates a generation, or None.
        common: seed, budget and target.

    Returns:
        The optimizer.

    Raises:
        ValueError: If an argument has the wrong shape or value, or would have no effect.
    """
    if popsize is not None:
        common["popsize"] = popsize
    if name == "lotfwa":
        if bounds is None:
            raise ValueError('"lotfwa" needs bounds=(lower, upper)')
        refuse('"lotfwa"', "build LoTFWA with amplitude0", sigma0=sigma0)
        return LoTFWA(bounds, x0, dim=dim, **common)
    mean, step, _ = start(dim, x0, sigma0, bounds)
    if name in ("random", "quasi-random"):
        search = RandomSearch if name == "random" else QuasiRandom
        if bounds is None:
            return search(None, mean, sigma0=step, **common)
        refuse(f'"{name}" within bounds', "it fills them; leave out one of the two", sigma0=sigma0)
        return search(bounds, x0, dim=dim, **common)
    if name == "lm-ma-es":
        return LMMAES(mean, step, bounds=bounds, **common)
    if name in ("ipop-cma-es", "bipop-cma-es"):
        restarts = IPOP if name == "ipop-cma-es" else BIPOP
        return restarts(CMAES, mean, step, bounds=bounds, **common)
    kind: Covariance = "diagonal" if name == "sep-cma-es" else "full"
    return CMAES(mean, step, bounds=bounds, covariance=kind, **common)
