"""minimize in executors: the same numbers everywhere, and a dead worker costs one evaluation."""

import multiprocessing
import os
import threading
import time
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dfo_core import CMAES, Averaged, load_state, minimize


def sphere(x):
    return float(((x - 0.5) ** 2).sum())


def deadly(x):
    """Ends its process where x[0] is large, as a segmentation fault would."""
    if x[0] > 1.0:
        os._exit(1)
    return sphere(x)


def test_threads_run_at_the_same_time():
    together = threading.Barrier(4, timeout=5)

    def fun(x):
        together.wait()
        return sphere(x)

    with ThreadPoolExecutor(4) as pool:
        result = minimize(fun, np.zeros(2), executor=pool, popsize=4, budget=8, seed=0)
    assert result.n_errors == 0


def test_any_executor_will_do():
    class Reversed(Executor):
        """Finishes calls late and in reverse, with futures of its own."""

        def submit(self, fn, /, *args, **kwargs):
            future = Future()

            def work():
                time.sleep(0.001 * np.random.default_rng(0).random())
                future.set_result(fn(*args, **kwargs))

            threading.Thread(target=work).start()
            return future

    plain = minimize(sphere, np.zeros(3), seed=0, budget=40)
    other = minimize(sphere, np.zeros(3), seed=0, budget=40, executor=Reversed())
    assert np.array_equal(plain.x, other.x)


@pytest.mark.parametrize("make", [partial(ThreadPoolExecutor, 2), partial(ProcessPoolExecutor, 2)])
def test_an_executor_we_make_is_shut_down(make):
    made = []

    def factory():
        made.append(make())
        return made[-1]

    plain = minimize(sphere, np.zeros(3), seed=0, budget=40)
    result = minimize(sphere, np.zeros(3), seed=0, budget=40, executor=factory)
    assert np.array_equal(result.x, plain.x)
    assert len(made) == 1
    with pytest.raises(RuntimeError, match="after shutdown"):
        made[0].submit(sphere, np.zeros(3))


@pytest.mark.parametrize("given", [False, True])
def test_a_worker_that_dies_costs_its_own_evaluation_only(given):
    make = partial(ProcessPoolExecutor, 2)
    arguments = {"x0": np.full(3, 0.9), "sigma0": 0.3, "seed": 0, "popsize": 8, "budget": 64}
    seen = []

    def here(x):
        seen.append(x[0] > 1.0)
        return np.nan if x[0] > 1.0 else sphere(x)

    expected = minimize(here, **arguments)
    with pytest.warns(UserWarning, match="the objective raised BrokenProcessPool"):
        result = minimize(deadly, executor=make() if given else make, **arguments)
    assert result.n_errors == sum(seen) > 3
    assert result.nfev == 64
    assert np.array_equal(result.x, expected.x)
    assert result.fun == expected.fun
    assert result.errors[0].startswith("BrokenProcessPool: A process in the process pool was term")


def threshold_from(value):
    global threshold
    threshold = value


def deadly_beyond(x):
    if x[0] > threshold:
        os._exit(1)
    return sphere(x)


def test_the_pool_that_replaces_a_given_one_has_its_initializer():
    arguments = {"x0": np.full(2, 0.9), "sigma0": 0.3, "seed": 0, "popsize": 6, "budget": 24}
    pool = ProcessPoolExecutor(1, initializer=threshold_from, initargs=(1.0,))
    with pool, pytest.warns(UserWarning, match="BrokenProcessPool"):
        result = minimize(deadly_beyond, executor=pool, **arguments)
    assert (result.nfev, 0 < result.n_errors < 24) == (24, True)


def test_a_given_pool_that_holds_is_left_open():
    with ProcessPoolExecutor(1) as pool:
        minimize(sphere, np.zeros(2), budget=12, executor=pool)
        assert pool.submit(sphere, np.zeros(2)).result() == 0.5


def test_an_objective_that_kills_every_worker_is_an_error():
    with pytest.raises(BrokenProcessPool):
        minimize(deadly, np.full(2, 9.0), executor=lambda: ProcessPoolExecutor(1), popsize=3)


class BreaksAt(ThreadPoolExecutor):
    """Breaks at one of its calls, as a pool of processes does: it and all later ones fail."""

    def __init__(self, call):
        super().__init__(1)
        self.left = call

    def submit(self, fn, /, *args, **kwargs):
        self.left -= 1
        if self.left >= 0:
            return super().submit(fn, *args, **kwargs)
        if self.left == -1:
            future = Future()
            future.set_exception(BrokenProcessPool("a worker died"))
            return future
        raise BrokenProcessPool("the pool is not usable anymore")


def test_the_callers_broken_executor_is_an_error_that_keeps_what_was_found(tmp_path):
    arguments = {"x0": np.zeros(3), "seed": 0, "popsize": 8, "budget": 80}
    path = tmp_path / "run"
    with (
        BreaksAt(20) as pool,
        pytest.raises(BrokenExecutor, match="after 20 evaluations") as caught,
    ):
        minimize(sphere, executor=pool, checkpoint=path, **arguments)
    assert isinstance(caught.value.__cause__, BrokenProcessPool)
    assert "or call again to continue from the checkpoint" in str(caught.value)
    partial_result = caught.value.result
    assert (partial_result.nfev, partial_result.n_errors) == (20, 0)
    assert partial_result.fun == sphere(partial_result.x)
    assert "broken" in repr(partial_result)
    assert load_state(path)["optimizer"]["shared"]["_nfev"] == 20
    resumed = minimize(sphere, checkpoint=path, **arguments)
    assert np.array_equal(resumed.x, minimize(sphere, **arguments).x)


