"""One optimizer a layer, from whatever the caller names or hands over."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dfo_core import LoTFWA, Optimizer, as_optimizer
from dfo_core.adapters import NevergradOptimizer, OptunaOptimizer
from dfo_core.adapters.foreign import is_from
from dfo_core.adapters.generic import require_ask_and_tell
from integrations.errors import UserError
from integrations.imported import imported, is_import
from integrations.visit import Stop

RADIUS = 3.0
"""Bounds of z in units of the reference delta, where an optimizer needs bounds."""

POPSIZES = {"lotfwa": 5, "cma-es": 10, "sep-cma-es": 10, "pycma": 10, "random": 10}
"""Candidates a generation: few, as a layer sees few generations."""

LOTFWA_AMPLITUDE = 1.0
"""Starting amplitude of a firework, in the same units."""

FREEZE_A = ("lotfwa",)
"""Optimizers that search for B alone unless told otherwise; see docs/method.md."""

LIBRARIES = ("nevergrad", "optuna", "cmaes", "evotorch", "evosax")
"""Whose optimizers are named ``library:name``."""

FULL_COVARIANCE = ("cma-es", "ipop-cma-es", "bipop-cma-es", "pycma", "cmaes", "nevergrad:cma")
MOST_COORDINATES = 5000
"""Most coordinates with a full covariance matrix: 200 MB, and half a minute a factorization."""


def make_optimizers(
    spec: Any, layers: Sequence[Stop], dim: int, seed: int, budget: int, popsize: int | None
) -> dict[Stop, Optimizer]:
    """Build one optimizer a layer; each searches around zero, where the delta is zero.

    Args:
        spec: What `dfo_core.as_optimizer` takes, or ``"module:name"`` for a factory or class of
            the caller's own. An object is copied for each layer; those of optuna search within
            `RADIUS`.
        layers: The layers to tune; None among them stands for one optimizer of all.
        dim: Coordinates of each optimizer.
        seed: Every layer's generator is derived from it and the layer's index.
        budget: Evaluations of the whole run; optimizers that plan with their budget get a share.
        popsize: Candidates a generation; None for `POPSIZES` or the optimizer's own default.

    Raises:
        UserError: If the name is unknown, a library is missing, the object has no ask or tell, or
            a covariance matrix would be too large.
    """
    if isinstance(spec, str) and is_import(spec) and spec.partition(":")[0] not in LIBRARIES:
        spec = imported(spec, "optimizer", "a factory f(dim, seed)")
    _check_size(spec, dim)
    optimizers = {}
    share = -(-budget // len(layers))
    for layer in layers:
        rng = np.random.default_rng(seed if layer is None else (seed, layer))
        try:
            optimizer = _build(spec, dim, rng, share, popsize)
        except (TypeError, ValueError, ImportError) as error:
            raise UserError(f"optimizer: {error}") from error
        optimizer.budget = None  # the run has one budget for all layers
        optimizers[layer] = optimizer
    return optimizers


def _check_size(spec: Any, dim: int) -> None:
    if dim > MOST_COORDINATES and isinstance(spec, str) and spec.lower() in FULL_COVARIANCE:
        raise UserError(
            f"optimizer {spec!r} would keep a covariance matrix of {dim} x {dim} numbers; more "
            f"than {MOST_COORDINATES} coordinates are for 'lm-ma-es', 'sep-cma-es' or 'lotfwa'. "
            "Or tune fewer layers, or lower dim."
        )


def freezes_a(spec: Any, asked: bool | None) -> bool:
    """Whether B alone is searched for: as asked, or with None as suits the optimizer."""
    return isinstance(spec, str) and spec.lower() in FREEZE_A if asked is None else bool(asked)


def can_save(spec: Any, dim: int, popsize: int | None) -> bool:
    """Whether the state of an optimizer can be saved; takes what `make_optimizers` does."""
    return make_optimizers(spec, [0], dim, seed=0, budget=1000, popsize=popsize)[0].supports_state


def _build(
    spec: Any, dim: int, rng: np.random.Generator, share: int, popsize: int | None
) -> Optimizer:
    if isinstance(spec, str):
        name = spec.lower()
        popsize = POPSIZES.get(name) if popsize is None else popsize
        if name == "lotfwa":
            return LoTFWA(
                (-RADIUS, RADIUS),
                np.zeros(dim),
                popsize=POPSIZES["lotfwa"] if popsize is None else popsize,
                amplitude0=LOTFWA_AMPLITUDE,
                seed=rng,
            )
        library = name.partition(":")[0]
        return as_optimizer(
            spec,
            seed=rng,
            x0=np.zeros(dim),
            sigma0=None if library in ("nevergrad", "optuna") else 1.0,
            bounds=(-RADIUS, RADIUS) if library == "optuna" else None,
            popsize=popsize,
            budget=share if library == "nevergrad" else None,
        )
    common: dict[str, Any] = {"dim": dim, "x0": np.zeros(dim), "popsize": popsize}
    if NevergradOptimizer.builds(spec):
        return as_optimizer(spec, seed=rng, budget=share, **common)
    if is_from("optuna", spec, "Study"):
        raise TypeError(
            "an optuna study holds one search, and each layer has its own; pass the study's "
            "sampler, or a name such as 'optuna:TPE'"
        )
    if OptunaOptimizer.builds(spec):
        return as_optimizer(copy.deepcopy(spec), bounds=(-RADIUS, RADIUS), **common)
    if isinstance(spec, Optimizer) or not callable(spec):
        if is_from("evotorch", spec):  # a state of its functional form, without a generator
            return as_optimizer(spec, dim=dim, popsize=popsize, seed=rng)
        if is_from("evosax", spec):  # the same
            return as_optimizer(spec, dim=dim, x0=np.zeros(dim), popsize=popsize, seed=rng)
        require_ask_and_tell(spec)
        return as_optimizer(copy.deepcopy(spec), dim=dim, popsize=popsize)
    if isinstance(spec, type) and hasattr(spec, "ask"):
        spec = _factory(spec)
    # A class or factory gets a plain seed, as most libraries want one.
    return as_optimizer(spec, dim=dim, seed=int(rng.integers(2**31)), popsize=popsize)


def _factory(cls: type) -> Callable[[int, int], Any]:
    """A class whose constructor takes dim and seed, as a factory."""
    return lambda dim, seed: cls(dim, seed)


def optimizer_name(spec: Any) -> str:
    """What an optimizer is called in titles and records."""
    return spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)
