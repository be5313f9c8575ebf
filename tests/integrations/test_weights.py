"""What counts as a linear layer with a weight that can be read, cut and changed."""

import pytest
import torch
from quantized import QUANTIZED, opaque
from tiny import build_model, random_adapter
from torch import nn
from transformers.pytorch_utils import Conv1D

from integrations import UserError
from integrations.architectures import describe
from integrations.int8 import quantize_layers
from integrations.merging import merge
from integrations.patches import Patches
from integrations.population import keep_label_words
from integrations.weights import is_plain, weight_of


@pytest.mark.parametrize("layer", [nn.Linear(3, 5), Conv1D(5, 3)])
@torch.no_grad()
def test_a_weight_is_a_view_by_which_the_layer_changes(layer):
    assert is_plain(layer)
    assert weight_of(layer).shape == (5, 3)
    weight_of(layer)[4] = 1
    x = torch.randn(7, 3)
    torch.testing.assert_close(layer(x)[:, 4], x.sum(1) + layer.bias[4])


@pytest.mark.parametrize("module", [nn.LayerNorm(3), nn.Embedding(5, 3), nn.Bilinear(3, 3, 5)])
def test_other_modules_are_no_linear_layers(module):
    assert not is_plain(module)


@pytest.mark.parametrize("how", QUANTIZED)
def test_quantized_layers_are_neither_rounded_again_nor_merged_into(how):
    model = build_model("llama")
    linear = [m for layer in model.model.layers for m in layer.modules() if type(m) is nn.Linear]
    for module in linear:
        QUANTIZED[how](module)
    with pytest.raises(UserError, match="no linear layers that are not quantized"):
        quantize_layers(model)
    with pytest.raises(UserError, match=r"q_proj is quantized"):
        merge(random_adapter(describe(model)))


@torch.inference_mode()
def test_a_quantized_head_is_not_cut_by_rows():
    head, x, rows = nn.Linear(8, 30), torch.randn(4, 8), torch.tensor([3, 20])
    expected = head(x)[:, rows]
    for layer in (head, opaque(head)):
        with Patches() as patches:
            keep_label_words(patches, layer, rows)
            torch.testing.assert_close(layer(x), expected)
