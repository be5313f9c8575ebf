"""Manual prompt: the frozen model asked with the task's pattern, nothing tuned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from integrations.adapter import Adapter
from integrations.methods.trial import Trial
from integrations.metrics import cross_entropy
from integrations.patches import evaluating
from integrations.population import PopulationEvaluator
from integrations.prompts import Encoder
from integrations.tasks import Example


class ManualPrompt:
    """Zero-shot prediction: the label word that the frozen model finds most likely in the pattern.

    Schick & Schütze 2021 (arXiv 2001.07676), section 3; "Manual Prompt" in the paper's Table 1.

    Args:
        trial: The model and the split, of which no example is looked at.

    Attributes:
        parameters: 0.
        evaluations: 0.
    """

    parameters = 0
    evaluations = 0.0

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._encoder = trial.encoder

    def step(self) -> None:
        """There is nothing to do."""

    def logits(self, examples: Sequence[Example]) -> np.ndarray:
        """Label logits (N, C) float32 of the frozen model."""
        return frozen_logits(self._trial, self._encoder, examples)

    def state(self) -> None:
        """There is nothing to keep."""

    def restore(self, state: None) -> None:
        """There is nothing to put in place."""


def frozen_logits(trial: Trial, encoder: Encoder, examples: Sequence[Example]) -> np.ndarray:
    """Label logits (N, C) float32 of a trial's model as it is, for prompts of some encoder."""
    evaluator = PopulationEvaluator(
        trial.arch,
        encoder.encode(examples),
        encoder.label_ids,
        pad_id=encoder.pad_id,
        loss=cross_entropy,
    )
    with evaluating(trial.arch.model):
        return evaluator.logits(Adapter(trial.arch))
