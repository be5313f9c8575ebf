"""Weights that are drawn from a trial's seed and leave the global random state as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let what other libraries draw inside depend on a seed only."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
