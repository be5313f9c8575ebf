import numpy as np
import pytest

from dfo_core import RandomSearch


def draws(opt, n):
    seen = []
    for _ in range(n):
        batch = opt.ask()
        seen.append(batch.x)
        opt.tell(batch, np.zeros(len(batch)))
    return np.concatenate(seen)


def test_uniform_within_bounds():
    x = draws(RandomSearch(([0, -1], [1, 3]), popsize=50, seed=0), 100)
    assert (x >= [0, -1]).all()
    assert (x <= [1, 3]).all()
    assert np.allclose(x.mean(axis=0), [0.5, 1.0], atol=0.05)
    assert np.allclose(x.std(axis=0), np.array([1, 4]) / np.sqrt(12), atol=0.05)


def test_normal_around_the_start():
    x = draws(RandomSearch(x0=[5.0, -5.0], sigma0=2.0, popsize=50, seed=0), 100)
    assert x[0].tolist() == [5.0, -5.0]
    assert np.allclose(x.mean(axis=0), [5, -5], atol=0.15)
    assert np.allclose(x.std(axis=0), 2, atol=0.1)


def test_the_start_point_is_the_first_candidate_once():
    x = draws(RandomSearch((-1, 1), x0=[0.5], popsize=3, seed=0), 2)
    assert x[0, 0] == 0.5
    assert (x[1:] != 0.5).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dim": 2}, "needs bounds, or x0"),
        ({"bounds": (0, None), "dim": 2}, "finite lower and upper"),
        ({"bounds": (0, 1), "x0": [2.0]}, "within the bounds"),
        ({"x0": [0.0], "sigma0": -1}, "sigma0"),
        ({"x0": [0.0], "popsize": 0}, "popsize"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RandomSearch(**kwargs)
