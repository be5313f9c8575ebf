"""What the adapters of other libraries share."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any, ClassVar

import numpy as np

from dfo_core.optimizer import Optimizer
from dfo_core.validation import FloatArray

UNKNOWN_WORST = 1e18  # stands for an invalid loss while no finite one is known


class ForeignOptimizer(Optimizer):
    """An optimizer of another library behind the protocol of this one.

    Batches, partial and late tells, budget, best so far and the counts are the base class's; the
    other library sees each generation whole, in the order it asked for. Its losses are finite: a
    NaN or infinite one is replaced by the smallest number above every finite loss told so far, or
    by 1e18 before the first of those, so that it ranks worst and does not distort what a model or
    an average makes of it. (optuna is told of a failed trial.)

    State cannot be saved, as other libraries offer pickle at most, and foreign points are not
    taken: `supports_state` and `accepts_foreign` are False and both raise NotImplementedError.

    The adapter of a library has `from_arguments`, which builds its object too. What that cannot
    take (bounds, a step size, a start point) is a ValueError, never ignored.
    """

    supports_state: ClassVar[bool] = False
    # What the other library computes in: losses that are closer than this resolves are equal to it.
    _precision: type[np.floating[Any]] = np.float64
    _worst = -np.inf

    def _finite(self, losses: FloatArray) -> list[float]:
        """Return losses (n,) as finite floats of the library's precision."""
        largest = float(np.finfo(self._precision).max)
        finite = np.isfinite(losses)
        values = np.clip(losses, -largest, largest).astype(self._precision)
        if finite.any():
            self._worst = max(self._worst, float(values[finite].max()))
        worst = self._precision(UNKNOWN_WORST if self._worst == -np.inf else self._worst)
        if worst < largest:  # the number above the largest would be infinite
            worst = np.nextafter(worst, self._precision(np.inf))
        values[~finite] = worst
        replaced: list[float] = values.tolist()
        return replaced


def is_from(library: str, obj: Any, *class_names: str) -> bool:
    """Whether `obj` is an instance of a class of `library`, which need not be imported.

    Args:
        library: Top-level module name.
        obj: Any object.
        class_names: The class or one of its bases must have one of these names; any if none given.

    Returns:
        True if one of the object's classes fits.
    """
    return any(
        cls.__module__.split(".")[0] == library and (not class_names or cls.__name__ in class_names)
        for cls in type(obj).__mro__
    )


def require_known(library: str, name: str, known: Collection[str], where: str) -> None:
    """Raise ValueError if a library has no method of that name.

    Args:
        library: Its name, for the error message.
        name: What the caller asked for.
        known: The names there are.
        where: Where they are listed, for the error message.
    """
    if name not in known:
        # In the library's own case but compared without it, as that is the commonest slip.
        by_lower = {each.lower(): each for each in known}
        close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
        hint = f"; close ones are {', '.join(by_lower[each] for each in close)}" if close else ""
        raise ValueError(f"{library} has no optimizer {name!r}{hint}. {where}")


def refuse(who: str, why: str, **arguments: Any) -> None:
    """Raise ValueError if an argument is given that would have no effect.

    Args:
        who: What it would have no effect on.
        why: What to do instead.
        arguments: The arguments by name; None counts as not given.
    """
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name} has no effect on {who}; {why}")


def draw_seed(rng: np.random.Generator) -> int:
    """Draw a seed (0 <= seed < 2**31) that every library takes."""
    return int(rng.integers(2**31))
