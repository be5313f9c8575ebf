"""LoTFWA against the paper's steps, written out plainly and in scalars, and by hand."""

import numpy as np
import pytest

from dfo_core import LoTFWA, minimize


def rastrigin(x):
    return (x**2 - 10 * np.cos(2 * np.pi * x) + 10).sum(axis=-1)


def step(opt, losses):
    """Ask for a batch and tell it `losses`, a list or a function of the points."""
    batch = opt.ask()
    opt.tell(batch, losses(batch.x) if callable(losses) else losses)
    return batch.x


class Textbook:
    """Li & Tan 2018, one firework after the other, one coordinate after the other."""

    def __init__(self, lower, upper, d, popsize, mu, seed, fun, generations, alpha=0.0):
        self.rng = np.random.default_rng(seed)
        self.lower, self.upper, self.d, self.mu, self.fun = lower, upper, d, mu, fun
        self.total, self.alpha = popsize - mu, alpha
        self.last = generations
        self.g = 0
        self.evaluated = []
        self.X = [self.anywhere() for _ in range(mu)]
        self.f = [self.evaluate(x) for x in self.X]
        self.A = [upper - lower for _ in range(mu)]
        self.restarts = 0

    def anywhere(self):
        return np.array([self.rng.uniform(self.lower, self.upper) for _ in range(self.d)])

    def evaluate(self, x):
        self.evaluated.append(x)
        return float(self.fun(x))

    def mapped(self, points):
        for x in points:
            for k in range(self.d):
                if not self.lower <= x[k] <= self.upper:
                    x[k] = self.rng.uniform(self.lower, self.upper)
        return points

    def shares(self):
        """rank^-alpha of all sparks, rounded by largest remainder, the better rank first."""
        ranking = sorted(range(self.mu), key=lambda i: self.f[i])
        whole = sum((r + 1) ** -self.alpha for r in range(self.mu))
        quota = {i: self.total * (r + 1) ** -self.alpha / whole for r, i in enumerate(ranking)}
        n = {i: int(quota[i]) for i in ranking}
        for i in sorted(ranking, key=lambda i: n[i] - quota[i])[: self.total - sum(n.values())]:
            n[i] += 1
        return [n[i] for i in range(self.mu)]

    def generation(self):
        sparks, n_sparks = [], self.shares()
        for i in range(self.mu):
            for _ in range(n_sparks[i]):
                u = np.array([self.rng.uniform(-1, 1) for _ in range(self.d)])
                sparks.append(self.X[i] + self.A[i] * u)
        sparks = self.mapped(sparks)
        losses = [self.evaluate(s) for s in sparks]
        ends = np.cumsum(n_sparks)
        own = [slice(end - n, end) for end, n in zip(ends, n_sparks, strict=True)]
        guides = []
        for i in range(self.mu):
            ranked = [s for _, s in sorted(zip(losses[own[i]], sparks[own[i]], strict=True))]
            k = max(1, int(0.2 * n_sparks[i]))
            top = sum(ranked[:k]) / k
            bottom = sum(ranked[-k:]) / k
            guides.append(self.X[i] + top - bottom)
        guides = self.mapped(guides)
        guide_losses = [self.evaluate(x) for x in guides]
        self.g += 1
        improvement = []
        for i in range(self.mu):
            pool = [*zip(losses[own[i]], sparks[own[i]], strict=True), (guide_losses[i], guides[i])]
            f, x = min(pool, key=lambda pair: pair[0])
            improvement.append(max(0.0, self.f[i] - f))
            if f < self.f[i]:
                self.X[i], self.f[i] = x, f
                self.A[i] *= 1.2
            else:
                self.A[i] *= 0.9
        left, best = self.last - self.g, min(self.f)
        if left > 0:
            lost = [d > 0 and d * left < f - best for d, f in zip(improvement, self.f, strict=True)]
            for i in np.flatnonzero(lost):
                self.X[i], self.A[i] = self.anywhere(), self.upper - self.lower
                self.restarts += 1
            for i in np.flatnonzero(lost):
                self.f[i] = self.evaluate(self.X[i])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("popsize", "mu"), [(50, 5), (24, 2), (5, 1)])
