"""Label words that begin alike, told apart by all of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from integrations.architectures import Architecture
from integrations.continuation import TokenLikelihoods
from integrations.errors import UserError
from integrations.metrics import LOSS_NAMES
from integrations.prompts import MAX_LENGTH, PatternEncoder, Prompt
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
            self._word_ids(word, bare, self._ids(fields, word)) for word in task.label_words
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


class WholeWordEvaluator(TokenLikelihoods):
    """Evaluates candidates by the log-likelihoods of whole label words.

    They take the place of label logits, in losses, metrics and what `logits` returns.

    Args:
        arch: The frozen model.
        encoder: What the prompts come from.
        examples: N examples, which become N times C prompts for C label words.
        settings: Those of `TokenLikelihoods` that do not follow from the encoder.

    Raises:
        UserError: If the memory limit is too little for the longest prompt.
    """

    def __init__(
        self,
        arch: Architecture,
        encoder: WholeWordEncoder,
        examples: Sequence[Example],
        **settings: Any,
    ) -> None:
        prompts = encoder.encode(examples)
        metric = encoder.task.metric
        super().__init__(arch, prompts, pad_id=encoder.pad_id, metric=metric, **settings)
        self.examples = len(examples)
        self.labels = np.array([example.label for example in examples])
        lengths = torch.tensor([prompt.answers for prompt in prompts])
        self._word_of_token = torch.arange(len(prompts)).repeat_interleave(lengths)

    def _of_examples(self, found: Tensor) -> Tensor:
        """Log-likelihoods of words (..., N, C) from those of all their tokens (..., T, 1)."""
        words = found.new_zeros(*found.shape[:-2], int(self._word_of_token[-1]) + 1)
        words.index_add_(-1, self._word_of_token, found.squeeze(-1))
        return words.view(*found.shape[:-2], self.examples, -1)
