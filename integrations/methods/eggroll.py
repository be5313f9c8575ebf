"""EGGROLL: an evolution strategy on weight matrices whose perturbations have low rank."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from integrations.candidates import JointCandidates
from integrations.errors import UserError
from integrations.merging import require_plain
from integrations.methods.trial import Trial
from integrations.methods.zeroth_order import ZerothOrderLearner, require_positive, require_whole
from integrations.population import FAST, Speedups
from integrations.weights import weight_of
from lora_kernels import Factors

VARIANCE_FLOOR = 1e-5  # the 1e-5 of the authors' convert_fitnesses


class EGGROLL(ZerothOrderLearner):
    """Evolution strategies at the hyperscale (Sarkar et al. 2025, arXiv 2511.16652).

    Each of N members perturbs every tuned matrix W (o, h) by sigma E_i with E_i = A B^T / sqrt(r),
    A (o, r) and B (h, r) standard normal; members come in pairs with E and -E. With the fitness
    f_i = -loss, standardized over the generation, the matrices move by the mean of what was tried:

        W <- W + learning_rate * sqrt(N) * mean_i(standardized f_i * sigma E_i)

    which has rank up to r N / 2. Standardization, sqrt(N) and the defaults of sigma, learning_rate
    and rank are those of the authors' code (``src/hyperscalees/noiser/eggroll.py`` and
    ``llm_experiments/general_do_evolution.py`` of github.com/ESHyperscale/HyperscaleES). As there
    with ``freeze_nonlora``, nothing but matrices is tuned.

    What differs from that code: the matrices are those of queries and values, as with the other
    methods here, and not all; a member's fitness is its loss on the whole training set; and the
    default population is one that a CPU can afford, where theirs has up to a thousand members a
    GPU.

    The matrices are the model's own weights, which are edited. All members are evaluated as
    low-rank deltas beside them, so that nothing of a matrix's size is kept for each.

    Args:
        trial: The model and the split.
        targets: Which of q, k, v, o are tuned.
        rank: Rank r of a perturbation.
        popsize: Members N of a generation, an even number.
        sigma: Size of the perturbations.
        learning_rate: Size of a step in relation to them.
        members_a_step: Members that one call of `step` evaluates.
        speedups: Which of the evaluator's steps to take.

    Attributes:
        parameters: Entries of the tuned matrices.

    Raises:
        UserError: If an argument does not fit, or a matrix is quantized.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        targets: Sequence[str] = ("q", "v"),
        rank: int = 1,
        popsize: int = 16,
        sigma: float = 1e-3,
        learning_rate: float = 1.0,
        members_a_step: int = 4,
        speedups: Speedups = FAST,
    ) -> None:
        require_whole(rank=rank, popsize=popsize, members_a_step=members_a_step)
        require_positive(sigma=sigma, learning_rate=learning_rate)
        if popsize % 2:
            raise UserError(f"popsize must be even, as members come in pairs; got {popsize!r}.")
        super().__init__(trial, targets, speedups)
        for _, target in self._targets:
            require_plain(target)
        self.parameters = sum(t.in_features * t.out_features for _, t in self._targets)
        self.rank, self.popsize = rank, popsize
        self.sigma, self.learning_rate = sigma, learning_rate
        self.members_a_step = members_a_step
        self._on_train = self._evaluator(self._train)
        self._members = self._draw()
        self._losses = np.empty(0)  # of the members evaluated so far

    def _draw(self) -> JointCandidates:
        """The members of a generation: each pair's sigma E and -sigma E follow each other.

        `Factors` has the transposes: its A is the paper's B^T, its B sigma / sqrt(r) times A^T.
        """
        model, pairs = self.arch.model, self.popsize // 2
        signs = torch.tensor([1.0, -1.0]).repeat(pairs)[:, None, None]
        layers: dict[int, dict[str, Factors]] = {}
        for layer, target in self._targets:
            b = torch.randn(pairs, self.rank, target.in_features, generator=self.rng)
            a = torch.randn(pairs, self.rank, target.out_features, generator=self.rng)
            a = self.sigma / sqrt(self.rank) * a
            members = Factors(b.repeat_interleave(2, dim=0), signs * a.repeat_interleave(2, dim=0))
            layers.setdefault(layer, {})[target.name] = members.to(model.device, model.dtype)
        return JointCandidates(layers)

    def step(self) -> float:
        """Evaluate the next members; once the generation is complete, move the matrices.

        Returns:
            The mean loss of the generation's members so far, close to that of their centre.
        """
        rows = slice(len(self._losses), len(self._losses) + self.members_a_step)
        losses = self._on_train.losses(self._members[rows], self._adapter())
        self.evaluations += len(losses)
        self._losses = np.concatenate([self._losses, losses])
        mean = float(self._losses.mean())
        if len(self._losses) == self.popsize:
            self._move(fitness(self._losses))
            self._begin()
        return mean

    def _begin(self) -> None:
        """Begin a generation around the matrices as they are."""
        self._members, self._losses = self._draw(), np.empty(0)

    @torch.no_grad()
    def _move(self, weights: np.ndarray) -> None:
        """Add the members' weighted mean, in float32 and rounded once to the matrices' type.

        Args:
            weights: (N,) the members' standardized fitness.
        """
        share = self.learning_rate * sqrt(self.popsize) * torch.from_numpy(weights) / self.popsize
        for layer, target in self._targets:
            members = self._members.factors[layer][target.name]
            weight = weight_of(target.module)
            weighted = share.to(weight.device, torch.float32)[:, None, None] * members.B
            step = weighted.flatten(0, 1).mT @ members.A.float().flatten(0, 1)
            weight[target.columns] = (weight[target.columns].float() + step).to(weight.dtype)

    @torch.no_grad()
    def state(self) -> list[Tensor]:
        """The tuned matrices, unaffected by later steps."""
        return [weight_of(target.module)[target.columns].clone() for _, target in self._targets]

    @torch.no_grad()
    def restore(self, state: list[Tensor]) -> None:
        """Put in place what `state` returned; a generation that is under way is given up."""
        for (_, target), matrix in zip(self._targets, state, strict=True):
            weight_of(target.module)[target.columns] = matrix
        self._begin()


def fitness(losses: np.ndarray) -> np.ndarray:
    """Standardized fitness of a generation's losses (N,); 0 for those that are not finite."""
    found = np.zeros_like(losses)
    finite = np.isfinite(losses)
    if finite.any():
        good = losses[finite]
        found[finite] = (good.mean() - good) / np.sqrt(good.var() + VARIANCE_FLOOR)
    return found
