"""Log-likelihoods of reference continuations, for many candidates at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from integrations.adapter import Adapter
from integrations.architectures import Architecture
from integrations.batches import PromptBatch
from integrations.metrics import Loss
from integrations.objective import Score
from integrations.patches import Patches
from integrations.population import FAST, PopulationEvaluator, Speedups
from integrations.prompts import Prompt

MOST_LOGITS = 1 << 26
"""Logits of the whole vocabulary in one forward pass, 256 MiB in float32."""


class TokenLikelihoods(PopulationEvaluator):
    """Evaluates candidates by the log-likelihoods of the tokens to predict.

    All that makes label words fast holds here as well, the answers being all the positions that
    predict a token of a continuation; only the head computes the whole vocabulary there.

    Args:
        arch: The frozen model.
        prompts: Prompts with the tokens to predict.
        pad_id: Token that fills up shorter prompts.
        loss: Loss of what `_of_examples` makes of the log-likelihoods (..., tokens, 1).
        metric: As in `PopulationEvaluator`.
        speedups: Which of the six steps to take (default all).
        memory_limit: As in `PopulationEvaluator`.

    Raises:
        UserError: If the memory limit is too little for the longest prompt.
    """

    def __init__(
        self,
        arch: Architecture,
        prompts: Sequence[Prompt],
        *,
        pad_id: int,
        loss: Loss,
        metric: str = "accuracy",
        speedups: Speedups = FAST,
        memory_limit: int | None = None,
    ) -> None:
        super().__init__(
            arch,
            prompts,
            label_ids=(0,),  # one number is kept for each answer
            pad_id=pad_id,
            loss=loss,
            metric=metric,
            speedups=speedups,
            memory_limit=memory_limit,
            all_logits=True,
        )

    def _most_answers(self) -> int:
        vocabulary = int(self.arch.model.config.get_text_config().vocab_size)
        return max(1, MOST_LOGITS // vocabulary)

    def _cut_head(self, patches: Patches, arch: Architecture) -> None:
        """The head computes the whole vocabulary."""

    def _read(self, logits: Tensor, batch: PromptBatch) -> Tensor:
        """Log-likelihood of each token to predict, (P, N, 1)."""
        index = batch.labels.expand(logits.shape[:-1]).unsqueeze(-1)
        return logits.float().log_softmax(dim=-1).gather(-1, index)


class ContinuationEvaluator(TokenLikelihoods):
    """Evaluates candidates by the mean negative log-likelihood of the tokens that are to follow.

    Args:
        arch: The frozen model.
        prompts: Prompts with the tokens that are to follow.
        settings: Those of `TokenLikelihoods` but for the loss.

    Raises:
        UserError: If the memory limit is too little for the longest prompt.
    """

    def __init__(self, arch: Architecture, prompts: Sequence[Prompt], **settings: Any) -> None:
        super().__init__(arch, prompts, loss=_mean_nll, **settings)

    def score(self, adapter: Adapter, progress: Callable[[int, int], None] | None = None) -> Score:
        """Minus the loss, and the loss; its exponential is the perplexity."""
        log_likelihoods = torch.from_numpy(self.logits(adapter, progress))
        loss = float(_mean_nll(log_likelihoods))
        return Score(-loss, loss, self.examples)


def _mean_nll(log_likelihoods: Tensor, _: Tensor | None = None) -> Tensor:
    """Mean over all tokens (..., N, 1), which makes long continuations weigh more, (...)."""
    return -log_likelihoods.squeeze(-1).double().mean(dim=-1)
