"""`as_optimizer`: a name, an object of another library or a factory becomes an Optimizer."""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np

from dfo_core.adapters.foreign import is_from
from dfo_core.adapters.generic import AskTellOptimizer
from dfo_core.adapters.nevergrad import NevergradOptimizer
from dfo_core.adapters.pycma import PycmaOptimizer
from dfo_core.bounds import Box, infer_dim
from dfo_core.cma_parameters import Covariance
from dfo_core.cmaes import CMAES
from dfo_core.lotfwa import LoTFWA
from dfo_core.optimizer import Optimizer
from dfo_core.random_search import RandomSearch
from dfo_core.validation import FloatArray, as_positive_int, as_vector

NAMES = ("cma-es", "sep-cma-es", "lotfwa", "random", "pycma", "nevergrad:NAME")


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
            a name: "cma-es", "sep-cma-es" (diagonal covariance), "lotfwa", "random", "pycma" or
            "nevergrad:NAME" with any name of nevergrad's registry;
            one of our optimizers, returned as it is;
            a nevergrad optimizer class or configured optimizer, such as `ng.optimizers.OnePlusOne`;
            an optimizer instance of nevergrad or pycma;
            any object with `ask` and `tell`, see `AskTellOptimizer`;
            a factory: a function f(dim, seed) that returns any of these objects.
        dim: Number of coordinates; needed where x0 and bounds do not say it.
        seed: Seed of the generator; for a factory it is handed on.
        x0: (d,) start point. None: the middle of finite bounds, else zeros; "lotfwa" and bounded
            "random" then start uniformly.
        bounds: (lower, upper), each None, a number or (d,); "lotfwa" needs them.
        popsize: Candidates a generation; None for the optimizer's default.
        budget: Largest number of evaluations; set on an optimizer that exists already.
        sigma0: Initial standard deviation in the units of x. None: 0.3 times the width of the
            narrowest bound if there are finite bounds, else 1; nevergrad's own choice for its
            optimizers.
        target: Loss at which to stop; set on an optimizer that exists already.

    Returns:
        The optimizer.

    Raises:
        TypeError: If an object has no `ask` or no `tell`.
        ValueError: If a name is unknown, or an argument cannot have an effect because the object
            is built already.
        ImportError: If a library is missing; says what to install.
    """
    arguments = {"x0": x0, "bounds": bounds, "popsize": popsize, "sigma0": sigma0, "seed": seed}
    limits: dict[str, Any] = {"budget": budget, "target": target}
    if isinstance(obj, str):
        return _from_name(obj, dim, arguments, limits)
    if is_from("nevergrad", obj, "ConfiguredOptimizer") or _is_nevergrad_class(obj):
        d = infer_dim(dim, x0, bounds)
        return NevergradOptimizer.from_arguments(obj, dim=d, **arguments, **limits)
    if isinstance(obj, type) and hasattr(obj, "ask"):
        raise TypeError(f"{obj.__name__} is a class: pass an instance, or a function f(dim, seed)")
    if callable(obj) and not hasattr(obj, "ask"):
        _refuse(arguments, "a factory", "x0", "bounds", "popsize", "sigma0")
        d = infer_dim(dim, x0, bounds)
        return as_optimizer(obj(d, seed), dim=d, **limits)
    return _from_object(obj, dim, arguments, limits)


def _from_name(
    name: str, dim: int | None, arguments: dict[str, Any], limits: dict[str, Any]
) -> Optimizer:
    library, _, method = name.partition(":")
    key = library.lower()
    if key not in {known.partition(":")[0] for known in NAMES} or bool(method) != (
        key == "nevergrad"
    ):
        close = difflib.get_close_matches(name.lower(), NAMES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown optimizer {name!r}; known are {', '.join(NAMES)}.{hint}")
    bounds, popsize, seed = (arguments[k] for k in ("bounds", "popsize", "seed"))
    d = infer_dim(dim, arguments["x0"], bounds)
    if key == "nevergrad":
        return NevergradOptimizer.from_arguments(method, dim=d, **arguments, **limits)
    common: dict[str, Any] = {"seed": seed, **limits}
    if popsize is not None:
        common["popsize"] = popsize
    if key == "lotfwa":
        if bounds is None:
            raise ValueError('"lotfwa" needs bounds=(lower, upper)')
        _refuse(arguments, '"lotfwa"', "sigma0")
        return LoTFWA(bounds, arguments["x0"], dim=d, **common)
    x0, sigma0 = _start(d, arguments["x0"], arguments["sigma0"], bounds)
    if key == "random":
        if bounds is None:
            return RandomSearch(None, x0, sigma0=sigma0, **common)
        return RandomSearch(bounds, arguments["x0"], dim=d, **common)
    if key == "pycma":
        return PycmaOptimizer.from_arguments(x0, sigma0, bounds=bounds, **common)
    kind: Covariance = "diagonal" if key == "sep-cma-es" else "full"
    return CMAES(x0, sigma0, bounds=bounds, covariance=kind, **common)


def _start(dim: int, x0: Any, sigma0: float | None, bounds: Any) -> tuple[FloatArray, float]:
    """The start point and step size where the caller left them open."""
    box = None if bounds is None else Box.parse(bounds, dim)
    finite = box is not None and box.is_finite
    if x0 is not None:
        mean = as_vector("x0", x0, dim)
    elif box is not None and finite:
        mean = (box.lower + box.upper) / 2
    else:
        mean = np.zeros(dim)
    if sigma0 is None:
        sigma0 = 0.3 * float(box.width.min()) if box is not None and finite else 1.0
    return mean, sigma0


def _from_object(
    obj: Any, dim: int | None, arguments: dict[str, Any], limits: dict[str, Any]
) -> Optimizer:
    opt: Optimizer
    refused = ["x0", "bounds", "sigma0"]
    who = f"an instance of {type(obj).__name__}"
    if is_from("nevergrad", obj, "Optimizer"):
        _refuse(arguments, who, *refused, "popsize")
        opt = NevergradOptimizer(obj, seed=arguments["seed"], **limits)
    elif is_from("cma", obj, "CMAEvolutionStrategy"):
        _refuse(arguments, who, *refused, "popsize", "seed")
        opt = PycmaOptimizer(obj, **limits)
    elif isinstance(obj, Optimizer):
        _refuse(arguments, who, *refused, "popsize", "seed")
        opt = obj
        if limits["budget"] is not None:
            opt.budget = as_positive_int("budget", limits["budget"])
        if limits["target"] is not None:
            opt.target = float(limits["target"])
    else:
        _refuse(arguments, who, *refused, "seed")
        opt = AskTellOptimizer(obj, popsize=arguments["popsize"], dim=dim, **limits)
    if dim is not None and opt.dim != dim:
        raise ValueError(f"{who} has {opt.dim} coordinates; dim={dim} was asked for")
    return opt


def _is_nevergrad_class(obj: Any) -> bool:
    return isinstance(obj, type) and obj.__module__.split(".")[0] == "nevergrad"


def _refuse(arguments: dict[str, Any], who: str, *names: str) -> None:
    """Raise ValueError if an argument is given that would be ignored."""
    for name in names:
        if arguments[name] is not None:
            raise ValueError(f"{name} has no effect on {who}; set it where that is built")
