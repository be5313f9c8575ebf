"""What a task is: patterns, label words, data and metric."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

from integrations.architectures import Kind
from integrations.errors import UserError, unknown
from integrations.files import replace_file
from integrations.metrics import BINARY, METRICS
from integrations.tasks.example import Example
from integrations.tasks.files import Labels, read_examples, write_examples

MASK = "mask"
SPLITS = ("train", "dev", "test")
TASK_FILE = "task.json"

# An encoder-decoder fills in the mask in a text, as masked models do.
FALLBACKS: dict[str, Kind] = {"seq2seq": "masked"}


@dataclass(frozen=True)
class Task:
    """A few-shot classification task answered by one label word.

    Attributes:
        name: Shown in tables and saved with results.
        patterns: For each model kind, how the fields become a prompt. A masked or seq2seq model's
            pattern holds ``{mask}`` where the label word stands; a causal model's ends where it
            comes. Without a pattern of their own, seq2seq models get that of masked ones.
        label_words: One word a class, in the order of the labels (the verbalizer).
        label_names: What the data calls each class, in the same order, if it is neither the
            class's index nor its label word, such as ``("negative", "positive")``.
        train: Examples the loss is computed on.
        dev: Examples that choose the best parameters.
        test: Examples that are scored once, at the end.
        metric: A name in `integrations.metrics.METRICS`.

    Raises:
        UserError: If these do not fit together.
    """

    name: str
    patterns: Mapping[Kind, str]
    label_words: Sequence[str]
    train: Sequence[Example] = field(default=(), repr=False)
    dev: Sequence[Example] = field(default=(), repr=False)
    test: Sequence[Example] = field(default=(), repr=False)
    metric: str = "accuracy"
    label_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.label_words) < 2 or not all(word.strip() for word in self.label_words):
            raise UserError(
                f"task {self.name!r} needs a label word for each of two or more classes; got "
                f"{list(self.label_words)!r}. Pass one word a class, in the order of the labels."
            )
        if self.label_names and len(self.label_names) != len(self.label_words):
            raise UserError(
                f"task {self.name!r} has {len(self.label_words)} label words but "
                f"{len(self.label_names)} label names; pass one name a class in the same order, "
                "or none."
            )
        if self.metric not in METRICS:
            raise unknown("metric", self.metric, METRICS)
        if self.metric in BINARY and len(self.label_words) != 2:
            raise UserError(
                f"task {self.name!r}: the metric {self.metric!r} is that of label 1 of two, but "
                f"there are {len(self.label_words)} classes; choose 'macro_f1'."
            )
        self._check_patterns()
        for split in SPLITS:
            self._check_examples(split, getattr(self, split))

    def _check_patterns(self) -> None:
        kinds = dict.fromkeys((*get_args(Kind), *FALLBACKS))
        for kind, pattern in self.patterns.items():
            if kind not in kinds:
                raise unknown("kind of model", kind, kinds)
            fields = pattern_fields(pattern)
            if bad := [name for name in fields if not name.isidentifier() or name == "label"]:
                raise UserError(
                    f"task {self.name!r}: {{{bad[0]}}} is no field in {pattern!r}; fields are "
                    "names such as {text}, and the label is none of them."
                )
            if kind == "causal" and MASK in fields:
                raise UserError(
                    f"task {self.name!r}: the pattern for causal models must end where the label "
                    f"word comes and hold no {{mask}}; got {pattern!r}."
                )
            if kind != "causal" and fields.count(MASK) != 1:
                raise UserError(
                    f"task {self.name!r}: the pattern for {kind} models must hold {{mask}} exactly "
                    f"once, where the label word stands; got {pattern!r}."
                )

    def _check_examples(self, split: str, examples: Sequence[Example]) -> None:
        needed = {kind: {*pattern_fields(p)} - {MASK} for kind, p in self.patterns.items()}
        for row, example in enumerate(examples):
            where = f"{split} example {row}"
            if not 0 <= example.label < len(self.label_words):
                raise UserError(
                    f"task {self.name!r}: {where} has label {example.label}, for which there is no "
                    f"label word; there are {len(self.label_words)}: {list(self.label_words)!r}."
                )
            for kind, fields in needed.items():
                if missing := fields - set(example.fields):
                    raise UserError(
                        f"task {self.name!r}: {where} has no field {sorted(missing)[0]!r}, which "
                        f"the {kind} pattern {self.patterns[kind]!r} needs; it has "
                        f"{sorted(example.fields)}."
                    )

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields of all patterns, in the order in which they come."""
        names = [name for pattern in self.patterns.values() for name in pattern_fields(pattern)]
        return tuple(name for name in dict.fromkeys(names) if name != MASK)

    @property
    def labels(self) -> Labels:
        """What labels may be in the task's data."""
        return Labels(self.label_words, self.label_names)

    def pattern(self, kind: Kind) -> str:
        """The pattern for a kind of model.

        Raises:
            UserError: If the task has none for it.
        """
        for known in (kind, FALLBACKS.get(kind, kind)):
            if known in self.patterns:
                return self.patterns[known]
        raise UserError(
            f"task {self.name!r} has no pattern for {kind} models, only for "
            f"{', '.join(self.patterns)}; add patterns[{kind!r}]."
        )

    def with_splits(
        self, train: Sequence[Example], dev: Sequence[Example], test: Sequence[Example]
    ) -> Task:
        """The same task with other examples."""
        return replace(self, train=tuple(train), dev=tuple(dev), test=tuple(test))

    def save(self, folder: str | Path) -> Path:
        """Write the task and its examples, as drawn.

        ``task.json`` holds all but the examples, which are in ``train.jsonl``, ``dev.jsonl`` and
        ``test.jsonl``. `load` reads it all; `load_task` with such a folder as its data takes
        the examples as they are instead of drawing some.

        Args:
            folder: Where to; made if it is missing. Files of an earlier task are replaced.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:  # all are written before the first is put in place
            for split in SPLITS:
                beside = stack.enter_context(replace_file(folder / f"{split}.jsonl"))
                write_examples(beside, getattr(self, split))
            (folder / TASK_FILE).unlink(missing_ok=True)
        record = {
            "name": self.name,
            "patterns": dict(self.patterns),
            "label_words": list(self.label_words),
            "label_names": list(self.label_names),
            "metric": self.metric,
        }
        with replace_file(folder / TASK_FILE) as beside:
            text = json.dumps(record, indent=1, ensure_ascii=False)
            beside.write_text(text + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Task:
        """The task that `save` wrote, with the same examples in the same order.

        Raises:
            UserError: If the folder holds no task, or not all of it.
        """
        path = Path(folder) / TASK_FILE
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            words, names = tuple(record.pop("label_words")), tuple(record.pop("label_names"))
            task = cls(label_words=words, label_names=names, **record)
        except FileNotFoundError:
            raise UserError(f"{folder} holds no {TASK_FILE}; Task.save() writes one.") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not what Task.save() wrote ({error}).") from None
        return task.with_saved(folder)

    def with_saved(self, folder: str | Path) -> Task:
        """The same task with the examples that `save` wrote.

        Raises:
            UserError: If a file is missing, or the examples don't fit the task.
        """
        splits = []
        indices = Labels([str(index) for index in range(len(self.label_words))])
        for split in SPLITS:
            path = Path(folder) / f"{split}.jsonl"
            if not path.is_file():
                raise UserError(f"{folder} has no {path.name}; save the task again.")
            splits.append(read_examples(path, indices))
        return self.with_splits(*splits)


def pattern_fields(pattern: str) -> list[str]:
    """Names of the fields in a pattern, in order, ``mask`` among them.

    Raises:
        UserError: If its braces don't match.
    """
    try:
        parsed = list(string.Formatter().parse(pattern))
    except ValueError as error:
        raise UserError(
            f"the pattern {pattern!r} cannot be read ({error}); write {{{{ for a brace."
        ) from None
    return [name for _, name, _, _ in parsed if name is not None]
