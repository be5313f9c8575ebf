"""One optimizer a layer, whatever it is made from."""

import sys

import numpy as np
import pytest
import torch

from dfo_core import CMAES, Optimizer
from integrations import UserError
from integrations.optimizers import POPSIZES, RADIUS, make_optimizers, optimizer_name

NAMES = ["lotfwa", "cma-es", "sep-cma-es", "random", "pycma", "nevergrad:OnePlusOne"]


class Own:
    """A user's optimizer: one point at a time."""

    def __init__(self, dim, seed):
        self.rng, self.dim = np.random.default_rng(seed), dim

    def ask(self):
        return self.rng.standard_normal(self.dim)

    def tell(self, x, loss):
        pass


def factory(dim, seed):
    return Own(dim, seed)


def make(spec, layers=(0, 3), seed=0, popsize=None):
    return make_optimizers(spec, layers, 6, seed, 100, popsize)


def first_points(optimizers):
    """What each layer's optimizer samples first, told that nothing is good."""
    points = {}
    for layer, optimizer in optimizers.items():
        asked = []
        while sum(map(len, asked)) < 4:
            batch = optimizer.ask()
            optimizer.tell(batch, np.ones(len(batch)))
            asked.append(batch.x)
        points[layer] = np.concatenate(asked)[:4]
    return points


@pytest.mark.parametrize("spec", [*NAMES, factory, f"{__name__}:factory"])
def test_each_layer_gets_one_of_its_own_from_the_seed(spec):
    optimizers = make(spec)
    assert list(optimizers) == [0, 3]
    assert all(isinstance(o, Optimizer) and o.dim == 6 for o in optimizers.values())
    first = first_points(optimizers)
    again, other = first_points(make(spec)), first_points(make(spec, seed=1))
    fewer = first_points(make(spec, layers=[3]))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[3], fewer[3])  # whichever layers are tuned beside it
    assert not np.array_equal(first[0], first[3])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("instance", [Own(6, 0), CMAES(np.zeros(6), seed=0)])
def test_an_instance_is_copied_and_left_alone(instance):
    optimizers = make(instance)
    first = first_points(optimizers)
    assert np.array_equal(first[0], first[3])
    assert np.array_equal(first_points(make(instance))[0], first[0])


def nevergrad_class():
    return pytest.importorskip("nevergrad").optimizers.DE


def optuna_sampler():
    return pytest.importorskip("optuna").samplers.TPESampler(seed=0)


def evotorch_state():
    functional = pytest.importorskip("evotorch.algorithms.functional")
    center, settings = torch.zeros(6), {"objective_sense": "min", "stdev_init": 1.0}
    return functional.cem(center_init=center, parenthood_ratio=0.5, **settings)


@pytest.mark.parametrize(
    "build",
    [nevergrad_class, optuna_sampler, evotorch_state],
    ids=lambda f: f.__name__,
)
def test_what_other_libraries_build_with_is_taken_as_it_is(build):
    popsize = 4 if build is evotorch_state else None
    optimizers = make(build(), popsize=popsize)
    assert {optimizer.budget for optimizer in optimizers.values()} == {None}
    first, again = first_points(optimizers), first_points(make(build(), popsize=popsize))
    assert all(np.isfinite(points).all() for points in first.values())
    if build in (nevergrad_class, evotorch_state):  # which is given seeds, each layer its own
        assert np.array_equal(first[0], again[0])
        assert not np.array_equal(first[0], first[3])


def test_a_study_is_no_search_for_several_layers():
    study = pytest.importorskip("optuna").create_study()
    with pytest.raises(UserError, match=r"an optuna study holds one search.*sampler"):
        make(study)


@pytest.mark.parametrize("name", ["lotfwa", "cma-es", "random", "pycma"])
def test_generations_are_of_the_size_asked_for_or_of_a_default(name):
    for popsize, expected in ((None, POPSIZES[name]), (12, 12)):
        optimizer = make(name, popsize=popsize)[0]
        if name == "lotfwa":  # its place's loss is known, where the search tells it
            optimizer.tell_foreign(np.zeros(6), 1.0)
        while optimizer.nit == 0:
            batch = optimizer.ask()
            optimizer.tell(batch, np.ones(len(batch)))
        assert optimizer.nfev == expected + (name == "lotfwa" and popsize == 12)


def test_no_delta_is_where_the_search_begins():
    assert np.array_equal(make("cma-es")[0].mean, np.zeros(6))
    assert np.array_equal(make("lotfwa")[0].places[0], np.zeros(6))
    for name in NAMES:
        assert np.abs(first_points(make(name))[0]).mean() < RADIUS


@pytest.mark.parametrize("spec", NAMES)
def test_the_run_has_one_budget_for_all_layers(spec):
    assert {optimizer.budget for optimizer in make(spec).values()} == {None}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adam", "optimizer: unknown optimizer 'adam'; known are cma-es"),
        ("nevergrad:Nope", "optimizer: .*Nope"),
        ("no_such_module:thing", "'no_such_module:thing': No module named 'no_such_module'"),
        ("math:thing", "'math:thing': module 'math' has no attribute 'thing'.*known name, or"),
        (None, "NoneType has no method ask"),
        (CMAES(np.zeros(5)), "has 5 coordinates; dim=6 was asked for"),
    ],
)
def test_what_cannot_be_made_into_an_optimizer(spec, message):
    with pytest.raises(UserError, match=message):
        make(spec)


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(UserError, match=r"optimizer: .*pip install cma"):
        make("pycma")


def test_what_an_optimizer_is_called():
    assert optimizer_name("lotfwa") == "lotfwa"
    assert optimizer_name(factory) == "factory"
    assert optimizer_name(Own) == optimizer_name(Own(3, 0)) == "Own"
