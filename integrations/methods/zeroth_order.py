"""What MeZO and EGGROLL have in common: losses of a model that is perturbed in all layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from integrations.adapter import Adapter
from integrations.architectures import Target, describe
from integrations.errors import UserError
from integrations.methods.trial import Trial
from integrations.metrics import cross_entropy
from integrations.population import PopulationEvaluator, Speedups
from integrations.tasks import Example


class ZerothOrderLearner:
    """Evaluates perturbations of projections in all layers; a method draws and weighs them.

    Args:
        trial: The model and the split.
        targets: Which of q, k, v, o are perturbed.
        speedups: Which of the evaluator's steps to take.

    Attributes:
        arch: The model, with those targets.
        rng: Draws everything that is random, on the CPU, so that it is the same on every device.
        parameters: Numbers that are tuned.
        evaluations: Perturbations evaluated on the whole training set.

    Raises:
        UserError: If a target is unknown or named twice.
    """

    parameters: int

    def __init__(self, trial: Trial, targets: Sequence[str], speedups: Speedups) -> None:
        trial.arch.model.train(False)
        self.arch = describe(trial.arch.model, tuple(targets))
        self.rng = torch.Generator().manual_seed(trial.seed)
        self.evaluations = 0.0
        self._encoder = trial.encoder
        self._train = tuple(trial.encoder.task.train)
        self._speedups = speedups

    @property
    def _targets(self) -> list[tuple[int, Target]]:
        """All targets with the layers they belong to."""
        return [(i, t) for i, targets in enumerate(self.arch.targets) for t in targets.values()]

    def _evaluator(self, examples: Sequence[Example]) -> PopulationEvaluator:
        """What finds the cross-entropy of candidates on some examples."""
        return PopulationEvaluator(
            self.arch,
            self._encoder.encode(examples),
            self._encoder.label_ids,
            pad_id=self._encoder.pad_id,
            loss=cross_entropy,
            metric=self._encoder.task.metric,
            speedups=self._speedups,
        )

    def _adapter(self) -> Adapter:
        """The deltas in place beside the model's own weights."""
        return Adapter(self.arch)

    def logits(self, examples: Sequence[Example]) -> np.ndarray:
        """Label logits (N, C) float32 of examples with what is in place now."""
        return self._evaluator(examples).logits(self._adapter())


def require_whole(**values: Any) -> None:
    """Raise UserError unless each value, given by its name, is a whole number of 1 or more."""
    for name, value in values.items():
        if not (isinstance(value, int | np.integer) and value >= 1):
            raise UserError(f"{name} must be a whole number of 1 or more; got {value!r}.")


def require_positive(**values: Any) -> None:
    """Raise UserError unless each value, given by its name, is a finite number above 0."""
    for name, value in values.items():
        if not (isinstance(value, int | float | np.number) and 0 < value < math.inf):
            raise UserError(f"{name} must be a number above 0; got {value!r}.")
