"""What the methods share that tune a soft prompt from forward passes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dfo_core.adapters import PycmaOptimizer
from integrations.adapter import Adapter
from integrations.architectures import Architecture, embedding_scale
from integrations.candidates import PromptCandidates
from integrations.errors import UserError
from integrations.methods.trial import Trial
from integrations.metrics import Loss, make_loss
from integrations.population import FAST, PopulationEvaluator, Speedups
from integrations.prompts import MAX_LENGTH, Encoder, Prompt, free_positions
from integrations.tasks import Example
from lora_kernels import SeededProjection, project

FIRST_TOKEN = 1000
"""The soft prompt starts from the words of so many tokens from this one on, as the authors' does.

They are in effect random words: common ones come first in most vocabularies.
"""


class SoftPromptEncoder:
    """Encodes a task's examples behind n soft-prompt tokens.

    The tokens come first, but for the special token that opens a prompt. Texts are cut so that
    all of it fits into the model.

    Args:
        encoder: Encodes the same examples without them.
        arch: The model.
        n_tokens: Length n of the soft prompt.
        first_token: The tokens are the first n from this one on that are no special tokens.

    Raises:
        UserError: If the model is an encoder-decoder, the soft prompt takes more than half of
            the tokens that the model takes, or the vocabulary has too few tokens.
    """

    def __init__(
        self, encoder: Encoder, arch: Architecture, n_tokens: int, first_token: int = FIRST_TOKEN
    ) -> None:
        if arch.kind == "seq2seq":
            raise UserError(
                "soft prompts are for causal and masked models, and this one is an "
                "encoder-decoder; leave the method out."
            )
        free = free_positions(arch.model)
        most = int(min(max(MAX_LENGTH // 2, encoder.max_length), free // 2))
        if not 1 <= n_tokens <= most:
            raise UserError(
                f"n_tokens must be 1 to {most}, so that the soft prompt is no longer than the text "
                f"may be; got {n_tokens}."
            )
        tokenizer = encoder.tokenizer
        special = set(tokenizer.all_special_ids)
        words = [i for i in range(first_token, len(tokenizer)) if i not in special][:n_tokens]
        if len(words) < n_tokens:
            raise UserError(
                f"the vocabulary has {len(words)} words from token {first_token} on, and a soft "
                f"prompt of {n_tokens} starts from as many; lower first_token."
            )
        self.words = tuple(words)
        self.opening = {tokenizer.bos_token_id, tokenizer.cls_token_id}
        self.encoder = Encoder(
            encoder.task, tokenizer, encoder.kind, int(min(encoder.max_length, free - n_tokens))
        )

    def encode(self, examples: Sequence[Example]) -> list[Prompt]:
        """Prompts with the place of the soft prompt noted."""
        return [self._insert(prompt) for prompt in self.encoder.encode(examples)]

    def _insert(self, prompt: Prompt) -> Prompt:
        n = len(self.words)
        start = int(prompt.ids[:1] != () and prompt.ids[0] in self.opening)
        ids = (*prompt.ids[:start], *self.words, *prompt.ids[start:])
        return replace(prompt, ids=ids, answer=prompt.answer + n, soft=(start, n))


class Subspace:
    """A search with pycma's CMA-ES for what is added to a soft prompt, in a random subspace.

    The z (d,) it searches for becomes n * h numbers by a fixed random matrix of N(0, std^2)
    entries, std = alpha * spread / (sqrt(d) * sigma): with z ~ N(0, sigma^2) the sum has alpha
    times the spread that what it is added to has (BBTv2, arXiv 2205.11200, section 3.2).

    Args:
        shape: Length n of the soft prompt and width h of the hidden states.
        dim: Length d of z.
        popsize: Candidates a generation.
        sigma: Initial step size of CMA-ES, which starts at z = 0.
        alpha: The factor above.
        spread: Standard deviation of what is added to.
        seed: Draws the matrix and, with the stream, the candidates.
        stream: Which of the seed's searches this is.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        dim: int,
        popsize: int,
        sigma: float,
        alpha: float,
        spread: float,
        seed: int,
        stream: int = 0,
    ) -> None:
        for name, value in {"dim": dim, "sigma": sigma, "alpha": alpha}.items():
            if not value > 0:
                raise UserError(f"{name} must be above 0; got {value!r}.")
        if popsize < 2:
            raise UserError(f"popsize must be 2 or more; got {popsize!r}.")
        self.shape = shape
        std = alpha * spread / (math.sqrt(dim) * sigma)
        self.projection = SeededProjection(math.prod(shape), dim, seed, std, stream)
        self.optimizer = PycmaOptimizer.from_arguments(
            dim=dim,
            x0=np.zeros(dim),
            sigma0=sigma,
            popsize=popsize,
            seed=np.random.default_rng((seed, stream)),
        )

    def offsets(self, z: np.ndarray, arch: Architecture) -> Tensor:
        """What candidates z (P, d) add, (P, n, h)."""
        points = torch.as_tensor(z, dtype=torch.float32, device=arch.model.device)
        return project(points, self.projection, self.shape, dtype=arch.model.dtype)


