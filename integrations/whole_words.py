"""Label words that begin alike, told apart by all of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from integrations.adapter import Adapter
from integrations.architectures import Architecture
from integrations.continuation import ContinuationEvaluator
from integrations.errors import UserError
from integrations.metrics import LOSS_NAMES, METRICS, Loss
from integrations.objective import Score
from integrations.population import FAST, Speedups
from integrations.prompts import MAX_LENGTH, PatternEncoder, Prompt, tokens_after
from integrations.tasks import Example, Task
from integrations.tasks.task import pattern_fields


class WholeWordEncoder(PatternEncoder):
    """Encodes each example once for each label word of a causal model, the word's tokens to follow.

    `Encoder` needs one prompt for all words, and words whose first tokens differ.

    Args:
        task: The task.
        tokenizer: The model's tokenizer.
        max_length: Longest prompt in tokens, its label word among them.

    Attributes:
        words: The tokens of each label word.

    Raises:
        UserError: If a label word is unknown to the tokenizer, or another begins with it.
    """

    losses = LOSS_NAMES

    def __init__(
        self, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int = MAX_LENGTH
    ) -> None:
        super().__init__(tokenizer, "causal", task.pattern("causal"), max_length)
        self.task = task
        fields = dict.fromkeys(pattern_fields(self.pattern), "It")
        bare = self._ids(fields)
        self.words = [
            tokens_after(bare, self._ids(fields, word), word, self) for word in task.label_words
        ]
        for i, j in permutations(range(len(self.words)), 2):
            if self.words[j][: len(self.words[i])] == self.words[i]:
                raise UserError(
                    f"label words {task.label_words[j]!r} and {task.label_words[i]!r} begin with "
                    "the same token, and one with the whole other, which is never less likely; "
                    "choose words of which none begins another."
                )

    def encode(self, examples: Sequence[Example]) -> list[Prompt]:
        """Prompts of all label words of the first example, then of the next."""
        reserved = max(map(len, self.words)) - 1
        prompts = []
        for example in examples:
            ids = self._fit(dict(example.fields), reserved)
            prompts += [
                Prompt((*ids, *word[:-1]), len(ids) - 1, example.label, targets=word)
                for word in self.words
            ]
        return prompts

    def arguments(self) -> dict[str, str]:
        """What of the task a run depends on beside its prompts, as text by name."""
        return {"metric": self.task.metric, "label tokens": str(self.words)}

    def _ids(self, fields: dict[str, str], answer: str | None = None) -> list[int]:
        return self._open_ids(self.pattern.format(**fields) + (f" {answer}" if answer else ""))


class WholeWordEvaluator(ContinuationEvaluator):
    """Evaluates candidates by the log-likelihoods of whole label words.

    They take the place of label logits, in losses, metrics and what `logits` returns.

    Args:
        arch: The frozen model.
        encoder: What the prompts come from.
        examples: N examples, which become N times C prompts for C label words.
        loss: Loss of the words' log-likelihoods (..., N, C) and labels (N,).
        speedups: Which of the six steps to take (default all).
        memory_limit: As in `PopulationEvaluator`.

    Raises:
        UserError: If the memory limit is too little for the longest prompt.
    """

    def __init__(
        self,
        arch: Architecture,
        encoder: WholeWordEncoder,
        examples: Sequence[Example],
        *,
        loss: Loss,
        speedups: Speedups = FAST,
        memory_limit: int | None = None,
    ) -> None:
        prompts = encoder.encode(examples)
        super().__init__(
            arch, prompts, pad_id=encoder.pad_id, speedups=speedups, memory_limit=memory_limit
        )
        self.examples = len(examples)
        self.metric = METRICS[encoder.task.metric]
        lengths = torch.tensor([prompt.answers for prompt in prompts])
        self._prompt_of_token = torch.arange(len(prompts)).repeat_interleave(lengths)
        self._shape = len(examples), len(encoder.words)
        self._right = torch.tensor([example.label for example in examples])
        self._loss_of_words = loss
        self.loss = self._loss_of_tokens

    def logits(
        self, adapter: Adapter, progress: Callable[[int, int], None] | None = None
    ) -> np.ndarray:
        """Log-likelihoods of the label words with the deltas in place, (N, C) float32.

        Args:
            adapter: The deltas.
            progress: Called with the number of prompts done and of all.
        """
        tokens = torch.from_numpy(super().logits(adapter, progress))
        words: np.ndarray = self._sum(tokens).numpy()
        return words

    def loss_in_place(self, adapter: Adapter) -> float:
        """Loss with the deltas in place."""
        return float(self._loss_of_words(torch.from_numpy(self.logits(adapter)), self._right))

    def score(self, adapter: Adapter, progress: Callable[[int, int], None] | None = None) -> Score:
        """Metric and loss with the deltas in place; see `integrations.objective.Evaluator`."""
        words = self.logits(adapter, progress)
        loss = float(self._loss_of_words(torch.from_numpy(words), self._right))
        score = float(self.metric(self._right.numpy(), words.argmax(axis=1)))
        return Score(score, loss, self.examples)

    def _loss_of_tokens(self, log_likelihoods: Tensor, _: Tensor) -> Tensor:
        return self._loss_of_words(self._sum(log_likelihoods), self._right)

    def _sum(self, log_likelihoods: Tensor) -> Tensor:
        """Log-likelihoods of words (..., N, C) from those of all their tokens (..., T, 1)."""
        tokens = log_likelihoods.squeeze(-1)
        count = self._shape[0] * self._shape[1]
        words = tokens.new_zeros(*tokens.shape[:-1], count)
        words.index_add_(-1, self._prompt_of_token, tokens)
        return words.view(*tokens.shape[:-1], *self._shape)
