"""`load_task`: a task with its few-shot splits."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TypeAlias, overload

from integrations.arguments import whole
from integrations.errors import UserError, unknown
from integrations.imported import imported, is_import
from integrations.tasks.builtin import HUB_NAMES, TASKS, Recipe
from integrations.tasks.example import Example
from integrations.tasks.files import Columns, FileSplit, read_splits, require_fields
from integrations.tasks.hub import HubSplit, load_hub
from integrations.tasks.splits import draw_parts, draw_shots
from integrations.tasks.task import TASK_FILE, Task
from integrations.tasks.text import ContinuationTask, GenerationTask, TextTask
from integrations.tasks.text_loading import SomeTextTask, load_text_task


@overload
def load_task(
    task: str | Task | Recipe,
    data: str | Path | None = None,
    *,
    shots: int = 16,
    seed: int = 0,
    label_words: Sequence[str] | None = None,
    columns: Columns | None = None,
    test_limit: int | None = None,
) -> Task: ...


@overload
def load_task(
    task: SomeTextTask,
    data: str | Path | None = None,
    *,
    shots: int = 16,
    seed: int = 0,
    label_words: Sequence[str] | None = None,
    columns: Columns | None = None,
    test_limit: int | None = None,
) -> SomeTextTask: ...


def load_task(
    task: str | Task | Recipe | TextTask,
    data: str | Path | None = None,
    *,
    shots: int = 16,
    seed: int = 0,
    label_words: Sequence[str] | None = None,
    columns: Columns | None = None,
    test_limit: int | None = None,
) -> Task | TextTask:
    """A task with its few-shot splits.

    A task of your own, and one file of examples:

        tickets = Task(
            name="tickets",
            patterns={"causal": "{text} This is a question for"},
            label_words=("sales", "support"),
        )
        task = load_task(tickets, "tickets.csv", columns={"text": "message", "label": "queue"})

    Args:
        task: The name of a built-in task (``"sst2"``, ``"mrpc"``) or its name on the Hub
            (``"stanfordnlp/sst2"``, ``"nyu-mll/glue:mrpc"``); a task of your own, whose patterns
            and label words are used; a `Recipe`, if its data is on the Hub; ``"module:name"`` of
            one of these, or of a function that returns one; or a `GenerationTask` or
            `ContinuationTask`, whose examples have a column ``"reference"`` in place of a label.
        data: A folder with ``train.jsonl`` (or ``train_pool.jsonl``), ``test.jsonl`` and possibly
            ``dev.jsonl``, or the same as CSV; a folder that `Task.save` wrote, whose examples are
            taken as they are, whatever ``shots``, ``seed`` and ``columns`` say; or one file, whose
            rows that are not drawn are the test set. None takes the examples that a task of your
            own has, as they are, or loads the data set from the Hub.
        shots: Examples a class for training, and as many others for development (default 16); of
            a task answered by text, so many in all.
        seed: Draws the examples (default 0).
        label_words: Other label words than the task's own, in the order of the labels.
        columns: Column names of fields, or of ``"label"`` or ``"reference"``, that differ in the
            data. Several columns for one field are joined by spaces. A label may be an index, a
            label word or one of the task's label names.
        test_limit: Use the first so many test examples only, or evenly spaced ones where examples
            come class by class, so that the first lack some; None uses all.

    Returns:
        The task with ``train`` and ``dev`` of ``shots`` examples (a class), and ``test``.

    Raises:
        UserError: If the name is unknown, a file or column is missing or empty, a class has too few
            examples, the limit is not positive, or the seed is negative.
    """
    require_limit(test_limit)
    seed = whole("seed", seed, least=0)
    if isinstance(task, TextTask):
        return load_text_task(
            task,
            data,
            shots=shots,
            seed=seed,
            label_words=label_words,
            columns=columns or {},
            test_limit=test_limit,
        )
    own = own_task(task) if isinstance(task, str) else None
    if isinstance(own, TextTask):
        raise UserError(
            f"task {task!r} is answered by text and has no label words; tune and eval take it by "
            "this name, and load_task takes the task itself."
        )
    recipe = _find(own or task, data)
    task = recipe.task
    columns = columns or {}
    if label_words is not None:
        if len(label_words) != len(task.label_words):
            raise UserError(
                f"task {task.name!r} has {len(task.label_words)} classes and needs a label word "
                f"for each; got {list(label_words)!r}."
            )
        task = replace(task, label_words=tuple(label_words))
    require_fields(columns, (*task.fields, "label"), task.name)
    complete = data is None and not recipe.hub and bool(task.train)
    if complete or (data is not None and (Path(data) / TASK_FILE).is_file()):
        saved = task if data is None else task.with_saved(data)
        labels = [example.label for example in saved.test]
        chosen = [saved.test[i] for i in _limited(range(len(labels)), labels, test_limit)]
        return saved.with_splits(saved.train, saved.dev, chosen)
    if data is None:
        pools = _from_hub(recipe, task, {**recipe.columns, **columns})
    else:
        about = (task.fields, task.labels, columns)
        pools = read_splits(Path(data), lambda file: FileSplit(file, *about))
    return _draw(task, *pools, shots, seed, test_limit)


AnyTask: TypeAlias = Task | GenerationTask | ContinuationTask
"""What `tune` takes."""


def own_task(name: str) -> AnyTask | Recipe | None:
    """The task that ``"module:name"`` stands for; None for other names.

    Raises:
        UserError: If there is none.
    """
    if name in HUB_NAMES or not is_import(name):
        return None
    expected = "a task, a Recipe, or a function that returns one"
    found = imported(name, "task", expected)
    if callable(found):
        try:
            inspect.signature(found).bind()
        except (TypeError, ValueError) as error:
            raise UserError(
                f"task {name!r} cannot be called without arguments ({error}); expected {expected}."
            ) from None
        found = found()
    if not isinstance(found, AnyTask | Recipe):
        raise UserError(f"task {name!r} is a {type(found).__name__}; expected {expected}.")
    return found


def require_limit(test_limit: int | None) -> None:
    """Raise UserError unless a limit on test examples leaves some."""
    if test_limit is not None and not test_limit > 0:
        raise UserError(f"test_limit must be at least 1; got {test_limit!r}.")


class Pool(Protocol):
    """Examples to choose from, which need not be in memory."""

    @property
    def labels(self) -> Sequence[int]:
        """The label of each; -1 for those that have none."""

    def take(self, indices: Sequence[int]) -> list[Example]:
        """The examples with some indices."""


Pools = tuple[Pool, Pool | None, Pool | None]
"""What train, dev and test examples come from; None if from what is left of the first."""


def _find(task: object, data: object) -> Recipe:
    if isinstance(task, str):
        key = HUB_NAMES.get(task, task)
        if key not in TASKS:
            raise unknown("task", task, [*TASKS, *HUB_NAMES])
        return TASKS[key]
    if isinstance(task, Recipe):
        return task
    if not isinstance(task, Task):
        raise UserError(f"task must be a name, a Task or a Recipe; got {type(task).__name__}.")
    if data is None and not task.train:
        raise UserError(
            f"task {task.name!r} is none of the built-in ones and needs data=..., a folder or file "
            "of examples; if its data is on the Hub, pass a Recipe that says where."
        )
    return Recipe(task, hub=())


def _from_hub(recipe: Recipe, task: Task, columns: Columns) -> Pools:
    loaded = load_hub(recipe.hub)

    def split(name: str) -> HubSplit:
        where = f"split {name!r} of {recipe.hub_name}"
        if name not in loaded:
            raise UserError(f"{where} does not exist; there are {', '.join(loaded)}.")
        return HubSplit(loaded[name], where, task.fields, task.labels, columns)

    return split("train"), None, split(recipe.test)


def _draw(
    task: Task,
    pool: Pool,
    dev_pool: Pool | None,
    test_pool: Pool | None,
    shots: int,
    seed: int,
    test_limit: int | None,
) -> Task:
    words = task.label_words
    train, dev = draw_parts(
        pool, dev_pool, lambda pool, parts: draw_shots(pool.labels, shots, words, seed, parts)
    )
    drawn = {*train, *dev} if test_pool is None else set()
    scored = test_pool or pool
    test = [row for row, label in enumerate(scored.labels) if label >= 0 and row not in drawn]
    chosen = _limited(test, [scored.labels[row] for row in test], test_limit)
    return task.with_splits(pool.take(train), (dev_pool or pool).take(dev), scored.take(chosen))


def _limited(rows: Sequence[int], labels: Sequence[int], limit: int | None) -> list[int]:
    """The first so many rows; evenly spaced ones if the rows come class by class."""
    runs = 1 + sum(before != after for before, after in pairwise(labels))
    if limit is None or not 1 < runs == len({*labels}):
        return [*rows[:limit]]
    return [rows[i * len(rows) // limit] for i in range(min(limit, len(rows)))]
