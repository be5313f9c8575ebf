"""Examples from local JSON lines or CSV files, and back."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from integrations.errors import UserError
from integrations.files import replace_file
from integrations.tasks.example import Example

SUFFIXES = (".jsonl", ".csv")

Columns = Mapping[str, str | Sequence[str]]
"""For a field, ``"label"`` or ``"reference"``, its column, or several to be joined by spaces."""

Row = Mapping[str, object]
Read = TypeVar("Read")


def columns_of(name: str, columns: Columns) -> Sequence[str]:
    """The columns that hold a field: those named, else one of the field's own name."""
    found = columns.get(name, name)
    return (found,) if isinstance(found, str) else found


def find_split(folder: Path, *names: str) -> Path | None:
    """The first file ``name.jsonl`` or ``name.csv`` that is in a folder, None if there is none."""
    for name in names:
        for suffix in SUFFIXES:
            if (path := folder / f"{name}{suffix}").is_file():
                return path
    return None


def read_splits(path: Path, read: Callable[[Path], Read]) -> tuple[Read, Read | None, Read | None]:
    """What is read of a folder's files train, dev and test, or of one file.

    Args:
        path: A folder or a file.
        read: Reads one file.

    Returns:
        What is read of train, dev and test; None for dev if there is no such file, and for both if
        there is one file in all.

    Raises:
        UserError: If there is no such folder, or a file is missing from it.
    """
    if path.is_file():
        return read(path), None, None
    if not path.is_dir():
        raise UserError(f"data folder {str(path)!r} does not exist; expected one with "
                        "train.jsonl and test.jsonl (or .csv), or a file.")  # fmt: skip

    def required(*names: str) -> Path:
        if file := find_split(path, *names):
            return file
        expected = " or ".join(f"{name}.jsonl" for name in names)
        raise UserError(f"{path} has no {expected} (or .csv); add the file to the folder.")

    train, test = read(required("train", "train_pool")), read(required("test"))
    dev = find_split(path, "dev", "validation")
    return train, None if dev is None else read(dev), test


def require_fields(columns: Columns, names: Sequence[str], task: str) -> None:
    """Raise UserError if a column is given for what is no field of a task."""
    if unused := set(columns) - set(names):
        raise UserError(
            f"columns names {sorted(unused)[0]!r}, which is no field of task {task!r}; its fields "
            f"are {', '.join(names)}."
        )


class Labels:
    """Turns what data says about a class into an index.

    Args:
        words: The task's label words.
        names: What data calls the classes in the same order, if it is neither of the other two.
    """

    def __init__(self, words: Sequence[str], names: Sequence[str] = ()) -> None:
        self.words = list(words)
        self.names = list(names)
        # Where classes are called by numbers, a number in a file is a name and no index.
        self._numbered = any(text.isdigit() for text in (*self.words, *self.names))

    def index(self, value: object, where: str) -> int:
        """The class that a label word, a class's name or an index stands for.

        Raises:
            UserError: If it stands for none; begins with ``where``.
        """
        for known in (self.words, self.names):
            if value in known:
                return known.index(str(value))
        named = isinstance(value, str) and self._numbered
        try:
            label = -1 if named else int(str(value))
        except ValueError:
            label = -1
        if not 0 <= label < len(self.words):
            indices = "" if named else f"0 to {len(self.words) - 1} or "
            names = f" or of {self.names!r}" if self.names else ""
            raise UserError(
                f"{where}: no label word for label {value!r}; expected {indices}one of "
                f"{self.words!r}{names}."
            )
        return label

    def read(self, value: object, where: str) -> int:
        """The same for a label in a file, where a number may be a class's name.

        Raises:
            UserError: If it stands for none; begins with ``where``.
        """
        return self.index(str(value) if self._numbered else value, where)


def read_examples(
    path: Path, labels: Labels, fields: Sequence[str] | None = None, columns: Columns | None = None
) -> list[Example]:
    """Read a file of examples.

    Args:
        path: A ``.jsonl`` file (one object a line) or a ``.csv`` file with a header.
        labels: What labels may be.
        fields: The fields that the task's patterns use; None takes all but the label.
        columns: Where a field, or the label, has another name in the file.

    Raises:
        UserError: If the file is no such file or not UTF-8, a row is malformed, or a column is
            missing.
    """
    columns = columns or {}
    examples = []
    for where, row in read_rows(path):
        names = [name for name in row if name != "label"] if fields is None else fields
        texts = {name: value_of(row, name, columns, where) for name in (*names, "label")}
        label = labels.read(texts.pop("label"), where)
        examples.append(Example({name: str(text) for name, text in texts.items()}, label))
    return examples


class FileSplit:
    """The examples of one file, to draw from.

    Args:
        path: The file.
        fields: The fields of the task's patterns.
        labels: What labels may be.
        columns: Where a field, or the label, has another name.

    Attributes:
        labels: The label of each.

    Raises:
        UserError: As `read_examples`; if there are no examples.
    """

    def __init__(self, path: Path, fields: Sequence[str], labels: Labels, columns: Columns) -> None:
        self.examples = read_examples(path, labels, fields, columns)
        require_rows(path, self.examples)
        self.labels = [example.label for example in self.examples]

    def take(self, indices: Sequence[int]) -> list[Example]:
        """The examples with some indices."""
        return [self.examples[i] for i in indices]


def require_rows(path: Path, rows: Sequence[object]) -> None:
    """Raise UserError if a file holds none."""
    if not rows:
        raise UserError(f"{path} holds no examples; expected one JSON object or CSV row a line.")


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write examples as JSON lines, for `read_examples`."""
    with replace_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        for example in examples:
            row = {**example.fields, "label": example.label}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> list[tuple[str, Row]]:
    """The rows of a file, each with its place as errors name it.

    Args:
        path: A ``.jsonl`` file (one object a line) or a ``.csv`` file with a header.

    Raises:
        UserError: If the file is no such file or not UTF-8, or a row is malformed.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is neither JSON lines nor CSV; expected a .jsonl or .csv file.")
    try:
        return list(_rows(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); save it as UTF-8.") from None
    except csv.Error as error:
        raise UserError(f"{path} is no CSV that can be read ({error}); try JSON lines.") from None


def value_of(row: Row, name: str, columns: Columns, where: str) -> object:
    """What a row holds for a field, joined if that is in several columns.

    Raises:
        UserError: If a column is missing or holds several values; begins with ``where``.
    """
    found = [row.get(column) for column in columns_of(name, columns)]
    for column, value in zip(columns_of(name, columns), found, strict=True):
        if value is None:
            raise UserError(
                f"{where}: no column {column!r}; it has {sorted(map(str, row))}. Name the "
                f"column of {name!r} with columns={{{name!r}: ...}}."
            )
        if isinstance(value, list | dict):
            raise UserError(
                f"{where}: column {column!r} holds a {type(value).__name__}; expected a text or a "
                "number."
            )
    return found[0] if len(found) == 1 else " ".join(map(str, found))


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    # Spreadsheets begin files with a byte order mark, which utf-8-sig leaves out.
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            for number, record in enumerate(csv.DictReader(file), start=2):
                if any(map(str.strip, record.pop(None, ()))):
                    raise UserError(
                        f"{path}:{number}: more cells than the header has columns; put a text with "
                        "commas in quotes."
                    )
                yield f"{path}:{number}", record
            return
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: not a JSON object ({error}).") from None
            if not isinstance(row, dict):
                raise UserError(f"{where}: expected a JSON object, got {type(row).__name__}.")
            yield where, row
