"""The conformance suite over every optimizer of ours, and over ones that break each promise."""

import numpy as np
import pytest

from dfo_core import (
    BIPOP,
    CMAES,
    IPOP,
    LMMAES,
    Averaged,
    LoTFWA,
    Optimizer,
    QuasiRandom,
    RandomSearch,
    testing,
)
from dfo_core.testing import CHECKS, check_optimizer


def eager(**kwargs):
    """CMA-ES that restarts within a few batches."""
    return CMAES(**kwargs, stop_options={"maxiter": 2})


def fireworks(x0, sigma0, popsize, bounds, seed):
    return LoTFWA(bounds, x0, popsize=popsize, generations=1, seed=seed)


FACTORIES = {
    "cma-es": lambda seed: CMAES(np.zeros(5), 0.5, seed=seed),
    "cma-es-1d": lambda seed: CMAES([0.0], seed=seed),
    "cma-es-bounded": lambda seed: CMAES(np.zeros(5), 0.5, seed=seed, bounds=(-1, 1)),
    "cma-es-lazy": lambda seed: CMAES(np.zeros(150), popsize=6, seed=seed),
    "cma-es-passive": lambda seed: CMAES(np.zeros(5), popsize=2, seed=seed, active=False),
    "cma-es-resample": lambda seed: CMAES(
        np.full(5, 0.9), 0.5, seed=seed, bounds=(-1, 1), bounds_handling="resample"
    ),
    "cma-es-mirrored": lambda seed: CMAES(np.zeros(5), popsize=7, seed=seed, mirrored=True),
    "cma-es-elitist": lambda seed: CMAES(np.zeros(5), seed=seed, elitist=True),
    "sep-cma-es": lambda seed: CMAES(np.zeros(5), seed=seed, covariance="diagonal"),
    "lm-ma-es": lambda seed: LMMAES(np.zeros(60), 0.5, seed=seed),
    "lm-ma-es-small": lambda seed: LMMAES(
        np.zeros(2), seed=seed, bounds=(-1, 1), mirrored=True, elitist=True
    ),
    "ipop": lambda seed: IPOP(eager, np.zeros(3), popsize=4, seed=seed),
    "ipop-bounded": lambda seed: IPOP(LMMAES, bounds=(-1, 1), dim=3, seed=seed),
    "bipop": lambda seed: BIPOP(eager, bounds=(-1, 1), dim=3, popsize=4, seed=seed),
    "bipop-lotfwa": lambda seed: BIPOP(fireworks, bounds=(-1, 1), dim=3, popsize=6, seed=seed),
    "lotfwa": lambda seed: LoTFWA((-1, 1), dim=4, popsize=25, seed=seed),
    "lotfwa-5": lambda seed: LoTFWA((-1, 1), x0=np.zeros(4), popsize=5, seed=seed),
    "lotfwa-horizon": lambda seed: LoTFWA(
        (-1, 1), dim=4, popsize=12, fireworks=3, alpha=1.0, seed=seed, generations=30
    ),
    "averaged": lambda seed: Averaged(CMAES(np.zeros(3), seed=seed, bounds=(-1, 1)), samples=2),
    "averaged-ipop": lambda seed: Averaged(
        IPOP(eager, np.zeros(3), popsize=4, seed=seed), samples=3
    ),
    "random": lambda seed: RandomSearch((-1, 1), dim=4, popsize=3, seed=seed),
    "random-normal": lambda seed: RandomSearch(x0=np.zeros(3), seed=seed),
    "sobol": lambda seed: QuasiRandom((-1, 1), dim=4, popsize=3, seed=seed),
    "halton-normal": lambda seed: QuasiRandom(x0=np.zeros(3), sequence="halton", seed=seed),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", FACTORIES)
def test_conformance(check, name):
    check(FACTORIES[name])


def test_check_optimizer_runs_all():
    check_optimizer(FACTORIES["cma-es"])


class Broken(Optimizer):
    """A correct random search; subclasses break one promise each."""

    _state_fields = ()

    def __init__(self, seed, **kwargs):
        super().__init__(3, seed=seed, **kwargs)

    def _sample(self):
        return self.rng.standard_normal((4, 3))

    def _update(self, x, losses):
        pass


class Unseeded(Broken):
    def _sample(self):
        return np.random.default_rng().standard_normal((4, 3))


class Constant(Broken):
    def _sample(self):
        return np.ones((4, 3))


class GlobalState(Broken):
    def _sample(self):
        return np.random.standard_normal((4, 3))  # noqa: NPY002


class Sorts(Broken):
    """As the package cmaes does with the list it is told."""

    def tell(self, batch, losses):
        super().tell(batch, losses)
        losses.sort()


class OrderMatters(Broken):
    def tell(self, batch, losses):
        super().tell(batch, losses)
        self.rng.random()


class Forgetful(Broken):
    """Keeps something that is not in its state."""

    shift = 0.0

    def _sample(self):
        return super()._sample() + self.shift

    def _update(self, x, losses):
        self.shift += 1


class Extravagant(Broken):
    def ask(self):
        self.budget, budget = None, self.budget
        batch = super().ask()
        self.budget = budget
        return batch


class Careless(Broken):
    """Takes a second tell of a candidate."""

    def _index_of(self, ids):
        self._told[:] = False
        return super()._index_of(ids)


class BelievesInfinity(Broken):
    def _keep_best(self, x, losses):
        self._best_x, self._best_fun = x[0], min(self._best_fun, *losses)


class Boasts(Broken):
    accepts_foreign = True

    def tell_foreign(self, x, losses):
        pass


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (Unseeded, testing.check_reproducible),
        (Constant, testing.check_reproducible),
        (GlobalState, testing.check_global_random_state),
        (Sorts, testing.check_batches),
        (OrderMatters, testing.check_partial_tells),
        (Forgetful, testing.check_state),
        (Extravagant, testing.check_budget),
        (Careless, testing.check_wrong_tells),
        (BelievesInfinity, testing.check_invalid_losses),
        (Boasts, testing.check_foreign),
    ],
)
def test_a_broken_promise_is_found(kind, check):
    check(Broken)
    with pytest.raises(AssertionError, match="promise not kept"):
        check(kind)
