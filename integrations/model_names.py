"""What a model is called on the Hub and on other machines."""

from __future__ import annotations

import re
from pathlib import Path

from integrations.smollm2 import FOLDER, HUB_NAME
from integrations.smollm2 import NAME as SMOLLM2

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def hub_name(name: str) -> str | None:
    """The name on the Hub of a model by its ``name_or_path``; None if it came from a folder."""
    if portable_name(name) == SMOLLM2:
        return HUB_NAME
    on_hub = _HUB_NAME.fullmatch(name) and not Path(name).exists()
    return name if on_hub else None


def portable_name(name: str) -> str:
    """What `load_model` takes on any machine for a model by its ``name_or_path``.

    The cache's folder is another one elsewhere; a folder of the user's stays what it is.
    """
    return SMOLLM2 if Path(name).name == FOLDER else name
