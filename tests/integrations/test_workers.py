"""Workers: the numbers of a single process, whatever becomes of them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CONFIGS, LABEL_IDS, LAYERS, PAD, VARIANTS, build_model, kind_of, random_prompts

from integrations import ProcessWorkers, RayWorkers, Speedups, UserError, tune, workers
from integrations.architectures import describe
from integrations.metrics import cross_entropy
from integrations.population import PopulationEvaluator
from integrations.replica import Replica, Share, WorkerError
from integrations.spaces import make_spaces
from integrations.workers import Fleet, WorkerWarning, as_workers, cut, replica_device

RUN = {"budget": 60, "dim": 40, "dev_every": 20, "layers": "all", "speedups": Speedups(blocks=2)}
# Each generation has something for each worker.
EVEN = {"optimizer": "cma-es", "popsize": 8}
DIM = 16


@pytest.fixture(autouse=True)
def one_thread():
    """As many as each of the workers gets: the last digit of a product depends on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def none_left_behind():
    yield
    assert multiprocessing.active_children() == []


@pytest.fixture
def run(word_tokenizer, toy_task):
    """run(family, **arguments): what a short run on a tiny model comes to, bit for bit."""

    def run(family="llama", **arguments):
        model = build_model(family, num_hidden_layers=2)
        tokenizer = word_tokenizer(kind_of(family))
        return tune(model, toy_task, tokenizer=tokenizer, **RUN | arguments)

    return run


def numbers_of(result):
    """The history without its wall times, and the deltas."""
    course = result.history.to_dict()
    for score in course["scores"]:
        del score["seconds"]
    deltas = [
        (layer, name, f.A.numpy().tobytes(), f.B.numpy().tobytes())
        for layer, factors in enumerate(result.adapter.factors)
        for name, f in (factors or {}).items()
    ]
    return course, deltas


def no_room(logits, labels):
    raise torch.OutOfMemoryError("no room for so many candidates")


def replica_of(family, blocks=2, loss=cross_entropy, **settings):
    arch = describe(build_model(family, **settings))
    evaluator = PopulationEvaluator(
        arch,
        random_prompts(arch.kind),
        LABEL_IDS,
        pad_id=PAD,
        loss=loss,
        speedups=Speedups(blocks=blocks),
    )
    spaces = make_spaces(arch, evaluator.batches, rank=2, dim=DIM, seed=0, freeze_a=True)
    return Replica(evaluator, spaces)


def fleet_of(count, **settings):
    replica = replica_of("llama", num_hidden_layers=2, **settings)
    return Fleet(ProcessWorkers(count), replica.evaluator, replica.spaces)


# -- replicas --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*CONFIGS, *VARIANTS])
def test_a_replica_gives_each_part_of_a_generation_the_same_losses(family, tmp_path):
    rng = np.random.default_rng(0)
    here = replica_of(family)
    z, layer = rng.standard_normal((5, DIM)), LAYERS - 1
    placed = {1: rng.standard_normal(DIM)}
    losses = here.evaluate(Share((layer,), z, slice(0, 5), 2, placed))
    assert len(set(losses)) == 5
    here.save(tmp_path / "replica")
    there = Replica.load(tmp_path / "replica", torch.device("cpu"), 1)
    last = there.evaluate(Share((layer,), z, slice(2, 5), 2, placed))
    assert np.array_equal(last, losses[2:])


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta", "t5"])
def test_a_replica_gives_candidates_of_several_layers_the_same_losses(family, tmp_path):
    rng = np.random.default_rng(0)
    here, layers = replica_of(family), (1, LAYERS - 1)
    z, placed = rng.standard_normal((5, 2 * DIM)), {1: rng.standard_normal(DIM)}
    losses = here.evaluate(Share(layers, z, slice(0, 5), 2, placed))
    assert len(set(losses)) == 5
    here.save(tmp_path / "replica")
    there = Replica.load(tmp_path / "replica", torch.device("cpu"), 1)
    assert np.array_equal(there.evaluate(Share(layers, z, slice(2, 5), 2, placed)), losses[2:])


