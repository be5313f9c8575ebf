"""evotorch's functional algorithms behind the protocol."""

import numpy as np
import pytest

from dfo_core import as_optimizer
from dfo_core.adapters import EvotorchOptimizer
from dfo_core.fuzzing import fuzz_optimizer
from dfo_core.testing import CHECKS

pytest.importorskip("evotorch")
import evotorch
import torch
from evotorch.algorithms import functional


def sphere(x):
    return ((x - 0.3) ** 2).sum(axis=1)


@pytest.mark.parametrize("name", ["cem", "pgpe"])
def test_names_find_the_minimum(name):
    opt = as_optimizer(f"evotorch:{name}", x0=np.ones(5), sigma0=0.5, popsize=40, seed=0)
    first = opt.ask().x
    assert first.mean(axis=0) == pytest.approx(np.ones(5), abs=0.3)
    assert first.std() == pytest.approx(0.5, rel=0.2)
    for _ in range(150):
        batch = opt.ask()
        opt.tell(batch, sphere(batch.x))
    assert opt.result.fun < 0.1  # from 3.7; cem converges early


def test_a_state_runs_as_it_does_alone():
    def build():
        return functional.cem(
            center_init=torch.ones(4), stdev_init=0.5, parenthood_ratio=0.5, objective_sense="min"
        )

    opt, state = as_optimizer(build(), popsize=12, seed=0), build()
    for _ in range(5):
        batch = opt.ask()
        opt.tell(batch, sphere(batch.x))
        x = torch.as_tensor(batch.x, dtype=torch.float32)
        state = functional.cem_tell(state, x, torch.as_tensor(sphere(batch.x)).float())
    assert torch.equal(opt._state.center, state.center)


def test_torchs_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    opt = as_optimizer("evotorch:cem", 3, seed=0)
    first = opt.ask().x
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    assert np.array_equal(first, as_optimizer("evotorch:cem", 3, seed=0).ask().x)


def test_what_does_not_fit_is_refused():
    problem = evotorch.Problem(
        "min", lambda x: (x**2).sum(), solution_length=3, initial_bounds=(-1, 1)
    )
    with pytest.raises(TypeError, match=r"SNES calls the objective itself, inside step\(\)"):
        as_optimizer(evotorch.algorithms.SNES(problem, stdev_init=1.0))
    with pytest.raises(ValueError, match="has no optimizer 'snes'"):
        as_optimizer("evotorch:snes", 3)
    with pytest.raises(ValueError, match="bounds has no effect on evotorch's"):
        as_optimizer("evotorch:cem", 3, bounds=(-1, 1))
    with pytest.raises(ValueError, match=r"two parents.* of 0\.5 at least 4; got 3"):
        as_optimizer("evotorch:cem", 3, popsize=3)
    with pytest.raises(ValueError, match="popsize must be even"):
        as_optimizer("evotorch:pgpe", 3, popsize=5)
    options = {"stdev_init": 1.0, "parenthood_ratio": 0.5}
    up = functional.cem(center_init=torch.ones(4), objective_sense="max", **options)
    with pytest.raises(ValueError, match='objective_sense="min"'):
        as_optimizer(up)
    several = functional.cem(center_init=torch.ones(2, 4), objective_sense="min", **options)
    with pytest.raises(ValueError, match=r"one search; got a batch of shape \(2,\)"):
        as_optimizer(several)


FACTORIES = {
    "cem": lambda seed: as_optimizer("evotorch:cem", 4, seed, popsize=10),
    "pgpe": lambda seed: as_optimizer("evotorch:pgpe", 4, seed, popsize=10),
    "state": lambda seed: as_optimizer(
        functional.pgpe(
            center_init=torch.zeros(3),
            stdev_init=1.0,
            center_learning_rate=0.1,
            stdev_learning_rate=0.1,
            objective_sense="min",
            symmetric=False,
        ),
        seed=seed,
        popsize=7,
    ),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", FACTORIES)
def test_conformance(check, name):
    assert isinstance(FACTORIES[name](0), EvotorchOptimizer)
    check(FACTORIES[name])


@pytest.mark.parametrize("name", FACTORIES)
def test_random_use(name):
    for seed in range(3):
        fuzz_optimizer(FACTORIES[name], seed)
