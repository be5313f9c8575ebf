import itertools
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
from scipy.optimize import Bounds, OptimizeResult

from dfo_core import CMAES, minimize


def sphere(x):
    return float(((x - 0.5) ** 2).sum())


def fragile(x):
    if x[0] > 1.0:
        raise ArithmeticError(f"x[0] is {x[0]:.3f}")
    return sphere(x)


def test_result_is_scipys():
    result = minimize(sphere, np.zeros(4), seed=0, budget=3000)
    assert isinstance(result, OptimizeResult)
    assert result.success
    assert np.allclose(result.x, 0.5, atol=1e-4)
    assert result.fun == sphere(result.x)
    assert 0 < result.nfev <= 3000
    assert result.nit > 10
    assert result.message.startswith("stopped by tolfun")
    assert (result.n_errors, result.n_invalid, result.errors) == (0, 0, [])


@pytest.mark.parametrize("method", ["cma-es", "sep-cma-es", "lotfwa", "random", "pycma"])
def test_every_method_respects_budget_and_bounds(method):
    seen = []

    def fun(x):
        seen.append(x)
        return sphere(x)

    result = minimize(fun, bounds=Bounds([-1] * 3, [2] * 3), method=method, budget=333, seed=0)
    assert result.nfev == len(seen) <= 333
    assert np.min(seen) >= -1
    assert np.max(seen) <= 2
    assert result.fun == min(map(sphere, seen))


def test_vectorized_threads_and_processes_give_the_same_numbers():
    arguments = {"x0": np.zeros(3), "seed": 1, "budget": 200}
    plain = minimize(sphere, **arguments)
    vectorized = minimize(lambda x: ((x - 0.5) ** 2).sum(axis=1), vectorized=True, **arguments)
    with ThreadPoolExecutor(3) as threads:
        threaded = minimize(sphere, executor=threads, **arguments)
    with ProcessPoolExecutor(2) as processes:
        spread = minimize(sphere, executor=processes, **arguments)
    for other in (vectorized, threaded, spread):
        assert np.allclose(other.x, plain.x, rtol=1e-12)
        assert (other.nfev, other.nit) == (plain.nfev, plain.nit)


@pytest.mark.parametrize("pool", [None, ThreadPoolExecutor, ProcessPoolExecutor])
def test_a_call_that_raises_costs_its_own_evaluation_only(pool):
    arguments = {"x0": np.full(3, 0.9), "sigma0": 0.5, "seed": 0, "budget": 400}
    with (
        nullcontext() if pool is None else pool(2) as executor,
        pytest.warns(UserWarning, match=r"the objective raised ArithmeticError: x\[0\] is"),
    ):
        result = minimize(fragile, executor=executor, **arguments)
    assert result.n_errors == result.n_invalid > 0
    assert len(result.errors) == min(10, result.n_errors)
    assert result.errors[0].startswith("ArithmeticError: x[0] is")
    assert result.success
    assert result.fun < 1e-3


def test_a_warning_is_given_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        minimize(fragile, np.full(3, 0.9), sigma0=0.5, seed=0, budget=200)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize("vectorized", [False, True])
def test_an_objective_that_never_works_is_an_error(vectorized):
    def typo(x):
        return x.nosuch

    with pytest.raises(AttributeError, match="nosuch"):
        minimize(typo, np.zeros(3), vectorized=vectorized)
    with pytest.raises(ValueError, match="must return one number"):
        minimize(lambda x: np.zeros((2, 2)), np.zeros(3), vectorized=vectorized)
    with pytest.raises(ValueError, match="real numbers"):
        minimize(lambda x: None, np.zeros(3), vectorized=vectorized)


@pytest.mark.parametrize("method", ["random", "lotfwa"])
def test_a_first_evaluation_that_fails_does_not_end_methods_that_ask_for_one(method):
    calls = itertools.count()

    def fun(x):
        if next(calls) < 2:
            raise ArithmeticError("not yet")
        return sphere(x)

    arguments = {"bounds": (-1, 2), "dim": 3, "method": method, "seed": 0, "budget": 50}
    with pytest.warns(UserWarning, match="ArithmeticError: not yet"):
        result = minimize(fun, **arguments)
    assert (result.nfev, result.n_errors) == (50, 2)
    with pytest.raises(AttributeError, match="nosuch"):
        minimize(lambda x: x.nosuch, **arguments)


def test_an_optimizer_that_a_factory_makes_keeps_its_budget():
    def factory(d, seed):
        return CMAES(np.zeros(d), budget=30, seed=seed)

    assert minimize(sphere, dim=3, method=factory, seed=0).nfev == 30
    assert minimize(sphere, dim=3, method=factory, seed=0, budget=20).nfev == 20


