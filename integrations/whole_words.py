"""Label words that begin alike, told apart by all of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from integrations.architectures import Architecture
from integrations.continuation import TokenLikelihoods
from integrations.errors import UserError
from integrations.prompts import LabelEncoder, Prompt
from integrations.tasks import Example


class WholeWordEncoder(LabelEncoder):
    """Encodes each example once for each label word, all of whose tokens are to be predicted.

    A causal model, or a decoder, predicts each from those before it. A masked model predicts them
    all at once, as PET does in training (Schick and Schütze 2021, arXiv 2009.07118), but at as many
    masks as the word has tokens. `Encoder` needs one prompt for all words, and words whose first
    tokens differ.

    Args:
        task: The task.
        tokenizer: The model's tokenizer.
        kind: ``"causal"``, ``"masked"`` or ``"seq2seq"``.
        max_length: Longest prompt in tokens, with the longest label word in it (default 512).

    Raises:
        UserError: If the tokenizer has no mask token for a masked model or an encoder-decoder, a
            label word is not known to it in full, two are the same, or one begins with another and
            would never be the likelier one.
    """

    def _accept_words(self) -> None:
        words = self.task.label_words
        for word, tokens in zip(words, self.words, strict=True):
            if self.tokenizer.unk_token_id in tokens:
                raise UserError(
                    f"label word {word!r} is not known to the tokenizer in full, and another "
                    "begins with the same token; choose others."
                )
        for i, j in permutations(range(len(words)), 2):
            begins = self.words[j][: len(self.words[i])] == self.words[i]
            if begins and (self.kind != "masked" or self.words[i] == self.words[j]):
                raise UserError(
                    f"label words {words[j]!r} and {words[i]!r} begin with the same token, and one "
                    "with the whole other, which is never less likely; choose words of which none "
                    "begins another."
                )

    def encode(self, examples: Sequence[Example]) -> list[Prompt]:
        """Prompts of all label words of the first example, then of the next."""
        reserved = max(map(len, self.words)) - 1
        prompts = []
        for example in examples:
            ids = self._fit(dict(example.fields), reserved)
            prompts += [self._prompt(ids, example.label, word) for word in self.words]
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
