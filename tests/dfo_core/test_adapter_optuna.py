"""Optuna behind the protocol."""

import numpy as np
import pytest

from dfo_core import as_optimizer, minimize
from dfo_core.adapters import OptunaOptimizer
from dfo_core.fuzzing import fuzz_optimizer
from dfo_core.testing import CHECKS

optuna = pytest.importorskip("optuna")
pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    # The objective may be any sampler's; what optuna advises about it is not tested here.
    pytest.mark.filterwarnings("ignore::UserWarning:optuna"),
]


def sphere(x):
    return ((x - 0.3) ** 2).sum(axis=1)


@pytest.mark.parametrize("name", ["TPE", "CmaEs", "QMC", "Random", "NSGAII"])
def test_samplers_search_within_bounds(name):
    bounds = ([-1, 0], [1, 5])
    opt = as_optimizer(f"optuna:{name}", bounds=bounds, popsize=6, budget=60, seed=0)
    while not opt.stop():
        batch = opt.ask()
        assert (batch.x >= bounds[0]).all()
        assert (batch.x <= bounds[1]).all()
        opt.tell(batch, sphere(batch.x))
    assert opt.nfev == 60
    assert opt.result.fun < 1.0


def test_the_sampler_sees_every_loss_and_failed_trials_for_invalid_ones():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    opt = as_optimizer(study, dim=3, bounds=(-1, 1), popsize=4)
    batch = opt.ask()
    opt.tell(batch[::-1], [np.inf, 1.0, np.nan, 2.0])
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "FAIL"]
    assert [trial.value for trial in study.trials] == [2.0, None, 1.0, None]
    assert [list(trial.params) for trial in study.trials] == [["x0", "x1", "x2"]] * 4
    assert np.array_equal([list(trial.params.values()) for trial in study.trials], batch.x)
    assert study.best_value == opt.result.fun == 1.0


def test_x0_is_the_first_trial():
    for name in ("TPE", "CmaEs"):
        opt = as_optimizer(f"optuna:{name}", x0=[0.1, 0.2], bounds=(0, 1), popsize=5, seed=0)
        assert opt.ask().x[0].tolist() == [0.1, 0.2]


def test_cmaes_uses_the_population_size_it_is_given():
    opt = as_optimizer("optuna:CmaEs", dim=3, bounds=(-1, 1), popsize=6, budget=301, seed=0)
    opt.tell(opt.ask()[:1], [1.0])  # the first trial is outside its populations
    while not opt.stop():
        batch = opt.ask()
        opt.tell(batch, sphere(batch.x))
    assert opt.result.fun < 1e-3


@pytest.mark.parametrize("name", ["CmaEs", "NSGAII"])
def test_a_population_that_is_none_is_refused_at_once(name):
    with pytest.raises(ValueError, match="popsize must be a whole number of at least 2; got 1"):
        as_optimizer(f"optuna:{name}", dim=3, bounds=(-1, 1), popsize=1)
    opt = as_optimizer(f"optuna:{name}", dim=3, bounds=(-1, 1), popsize=6.0, budget=20, seed=0)
    while not opt.stop():
        batch = opt.ask()
        opt.tell(batch, sphere(batch.x))


def test_no_trial_stays_unfinished_in_a_study():
    study = optuna.create_study()
    arguments = {"bounds": (-1, [1, 1]), "popsize": 8, "budget": 20}
    minimize(sphere, method=study, vectorized=True, **arguments)
    assert [trial.state.is_finished() for trial in study.trials] == 20 * [True]


def test_sampler_objects_and_studies():
    sampler = optuna.samplers.TPESampler(seed=3, n_startup_trials=2)
    opt = as_optimizer(sampler, dim=2, bounds=(-1, 1))
    assert isinstance(opt, OptunaOptimizer)
    assert opt._study.sampler is sampler
    with pytest.raises(ValueError, match="seed has no effect on an optuna sampler or study"):
        as_optimizer(sampler, dim=2, bounds=(-1, 1), seed=0)
    with pytest.raises(ValueError, match="must minimise one loss"):
        as_optimizer(optuna.create_study(direction="maximize"), dim=2, bounds=(-1, 1))
    two = optuna.create_study(directions=["minimize", "minimize"])
    with pytest.raises(ValueError, match="must minimise one loss"):
        as_optimizer(two, dim=2, bounds=(-1, 1))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="optuna has no optimizer 'tpe'; close ones are TPE"):
        as_optimizer("optuna:tpe", 2, bounds=(0, 1))
    with pytest.raises(ValueError, match=r"needs bounds=\(lower, upper\)"):
        as_optimizer("optuna:TPE", 2)
    with pytest.raises(ValueError, match="needs a finite lower and upper bound"):
        as_optimizer("optuna:TPE", 2, bounds=(0, None))
    with pytest.raises(ValueError, match="sigma0 has no effect on optuna's samplers"):
        as_optimizer("optuna:CmaEs", 2, bounds=(0, 1), sigma0=0.1)
    with pytest.raises(ValueError, match="only draws at random"):
        as_optimizer("optuna:CmaEs", 1, bounds=(0, 1))


def test_the_users_log_level_is_left_alone(capfd):
    level = optuna.logging.get_verbosity()
    minimize(lambda x: x @ x, bounds=(-1, [1, 1]), method="optuna:TPE", budget=5, seed=0)
    assert optuna.logging.get_verbosity() == level
    assert capfd.readouterr().err == ""


FACTORIES = {
    "TPE": lambda seed: as_optimizer("optuna:TPE", 3, seed, bounds=(-1, 1)),
    "TPE-batch": lambda seed: as_optimizer("optuna:TPE", 2, seed, bounds=(-1, 1), popsize=3),
    "CmaEs": lambda seed: as_optimizer("optuna:CmaEs", 3, seed, bounds=(-1, 1), popsize=5),
    "QMC": lambda seed: as_optimizer("optuna:QMC", 3, seed, bounds=(-1, 1)),
    "NSGAII": lambda seed: as_optimizer("optuna:NSGAII", 3, seed, bounds=(-1, 1), popsize=4),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_the_seed_decides_more_than_the_first_trial(name):
    def later(seed):
        opt, asked = FACTORIES[name](seed), []
        for _ in range(4):
            batch = opt.ask()
            opt.tell(batch, (batch.x**2).sum(axis=1))
            asked += list(batch.x)
        return asked[1:4]

    assert not any(np.array_equal(a, b) for a, b in zip(later(0), later(1), strict=True))
    np.testing.assert_array_equal(later(0), later(0))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", FACTORIES)
def test_conformance(check, name):
    check(FACTORIES[name])


@pytest.mark.parametrize("name", FACTORIES)
def test_random_use(name):
    for seed in range(3):
        fuzz_optimizer(FACTORIES[name], seed)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_conformance_of_gaussian_processes(check):
    pytest.importorskip("torch")
    check(lambda seed: as_optimizer("optuna:GP", 2, seed, bounds=(-1, 1)))