def test_a_whole_run_is_the_papers(popsize, mu, seed):
    d, generations = 4, 25
    opt = LoTFWA((-5, 3), dim=d, popsize=popsize, fireworks=mu, generations=generations, seed=seed)
    book = Textbook(-5, 3, d, popsize, mu, seed, rastrigin, generations)
    for _ in range(generations):
        book.generation()
    ours = []
    while not opt.stop():
        ours.append(step(opt, rastrigin))
    assert opt.stop() == {"generations": generations}
    assert np.allclose(np.concatenate(ours), book.evaluated[: opt.nfev], rtol=1e-12, atol=1e-12)
    assert opt.nfev == mu + generations * popsize + book.restarts
    assert book.restarts > 0 or mu < 5
    assert opt.nit == generations
    assert np.allclose(opt.places, book.X)
    assert np.allclose(opt.amplitudes, np.repeat(np.array(book.A)[:, None], d, axis=1))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_whole_run_with_the_power_law_is_the_papers(alpha):
    opt = LoTFWA((-5, 3), dim=3, popsize=60, fireworks=4, alpha=alpha, generations=20, seed=1)
    book = Textbook(-5, 3, 3, 60, 4, 1, rastrigin, 20, alpha)
    for _ in range(20):
        book.generation()
    ours = []
    while not opt.stop():
        ours.append(step(opt, rastrigin))
    assert np.allclose(np.concatenate(ours), book.evaluated[: opt.nfev], rtol=1e-12, atol=1e-12)
    assert np.allclose(opt.places, book.X)
    assert book.restarts > 0


def test_a_guiding_spark_out_of_bounds_is_redrawn_within_them():
    """At a corner, with the best sparks beyond the worst, every guiding vector points outside."""
    redrawn = 0
    for seed in range(30):
        opt = LoTFWA((-1, 1), x0=[0.99, 0.0], popsize=5, amplitude0=0.5, seed=seed)
        step(opt, [1.0])
        sparks = step(opt, lambda x: -x[:, 0])
        vector = sparks[sparks[:, 0].argmax()] - sparks[sparks[:, 0].argmin()]
        guide = step(opt, [0.0])[0]
        assert (abs(guide) <= 1).all()
        if 0.99 + vector[0] > 1:
            redrawn += 1
            assert guide[0] != 1.0
        else:
            assert guide[0] == pytest.approx(0.99 + vector[0])
        if abs(vector[1]) <= 1:  # a coordinate that is inside is left alone
            assert guide[1] == pytest.approx(vector[1])
    assert redrawn > 20


def test_a_generation_by_hand():
    """One firework at 0, four sparks, losses chosen: every number is worked out on paper."""
    opt = LoTFWA((-8, 8), x0=[0.0], popsize=5, amplitude0=2, seed=0)
    assert opt.fireworks == 1
    assert step(opt, [10.0]).tolist() == [[0.0]]
    sparks = step(opt, [7.0, 3.0, 9.0, 8.0])
    assert (abs(sparks) <= 2).all()
    guide = step(opt, [5.0])
    assert guide[0] == pytest.approx(0 + sparks[1] - sparks[2])  # best minus worst
    assert opt.places[0] == pytest.approx(sparks[1])
    assert opt.fitness.tolist() == [3.0]
    assert opt.amplitudes.tolist() == [[2 * 1.2]]
    assert opt.nit == 1
    step(opt, [3.0, 4.0, 5.0, 6.0])  # equal is no improvement
    step(opt, [4.0])
    assert opt.places[0] == pytest.approx(sparks[1])
    assert opt.amplitudes[0, 0] == pytest.approx(2 * 1.2 * 0.9)
    step(opt, [9.0] * 4)
    guide = step(opt, [1.0])  # the guiding spark takes part in the selection
    assert opt.places[0] == pytest.approx(guide[0])
    assert opt.fitness.tolist() == [1.0]


def test_the_loser_restarts_with_the_whole_amplitude():
    opt = LoTFWA((0, 1), dim=2, popsize=6, fireworks=2, generations=3, seed=0)
    step(opt, [0.0, 100.0])
    # Firework 1 improves by 10 with two generations left: 20 < 90 - 0, so it has lost.
    step(opt, [50.0, 50.0, 90.0, 95.0])
    before = opt.places
    step(opt, [60.0, 99.0])
    assert not np.array_equal(opt.places[1], before[1])
    assert np.isnan(opt.fitness).tolist() == [False, True]
    assert opt.amplitudes[1].tolist() == [1.0, 1.0]
    assert opt.amplitudes[0] == pytest.approx([0.9, 0.9])
    moved = step(opt, [40.0])
    assert np.array_equal(moved[0], opt.places[1])
    assert opt.fitness.tolist() == [0.0, 40.0]