class SoftPromptLearner:
    """A frozen model with a soft prompt, and what is added to it layer by layer.

    Args:
        trial: The trial.
        n_tokens: Length n of the soft prompt.
        first_token: See `SoftPromptEncoder`.
        words: Whether a first layer's offset is added to word embeddings; see `Adapter`.
        loss: ``"ce"``, ``"hinge"`` or another loss that `tune` knows.
        speedups: Which of the evaluator's steps to take.

    Attributes:
        evaluations: Candidates evaluated.
    """

    def __init__(
        self,
        trial: Trial,
        n_tokens: int,
        first_token: int,
        words: bool,
        loss: str | Loss,
        speedups: Speedups = FAST,
    ) -> None:
        self.trial = trial
        self.arch = trial.arch
        self.arch.model.train(False)
        self.encoder = SoftPromptEncoder(trial.encoder, self.arch, n_tokens, first_token)
        width = embedding_table(self.arch).shape[1] if words else self.arch.hidden_size
        self.shape = (n_tokens, width)
        self.loss = make_loss(loss, trial.encoder.task.metric)
        self.adapter = Adapter(self.arch, words=words)
        self.evaluator = self._evaluator(trial.encoder.task.train, speedups)
        self.evaluations: float = 0

    def _evaluator(
        self, examples: Sequence[Example], speedups: Speedups = FAST
    ) -> PopulationEvaluator:
        return PopulationEvaluator(
            self.arch,
            self.encoder.encode(examples),
            self.trial.encoder.label_ids,
            pad_id=self.trial.encoder.pad_id,
            loss=self.loss,
            metric=self.trial.encoder.task.metric,
            speedups=speedups,
        )

    def _generation(self, layer: int, space: Subspace) -> tuple[Tensor, np.ndarray]:
        """One generation of a layer's search, or as much of it as the budget has left.

        Returns:
            What its candidates add (P, n, h), and their losses (P,), infinite where they are none.
        """
        batch = space.optimizer.ask()
        if self.trial.budget is not None:
            batch = batch[: max(1, int(self.trial.budget - self.evaluations))]
        offsets = space.offsets(batch.x, self.arch)
        candidates = PromptCandidates(layer, offsets, words=self.adapter.words)
        losses = self.evaluator.losses(candidates, self.adapter)
        space.optimizer.tell(batch, losses)
        self.evaluations += len(losses)
        return offsets, np.where(np.isfinite(losses), losses, np.inf)

    def logits(self, examples: Sequence[Example]) -> np.ndarray:
        """Label logits (N, C) with the soft prompt in place."""
        return self._evaluator(examples).logits(self.adapter)

    def state(self) -> Adapter:
        """The soft prompt in place."""
        return self.adapter.copy()

    def restore(self, state: Adapter) -> None:
        """Put a soft prompt in place."""
        self.adapter = state.copy()


def embedding_table(arch: Architecture) -> Tensor:
    """The word embeddings, (V, width)."""
    weight: Any = arch.model.get_input_embeddings().weight
    table: Tensor = weight.detach().float()
    return table


def embedding_std(arch: Architecture) -> float:
    """Standard deviation of the entries of the word embeddings, as they enter the layers."""
    return embedding_scale(arch) * float(embedding_table(arch).std(correction=0))
