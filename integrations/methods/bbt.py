"""BBT: a soft prompt at the input, searched for in a random subspace (Sun et al. 2022)."""

from __future__ import annotations

from integrations.methods.soft_prompts import (
    FIRST_TOKEN,
    SoftPromptLearner,
    Subspace,
    embedding_std,
)
from integrations.methods.trial import Trial
from integrations.metrics import Loss
from integrations.population import FAST, Speedups


class BBT(SoftPromptLearner):
    """Black-Box Tuning (Sun et al., ICML 2022, arXiv 2201.03514).

    Every prompt begins with n tokens; what a search with pycma's CMA-ES finds, mapped by a fixed
    random matrix, is added to their word embeddings. Defaults are those of ``bbt.py`` in the
    authors' code (github.com/txsun1997/Black-Box-Tuning), its loss among them. After a generation
    its best candidate is in place, as with the code's ``--parallel``.

    What differs from that code: the tokens are those from number 1000 on as they are, not their
    text encoded anew, and no full stop follows them; the prompt is added to the word embeddings,
    as in the paper and in the code for BART, GPT-2 and T5, where that for BERT and RoBERTa adds
    behind the norm that follows them (``words=False``); ``"hinge"`` counts the best wrong label
    word and not the sum over all, which is the same for two.

    Args:
        trial: The trial.
        n_tokens: Length n of the soft prompt.
        dim: Length d of what is searched for.
        popsize: Candidates a generation.
        sigma: Initial step size of CMA-ES.
        alpha: Scale of the random matrix; see `Subspace`.
        loss: ``"ce"``, or ``"hinge"``, which the authors recommend for pairs of sentences.
        words: Whether the prompt is added to word embeddings, or to what enters the first layer,
            which is another thing in BERT and RoBERTa.
        first_token: See `SoftPromptEncoder`.
        speedups: Which of the evaluator's steps to take.

    Attributes:
        parameters: d.
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
        sigma: float = 1.0,
        alpha: float = 1.0,
        loss: str | Loss = "ce",
        words: bool = True,
        first_token: int = FIRST_TOKEN,
        speedups: Speedups = FAST,
    ) -> None:
        super().__init__(trial, n_tokens, first_token, words, loss, speedups)
        self.parameters = dim
        self.space = Subspace(
            self.shape,
            dim=dim,
            popsize=popsize,
            sigma=sigma,
            alpha=alpha,
            spread=embedding_std(self.arch),
            seed=trial.seed,
        )

    def step(self) -> float | None:
        """One generation; None once pycma sees a reason to stop."""
        if self.space.optimizer.stop():
            return None
        offsets, losses = self._generation(0, self.space)
        best = int(losses.argmin())
        self.adapter.place_prompt(0, offsets[best].clone())
        return float(losses[best])
