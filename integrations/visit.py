"""What a run notes of each generation."""

from __future__ import annotations

from dataclasses import dataclass

Stop = int | None
"""What is tuned in one generation: a layer, or None for all tuned layers at once."""


@dataclass(frozen=True)
class Visit:
    """What one generation of one optimizer brought.

    Attributes:
        number: Which visit it was, from zero.
        layer: The layer that was tuned; None for all of them at once (``schedule="joint"``).
        evaluations: Candidates evaluated since the search began, this visit's among them.
        best: Lowest loss among this visit's candidates; inf if none was finite.
        loss: Training loss with the deltas in place after the visit.
        improved: Whether a candidate took the place of what was tuned.
        invalid: Candidates of this visit whose loss was NaN or infinite.
    """

    number: int
    layer: Stop
    evaluations: int
    best: float
    loss: float
    improved: bool
    invalid: int
