"""How well deltas answer a set of examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from integrations.adapter import Adapter
from integrations.architectures import Architecture
from integrations.evaluators import make_evaluator
from integrations.metrics import Loss
from integrations.objective import Score
from integrations.patches import evaluating

__all__ = ["Score", "Scorer"]


class Scorer:
    """Scores deltas on a fixed set of examples.

    Args:
        arch: The frozen model.
        encoder: Makes prompts of the examples; see `integrations.evaluators.make_encoder`.
        examples: What is scored; at least one.
        loss: As in `tune`.
    """

    def __init__(
        self,
        arch: Architecture,
        encoder: Any,
        examples: Sequence[Any],
        loss: str | Loss | None = None,
    ) -> None:
        self.arch = arch
        self.evaluator = make_evaluator(encoder, arch, examples, loss)

    def __call__(
        self, adapter: Adapter | None = None, progress: Callable[[int, int], None] | None = None
    ) -> Score:
        """Score deltas.

        Args:
            adapter: The deltas; None for the frozen model alone.
            progress: Called with the number of examples done and of all.
        """
        with evaluating(self.arch.model):
            return self.evaluator.score(adapter or Adapter(self.arch), progress)
