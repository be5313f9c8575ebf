"""LM-MA-ES against the paper's Algorithm 1, written out line by line."""

import numpy as np
import pytest

from dfo_core import CMAES, LMMAES


def sphere(x):
    return (x**2).sum(axis=-1)


def ellipsoid(x):
    return (10.0 ** (2 * np.arange(x.shape[-1]) / (x.shape[-1] - 1)) * x**2).sum(axis=-1)


def rosenbrock(x):
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(axis=-1)


def run(opt, fun):
    while not opt.stop():
        batch = opt.ask()
        opt.tell(batch, fun(batch.x))
    return opt


class Textbook:
    """arXiv 1705.06693, Algorithm 1 with its default parameters."""

    def __init__(self, y, sigma, rng):
        self.n = n = len(y)
        self.lam = 4 + int(np.floor(3 * np.log(n)))
        self.mu = self.lam // 2
        w = np.array([np.log(self.mu + 0.5) - np.log(i) for i in range(1, self.mu + 1)])
        self.w = w / w.sum()
        self.mu_w = 1 / sum(self.w**2)
        self.m = 4 + int(np.floor(3 * np.log(n)))
        self.c_sigma = 2 * self.lam / n
        self.c_d = [1 / (1.5 ** (i - 1) * n) for i in range(1, self.m + 1)]
        self.c_c = [self.lam / (4 ** (i - 1) * n) for i in range(1, self.m + 1)]
        self.y, self.sigma, self.rng = y, sigma, rng
        self.p_sigma = np.zeros(n)
        self.paths = [np.zeros(n) for _ in range(self.m)]
        self.t = 0

    def generation(self, f):
        z = self.rng.standard_normal((self.lam, self.n))
        d = []
        for i in range(self.lam):
            d_i = z[i]
            for j in range(min(self.t, self.m)):
                m_j, c = self.paths[j], self.c_d[j]
                d_i = (1 - c) * d_i + c * m_j * (m_j @ d_i)
            d.append(d_i)
        x = [self.y + self.sigma * d_i for d_i in d]
        best = sorted(range(self.lam), key=lambda i: f(x[i]))[: self.mu]
        self.y = self.y + self.sigma * sum(w * d[i] for w, i in zip(self.w, best, strict=True))
        step = sum(w * z[i] for w, i in zip(self.w, best, strict=True))
        c = self.c_sigma
        self.p_sigma = (1 - c) * self.p_sigma + np.sqrt(self.mu_w * c * (2 - c)) * step
        for j in range(self.m):
            c = self.c_c[j]
            self.paths[j] = (1 - c) * self.paths[j] + np.sqrt(self.mu_w * c * (2 - c)) * step
        self.sigma *= np.exp(self.c_sigma / 2 * (sum(self.p_sigma**2) / self.n - 1))
        self.t += 1
        return np.array(x)


@pytest.mark.parametrize(("n", "fun"), [(100, sphere), (150, ellipsoid), (300, rosenbrock)])
def test_a_run_is_the_papers(n, fun):
    opt = LMMAES(np.full(n, 0.3), 0.5, seed=1)
    book = Textbook(np.full(n, 0.3), 0.5, np.random.default_rng(1))
    for _ in range(40):
        batch = opt.ask()
        assert np.allclose(batch.x, book.generation(fun), rtol=1e-9, atol=1e-9)
        opt.tell(batch, fun(batch.x))
        assert opt.sigma == pytest.approx(book.sigma, rel=1e-9)
    assert np.allclose(opt.mean, book.y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
@pytest.mark.parametrize("popsize", [None, 30])
def test_it_converges_where_the_papers_rates_leave_their_range(n, popsize):
    for seed in range(5):
        opt = LMMAES(np.ones(n), 1.0, popsize, seed=seed, target=1e-9, budget=20_000)
        assert "target" in run(opt, sphere).stop()


def test_sphere_in_a_thousand_coordinates():
    """Linear convergence, at about 90 evaluations a coordinate for ten orders of magnitude."""
    opt = run(LMMAES(np.ones(1000), 1.0, seed=0, target=1e-7, budget=100_000), sphere)
    assert "target" in opt.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("fun", "x0", "limit"), [(ellipsoid, 1.0, 1e-4), (rosenbrock, 0.0, 990.0)])
