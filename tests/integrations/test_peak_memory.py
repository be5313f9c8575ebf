"""What the peak counts: all that is taken after the start, and nothing from before."""

import sys

import pytest
import torch
from torch import nn

from integrations.peak_memory import PeakMemory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak is the process's here")

MB = 10**6


def small_tensors(size):
    """Tensors of 100 kB, which allocators keep in their heap, that take ``size`` bytes."""
    return [torch.ones(25_000) for _ in range(size // 100_000)]


def test_what_is_taken_and_freed_again_counts():
    memory = PeakMemory(nn.Linear(2, 2))
    del [torch.ones(21 * MB)][:]  # 84 MB, as the system counts roughly
    assert 80 * MB <= memory.extra() < 90 * MB


def test_memory_from_before_is_not_counted():
    held = torch.ones(20 * MB)
    memory = PeakMemory(nn.Linear(2, 2))
    assert memory.extra() < 5 * MB
    assert held.sum() > 0


def test_what_was_freed_before_does_not_hide_what_is_taken():
    before = small_tensors(80 * MB)
    end_of_heap = small_tensors(100_000)  # so that the heap cannot shrink
    del before
    memory = PeakMemory(nn.Linear(2, 2))
    again = small_tensors(80 * MB)
    assert 75 * MB <= memory.extra() < 90 * MB
    assert len(again) > len(end_of_heap)
