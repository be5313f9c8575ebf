"""F-LoRA and C-LoRA: what `integrations.tune` does, step by step."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dfo_core.validation import FloatArray
from integrations.architectures import describe
from integrations.evaluators import make_evaluator
from integrations.methods.trial import Trial
from integrations.optimizers import freezes_a, make_optimizers
from integrations.schedule import choose_layers, coordinates, make_schedule
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
        targets: As in `tune`.
        layers: As in `tune`.
        popsize: As in `tune`.
        schedule: As in `tune`.
        init: As in `tune`.
        init_std: As in `tune`.
        freeze_a: As in `tune`.
        incumbent: As in `tune`.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        optimizer: Any = "lotfwa",
        rank: int = 4,
        dim: int = 500,
        targets: Sequence[str] = ("q", "v"),
        layers: Sequence[int] | str | None = None,
        popsize: int | None = None,
        schedule: str = "generation-major",
        init: str = "calibrated",
        init_std: float | None = None,
        freeze_a: bool | None = None,
        incumbent: bool = True,
    ) -> None:
        self._arch, self._encoder = describe(trial.arch.model, tuple(targets)), trial.encoder
        chosen = choose_layers(layers, len(self._arch.layers))
        plan = make_schedule(schedule, chosen, len(self._arch.layers))
        size = coordinates(plan, dim)
        budget = sys.maxsize if trial.budget is None else int(trial.budget)
        evaluator = make_evaluator(trial.encoder, self._arch, trial.encoder.task.train, None)
        spaces = make_spaces(
            self._arch,
            evaluator.batches,
            rank=rank,
            dim=dim,
            init=init,
            std=init_std,
            seed=trial.seed,
            freeze_a=freezes_a(optimizer, freeze_a),
        )
        self._search = LayerwiseSearch(
            evaluator,
            spaces,
            make_optimizers(optimizer, plan.stops, size, trial.seed, budget, popsize),
            plan,
            budget,
            incumbent=incumbent,
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
