"""Products with frozen weights by oneDNN, on processors where it is PyTorch's faster library.

On x86 PyTorch multiplies float32 matrices with MKL, which leaves a part of AMD's processors unused:
100 against oneDNN's 109 GFLOP/s on one core of an EPYC with AVX-512, for every shape of
SmolLM2-135M's products. Both give the same bits for any number of threads.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from integrations.patches import Patches
from integrations.weights import LINEAR, is_plain, weight_of

_CPU_INFO = Path("/proc/cpuinfo")


@cache
def pays() -> bool:
    """Whether this machine has both libraries, and a processor on which oneDNN is the faster."""
    backends: Any = torch.backends  # which has no types
    libraries = backends.mkl.is_available() and backends.mkldnn.is_available()
    if not libraries or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    info = _CPU_INFO.read_text() if _CPU_INFO.exists() else platform.processor()
    return "AuthenticAMD" in info


def use_onednn(patches: Patches, layers: Iterable[nn.Module]) -> None:
    """Multiply with oneDNN in the float32 linear layers inside some layers that are on a CPU.

    Where it does not pay, nothing changes; a worker on another machine decides for itself. For
    passes without gradients, as oneDNN's product records none.

    Args:
        patches: Where the change is made.
        layers: Whose linear layers.
    """
    if not pays():
        return
    for layer in layers:
        for module in layer.modules():
            # A subclass, or a forward that another library put there, may do more than multiply.
            if type(module) not in LINEAR or "forward" in vars(module) or not is_plain(module):
                continue
            weight = weight_of(module)
            bias: Any = module.bias
            if weight.dtype == torch.float32 and weight.device.type == "cpu":
                patches.replace(module, _product(weight, bias))


def _product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return y

    return forward
