"""Linear layers as other libraries leave them when they quantize."""

import torch
from torch import nn
from torch.nn import functional as F


class _Opaque(torch.Tensor):
    """A weight that calls itself float32 and allows products only, as torchao's."""

    def __tensor_flatten__(self):
        return [], None

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.__getitem__:
            raise NotImplementedError("rows of a quantized weight")
        found = super().__torch_function__(function, types, args, kwargs)
        return found.as_subclass(torch.Tensor) if function is F.linear else found


def opaque(layer):
    """A plain linear layer whose weight is no plain matrix."""
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(_Opaque))
    return layer


def packed(layer):
    """A subclass of a linear layer whose weight is packed into integers, as bitsandbytes'."""
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)
    layer.__class__ = type("Packed", (type(layer),), {})
    return layer


def scaled(layer):
    """A linear layer in float8, whose scales are kept beside it."""
    layer.weight = nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return layer


QUANTIZED = {"opaque": opaque, "packed": packed, "scaled": scaled}
