"""One labelled example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One labelled example.

    Attributes:
        fields: The texts that fill the pattern, such as ``{"text": "..."}``.
        label: Index into the task's label words.
    """

    fields: Mapping[str, str]
    label: int
