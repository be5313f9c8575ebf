"""The quasi-random search against scipy's sequences and what is known of them."""

import warnings

import numpy as np
import pytest
from scipy.stats import kstest, norm, qmc

from dfo_core import QuasiRandom, RandomSearch


def draws(opt, n):
    seen = []
    while sum(map(len, seen)) < n:
        batch = opt.ask()
        seen.append(batch.x)
        opt.tell(batch, np.zeros(len(batch)))
    return np.concatenate(seen)[:n]


@pytest.mark.parametrize("sequence", ["sobol", "halton"])
@pytest.mark.parametrize("dim", [2, 8])
def test_more_even_than_independent_draws(sequence, dim):
    even = draws(QuasiRandom((0, 1), dim=dim, sequence=sequence, seed=0), 256)
    independent = draws(RandomSearch((0, 1), dim=dim, seed=0), 256)
    assert qmc.discrepancy(even) < 0.3 * qmc.discrepancy(independent)


def test_sobol_points_are_balanced_after_each_power_of_two():
    x = draws(QuasiRandom(([-1, 0], [1, 8]), seed=3, popsize=10), 64)
    for n in (4, 16, 64):
        counts = np.histogram2d(x[:n, 0], x[:n, 1], bins=int(n**0.5), range=[[-1, 1], [0, 8]])[0]
        assert (counts == 1).all()


@pytest.mark.parametrize("sequence", ["sobol", "halton"])
def test_the_batches_size_makes_no_difference_and_nothing_is_warned(sequence):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, seven, many = (
            draws(QuasiRandom((0, 1), dim=3, sequence=sequence, popsize=p, seed=1), 100)
            for p in (1, 7, 100)
        )
    assert np.array_equal(one, many)
    assert np.array_equal(seven, many)


def test_it_is_scipys_sequence():
    opt = QuasiRandom((2, 4), dim=3, popsize=8, seed=1)
    theirs = qmc.Sobol(3, seed=opt.state_dict()["own"]["_scramble_seed"]).random(32)
    assert np.array_equal(draws(opt, 32), 2 + 2 * theirs)


@pytest.mark.parametrize("sequence", ["sobol", "halton"])
def test_normal_around_the_start(sequence):
    x = draws(QuasiRandom(x0=[5.0, -5.0], sigma0=2.0, sequence=sequence, seed=0), 1025)
    assert x[0].tolist() == [5.0, -5.0]
    for column, mean in zip(x[1:].T, (5, -5), strict=True):
        # Far closer to the normal distribution than 1024 independent draws, about 0.03.
        assert kstest(column, norm(mean, 2).cdf).statistic < 0.005
    assert abs(np.corrcoef(x[1:].T)[0, 1]) < 0.02


def test_the_grids_first_point_has_a_finite_quantile():
    class Corner:
        def random(self, n):
            return np.zeros((n, 2)) if n == 1 else np.full((n, 2), 1 - 2.0**-30)

    opt = QuasiRandom(x0=np.zeros(2), seed=0)
    opt._engine = Corner()
    x = opt.ask().x
    assert np.isfinite(x).all()
    assert x[1, 0] == pytest.approx(-x[2, 0])


def test_the_start_point_comes_before_the_sequence():
    plain = draws(QuasiRandom((-1, 1), dim=2, popsize=4, seed=0), 7)
    started = draws(QuasiRandom((-1, 1), x0=[0.5, 0.5], popsize=4, seed=0), 8)
    assert started[0].tolist() == [0.5, 0.5]
    assert np.array_equal(started[1:], plain)


def test_thousands_of_coordinates():
    assert QuasiRandom((0, 1), dim=5000, popsize=2, seed=0).ask().x.shape == (2, 5000)
    with pytest.raises(ValueError, match="at most 21201 coordinates; got 30000"):
        QuasiRandom((0, 1), dim=30_000)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dim": 2}, "QuasiRandom needs bounds, or x0"),
        ({"bounds": (0, None), "dim": 2}, "QuasiRandom needs a finite lower and upper"),
        ({"bounds": (0, 1), "dim": 2, "sequence": "lattice"}, 'sequence must be "sobol" or'),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        QuasiRandom(**kwargs)
