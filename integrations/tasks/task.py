"""What a task is: patterns, label words, data, loss and metric."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from integrations.architectures import Kind
from integrations.errors import UserError

MASK = "mask"


@dataclass(frozen=True)
class Example:
    """One labelled example.

    Attributes:
        fields: The texts that fill the pattern, such as ``{"text": "..."}``.
        label: Index into the task's label words.
    """

    fields: Mapping[str, str]
    label: int


@dataclass(frozen=True)
class Task:
    """A few-shot classification task answered by one label word.

    Attributes:
        name: Shown in tables and saved with results.
        patterns: For each model kind, how the fields become a prompt. A masked model's pattern
            holds ``{mask}`` where the label word stands; a causal model's ends where it comes.
        label_words: One word a class, in the order of the labels (the verbalizer).
        train: Examples the loss is computed on.
        dev: Examples that choose the best parameters.
        test: Examples that are scored once, at the end.
        metric: A name in :data:`integrations.metrics.METRICS`.
    """

    name: str
    patterns: Mapping[Kind, str]
    label_words: Sequence[str]
    train: Sequence[Example] = field(default=(), repr=False)
    dev: Sequence[Example] = field(default=(), repr=False)
    test: Sequence[Example] = field(default=(), repr=False)
    metric: str = "accuracy"

    def __post_init__(self) -> None:
        if len(self.label_words) < 2 or not all(word.strip() for word in self.label_words):
            raise UserError(
                f"task {self.name!r} needs a label word for each of two or more classes; got "
                f"{list(self.label_words)!r}. Pass one word a class, in the order of the labels."
            )
        for kind, pattern in self.patterns.items():
            fields = pattern_fields(pattern)
            if kind != "causal" and fields.count(MASK) != 1:
                raise UserError(
                    f"task {self.name!r}: the pattern for {kind} models must hold {{mask}} exactly "
                    f"once, where the label word stands; got {pattern!r}."
                )
            if kind == "causal" and MASK in fields:
                raise UserError(
                    f"task {self.name!r}: the pattern for causal models must end where the label "
                    f"word comes and hold no {{mask}}; got {pattern!r}."
                )
        for split in ("train", "dev", "test"):
            for row, example in enumerate(getattr(self, split)):
                self._check(example, f"{split} example {row}")

    def _check(self, example: Example, where: str) -> None:
        if not 0 <= example.label < len(self.label_words):
            raise UserError(
                f"task {self.name!r}: {where} has label {example.label}, for which there is no "
                f"label word; there are {len(self.label_words)}: {list(self.label_words)!r}."
            )
        for kind, pattern in self.patterns.items():
            missing = set(pattern_fields(pattern)) - {MASK} - set(example.fields)
            if missing:
                raise UserError(
                    f"task {self.name!r}: {where} has no field {sorted(missing)[0]!r}, which the "
                    f"{kind} pattern {pattern!r} needs; it has {sorted(example.fields)}."
                )

    def pattern(self, kind: Kind) -> str:
        """The pattern for a kind of model.

        Raises:
            UserError: If the task has none for it.
        """
        try:
            return self.patterns[kind]
        except KeyError:
            raise UserError(
                f"task {self.name!r} has no pattern for {kind} models, only for "
                f"{', '.join(self.patterns)}; add patterns[{kind!r}]."
            ) from None

    def with_splits(
        self, train: Sequence[Example], dev: Sequence[Example], test: Sequence[Example]
    ) -> Task:
        """The same task with other examples."""
        return replace(self, train=tuple(train), dev=tuple(dev), test=tuple(test))


def pattern_fields(pattern: str) -> list[str]:
    """Names of the fields in a pattern, in order, ``mask`` among them."""
    return [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
