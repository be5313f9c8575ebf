"""evosax behind the protocol."""

import numpy as np
import pytest

from dfo_core import as_optimizer
from dfo_core.adapters import EvosaxOptimizer
from dfo_core.testing import check_optimizer

pytest.importorskip("evosax")
import jax
import jax.numpy as jnp
from evosax.algorithms import CMA_ES, PSO, SV_CMA_ES, RandomSearch

# jax compiles each instance anew, which takes seconds.
pytestmark = pytest.mark.slow


def sphere(x):
    return ((x - 1e3 - 0.3) ** 2).sum(axis=1)


@pytest.mark.parametrize(
    "name", ["CMA_ES", "Sep_CMA_ES", "SNES", "xNES", "PGPE", "PSO", "DifferentialEvolution"]
)
def test_names_start_where_they_should_and_find_the_minimum(name):
    opt = as_optimizer(f"evosax:{name}", x0=np.full(3, 1e3), sigma0=2.0, seed=0)
    first = opt.ask().x
    assert first.shape == (32, 3)
    assert first.mean(axis=0) == pytest.approx(np.full(3, 1e3), abs=1.5)
    assert first.std() == pytest.approx(2.0, rel=0.3)
    start = sphere(first).mean()
    for _ in range(100):
        batch = opt.ask()
        opt.tell(batch, sphere(batch.x))
    assert opt.result.fun < 0.01 * start


def test_an_instance_runs_as_it_does_alone():
    algorithm = CMA_ES(population_size=6, solution=jnp.zeros(3))
    opt = as_optimizer(algorithm, seed=0)
    state = opt._state
    params = algorithm.default_params
    for _ in range(5):
        key = opt._key
        batch = opt.ask()
        key, ask = jax.random.split(key)
        population, state = algorithm.ask(ask, state, params)
        assert np.array_equal(batch.x, np.asarray(population, dtype=np.float64))
        losses = (batch.x**2).sum(axis=1)
        opt.tell(batch, losses)
        _, tell = jax.random.split(key)
        state, _ = algorithm.tell(tell, population, losses.astype(np.float32), state, params)
    assert np.array_equal(opt._state.mean, state.mean)


@pytest.mark.parametrize("kind", [CMA_ES, PSO])
def test_a_solution_of_any_structure_is_flattened(kind):
    solution = {"a": jnp.ones((2, 2)), "b": jnp.zeros(3)}
    opt = as_optimizer(kind(population_size=8, solution=solution), seed=0)
    assert opt.dim == 7
    for _ in range(40):
        batch = opt.ask()
        opt.tell(batch, ((batch.x - [1, 1, 1, 1, 0, 0, 0]) ** 2).sum(axis=1))
    assert opt.result.fun < 1.0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="evosax has no optimizer 'cma_es'; close ones are CMA_ES"):
        as_optimizer("evosax:cma_es", 3)
    with pytest.raises(ValueError, match="bounds has no effect on evosax's"):
        as_optimizer("evosax:CMA_ES", 3, bounds=(-1, 1))
    with pytest.raises(ValueError, match="PGPE refuses this: Population size must be even"):
        as_optimizer("evosax:PGPE", 3, popsize=5)
    with pytest.raises(ValueError, match=r"RandomSearch refuses this: .*sampling_fn"):
        as_optimizer("evosax:RandomSearch", 3)
    with pytest.raises(ValueError, match="starts from several means"):
        as_optimizer(SV_CMA_ES(population_size=4, num_populations=2, solution=jnp.zeros(3)))
    uniform = RandomSearch(4, jnp.zeros(3), sampling_fn=lambda key: jax.random.uniform(key, (3,)))
    assert len(as_optimizer(uniform, seed=0).ask()) == 4


@pytest.mark.parametrize("name", ["SNES", "PSO"])
def test_conformance(name):
    def factory(seed):
        return as_optimizer(f"evosax:{name}", 4, seed, popsize=8)

    assert isinstance(factory(0), EvosaxOptimizer)
    check_optimizer(factory)
