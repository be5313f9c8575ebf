"""Candidates side by side: the same losses, each piece of work once, models left as they were."""

import threading

import numpy as np
import pytest
import threadpoolctl
import torch
from tiny import LABEL_IDS, PAD, build_model, random_adapter, random_factors, random_prompts

from integrations import PopulationEvaluator, Speedups
from integrations.architectures import describe
from integrations.lanes import Lanes, replicate
from integrations.metrics import cross_entropy


@pytest.fixture(params=[2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "deberta-v2"])
def test_losses_are_those_of_one_after_the_other(family, threads):
    arch = describe(build_model(family), ("q", "v", "o"))
    adapter = random_adapter(arch, [0, 2])
    losses = []
    for side_by_side in (True, False):
        evaluator = PopulationEvaluator(
            arch,
            random_prompts(arch.kind),
            LABEL_IDS,
            pad_id=PAD,
            loss=cross_entropy,
            speedups=Speedups(blocks=2, side_by_side=side_by_side),
        )
        for layer in (0, 2, 3):
            candidates = random_factors(arch, layer, 11, seed=1)
            losses.append(evaluator.evaluate(layer, candidates, adapter))
    assert np.concatenate(losses[:3]) == pytest.approx(np.concatenate(losses[3:]), abs=1e-6)


@pytest.mark.parametrize("pieces", range(9))
def test_each_piece_is_done_once_and_threads_are_shared(pieces, threads):
    """All at a time with one thread each, then the rest with what there is."""
    lanes = Lanes(describe(build_model("llama")))
    seen = []
    lanes.run(lambda arch, i: seen.append((i, id(arch), torch.get_num_threads())), pieces, 100)
    assert sorted(i for i, _, _ in seen) == list(range(pieces))
    rest = pieces % threads
    assert [n for _, _, n in seen[: pieces - rest]] == [1] * (pieces - rest)
    assert [n for _, _, n in seen[pieces - rest :]] == [threads // max(rest, 1)] * rest
    assert torch.get_num_threads() == threads


def test_each_lane_has_its_threads_from_its_first_operation_on(threads):
    """What OpenMP gives: asking PyTorch in a new thread would set it there."""
    lanes = Lanes(describe(build_model("llama")))
    seen, meet = [], threading.Barrier(threads, timeout=60)

    def work(arch, piece):
        meet.wait()
        pools = threadpoolctl.threadpool_info()
        seen.append([p["num_threads"] for p in pools if "torch" in p["filepath"]])

    lanes.run(work, threads, 100)
    assert any(seen)
    assert {number for numbers in seen for number in numbers} == {1}


def test_nobody_shares_a_model(threads):
    lanes = Lanes(describe(build_model("llama")))
    busy, meet = set(), threading.Barrier(threads, timeout=60)

    def work(arch, piece):
        assert id(arch) not in busy
        busy.add(id(arch))
        meet.wait()
        busy.remove(id(arch))

    lanes.run(work, threads, 100)


def test_no_more_at_a_time_than_allowed(threads):
    lanes = Lanes(describe(build_model("llama")))
    used = set()
    lanes.run(lambda arch, _: used.add(id(arch)), 6, 1)
    assert len(used) == 1


def test_an_error_ends_all_and_is_raised(threads):
    lanes = Lanes(describe(build_model("llama")))

    def work(arch, piece):
        if piece == 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lanes.run(work, 20, 100)
    assert torch.get_num_threads() == threads
    lanes.run(lambda arch, piece: None, 20, 100)


def test_a_replica_holds_no_weights_of_its_own():
    model = build_model("llama").train()
    model.config.pad_token_id = 5
    replica = replicate(model)
    own = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    assert {name: tensor.data_ptr() for name, tensor in replica.state_dict().items()} == own
    assert not replica.training
    assert model.training
    modules = {*model.modules()}
    assert not any(module in modules for module in replica.modules())
