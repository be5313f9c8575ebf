"""`as_optimizer`: a name, an object of another library or a factory becomes an Optimizer."""

from __future__ import annotations

import difflib
from typing import Any

from dfo_core.adapters import native as ours
from dfo_core.adapters.cmaes import CmaesOptimizer
from dfo_core.adapters.evosax import EvosaxOptimizer
from dfo_core.adapters.evotorch import EvotorchOptimizer
from dfo_core.adapters.foreign import is_from, refuse
from dfo_core.adapters.generic import AskTellOptimizer
from dfo_core.adapters.nevergrad import NevergradOptimizer
from dfo_core.adapters.optuna import OptunaOptimizer
from dfo_core.adapters.pycma import PycmaOptimizer
from dfo_core.bounds import infer_dim
from dfo_core.optimizer import Optimizer
from dfo_core.validation import as_positive_int

LIBRARIES: dict[str, Any] = {
    "pycma": PycmaOptimizer,
    "cmaes": CmaesOptimizer,
    "nevergrad": NevergradOptimizer,
    "optuna": OptunaOptimizer,
    "evosax": EvosaxOptimizer,
    "evotorch": EvotorchOptimizer,
}
NAMES = (
    *ours.NAMES,
    *("pycma", "cmaes", "cmaes:NAME"),
    *("nevergrad:NAME", "optuna:NAME", "evosax:NAME", "evotorch:NAME"),
)
BUILT = "set it where that is built"


def as_optimizer(
    obj: Any,
    dim: int | None = None,
    seed: Any = None,
    x0: Any = None,
    bounds: Any = None,
    popsize: int | None = None,
    budget: int | None = None,
    sigma0: float | None = None,
    target: float | None = None,
) -> Optimizer:
    """Make an Optimizer of a name, an object or a factory.

    Args:
        obj: One of

            - a name of ours: "cma-es", "sep-cma-es" (diagonal covariance), "lm-ma-es" (for
              thousands of coordinates), "ipop-cma-es", "bipop-cma-es" (with restarts), "lotfwa",
              "random", "quasi-random";
            - a name of another library's: "pycma"; "cmaes" or "cmaes:SepCMA", "cmaes:CMAwM",
              "cmaes:XNES", "cmaes:DXNESIC", "cmaes:MAPCMA"; "nevergrad:NAME" with any name of its
              registry; "optuna:TPE", "optuna:CmaEs", "optuna:GP", "optuna:QMC", "optuna:Random",
              "optuna:NSGAII"; "evosax:NAME" with any name of its table of algorithms;
              "evotorch:cem", "evotorch:pgpe";
            - an optimizer of ours, returned as it is;
            - a nevergrad optimizer class or configured optimizer (`ng.optimizers.OnePlusOne`), an
              optuna sampler or study;
            - an optimizer instance of nevergrad, pycma, cmaes or evosax, a state of evotorch's
              functional cem or pgpe;
            - any object with `ask` and `tell`, see `AskTellOptimizer`;
            - a factory: a function f(dim, seed) that returns any of these objects.

            What each library can and cannot do is in its adapter's docstring.
        dim: Number of coordinates; needed where x0 and bounds do not say it.
        seed: Seed of the generator; for a factory it is handed on.
        x0: (d,) start point. None: the middle of finite bounds, else zeros or what the bounds have
            next to them; "lotfwa", bounded "random" and "quasi-random", and optuna then have no
            start point.
        bounds: (lower, upper), each None, a number or (d,); "lotfwa" and optuna need them, evosax
            and evotorch know none.
        popsize: Candidates a generation; None for the optimizer's default.
        budget: Largest number of evaluations; set on an optimizer that exists already.
        sigma0: Initial standard deviation in the units of x. None: 0.3 times the width of the
            narrowest bound if there are finite bounds, else 1; nevergrad's own choice for its
            optimizers. "lotfwa", bounded "random" and "quasi-random" take none.
        target: Loss at which to stop; set on an optimizer that exists already.

    Returns:
        The optimizer.

    Raises:
        TypeError: If an object has no `ask` or no `tell`, or cannot be driven by them.
        ValueError: If a name is unknown, or an argument cannot have an effect because the object
            is built already or knows no such thing.
        ImportError: If a library is missing; says what to install.
    """
    arguments = {"x0": x0, "bounds": bounds, "popsize": popsize, "sigma0": sigma0, "seed": seed}
    budget = None if budget is None else as_positive_int("budget", budget)
    limits: dict[str, Any] = {"budget": budget, "target": target}
    if isinstance(obj, str):
        return _from_name(obj, dim, arguments, limits)
    for kind in (NevergradOptimizer, OptunaOptimizer):
        if kind.builds(obj):
            d = infer_dim(dim, x0, bounds)
            built: Optimizer = kind.from_arguments(obj, dim=d, **arguments, **limits)
            return built
    if isinstance(obj, type) and hasattr(obj, "ask"):
        raise TypeError(f"{obj.__name__} is a class: pass an instance, or a function f(dim, seed)")
    if is_factory(obj):
        del arguments["seed"]  # the factory's
        refuse("a factory", BUILT, **arguments)
        d = infer_dim(dim, x0, bounds)
        return as_optimizer(obj(d, seed), dim=d, **limits)
    opt = _from_object(obj, dim, arguments, limits)
    if dim is not None and opt.dim != dim:
        raise ValueError(f"{_name(obj)} has {opt.dim} coordinates; dim={dim} was asked for")
    return opt