def test_the_optimizer_itself_keeps_what_was_told():
    opt = CMAES(np.zeros(3), seed=0, popsize=8)
    with BreaksAt(5) as pool, pytest.raises(BrokenExecutor):
        minimize(sphere, method=opt, executor=pool)
    assert opt.nfev == 5
    assert len(opt.ask()) == 3


def test_when_time_is_up_calls_that_have_not_started_are_dropped(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr("dfo_core.evaluation.wait", lambda futures, timeout: release.set())
    monkeypatch.setattr("time.monotonic", iter(range(0, 1000, 100)).__next__)

    def fun(x):
        release.wait()
        return sphere(x)

    with ThreadPoolExecutor(2) as pool:
        result = minimize(fun, np.zeros(3), seed=0, popsize=50, executor=pool, max_seconds=1)
    assert result.stop == {"max_seconds": 1}
    assert result.nfev < 50


def test_an_interrupt_drops_what_has_not_started(monkeypatch):
    def interrupt(futures, timeout):
        raise KeyboardInterrupt

    monkeypatch.setattr("dfo_core.evaluation.wait", interrupt)
    started, release = [], threading.Event()

    def fun(x):
        started.append(x)
        release.wait()
        return sphere(x)

    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(KeyboardInterrupt):
            minimize(fun, np.zeros(3), seed=0, popsize=50, executor=pool)
        release.set()
    assert len(started) < 50


# -- executors of other libraries -----------------------------------------------------------------


def test_dask():
    distributed = pytest.importorskip("distributed")
    plain = minimize(sphere, np.zeros(3), seed=0, budget=40)
    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
    with distributed.Client(processes=False, **options) as client:
        result = minimize(sphere, np.zeros(3), seed=0, budget=40, executor=client.get_executor())
        assert np.array_equal(result.x, plain.x)
        bad = np.full(3, 0.9)
        with pytest.warns(UserWarning, match="the objective raised ArithmeticError"):
            result = minimize(fails, bad, seed=0, budget=40, executor=client.get_executor())
    assert 0 < result.n_errors < 40


def test_dask_makes_every_call_of_a_noisy_objective():
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}
    noisy_calls.clear()
    with distributed.Client(processes=False, **options) as client:
        method = Averaged(CMAES(np.zeros(3), seed=0, popsize=4), 5)
        minimize(noisy, method=method, budget=40, executor=client.get_executor())
    assert len(noisy_calls) == 40


noisy_calls = []


def noisy(x):
    noisy_calls.append(x)
    return sphere(x) + len(noisy_calls) % 7


def cancelled(x):
    """Fails as if this evaluation had been cancelled, or its executor had died."""
    if x[0] > 1.0:
        raise (CancelledError if x[1] > 1.0 else BrokenExecutor)("of my own")
    return sphere(x)


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_what_an_objective_s_own_executor_raises_costs_that_evaluation_only(pool):
    with pool(2) as executor, pytest.warns(UserWarning, match="objective raised RuntimeError"):
        result = minimize(
            cancelled, np.full(3, 0.9), sigma0=0.5, seed=0, budget=200, executor=executor
        )
    assert result.nfev == 200
    assert result.n_errors > 0
    assert {message.partition(":")[0] for message in result.errors} == {"RuntimeError"}


def test_what_is_no_executor_is_refused():
    with (
        multiprocessing.get_context("spawn").Pool(1) as pool,
        pytest.raises(TypeError, match=r"executor must be a concurrent.*; got Pool"),
    ):
        minimize(sphere, np.zeros(2), executor=pool)
    with pytest.raises(TypeError, match=r"executor must be a concurrent.*; got int"):
        minimize(sphere, np.zeros(2), executor=4)


def fails(x):
    if x[0] > 1.0:
        raise ArithmeticError("too large")
    return sphere(x)


@pytest.mark.slow
def test_loky():
    loky = pytest.importorskip("loky")
    arguments = {"x0": np.full(3, 0.9), "sigma0": 0.3, "seed": 0, "popsize": 8, "budget": 24}
    make = partial(loky.get_reusable_executor, max_workers=2)
    with pytest.warns(UserWarning, match="the objective raised TerminatedWorkerError"):
        result = minimize(lambda x: deadly(x), executor=make, **arguments)
    assert result.nfev == 24
    assert 0 < result.n_errors < 24


@pytest.mark.slow
def test_ray():
    ray = pytest.importorskip("ray")
    from dfo_core.ray_executor import RayExecutor

    here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}  # for the workers to import it
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=here)
    try:
        plain = minimize(sphere, np.zeros(3), seed=0, budget=40)
        result = minimize(sphere, np.zeros(3), seed=0, budget=40, executor=RayExecutor())
        assert np.array_equal(result.x, plain.x)
        arguments = {"x0": np.full(3, 0.9), "sigma0": 0.3, "seed": 0, "popsize": 8, "budget": 16}
        with pytest.warns(UserWarning, match="the objective raised WorkerCrashedError"):
            result = minimize(deadly, executor=RayExecutor(max_retries=0), **arguments)
        assert result.nfev == 16
        assert 0 < result.n_errors < 16
    finally:
        ray.shutdown()


def test_a_missing_ray_says_what_to_install(monkeypatch):
    import sys

    from dfo_core.ray_executor import RayExecutor

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match="RayExecutor needs ray: pip install ray"):
        RayExecutor()
