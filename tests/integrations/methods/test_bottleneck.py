"""Adapters are what Houlsby et al. wrote down, where they put them."""

import copy

import numpy as np
import pytest
import torch
from gradient_trials import make_trial, plain_logits
from tiny import HIDDEN, LAYERS
from torch import nn

from integrations.methods.bottleneck import Bottleneck, BottleneckAdapter
from integrations.methods.manual import ManualPrompt

# Where a part of a layer ends, by hand.
ENDS = {
    "roberta": ("roberta.encoder.layer", "attention.output.dense", "output.dense"),
    "llama": ("model.layers", "self_attn.o_proj", "mlp"),
    "gpt2": ("transformer.h", "attn.c_proj", "mlp"),
    "opt": ("model.decoder.layers", "self_attn.out_proj", "fc2"),
}


def test_an_adapter_is_its_formula():
    torch.manual_seed(0)
    adapter = Bottleneck(6, 3)
    for parameter in adapter.parameters():
        nn.init.normal_(parameter)
    w1, b1, w2, b2 = (p.detach().numpy() for p in adapter.parameters())
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    z = x @ w1.T + b1
    gelu = z * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    found = adapter(torch.from_numpy(x)).detach()
    np.testing.assert_allclose(found, x + gelu @ w2.T + b2, atol=1e-4)


def test_it_begins_next_to_the_identity():
    torch.manual_seed(0)
    adapter = Bottleneck(200, 64)
    assert adapter.down.weight.abs().max() <= 2e-3
    assert adapter.down.weight.std().item() == pytest.approx(
        0.88e-3, rel=0.05
    )  # cut at two of 1e-3
    assert not adapter.up.bias.any()
    x = torch.randn(4, 200)
    torch.testing.assert_close(adapter(x), x, atol=1e-3, rtol=0)


@pytest.mark.parametrize("family", ENDS)
def test_adapters_follow_both_parts_of_each_layer(family, word_tokenizer, toy_task):
    trial = make_trial(family, word_tokenizer, toy_task)
    before = ManualPrompt(trial).logits(toy_task.test)
    model = copy.deepcopy(trial.arch.model)
    learner = BottleneckAdapter(trial, size=4)
    np.testing.assert_allclose(learner.logits(toy_task.test), before, atol=1e-2)
    torch.manual_seed(1)
    for parameter in learner.adapters.parameters():
        nn.init.normal_(parameter, std=0.3)
    adapters = iter(learner.adapters)
    layers, *ends = ENDS[family]
    for i in range(LAYERS):
        for end in ends:
            path = f"{layers}.{i}.{end}"
            model.set_submodule(path, nn.Sequential(model.get_submodule(path), next(adapters)))
    prompts = trial.encoder.encode(toy_task.test)
    expected = plain_logits(model, prompts, trial.encoder.label_ids).detach()
    np.testing.assert_allclose(learner.logits(toy_task.test), expected, atol=1e-4)
    assert not np.allclose(expected, before, atol=1e-1)


@pytest.mark.parametrize(("family", "norms"), [("roberta", 4 * HIDDEN), ("llama", 2 * HIDDEN)])
def test_adapters_and_norms_are_counted(family, norms, word_tokenizer, toy_task):
    learner = BottleneckAdapter(make_trial(family, word_tokenizer, toy_task), size=5)
    adapter = 2 * 5 * HIDDEN + 5 + HIDDEN
    assert learner.parameters == LAYERS * (2 * adapter + norms)
