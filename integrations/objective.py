"""What an objective has to offer, so that `tune` can lower its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from integrations.adapter import Adapter
from integrations.architectures import Architecture
from integrations.batches import PromptBatch
from integrations.candidates import Candidates


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


def even_share(candidates: int, most: int) -> int:
    """Candidates a pass, so that few passes have at most so many, and all about as many.

    A nearly empty pass can take as long as a full one.
    """
    passes = -(-candidates // max(1, most))
    return -(-candidates // passes)


class Evaluator(Protocol):
    """Says how good deltas are on a fixed set of examples.

    Attributes:
        arch: The frozen model.
        block_size: Candidates in one forward pass; None if it is still to be chosen.
        chosen_for: The most candidates at a time for which that was chosen; more of them make
            `choose_block_size` choose anew. None if it holds for any number. A run that goes on
            sets both to what they were.
    """

    arch: Architecture
    block_size: int | None
    chosen_for: int | None

    @property
    def batches(self) -> Sequence[PromptBatch]:
        """The examples' prompts, on which the size of the deltas is calibrated."""

    @property
    def pass_size(self) -> int:
        """Candidates in one forward pass, once that is chosen."""

    def choose_block_size(self, candidates: Candidates, adapter: Adapter, workers: int = 1) -> None:
        """Choose how many candidates go into a forward pass, unless that is known for so many.

        Args:
            candidates: P candidates.
            adapter: What is in place.
            workers: Who share the candidates out; no block is larger than a share.
        """

    def losses(self, candidates: Candidates, adapter: Adapter) -> np.ndarray:
        """Loss of each candidate, with all that it does not replace as it is in place.

        Args:
            candidates: P candidates.
            adapter: What is in place in all layers.

        Returns:
            (P,) float64 losses, lower is better; one that is not finite ranks worst.
        """

    def loss_in_place(self, adapter: Adapter) -> float:
        """Loss with the deltas in place."""

    def score(self, adapter: Adapter, progress: Callable[[int, int], None] | None = None) -> Score:
        """Metric and loss with the deltas in place.

        Args:
            adapter: The deltas.
            progress: Called with how many of the examples, or of their tokens, are done, and of
                how many.
        """


def block_size_known(evaluator: Evaluator, candidates: int) -> bool:
    """Whether an evaluator has chosen how many of so many candidates go into a forward pass."""
    return evaluator.chosen_for is None or candidates <= evaluator.chosen_for
