"""The conformance suite: what every optimizer behind the protocol promises, as checks.

A check takes a factory, a function that builds a fresh optimizer from a seed, without a budget:

    import pytest
    from dfo_core.testing import CHECKS

    @pytest.mark.parametrize("check", CHECKS)
    def test_conformance(check):
        check(lambda seed: MyOptimizer(dim=5, seed=seed))

`check_optimizer` runs all of them; `dfo_core.fuzzing` makes long random use of an optimizer. A
failed promise is an AssertionError. What an optimizer says it cannot do (`supports_state`,
`accepts_foreign`) must fail with NotImplementedError.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dfo_core.optimizer import Optimizer
from dfo_core.protocol import Batch
from dfo_core.serialization import load_state, save_state
from dfo_core.validation import FloatArray

Factory = Callable[[int], Optimizer]
Check = Callable[[Factory], None]

N_BATCHES = 8


def check_optimizer(factory: Factory, *, skip: Iterable[Check] = ()) -> None:
    """Run every check.

    Args:
        factory: Builds a fresh optimizer from a seed.
        skip: Checks to leave out, for an object that was seeded elsewhere for example.

    Raises:
        AssertionError: If a promise is not kept; says which.
    """
    skipped = set(skip)
    for check in CHECKS:
        if check not in skipped:
            check(factory)


def check_batches(factory: Factory) -> None:
    """Batches have the promised shapes and types, ids increase, tells change nobody's arrays."""
    opt, last = factory(0), -1
    for _ in range(N_BATCHES):
        batch = opt.ask()
        require(isinstance(batch, Batch) and len(batch) >= 1, "ask returns a Batch, not empty")
        require(batch.x.shape == (len(batch), opt.dim), "x has shape (n, dim)")
        require(batch.ids.shape == (len(batch),), "ids have shape (n,)")
        require(batch.x.dtype == np.float64 and batch.ids.dtype == np.int64, "float64 and int64")
        require(bool(np.isfinite(batch.x).all()), "candidates are finite")
        require(batch.ids[0] > last and bool((np.diff(batch.ids) > 0).all()), "ids increase")
        last = int(batch.ids[-1])
        losses = _sphere(batch.x)
        kept = batch.x.copy(), batch.ids.copy(), losses.copy()
        opt.tell(batch, losses)
        same = map(np.array_equal, kept, (batch.x, batch.ids, losses))
        require(all(same), "tell leaves the caller's batch and losses as they are")


def check_reproducible(factory: Factory) -> None:
    """The same seed gives the same candidates, another seed others."""
    first, second, other = (_run(factory(seed)) for seed in (3, 3, 4))
    require(np.array_equal(first, second), "the same seed gives the same candidates")
    require(not np.array_equal(first, other), "another seed gives other candidates")


def check_global_random_state(factory: Factory) -> None:
    """The global generators of numpy and Python are neither used nor changed."""
    import random

    def snapshot() -> tuple[Any, ...]:
        name, key, *rest = np.random.get_state()  # noqa: NPY002
        return (random.getstate(), name, np.asarray(key).tobytes(), *rest)

    before = snapshot()
    first = _run(factory(0))
    require(snapshot() == before, "global generators are left alone")
    np.random.random()  # noqa: NPY002
    random.random()
    require(np.array_equal(first, _run(factory(0))), "global generators have no influence")


def check_partial_tells(factory: Factory) -> None:
    """Losses in parts and in any order have the same effect as all at once."""
    whole, parts = factory(1), factory(1)
    shuffle = np.random.default_rng(0)
    for _ in range(N_BATCHES):
        batch = whole.ask()
        whole.tell(batch, _sphere(batch.x))
        batch = parts.ask()
        order = shuffle.permutation(len(batch))
        for some in np.array_split(order, min(3, len(order))):
            parts.tell(batch.ids[some], _sphere(batch.x[some]))
    require(np.array_equal(whole.ask().x, parts.ask().x), "the order of tells does not matter")
    require(whole.nfev == parts.nfev, "every tell is counted")


