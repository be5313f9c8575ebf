"""What is tuned next: a layer, or all of them at once."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from integrations.errors import UserError, unknown
from integrations.visit import Stop, Visit


class Schedule(Protocol):
    """Names what each visit tunes; one visit is one generation of one optimizer.

    It keeps no state: what comes next follows from the visits so far, so that a run that goes on
    after an interruption goes on as it would have.
    """

    @property
    def layers(self) -> Sequence[int]:
        """The tuned layers, in the order of a sweep."""

    @property
    def stops(self) -> Sequence[Stop]:
        """What has an optimizer of its own: each of the layers, or None for all of them."""

    def next(self, visits: Sequence[Visit], start_loss: float) -> Stop:
        """What the next visit tunes.

        Args:
            visits: All visits so far.
            start_loss: Training loss before the first of them.
        """


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

    @property
    def stops(self) -> Sequence[Stop]:
        """Each layer has an optimizer of its own."""
        return self.layers

    def next(self, visits: Sequence[Visit], start_loss: float) -> int:
        """The layer of the next visit; see `Schedule.next`."""
        return self.layers[len(visits) // self.generations % len(self.layers)]


@dataclass(frozen=True)
class Joint:
    """One optimizer for the vectors z of all layers, side by side.

    Attributes:
        layers: The layers.
    """

    layers: Sequence[int]

    @property
    def stops(self) -> Sequence[Stop]:
        """All layers have one optimizer."""
        return (None,)

    def next(self, visits: Sequence[Visit], start_loss: float) -> None:
        """All layers; see `Schedule.next`."""


@dataclass(frozen=True)
class CostAware:
    """Sweeps in which layers come the more often, the more a visit lowers the loss for its cost.

    Adaptive coordinate frequencies (Glasmachers & Dogan, arXiv 1401.3737) for blocks of coordinates
    that differ in cost. Each layer has a preference p, 1 at first. A visit that lowers the loss by
    Δ for a work w, which is candidates times layers that run, changes its layer's preference to

        p exp(c (Δ / w / r - 1))

    where c = 1/5 and r is the mean of Δ / w that fades by 1/n a visit, n being the number of
    layers. The first sweep visits each layer once and gives r its start. A later one visits layer
    l on average n p_l / Σ p times; what is left of a visit counts in the next sweep.

    Two things differ, as a layer sees dozens of visits and not thousands. Preferences are kept
    between 1/5 and 5, not 1/20 and 20, so that none is left out for long. And within a sweep visits
    keep the layers' order and are not shuffled: hidden states kept for one layer serve the next.

    Work is counted and not timed, so a run can be repeated.

    Attributes:
        layers: The layers in the order of a sweep.
        costs: For each of them the cost of a candidate, in any unit.
    """

    layers: Sequence[int]
    costs: Mapping[int, float]

    RATE = 1 / 5
    LEAST, MOST = 1 / 5, 5.0

    @property
    def stops(self) -> Sequence[Stop]:
        """Each layer has an optimizer of its own."""
        return self.layers

    def next(self, visits: Sequence[Visit], start_loss: float) -> int:
        """The layer of the next visit; see `Schedule.next`."""
        count = len(self.layers)
        preferences, owed = dict.fromkeys(self.layers, 1.0), dict.fromkeys(self.layers, 0.0)
        left = self._sweep(preferences, owed)
        usual, loss, evaluations = 0.0, start_loss, 0
        for number, visit in enumerate(visits):
            layer = left.pop(0)
            work = self.costs[layer] * max(1, visit.evaluations - evaluations)
            gain = (loss - visit.loss) / work
            loss, evaluations = visit.loss, visit.evaluations
            if number < count:
                usual += gain / count
            else:
                preferences[layer] = self._changed(preferences[layer], gain, usual)
                usual += (gain - usual) / count
            if not left:
                left = self._sweep(preferences, owed)
        return left[0]

    def _changed(self, preference: float, gain: float, usual: float) -> float:
        if usual <= 0:  # nothing to compare with yet
            return preference
        exponent = self.RATE * (gain / usual - 1)
        grown = preference * math.exp(min(exponent, math.log(self.MOST / self.LEAST)))
        return min(max(grown, self.LEAST), self.MOST)

    def _sweep(self, preferences: Mapping[int, float], owed: dict[int, float]) -> list[int]:
        """The visits of a sweep; ``owed`` is what part of a visit each layer is due beside them."""
        total = sum(preferences.values())
        visits: list[int] = []
        while not visits:  # what is owed to all of them may fall short of one visit by rounding
            for layer in self.layers:
                owed[layer] += len(self.layers) * preferences[layer] / total
                times = int(owed[layer])
                owed[layer] -= times
                visits += times * [layer]
        return visits


SCHEDULES = ("generation-major", "block", "cost-aware", "joint")
BLOCK_GENERATIONS = 3

HEAD_COST = 1
"""What of a forward pass is not in a layer, the head foremost, counted as so many layers."""


def make_schedule(name: str, layers: Sequence[int], count: int) -> Schedule:
    """A schedule by name.

    Args:
        name: ``"generation-major"``, one generation a layer in turn (the paper); ``"block"``,
            three in a row; ``"cost-aware"``, more generations where they lower the loss most for
            what they cost (`CostAware`); or ``"joint"``, one optimizer for all layers at once.
        layers: The layers to tune, in the order of a sweep.
        count: Layers in the model; those before a tuned one don't run.

    Raises:
        UserError: If the name is unknown.
    """
    layers = tuple(layers)
    if name == "generation-major":
        return Sweep(layers)
    if name == "block":
        return Sweep(layers, BLOCK_GENERATIONS)
    if name == "cost-aware":
        return CostAware(layers, {layer: count - layer + HEAD_COST for layer in layers})
    if name == "joint":
        return Joint(layers)
    raise unknown("schedule", name, SCHEDULES)


def coordinates(plan: Schedule, dim: int) -> int:
    """How many coordinates each stop's optimizer has: those of its layers, ``dim`` each."""
    return dim * len(plan.layers) // len(plan.stops)


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
    try:
        layers = [operator.index(layer) for layer in layers]
    except TypeError:
        raise UserError(f"layers must be indices or 'all'; got {layers!r}.") from None
    for layer in layers:
        if not -count <= layer < count:
            raise UserError(f"layers has {layer}, but the model has layers 0 to {count - 1}.")
    chosen = tuple(layer % count for layer in layers)
    if not chosen or len(set(chosen)) != len(chosen):
        raise UserError(f"layers must name one or more layers once each; got {list(layers)!r}.")
    return chosen
