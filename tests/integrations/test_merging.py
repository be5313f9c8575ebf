"""Deltas in a model's weights."""

import copy

import pytest
import torch
from peft_reference import peft_model
from tiny import build_model, inputs_of, kind_of, random_adapter, random_prompts

from integrations import UserError
from integrations.architectures import TARGETS, describe
from integrations.int8 import quantize_layers
from integrations.merging import merge


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gpt_neox", "falcon", "t5"])
def test_the_outputs_are_those_that_peft_merges(family):
    model = build_model(family)
    adapter = random_adapter(describe(model, TARGETS[:3]))
    (prompt,) = random_prompts(kind_of(family), [7])
    with torch.no_grad():
        expected = peft_model(model, adapter).merge_and_unload()(**inputs_of(prompt)).logits
        before = model(**inputs_of(prompt)).logits
        merge(adapter)
        found = model(**inputs_of(prompt)).logits
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_quantized_model_is_refused_and_left_alone():
    model = quantize_layers(build_model("llama"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=r"q_proj is quantized \(Int8Linear\).*load the model"):
        merge(random_adapter(describe(model)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
