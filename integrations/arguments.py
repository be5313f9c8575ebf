"""Arguments that are numbers, as Python's own: numpy's and others' come as well."""

from __future__ import annotations

import numbers
import operator
from typing import Any

from integrations.errors import UserError

MOST = 2**63  # what generators and counters take


def whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least so much.

    Raises:
        UserError: If it is none; with the argument's name.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number < MOST:
        raise UserError(f"{name} must be a whole number of {least} or more; got {value!r}.")
    return number


def whole_or_none(name: str, value: Any) -> int | None:
    """A whole number of at least one, or None."""
    return None if value is None else whole(name, value)


def positive(name: str, value: Any) -> float | None:
    """A positive number, or None.

    Raises:
        UserError: If it is neither; with the argument's name.
    """
    if value is None:
        return None
    number = real(value)
    if not isinstance(number, float) or not number > 0:
        raise UserError(f"{name} must be positive; got {value!r}.")
    return number


def real(value: Any) -> Any:
    """A real number as Python's own; anything else as it is, for others to refuse."""
    return float(value) if isinstance(value, numbers.Real) else value
