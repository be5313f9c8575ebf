"""Models that other libraries quantized are evaluated and tuned like any other."""

import numpy as np
import pytest
import torch
from tiny import build_model, make_evaluator, random_adapter, random_factors
from torch import nn

from integrations import NAIVE, Speedups, UserError, tune
from integrations.architectures import describe
from integrations.int8 import quantize_layers
from integrations.merging import merge


def torchao_int8(model):
    """Weights of eight bits, inputs as they are."""
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


def bitsandbytes_nf4(model):
    """Weights of four bits."""
    bnb = pytest.importorskip("bitsandbytes")
    for layer in model.model.layers:
        for name, module in [*layer.named_modules()]:
            if isinstance(module, nn.Linear):
                quantized = bnb.nn.Linear4bit(
                    module.in_features, module.out_features, module.bias is not None,
                    compute_dtype=torch.float32, quant_type="nf4",
                )  # fmt: skip
                quantized.load_state_dict(module.state_dict())
                layer.set_submodule(name, quantized.to("cpu"))
    return model.eval()


LIBRARIES = [torchao_int8, bitsandbytes_nf4]
TOLERANCE = {torchao_int8: 1e-4, bitsandbytes_nf4: 5e-3}  # the latter multiplies in bfloat16
SIZES = {"hidden_size": 64, "intermediate_size": 128}
each_library = pytest.mark.parametrize("quantize", LIBRARIES, ids=lambda f: f.__name__)


@each_library
def test_candidates_lose_what_they_lose_one_by_one(quantize):
    arch = describe(quantize(build_model("llama", **SIZES)))
    candidates, adapter = random_factors(arch, 1, 5, seed=1), random_adapter(arch)
    naive = make_evaluator(arch, speedups=NAIVE).evaluate(1, candidates, adapter)
    fast = make_evaluator(arch, speedups=Speedups(blocks=2)).evaluate(1, candidates, adapter)
    assert fast == pytest.approx(naive, abs=TOLERANCE[quantize])
    assert np.ptp(naive) > 0.1
    plain = make_evaluator(describe(build_model("llama", **SIZES)), speedups=NAIVE)
    assert 1e-4 < abs(plain.evaluate(1, candidates, adapter) - naive).max() < 1  # it is rounded


@each_library
def test_a_run_lowers_the_loss_and_leaves_the_model(quantize, toy_task, word_tokenizer):
    model = quantize(build_model("llama", **SIZES))
    ids = torch.arange(10, 40).view(3, 10)
    with torch.no_grad():
        model(ids)  # bitsandbytes packs its weights for the processor at the first call
        before = model(ids).logits
    result = tune(model, toy_task, tokenizer=word_tokenizer("causal"), budget=60, dim=40)
    assert result.history.visits[-1].loss < result.history.scores[0].train_loss
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)


@each_library
def test_it_is_neither_rounded_again_nor_merged_into(quantize):
    model = quantize(build_model("llama", **SIZES))
    with pytest.raises(UserError, match="no linear layers that are not quantized"):
        quantize_layers(model)
    with pytest.raises(UserError, match="q_proj is quantized"):
        merge(random_adapter(describe(model)))