def test_a_factory_may_return_a_name_that_plans_with_its_budget():
    result = minimize(sphere, dim=2, method=lambda d, seed: "nevergrad:NGOpt", target=0.2)
    assert result.fun <= 0.2


def test_a_run_that_ends_before_anything_worked_is_an_error():
    with pytest.warns(UserWarning, match="nosuch"), pytest.raises(AttributeError, match="nosuch"):
        minimize(lambda x: x.nosuch, np.zeros(3), budget=3)


def test_a_start_is_found_next_to_bounds_that_are_open_on_a_side():
    for method in ("cma-es", "nevergrad:OnePlusOne"):
        found = minimize(sphere, bounds=(1, None), dim=3, method=method, seed=0, budget=300)
        assert (found.x >= 1).all()
        assert found.fun == pytest.approx(0.75, abs=0.05)


def test_an_array_of_one_number_is_a_number():
    assert minimize(lambda x: np.array([x @ x]), np.ones(2), budget=50, seed=0).fun < 2


def test_callback_sees_each_batch_and_can_stop():
    seen = []

    def callback(intermediate):
        seen.append(intermediate)
        if len(seen) == 5:
            raise StopIteration

    result = minimize(sphere, np.zeros(3), seed=0, callback=callback)
    assert result.nit == 5
    assert result.stop == {"callback": True}
    assert [r.nit for r in seen] == [1, 2, 3, 4, 5]
    assert all(a.fun >= b.fun for a, b in itertools.pairwise(seen))
    assert not seen[0].stop


@pytest.mark.parametrize("answer", [True, np.True_, 1])
def test_a_callback_can_stop_by_returning_true(answer):
    result = minimize(sphere, np.zeros(3), seed=0, callback=lambda r: answer if r.nit > 2 else None)
    assert (result.nit, result.stop) == (3, {"callback": True})
    assert result.message == "stopped by callback (True)"


