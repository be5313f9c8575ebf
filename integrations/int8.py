"""Eight-bit weights for a frozen model on a CPU, whose int8 products are several times faster.

Weights are rounded once to eight bits, a scale a row; inputs as they come to sixteen, a scale a
token (of Dettmers, Lewis, Belkada & Zettlemoyer 2022, LLM.int8(), arXiv 2208.07339, section 2.1:
vector-wise quantization). Inputs of eight bits would be faster still, and useless: a search
compares losses that differ by a thousandth, and that rounding alone moves them by a hundredth, so
it would choose the luckiest rounding. The rounding of the weights is the same for all candidates.
A scale a token keeps prompts that share a batch independent of each other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from integrations.architectures import describe
from integrations.errors import UserError
from integrations.weights import is_plain, weight_of

LARGEST = 127  # of eight bits
# Of sixteen as 256 high + low, where both halves have to be of eight bits.
LARGEST_INPUT = 256 * 127 + 127


class Int8Linear(nn.Module):
    """A linear layer with weights of eight bits.

    Args:
        weight: (out_features, in_features) of the layer it replaces.
        bias: (out_features,), or None.

    Attributes:
        in_features: Width of the input.
        out_features: Width of the output.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        scale = _scales(weight.float(), LARGEST)
        rounded = (weight / scale).round_().to(torch.int8)
        # The product reads the weight by columns.
        self.register_buffer("weight", rounded.T.contiguous())
        self.register_buffer("scale", scale.squeeze(1))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in_features) to (..., out_features), in x's type."""
        halves, scale = _halves(x.reshape(-1, self.in_features).float())
        high, low = torch._int_mm(halves, self.weight).chunk(2)
        y = high.to(torch.float32).mul_(256).add_(low)
        y.mul_(scale).mul_(self.scale)
        if self.bias is not None:
            y.add_(self.bias)
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)


def _scales(x: Tensor, largest: int) -> Tensor:
    """What each row of x (n, width) is counted in, (n, 1), so that none is above the largest."""
    return x.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12).div_(largest)


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x (n, width) in sixteen bits: their high and low halves (2n, width), and scales."""
    scale = _scales(x, LARGEST_INPUT)
    rounded = (x / scale).round_()
    halves = torch.empty(2 * len(x), x.shape[1], dtype=torch.int8)
    high = rounded.add(128).div_(256).floor_()
    halves[: len(x)] = high
    halves[len(x) :] = rounded.sub_(high, alpha=256)
    return halves, scale


def quantize_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Replace the linear layers inside a model's transformer layers, in place.

    Embeddings and head stay as they are.

    Args:
        model: A model on a CPU whose family is in the table.

    Returns:
        The same model.

    Raises:
        UserError: If the model is on another device or quantized already.
    """
    if model.device.type != "cpu":
        raise UserError(
            f"int8 is for models on a CPU; this one is on {model.device}. Load it with "
            "device='cpu', or quantized by bitsandbytes or torchao for a GPU."
        )
    replaced = 0
    for layer in describe(model).layers:
        for name, module in [*layer.named_modules()]:
            if is_plain(module):
                layer.set_submodule(name, Int8Linear(weight_of(module).detach(), module.bias))
                replaced += 1
    if not replaced:
        raise UserError("int8: the model's layers hold no linear layers that are not quantized.")
    return model
