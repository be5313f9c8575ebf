"""One method on one few-shot split: the same data, limits and selection for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from integrations.architectures import Architecture
from integrations.history import DevScore, is_better
from integrations.metrics import METRICS, make_loss
from integrations.objective import Score
from integrations.prompts import Encoder
from integrations.selection import require_finite
from integrations.tasks import Example


class Learner(Protocol):
    """What a method does, step by step; `fit` looks after limits and selection.

    Attributes:
        parameters: Numbers that are tuned: the length of what is searched or trained.
        evaluations: Passes over the training set so far; a candidate evaluated on all of it counts
            one, a gradient step on a part of it that part.
    """

    parameters: int
    evaluations: float

    def step(self) -> float | None:
        """Do the next unit of work, of a few seconds at most.

        Returns:
            The training loss with what is in place now; None if there is nothing left to do.
        """

    def logits(self, examples: Sequence[Example]) -> np.ndarray:
        """Label logits (N, C) float32 of examples with what is in place now."""

    def state(self) -> Any:
        """What is in place now, unaffected by later steps."""

    def restore(self, state: Any) -> None:
        """Put in place what `state` returned."""


@dataclass
class Trial:
    """What a method is given, and the course of what it made of it.

    Attributes:
        arch: A model that is this trial's own: a method may edit it.
        encoder: Makes prompts of examples; ``encoder.task`` has the split.
        seed: All randomness comes from it.
        budget: Most passes over the training set; None for no limit.
        seconds: Most wall time for learning, looks at the development set included; None for no
            limit.
        dev_every: Passes over the training set between looks at the development set.
        marks: Shares of budget or time after which `fit` keeps what is chosen by then, rising.
        scores: One record a look, the first before any step.
        started: When learning began, as `time.perf_counter` counts.
    """

    arch: Architecture
    encoder: Encoder
    seed: int
    budget: float | None
    seconds: float | None
    dev_every: float
    marks: tuple[float, ...] = ()
    scores: list[DevScore] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds since learning began."""
        return time.perf_counter() - self.started

    def spent(self, evaluations: float, share: float = 1.0) -> bool:
        """Whether a share of the budget or of the time is used up, whichever is first."""
        return (self.budget is not None and evaluations >= share * self.budget) or (
            self.seconds is not None and self.elapsed >= share * self.seconds
        )

    def due(self, evaluations: float) -> bool:
        """Whether it is time for a look at the development set."""
        return not self.scores or evaluations - self.scores[-1].evaluations >= self.dev_every

    def look(
        self,
        evaluations: float,
        train_loss: float,
        logits: Callable[[Sequence[Example]], np.ndarray],
    ) -> bool:
        """Score what is in place on the development set.

        Returns:
            Whether it is better than all before: a higher score, or the same and a lower loss.
        """
        now = self.score(self.encoder.task.dev, logits)
        better = is_better(now, self.scores)
        self.scores.append(
            DevScore(evaluations, self.elapsed, train_loss, now.loss, now.score, better)
        )
        return better

    def score(
        self, examples: Sequence[Example], logits: Callable[[Sequence[Example]], np.ndarray]
    ) -> Score:
        """The task's metric and the cross-entropy of a function's label logits on examples."""
        found = np.asarray(logits(examples), dtype=np.float32)
        labels = np.array([example.label for example in examples])
        metric = self.encoder.task.metric
        loss = make_loss("ce", metric)(torch.from_numpy(found), torch.from_numpy(labels))
        score = METRICS[metric](labels, found.argmax(axis=1))
        return Score(float(score), float(loss), len(examples))


def fit(trial: Trial, learner: Learner) -> list[Any]:
    """Let a learner work until it has nothing left to do, or budget or time is used up.

    What did best on the development set is in place afterwards.

    Returns:
        The learner's state that was the best at each of ``trial.marks``, and at the end.

    Raises:
        UserError: If the development loss before the first step is not finite.
    """
    chosen = learner.state()
    trial.look(0, np.nan, learner.logits)
    require_finite(trial.scores[0].loss, "development", None)
    marked: list[Any] = []
    more = True
    while more and not trial.spent(learner.evaluations):
        loss = learner.step()
        while len(marked) < len(trial.marks) and trial.spent(
            learner.evaluations, trial.marks[len(marked)]
        ):
            marked.append(chosen)
        more = loss is not None
        last = not more or trial.spent(learner.evaluations)
        new = learner.evaluations > trial.scores[-1].evaluations
        if new and (last or trial.due(learner.evaluations)):
            better = trial.look(
                learner.evaluations, np.nan if loss is None else loss, learner.logits
            )
            if better:
                chosen = None  # which frees its memory first
                chosen = learner.state()
    learner.restore(chosen)
    return marked + [chosen] * (len(trial.marks) - len(marked) + 1)