class Clock:
    """A clock that each reading moves by a second."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("vectorized", [False, True])
def test_time_ends_a_run_after_what_has_started(monkeypatch, vectorized):
    monkeypatch.setattr("time.monotonic", Clock())
    fun = sphere if not vectorized else lambda x: ((x - 0.5) ** 2).sum(axis=1)
    result = minimize(fun, np.zeros(3), seed=0, max_seconds=9.5, vectorized=vectorized, popsize=20)
    assert result.stop == {"max_seconds": 9.5}
    assert 0 < result.nfev <= 200
    assert result.success
    with pytest.raises(ValueError, match="max_seconds must be a finite number above zero"):
        minimize(sphere, np.zeros(3), max_seconds=0)


def test_a_run_cut_by_time_continues_to_the_same_numbers(monkeypatch, tmp_path):
    arguments = {"x0": np.zeros(3), "seed": 0, "popsize": 8, "budget": 60}
    whole = minimize(sphere, **arguments)
    monkeypatch.setattr("time.monotonic", Clock())
    n_runs, result = 0, None
    while result is None or "budget" not in result.stop:
        result = minimize(sphere, checkpoint=tmp_path / "run", max_seconds=5.5, **arguments)
        n_runs += 1
    assert n_runs > 5
    assert np.array_equal(result.x, whole.x)
    assert (result.fun, result.nfev, result.nit) == (whole.fun, whole.nfev, whole.nit)


@pytest.mark.parametrize("method", ["cma-es", "sep-cma-es", "lotfwa", "random"])
def test_an_interrupted_run_continues_to_the_same_numbers(tmp_path, method):
    path = tmp_path / "run.npz"
    arguments = {"bounds": (-1, [1.0, 2.0, 3.0]), "method": method, "seed": 3, "budget": 300}
    arguments |= {"popsize": 10}
    whole_calls, calls = [], []
    whole = minimize(lambda x: whole_calls.append(x) or sphere(x), **arguments)

    def killed(x):
        if len(calls) == 100:
            raise KeyboardInterrupt
        calls.append(x)
        return sphere(x)

    with pytest.raises(KeyboardInterrupt):
        minimize(killed, checkpoint=path, **arguments)
    n_before = len(calls)
    resumed = minimize(lambda x: calls.append(x) or sphere(x), checkpoint=path, **arguments)
    assert np.array_equal(resumed.x, whole.x)
    assert (resumed.fun, resumed.nfev, resumed.nit) == (whole.fun, whole.nfev, whole.nit)
    # Only the batch under way is evaluated again.
    assert len(calls) - len(whole_calls) < n_before <= 100
    assert len(calls) - len(whole_calls) < 10
    again = minimize(lambda x: pytest.fail("nothing is left to do"), checkpoint=path, **arguments)
    assert again.fun == whole.fun


def test_a_finished_run_goes_on_with_a_larger_budget(tmp_path):
    arguments = {"x0": np.zeros(5), "seed": 0, "checkpoint": tmp_path / "run.npz"}
    minimize(sphere, budget=100, **arguments)
    more = minimize(sphere, budget=200, **arguments)
    assert more.nfev == 200
    assert np.array_equal(more.x, minimize(sphere, np.zeros(5), seed=0, budget=200).x)


def test_errors_are_kept_across_a_resume(tmp_path):
    arguments = {"x0": np.full(3, 0.9), "sigma0": 0.5, "seed": 0}
    arguments |= {"checkpoint": tmp_path / "run.npz"}
    with pytest.warns(UserWarning, match="ArithmeticError"):
        first = minimize(fragile, budget=100, **arguments)
    second = minimize(fragile, budget=110, **arguments)
    assert second.n_errors >= first.n_errors > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "of a run with seed=0, this call has seed=1"),
        ({"x0": np.ones(3)}, "of a run with x0="),
        ({"method": "sep-cma-es"}, "of a run with method="),
        ({"popsize": 9}, "of a run with popsize=None"),
        ({"bounds": (-5, 5)}, "of a run with bounds=None"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change, message):
    arguments = {"x0": np.zeros(3), "seed": 0, "checkpoint": tmp_path / "run.npz"}
    minimize(sphere, budget=50, **arguments)
    with pytest.raises(ValueError, match=message):
        minimize(sphere, budget=50, **{**arguments, **change})


def test_the_same_numbers_in_another_form_are_the_same_run(tmp_path):
    path = tmp_path / "run.npz"
    minimize(sphere, [0, 0], seed=np.random.default_rng(0), sigma0=1, checkpoint=path, budget=50)
    again = {"seed": np.random.default_rng(0), "sigma0": 1.0, "checkpoint": path, "budget": 80}
    more = minimize(sphere, np.zeros(2), **again)
    whole = minimize(sphere, np.zeros(2), seed=np.random.default_rng(0), sigma0=1.0, budget=80)
    assert np.array_equal(more.x, whole.x)


def test_a_checkpoint_that_cannot_be_written_is_told_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        minimize(
            lambda x: pytest.fail("it was begun"),
            np.zeros(3),
            checkpoint=tmp_path / "file" / "a.npz",
        )
    minimize(sphere, np.zeros(3), budget=20, seed=0, checkpoint=tmp_path / "new" / "run.npz")
    assert (tmp_path / "new" / "run.npz").is_file()


def test_a_run_that_never_began_holds_no_file(tmp_path):
    def broken(x):
        raise AttributeError("a slip")

    arguments = {"x0": np.zeros(3), "seed": 0, "checkpoint": tmp_path / "run.npz", "budget": 60}
    with pytest.raises(AttributeError, match="a slip"):
        minimize(broken, sigma0=1, **arguments)
    mended = minimize(sphere, sigma0=5, **arguments)
    assert mended.fun == minimize(sphere, np.zeros(3), seed=0, budget=60, sigma0=5).fun


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_starts_of_any_kind_are_told_apart_in_full(tmp_path, library):
    """A long array's text leaves out its middle."""
    kind = pytest.importorskip(library).asarray
    x0 = np.zeros(2000)
    arguments = {
        "seed": 0,
        "popsize": 4,
        "method": "sep-cma-es",
        "checkpoint": tmp_path / "run.npz",
    }
    minimize(sphere, kind(x0.copy()), budget=8, sigma0=np.array(0.5), **arguments)
    minimize(sphere, x0.tolist(), budget=12, sigma0=0.5, **arguments)
    x0[1000] = 1e-9
    with pytest.raises(ValueError, match="is of a run with x0="):
        minimize(sphere, kind(x0), budget=16, sigma0=0.5, **arguments)


def test_checkpoint_needs_an_optimizer_that_can_be_saved(tmp_path):
    with pytest.raises(NotImplementedError, match="supports_state"):
        minimize(sphere, np.zeros(2), method="pycma", checkpoint=tmp_path / "run.npz")
    (tmp_path / "other").write_text("mine")
    with pytest.raises(ValueError, match="not a state file"):
        minimize(sphere, np.zeros(2), checkpoint=tmp_path / "other")


def test_target_and_optimizer_objects():
    opt = CMAES(np.zeros(3), seed=0)
    result = minimize(sphere, method=opt, target=1e-3, budget=2000)
    assert result.stop == {"target": 1e-3}
    assert opt.result.fun == result.fun
    with pytest.raises(ValueError, match="x0 has no effect"):
        minimize(sphere, np.zeros(3), method=opt)
    with pytest.raises(ValueError, match="leave out the executor"):
        minimize(sphere, np.zeros(3), vectorized=True, executor=ThreadPoolExecutor(1))


def test_all_invalid_is_no_success():
    result = minimize(lambda x: np.nan, np.zeros(2), budget=30, seed=0)
    assert not result.success
    assert result.n_invalid == 30
    assert np.isnan(result.x).all()
