"""A process killed again and again (SIGKILL) ends as one left alone, bit for bit."""

import multiprocessing
import time

import numpy as np
import pytest
import torch
from tiny import build_model

from integrations import Speedups, checkpoint, tune

KILLS = 20
RUN = {"budget": 240, "dim": 16, "dev_every": 8, "layers": "all", "patience": None}
RUN |= {"speedups": Speedups(blocks=2)}


def run_to_the_end(connection, task, tokenizer, arguments):
    """What the process to be killed does; it tells when it starts and what came out."""
    torch.set_num_threads(1)
    checkpoint.SHARE = 1.0  # save after each generation, however long it takes
    model = build_model("llama", num_hidden_layers=2)
    connection.send("started")
    result = tune(model, task, tokenizer=tokenizer, **RUN, **arguments)
    course = result.history.to_dict()
    for score in course["scores"]:
        del score["seconds"]
    deltas = [
        (layer, name, f.A.numpy().tobytes(), f.B.numpy().tobytes())
        for layer, factors in enumerate(result.adapter.factors)
        for name, f in (factors or {}).items()
    ]
    connection.send((course, deltas, result.stopped))


@pytest.fixture(scope="module")
def launch(word_tokenizer, toy_task):
    """launch(**arguments): a process that runs `tune`, forked from one that has imported all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.llama.modeling_llama", "integrations"])

    def launch(**arguments):
        ours, theirs = context.Pipe()
        given = (theirs, toy_task, word_tokenizer("causal"), arguments)
        process = context.Process(target=run_to_the_end, args=given, daemon=True)
        process.start()
        theirs.close()
        assert ours.recv() == "started"
        return process, ours

    return launch


class FirstVisit:
    """A callback that notes at which visit a process began."""

    def __init__(self, path):
        self.path = path

    def __call__(self, progress):
        if not self.path.exists():
            self.path.write_text(f"{progress.visit.number}.")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["lotfwa", "cma-es"])
def test_a_run_killed_at_random_moments_ends_as_one_left_alone(launch, tmp_path, optimizer):
    process, connection = launch(optimizer=optimizer)
    began = time.monotonic()
    alone = connection.recv()
    whole = time.monotonic() - began
    process.join()
    rng = np.random.default_rng(0)
    kills, ends, folder = 0, 0, tmp_path / "0"
    begun = []  # whether there was a state, and where each process noted its first visit
    while kills < KILLS or not ends:
        begun.append((checkpoint.holds_run(folder), tmp_path / f"{len(begun)}.txt"))
        note = FirstVisit(begun[-1][1])
        process, connection = launch(optimizer=optimizer, checkpoint=folder, callback=note)
        wait = rng.uniform(0, whole / 5) if kills < KILLS else None
        if connection.poll(wait):
            assert connection.recv() == alone
            ends += 1
            folder = tmp_path / str(ends)  # the next run starts from nothing
        else:
            process.kill()
            kills += 1
        process.join()
    noted = [(held, path.read_text()) for held, path in begun if path.exists()]
    went_on = [(held, text != "0.") for held, text in noted if text.endswith(".")]
    assert all(held == later for held, later in went_on)
    assert sum(held for held, _ in went_on) >= KILLS // 4
