"""In-context learning: labelled examples in the prompt, nothing tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from integrations.architectures import Kind
from integrations.errors import UserError
from integrations.methods.manual import ManualPrompt
from integrations.methods.shared_prefix import logits_after_shared
from integrations.methods.trial import Trial
from integrations.prompts import Encoder, longest_prompt
from integrations.tasks import Example
from integrations.tasks.task import MASK


class InContext(ManualPrompt):
    """Prediction after demonstrations: patterns filled in, label word and all.

    Brown et al. 2020 (arXiv 2005.14165), section 2; "In-Context Learning" in the paper's Table 1.
    The demonstrations come from the training set and are the same for all examples. Choice and
    order are drawn by seed: the classes take turns, in an order that is drawn anew each time, and
    each gives one that still fits, until a class has none. So no class has two more than another.
    A causal model reads the demonstrations once for all examples.

    The longest prompt is shared out like this: an example gets what the longest of the training
    and development set takes, but no more than half, and the demonstrations the rest. A longer
    example loses the end of its longest field, as without demonstrations.

    Args:
        trial: The model and the split.
        most: Most demonstrations; None for as many as fit.
        max_length: Longest prompt in tokens; None for the encoder's. A model with more positions
            than that may be given more, and shown more.
        separator: What stands between demonstrations, and before the example (ours; tokenizers
            that drop line breaks put nothing in its place).

    Attributes:
        demonstrations: What is shown, in order; their number says how many fit.
        parameters: 0.
        evaluations: 0.

    Raises:
        UserError: If the model is an encoder-decoder, or has fewer positions than ``max_length``.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        most: int | None = None,
        max_length: int | None = None,
        separator: str = "\n\n",
    ) -> None:
        super().__init__(trial)
        self._separator = separator
        self._base = trial.encoder
        if self._base.kind == "seq2seq":
            raise UserError(
                "in-context learning is for causal and masked models; an encoder-decoder has no "
                "place for demonstrations in its decoder."
            )
        self._max_length = longest_prompt(
            trial.arch.model, max_length=self._base.max_length if max_length is None else max_length
        )
        self.demonstrations = self._choose(trial, most)
        self._encoder = self._encoder_after(self.demonstrations)

    def logits(self, examples: Sequence[Example]) -> np.ndarray:
        """Label logits (N, C) float32 of the frozen model after the demonstrations."""
        if self._base.kind == "causal" and self.demonstrations:
            return logits_after_shared(self._trial.arch, self._encoder, examples)
        return super().logits(examples)

    def _choose(self, trial: Trial, most: int | None) -> list[Example]:
        """Demonstrations that fit, in the order in which they are shown."""
        rng = np.random.default_rng(trial.seed)
        task = self._base.task
        train = list(task.train)
        unused = [
            [train[i] for i in rng.permutation(len(train)) if train[i].label == label]
            for label in range(len(task.label_words))
        ]
        longest = max(len(p.ids) for p in self._base.encode([*task.train, *task.dev]))
        room = self._max_length - min(longest, self._max_length // 2)
        limit = len(train) if most is None else most
        chosen: list[Example] = []
        while len(chosen) < limit:
            for label in rng.permutation(len(unused)):
                found = next((e for e in unused[label] if self._length([*chosen, e]) <= room), None)
                if found is None or len(chosen) == limit:
                    return chosen
                unused[label].remove(found)
                chosen.append(found)
        return chosen

    def _length(self, demonstrations: Sequence[Example]) -> int:
        """Tokens of demonstrations, special ones among them."""
        return len(self._base.tokenizer(self._text(demonstrations))["input_ids"])

    def _text(self, demonstrations: Sequence[Example]) -> str:
        return "".join(self._filled(e) + self._separator for e in demonstrations)

    def _filled(self, example: Example) -> str:
        """The pattern with an example and its label word in it."""
        word = self._base.task.label_words[example.label]
        if self._base.blank is None:
            return f"{self._base.pattern.format(**example.fields)} {word}"
        # A mask in a field would be taken for the answer.
        fields = {name: text.replace(self._base.blank, "") for name, text in example.fields.items()}
        return self._base.pattern.format(**fields, **{MASK: word})

    def _encoder_after(self, demonstrations: Sequence[Example]) -> Encoder:
        """An encoder whose pattern begins with demonstrations."""
        before = self._text(demonstrations).replace("{", "{{").replace("}", "}}")
        kind: Kind = self._base.kind
        task = replace(self._base.task, patterns={kind: before + self._base.pattern})
        return Encoder(task, self._base.tokenizer, kind, self._max_length)
