"""Checks of what callers hand in: each returns a clean array or says what is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def as_float_array(name: str, value: Any) -> FloatArray:
    """Return `value` as a float64 array.

    Args:
        name: What the value is, for the error message.
        value: Anything numpy turns into numbers (lists, arrays, CPU tensors).

    Returns:
        A float64 array of the value's shape; not necessarily a copy.

    Raises:
        ValueError: If the value does not hold real numbers.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return array.astype(np.float64, copy=False)
        if array.dtype.kind != "O":
            raise TypeError(f"dtype {array.dtype}")
        # One by one, as numpy would turn None into NaN.
        return np.array([float(v) for v in array.flat]).reshape(array.shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{name} must be real numbers; got {type(value).__name__} ({error})"
        ) from None


def as_vector(name: str, value: Any, dim: int | None = None) -> FloatArray:
    """Return `value` as a new vector of finite float64 numbers.

    Args:
        name: What the value is, for the error message.
        value: An array-like of shape (dim,).
        dim: The length to insist on; any length above zero if None.

    Returns:
        A copy of shape (dim,).

    Raises:
        ValueError: If the shape is another one or a coordinate is not finite.
    """
    vector = as_float_array(name, value).copy()
    if vector.ndim != 1 or vector.size == 0 or (dim is not None and vector.size != dim):
        expected = "(d,) with d >= 1" if dim is None else f"({dim},)"
        raise ValueError(f"{name} must have shape {expected}; got shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError(f"{name} must be finite; got {vector[~np.isfinite(vector)][0]} in it")
    return vector


def as_points(name: str, value: Any, dim: int) -> FloatArray:
    """Return `value` as a new (n, dim) array of finite points; one point may come as (dim,).

    Args:
        name: What the value is, for the error message.
        value: An array-like of shape (n, dim) or (dim,).
        dim: Number of coordinates of a point.

    Returns:
        A C-contiguous copy of shape (n, dim).

    Raises:
        ValueError: If the shape is another one or a coordinate is not finite.
    """
    points = as_float_array(name, value)
    if points.ndim == 1 and points.size == dim:
        points = points[np.newaxis]
    if points.ndim != 2 or points.shape[1] != dim:
        raise ValueError(f"{name} must have shape (n, {dim}) or ({dim},); got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError(f"{name} must be finite; got {points[~np.isfinite(points)][0]} in it")
    return np.array(points, order="C")


def as_positive_int(name: str, value: Any, minimum: int = 1) -> int:
    """Return `value` as an int that is at least `minimum`.

    Args:
        name: What the value is, for the error message.
        value: An int, a numpy integer, or a float without fraction (`1e4`).
        minimum: The smallest value allowed.

    Returns:
        The value as a Python int.

    Raises:
        ValueError: If it is no whole number or too small.
    """
    try:
        whole = int(value)
        exact = whole == value
    except (TypeError, ValueError, OverflowError):
        exact, whole = False, 0
    if not exact or whole < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}; got {value!r}")
    return whole


def as_positive_float(name: str, value: Any) -> float:
    """Return `value` as a finite float above zero.

    Args:
        name: What the value is, for the error message.
        value: A real number.

    Returns:
        The value as a Python float.

    Raises:
        ValueError: If it is no number, not finite, or not above zero.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not 0.0 < number < float("inf"):
        raise ValueError(f"{name} must be a finite number above zero; got {value!r}")
    return number
