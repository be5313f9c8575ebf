"""The search: one optimizer a layer, each in turn against the deltas of all the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dfo_core import Optimizer
from dfo_core.validation import FloatArray
from integrations.adapter import Adapter
from integrations.objective import Evaluator
from integrations.schedule import Schedule
from integrations.spaces import LayerFactors, LayerSpace

Evaluate = Callable[[int, FloatArray, Mapping[int, FloatArray]], FloatArray]
"""Losses (P,) of a layer's candidates z (P, d), given the z (d,) in place of each other layer."""


@dataclass(frozen=True)
class Visit:
    """What one generation of one layer brought.

    Attributes:
        number: Which visit it was, from zero.
        layer: The layer.
        evaluations: Candidates evaluated since the search began, this visit's among them.
        best: Lowest loss among this visit's candidates; inf if none was finite.
        loss: Training loss with the deltas in place after the visit.
        improved: Whether a candidate took the layer's place.
        invalid: Candidates of this visit whose loss was NaN or infinite.
    """

    number: int
    layer: int
    evaluations: int
    best: float
    loss: float
    improved: bool
    invalid: int


class LayerwiseSearch:
    """Tunes layers in turn; a candidate takes a layer's place only if it lowers the loss.

    Each layer's optimizer sees its own vector z only, and a loss that also depends on what is in
    place in the other layers. So before a layer's generation its optimizer is told what its
    incumbent's loss is now, and other points that it holds on to are evaluated anew.

    Args:
        evaluator: Gives candidates their losses on the training prompts.
        spaces: Each layer's search space.
        optimizers: One for each layer that is tuned.
        schedule: Which layer comes next.
        budget: Most candidates to evaluate.
        elsewhere: Gives candidates their losses in place of ``evaluator``, by their z alone.

    Attributes:
        adapter: The deltas in place.
        points: For each tuned layer the z in place, (d,).
        loss: Training loss with the deltas in place.
        evaluations: Candidates evaluated so far.
        invalid: How many of them had a loss that was NaN or infinite.
        visits: Generations so far.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        spaces: Sequence[LayerSpace],
        optimizers: Mapping[int, Optimizer],
        schedule: Schedule,
        budget: int,
        elsewhere: Evaluate | None = None,
    ) -> None:
        self.evaluator = evaluator
        self.spaces = spaces
        self.optimizers = optimizers
        self.schedule = schedule
        self.budget = budget
        self.elsewhere = elsewhere
        self.adapter = Adapter(evaluator.arch)
        # At z = 0 both factors, and with them the delta, are zero.
        self.points: dict[int, FloatArray] = {
            layer: np.zeros(spaces[layer].dim) for layer in optimizers
        }
        self.loss = evaluator.loss_in_place(self.adapter)
        self.evaluations = 0
        self.invalid = 0
        self.visits = 0

    @property
    def left(self) -> int:
        """Evaluations left of the budget."""
        return self.budget - self.evaluations

    @property
    def placed(self) -> dict[int, FloatArray]:
        """The z in place (d,) of each layer that has a delta."""
        factors = self.adapter.factors
        return {layer: z for layer, z in self.points.items() if factors[layer] is not None}

    def adapter_of(self, points: Mapping[int, FloatArray]) -> Adapter:
        """The deltas of some layers' z (d,), the other layers having none."""
        adapter = Adapter(self.evaluator.arch)
        for layer, z in points.items():
            adapter.place(layer, self._factors(layer, z[np.newaxis]))
        return adapter

    def restore(self, points: Mapping[int, FloatArray], visits: Sequence[Visit]) -> None:
        """Continue from where a search with these optimizers was.

        Args:
            points: What `placed` was.
            visits: All that `visit` returned.
        """
        self.points.update(points)
        self.adapter = self.adapter_of(points)
        self.loss, self.evaluations = visits[-1].loss, visits[-1].evaluations
        self.invalid = sum(visit.invalid for visit in visits)
        self.visits = len(visits)

    def visit(self) -> Visit:
        """Run one generation of the next layer's optimizer."""
        layer = self.schedule.layer(self.visits)
        optimizer = self.optimizers[layer]
        invalid_before = self.invalid
        best_z, best = self._refresh(layer)
        generation = optimizer.nit
        while self.left > 0 and optimizer.nit == generation:
            batch = optimizer.ask()[: self.left]
            losses = self._evaluate(layer, batch.x)
            optimizer.tell(batch, losses)
            best_z, best = _best(batch.x, losses, best_z, best)
        improved = best < self.loss
        if improved:
            self.loss = best
            self._place(layer, best_z)
        self.visits += 1
        return Visit(
            number=self.visits - 1,
            layer=layer,
            evaluations=self.evaluations,
            best=best,
            loss=self.loss,
            improved=improved,
            invalid=self.invalid - invalid_before,
        )

    def _place(self, layer: int, z: FloatArray) -> None:
        self.points[layer] = z.copy()
        self.adapter.place(layer, self._factors(layer, z[np.newaxis]))

    def _factors(self, layer: int, z: FloatArray) -> LayerFactors:
        model = self.evaluator.arch.model
        return self.spaces[layer].factors(z, model.device, model.dtype)

    def _evaluate(self, layer: int, z: FloatArray) -> FloatArray:
        if self.elsewhere is None:
            losses = self.evaluator.evaluate(layer, self._factors(layer, z), self.adapter)
        else:
            losses = self.elsewhere(layer, z, self.placed)
        self.evaluations += len(z)
        self.invalid += int(np.count_nonzero(~np.isfinite(losses)))
        return losses

    def _refresh(self, layer: int) -> tuple[FloatArray, float]:
        """Tell a layer's optimizer what is known of its loss now that other layers changed.

        Returns:
            The best point evaluated for that and its loss; inf if none was.
        """
        optimizer = self.optimizers[layer]
        incumbent = self.points[layer]
        optimizer.reset_best()
        if not optimizer.accepts_foreign:
            return incumbent, np.inf
        others = optimizer.remembered
        others = others[(others != incumbent).any(axis=1)][: self.left]
        losses = self._evaluate(layer, others) if len(others) else np.empty(0)
        optimizer.tell_foreign(
            np.concatenate([incumbent[np.newaxis], others]), np.append(self.loss, losses)
        )
        return _best(others, losses, incumbent, np.inf)


def _best(
    z: FloatArray, losses: FloatArray, best_z: FloatArray, best: float
) -> tuple[FloatArray, float]:
    """The best of some points (n, d) with losses (n,) and of the best before."""
    finite = np.where(np.isfinite(losses), losses, np.inf)
    if len(finite) and finite.min() < best:
        return z[finite.argmin()], float(finite.min())
    return best_z, best
