"""Each stop reason in the situation it is there for, and not before."""

import numpy as np
import pytest

from dfo_core import CMAES
from dfo_core.cma_stopping import StoppingCriteria
from dfo_core.covariance import DiagonalCovariance


def run(fun, generations=4000, x0=None, sigma0=1.0, **kwargs):
    opt = CMAES(np.ones(4) if x0 is None else x0, sigma0, seed=0, **kwargs)
    for _ in range(generations):
        if opt.stop():
            break
        batch = opt.ask()
        opt.tell(batch, fun(batch.x))
    return opt


def sphere(x):
    return (x**2).sum(axis=1)


def only(**option):
    """All criteria off but one."""
    off = dict.fromkeys(("tolfun", "tolfunhist", "tolx", "tolfacupx", "tolupsigma"))
    off |= dict.fromkeys(("tolflatfitness", "tolconditioncov", "maxiter", "tolxstagnation"))
    off |= dict.fromkeys(("noeffectaxis", "noeffectcoord", "tolstagnation"), False)
    return {**off, **option}


def test_nothing_before_the_first_generation():
    assert run(sphere, generations=0).stop() == {}


def test_tolfun_ends_an_ordinary_run():
    opt = run(sphere)
    assert set(opt.stop()) <= {"tolfun", "tolfunhist"}
    assert opt.stop()
    assert opt.result.fun < 1e-11
    assert opt.result.stop == opt.stop()


@pytest.mark.parametrize(
    ("option", "fun", "kwargs"),
    [
        ({"maxiter": 7}, sphere, {}),
        ({"tolfun": 1e-8}, sphere, {}),
        ({"tolfunhist": 1e-8}, sphere, {}),
        ({"tolx": 1e-6}, sphere, {}),
        ({"tolfacupx": 1e3}, lambda x: x[:, 0], {}),
        ({"tolflatfitness": 1}, lambda x: np.ones(len(x)), {}),
        ({"tolconditioncov": 1e6}, lambda x: x[:, 0] ** 2 + 1e10 * (x[:, 1:] ** 2).sum(1), {}),
        ({"tolconditioncov": 1e4}, lambda x: x @ 10.0 ** np.arange(0, 8, 2), {}),
        ({"tolstagnation": 60}, lambda x: np.random.default_rng(len(x)).random(len(x)), {}),
        ({"noeffectcoord": True}, sphere, {"x0": np.array([1e18, 1, 1, 1])}),
        ({"noeffectaxis": True}, sphere, {"x0": np.full(4, 1e18)}),
        ({"tolupsigma": 1.5}, lambda x: -sphere(x), {}),
    ],
)
def test_each_reason(option, fun, kwargs):
    (name, value), *_ = option.items()
    opt = run(fun, stop_options=only(**option), **kwargs)
    assert name in opt.stop(), opt.nit
    if not isinstance(value, bool):
        assert opt.stop()[name] == value


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_all_off_runs_on(covariance):
    opt = run(sphere, generations=300, stop_options=only(), covariance=covariance)
    assert opt.stop() == {}
    assert opt.nit == 300


def test_stagnation_needs_a_stagnating_best_and_median():
    noise = np.random.default_rng(0)
    still = run(lambda x: noise.random(len(x)), 400, stop_options=only(tolstagnation=100))
    assert "tolstagnation" in still.stop()
    better = iter(range(10**6))
    moving = run(
        lambda x: noise.random(len(x)) - 0.1 * next(better),
        400,
        stop_options=only(tolstagnation=100),
    )
    assert moving.stop() == {}


def test_invalid_losses_do_not_look_like_a_small_range():
    opt = run(lambda x: np.full(len(x), np.nan), generations=30, stop_options=only(tolfun=1e-11))
    assert opt.stop() == {}


def test_a_flat_generation_is_forgiven_once():
    opt = CMAES(np.ones(3), seed=0, stop_options=only(tolflatfitness=1))
    for make_flat in (True, False, True):
        batch = opt.ask()
        opt.tell(batch, np.ones(len(batch)) if make_flat else sphere(batch.x))
        assert not opt.stop()
    batch = opt.ask()
    opt.tell(batch, np.ones(len(batch)))
    assert opt.stop() == {"tolflatfitness": 1}


def test_tolfunrel_is_relative_to_the_medians_gain():
    def loss(x):
        return sphere(x) + 100

    opt = CMAES(np.full(4, 10.0), seed=0, stop_options=only(tolfunrel=1e-3))
    medians = []
    while not opt.stop():
        batch = opt.ask()
        losses = loss(batch.x)
        medians.append(np.sort(losses)[len(losses) // 2])
        opt.tell(batch, losses)
        holds = np.ptp(losses) < 1e-3 * (medians[0] - min(medians))
        assert bool(opt.stop()) == holds
    assert opt.stop() == {"tolfunrel": 1e-3}


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1.0, 3.0])
def test_tolxstagnation_is_pycmas(scale):
    """The same walk of the mean for pycma's class and ours."""
    from cma.evolution_strategy import _StopTolXStagnation

    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal((400, 3)) * rng.random((400, 1)) ** 4 * scale, axis=0)
    theirs = _StopTolXStagnation(walk[0]).set_params([1.0, 20, 0.1])
    ours = StoppingCriteria(only(tolxstagnation=1.0), 3, 8, 1.0)
    ours.observe(np.arange(8.0), walk[0])
    stopped = []
    for x in walk[1:]:
        theirs.update(x)
        ours.observe(np.arange(8.0), x)
        holds = "tolxstagnation" in ours.reasons(1, x, 1.0, x, DiagonalCovariance(3))
        assert holds == theirs.stop
        stopped.append(holds)
    assert any(stopped) == (scale < 1)


def test_a_flat_mean_stops_a_search_whose_losses_are_noise():
    noise = np.random.default_rng(0)
    opt = run(lambda x: noise.random(len(x)), sigma0=1e-12, stop_options=only(tolxstagnation=1e-9))
    assert opt.stop() == {"tolxstagnation": 1e-9}
    assert opt.nit > 20
