"""nevergrad behind the protocol."""

import nevergrad as ng
import numpy as np
import pytest

from dfo_core import as_optimizer, minimize
from dfo_core.adapters import NevergradOptimizer
from dfo_core.fuzzing import fuzz_optimizer
from dfo_core.testing import CHECKS, check_global_random_state, check_optimizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:nevergrad"),
    pytest.mark.filterwarnings("ignore::nevergrad.common.errors.LossTooLargeWarning"),
]


def test_nevergrads_cma_gets_exactly_the_population_it_needs():
    """It drops a generation of any other size without a word."""
    opt = as_optimizer("nevergrad:CMA", dim=8, popsize=3, seed=0)
    es = opt._ng.optim.es
    assert es.popsize == 10
    for _ in range(30):
        batch = opt.ask()
        assert len(batch) == 10
        opt.tell(batch, ((batch.x - 1) ** 2).sum(axis=1))
    assert es.countiter == 30
    assert opt.result.fun < 0.5


def test_an_error_that_nevergrads_cma_swallows_is_raised():
    opt = as_optimizer("nevergrad:CMA", dim=3, seed=0)
    batch = opt.ask()

    def refuse(*_):
        raise RuntimeError("not the points that pycma expects")

    opt._ng.optim.es.tell = refuse
    opt.tell(batch[1:], (batch.x[1:] ** 2).sum(axis=1))
    with pytest.raises(RuntimeError, match=r"CMA swallowed an error .* dropped the generation of"):
        opt.tell(batch[0], (batch[0].x ** 2).sum(axis=1))


@pytest.mark.parametrize(
    "method", ["NGOpt", "TwoPointsDE", "PSO", "OnePlusOne", "ScrHammersleySearch"]
)
def test_nevergrads_methods_search_within_bounds(method):
    opt = as_optimizer(f"nevergrad:{method}", bounds=([-1, 0], [1, 5]), budget=300, seed=0)
    while not opt.stop():
        batch = opt.ask()
        assert (batch.x >= [-1, 0]).all()
        assert (batch.x <= [1, 5]).all()
        opt.tell(batch, ((batch.x - [0.5, 2]) ** 2).sum(axis=1))
    assert opt.nfev == 300
    assert opt.result.fun < 0.1


def test_a_budget_may_be_a_float_without_fraction():
    opt = as_optimizer("nevergrad:TwoPointsDE", dim=3, popsize=8, budget=1e2, seed=0)
    while not opt.stop():
        batch = opt.ask()
        opt.tell(batch, (batch.x**2).sum(axis=1))
    assert opt.result.nfev == 100


@pytest.mark.parametrize("made", [lambda *_: ng.optimizers.NGOpt, ng.optimizers.NGOpt])
def test_classes_that_plan_with_their_budget_get_the_default_one(made):
    result = minimize(np.sum, dim=2, method=made, seed=0, callback=lambda _: True)
    assert result.stop == {"callback": True}


def test_a_method_that_cannot_be_built_without_its_budget_says_so():
    with pytest.raises(ValueError, match=r"RescaledCMA plans with its budget: give budget=\.\.\."):
        as_optimizer("nevergrad:RescaledCMA", 2)


def test_methods_that_plan_every_point_are_not_asked_beyond_their_budget():
    opt = as_optimizer("nevergrad:ScrHammersleySearch", dim=2, popsize=6, budget=40, seed=0)
    while not opt.stop():
        batch = opt.ask()
        opt.tell(batch, (batch.x**2).sum(axis=1))
    assert opt.nfev == 40


def test_nevergrads_instances_classes_and_configurations():
    instance = ng.optimizers.OnePlusOne(ng.p.Array(shape=(3,)), budget=50)
    assert isinstance(as_optimizer(instance, dim=3, budget=50), NevergradOptimizer)
    for method in (ng.optimizers.OnePlusOne, ng.optimizers.DifferentialEvolution(popsize=8)):
        assert as_optimizer(method, dim=4, seed=0).dim == 4
    with pytest.raises(ValueError, match="single array"):
        as_optimizer(ng.optimizers.OnePlusOne(ng.p.Instrumentation(ng.p.Scalar()), budget=5))


