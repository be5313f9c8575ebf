"""How well deltas answer a set of examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from integrations.adapter import Adapter
from integrations.architectures import Architecture
from integrations.metrics import METRICS, make_loss
from integrations.patches import evaluating
from integrations.population import PopulationEvaluator
from integrations.prompts import Encoder
from integrations.tasks import Example


@dataclass(frozen=True)
class Score:
    """Result on a set of examples.

    Attributes:
        score: The task's metric, higher is better.
        loss: The loss on all of them.
        examples: How many examples there were.
    """

    score: float
    loss: float
    examples: int


class Scorer:
    """Scores deltas on a fixed set of examples.

    Args:
        arch: The frozen model.
        encoder: Makes prompts of the examples.
        examples: What is scored; at least one.
        loss: Name in `integrations.metrics.LOSS_NAMES`.
    """

    def __init__(
        self, arch: Architecture, encoder: Encoder, examples: Sequence[Example], loss: str = "ce"
    ) -> None:
        self.arch = arch
        self.metric = METRICS[encoder.task.metric]
        self.loss = make_loss(loss, encoder.task.metric)
        self.evaluator = PopulationEvaluator(
            arch,
            encoder.encode(examples),
            encoder.label_ids,
            pad_id=encoder.pad_id,
            loss=self.loss,
        )

    def __call__(
        self, adapter: Adapter | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Score:
        """Score deltas.

        Args:
            adapter: The deltas; None for the frozen model alone.
            progress: Called with the number of examples done and of all.
        """
        with evaluating(self.arch.model):
            logits = self.evaluator.logits(adapter or Adapter(self.arch), progress)
        labels = self.evaluator.labels
        loss = float(self.loss(torch.from_numpy(logits), torch.from_numpy(labels)))
        return Score(float(self.metric(labels, logits.argmax(axis=1))), loss, len(labels))