@pytest.mark.parametrize(
    ("loss", "left", "restarts"),
    [(90.0, 8, True), (90.0, 9, False), (100.0, 1, False), (101.0, 1, False)],
)
def test_the_tournaments_rule(loss, left, restarts):
    """delta * left < f - best, for a firework that improved: 10 * left < 90 up to left = 8."""
    opt = LoTFWA((0, 1), dim=2, popsize=6, fireworks=2, generations=left + 1, seed=0)
    step(opt, [0.0, 100.0])
    step(opt, [50.0, 50.0, loss, 200.0])
    step(opt, [60.0, 200.0])
    assert np.isnan(opt.fitness[1]) == restarts


def test_without_a_horizon_and_in_the_last_generation_nothing_restarts():
    for generations in (None, 1):
        opt = LoTFWA((0, 1), dim=2, popsize=6, fireworks=2, generations=generations, seed=0)
        step(opt, [0.0, 100.0])
        step(opt, [50.0, 50.0, 99.999, 200.0])
        step(opt, [60.0, 200.0])
        assert np.isfinite(opt.fitness).all()


def test_the_horizon_follows_from_the_budget():
    for budget, restarts in ((8 + 6 * 8, True), (8 + 6 * 9, False)):
        opt = LoTFWA((0, 1), dim=2, popsize=6, fireworks=2, budget=budget, seed=0)
        step(opt, [0.0, 100.0])
        step(opt, [50.0, 50.0, 90.0, 200.0])
        step(opt, [60.0, 200.0])
        assert opt.nfev == 8
        assert np.isnan(opt.fitness[1]) == restarts


def test_every_candidate_is_within_the_bounds_and_borders_are_redrawn_not_clipped():
    lower, upper = np.array([-1.0, 0.0, 5.0]), np.array([1.0, 10.0, 5.5])
    opt = LoTFWA((lower, upper), popsize=40, fireworks=2, seed=0)
    on_border = 0
    for _ in range(40):
        x = step(opt, lambda x: -x.sum(axis=1))
        assert (x >= lower).all()
        assert (x <= upper).all()
        on_border += ((x == lower) | (x == upper)).sum()
    assert on_border == 0


def test_amplitudes_are_floats_even_for_whole_numbers():
    opt = LoTFWA((0, 4), dim=2, popsize=5, amplitude0=np.array([1, 2]), seed=0)
    for _ in range(1 + 2 * 30):
        step(opt, lambda x: np.ones(len(x)))
    assert opt.amplitudes[0] == pytest.approx(np.array([1, 2]) * 0.9**30)


def test_the_guiding_vector_points_from_worse_to_better():
    opt = LoTFWA((-100, 100), x0=np.zeros(20), popsize=51, fireworks=1, amplitude0=1.0, seed=0)
    step(opt, lambda x: x.sum(axis=1))
    step(opt, lambda x: x.sum(axis=1))
    assert step(opt, lambda x: x.sum(axis=1)).sum() < -5


@pytest.mark.parametrize(
    ("popsize", "fireworks"), [(3, 1), (5, 1), (9, 1), (10, 2), (20, 4), (25, 5), (305, 5)]
)
def test_the_number_of_fireworks_follows_from_popsize(popsize, fireworks):
    opt = LoTFWA((0, 1), dim=2, popsize=popsize, seed=0)
    assert opt.fireworks == fireworks
    assert len(step(opt, rastrigin)) == fireworks
    assert len(step(opt, rastrigin)) == popsize - fireworks
    assert len(step(opt, rastrigin)) == fireworks
    assert opt.nit == 1


def test_sharing_by_rank():
    opt = LoTFWA((0, 1), dim=1, popsize=103, fireworks=3, alpha=1.0, amplitude0=1e-9, seed=0)
    places = step(opt, [3.0, 1.0, 2.0])
    sparks = opt.ask().x
    counts = [int((abs(sparks - x) < 1e-6).sum()) for x in places]
    assert counts == [18, 55, 27]  # 100 * (1/3, 1, 1/2) / (11/6), largest remainders up
    steep = LoTFWA((0, 1), dim=1, popsize=23, fireworks=3, alpha=20.0, amplitude0=1e-9, seed=0)
    places = step(steep, [3.0, 1.0, 2.0])
    sparks = steep.ask().x
    assert [int((abs(sparks - x) < 1e-6).sum()) for x in places] == [2, 16, 2]


def test_invalid_losses_never_win_and_a_firework_can_recover():
    opt = LoTFWA((-1, 1), x0=[0.5, 0.5], popsize=5, seed=0)
    step(opt, [np.nan])
    assert opt.fitness.tolist() == [np.inf]
    step(opt, [np.nan, 4.0, np.inf, 5.0])
    step(opt, [np.nan])
    assert opt.fitness.tolist() == [4.0]
    step(opt, [np.nan] * 4)
    step(opt, [-np.inf])
    assert opt.fitness.tolist() == [4.0]
    assert opt.result.n_invalid == 9


