"""The options that CMA-ES and LM-MA-ES share: bounds by resampling, elitism, mirrored pairs."""

import cma
import numpy as np
import pytest

from dfo_core import CMAES, LMMAES
from dfo_core.selection import winners_of_pairs

STRATEGIES = [CMAES, LMMAES]


def sphere(x):
    return (x**2).sum(axis=-1)


def ellipsoid(x):
    return (10.0 ** (6 * np.arange(x.shape[-1]) / (x.shape[-1] - 1)) * x**2).sum(axis=-1)


def run(opt, fun, generations=10**9):
    for _ in range(generations):
        if opt.stop():
            break
        batch = opt.ask()
        opt.tell(batch, fun(batch.x))
    return opt


# -- resampling ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("optimum", [0.0, 0.97, 1.0])
def test_resampled_points_are_inside_and_an_optimum_at_the_border_is_found(strategy, optimum):
    def loss(x):
        assert (x >= -1).all()
        assert (x[:, :4] <= 1).all()
        return sphere(x - target)

    target = np.array([optimum] * 4 + [3.0])
    opt = strategy(
        np.zeros(5),
        0.3,
        bounds=(-1, [1, 1, 1, 1, np.inf]),
        bounds_handling="resample",
        seed=0,
        budget=6000,
    )
    run(opt, loss)
    assert np.allclose(opt.result.x, np.minimum(target, [1, 1, 1, 1, np.inf]), atol=1e-3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_steep_slope_into_the_border_is_followed_most_of_the_way(strategy):
    opt = strategy(np.zeros(5), 0.3, bounds=(-1, 1), bounds_handling="resample", seed=0)
    opt.budget = 6000
    assert np.allclose(run(opt, lambda x: sphere(x - 5)).result.x, 1, atol=0.15)


def test_resampled_points_are_normal_given_the_box():
    """One generation from a mean near a border: the truncated normal distribution."""
    from scipy.stats import kstest, truncnorm

    opt = CMAES(
        [0.9, 0.0], 0.5, 4000, bounds=([-np.inf, -1], 1), bounds_handling="resample", seed=0
    )
    x = opt.ask().x
    low, high = (-np.inf - 0.9) / 0.5, (1 - 0.9) / 0.5
    assert kstest(x[:, 0], truncnorm(low, high, 0.9, 0.5).cdf).pvalue > 0.01
    assert kstest(x[:, 1], truncnorm(-2, 2, 0, 0.5).cdf).pvalue > 0.01
    assert ((x != 1) & (x != -1)).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_never_inside_is_clipped_and_learnt_from_where_it_was_evaluated(strategy):
    n = 200  # half the coordinates of every draw are outside
    opt = strategy(np.zeros(n), 1.0, bounds=(0, None), bounds_handling="resample", seed=0)
    batch = opt.ask()
    assert ((batch.x == 0).sum(axis=1) > 50).all()
    own = opt.state_dict()["own"]
    assert np.allclose(opt.mean + opt.sigma * own["_y"], batch.x)
    assert np.allclose(opt._covariance.color(own["_z"]), own["_y"])
    opt.tell(batch, sphere(batch.x - 1))
    assert (opt.mean >= 0).all()


def test_without_anything_outside_resampling_changes_nothing():
    kwargs = {"x0": np.zeros(4), "sigma0": 0.1, "seed": 0}
    free = run(CMAES(**kwargs), ellipsoid, 30)
    boxed = run(CMAES(**kwargs, bounds=(-100, 100), bounds_handling="resample"), ellipsoid, 30)
    assert np.array_equal(free.mean, boxed.mean)


def test_settings_are_compared_when_a_state_is_loaded():
    for name, value in {"elitist": True, "mirrored": True, "bounds_handling": "resample"}.items():
        state = CMAES(np.zeros(3), **{name: value}).state_dict()
        with pytest.raises(ValueError, match=f"{name}="):
            CMAES(np.zeros(3)).load_state_dict(state)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"bounds_handling": "clip"}, 'bounds_handling must be "transform" or "resample"'),
        (
            {"bounds": (-1, 1), "bounds_handling": "resample", "mirrored": True},
            "mirrored pairs cannot be resampled",
        ),
    ],
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_errors(strategy, kwargs, message):
    with pytest.raises(ValueError, match=message):
        strategy(np.zeros(3), **kwargs)


