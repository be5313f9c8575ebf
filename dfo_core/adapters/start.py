"""Where a search starts, and how wide, if the caller leaves it open."""

from __future__ import annotations

from typing import Any

import numpy as np

from dfo_core.bounds import Box
from dfo_core.validation import FloatArray, as_positive_float, as_vector


def start(
    dim: int, x0: Any, sigma0: float | None, bounds: Any
) -> tuple[FloatArray, float, Box | None]:
    """Fill in the start point and the step size.

    Args:
        dim: Number of coordinates d.
        x0: (d,) start point; None for the middle of finite bounds, else zeros, or what the bounds
            have next to them.
        sigma0: Standard deviation in the units of x; None for 0.3 times the width of the narrowest
            bound if all are finite, else 1.
        bounds: (lower, upper), or None.

    Returns:
        The start point (d,), the step size and the parsed bounds, None if there are none.

    Raises:
        ValueError: If an argument has the wrong shape or value, or x0 is outside the bounds.
    """
    box = None if bounds is None else Box.parse(bounds, dim)
    finite = box is not None and box.is_finite
    mean = start_point(dim, x0, box)
    if sigma0 is not None:
        step = as_positive_float("sigma0", sigma0)
    else:
        step = 0.3 * float(box.width.min()) if box is not None and finite else 1.0
    return mean, step, box


def start_point(dim: int, x0: Any, box: Box | None) -> FloatArray:
    """The start point of `start` alone, (d,), within a box if there is one.

    Raises:
        ValueError: If x0 has the wrong shape or is outside the box.
    """
    if x0 is not None:
        given = as_vector("x0", x0, dim)
        return given if box is None else box.require_inside("x0", given)
    if box is None:
        return np.zeros(dim)
    if box.is_finite:
        return (box.lower + box.upper) / 2
    return np.clip(np.zeros(dim), box.lower, box.upper)
