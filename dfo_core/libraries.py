"""Libraries that are imported only where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


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
    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        if not f"{library}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks something itself
        raise ImportError(f"{who} needs {package}: pip install {package}") from None