def check_ask_again(factory: Factory) -> None:
    """While a generation is incomplete, ask returns its candidates without a loss."""
    opt = factory(0)
    for _ in range(N_BATCHES):
        batch = opt.ask()
        again = opt.ask()
        require(np.array_equal(batch.ids, again.ids), "asking twice gives the same candidates")
        require(np.array_equal(batch.x, again.x), "asking twice gives the same candidates")
        if len(batch) > 1:
            opt.tell(batch[::2], _sphere(batch.x[::2]))
            again = opt.ask()
            require(np.array_equal(again.ids, batch.ids[1::2]), "the rest is asked for again")
            batch = again
        opt.tell(batch, _sphere(batch.x))


def check_wrong_tells(factory: Factory) -> None:
    """Unknown ids, second tells and wrong shapes are ValueErrors and change nothing."""
    opt = factory(0)
    raises(ValueError, lambda: opt.tell([0], [1.0]), "a tell before the first ask")
    batch = opt.ask()
    losses = _sphere(batch.x)
    raises(ValueError, lambda: opt.tell(batch, losses[:-1]), "too few losses")
    raises(ValueError, lambda: opt.tell(batch, [*losses, 0.0]), "too many losses")
    raises(ValueError, lambda: opt.tell(batch, losses[:, np.newaxis]), "a matrix of losses")
    raises(ValueError, lambda: opt.tell(batch.ids + len(batch), losses), "unknown ids")
    raises(ValueError, lambda: opt.tell(batch.ids + 0.5, losses), "ids that are no integers")
    raises(ValueError, lambda: opt.tell(batch.ids[[0, 0]], [1.0, 1.0]), "an id twice in a tell")
    raises(ValueError, lambda: opt.tell(batch, ["a"] * len(batch)), "losses that are no numbers")
    require(opt.nfev == 0, "a refused tell changes nothing")
    opt.tell(batch, losses)
    raises(ValueError, lambda: opt.tell(batch, losses), "a second tell")
    require(opt.nfev == len(batch), "a refused tell changes nothing")


def check_invalid_losses(factory: Factory) -> None:
    """NaN and infinite losses are counted, are never the best, and the search goes on."""
    opt = factory(0)
    n_invalid = 0
    for i in range(N_BATCHES):
        batch = opt.ask()
        losses = _sphere(batch.x)
        if i == 2:
            losses[:] = np.nan
        losses[0] = (np.nan, np.inf, -np.inf)[i % 3]
        n_invalid += int(np.count_nonzero(~np.isfinite(losses)))
        opt.tell(batch, losses)
    require(opt.result.n_invalid == n_invalid, "invalid losses are counted")
    require(not np.isneginf(opt.result.fun), "minus infinity is not the best loss")
    require(bool(np.isfinite(opt.ask().x).all()), "candidates stay finite")


def check_best(factory: Factory) -> None:
    """The result holds the best candidate told, and `reset_best` forgets it."""
    opt = factory(0)
    require(opt.result.fun == np.inf and bool(np.isnan(opt.result.x).all()), "nothing known yet")
    best_x, best = np.full(opt.dim, np.nan), np.inf
    nfev = 0
    for _ in range(N_BATCHES):
        batch = opt.ask()
        losses = _sphere(batch.x)
        if losses.min() < best:
            best_x, best = batch.x[losses.argmin()], float(losses.min())
        opt.tell(batch, losses)
        nfev += len(batch)
        result = opt.result
        require(result.fun == best, "fun is the lowest loss told")
        require(np.array_equal(result.x, best_x), "x is its candidate")
        require(result.nfev == nfev and result.n_invalid == 0, "evaluations are counted")
    require(opt.nit >= 1, "generations are counted")
    opt.reset_best()
    require(opt.result.fun == np.inf and opt.result.nfev == nfev, "reset_best forgets the best")
    batch = opt.ask()
    losses = _sphere(batch.x) + 1e6
    opt.tell(batch, losses)
    require(opt.result.fun == losses.min(), "the best is taken from new losses only")


def check_budget(factory: Factory) -> None:
    """No more candidates are handed out than the budget allows; then stop says so."""
    for budget in (1, 7, 23):
        opt = factory(0)
        opt.budget = budget
        asked = 0
        while not opt.stop():
            batch = opt.ask()
            asked += len(batch)
            opt.tell(batch, _sphere(batch.x))
            require(asked <= budget, "no more than the budget is handed out")
        if asked == budget:  # not stopped by a reason of its own
            require(opt.stop()["budget"] == budget, 'stop says "budget"')
            require(opt.result.stop["budget"] == budget, "so does the result")
            raises(ValueError, opt.ask, "ask after the budget is spent")


