"""What `Optimizer.load_state_dict` does with the parts of a state that all optimizers share."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np


def check_shared(shared: Mapping[str, Any], dim: int) -> None:
    """Raise ValueError if the shared part of a state cannot be that of an optimizer.

    Args:
        shared: The candidates under way, the best point and the counts, by attribute.
        dim: Number of coordinates.
    """
    n = len(np.atleast_1d(shared["_told"]))
    arrays = {"_x": ((n, dim), "f"), "_losses": ((n,), "f"), "_told": ((n,), "b")}
    arrays["_best_x"] = ((dim,), "f")
    for name, (shape, kind) in arrays.items():
        value = shared[name]
        if not isinstance(value, np.ndarray) or (value.shape, value.dtype.kind) != (shape, kind):
            raise ValueError(f"{name} must be an array of shape {shape}; got {value!r}")
    if not np.isfinite(shared["_x"]).all():
        raise ValueError("_x must be finite")
    for name in ("_first_id", "_handed_out", "_nfev", "_nit", "_n_invalid"):
        value = shared[name]
        if not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} must be a whole number, not negative; got {value!r}")
    if shared["_handed_out"] > n:
        raise ValueError(f"_handed_out must be at most {n}; got {shared['_handed_out']}")
    if not isinstance(shared["_best_fun"], float) or np.isnan(shared["_best_fun"]):
        raise ValueError(f"_best_fun must be a number; got {shared['_best_fun']!r}")


def generator(state: Mapping[str, Any]) -> np.random.Generator:
    """Rebuild numpy's generator from its state, whichever bit generator it runs on.

    Args:
        state: What the bit generator's attribute `state` was.

    Returns:
        The generator.

    Raises:
        ValueError: If numpy has no such bit generator.
    """
    kind = getattr(np.random, str(state["bit_generator"]), None)
    if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
        raise ValueError(f"unknown bit generator {state['bit_generator']!r}")
    bit_generator = kind()
    bit_generator.state = deepcopy(dict(state))
    return np.random.Generator(bit_generator)


def same(a: Any, b: Any) -> bool:
    """Whether two settings are equal, arrays included."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return a is not None and b is not None and np.array_equal(a, b)
    return bool(a == b)
