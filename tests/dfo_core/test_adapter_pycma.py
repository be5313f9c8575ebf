"""pycma behind the protocol."""

import cma
import numpy as np
import pytest

from dfo_core import as_optimizer
from dfo_core.fuzzing import fuzz_optimizer
from dfo_core.testing import (
    CHECKS,
    check_global_random_state,
    check_optimizer,
    check_partial_tells,
    check_reproducible,
)


def test_an_instance_of_pycma_runs_as_it_does_alone():
    def strategy():
        return cma.CMAEvolutionStrategy(3 * [1.0], 0.5, {"seed": 7, "verbose": -9})

    opt = as_optimizer(strategy())
    ours = []
    for _ in range(5):
        batch = opt.ask()
        ours.append(batch.x)
        opt.tell(batch, (batch.x**2).sum(axis=1))
    es = strategy()
    for x in ours:
        assert np.array_equal(np.array(es.ask()), x)
        es.tell(list(x), (x**2).sum(axis=1).tolist())


def test_pycmas_stop_reasons_are_ours():
    opt = as_optimizer("pycma", x0=np.ones(2), seed=0)
    while not opt.stop():
        batch = opt.ask()
        opt.tell(batch, (batch.x**2).sum(axis=1))
    assert set(opt.stop()) & {"tolfun", "tolfunhist", "tolx"}
    assert opt.result.fun < 1e-9


def test_one_sided_bounds():
    opt = as_optimizer("pycma", x0=np.full(3, 0.5), bounds=(0, None), seed=0)
    for _ in range(20):
        batch = opt.ask()
        assert (batch.x >= 0).all()
        opt.tell(batch, ((batch.x + 1) ** 2).sum(axis=1))
    assert opt.result.x == pytest.approx(np.zeros(3), abs=0.1)


FACTORIES = {
    "pycma": lambda seed: as_optimizer("pycma", 4, seed),
    "pycma-bounded": lambda seed: as_optimizer("pycma", 4, seed, bounds=(-1, 1), popsize=5),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", FACTORIES)
def test_conformance(check, name):
    check(FACTORIES[name])


@pytest.mark.parametrize("name", FACTORIES)
def test_random_use(name):
    for seed in range(3):
        fuzz_optimizer(FACTORIES[name], seed)


def test_an_unseeded_instance_is_conformant_but_for_its_randomness():
    def factory(seed):
        return as_optimizer(cma.CMAEvolutionStrategy(3 * [0.0], 1, {"verbose": -9}))

    check_optimizer(
        factory,
        skip=[
            check_global_random_state,
            check_reproducible,
            check_partial_tells,
        ],
    )
