"""What happened during a run, evaluation by evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from integrations.objective import Score
from integrations.visit import Visit


@dataclass(frozen=True)
class DevScore:
    """How the deltas in place did on the development set.

    Attributes:
        evaluations: Candidates evaluated until then; of methods that train on parts of the training
            set, passes over it.
        seconds: Wall time since the run began, interruptions not counted.
        train_loss: Training loss.
        loss: Development loss; NaN if it is not finite.
        score: The task's metric on the development set.
        best: Whether these deltas are better than all before: a higher score, or the same score
            and a lower loss.
    """

    evaluations: float
    seconds: float
    train_loss: float
    loss: float
    score: float
    best: bool


def best_of(scores: Sequence[DevScore]) -> DevScore:
    """The last of some looks at the development set that was better than all before it."""
    return [score for score in scores if score.best][-1]


def is_better(now: Score, before: Sequence[DevScore]) -> bool:
    """Whether a look at the development set is better than all before; the first always is."""
    if not before:
        return True
    best = best_of(before)
    # Few examples make many ties; the loss tells equal scores apart. NaN logits count as an answer
    # like any other, so a score beside a loss that is NaN means nothing.
    return math.isfinite(now.loss) and (now.score, -now.loss) > (best.score, -best.loss)


@dataclass
class History:
    """The course of a run.

    Attributes:
        visits: One record a generation.
        scores: One record a look at the development set, the frozen model's first.
    """

    visits: list[Visit] = field(default_factory=list)
    scores: list[DevScore] = field(default_factory=list)

    @property
    def best(self) -> DevScore:
        """The development score of the deltas that were chosen."""
        return best_of(self.scores)

    @property
    def invalid(self) -> int:
        """Candidates whose loss was NaN or infinite."""
        return sum(visit.invalid for visit in self.visits)

    def to_dict(self) -> dict[str, Any]:
        """The history as lists of plain dictionaries, for JSON."""
        return {
            "visits": [plain(visit) for visit in self.visits],
            "scores": [plain(score) for score in self.scores],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> History:
        """The history that `to_dict` turned into dictionaries."""
        return cls(
            visits=[
                Visit(**visit | {"best": math.inf if visit["best"] is None else visit["best"]})
                for visit in state["visits"]
            ],
            scores=[DevScore(**_with_nan(score)) for score in state["scores"]],
        )


def _with_nan(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in record.items()}


def plain(record: Any) -> dict[str, Any]:
    """A dataclass's fields for JSON, which has neither NaN nor infinity: None stands there."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(record).items()
    }
