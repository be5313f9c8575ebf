"""Examples from local JSON lines or CSV files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from integrations.errors import UserError
from integrations.tasks.task import Example

SUFFIXES = (".jsonl", ".csv")


def find_split(folder: Path, *names: str) -> Path | None:
    """The first file ``name.jsonl`` or ``name.csv`` that is in a folder, None if there is none."""
    for name in names:
        for suffix in SUFFIXES:
            if (path := folder / f"{name}{suffix}").is_file():
                return path
    return None


def read_examples(
    path: Path, fields: Sequence[str], label_words: Sequence[str], columns: Mapping[str, str]
) -> list[Example]:
    """Read a file of examples.

    Args:
        path: A ``.jsonl`` file (one object a line) or a ``.csv`` file with a header.
        fields: The fields that the task's patterns use.
        label_words: A label may be an index into these or one of them.
        columns: Column names for fields (and ``"label"``) that are named otherwise in the file.

    Raises:
        UserError: If the file is empty or not UTF-8, a row is malformed, or a column is missing.
    """
    try:
        rows = list(_rows(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); save it as UTF-8.") from None
    examples = []
    for where, row in rows:
        values = {}
        for name in (*fields, "label"):
            column = columns.get(name, name)
            if row.get(column) is None:
                raise UserError(
                    f"{where}: no column {column!r}; it has {sorted(map(str, row))}. Name the "
                    f"column of {name!r} with columns={{{name!r}: ...}}."
                )
            values[name] = row[column]
        label = _label(values.pop("label"), label_words, where)
        examples.append(Example({name: str(text) for name, text in values.items()}, label))
    if not examples:
        raise UserError(f"{path} holds no examples; expected one JSON object or CSV row a line.")
    return examples


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


def _label(value: object, label_words: Sequence[str], where: str) -> int:
    if value in label_words:
        return label_words.index(str(value))
    try:
        label = int(str(value))
    except ValueError:
        label = -1
    if not 0 <= label < len(label_words):
        raise UserError(
            f"{where}: no label word for label {value!r}; expected 0 to {len(label_words) - 1} or "
            f"one of {list(label_words)!r}."
        )
    return label
