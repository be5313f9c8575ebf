"""LoTFWA, the loser-out tournament based fireworks algorithm."""

from __future__ import annotations

from math import inf
from typing import Any, ClassVar

import numpy as np

from dfo_core.bounds import Box, infer_dim
from dfo_core.optimizer import Optimizer
from dfo_core.validation import (
    FloatArray,
    IntArray,
    as_float_array,
    as_positive_float,
    as_positive_int,
    as_vector,
)

DEFAULT_POPSIZE = 305  # the paper's 300 sparks, and a guiding spark for each of 5 fireworks
MIN_SPARKS = 2  # a guiding spark is the difference of at least one good and one bad spark
MIN_SHARE = 5  # evaluations a firework should have in a generation


class LoTFWA(Optimizer):
    """Loser-out tournament based fireworks algorithm.

    Li & Tan, Loser-Out Tournament-Based Fireworks Algorithm for Multimodal Function Optimization,
    IEEE Transactions on Evolutionary Computation 22(5), 2018; guiding sparks from Li, Zheng & Tan,
    The Effect of Information Utilization: Introducing a Novel Guiding Spark in the Fireworks
    Algorithm, IEEE TEVC 21(1), 2017.

    How evaluations are spent. Once, at the start, each firework is evaluated. A generation then
    costs `popsize` evaluations and comes as two batches: `popsize - fireworks` sparks, shared
    among the fireworks, and one guiding spark a firework. A firework that lost the tournament is
    moved; its new place is evaluated in a batch of its own before the next generation's sparks, so
    that a generation with r restarts costs r more.

    Small populations. A firework should have at least 5 evaluations in a generation, 4 sparks and
    its guiding spark, so `fireworks` is min(5, popsize // 5) and at least 1 unless given. With
    popsize=5 there is one firework: 4 sparks are evaluated, then 1 guiding spark, its place
    plus the best spark minus the worst; it moves to the best of the five if that is better than
    itself. With a single firework there is no tournament, so it never restarts.

    Restarts need to know how many generations are left. `generations` says how many there are in
    all; otherwise it follows from the budget as (budget - nfev) // popsize. Without either there
    is no horizon, every firework is given the time to catch up, and none restarts.

    Foreign points (`tell_foreign`): a loss for exactly a firework's place replaces that firework's
    loss (told before the first `ask`, this saves its evaluation). Any other point replaces the
    worst firework, if it is better, and starts with the starting amplitude; a firework without a
    loss counts as worst, the last such first. Where the objective shifts between generations,
    evaluate `remembered` anew and tell it this way, or fireworks defend losses that no longer hold.

    Stop reasons: "generations"; "amplitude", once no firework can move any more, as all amplitudes
    are below the resolution of their places (of those near zero: of the box's width squared).

    Args:
        bounds: (lower, upper), each a finite number or (d,).
        x0: (d,) place of the first firework; the others are drawn uniformly, as is the first
            without it.
        dim: Number of coordinates d, needed if neither `bounds` nor `x0` says it.
        popsize: Evaluations a generation without restarts, at least 3.
        fireworks: Number of fireworks mu.
        alpha: Power law of the sharing: the firework of rank r gets sparks in proportion to
            r^-alpha, and at least 2. Zero, as both public implementations have it, shares equally.
        amplitude0: Starting amplitude, a number or (d,), in the units of x; None for upper - lower.
        amplification: Factor on the amplitude of a firework that improved, above 1.
        reduction: Factor on that of one that did not, below 1.
        guiding_ratio: Fraction of a firework's sparks that count as its best, and as its worst.
        generations: Number of generations; the optimizer stops after them.
        seed: Seed of the generator.
        budget: Largest number of evaluations.
        target: Loss at which to stop.

    Raises:
        ValueError: If an argument has the wrong shape or value, or `popsize` is too small for
            `fireworks`.
    """

    accepts_foreign: ClassVar[bool] = True
    _state_fields = (
        *("_places", "_fitness", "_amplitudes", "_generation", "_phase", "_owners"),
        *("_sparks", "_spark_losses"),
    )

    def __init__(
        self,
        bounds: Any,
        x0: Any = None,
        *,
        dim: int | None = None,
        popsize: int = DEFAULT_POPSIZE,
        fireworks: int | None = None,
        alpha: float = 0.0,
        amplitude0: Any = None,
        amplification: float = 1.2,
        reduction: float = 0.9,
        guiding_ratio: float = 0.2,
        generations: int | None = None,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> None:
        super().__init__(infer_dim(dim, x0, bounds), seed=seed, budget=budget, target=target)
        self._box = Box.parse(bounds, self.dim).require_finite("LoTFWA")
        self.popsize = as_positive_int("popsize", popsize, minimum=MIN_SPARKS + 1)
        if fireworks is None:
            fireworks = max(1, min(5, self.popsize // MIN_SHARE))
        self.fireworks = as_positive_int("fireworks", fireworks)
        if self.popsize < self.fireworks * (MIN_SPARKS + 1):
            raise ValueError(
                f"popsize={popsize} is too small for fireworks={fireworks}: each needs "
                f"{MIN_SPARKS} sparks and a guiding spark; lower fireworks or raise popsize to "
                f"{self.fireworks * (MIN_SPARKS + 1)}"
            )
        self.alpha = float(alpha)
        if not 0 <= self.alpha < inf:
            raise ValueError(f"alpha must be finite and not negative; got {alpha!r}")
        self.amplification = as_positive_float("amplification", amplification)
        self.reduction = as_positive_float("reduction", reduction)
        if self.amplification <= 1 or self.reduction >= 1:
            raise ValueError(
                "amplification must be above 1 and reduction below 1; "
                f"got {amplification!r} and {reduction!r}"
            )
        self.guiding_ratio = as_positive_float("guiding_ratio", guiding_ratio)
        if self.guiding_ratio > 0.5:
            raise ValueError(f"guiding_ratio must be at most 0.5; got {guiding_ratio!r}")
        self.generations = (
            None if generations is None else as_positive_int("generations", generations)
        )
        self._amplitude0 = self._starting_amplitude(amplitude0)

        self._places = self._box.uniform(self.rng, self.fireworks)
        if x0 is not None:
            self._places[0] = self._box.require_inside("x0", as_vector("x0", x0, self.dim))
        self._fitness: FloatArray = np.full(self.fireworks, np.nan)  # NaN: not evaluated yet
        self._amplitudes: FloatArray = np.tile(self._amplitude0, (self.fireworks, 1))
        self._generation = 0
        self._phase = "start"  # what the current batch holds: "places", "sparks" or "guides"
        self._owners: IntArray = np.empty(0, dtype=np.int64)  # whose a candidate is
        self._sparks: FloatArray = np.empty((0, self.dim))
        self._spark_losses: FloatArray = np.empty(0)

    def _starting_amplitude(self, amplitude0: Any) -> FloatArray:
        if amplitude0 is None:
            return self._box.width
        amplitude = as_float_array("amplitude0", amplitude0)
        if amplitude.shape not in ((), (self.dim,)) or not (amplitude > 0).all():
            raise ValueError(
                f"amplitude0 must be a positive number or have shape ({self.dim},) with positive "
                f"entries; got {amplitude0!r}"
            )
        return as_vector("amplitude0", np.broadcast_to(amplitude, (self.dim,)))

    # -- one generation: places that lack a loss, sparks, guiding sparks ----------------------

    def _sample(self) -> FloatArray:
        if self._phase == "sparks":
            self._phase = "guides"
            return self._guide()
        new = np.flatnonzero(np.isnan(self._fitness))
        if new.size:
            self._phase, self._owners = "places", new
            return self._places[new]
        self._phase = "sparks"
        return self._explode()

    def _update(self, x: FloatArray, losses: FloatArray) -> None:
        if self._phase == "places":
            for i, place, loss in zip(self._owners, x, losses, strict=True):
                self._evaluated(i, place, loss)
        elif self._phase == "sparks":
            self._sparks, self._spark_losses = x, losses
        else:
            self._select(x, losses)

    def _explode(self) -> FloatArray:
        """Sparks of every firework: X_i + A_i U(-1, 1)^d."""
        self._owners = np.repeat(np.arange(self.fireworks), self._share_sparks())
        offsets = self.rng.uniform(-1.0, 1.0, (len(self._owners), self.dim))
        return self._map_inside(
            self._places[self._owners] + self._amplitudes[self._owners] * offsets
        )

    def _share_sparks(self) -> IntArray:
        """Sparks of each firework, in proportion to rank^-alpha, summing to the whole."""
        total = self.popsize - self.fireworks
        rank = np.empty(self.fireworks)
        rank[np.argsort(self._fitness, kind="stable")] = np.arange(1, self.fireworks + 1)
        quota = rank**-self.alpha
        quota *= total / quota.sum()
        sparks: IntArray = np.maximum(np.floor(quota).astype(np.int64), MIN_SPARKS)
        # Hand out what rounding left to the largest remainders, the better-ranked first; take back
        # what the minimum gave too much from those that have most.
        while sparks.sum() < total:
            sparks[np.lexsort((rank, sparks - quota))[0]] += 1
        while sparks.sum() > total:
            sparks[np.argmax(sparks)] -= 1
        return sparks

    def _guide(self) -> FloatArray:
        """Guiding sparks: X_i + mean of its best sparks - mean of its worst."""
        guides = np.empty_like(self._places)
        for i in range(self.fireworks):
            mine = np.flatnonzero(self._owners == i)
            ranked = self._sparks[mine[np.argsort(self._spark_losses[mine], kind="stable")]]
            k = max(1, int(self.guiding_ratio * len(ranked)))
            guides[i] = self._places[i] + ranked[:k].mean(axis=0) - ranked[-k:].mean(axis=0)
        return self._map_inside(guides)

    def _map_inside(self, x: FloatArray) -> FloatArray:
        """Redraw each coordinate that is out of bounds uniformly within them."""
        outside = (x < self._box.lower) | (x > self._box.upper)
        column = np.nonzero(outside)[1]
        x[outside] = self.rng.uniform(self._box.lower[column], self._box.upper[column])
        return x

    def _select(self, guides: FloatArray, guide_losses: FloatArray) -> None:
        """End a generation: selection, amplitudes, tournament."""
        self._generation += 1
        before = self._fitness.copy()
        for i in range(self.fireworks):
            mine = self._owners == i
            x = np.concatenate([self._sparks[mine], guides[i : i + 1]])
            losses = np.append(self._spark_losses[mine], guide_losses[i])
            best = int(np.argmin(losses))
            if losses[best] < before[i]:
                self._places[i], self._fitness[i] = x[best], losses[best]
        improved = self._fitness < before
        self._amplitudes *= np.where(improved, self.amplification, self.reduction)[:, np.newaxis]
        self._restart(self._losers(before, np.flatnonzero(improved)))

    def _losers(self, before: FloatArray, improved: IntArray) -> IntArray:
        """Those of the improved fireworks that cannot catch up with the best at their pace."""
        left = self._generations_left()
        if left is None or left <= 0:
            return np.empty(0, dtype=np.int64)
        with np.errstate(over="ignore"):  # of losses near the largest float: infinity compares well
            pace = before[improved] - self._fitness[improved]
            behind = self._fitness[improved] - self._fitness.min()
            losers: IntArray = improved[pace * left < behind]
        return losers

    def _restart(self, losers: IntArray) -> None:
        # After the amplitudes were scaled, so that a new firework starts with the whole amplitude.
        self._places[losers] = self._box.uniform(self.rng, len(losers))
        self._amplitudes[losers] = self._amplitude0
        self._fitness[losers] = np.nan

    def _generations_left(self) -> int | None:
        if self.generations is not None:
            return self.generations - self._generation
        return None if self.budget is None else (self.budget - self._nfev) // self.popsize

    # -- single evaluations ------------------------------------------------------------------

    def _evaluated(self, i: int, place: FloatArray, loss: float) -> None:
        """Take in the loss of a place that firework i had when it was asked for."""
        if np.array_equal(place, self._places[i]):
            self._fitness[i] = loss
        elif loss < self._fitness[i]:  # a foreign point has taken the firework meanwhile
            self._places[i], self._fitness[i] = place, loss

    def _check_foreign(self, x: FloatArray) -> None:
        self._box.require_inside("foreign points", x)

    def _inject(self, x: FloatArray, losses: FloatArray) -> None:
        for point, loss in zip(x, losses, strict=True):
            here = (self._places == point).all(axis=1)
            if here.any():
                self._fitness[here] = loss
                continue
            rank = np.where(np.isnan(self._fitness), inf, self._fitness)
            worst = self.fireworks - 1 - int(np.argmax(rank[::-1]))
            if loss < rank[worst]:
                self._places[worst], self._fitness[worst] = point, loss
                self._amplitudes[worst] = self._amplitude0

    # -- what is known -----------------------------------------------------------------------

    @property
    def nit(self) -> int:
        """Number of completed generations; one is several batches."""
        return self._generation

    @property
    def remembered(self) -> FloatArray:
        """Places (k, dim) of the fireworks that have been evaluated; a copy."""
        evaluated: FloatArray = self._places[~np.isnan(self._fitness)]
        return evaluated

    @property
    def places(self) -> FloatArray:
        """Where the fireworks are, (fireworks, d); a copy."""
        return self._places.copy()

    @property
    def fitness(self) -> FloatArray:
        """The fireworks' losses, (fireworks,); NaN before a place is evaluated; a copy."""
        return self._fitness.copy()

    @property
    def amplitudes(self) -> FloatArray:
        """The fireworks' amplitudes, (fireworks, d); a copy."""
        return self._amplitudes.copy()

    def _stop_reasons(self) -> dict[str, Any]:
        reasons: dict[str, Any] = {}
        if self.generations is not None and self._generation >= self.generations:
            reasons["generations"] = self.generations
        scale = np.maximum(np.abs(self._places), np.finfo(float).eps * self._box.width)
        if (scale + self._amplitudes == scale).all():
            reasons["amplitude"] = float(self._amplitudes.max())
        return reasons

    def _settings(self) -> dict[str, Any]:
        names = ("popsize", "fireworks", "alpha", "amplification", "reduction", "guiding_ratio")
        return {
            **super()._settings(),
            **{name: getattr(self, name) for name in names},
            "lower": self._box.lower,
            "upper": self._box.upper,
            "amplitude0": self._amplitude0,
        }
