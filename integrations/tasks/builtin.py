"""The built-in tasks: patterns and label words of the paper (Jin et al. 2024, Table 8) by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from integrations.errors import UserError, unknown
from integrations.tasks.files import find_split, read_examples
from integrations.tasks.splits import draw_shots
from integrations.tasks.task import MASK, Example, Task, pattern_fields


@dataclass(frozen=True)
class Recipe:
    """A task without its data, and where the data is on the Hub.

    Attributes:
        task: Patterns, label words and metric.
        hub: Arguments of ``datasets.load_dataset``.
        columns: Hub column of each field that is named otherwise there.
        test: The Hub's labelled split that serves as the test set.
    """

    task: Task
    hub: Sequence[str]
    columns: Mapping[str, str] = field(default_factory=dict)
    test: str = "test"


TASKS: dict[str, Recipe] = {
    "sst2": Recipe(
        Task(
            name="sst2",
            patterns={"masked": "{text} It was {mask} .", "causal": "{text} It was"},
            label_words=("bad", "great"),
        ),
        hub=("stanfordnlp/sst2",),
        columns={"text": "sentence"},
        test="validation",
    ),
    "agnews": Recipe(
        Task(
            name="agnews",
            patterns={"masked": "{mask} News {text} .", "causal": "{text} Category:"},
            label_words=("World", "Sports", "Business", "Tech"),
        ),
        hub=("fancyzhx/ag_news",),
    ),
}
_ALIASES = {recipe.hub[0]: name for name, recipe in TASKS.items()}


def load_task(
    name: str,
    data: str | Path | None = None,
    *,
    shots: int = 16,
    seed: int = 0,
    label_words: Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    test_limit: int | None = None,
) -> Task:
    """A built-in task with its few-shot splits.

    Args:
        name: ``"sst2"``, ``"agnews"`` or a Hub name such as ``"stanfordnlp/sst2"``.
        data: A folder with ``train.jsonl`` (or ``train_pool.jsonl``), ``test.jsonl`` and possibly
            ``dev.jsonl``, or the same as CSV. None loads the data set from the Hub.
        shots: Examples a class for training, and as many others for development (default 16).
        seed: Draws the examples (default 0).
        label_words: Other label words than the task's own, in the order of the labels.
        columns: Column names of fields, or of ``"label"``, that differ in local files.
        test_limit: Use the first so many test examples only; None uses all.

    Returns:
        The task with ``train`` and ``dev`` of ``shots`` examples a class, and ``test``.

    Raises:
        UserError: If the name is unknown, a file or column is missing or empty, or a class has
            too few examples.
    """
    key = _ALIASES.get(name, name)
    if key not in TASKS:
        raise unknown("task", name, TASKS)
    recipe = TASKS[key]
    task = recipe.task
    if label_words is not None:
        if len(label_words) != len(task.label_words):
            raise UserError(
                f"task {name!r} has {len(task.label_words)} classes and needs a label word for "
                f"each; got {list(label_words)!r}."
            )
        task = replace(task, label_words=tuple(label_words))
    if unused := set(columns or {}) - {*_fields(task), "label"}:
        raise UserError(
            f"columns names {sorted(unused)[0]!r}, which is no field of task {name!r}; its fields "
            f"are {', '.join([*_fields(task), 'label'])}."
        )
    if data is None:
        pool, dev_pool, test = _from_hub(recipe)
    else:
        pool, dev_pool, test = _from_folder(task, Path(data), columns or {})
    if dev_pool is None:
        train, dev = draw_shots(pool, shots, task.label_words, seed, parts=2)
    else:
        (train,) = draw_shots(pool, shots, task.label_words, seed, parts=1)
        (dev,) = draw_shots(dev_pool, shots, task.label_words, seed, parts=1)
    return task.with_splits(train, dev, test[:test_limit])


Splits = tuple[Sequence[Example], Sequence[Example] | None, Sequence[Example]]


def _fields(task: Task) -> list[str]:
    names = [name for pattern in task.patterns.values() for name in pattern_fields(pattern)]
    return [name for name in dict.fromkeys(names) if name != MASK]


def _from_folder(task: Task, folder: Path, columns: Mapping[str, str]) -> Splits:
    if not folder.is_dir():
        raise UserError(f"data folder {str(folder)!r} does not exist; expected one with "
                        "train.jsonl and test.jsonl (or .csv).")  # fmt: skip
    splits: list[list[Example] | None] = []
    for names, required in (
        (("train", "train_pool"), True),
        (("dev", "validation"), False),
        (("test",), True),
    ):
        path = find_split(folder, *names)
        if path is None and required:
            expected = " or ".join(f"{name}.jsonl" for name in names)
            raise UserError(f"{folder} has no {expected} (or .csv); add the file to the folder.")
        splits.append(
            None if path is None else read_examples(path, _fields(task), task.label_words, columns)
        )
    return splits[0] or [], splits[1], splits[2] or []


def _from_hub(recipe: Recipe) -> Splits:
    import datasets

    try:
        loaded: Any = datasets.load_dataset(*recipe.hub)
    except Exception as error:  # the Hub client raises many kinds; all mean "no data"
        raise UserError(
            f"could not load {recipe.hub[0]!r} from the Hub ({type(error).__name__}); check the "
            "connection, or pass a folder of local files as data (--data)."
        ) from error

    def examples(split: str) -> list[Example]:
        columns = {name: recipe.columns.get(name, name) for name in _fields(recipe.task)}
        return [
            Example({name: row[column] for name, column in columns.items()}, row["label"])
            for row in loaded[split]
        ]

    return examples("train"), None, examples(recipe.test)