def test_a_start_point_and_step_reach_nevergrad():
    opt = as_optimizer("nevergrad:OnePlusOne", x0=[3.0, 4.0], sigma0=1e-6, seed=0)
    for _ in range(5):
        batch = opt.ask()
        assert batch.x[0] == pytest.approx([3, 4], abs=1e-3)
        opt.tell(batch, [1.0])


def test_ngopts_metamodels_get_it_too():
    """With this budget and dimension NGOpt takes a metamodel upon CMA."""
    opt = as_optimizer("nevergrad:NGOpt", dim=4, popsize=5, budget=120, seed=0)
    es = opt._ng.optim._optim.es
    while not opt.stop():
        batch = opt.ask()
        opt.tell(batch, (batch.x**2).sum(axis=1))
    assert es.countiter == 120 // es.popsize


# nevergrad tells pycma points that its bounds have changed, which pycma takes for foreign ones.
@pytest.mark.filterwarnings("ignore::cma.evolution_strategy.InjectionWarning")
def test_an_instance_with_a_bounded_array_keeps_its_bounds_and_its_shape():
    array = ng.p.Array(init=np.full((2, 3), 0.5), lower=0.0, upper=1.0).set_mutation(sigma=0.5)
    opt = as_optimizer(ng.optimizers.CMA(array, budget=200, num_workers=4), seed=0)
    assert (opt.dim, len(opt.ask())) == (6, opt._ng.optim.es.popsize)
    target = np.linspace(0.2, 0.8, 6)
    for _ in range(20):
        batch = opt.ask()
        assert (batch.x >= 0).all()
        assert (batch.x <= 1).all()
        opt.tell(batch, ((batch.x - target) ** 2).sum(axis=1))
    assert opt.result.fun < 0.2
    with pytest.raises(ValueError, match="bounds has no effect"):
        as_optimizer(ng.optimizers.CMA(array, budget=200), bounds=(0, 1))


def test_methods_without_parallelization_are_asked_for_one_at_a_time():
    opt = as_optimizer("nevergrad:SQP", dim=2, popsize=4, budget=30, seed=0)
    assert len(opt.ask()) == 1


FACTORIES = {
    "ng-NGOpt": lambda seed: as_optimizer("nevergrad:NGOpt", 4, seed, budget=1000),
    "ng-CMA": lambda seed: as_optimizer("nevergrad:CMA", 4, seed, popsize=5),
    "ng-OnePlusOne": lambda seed: as_optimizer("nevergrad:OnePlusOne", 4, seed, bounds=(-1, 1)),
    "ng-Discrete": lambda seed: as_optimizer("nevergrad:DiscreteOnePlusOne", 4, seed),
    "ng-DE": lambda seed: as_optimizer("nevergrad:TwoPointsDE", 4, seed, popsize=8),
    "ng-array": lambda seed: as_optimizer(
        lambda d, s: as_optimizer(
            ng.optimizers.OnePlusOne, x0=np.zeros(d), bounds=(None, [1, 2, 3]), seed=s
        ),
        3,
        seed,
    ),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", FACTORIES)
def test_conformance(check, name):
    check(FACTORIES[name])


@pytest.mark.parametrize("name", FACTORIES)
def test_random_use(name):
    for seed in range(3):
        fuzz_optimizer(FACTORIES[name], seed)


def test_a_seeded_instance_of_nevergrad_is_conformant():
    def factory(seed):
        array = ng.p.Array(shape=(3,))
        return as_optimizer(ng.optimizers.OnePlusOne(array, budget=1000), seed=seed)

    # Building the instance, which is not ours to do, draws from the global state.
    check_optimizer(factory, skip=[check_global_random_state])


def test_bounds_that_are_open_in_some_coordinates_only_are_refused():
    with pytest.raises(ValueError, match=r"for all coordinates or for none; got \[0.0, -inf\]"):
        as_optimizer("nevergrad:OnePlusOne", bounds=([0, -np.inf], [1, 5]))
