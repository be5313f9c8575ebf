"""Examples from data sets on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from integrations.errors import UserError
from integrations.tasks.example import Example
from integrations.tasks.files import Columns, Labels, columns_of


class HubSplit:
    """One split of a data set; rows become examples only when they are taken.

    Args:
        rows: A `datasets.Dataset`.
        where: What it is called in errors.
        fields: The fields of the task's patterns.
        labels: What labels may be.
        columns: Where a field, or the label, has another name.

    Attributes:
        labels: A label for each row; -1 for those that have none, as is the Hub's custom.

    Raises:
        UserError: If a column is missing, or no row has a label.
    """

    def __init__(
        self, rows: Any, where: str, fields: Sequence[str], labels: Labels, columns: Columns
    ) -> None:
        self.columns = {name: columns_of(name, columns) for name in (*fields, "label")}
        for name, held_by in self.columns.items():
            if missing := [column for column in held_by if column not in rows.column_names]:
                raise UserError(
                    f"{where} has no column {missing[0]!r}, only {sorted(rows.column_names)}. Name "
                    f"the column of {name!r} with columns={{{name!r}: ...}}."
                )
        self.rows = rows
        found = rows[self.columns.pop("label")[0]][:]
        known = {value: _index(value, labels, where) for value in set(found)}
        self.labels = [known[value] for value in found]
        if max(self.labels, default=-1) < 0:
            raise UserError(f"{where} has no labelled rows; choose another split.")

    def take(self, indices: Sequence[int]) -> list[Example]:
        """Some rows as examples."""
        found = self.rows.select(indices)[:]
        texts = {}
        for name, held_by in self.columns.items():
            parts = zip(*(found[column] for column in held_by), strict=True)
            texts[name] = [" ".join(map(str, row)) for row in parts]
        return [
            Example({name: column[i] for name, column in texts.items()}, self.labels[row])
            for i, row in enumerate(indices)
        ]


def load_hub(hub: Sequence[str]) -> Mapping[str, Any]:
    """The splits of a data set on the Hub.

    Args:
        hub: Arguments of ``datasets.load_dataset``.

    Raises:
        UserError: If it cannot be loaded.
    """
    import datasets

    try:
        loaded: Mapping[str, Any] = datasets.load_dataset(*hub)
    except Exception as error:  # the Hub client raises many kinds; all mean "no data"
        raise UserError(
            f"could not load {':'.join(hub)!r} from the Hub ({type(error).__name__}); check the "
            "connection, or pass a folder of local files as data (--data)."
        ) from error
    return loaded


def _index(value: object, labels: Labels, where: str) -> int:
    return -1 if value in (-1, None) else labels.index(value, where)
