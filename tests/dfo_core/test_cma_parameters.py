"""Strategy parameters against pycma's, where the two follow the same tutorial."""

import cma
import numpy as np
import pytest
from cma.sigma_adaptation import CMAAdaptSigmaCSA

from dfo_core.cma_parameters import CMAParameters

CASES = [(2, None), (10, None), (10, 7), (40, 100), (400, 20), (1600, 20)]


def pycma_strategy(dim, popsize):
    """A pycma strategy with path length control; it makes those parameters at the first tell."""
    options = {"verbose": -9, "seed": 1, "AdaptSigma": CMAAdaptSigmaCSA}
    options |= {"popsize": popsize} if popsize else {}
    es = cma.CMAEvolutionStrategy(dim * [0.0], 1.0, options)
    es.adapt_sigma.initialize(es)
    return es


@pytest.mark.parametrize(("dim", "popsize"), CASES)
def test_agrees_with_pycma(dim, popsize):
    ours = CMAParameters.default(dim, popsize)
    es = pycma_strategy(dim, popsize)
    theirs = es.sp
    assert ours.popsize == theirs.popsize
    assert ours.mu == theirs.weights.mu
    assert ours.mueff == pytest.approx(theirs.weights.mueff, rel=1e-12)
    assert np.allclose(ours.weights[: ours.mu], theirs.weights[: ours.mu], rtol=1e-12)
    assert ours.c_c == pytest.approx(theirs.cc, rel=1e-12)
    assert ours.c_1 == pytest.approx(theirs.c1, rel=1e-12)
    assert ours.c_mu == pytest.approx(theirs.cmu, rel=1e-12)
    assert np.allclose(ours.weights, theirs.weights, rtol=1e-9, atol=1e-12)
    assert ours.chi_n == pytest.approx(es.const.chiN, rel=1e-12)


@pytest.mark.parametrize(("dim", "popsize"), CASES)
def test_step_size_parameters(dim, popsize):
    """Table 1 of the tutorial; pycma's c_sigma is min(1/2, (mueff + 2) / (n + mueff + 3))."""
    p = CMAParameters.default(dim, popsize)
    assert p.c_sigma == pytest.approx((p.mueff + 2) / (dim + p.mueff + 5))
    excess = np.sqrt((p.mueff - 1) / (dim + 1)) - 1
    assert p.d_sigma == pytest.approx(1 + 2 * max(0, excess) + p.c_sigma)
    es = pycma_strategy(dim, popsize)
    assert es.adapt_sigma.cs == pytest.approx(min(0.5, (p.mueff + 2) / (dim + p.mueff + 3)))


def test_weights():
    active, passive = CMAParameters.default(10, 9), CMAParameters.default(10, 9, active=False)
    assert active.weights[:4].sum() == pytest.approx(1)
    assert active.weights[4] == pytest.approx(0)
    assert (active.weights[5:] < 0).all()
    assert (np.diff(active.weights) < 0).all()
    assert (passive.weights[4:] == 0).all()
    assert np.array_equal(active.weights[:4], passive.weights[:4])


@pytest.mark.parametrize("dim", [1, 2, 5, 50, 1000])
@pytest.mark.parametrize("popsize", [2, 3, 10, 200])
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_learning_rates_are_sound(dim, popsize, covariance):
    p = CMAParameters.default(dim, popsize, covariance=covariance)
    assert 0 < p.c_1 <= 1
    assert 0 <= p.c_mu <= 1 - p.c_1 + 1e-12
    assert p.d_sigma >= 1
    # Positive definiteness of C after the worst generation.
    assert -dim * p.c_mu * p.weights[p.mu :].sum() <= 1 - p.c_1 - p.c_mu + 1e-12


def test_lag_is_the_tutorials():
    assert [CMAParameters.default(n, 20).lag for n in (10, 400, 800, 1600)] == [1, 3, 7, 14]


@pytest.mark.parametrize("popsize", [1, 0, 2.5])
def test_popsize_must_be_a_population(popsize):
    with pytest.raises(ValueError, match="popsize must be a whole number of at least 2"):
        CMAParameters.default(5, popsize)
