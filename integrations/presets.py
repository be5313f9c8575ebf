"""Settings that go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from integrations.errors import unknown
from integrations.imported import is_import

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "layers": "all",
        "targets": ("q", "k"),
        "init": "paper",
        "freeze_a": False,
        "incumbent": False,
        "dev_every": 100,
    },
}
"""Arguments of `integrations.tune` by the preset's name.

``"paper"`` is the setting of Jin, Liu & Tan (arXiv 2403.01754) and of their code, where the paper
says nothing: query and key of all layers, from the first to the last, A and B searched for, Eq. 6
for the projections, each layer's best candidate so far in place, a look at the development set
every 100 evaluations, and 20 candidates a generation, 5 for LoTFWA; an optimizer of
one's own has its own.
Rank 4, d = 500, 6,000 evaluations and a patience of 1,500 are defaults anyway.
"""

PAPER_POPSIZE = 20


def with_preset(name: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `integrations.tune` with a preset in place of defaults.

    Args:
        name: A name in `PRESETS`.
        given: All arguments; those that differ from their defaults stay.
        defaults: Default of each that has one.

    Raises:
        UserError: If the name is unknown.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    preset = dict(PRESETS[name])
    optimizer = given["optimizer"]
    if isinstance(optimizer, str) and optimizer != "lotfwa" and not is_import(optimizer):
        preset["popsize"] = PAPER_POPSIZE
    changed = {key: value for key, value in preset.items() if _same(given[key], defaults[key])}
    return {key: given[key] for key in defaults if key != "preset"} | changed


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))
