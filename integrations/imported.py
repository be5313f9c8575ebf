"""Objects of the user's own that are named by where they can be imported from."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from integrations.errors import UserError


def is_import(text: str) -> bool:
    """Whether a text reads ``module:name``, which names on the Hub, with their /, do not."""
    module, _, name = text.partition(":")
    return name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def imported(spec: str, option: str, expected: str) -> Any:
    """What ``module:name`` stands for; modules in the current folder come first.

    Args:
        spec: The module's name and the object's in it.
        option: What is being chosen, for the error.
        expected: What the object has to be, for the error.

    Raises:
        UserError: If there is no such module, or nothing in it of that name.
    """
    module, _, name = spec.partition(":")
    here = os.getcwd()
    if sys.path[0] != here:  # which stays, so that worker processes find what they are sent
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{option} {spec!r}: {error}; expected a known name, or module:name of {expected} that "
            "can be imported from here."
        ) from error
