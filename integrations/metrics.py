"""Losses that rank candidates and metrics that are reported."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps label logits (..., N, C) and labels (N,) to losses (..., N), all float32."""

HINGE_MARGIN = 2.0  # the margin in the authors' code


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the label words only, (..., N)."""
    return -F.log_softmax(logits, dim=-1).gather(-1, _index(logits, labels)).squeeze(-1)


def hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Multi-class hinge: margin + best wrong logit - right logit, not below zero, (..., N)."""
    index = _index(logits, labels)
    right = logits.gather(-1, index).squeeze(-1)
    wrong = logits.scatter(-1, index, -torch.inf).amax(dim=-1)
    return (HINGE_MARGIN + wrong - right).clamp(min=0)


def error_rate(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the best label word is wrong, 0 where it is right, (..., N)."""
    return (logits.argmax(dim=-1) != labels).float()


def _index(logits: Tensor, labels: Tensor) -> Tensor:
    return labels.expand(logits.shape[:-1]).unsqueeze(-1)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "hinge": hinge, "error": error_rate}


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of right predictions, 0 to 1."""
    return float(np.mean(predictions == labels))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"accuracy": accuracy}