def check_target(factory: Factory) -> None:
    """Stop says "target" once a loss is at or below it."""
    opt = factory(0)
    opt.target = -1.0
    batch = opt.ask()
    require("target" not in opt.stop(), "no target is reached before a tell")
    opt.tell(batch, np.full(len(batch), -1.0))
    require(opt.stop()["target"] == -1.0, 'stop says "target"')


def check_state(factory: Factory) -> None:
    """A state saved between ask and tell, through a file, continues bit for bit."""
    opt = factory(5)
    if not opt.supports_state:
        raises(NotImplementedError, opt.state_dict, "state_dict without supports_state")
        raises(NotImplementedError, lambda: opt.load_state_dict({}), "load_state_dict likewise")
        return
    for _ in range(N_BATCHES):
        batch = opt.ask()
        told = len(batch) // 2
        opt.tell(batch[:told], _sphere(batch.x[:told]))
        copy = factory(6)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "state.npz")
            save_state(path, opt.state_dict())
            copy.load_state_dict(load_state(path))
        require(np.array_equal(copy.ask().ids, batch.ids[told:]), "ids under way are restored")
        for o in (opt, copy):
            o.tell(batch[told:], _sphere(batch.x[told:]))
        require(np.array_equal(opt.ask().x, copy.ask().x), "the next candidates are the same")
        a, b = opt.result, copy.result
        require((a.fun, a.nfev, a.nit) == (b.fun, b.nfev, b.nit), "the result is the same")
        require(np.array_equal(a.x, b.x), "the result is the same")
    raises(ValueError, lambda: factory(0).load_state_dict({"format": -1}), "an unknown format")


def check_foreign(factory: Factory) -> None:
    """Foreign points update the best, the newest loss of the best point holds, or are refused."""
    opt = factory(0)
    if not opt.accepts_foreign:
        raises(
            NotImplementedError,
            lambda: opt.tell_foreign(np.zeros(opt.dim), 0.0),
            "tell_foreign without accepts_foreign",
        )
        return
    point = opt.ask().x[0]  # surely within the bounds
    opt.tell_foreign(point, -5.0)
    require(opt.result.fun == -5.0 and opt.nfev == 0, "a foreign point can be the best")
    require(np.array_equal(opt.result.x, point), "a foreign point can be the best")
    opt.tell_foreign(point, -3.0)
    require(opt.result.fun == -3.0, "the newest loss of the best point holds")
    opt.tell_foreign([point, point], [np.nan, np.inf])
    require(opt.result.fun == -3.0, "invalid foreign losses are ignored")
    raises(ValueError, lambda: opt.tell_foreign(point[:-1], 0.0), "a foreign point too short")
    raises(ValueError, lambda: opt.tell_foreign(point, [0.0, 1.0]), "two losses for one point")
    for _ in range(N_BATCHES):
        batch = opt.ask()
        opt.tell(batch, _sphere(batch.x))
    require(opt.result.fun == -3.0, "the search goes on beside it")


CHECKS: tuple[Check, ...] = (
    *(check_batches, check_reproducible, check_global_random_state, check_partial_tells),
    *(check_ask_again, check_wrong_tells, check_invalid_losses, check_best, check_budget),
    *(check_target, check_state, check_foreign),
)


def _sphere(x: FloatArray) -> FloatArray:
    return np.asarray(((x - 0.3) ** 2).sum(axis=1))


def _run(opt: Optimizer) -> FloatArray:
    """All candidates of the first few batches, (n, dim)."""
    seen = []
    for _ in range(N_BATCHES):
        batch = opt.ask()
        seen.append(batch.x)
        opt.tell(batch, _sphere(batch.x))
    return np.concatenate(seen)


def require(holds: bool, promise: str) -> None:
    """Raise AssertionError unless a promise holds."""
    if not holds:
        raise AssertionError(f"promise not kept: {promise}")


def raises(error: type[Exception], call: Callable[[], Any], what: str) -> None:
    """Raise AssertionError unless a call raises the error that is promised."""
    try:
        call()
    except error:
        return
    raise AssertionError(f"promise not kept: {what} raises {error.__name__}")
