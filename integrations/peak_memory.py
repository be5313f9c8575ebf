"""The most memory that something takes, beyond what the process held before."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import torch
from torch import nn

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Watches memory from its making on, with the model's weights in it already.

    On a GPU what PyTorch allocated there. On a CPU the process's resident memory; where the system
    cannot forget an earlier peak (it can on Linux), that of the process's whole life.

    Args:
        model: The model; its weights, which a file may be mapped for, are read once so that they
            do not count.
    """

    def __init__(self, model: nn.Module) -> None:
        device = next(model.parameters()).device
        self._cuda = device if device.type == "cuda" else None
        for parameter in model.parameters():
            parameter.detach().sum()
        _release()
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before = torch.cuda.memory_allocated(self._cuda)
        else:
            if _CLEAR.exists():
                _CLEAR.write_text("5")  # forgets the peak
            self._before = resident("VmRSS")

    def extra(self) -> int:
        """Bytes at the peak so far, beyond those at the start."""
        if self._cuda is not None:
            return torch.cuda.max_memory_allocated(self._cuda) - self._before
        # Linux counts the two apart and may note a peak some pages below what there is now.
        return max(0, resident("VmHWM") - self._before)


def _release() -> None:
    """Give freed memory back to the system, where it would hide what is taken next."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
        if trim is not None:
            trim(0)


def resident(field: str) -> int:
    """Bytes of resident memory: ``VmRSS`` now, ``VmHWM`` at the peak."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    import resource  # which Windows has not

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
