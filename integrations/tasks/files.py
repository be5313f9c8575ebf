"""Examples from local JSON lines or CSV files, and back."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from integrations.errors import UserError
from integrations.files import replace_file
from integrations.tasks.example import Example

SUFFIXES = (".jsonl", ".csv")

Columns = Mapping[str, str | Sequence[str]]
"""For a field, or ``"label"``, the column that holds it, or several to be joined by spaces."""


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


class Labels:
    """Turns what data says about a class into an index.

    Args:
        words: The task's label words.
        names: What data calls the classes in the same order, if it is neither of the other two.
    """

    def __init__(self, words: Sequence[str], names: Sequence[str] = ()) -> None:
        self.words = list(words)
        self.names = list(names)

    def index(self, value: object, where: str) -> int:
        """The class that a label word, a class's name or an index stands for.

        Raises:
            UserError: If it stands for none; begins with ``where``.
        """
        for known in (self.words, self.names):
            if value in known:
                return known.index(str(value))
        try:
            label = int(str(value))
        except ValueError:
            label = -1
        if not 0 <= label < len(self.words):
            names = f" or of {self.names!r}" if self.names else ""
            raise UserError(
                f"{where}: no label word for label {value!r}; expected 0 to {len(self.words) - 1} "
                f"or one of {self.words!r}{names}."
            )
        return label


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
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is neither JSON lines nor CSV; expected a .jsonl or .csv file.")
    try:
        rows = list(_rows(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); save it as UTF-8.") from None
    except csv.Error as error:
        raise UserError(f"{path} is no CSV that can be read ({error}); try JSON lines.") from None
    examples = []
    for where, row in rows:
        names = [name for name in row if name != "label"] if fields is None else fields
        texts = {name: _value(row, name, columns, where) for name in (*names, "label")}
        label = labels.index(texts.pop("label"), where)
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
        if not self.examples:
            raise UserError(
                f"{path} holds no examples; expected one JSON object or CSV row a line."
            )
        self.labels = [example.label for example in self.examples]

    def take(self, indices: Sequence[int]) -> list[Example]:
        """The examples with some indices."""
        return [self.examples[i] for i in indices]


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write examples as JSON lines, for `read_examples`."""
    with replace_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        for example in examples:
            row = {**example.fields, "label": example.label}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _value(row: Mapping[str, object], name: str, columns: Columns, where: str) -> object:
    found = [row.get(column) for column in columns_of(name, columns)]
    for column, value in zip(columns_of(name, columns), found, strict=True):
        if value is None:
            raise UserError(
                f"{where}: no column {column!r}; it has {sorted(map(str, row))}. Name the "
                f"column of {name!r} with columns={{{name!r}: ...}}."
            )
    return found[0] if len(found) == 1 else " ".join(map(str, found))


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    # Spreadsheets begin files with a byte order mark, which utf-8-sig leaves out.
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            for number, record in enumerate(csv.DictReader(file), start=2):
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