def test_a_replica_needs_no_memory_of_what_was_in_place(tmp_path):
    rng = np.random.default_rng(0)
    z, chosen = rng.standard_normal((3, DIM)), slice(0, 3)
    in_place = [{}, {0: z[0]}, {0: z[1], 1: z[2]}, {1: z[2]}, {}]
    kept = replica_of("llama")
    for placed in in_place:
        share = Share((2,), z, chosen, 2, placed)
        assert np.array_equal(kept.evaluate(share), replica_of("llama").evaluate(share))


def test_a_model_that_cannot_be_sent_is_named(tmp_path):
    replica = replica_of("llama")
    replica.evaluator.arch.model.own = threading.Lock()
    with pytest.raises(UserError, match=r"LlamaForCausalLM cannot be sent to workers: .*lock"):
        replica.save(tmp_path / "replica")
    with pytest.raises(UserError, match=r"cannot be written for the workers to read: .* TMPDIR"):
        replica_of("llama").save(tmp_path / "missing" / "replica")


@pytest.mark.parametrize(
    ("count", "size", "parts", "expected"),
    [
        (10, 1, 2, [(0, 5), (5, 10)]),
        (10, 4, 2, [(0, 8), (8, 10)]),
        (7, 2, 3, [(0, 4), (4, 6), (6, 7)]),
        (2, 1, 5, [(0, 1), (1, 2)]),
        (3, 20, 2, [(0, 3)]),
    ],
)
def test_populations_are_cut_at_the_borders_of_blocks(count, size, parts, expected):
    assert [(part.start, part.stop) for part in cut(count, size, parts)] == expected


# -- runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "count", "arguments"),
    [
        ("llama", 2, {}),
        ("roberta", 3, {"optimizer": "cma-es"}),  # and more workers than blocks
        ("t5", 1, {"optimizer": "random", "init": "reference-code", "loss": "metric"}),
        ("gpt2", 2, {"speedups": Speedups(blocks=3, prefix_cache=False), "popsize": 15}),
        ("llama", 2, {"schedule": "joint", "optimizer": "sep-cma-es"}),
        ("llama", 2, {"schedule": "cost-aware"}),
    ],
)
def test_a_run_comes_to_the_same_with_workers(run, family, count, arguments):
    result = run(family, workers=count, **arguments)
    assert numbers_of(result) == numbers_of(run(family, **arguments))
    assert any(visit.improved for visit in result.history.visits)
    assert result.lost_workers == 0


def test_a_block_leaves_something_for_each_worker_and_repeats_the_run(run):
    result = run(workers=2, optimizer="random", popsize=9, speedups=Speedups())
    assert result.settings["block_size"] == 5
    again = run(optimizer="random", popsize=9, speedups=Speedups(blocks=5))
    assert numbers_of(result) == numbers_of(again)


def test_a_run_goes_on_with_other_workers_than_it_began_with(run, tmp_path):
    whole = run(**EVEN)

    def after(visits):
        return lambda progress: progress.visit.number + 1 == visits

    with pytest.warns(WorkerWarning):
        first = run(
            workers=2,
            checkpoint=tmp_path,
            callback=lambda p: killing(0, p) or after(3)(p),
            **EVEN,
        )
    assert (first.stopped, first.lost_workers) == ("callback", 1)
    run(workers=3, checkpoint=tmp_path, callback=after(5), **EVEN)
    assert numbers_of(run(checkpoint=tmp_path, **EVEN)) == numbers_of(whole)


# -- workers that die or raise ---------------------------------------------------------------------


def killing(visit, progress, count=1):
    """For a callback: kill workers while they evaluate the next generation."""
    if progress.visit.number == visit:
        for process in multiprocessing.active_children()[:count]:
            os.kill(process.pid, signal.SIGSTOP)  # so that it does not get done before
            threading.Timer(0.3, process.kill).start()


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_worker_killed_in_mid_generation_costs_its_share_only(run, blocks):
    arguments = {"speedups": Speedups(blocks=blocks), **EVEN}
    with pytest.warns(WorkerWarning, match=r"worker \d died; 2 of 3 workers are left"):
        result = run(workers=3, callback=lambda p: killing(1, p), **arguments)
    assert numbers_of(result) == numbers_of(run(**arguments))
    assert result.lost_workers == 1


