"""Weight matrices of linear layers, whatever way their module keeps them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

LINEAR = (nn.Linear, Conv1D)
UNSCALED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a linear layer whose weight is a matrix of plain numbers."""
    if not isinstance(module, LINEAR):
        return False
    weight: Any = module.weight
    # torchao's quantized weights say that they are of float32, and can be taken apart. Weights in
    # float8 have their scales elsewhere.
    return weight.dtype in UNSCALED and not hasattr(weight, "__tensor_flatten__")


def weight_of(module: nn.Module) -> Tensor:
    """The weight (out_features, in_features) of a linear layer, as a view of what it keeps."""
    weight: Any = module.weight
    transposed: Tensor = weight.T if isinstance(module, Conv1D) else weight
    return transposed
