"""F-LoRA and C-LoRA: what `integrations.tune` does, step by step."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfo_core.validation import FloatArray
from integrations.evaluators import make_evaluator
from integrations.methods.trial import Trial
from integrations.optimizers import make_optimizers
from integrations.schedule import choose_layers, make_schedule
from integrations.search import LayerwiseSearch
from integrations.spaces import make_spaces
from integrations.tasks import Example


class LayerwiseLora:
    """Low-rank deltas of query and value, layer by layer, without gradients.

    Jin, Liu & Tan, arXiv 2403.01754. The search is that of `integrations.tune` with its defaults:
    the same arguments give the same course.

    Args:
        trial: What is given.
        optimizer: ``"lotfwa"`` (F-LoRA), ``"cma-es"`` (C-LoRA), or what else `tune` takes.
        rank: Rank of each delta.
        dim: Length of each layer's z.
        layers: As in `tune`.
        schedule: As in `tune`.
        init: As in `tune`.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        optimizer: Any = "lotfwa",
        rank: int = 4,
        dim: int = 500,
        layers: Sequence[int] | str | None = None,
        schedule: str = "generation-major",
        init: str = "calibrated",
    ) -> None:
        self._arch, self._encoder = trial.arch, trial.encoder
        chosen = choose_layers(layers, len(trial.arch.layers))
        plan = make_schedule(schedule, chosen, len(trial.arch.layers))
        size = dim * len(chosen) // len(plan.stops)
        budget = sys.maxsize if trial.budget is None else int(trial.budget)
        evaluator = make_evaluator(trial.encoder, trial.arch, trial.encoder.task.train, None)
        spaces = make_spaces(
            trial.arch,
            evaluator.batches,
            rank=rank,
            dim=dim,
            init=init,
            std=None,
            seed=trial.seed,
        )
        self._search = LayerwiseSearch(
            evaluator,
            spaces,
            make_optimizers(optimizer, plan.stops, size, trial.seed, budget, None),
            plan,
            budget,
        )
        self._points: Mapping[int, FloatArray] | None = None
        self.parameters = dim * len(chosen)

    @property
    def evaluations(self) -> float:
        """Candidates so far."""
        return self._search.evaluations

    def step(self) -> float:
        """Visit one layer for a generation."""
        self._points = None
        return self._search.visit().loss

    def logits(self, examples: Sequence[Example]) -> np.ndarray:
        """Label logits (N, C)."""
        evaluator: Any = make_evaluator(self._encoder, self._arch, examples, None)
        points = self._search.placed if self._points is None else self._points
        found: np.ndarray = evaluator.logits(self._search.adapter_of(points))
        return found

    def state(self) -> Mapping[int, FloatArray]:
        """The z in place of each layer."""
        return self._search.placed

    def restore(self, state: Mapping[int, FloatArray]) -> None:
        """Let `logits` use these z; the search itself goes on from where it is."""
        self._points = state