def test_if_all_workers_die_the_error_says_so_and_the_run_can_go_on(run, tmp_path):
    with (
        pytest.warns(WorkerWarning),
        pytest.raises(WorkerError, match=r"all workers died, worker \d last .* checkpoint="),
    ):
        run(workers=2, checkpoint=tmp_path, callback=lambda p: killing(2, p, count=2), **EVEN)
    assert numbers_of(run(workers=2, checkpoint=tmp_path, **EVEN)) == numbers_of(run(**EVEN))


def test_a_worker_that_died_between_generations_is_noticed(run):
    def kill(progress):
        if progress.visit.number == 0:
            process = multiprocessing.active_children()[0]
            process.kill()
            process.join()

    with pytest.warns(WorkerWarning):
        result = run(workers=2, callback=kill, **EVEN)
    assert numbers_of(result) == numbers_of(run(**EVEN))


def test_what_a_worker_raises_arrives_with_its_traceback():
    z = np.random.default_rng(0).standard_normal((4, DIM))
    with (
        fleet_of(2, loss=no_room) as fleet,
        pytest.raises(WorkerError, match=r"(?s)worker \d failed:.*in no_room.*for so many"),
    ):
        fleet.evaluate((1,), z, {})


def test_losses_that_are_not_finite_are_losses_and_nothing_is_raised():
    z = np.full((3, DIM), np.nan)
    with fleet_of(2, blocks=1) as fleet:
        assert np.isnan(fleet.evaluate((1,), z, {})).all()


def own_cost(factor):
    """A loss that cannot be imported, as one of a script or notebook that workers do not run."""

    def cost(logits, labels):
        return factor * cross_entropy(logits, labels)

    return cost


def test_a_loss_of_ones_own_goes_with_its_code(run):
    result = run(workers=2, loss=own_cost(3), **EVEN)
    assert numbers_of(result) == numbers_of(run(loss=own_cost(3), **EVEN))
    assert numbers_of(result) != numbers_of(run(**EVEN))


def test_an_error_in_the_run_ends_the_workers_at_once(run):
    def interrupt(progress):
        killing(progress.visit.number, progress)  # one is stopped, and could not end by itself
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(workers=2, callback=interrupt)


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import multiprocessing
import numpy as np
from test_workers import DIM, fleet_of

def main():
    with fleet_of(2) as fleet:
        fleet.evaluate((1,), np.zeros((2, DIM)), {{}})
        print(*(process.pid for process in multiprocessing.active_children()), flush=True)
        time.sleep(600)

