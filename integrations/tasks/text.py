"""Tasks answered by text: generated and scored, or given and predicted."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from integrations.errors import UserError
from integrations.metrics import name_of
from integrations.tasks.task import SPLITS, pattern_fields
from integrations.text_scores import REFERENCED, TextScore, make_score


@dataclass(frozen=True)
class TextExample:
    """One example of a text task.

    Attributes:
        fields: The texts that fill the pattern, such as ``{"text": "..."}``.
        reference: The right answer; None where the task's score needs none.
    """

    fields: Mapping[str, str]
    reference: str | None = None


@dataclass(frozen=True, kw_only=True)
class TextTask:
    """What tasks answered by text have in common; use one of the two below.

    Attributes:
        name: Shown in tables and saved with results.
        pattern: How the fields become a prompt. A causal model goes on where it ends; an
            encoder-decoder reads it with its encoder. Special tokens, such as those of a chat,
            are written as they are.
        train: Examples the loss is computed on.
        dev: Examples that choose the best parameters.
        test: Examples that are scored once, at the end.
    """

    name: str
    pattern: str
    train: Sequence[TextExample] = field(default=(), repr=False)
    dev: Sequence[TextExample] = field(default=(), repr=False)
    test: Sequence[TextExample] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        fields = pattern_fields(self.pattern)
        if bad := [name for name in fields if not name.isidentifier()]:
            raise UserError(
                f"task {self.name!r}: {{{bad[0]}}} is no field in {self.pattern!r}; fields are "
                "names such as {text}, and {{ stands for a brace."
            )
        for split in SPLITS:
            for row, example in enumerate(getattr(self, split)):
                if missing := set(fields) - set(example.fields):
                    raise UserError(
                        f"task {self.name!r}: {split} example {row} has no field "
                        f"{sorted(missing)[0]!r}, which the pattern {self.pattern!r} needs; it has "
                        f"{sorted(example.fields)}."
                    )

    @property
    def referenced(self) -> bool:
        """Whether every example needs a reference."""
        raise NotImplementedError

    def _need_references(self, why: str) -> None:
        for split in SPLITS:
            for row, example in enumerate(getattr(self, split)):
                if not isinstance(example.reference, str) or not example.reference.strip():
                    raise UserError(
                        f"task {self.name!r}: {split} example {row} has no reference, which {why} "
                        "needs; give each TextExample a reference text."
                    )

    def with_splits(
        self,
        train: Sequence[TextExample],
        dev: Sequence[TextExample],
        test: Sequence[TextExample] = (),
    ) -> Self:
        """The same task with other examples."""
        return replace(self, train=tuple(train), dev=tuple(dev), test=tuple(test))


@dataclass(frozen=True, kw_only=True)
class GenerationTask(TextTask):
    """A task whose answers are generated, greedily, and then scored.

    The loss is minus the mean score, which needs no gradient: it may be an exact match, a call of
    another program, or a judgement.

    Attributes:
        score: ``"exact"`` (1 if the answer is the reference but for space around it, else 0),
            ``"rougeL"`` (Lin 2004, F-measure; needs the extra ``rouge``), or a function of the N
            answers and the N examples that returns N numbers, higher being better.
        max_new_tokens: Most tokens in an answer.
        stop: Texts that end an answer, which then ends before the first of them; the model's own
            end of text always does.

    Raises:
        UserError: If these do not fit together.
    """

    score: str | TextScore = "exact"
    max_new_tokens: int = 32
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            tokens = operator.index(self.max_new_tokens)
        except TypeError:
            tokens = 0
        if tokens < 1:
            raise UserError(
                f"task {self.name!r}: max_new_tokens must be a whole number of 1 or more; got "
                f"{self.max_new_tokens!r}."
            )
        if isinstance(self.stop, str) or not all(
            isinstance(text, str) and text for text in self.stop
        ):
            raise UserError(
                f"task {self.name!r}: stop must be a list of texts that are not empty, such as "
                f"['\\n']; got {self.stop!r}."
            )
        make_score(self.score)
        if self.referenced:
            self._need_references(f"the score {self.score!r}")
        if self.score == "rougeL":
            self._need_words()

    def _need_words(self) -> None:
        """Refuse references of which ROUGE sees nothing, so that every answer would get 0."""
        for split in SPLITS:
            for i, example in enumerate(getattr(self, split)):
                if not re.search("[a-z0-9]", str(example.reference).lower()):
                    raise UserError(
                        f"task {self.name!r}: the score 'rougeL' knows words of Latin letters and "
                        f"digits only, and the reference of {split} example {i} has none: "
                        f"{str(example.reference)[:40]!r}. Pass a function of your own."
                    )

    @property
    def referenced(self) -> bool:
        """Whether the score compares with a reference; a function of one's own may do without."""
        return self.score in REFERENCED

    @property
    def metric(self) -> str:
        """The score's name."""
        return self.score if isinstance(self.score, str) else name_of(self.score)


@dataclass(frozen=True, kw_only=True)
class ContinuationTask(TextTask):
    """A task whose answers are known texts that the model is to find likely.

    The loss is the mean negative log-likelihood of all their tokens; its exponential is the
    perplexity.

    Attributes:
        delimiter: What stands between a causal model's prompt and the reference. Most tokenizers
            take a space into the token of the word that follows, so the pattern ends before it.

    Raises:
        UserError: If these do not fit together.
    """

    delimiter: str = " "

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need_references("a likelihood")

    @property
    def referenced(self) -> bool:
        """Always: it is what the model is to find likely."""
        return True

    @property
    def metric(self) -> str:
        """Mean log-likelihood of a token: minus the loss."""
        return "log_likelihood"