# -- elitism -------------------------------------------------------------------------------------


def test_the_elite_takes_the_first_rank_and_rank_mu_gives_way_as_in_pycma():
    """One generation from the same sample: our mean and covariance matrix are pycma's."""
    n, lam = 6, 9
    options = {"popsize": lam, "seed": 5, "verbose": -9, "CMA_elitist": True, "CSA_squared": False}
    es = cma.CMAEvolutionStrategy(np.zeros(n), 0.5, options)
    opt = CMAES(np.zeros(n), 0.5, lam, seed=0, elitist=True)
    first = opt.ask()
    opt.tell(first, sphere(first.x - 0.2))
    es.ask()
    es.tell(list(first.x), sphere(first.x - 0.2).tolist())
    # The same second sample for both, worse than the best of the first; same step size.
    state = opt.state_dict()
    es.sigma = opt.sigma
    before = opt.mean
    assert np.allclose(before, es.mean, atol=1e-12)
    second = opt.ask()
    losses = sphere(second.x - 0.2) + 10
    opt.tell(second, losses)
    best = state["shared"]["_best_x"]
    order = np.argsort(losses)
    ranked = np.vstack([best, second.x[order]])
    weights = opt.parameters.weights
    expected = before + weights[: lam // 2] @ (ranked[: lam // 2] - before)
    assert np.allclose(opt.mean, expected, atol=1e-12)
    es.ask()
    es.tell(list(second.x), losses.tolist())
    assert np.allclose(opt.mean, es.mean, atol=1e-10)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_better_generation_needs_no_elite(strategy):
    plain, elitist = (strategy(np.ones(30), seed=0, elitist=e) for e in (False, True))
    falling = iter(range(1000))
    for opt in (plain, elitist):
        run(opt, lambda x: sphere(x) - 1e4 * next(falling), 20)
    assert np.array_equal(plain.mean, elitist.mean)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_elite_holds_the_mean_back_and_reset_best_frees_it(strategy):
    def drift(reset):
        opt = strategy(np.zeros(20), 0.1, seed=0, elitist=True)
        opt.tell_foreign(np.zeros(20), -1.0)
        run(opt, lambda x: -x[:, 0], 1)
        if reset:
            opt.reset_best()
        return run(opt, lambda x: 1e3 - x[:, 0], 30).mean[0]

    assert drift(reset=False) < 0.7 * drift(reset=True)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_mean_itself_is_a_step_of_length_zero_beyond_a_mirror_too(strategy):
    opt = strategy(np.full(3, 0.95), 0.5, bounds=(0, 1), seed=0)
    opt._mean = np.full(3, 1.30)
    y, z = opt._steps_to(opt.mean[np.newaxis])
    assert abs(y).max() < 1e-12
    assert abs(z).max() < 1e-12


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_foreign_loss_told_again_and_again_is_no_sign_of_the_end(strategy):
    opt = strategy(np.zeros(10), seed=0)
    for _ in range(15):
        opt.tell_foreign(np.full(10, 3.0), -1.0)
        batch = opt.ask()
        opt.tell(batch, 1 + ellipsoid(batch.x))
        assert not opt.stop()


def test_a_single_sampled_loss_has_no_range():
    opt = CMAES(np.zeros(3), popsize=2, seed=0)
    for _ in range(3):
        opt.tell_foreign(np.ones(3), 5.0)
        opt.tell(opt.ask(), [3.0])
        assert not opt.stop()


def test_the_elites_step_is_cut():
    n = 5
    opt = CMAES(np.zeros(n), 0.5, 8, seed=3, elitist=True)
    opt.tell_foreign(np.full(n, 1e6), -1.0)
    run(opt, sphere, 3)
    limit = 0.5 * np.e * (np.sqrt(n) + 2 * n / (n + 2))
    assert np.linalg.norm(opt.mean) < 3 * np.e**2 * limit


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_elitist_and_mirrored_converge(strategy):
    for kwargs in ({"elitist": True}, {"mirrored": True}, {"elitist": True, "mirrored": True}):
        opt = strategy(np.ones(30), 1.0, seed=0, target=1e-9, budget=20_000, **kwargs)
        assert "target" in run(opt, sphere).stop(), kwargs


# -- mirrored pairs ------------------------------------------------------------------------------


@pytest.mark.parametrize("popsize", [8, 9])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_candidates_come_in_pairs(strategy, popsize):
    opt = run(strategy(np.zeros(30), 1.0, popsize, seed=0, mirrored=True), sphere, 5)
    step = opt.ask().x - opt.mean
    assert len(step) == popsize
    assert np.allclose(step[0:8:2], -step[1:8:2])
    assert not np.allclose(step[0], step[2])


def test_winners_of_pairs():
    # Candidate 0 was injected; pairs are (1, 2), (3, 4); 5 has no partner.
    order = np.array([4, 3, 0, 5, 2, 1])
    assert order[winners_of_pairs(order, first=1)].tolist() == [4, 0, 5, 2]
    assert winners_of_pairs(np.array([1, 0]), first=0).tolist() == [True, False]
    assert winners_of_pairs(np.array([0, 1]), first=2).tolist() == [True, True]


@pytest.mark.parametrize("n_foreign", [0, 1, 4])
@pytest.mark.parametrize("popsize", [2, 3, 8, 9])
def test_there_are_always_enough_winners(popsize, n_foreign):
    opt = CMAES(np.zeros(4), popsize=popsize, seed=0, mirrored=True)
    for _ in range(5):
        points = np.random.default_rng(0).standard_normal((n_foreign, 4))
        if n_foreign:
            opt.tell_foreign(points, sphere(points))
        run(opt, sphere, 1)
    assert np.isfinite(opt.covariance_matrix).all()


def path_lengths(mirrored, both_of_a_pair, generations=3000):
    """Mean of |p_sigma|^2 / n where losses are random; one if the step size is unbiased."""
    n = 10
    opt = CMAES(np.zeros(n), 1.0, 10, seed=0, mirrored=mirrored, stop_options={"tolstagnation": 0})
    if both_of_a_pair:
        opt._mirrored = False  # samples pairs, but ranks them like any others
    noise = np.random.default_rng(1)
    lengths = []
    for _ in range(generations):
        opt._mirrored = mirrored
        batch = opt.ask()
        opt._mirrored = mirrored and not both_of_a_pair
        opt.tell(batch, noise.random(len(batch)))
        lengths.append(sphere(opt.state_dict()["own"]["_p_sigma"]) / n)
    return np.mean(lengths[50:])


def test_pairwise_selection_keeps_the_step_size_unbiased():
    """Under random selection the path is as long as without mirroring (Auger et al. 2011).

    Recombining both of a pair, the bias that Brockhoff et al. (2010) describe, is what makes it
    shorter.
    """
    assert path_lengths(False, False) == pytest.approx(1, abs=0.06)
    assert path_lengths(True, False) == pytest.approx(1, abs=0.06)
    assert path_lengths(True, True) < 0.8


@pytest.mark.parametrize(("fun", "n"), [(sphere, 20), (ellipsoid, 10)])
def test_mirrored_pairs_save_evaluations(fun, n):
    plain, mirrored = (
        np.median(
            [
                run(CMAES(np.ones(n), seed=s, mirrored=m, target=1e-9, budget=50_000), fun).nfev
                for s in range(7)
            ]
        )
        for m in (False, True)
    )
    assert mirrored <= plain
