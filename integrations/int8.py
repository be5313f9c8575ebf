"""Eight-bit weights for a frozen model on a CPU, whose int8 products are several times faster.

Weights are rounded once, a scale a row; inputs as they come, a scale a token (Dettmers, Lewis,
Belkada & Zettlemoyer 2022, LLM.int8(), arXiv 2208.07339, section 2.1: vector-wise quantization). A
scale a token keeps prompts that share a batch independent of each other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from integrations.architectures import describe
from integrations.errors import UserError

LARGEST = 127


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
        rounded, scale = _round(weight.float())
        # The product reads the weight by columns.
        self.register_buffer("weight", rounded.T.contiguous())
        self.register_buffer("scale", scale.squeeze(1))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in_features) to (..., out_features), in x's type."""
        rounded, scale = _round(x.reshape(-1, self.in_features).float())
        y = torch._int_mm(rounded, self.weight).to(torch.float32)
        y.mul_(scale).mul_(self.scale)
        if self.bias is not None:
            y.add_(self.bias)
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)


def _round(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of x (n, width) as int8, and their scales (n, 1)."""
    scale = x.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12).div_(LARGEST)
    return (x / scale).round_().to(torch.int8), scale


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
            if isinstance(module, nn.Linear):
                weight = module.weight
            elif isinstance(module, Conv1D):
                weight = module.weight.T
            else:
                continue
            layer.set_submodule(name, Int8Linear(weight.detach(), module.bias))
            replaced += 1
    if not replaced:
        raise UserError("int8: the model's layers hold no linear layers that are not quantized.")
    return model
