"""Workers on a Ray cluster of one machine: the numbers of a single process."""

import os
import signal
import sys
import threading

import numpy as np
import pytest
from test_workers import DIM, EVEN, fleet_of, numbers_of, no_room
from test_workers import one_thread, run  # noqa: F401 (fixtures)

from integrations import UserError
from integrations.ray_workers import RayWorkers
from integrations.replica import WorkerError
from integrations.workers import Fleet, WorkerWarning, as_workers

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster():
    # The package may be imported from where the tests run and not be installed.
    here = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=here)
    yield
    ray.shutdown()


def test_a_run_comes_to_the_same_though_an_actor_is_killed(run, monkeypatch):  # noqa: F811
    pids = []
    start = RayWorkers._await

    def ask_for_ids(self, workers, loading):
        start(self, workers, loading)
        calls = [w._actor.__ray_call__.remote(lambda _: os.getpid()) for w in workers]
        pids.extend(ray.get(calls))

    monkeypatch.setattr(RayWorkers, "_await", ask_for_ids)

    def kill(progress):
        if progress.visit.number == 1:
            os.kill(pids[0], signal.SIGSTOP)  # so that it does not get done before
            threading.Timer(0.3, os.kill, (pids[0], signal.SIGKILL)).start()

    with pytest.warns(WorkerWarning, match="Ray worker 0 died; 1 of 2 workers are left"):
        result = run(workers=RayWorkers(2), callback=kill, **EVEN)
    assert numbers_of(result) == numbers_of(run(**EVEN))
    assert result.lost_workers == 1
    assert ray.is_initialized()  # the connection was not the run's to end


def test_what_an_actor_raises_arrives_with_its_traceback():
    z = np.random.default_rng(0).standard_normal((4, DIM))
    other = fleet_of(1, loss=no_room)
    with (
        Fleet(as_workers("ray"), other._replica.evaluator, other._replica.spaces) as fleet,
        pytest.raises(WorkerError, match=r"(?s)Ray worker 0 failed:.*in no_room.*for so many"),
    ):
        fleet.evaluate(1, z, {})
    assert fleet.workers.count == 1  # one a node


def test_more_than_the_cluster_has_is_refused_and_not_waited_for(run):  # noqa: F811
    with pytest.raises(UserError, match="3 workers of 1 CPU are more than the Ray cluster's 2"):
        run(workers=RayWorkers(3))
    with pytest.raises(UserError, match="2 workers of 1 tpu are more than the Ray cluster's 0"):
        run(workers=RayWorkers(2, resources={"tpu": 1}))