def is_factory(obj: Any) -> bool:
    """Whether `as_optimizer` calls an object, f(dim, seed), to get an optimizer."""
    builds = any(kind.builds(obj) for kind in (NevergradOptimizer, OptunaOptimizer))
    return callable(obj) and not hasattr(obj, "ask") and not builds


def _from_name(
    name: str, dim: int | None, arguments: dict[str, Any], limits: dict[str, Any]
) -> Optimizer:
    key, _, method = name.partition(":")
    key = key.lower()
    if (f"{key}:NAME" if method else key) not in NAMES:
        close = difflib.get_close_matches(name.lower(), NAMES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown optimizer {name!r}; known are {', '.join(NAMES)}.{hint}")
    d = infer_dim(dim, arguments["x0"], arguments["bounds"])
    if key in LIBRARIES:
        named = {"method": method} if method else {}
        opt: Optimizer = LIBRARIES[key].from_arguments(**named, dim=d, **arguments, **limits)
        return opt
    return ours.build_native(key, dim=d, **arguments, **limits)


def _from_object(
    obj: Any, dim: int | None, arguments: dict[str, Any], limits: dict[str, Any]
) -> Optimizer:
    """Wrap an instance; arguments that came too late for it are refused."""

    def take(*names: str) -> dict[str, Any]:
        left = {name: value for name, value in arguments.items() if name not in names}
        refuse(_name(obj), BUILT, **left)
        given = {name: arguments[name] for name in names if arguments[name] is not None}
        return {**given, **limits}

    if is_from("nevergrad", obj, "Optimizer"):
        return NevergradOptimizer(obj, **take("seed"))
    if is_from("cma", obj, "CMAEvolutionStrategy"):
        return PycmaOptimizer(obj, **take())
    if is_from("cmaes", obj):
        return CmaesOptimizer(obj, **take("seed"))
    if is_from("evosax", obj, "EvolutionaryAlgorithm"):
        return EvosaxOptimizer(obj, **take("x0", "sigma0", "seed"))
    if is_from("evotorch", obj):
        return EvotorchOptimizer(obj, **take("popsize", "seed"))
    if isinstance(obj, Optimizer):
        take()
        if limits["budget"] is not None:
            obj.budget = limits["budget"]
        if limits["target"] is not None:
            obj.target = float(limits["target"])
        return obj
    return AskTellOptimizer(obj, dim=dim, **take("popsize"))


def _name(obj: Any) -> str:
    return f"an instance of {type(obj).__name__}"
