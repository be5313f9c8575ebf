"""Which deltas a run keeps: those that do best on the development set."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from typing import Any

from dfo_core.validation import FloatArray
from integrations.checkpoint import CheckpointWarning, RunState
from integrations.errors import UserError
from integrations.history import DevScore, History, is_better
from integrations.metrics import name_of
from integrations.scoring import Scorer
from integrations.search import LayerwiseSearch


class Selection:
    """Keeps the deltas with the best development score, and the run's history.

    Args:
        search: Has the deltas in place.
        scorer: Scores them on the development set.
        started: When the run began, on `time.perf_counter`.

    Attributes:
        history: The run's.
        chosen: The z (d,) of those deltas in each layer that has one.
        stopped: Why the run ended, if that was known before it began.
    """

    def __init__(self, search: LayerwiseSearch, scorer: Scorer, started: float) -> None:
        self.search = search
        self.scorer = scorer
        self.started = started
        self.history = History()
        self.chosen: Mapping[int, FloatArray] = {}
        self.stopped: str | None = None

    def state(self, stopped: str | None) -> RunState:
        """What a run needs to continue, beside its optimizers."""
        return RunState(
            points=self.search.placed,
            chosen=self.chosen,
            block_size=self.search.evaluator.block_size,
            chosen_for=self.search.evaluator.chosen_for,
            history=self.history,
            budget=self.search.budget,
            seconds=self.seconds,
            stopped=stopped,
        )

    def restore(self, state: RunState) -> None:
        """Continue a run; the search's optimizers have been restored already."""
        before, now = state.history.scores[0].train_loss, self.search.loss
        if now != before:
            warnings.warn(
                f"the frozen model's training loss is {now!r}, and was {before!r} when the run "
                "began, by another loss or score of the same name, or on other hardware, versions "
                "or threads: it continues, but not bit for bit.",
                CheckpointWarning,
                stacklevel=3,
            )
        self.search.restore(state.points, state.history.visits)
        self.search.evaluator.block_size = state.block_size
        self.search.evaluator.chosen_for = state.chosen_for
        self.history, self.chosen = state.history, state.chosen
        self.started = time.perf_counter() - state.seconds
        if state.stopped != "budget" or self.search.left <= 0:  # else the budget was raised
            self.stopped = state.stopped

    @property
    def seconds(self) -> float:
        """Wall time of the run, without interruptions."""
        return time.perf_counter() - self.started

    @property
    def unseen(self) -> float:
        """Evaluations since the last look."""
        return self.search.evaluations - self.history.scores[-1].evaluations

    def look(self) -> None:
        """Score the deltas in place, and keep them if they are the best so far."""
        now = self.scorer(self.search.adapter)
        scores = self.history.scores
        better = is_better(now, scores)
        scores.append(
            DevScore(
                evaluations=self.search.evaluations,
                seconds=self.seconds,
                train_loss=self.search.loss,
                loss=now.loss if math.isfinite(now.loss) else math.nan,
                score=now.score,
                best=better,
            )
        )
        if better:
            self.chosen = self.search.placed


def require_finite(loss: float, examples: str, own: Any) -> None:
    """Refuse a loss of the frozen model that is no number to improve on.

    Args:
        loss: The loss.
        examples: Of which examples.
        own: What computes it; named in the error if it is a function of the user's own.

    Raises:
        UserError: If it is not finite.
    """
    if math.isfinite(loss):
        return
    if callable(own):
        raise UserError(
            f"the frozen model's {examples} loss is {loss}; let {name_of(own)!r} return finite "
            "numbers, or, if what it is given is not finite, load the model in another type."
        )
    raise UserError(
        f"the frozen model's {examples} loss is {loss}; load it in a type that does not overflow, "
        "such as bfloat16 or float32."
    )
