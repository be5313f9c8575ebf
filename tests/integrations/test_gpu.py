"""On a GPU everything is as on the CPU, to rounding; these tests are skipped without one."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from tiny import (
    CONFIGS,
    LAYERS,
    build_model,
    kind_of,
    make_evaluator,
    random_adapter,
    random_factors,
)

from integrations import NAIVE, ProcessWorkers, Speedups, tune
from integrations.architectures import describe
from integrations.comparison import Comparison, compare
from integrations.methods.registry import METHODS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]

RUN = {"budget": 60, "dim": 40, "dev_every": 20, "layers": "all"}


def losses(model, layer, **settings):
    """Losses of seven candidates of a layer, with deltas in place in others."""
    arch = describe(model, ("q", "v", "o"))
    evaluator = make_evaluator(arch, **settings)
    adapter = random_adapter(arch, [0, 1, 3])
    return evaluator.evaluate(layer, random_factors(arch, layer, 7, seed=1), adapter)


@pytest.mark.parametrize("steps", [Speedups(), Speedups(blocks=3), NAIVE], ids=["all", "3", "none"])
@pytest.mark.parametrize("family", CONFIGS)
def test_losses_are_those_of_the_cpu(family, steps):
    for layer in (0, 2, LAYERS - 1):
        expected = losses(build_model(family), layer, speedups=NAIVE)
        found = losses(build_model(family).cuda(), layer, speedups=steps)
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("small", [0, sys.maxsize], ids=["kernel", "products"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_deltas_in_place_by_either_way(family, small, monkeypatch):
    expected = losses(build_model(family), 2)
    monkeypatch.setattr("integrations.patches.GPU_SMALL", small)
    assert losses(build_model(family).cuda(), 2) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_an_adapter_of_a_rank_that_no_kernel_takes(family, monkeypatch):
    monkeypatch.setattr("integrations.patches.GPU_SMALL", 0)
    found = []
    for model in (build_model(family), build_model(family).cuda()):
        arch = describe(model)
        evaluator = make_evaluator(arch)
        found.append(evaluator.logits(random_adapter(arch, rank=80)))
    assert found[1] == pytest.approx(found[0], abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    expected = losses(build_model("llama"), 2)
    assert losses(build_model("llama").to("cuda", dtype), 2) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("optimizer", ["cma-es", "lotfwa"])
@pytest.mark.parametrize("family", ["llama", "roberta", "bart"])
def test_a_run_begins_as_on_the_cpu_and_its_adapter_can_be_used_there(
    family, optimizer, word_tokenizer, toy_task, tmp_path
):
    tokenizer = word_tokenizer(kind_of(family))
    settings = {"tokenizer": tokenizer, "optimizer": optimizer} | RUN
    here = tune(build_model(family), toy_task, **settings)
    there = tune(build_model(family).cuda(), toy_task, **settings)
    # Later generations may differ: where two losses are equal to rounding, either can be ahead.
    first, expected = there.history.visits[0], here.history.visits[0]
    assert first.best == pytest.approx(expected.best, abs=1e-4)
    assert there.history.scores[0].loss == pytest.approx(here.history.scores[0].loss, abs=1e-4)
    there.save(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert weights
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_workers_on_a_gpu_find_what_one_process_finds(word_tokenizer, toy_task):
    def run(**arguments):
        settings = RUN | {"optimizer": "cma-es", "popsize": 8, "speedups": Speedups(blocks=2)}
        model = build_model("llama", num_hidden_layers=2).cuda()
        return tune(model, toy_task, tokenizer=word_tokenizer("causal"), **settings, **arguments)

    alone, together = run(), run(workers=ProcessWorkers(2))
    found = [[visit.best for visit in result.history.visits] for result in (alone, together)]
    assert found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_every_compared_method_runs(method, long_model, data, tmp_path):
    comparison = Comparison(str(long_model), "sst2", str(data), shots=4, budget=6)
    (outcome,) = compare(comparison, [method], [0], tmp_path, isolate=False)
    assert outcome.error is None
    assert 0 <= outcome.score <= 1


def test_the_command_tunes_on_it(dfo_lora, tune_arguments, tmp_path):
    status, out, err = dfo_lora(*tune_arguments(out=tmp_path / "run", json=True))
    assert status == 0, err
    assert json.loads(out)
    status, out, err = dfo_lora("info")
    assert status == 0, err
    assert torch.cuda.get_device_name() in out
