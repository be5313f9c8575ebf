"""Few-shot splits of a text task from local files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from integrations.errors import UserError
from integrations.tasks.files import (
    Columns,
    columns_of,
    read_rows,
    read_splits,
    require_fields,
    require_rows,
    value_of,
)
from integrations.tasks.splits import draw_examples, draw_parts
from integrations.tasks.task import pattern_fields
from integrations.tasks.text import TextExample, TextTask

REFERENCE = "reference"
"""What the column of references is called, unless ``columns`` says otherwise."""

SomeTextTask = TypeVar("SomeTextTask", bound=TextTask)


def load_text_task(
    task: SomeTextTask,
    data: str | Path | None,
    *,
    shots: int,
    seed: int,
    label_words: Sequence[str] | None,
    columns: Columns,
    test_limit: int | None,
) -> SomeTextTask:
    """What `load_task` does for a task that is answered by text; the arguments are the same."""
    if label_words is not None:
        raise UserError(
            f"task {task.name!r} is answered by text and has no label words; leave label_words "
            "(--label-words) out."
        )
    if data is None:
        if not (task.train or task.dev or task.test):
            raise UserError(
                f"task {task.name!r} has no examples and needs data=..., a folder or file of them."
            )
        if columns:
            raise UserError("columns are those of data, and there is none; pass data=... too.")
        return task.with_splits(task.train, task.dev, task.test[:test_limit])
    require_fields(columns, (*pattern_fields(task.pattern), REFERENCE), task.name)
    pool, dev_pool, test = read_splits(Path(data), lambda file: read_texts(file, task, columns))
    train, dev = draw_parts(
        pool, dev_pool, lambda pool, parts: draw_examples(len(pool), shots, seed, parts)
    )
    if test is None:
        drawn = {*train, *dev}
        test = [example for row, example in enumerate(pool) if row not in drawn]
    return task.with_splits(
        [pool[row] for row in train], [(dev_pool or pool)[row] for row in dev], test[:test_limit]
    )


def read_texts(path: Path, task: TextTask, columns: Columns) -> list[TextExample]:
    """Read a file of examples.

    Columns that the pattern has no field for are fields all the same, for a score of one's own to
    look at.

    Args:
        path: A ``.jsonl`` file (one object a line) or a ``.csv`` file with a header.
        task: Whose pattern names the fields, and which says whether a reference is needed.
        columns: Where a field, or ``"reference"``, has another name in the file.

    Raises:
        UserError: If the file is no such file or not UTF-8, a row is malformed, or a column that is
            needed is missing; if there are no examples.
    """
    fields = pattern_fields(task.pattern)
    needed = task.referenced or REFERENCE in columns
    taken = {column for name in (*fields, REFERENCE) for column in columns_of(name, columns)}
    examples = []
    for where, row in read_rows(path):
        # A table's index has a column without a name.
        others = (name for name, value in row.items() if name and value is not None)
        texts = {name: str(row[name]) for name in others if name not in taken}
        texts |= {name: str(value_of(row, name, columns, where)) for name in fields}
        reference = None
        if needed or row.get(REFERENCE) is not None:
            reference = str(value_of(row, REFERENCE, columns, where))
            if task.referenced and not reference.strip():
                raise UserError(
                    f"{where}: the reference is empty; task {task.name!r} needs one in every row."
                )
        examples.append(TextExample(texts, reference))
    require_rows(path, examples)
    return examples
