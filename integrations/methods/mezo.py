"""MeZO with LoRA: gradient descent whose gradients are differences of two losses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from integrations.adapter import Adapter
from integrations.candidates import JointCandidates
from integrations.errors import UserError
from integrations.methods.trial import Trial
from integrations.methods.zeroth_order import ZerothOrderLearner, require_positive, require_whole
from integrations.population import FAST, Speedups
from lora_kernels import Factors


class MeZO(ZerothOrderLearner):
    """MeZO (Malladi et al., NeurIPS 2023, arXiv 2305.17333) on LoRA's factors.

    A step draws z ~ N(0, I) and goes down the gradient that simultaneous perturbation estimates
    (SPSA, Definition 1 and Algorithm 1), with L the mean loss of a batch:

        theta <- theta - learning_rate * (L(theta + eps z) - L(theta - eps z)) / (2 eps) * z

    theta are LoRA's A, with torch.nn.Linear's initial numbers, and B, zero at first, of the
    queries and values of all layers. Both losses come from one call of the evaluator. Defaults are
    those of the authors' few-shot command for LoRA with RoBERTa-large (``medium_models/README.md``
    of github.com/princeton-nlp/MeZO): a constant rate of 1e-4, eps 1e-3, 64 examples a batch, no
    weight decay. They let it run for 100,000 steps.

    What differs from that code: z, as short as LoRA's factors are, is kept for the length of a
    step and not drawn three times from a seed; and where the training set is larger than a batch,
    it is dealt into batches once, not anew every epoch.

    Args:
        trial: The model and the split.
        rank: LoRA's rank r.
        alpha: LoRA's scale: the delta is alpha / r times B A.
        targets: Which of q, k, v, o get a delta.
        learning_rate: Size of a step.
        eps: Size of the perturbation.
        samples: How many z a step averages over, n in n-SPSA.
        weight_decay: What is added to the gradient, as a multiple of theta.
        batch_size: Most examples that a loss is the mean over.
        speedups: Which of the evaluator's steps to take.

    Attributes:
        theta: (d,) float32, the factors of all layers one after the other, A before B.
        parameters: d.

    Raises:
        UserError: If an argument does not fit.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        targets: Sequence[str] = ("q", "v"),
        learning_rate: float = 1e-4,
        eps: float = 1e-3,
        samples: int = 1,
        weight_decay: float = 0.0,
        batch_size: int = 64,
        speedups: Speedups = FAST,
    ) -> None:
        require_whole(rank=rank, samples=samples, batch_size=batch_size)
        require_positive(alpha=alpha, learning_rate=learning_rate, eps=eps)
        if not 0 <= weight_decay < math.inf:
            raise UserError(f"weight_decay must be 0 or more; got {weight_decay!r}.")
        super().__init__(trial, targets, speedups)
        self.rank, self.alpha = rank, alpha
        self.learning_rate, self.eps = learning_rate, eps
        self.samples, self.weight_decay = samples, weight_decay
        self.theta = torch.cat(list(self._initial())).to(self.arch.model.device)
        self.parameters = len(self.theta)
        order = torch.randperm(len(self._train), generator=self.rng)
        self._batches = [
            self._evaluator([self._train[i] for i in rows.tolist()])
            for rows in torch.split(order, batch_size)
        ]
        self._steps = 0

    def _initial(self) -> Iterator[Tensor]:
        """The numbers to begin with, in theta's order."""
        for _, target in self._targets:
            a = torch.empty(self.rank, target.in_features)
            torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=self.rng)
            yield a.flatten()
            yield torch.zeros(self.rank * target.out_features)

    def _candidates(self, points: Tensor) -> JointCandidates:
        """The factors that points (P, d) stand for."""
        sizes = [self.rank * n for _, t in self._targets for n in (t.in_features, t.out_features)]
        parts = iter(torch.split(points.to(self.arch.model.dtype), sizes, dim=1))
        layers: dict[int, dict[str, Factors]] = {}
        for layer, target in self._targets:
            a = next(parts).reshape(-1, self.rank, target.in_features)
            b = next(parts).reshape(-1, self.rank, target.out_features)
            layers.setdefault(layer, {})[target.name] = Factors(a, self.alpha / self.rank * b)
        return JointCandidates(layers)

    def _adapter(self) -> Adapter:
        adapter = Adapter(self.arch)
        self._candidates(self.theta[None]).place(adapter)
        return adapter

    @torch.no_grad()
    def step(self) -> float:
        """Take one step on the next batch.

        One whose losses are not finite changes nothing.

        Returns:
            The mean of the batch's losses: up to eps^2 the loss before the step.
        """
        batch = self._batches[self._steps % len(self._batches)]
        z = torch.randn(self.samples, self.parameters, generator=self.rng).to(self.theta.device)
        points = torch.cat([self.theta + self.eps * z, self.theta - self.eps * z])
        losses = batch.losses(self._candidates(points), Adapter(self.arch))
        self.evaluations += len(points) * batch.examples / len(self._train)
        self._steps += 1
        ahead, behind = losses.reshape(2, -1)
        slopes = (ahead - behind) / (2 * self.eps)
        if np.isfinite(slopes).all():
            gradient = torch.from_numpy(slopes).to(z) @ z / self.samples
            self.theta -= self.learning_rate * (gradient + self.weight_decay * self.theta)
        return float(losses.mean())

    def state(self) -> Tensor:
        """The factors' numbers (d,), unaffected by later steps."""
        return self.theta.clone()

    def restore(self, state: Tensor) -> None:
        """Put in place what `state` returned."""
        self.theta.copy_(state)