{call}
"""


def start_script(tmp_path, call):
    file = tmp_path / "script.py"
    file.write_text(SCRIPT.format(tests=str(Path(__file__).parent), call=call))
    # The package may be imported from where the tests run and not be installed.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, file], stdout=pipe, stderr=pipe, env=environment, text=True
    )


@pytest.mark.slow
def test_a_killed_run_leaves_no_workers_behind(tmp_path):
    with start_script(tmp_path, "if __name__ == '__main__': main()") as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert len(pids) == 2
    for pid in pids:
        while is_running(pid):  # until the test's own time is up
            time.sleep(0.05)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # one whose parent is gone may wait to be reaped
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    process = start_script(tmp_path, "main()")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "must call tune() under if __name__ == '__main__'" in errors


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -1, 1.5, [2]])
def test_a_wrong_number_of_workers_is_refused(run, wrong):
    with pytest.raises(UserError, match="workers must be a whole number of 1 or more"):
        run(workers=wrong)


def test_wrong_settings_are_refused(run):
    with pytest.raises(UserError, match=r"workers must be a number, 'ray', .*got 'two'"):
        run(workers="two")
    with pytest.raises(UserError, match="threads must be 1 or more, or None; got 0"):
        ProcessWorkers(2, threads=0)


def test_a_missing_ray_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install dfo-lora\[distributed\]"):
        as_workers("ray://head:10001")


def test_threads_are_shared_out(monkeypatch):
    given = []
    monkeypatch.setattr(workers.ProcessWorker, "load", lambda self, *a: given.append(a[2]))
    monkeypatch.setattr(workers, "_started", lambda loaded: 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    for pool in (ProcessWorkers(3), ProcessWorkers(8), ProcessWorkers(1, threads=5)):
        with pool.start(replica_of("llama")):
            pass
    assert given == [2] * 3 + [1] * 8 + [5]


@pytest.mark.parametrize(
    ("device", "environ", "expected"),
    [
        ("cpu", {"LOCAL_RANK": "1"}, ["cpu"] * 3),
        ("cuda", {}, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:3", {}, ["cuda:3", "cuda:0", "cuda:1"]),
        ("cuda:1", {"LOCAL_RANK": "0"}, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda:1", {"LOCAL_RANK": "1"}, ["cuda:3", "cuda:0", "cuda:1"]),
    ],
)
def test_each_worker_takes_the_next_gpu(device, environ, expected):
    found = [replica_device(torch.device(device), i, 3, 4, environ) for i in range(3)]
    assert found == [torch.device(name) for name in expected]


# -- on a Ray cluster ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """Ray, with a cluster of this machine alone."""
    ray = pytest.importorskip("ray")
    # The package may be imported from where the tests run and not be installed.
    here = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}
    quiet = {"include_dashboard": False, "log_to_driver": False}
    ray.init("local", num_cpus=2, runtime_env=here, **quiet)
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_a_run_comes_to_the_same_though_an_actor_is_killed(run, cluster, monkeypatch):
    pids = []
    load = RayWorkers._load

    def ask_for_ids(self, workers, *arguments):
        load(self, workers, *arguments)
        calls = [w._actor.__ray_call__.remote(lambda _: os.getpid()) for w in workers]
        pids.extend(cluster.get(calls))

    monkeypatch.setattr(RayWorkers, "_load", ask_for_ids)

    def kill(progress):
        if progress.visit.number == 1:
            os.kill(pids[0], signal.SIGSTOP)  # so that it does not get done before
            threading.Timer(0.3, os.kill, (pids[0], signal.SIGKILL)).start()

    with pytest.warns(WorkerWarning, match="Ray worker 0 died; 1 of 2 workers are left"):
        result = run(workers=RayWorkers(2), callback=kill, **EVEN)
    assert numbers_of(result) == numbers_of(run(**EVEN))
    assert result.lost_workers == 1
    assert cluster.is_initialized()  # the connection was not the run's to end


@pytest.mark.slow
def test_a_loss_of_ones_own_reaches_actors(cluster):
    z = np.random.default_rng(0).standard_normal((4, DIM))
    replica = replica_of("llama", loss=own_cost(3))
    with Fleet(RayWorkers(2), replica.evaluator, replica.spaces) as fleet:
        assert fleet.evaluate((1,), z, {}) == pytest.approx(
            replica.evaluate(Share((1,), z, slice(0, 4), 2, {})), abs=1e-6
        )


@pytest.mark.slow
def test_what_an_actor_raises_arrives_with_the_traceback(cluster):
    z = np.random.default_rng(0).standard_normal((4, DIM))
    replica = replica_of("llama", loss=no_room)
    with (
        Fleet(as_workers("ray"), replica.evaluator, replica.spaces) as fleet,
        pytest.raises(WorkerError, match=r"(?s)Ray worker 0 failed:.*in no_room.*for so many"),
    ):
        fleet.evaluate((1,), z, {})
    assert fleet.workers.count == 1  # one a node


@pytest.mark.slow
def test_more_than_the_cluster_has_is_refused_and_not_waited_for(run, cluster):
    with pytest.raises(UserError, match="3 workers of 1 CPU are more than the Ray cluster's 2"):
        run(workers=RayWorkers(3))
    with pytest.raises(UserError, match="2 workers of 1 tpu are more than the Ray cluster's 0"):
        run(workers=RayWorkers(2, resources={"tpu": 1}))
