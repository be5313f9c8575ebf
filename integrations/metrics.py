"""Losses that rank candidates and metrics that are reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor
from torch.nn import functional as F

from integrations.errors import UserError, unknown

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps label logits (..., N, C) of all N examples and labels (N,) to losses (...), float64."""

Metric = Callable[[np.ndarray, np.ndarray], float]
"""Maps labels (N,) and predictions (N,) to a score; higher is better."""

# Predictions of one class only are a score like any other, and search meets them often.
METRICS: dict[str, Metric] = {
    "accuracy": accuracy_score,
    "f1": partial(f1_score, zero_division=0.0),
    "macro_f1": partial(f1_score, average="macro", zero_division=0.0),
    "matthews": matthews_corrcoef,
}
"""scikit-learn's, by name. ``"f1"`` is that of label 1 and needs two classes; ``"macro_f1"`` is the
mean over the classes that occur; ``"matthews"`` is Matthews' correlation coefficient, -1 to 1."""

BINARY = ("f1",)
"""Metrics of two classes."""

HINGE_MARGIN = 2.0  # the margin in the authors' code


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the label words only, (...)."""
    right = F.log_softmax(logits, dim=-1).gather(-1, _index(logits, labels)).squeeze(-1)
    return -right.double().mean(dim=-1)


def hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of margin + best wrong logit - right logit, each not below zero, (...)."""
    index = _index(logits, labels)
    right = logits.gather(-1, index).squeeze(-1)
    wrong = logits.scatter(-1, index, -torch.inf).amax(dim=-1)
    return (HINGE_MARGIN + wrong - right).clamp(min=0).double().mean(dim=-1)


def error_rate(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of examples whose best label word is wrong, (...)."""
    return _not_nan((logits.argmax(dim=-1) != labels).double().mean(dim=-1), logits)


def negative_metric(metric: Metric, logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the metric, (...); it need not be a mean over examples."""
    predictions = logits.argmax(dim=-1).cpu().numpy()
    right = labels.cpu().numpy()
    scores = [metric(right, row) for row in predictions.reshape(-1, len(right))]
    losses = -torch.tensor(scores, dtype=torch.float64, device=logits.device)
    return _not_nan(losses.view(logits.shape[:-2]), logits)


def _index(logits: Tensor, labels: Tensor) -> Tensor:
    return labels.expand(logits.shape[:-1]).unsqueeze(-1)


def _not_nan(losses: Tensor, logits: Tensor) -> Tensor:
    """Losses, but NaN where a logit is: argmax takes NaN for the largest and hides it."""
    return losses.masked_fill(logits.isnan().flatten(-2).any(dim=-1), torch.nan)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "hinge": hinge, "error": error_rate}
LOSS_NAMES = (*LOSSES, "metric")


def name_of(function: Any) -> str:
    """What a callable is called in settings and errors."""
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def loss_name(loss: str | Loss | None, known: Sequence[str]) -> str:
    """The name of a loss.

    Args:
        loss: A name, a callable, or None for the first of those known.
        known: The names that the task knows; several if its losses are of label logits.

    Raises:
        UserError: If the task has no such loss.
    """
    if loss is None:
        return known[0]
    if callable(loss) and len(known) > 1:
        return name_of(loss)
    if loss not in known:
        if len(known) == 1:
            raise UserError(
                f"the task's only loss is {known[0]!r}; got {loss!r}. Leave loss out; what a "
                "GenerationTask is to be rewarded for is its score."
            )
        raise unknown("loss", str(loss), known)
    return str(loss)


def make_loss(name: str | Loss, metric: str) -> Loss:
    """A loss by name, or one's own.

    Args:
        name: ``"ce"``, ``"hinge"``, ``"error"``, or ``"metric"`` for minus the metric; or a
            function of label logits (..., N, C) and labels (N,) that returns losses (...).
        metric: The task's metric, a name in `METRICS`.

    Raises:
        UserError: If there is no such loss.
    """
    if callable(name):
        return partial(_checked, name)
    if name == "metric":
        return partial(negative_metric, METRICS[metric])
    if name not in LOSSES:
        raise unknown("loss", name, LOSS_NAMES)
    return LOSSES[name]


def _checked(function: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """Losses of a user's own function, as float64."""
    found: Any = function(logits, labels)
    try:
        losses = torch.as_tensor(found, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        losses = None
    expected = tuple(logits.shape[:-2])
    if losses is None or losses.shape != expected:
        got = type(found).__name__ if losses is None else f"shape {tuple(losses.shape)}"
        raise UserError(
            f"loss {name_of(function)!r} must return one number a candidate, of shape {expected} "
            f"for label logits of shape {tuple(logits.shape)}; got {got}. Average over the last "
            "axis, the examples, only."
        )
    return losses
