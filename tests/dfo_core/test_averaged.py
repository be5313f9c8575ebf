"""Averaged: what is asked, what is told, and what is kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_optimizer import Recorder

from dfo_core import CMAES, Averaged, LoTFWA, RandomSearch, as_optimizer, minimize


def build(samples=3, n=4, **kwargs):
    inner = Recorder(seed=0, n=n)
    return Averaged(inner, samples, **kwargs), inner


def test_each_candidate_is_asked_for_so_many_times_under_ids_of_its_own():
    opt, _ = build()
    batch = opt.ask()
    alone = Recorder(seed=0, n=4).ask()
    assert np.array_equal(batch.x, np.repeat(alone.x, 3, axis=0))
    assert batch.ids.tolist() == list(range(12))


def test_the_optimizer_is_told_means_of_finite_losses():
    opt, inner = build()
    losses = [[1, 2, 6], [np.nan, 5, 7], [np.inf, np.nan, -np.inf], [-np.inf, 4, np.nan]]
    order = np.random.default_rng(0).permutation(12)
    opt.tell(opt.ask()[order], np.ravel(losses)[order])
    assert inner.generations == [[3.0, 6.0, np.inf, 4.0]]
    assert (opt.nfev, inner.nfev) == (12, 4)
    assert (opt.result.n_invalid, inner.result.n_invalid) == (6, 1)
    assert (opt.nit, opt.result.fun) == (1, 3.0)


@given(st.lists(st.floats(-1.7e308, 1.7e308), min_size=1, max_size=6))
def test_means_are_means(losses):
    opt, inner = build(samples=len(losses), n=1)
    opt.tell(opt.ask(), losses)
    ((mean,),) = inner.generations
    assert min(losses) <= mean <= max(losses) or mean == pytest.approx(losses[0], rel=1e-15)
    exact = float(sum(np.longdouble(loss) for loss in losses) / len(losses))
    assert mean == pytest.approx(exact, rel=1e-9, abs=1e-12 * np.abs(losses).max())
    if len(set(losses)) == 1:
        assert mean == losses[0]


def test_the_best_is_the_lowest_mean_not_the_lowest_loss():
    opt, _ = build(samples=2, n=3)
    batch = opt.ask()
    opt.tell(batch[[0, 2, 3]], [-9.0, 1.0, 2.0])
    assert opt.result.fun == 1.5  # of the one candidate that is complete
    opt.tell(batch[[1, 4, 5]], [99.0, 3.0, 3.0])
    assert opt.result.fun == 1.5
    assert np.array_equal(opt.result.x, batch.x[2])


def test_the_budget_counts_evaluations_and_the_optimizer_gets_its_share():
    inner = LoTFWA((-1, 1), dim=2, popsize=10, seed=0, budget=50)
    opt = Averaged(inner, 3)
    assert opt.budget == 150
    opt.budget = 100
    while not opt.stop():
        batch = opt.ask()
        assert inner.budget == 34
        opt.tell(batch, (batch.x**2).sum(axis=1))
    assert (opt.nfev, opt.stop()) == (100, {"budget": 100})
    assert opt.pending == 2  # of the last candidate
    opt.budget = 102
    opt.tell(opt.ask(), [0.0, 0.0])
    assert inner.nfev == 34


def test_the_target_is_for_means():
    opt = Averaged(CMAES(np.zeros(2), seed=0, target=0.5), 2)
    batch = opt.ask()
    losses = np.ones(len(batch))
    losses[0] = 0.1
    opt.tell(batch, losses)
    assert not opt.stop()
    batch = opt.ask()
    opt.tell(batch, np.full(len(batch), 0.5))
    assert opt.stop() == {"target": 0.5}


def test_averaging_finds_what_noise_hides():
    noise = np.random.default_rng(0)

    def noisy(x):
        return x @ x + noise.standard_normal()

    def true_loss(samples):
        inner = CMAES(np.full(5, 3.0), 0.5, seed=1)
        result = minimize(noisy, method=Averaged(inner, samples), budget=6000)
        return float(inner.mean @ inner.mean), result.nfev

    (alone, n), (averaged, m) = true_loss(1), true_loss(20)
    assert max(n, m) <= 6000
    assert averaged < 0.5
    assert averaged < alone


def test_other_libraries_can_be_averaged_too():
    opt = Averaged(as_optimizer("pycma", 3, seed=0), 2, budget=40)
    assert not opt.supports_state
    while not opt.stop():
        batch = opt.ask()
        opt.tell(batch, (batch.x**2).sum(axis=1))
    assert opt.nfev == 40
    with pytest.raises(NotImplementedError, match="supports_state"):
        opt.state_dict()
    with pytest.raises(NotImplementedError, match="accepts_foreign"):
        opt.tell_foreign(np.zeros(3), 0.0)


def test_foreign_points_reach_the_optimizer():
    inner = LoTFWA((-1, 1), x0=np.zeros(2), popsize=5, seed=0)
    opt = Averaged(inner, 2)
    opt.tell_foreign([0.5, 0.5], -1.0)
    assert inner.result.fun == opt.result.fun == -1.0
    assert np.array_equal(opt.remembered, inner.remembered)
    with pytest.raises(ValueError, match="within the bounds"):
        opt.tell_foreign([2.0, 0.0], 0.0)


def test_a_state_of_other_samples_or_another_optimizer_is_refused():
    state = Averaged(CMAES(np.zeros(3)), 2).state_dict()
    with pytest.raises(ValueError, match="samples=2"):
        Averaged(CMAES(np.zeros(3)), 3).load_state_dict(state)
    with pytest.raises(ValueError, match="optimizer='CMAES'"):
        Averaged(RandomSearch((-1, 1), dim=3), 2).load_state_dict(state)
    other = Averaged(CMAES(np.zeros(3), popsize=20, seed=1), 2)
    before = other.state_dict()
    with pytest.raises(ValueError, match=r"optimizer_popsize=7.*the same optimizer_popsize"):
        other.load_state_dict(state)
    np.testing.assert_equal(other.state_dict(), before)


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="samples must be a whole number of at least 1"):
        Averaged(CMAES(np.zeros(3)), 0)
    with pytest.raises(TypeError, match="must be an Optimizer; got str"):
        Averaged("cma-es", 3)
    used = CMAES(np.zeros(3))
    used.ask()
    with pytest.raises(ValueError, match="must not have been asked yet"):
        Averaged(used, 3)
