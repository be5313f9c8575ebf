"""The compact form of LM-MA-ES's transformation against the product of its factors."""

import numpy as np
import pytest

from dfo_core.limited_memory import LimitedMemoryCovariance

N, M = 30, 7
RATES = 1 / (1.5 ** np.arange(M) * N)


def learned(n_updates, seed=0):
    """A model and the product T_k ... T_1, (N, N), multiplied out."""
    rng = np.random.default_rng(seed)
    model = LimitedMemoryCovariance(RATES, N)
    paths = np.zeros((M, N))
    decay, gain = rng.uniform(0.5, 0.99, M), rng.uniform(0.5, 2, M)
    for _ in range(n_updates):
        step = rng.standard_normal(N)
        model.update(decay, gain, step)
        paths = decay[:, None] * paths + np.outer(gain, step)
    A = np.eye(N)
    for c, m in list(zip(RATES, paths, strict=True))[:n_updates]:
        A = ((1 - c) * np.eye(N) + c * np.outer(m, m)) @ A
    return model, A


@pytest.mark.parametrize("n_updates", [0, 1, 3, 7, 20])
def test_it_is_the_product_of_the_factors(n_updates):
    model, A = learned(n_updates)
    z = np.random.default_rng(1).standard_normal((5, N))
    assert np.allclose(model.color(z), z @ A.T, rtol=1e-10, atol=1e-12)
    assert np.allclose(model.whiten(z @ A.T), z, rtol=1e-8, atol=1e-10)
    assert np.allclose(model.matrix(), A @ A.T, rtol=1e-10, atol=1e-12)
    assert np.allclose(model.variances, np.diag(A @ A.T), rtol=1e-10)
    assert np.allclose(model.axis(4), A[:, 4], rtol=1e-10, atol=1e-12)
    assert model.condition == pytest.approx(np.linalg.cond(A @ A.T), rel=1e-6)


def test_state():
    model, _ = learned(5)
    other = LimitedMemoryCovariance(RATES, N)
    other.set_state(model.get_state())
    z = np.ones((1, N))
    assert np.array_equal(model.color(z), other.color(z))


def test_no_n_by_n_array_is_made():
    import tracemalloc

    n = 20_000
    model = LimitedMemoryCovariance(1 / (1.5 ** np.arange(33) * n), n)
    tracemalloc.start()
    model.update(np.full(33, 0.9), np.ones(33), np.ones(n))
    model.whiten(model.color(np.ones((10, n))))
    assert model.variances.shape == (n,)
    assert np.isfinite(model.condition)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * n * 8
