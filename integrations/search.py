"""The search: one optimizer a layer, each in turn against all the others, or one for all layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dfo_core import Optimizer
from dfo_core.validation import FloatArray
from integrations.adapter import Adapter
from integrations.candidates import project_candidates
from integrations.objective import Evaluator
from integrations.schedule import Schedule
from integrations.spaces import LayerSpace
from integrations.visit import Stop, Visit

Evaluate = Callable[[tuple[int, ...], FloatArray, Mapping[int, FloatArray]], FloatArray]
"""Losses (P,) of candidates z (P, d) of some layers, given the z (d,) in place of each layer."""


class LayerwiseSearch:
    """Tunes layers in turn, or at once; a candidate is put in place only if it lowers the loss.

    Each layer's optimizer sees its own vector z only, and a loss that also depends on what is in
    place in the other layers. So before a layer's generation its optimizer is told what its
    incumbent's loss is now, and other points that it holds on to are evaluated anew.

    Args:
        evaluator: Gives candidates their losses on the training prompts.
        spaces: Each layer's search space.
        optimizers: One for each of the schedule's stops.
        schedule: Which stop comes next.
        budget: Most candidates to evaluate.
        elsewhere: Gives candidates their losses in place of ``evaluator``, by their z alone.
        incumbent: False puts a layer's best candidate so far in place after each visit, as the
            authors' code does, though its loss may be of a time when other layers had other
            deltas. If that is an older one than the last generation's (an optimizer that averages
            noisy losses may change its mind), it is evaluated, and counts as a candidate.

    Attributes:
        adapter: The deltas in place.
        points: For each tuned layer the z in place, (d,).
        loss: Training loss with the deltas in place.
        evaluations: Candidates evaluated so far.
        invalid: How many of them had a loss that was NaN or infinite.
        start_loss: That of the frozen model.
        visits: The generations so far.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        spaces: Sequence[LayerSpace],
        optimizers: Mapping[Stop, Optimizer],
        schedule: Schedule,
        budget: int,
        elsewhere: Evaluate | None = None,
        incumbent: bool = True,
    ) -> None:
        self.evaluator = evaluator
        self.spaces = spaces
        self.optimizers = optimizers
        self.schedule = schedule
        self.budget = budget
        self.elsewhere = elsewhere
        self.incumbent = incumbent
        self.adapter = Adapter(evaluator.arch)
        # At z = 0 both factors, and with them the delta, are zero.
        self.points: dict[int, FloatArray] = {
            layer: np.zeros(spaces[layer].dim) for layer in schedule.layers
        }
        self.loss = self.start_loss = evaluator.loss_in_place(self.adapter)
        self.evaluations = 0
        self.invalid = 0
        self.visits: list[Visit] = []

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
            self._place_layer(adapter, layer, z)
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
        self.visits = list(visits)

    def visit(self) -> Visit:
        """Run one generation of the optimizer that comes next."""
        stop = self.schedule.next(self.visits, self.start_loss)
        optimizer = self.optimizers[stop]
        invalid_before = self.invalid
        best_z, best = self._refresh(stop) if self.incumbent else (self._in_place(stop), np.inf)
        generation = optimizer.nit
        while self.left > 0 and optimizer.nit == generation:
            batch = optimizer.ask()[: self.left]
            losses = self._evaluate(stop, batch.x)
            optimizer.tell(batch, losses)
            best_z, best = _best(batch.x, losses, best_z, best)
        if self.incumbent:
            improved = best < self.loss
            if improved:
                self.loss = best
                self._place(stop, best_z)
        else:
            improved = self._place_best_ever(stop, best_z, best)
        done = Visit(
            number=len(self.visits),
            layer=stop,
            evaluations=self.evaluations,
            best=best,
            loss=self.loss,
            improved=improved,
            invalid=self.invalid - invalid_before,
        )
        self.visits.append(done)
        return done

    def _place_best_ever(self, stop: Stop, z: FloatArray, best: float) -> bool:
        """Put an optimizer's best point in place, given the last generation's best.

        Returns:
            Whether that is another point than before.
        """
        ever = self.optimizers[stop].result
        if not np.isfinite(ever.fun):
            return False
        if np.array_equal(ever.x, self._in_place(stop)):
            return False
        self._place(stop, ever.x)
        if np.array_equal(ever.x, z):
            self.loss = best
        elif self.left > 0:
            (loss,) = self._evaluate(stop, ever.x[np.newaxis])
            self.loss = float(loss)
        return True

    def _in_place(self, stop: Stop) -> FloatArray:
        return np.concatenate([self.points[layer] for layer in self._layers(stop)])

    def _layers(self, stop: Stop) -> tuple[int, ...]:
        return tuple(self.schedule.layers) if stop is None else (stop,)

    def _place(self, stop: Stop, z: FloatArray) -> None:
        layers = self._layers(stop)
        for layer, part in zip(layers, np.split(z, len(layers)), strict=True):
            self.points[layer] = part.copy()
            self._place_layer(self.adapter, layer, part)

    def _place_layer(self, adapter: Adapter, layer: int, z: FloatArray) -> None:
        arch = self.evaluator.arch
        project_candidates(arch, self.spaces, (layer,), z[np.newaxis]).place(adapter)

    def _evaluate(self, stop: Stop, z: FloatArray) -> FloatArray:
        layers = self._layers(stop)
        if self.elsewhere is None:
            candidates = project_candidates(self.evaluator.arch, self.spaces, layers, z)
            losses = self.evaluator.losses(candidates, self.adapter)
        else:
            losses = self.elsewhere(layers, z, self.placed)
        self.evaluations += len(z)
        self.invalid += int(np.count_nonzero(~np.isfinite(losses)))
        return losses

    def _refresh(self, stop: Stop) -> tuple[FloatArray, float]:
        """Tell an optimizer what is known of its loss now that other layers may have changed.

        Returns:
            The best point evaluated for that and its loss; inf if none was.
        """
        optimizer = self.optimizers[stop]
        incumbent = self._in_place(stop)
        optimizer.reset_best()
        if not optimizer.accepts_foreign:
            return incumbent, np.inf
        others = optimizer.remembered
        others = others[(others != incumbent).any(axis=1)][: self.left]
        losses = self._evaluate(stop, others) if len(others) else np.empty(0)
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
