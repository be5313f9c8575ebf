"""The covariance models against dense linear algebra."""

import numpy as np
import pytest

from dfo_core.covariance import DiagonalCovariance, FullCovariance

N = 12


def random_updates(rng, count, n_rows=7):
    for _ in range(count):
        coefficients = rng.uniform(0, 0.1, n_rows)
        coefficients[n_rows // 2 :] *= -0.05
        yield 0.9, rng.standard_normal((n_rows, N)), coefficients


@pytest.mark.parametrize("lag", [1, 3, 5])
def test_collected_updates_are_the_updates_one_by_one(lag):
    model, C = FullCovariance(N, lag, 7), np.eye(N)
    for decay, rows, coefficients in random_updates(np.random.default_rng(0), 13):
        model.update(decay, rows, coefficients)
        C = decay * C + (rows.T * coefficients) @ rows
        assert np.allclose(model.matrix(), C, rtol=1e-12, atol=1e-14)
        assert np.allclose(model.variances, np.diag(C), rtol=1e-12)


@pytest.mark.parametrize("lag", [1, 4])
def test_samples_have_the_covariance_of_the_last_factorization(lag):
    model, rng = FullCovariance(N, lag, 7), np.random.default_rng(1)
    for i, update in enumerate(random_updates(rng, 11)):
        model.update(*update)
        if (i + 1) % lag == 0:
            factorized = model.matrix()
    A = model.color(np.eye(N)).T
    assert np.allclose(A @ A.T, factorized, rtol=1e-10, atol=1e-13)
    assert np.allclose(np.column_stack([model.axis(i) for i in range(N)]), A)
    z = rng.standard_normal((5, N))
    assert np.allclose(model.whiten(model.color(z)), z)


def test_color_and_whiten_leave_their_arguments_alone():
    model, rng = FullCovariance(N, 1, 7), np.random.default_rng(2)
    model.update(*next(random_updates(rng, 1)))
    z = rng.standard_normal((5, N))
    before = z.copy()
    model.color(z)
    model.whiten(z)
    assert np.array_equal(z, before)


def test_without_negative_coefficients():
    model, rows = FullCovariance(N, 1, 2), np.random.default_rng(3).standard_normal((2, N))
    model.update(0.5, rows, np.array([0.1, 0.0]))
    assert np.allclose(model.matrix(), 0.5 * np.eye(N) + 0.1 * np.outer(rows[0], rows[0]))


def test_condition_is_a_lower_bound():
    model, rng = FullCovariance(N, 1, N), np.random.default_rng(4)
    rotation = np.linalg.qr(rng.standard_normal((N, N)))[0]
    for exponent in (0, 3, 6, 9):
        axes = 10.0 ** np.linspace(0, exponent, N)
        model.update(1e-300, rotation, axes)
        true = np.linalg.cond(model.matrix())
        assert true / 1000 <= model.condition <= true * (1 + 1e-6)


def test_a_singular_matrix_is_reported_and_still_sampled_from():
    model = FullCovariance(N, 1, 1)
    model.update(0.0, np.ones((1, N)), np.array([1.0]))
    assert model.condition == np.inf
    y = model.color(np.random.default_rng(5).standard_normal((100, N)))
    assert np.isfinite(y).all()
    assert np.allclose(y, y[:, :1], atol=1e-4)


def test_diagonal_keeps_the_diagonal_of_the_full_update():
    model, C = DiagonalCovariance(N), np.eye(N)
    for decay, rows, coefficients in random_updates(np.random.default_rng(6), 9):
        model.update(decay, rows, coefficients)
        C = np.diag(np.diag(decay * C + (rows.T * coefficients) @ rows))
    assert np.allclose(model.matrix(), C)
    assert model.condition == pytest.approx(np.linalg.cond(C))
    z = np.random.default_rng(7).standard_normal((4, N))
    assert np.allclose(model.color(z), z @ np.sqrt(C))
    assert np.allclose(model.whiten(model.color(z)), z)
    assert np.allclose(model.axis(2), np.sqrt(C)[:, 2])
