"""BBTv2: soft prompts at every layer, searched for in turn (Sun et al. 2022)."""

from __future__ import annotations

import numpy as np

from integrations.methods.soft_prompts import (
    FIRST_TOKEN,
    SoftPromptLearner,
    Subspace,
    embedding_std,
)
from integrations.methods.trial import Trial
from integrations.metrics import Loss
from integrations.population import FAST, Speedups
from integrations.spaces import later_hidden_std


class BBTv2(SoftPromptLearner):
    """BBTv2 (Sun et al., EMNLP 2022, arXiv 2205.11200).

    Every prompt begins with n tokens. At each layer, the first included, something is added to
    their hidden states on the way in, and each layer has its own CMA-ES and random matrix. One
    step is one generation of one layer, layer after layer; then the best candidate that the layer
    ever had is in place, though what it was best with may have changed. Defaults are those of the
    authors' command (README and ``deepbbt.py``, github.com/txsun1997/Black-Box-Tuning), its loss
    among them; ``deepbbt.py`` alone has 1 for both sigma and alpha.

    What differs from that code: the tokens, see `BBT`; each layer's spread is measured on all
    tokens but padding and before the first candidate is in place, where the code counts padding
    and has its first candidate for the first layer in place.

    Args:
        trial: The trial.
        n_tokens: Length n of the soft prompt.
        dim: Length d of what is searched for at each layer.
        popsize: Candidates a generation.
        sigma: Initial step size of each CMA-ES.
        alpha: Scale of the random matrices; see `Subspace`. The spread is the standard deviation
            of the word embeddings for the first layer, and for the others that of the hidden
            states on the way in after five rounds of clipping to three standard deviations.
        loss: ``"ce"`` or ``"hinge"``.
        first_token: See `SoftPromptEncoder`.
        speedups: Which of the evaluator's steps to take.

    Attributes:
        parameters: d for each layer.
        evaluations: Candidates evaluated.

    Raises:
        UserError: If the model is an encoder-decoder, or an argument does not fit.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        n_tokens: int = 50,
        dim: int = 500,
        popsize: int = 20,
        sigma: float = 0.2,
        alpha: float = 0.2,
        loss: str | Loss = "ce",
        first_token: int = FIRST_TOKEN,
        speedups: Speedups = FAST,
    ) -> None:
        super().__init__(trial, n_tokens, first_token, False, loss, speedups)
        self.parameters = dim * len(self.arch.layers)
        later = later_hidden_std(self.arch, self.evaluator.batches)
        self.spaces = [
            Subspace(
                self.shape,
                dim=dim,
                popsize=popsize,
                sigma=sigma,
                alpha=alpha,
                spread=spread,
                seed=trial.seed,
                stream=layer,
            )
            for layer, spread in enumerate([embedding_std(self.arch), *later])
        ]
        self.best = np.full(len(self.spaces), np.inf)
        self.next_layer = 0
        self._loss_in_place = np.nan

    def step(self) -> float:
        """One generation of the next layer in turn."""
        layer = self.next_layer
        self.next_layer = (layer + 1) % len(self.spaces)
        offsets, losses = self._generation(layer, self.spaces[layer])
        best = int(losses.argmin())
        if losses[best] < self.best[layer]:
            self.best[layer] = losses[best]
            self.adapter.place_prompt(layer, offsets[best].clone())
            self._loss_in_place = float(losses[best])
        return self._loss_in_place