def test_ill_conditioned_functions_in_a_thousand_coordinates(fun, x0, limit):
    opt = run(LMMAES(np.full(1000, x0), 0.1, seed=0, target=limit, budget=200_000), fun)
    assert "target" in opt.stop()


@pytest.mark.slow
def test_a_long_axis_is_learnt():
    """On the cigar the paths pay: without them, at the same budget, it is hardly begun."""
    n = 300

    def cigar(x):
        return x[:, 0] ** 2 + 1e4 * (x[:, 1:] ** 2).sum(axis=1)

    learnt, blind = (
        run(LMMAES(np.ones(n), 1.0, memory=m, seed=0, target=1e-6, budget=150_000), cigar)
        for m in (None, 1)
    )
    assert "target" in learnt.stop()
    assert learnt.result.fun < 1e-3 * blind.result.fun


def test_bounds_hold_and_an_optimum_at_the_border_is_found():
    opt = LMMAES(np.zeros(50), 0.3, bounds=(-1, 1), seed=0, budget=15_000)

    def loss(x):
        assert (abs(x) <= 1).all()
        return sphere(x - 1)

    assert np.allclose(run(opt, loss).result.x, 1, atol=1e-4)


def test_foreign_points_help():
    rng = np.random.default_rng(0)
    alone = LMMAES(np.full(200, 5.0), 0.1, seed=0, target=1.0, budget=50_000)
    helped = LMMAES(np.full(200, 5.0), 0.1, seed=0, target=1.0, budget=50_000)
    run(alone, sphere)
    while not helped.stop():
        point = 0.5 * helped.mean + 0.01 * rng.standard_normal(200)
        helped.tell_foreign(point, sphere(point))
        batch = helped.ask()
        assert len(batch) == helped.popsize - 1
        helped.tell(batch, sphere(batch.x))
    assert helped.nfev < alone.nfev


def test_stops_by_its_own_reasons():
    opt = run(LMMAES(np.ones(30), 1.0, seed=0, budget=100_000), sphere)
    assert set(opt.stop()) <= {"tolfun", "tolfunhist"}
    assert opt.result.fun < 1e-10
    assert "noeffectaxis" in run(LMMAES(np.full(30, 1e18), 1.0, seed=0), sphere).stop()
    assert "tolfacupx" in run(LMMAES(np.ones(30), 1.0, seed=0), lambda x: x[:, 0]).stop()


def test_the_covariance_is_what_is_sampled():
    opt = LMMAES(np.zeros(40), 1.0, seed=0)
    for _ in range(300):
        batch = opt.ask()
        opt.tell(batch, ellipsoid(batch.x - 1))
    many = LMMAES(np.zeros(40), 1.0, 4000, seed=0)
    many._covariance = opt._covariance
    empirical = np.cov(many.ask().x.T)
    assert np.allclose(empirical, opt.covariance_matrix, atol=0.15 * opt.covariance_matrix.max())


def test_a_state_of_other_settings_is_refused():
    with pytest.raises(ValueError, match="memory=3"):
        LMMAES(np.zeros(9)).load_state_dict(LMMAES(np.zeros(9), memory=3).state_dict())
    with pytest.raises(ValueError, match="state is of LMMAES"):
        CMAES(np.zeros(9)).load_state_dict(LMMAES(np.zeros(9)).state_dict())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"memory": 0}, "memory must be a whole number of at least 1"),
        ({"popsize": 1}, "popsize must be a whole number of at least 2"),
        ({"sigma0": -1}, "sigma0 must be a finite number above zero"),
        ({"bounds": (1, 2)}, "x0 must lie within the bounds"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LMMAES(np.zeros(3), **kwargs)
