"""Which layer comes next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from integrations.errors import UserError, unknown


class Schedule(Protocol):
    """Names the layer of each visit; one visit is one generation of that layer's optimizer."""

    def layer(self, visit: int) -> int:
        """The layer of visit number ``visit``, which counts from zero."""


@dataclass(frozen=True)
class Sweep:
    """Sweeps over the layers, with a number of generations at each before the next.

    One generation a stop is the authors' order, generation-major and layer-minor.

    Attributes:
        layers: The layers in the order of a sweep.
        generations: Generations at each stop.
    """

    layers: Sequence[int]
    generations: int = 1

    def layer(self, visit: int) -> int:
        """The layer of visit number ``visit``, which counts from zero."""
        return self.layers[visit // self.generations % len(self.layers)]


SCHEDULES = ("generation-major", "block")
BLOCK_GENERATIONS = 3


def make_schedule(name: str, layers: Sequence[int]) -> Schedule:
    """A schedule by name.

    Args:
        name: ``"generation-major"``, one generation a layer in turn (the paper), or ``"block"``,
            three in a row.
        layers: The layers to tune, in the order of a sweep.

    Raises:
        UserError: If the name is unknown.
    """
    if name == "generation-major":
        return Sweep(tuple(layers))
    if name == "block":
        return Sweep(tuple(layers), BLOCK_GENERATIONS)
    raise unknown("schedule", name, SCHEDULES)


def choose_layers(layers: Sequence[int] | str | None, count: int) -> tuple[int, ...]:
    """The layers to tune, as indices from zero.

    Args:
        layers: Indices in the order of a sweep, negative ones from the end; ``"all"``, first to
            last; None for the upper half.
        count: Layers in the model.

    Raises:
        UserError: If there is none, one is out of range, or one is named twice.
    """
    if layers is None:
        return tuple(range(count // 2, count))
    if isinstance(layers, str):
        if layers != "all":
            raise UserError(f"layers must be indices or 'all'; got {layers!r}.")
        return tuple(range(count))
    for layer in layers:
        if not -count <= layer < count:
            raise UserError(f"layers has {layer}, but the model has layers 0 to {count - 1}.")
    chosen = tuple(int(layer) % count for layer in layers)
    if not chosen or len(set(chosen)) != len(chosen):
        raise UserError(f"layers must name one or more layers once each; got {list(layers)!r}.")
    return chosen
