"""Random use of an optimizer, held against a model of what the protocol promises.

`Model` does one thing to an optimizer at a time (ask, tell a part, tell nonsense, save and load,
...) and checks after each that the optimizer did what the protocol says: no candidate lost, no
loss counted twice, no exception but the documented ones. `fuzz_optimizer` draws long sequences of
such steps. It is the companion of `dfo_core.testing`, whose checks each have one promise.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dfo_core.protocol import Batch
from dfo_core.serialization import load_state, save_state
from dfo_core.testing import Factory, raises, require
from dfo_core.validation import FloatArray

STEPS = 30


def fuzz_optimizer(factory: Factory, seed: int, steps: int = STEPS) -> None:
    """Do random things to an optimizer.

    Where its state can be saved, the same is done to another that is never saved and loaded, which
    must hand out the same candidates bit for bit.

    Args:
        factory: Builds a fresh optimizer from a seed, without a budget.
        seed: Seed of what is done; the same seed does the same.
        steps: How many things.

    Raises:
        AssertionError: If a promise is not kept.
    """
    names, weights = zip(*ACTIONS.items(), strict=True)
    plan = np.random.default_rng(seed).choice(names, steps, p=np.array(weights) / sum(weights))

    def run(reloads: bool) -> Model:
        model = Model(factory, np.random.default_rng(seed), reloads)
        for name in plan:
            getattr(model, name)()
        return model

    model = run(True)
    if model.opt.supports_state and "save_and_load" in plan:
        ours, theirs = model.candidates, run(False).candidates
        require(ours.keys() == theirs.keys(), "saving and loading changes nothing")
        same = all(np.array_equal(x, theirs[i]) for i, x in ours.items())
        require(same, "saving and loading changes nothing")


class Model:
    """An optimizer, and what must be true of it.

    Args:
        factory: Builds a fresh optimizer from a seed, without a budget.
        rng: Decides what is told.
        reloads: Whether `save_and_load` does that, or nothing.

    Attributes:
        opt: The optimizer.
        rng: The argument; may be changed at any time.
        candidates: All that were ever handed out, by id.
    """

    def __init__(self, factory: Factory, rng: np.random.Generator, reloads: bool = True) -> None:
        self._factory, self._reloads = factory, reloads
        self.rng = rng
        self._seed = int(rng.integers(2**31))
        self.opt = factory(self._seed)
        self.candidates: dict[int, FloatArray] = {}
        self._waiting: list[int] = []  # those without a loss, in order
        self._nfev = 0
        self._n_invalid = 0

    # -- what can be done ----------------------------------------------------------------------

    def ask(self) -> None:
        """Ask; the candidates without a loss must be among the answer, first and unchanged."""
        left = None if self.opt.budget is None else self.opt.budget - self._nfev
        if left is not None and left <= 0:
            raises(ValueError, self.opt.ask, "ask after the budget is spent")
            return
        batch = self.opt.ask()
        ids = batch.ids.tolist()
        require(len(ids) >= 1 and (left is None or len(ids) <= left), "the budget is kept")
        require(bool(np.isfinite(batch.x).all()), "candidates are finite")
        require(batch.x.shape == (len(ids), self.opt.dim), "candidates have shape (n, dim)")
        require(ids == list(range(ids[0], ids[0] + len(ids))) or bool(self._waiting), "no gaps")
        require(ids == sorted(set(ids)), "ids increase")
        known = self._waiting[:left]
        require(ids[: len(known)] == known, "no candidate is lost")
        new = ids[len(known) :]
        newest = max(self.candidates, default=-1)
        require(all(i > newest for i in new), "ids are never used twice")
        for i, x in zip(ids, batch.x, strict=True):
            require(np.array_equal(self.candidates.setdefault(i, x.copy()), x), "candidates stay")
        self._waiting += new
        batch.x[:] = np.nan  # the caller's copy

    def tell(self) -> None:
        """Tell some of the candidates without a loss, in any order."""
        n = len(self._waiting)
        some = self.rng.permutation(n)[: self.rng.integers(n + 1)]
        self._tell(self.rng.permutation(some) if self.rng.random() < 0.5 else np.sort(some))

    def tell_all(self) -> None:
        """Tell all candidates without a loss."""
        self._tell(np.arange(len(self._waiting)))

    def _tell(self, positions: Any) -> None:
        ids = [self._waiting[i] for i in positions]
        losses = self._losses(len(ids))
        points = np.array([self.candidates[i] for i in ids]).reshape(len(ids), self.opt.dim)
        form = self.rng.integers(3)
        batch: Any = Batch(points, np.array(ids, dtype=np.int64)) if form == 0 else ids
        self.opt.tell(np.array(ids, dtype=np.int32) if form == 1 else batch, losses)
        self._waiting = [i for i in self._waiting if i not in set(ids)]
        self._nfev += len(ids)
        self._n_invalid += int(np.count_nonzero(~np.isfinite(losses)))
        self._check()

    def tell_nonsense(self) -> None:
        """Tell what must be refused, and see that it changed nothing."""
        known = sorted(self.candidates)
        told = [i for i in known if i not in set(self._waiting)]
        newest = known[-1] if known else -1
        ids = [int(self.rng.choice(told)) if told else -1, newest + 10_000, -3]
        wrong: list[tuple[Any, Any]] = [([i], [0.0]) for i in ids]
        if self._waiting:
            i = self._waiting[0]
            wrong += [([i, i], [0.0, 1.0]), ([i], [0.0, 1.0]), ([i], ["worst"]), ([i + 0.5], [0.0])]
            wrong += [([i, told[0] if told else -1], [0.0, 0.0]), ([i], [None]), ([i], [[0.0]])]
        batch, losses = wrong[self.rng.integers(len(wrong))]
        raises(ValueError, lambda: self.opt.tell(batch, losses), f"a tell of {batch}, {losses}")
        self._check()

    def tell_foreign(self) -> None:
        """Tell points that were or were not handed out, the best one among them at times."""
        if not self.opt.accepts_foreign:
            point = np.zeros(self.opt.dim)
            raises(NotImplementedError, lambda: self.opt.tell_foreign(point, 0.0), "foreign points")
            return
        best = self.opt.result.x
        points = [x for x in self.candidates.values() if self.rng.random() < 0.1][:3]
        if np.isfinite(best).all() and self.rng.random() < 0.5:
            points.append(best)
        points += list(self.opt.remembered[:1])
        if not points:
            return
        losses = self._losses(len(points))
        self.opt.tell_foreign(np.array(points), losses)
        finite = np.isfinite(losses)
        told = [point for point, valid in zip(points, finite, strict=True) if valid]
        again = any(np.array_equal(point, best) for point in told)
        if again and len(np.unique(told, axis=0)) == len(told):
            newest = np.min(np.asarray(losses)[finite])
            require(self.opt.result.fun == newest, "the best point's newest loss holds")
        self._check()

    def tell_foreign_nonsense(self) -> None:
        """Tell foreign points of wrong shapes."""
        if self.opt.accepts_foreign:
            long, short = np.zeros(self.opt.dim + 1), np.zeros((2, self.opt.dim))
            raises(ValueError, lambda: self.opt.tell_foreign(long, 0.0), "a point too long")
            raises(ValueError, lambda: self.opt.tell_foreign(short, 0.0), "a loss too few")
            bad = np.full(self.opt.dim, np.nan)
            raises(ValueError, lambda: self.opt.tell_foreign(bad, 0.0), "a point of NaN")
            self._check()

    def reset_best(self) -> None:
        """Forget the best point."""
        self.opt.reset_best()
        require(self.opt.result.fun == np.inf, "the best is forgotten")
        self._check()

    def change_budget(self) -> None:
        """Set, raise, lower or lift the budget."""
        more = int(self.rng.integers(-3, 40))
        self.opt.budget = None if more % 4 == 0 else max(1, self._nfev + more)
        self._check()

    def save_and_load(self) -> None:
        """Go on with another optimizer that loaded this one's state."""
        if not self.opt.supports_state:
            raises(NotImplementedError, self.opt.state_dict, "state_dict")
            return
        through_file, suffix = self.rng.random() < 0.1, self.rng.choice([".npz", ".json"])
        if not self._reloads:
            return
        state = self.opt.state_dict()
        if through_file:
            with tempfile.TemporaryDirectory() as folder:
                save_state(Path(folder, f"state{suffix}"), state)
                state = load_state(Path(folder, f"state{suffix}"))
        before, budget = self.opt.result, self.opt.budget
        self.opt = self._factory(self._seed + 1)
        self.opt.load_state_dict(state)
        self.opt.budget = budget
        after = self.opt.result
        require((before.fun, before.nit) == (after.fun, after.nit), "the result is restored")
        require(np.array_equal(before.x, after.x, equal_nan=True), "the best point is restored")
        self._check()

    # -- helpers -------------------------------------------------------------------------------

    def _losses(self, n: int) -> FloatArray:
        kind = self.rng.integers(6)
        if kind == 0:
            return self.rng.choice([np.nan, np.inf, -np.inf, 0.0, 1.0], n)
        if kind == 1:
            return self.rng.choice([-1e308, 1e308, 1e-308, 0.0, -0.0], n)
        if kind == 2:
            return np.full(n, self.rng.choice([0.0, np.nan, -7.0]))
        return self.rng.standard_normal(n) * 10.0 ** self.rng.integers(-3, 4)

    def _check(self) -> None:
        result = self.opt.result
        require(result.nfev == self.opt.nfev == self._nfev, "every loss is counted once")
        require(result.n_invalid == self._n_invalid, "invalid losses are counted once")
        require(result.fun > -np.inf and not np.isnan(result.fun), "the best loss is finite or inf")
        known = bool(np.isfinite(result.x).all())
        require(known == (result.fun < np.inf), "x is known if and only if fun is")
        spent = self.opt.budget is not None and self._nfev >= self.opt.budget
        require(("budget" in self.opt.stop()) == spent, 'stop says "budget" when it is spent')


# What `fuzz_optimizer` does, and how often.
ACTIONS: dict[str, int] = {
    "ask": 10,
    "tell": 6,
    "tell_all": 8,
    "tell_nonsense": 2,
    "tell_foreign": 2,
    "tell_foreign_nonsense": 1,
    "reset_best": 1,
    "change_budget": 1,
    "save_and_load": 2,
}
