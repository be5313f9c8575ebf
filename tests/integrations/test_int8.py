"""Eight-bit weights: products as exact as the rounding allows, and a model that tunes unchanged."""

import numpy as np
import pytest
import torch
from tiny import LABEL_IDS, PAD, build_model, random_adapter, random_factors, random_prompts
from torch import nn

from integrations import NAIVE, PopulationEvaluator, UserError, load_model
from integrations.architectures import describe
from integrations.int8 import Int8Linear, quantize_layers
from integrations.metrics import cross_entropy
from integrations.population import FAST


@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_within_half_a_step_of_both_roundings(bias):
    torch.manual_seed(0)
    linear = nn.Linear(64, 32, bias=bias)
    x = 10 ** torch.randn(3, 7, 1) * torch.randn(3, 7, 64)  # tokens of very different sizes
    with torch.inference_mode():
        found, exact = Int8Linear(linear.weight, linear.bias)(x), linear(x)
        # |sum (x + dx)(w + dw) - x w| with |dx| <= max|x| / 65278 and |dw| <= max|w| / 254.
        dx = x.abs().amax(-1, keepdim=True) / (2 * 32639)
        dw = linear.weight.abs().amax(1) / 254
        bound = dx * linear.weight.abs().sum(1) + (x.abs().sum(-1, keepdim=True) + 64 * dx) * dw
    assert (found - exact).abs().le(1.01 * bound + 1e-6).all()


@pytest.mark.parametrize("largest", [1.0, -1.0, 1e-3, 3e4])
def test_inputs_have_sixteen_bits_up_to_both_ends(largest):
    """Through weights without a rounding error, 127 a row: what is left is that of the inputs."""
    layer = Int8Linear(torch.eye(64), None)
    x = torch.linspace(-1, 1, 64)[None] * largest
    assert (layer(x) - x).abs().max() <= 1.01 * abs(largest) / (2 * 32639)


def test_a_token_does_not_depend_on_its_neighbours():
    layer = Int8Linear(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), None)
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    huge = torch.cat([x, 1e6 * x])
    assert torch.equal(layer(huge)[:5], layer(x))


def test_zeros_stay_zeros():
    layer = Int8Linear(torch.zeros(4, 8), None)
    assert torch.equal(layer(torch.zeros(2, 8)), torch.zeros(2, 4))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_quantized_model_tunes_as_any_other(family):
    model = quantize_layers(build_model(family))
    arch = describe(model)
    assert all(
        isinstance(target.module, Int8Linear)
        for targets in arch.targets
        for target in targets.values()
    )
    candidates, adapter = random_factors(arch, 1, 5, seed=1), random_adapter(arch)
    fast, naive = (
        PopulationEvaluator(
            arch,
            random_prompts(arch.kind),
            LABEL_IDS,
            pad_id=PAD,
            loss=cross_entropy,
            speedups=speedups,
        ).evaluate(1, candidates, adapter)
        for speedups in (FAST, NAIVE)
    )
    # A last digit that differs can move an input across the border between two roundings.
    assert fast == pytest.approx(naive, abs=1e-3)
    assert np.ptp(naive) > 0.2


def test_a_saved_model_loads_as_int8(tmp_path, word_tokenizer):
    build_model("llama").save_pretrained(tmp_path)
    word_tokenizer("causal").save_pretrained(tmp_path)
    model, _ = load_model(str(tmp_path), dtype="int8")
    assert isinstance(model.model.layers[0].mlp.up_proj, Int8Linear)
    assert isinstance(model.lm_head, nn.Linear)


def test_what_cannot_be_quantized_says_so():
    with pytest.raises(UserError, match="no linear layers that are not quantized"):
        quantize_layers(quantize_layers(build_model("llama")))
    with pytest.raises(UserError, match="int8 is for models on a CPU; this one is on meta"):
        quantize_layers(build_model("llama").to("meta"))
