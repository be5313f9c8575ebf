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
        x0: (d,) start point; None for the middle of finite bounds, else zeros.
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
    if x0 is not None:
        mean = as_vector("x0", x0, dim)
    else:
        mean = (box.lower + box.upper) / 2 if box is not None and finite else np.zeros(dim)
    if box is not None:
        box.require_inside("x0", mean)
    if sigma0 is not None:
        step = as_positive_float("sigma0", sigma0)
    else:
        step = 0.3 * float(box.width.min()) if box is not None and finite else 1.0
    return mean, step, box
