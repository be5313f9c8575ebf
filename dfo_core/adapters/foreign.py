"""What the adapters of other libraries share."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from dfo_core.optimizer import Optimizer
from dfo_core.validation import FloatArray


class ForeignOptimizer(Optimizer):
    """An optimizer of another library behind the protocol of this one.

    Batches, partial and late tells, budget, best so far and the counts are the base class's; the
    other library sees each generation whole, in the order it asked for. Its losses are finite: a
    NaN or infinite one is replaced by the smallest number above every finite loss told so far, so
    that it ranks worst and does not distort what a model or an average makes of it.

    State cannot be saved, as other libraries offer pickle at most, and foreign points are not
    taken: `supports_state` and `accepts_foreign` are False and both raise NotImplementedError.
    """

    supports_state: ClassVar[bool] = False
    _worst = -np.inf

    def _finite(self, losses: FloatArray) -> list[float]:
        """Return losses (n,) as floats, with the infinite ones replaced."""
        finite = losses[np.isfinite(losses)]
        if finite.size:
            self._worst = max(self._worst, float(finite.max()))
        worst = 0.0 if self._worst == -np.inf else self._worst
        replaced: list[float] = np.where(
            np.isfinite(losses), losses, np.nextafter(worst, np.inf)
        ).tolist()
        return replaced


def is_from(library: str, obj: Any, class_name: str | None = None) -> bool:
    """Whether `obj` is an instance of a class of `library`, which need not be imported.

    Args:
        library: Top-level module name.
        obj: Any object.
        class_name: The class or one of its bases must have this name too.

    Returns:
        True if one of the object's classes fits.
    """
    return any(
        cls.__module__.split(".")[0] == library and class_name in (None, cls.__name__)
        for cls in type(obj).__mro__
    )


def require(library: str, package: str, who: str) -> Any:
    """Import a library that is needed only here.

    Args:
        library: Module to import.
        package: What to install if it is missing.
        who: What needs it, for the error message.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed; says what to install.
    """
    from importlib import import_module

    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise ImportError(f"{who} needs {package}: pip install {package}") from None