# -- foreign points ------------------------------------------------------------------------------


def test_a_foreign_loss_of_the_start_point_saves_its_evaluation():
    opt = LoTFWA((-1, 1), x0=[0.0, 0.0], popsize=5, seed=0)
    opt.tell_foreign([0.0, 0.0], 2.0)
    assert len(opt.ask()) == 4
    assert opt.result.fun == 2.0
    assert opt.nfev == 0


def test_a_foreign_loss_of_a_place_replaces_it_for_better_and_worse():
    opt = LoTFWA((-1, 1), dim=2, popsize=20, fireworks=2, seed=0)
    step(opt, [1.0, 2.0])
    for loss in (5.0, 0.5):
        opt.tell_foreign(opt.places[0], loss)
        assert opt.fitness.tolist() == [loss, 2.0]
        assert opt.result.fun == loss


def test_another_foreign_point_replaces_the_worst_if_it_is_better():
    opt = LoTFWA((-1, 1), dim=2, popsize=20, fireworks=2, seed=0)
    step(opt, [1.0, 2.0])
    step(opt, lambda x: np.full(len(x), 9.0))
    step(opt, lambda x: np.full(len(x), 9.0))
    places = opt.places
    opt.tell_foreign([0.25, 0.25], 2.5)
    assert np.array_equal(opt.places, places)
    opt.tell_foreign([0.25, 0.25], 1.5)
    assert opt.fitness.tolist() == [1.0, 1.5]
    assert opt.places[1].tolist() == [0.25, 0.25]
    assert opt.amplitudes[:, 0] == pytest.approx([2 * 0.9, 2.0])


def test_foreign_points_while_places_are_evaluated():
    opt = LoTFWA((-1, 1), x0=[0.0, 0.0], popsize=10, fireworks=2, seed=0)
    batch = opt.ask()
    opt.tell_foreign([0.5, 0.5], 1.0)  # takes the last firework, which has no loss yet
    opt.tell(batch, [3.0, 2.0])
    assert opt.places.tolist() == [[0.0, 0.0], [0.5, 0.5]]
    assert opt.fitness.tolist() == [3.0, 1.0]
    opt = LoTFWA((-1, 1), x0=[0.0, 0.0], popsize=10, fireworks=2, seed=0)
    batch = opt.ask()
    opt.tell_foreign([0.5, 0.5], 1.0)
    opt.tell(batch, [3.0, 0.5])
    assert np.array_equal(opt.places, batch.x)


def test_it_finds_the_optimum_of_a_multimodal_function():
    opt = LoTFWA((-5, 5), dim=3, popsize=60, budget=12_000, seed=0)
    while not opt.stop():
        step(opt, rastrigin)
    assert opt.nfev == 12_000
    assert opt.result.fun < 1e-3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"bounds": (0, None)}, "LoTFWA needs a finite lower and upper bound"),
        ({"x0": [2.0, 0.0]}, "x0 must lie within the bounds"),
        ({"popsize": 2}, "popsize must be a whole number of at least 3"),
        ({"popsize": 8, "fireworks": 3}, "lower fireworks or raise popsize to 9"),
        ({"alpha": -1}, "alpha"),
        ({"amplitude0": [1.0]}, r"amplitude0 must be a positive number or have shape \(2,\)"),
        ({"amplitude0": 0}, "amplitude0"),
        ({"amplification": 0.9}, "amplification must be above 1"),
        ({"reduction": 1.5}, "reduction below 1"),
        ({"guiding_ratio": 0.7}, "guiding_ratio must be at most 0.5"),
        ({"generations": 0}, "generations"),
    ],
)
def test_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LoTFWA(**{"bounds": (-1, 1), "dim": 2, **kwargs})
    opt = LoTFWA((-1, 1), dim=2)
    with pytest.raises(ValueError, match="within the bounds"):
        opt.tell_foreign([0.0, 1.5], 0.0)


@pytest.mark.parametrize("optimum", [0, 1])
def test_fireworks_that_cannot_move_any_more_end_the_run(optimum):
    result = minimize(
        lambda x: abs(x - optimum).sum(), bounds=(-5, 5), dim=2, method="lotfwa", popsize=5, seed=0
    )
    assert set(result.stop) == {"amplitude"}
    assert result.nfev < 20_000
    assert 0 <= result.stop["amplitude"] < 1e-10
