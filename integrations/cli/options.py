"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from integrations.cli.config import read_config
from integrations.errors import UserError, unknown
from integrations.imported import imported, is_import
from integrations.metrics import LOSS_NAMES, Loss
from integrations.models import DTYPES
from integrations.report import console
from integrations.smollm2 import NAME as SMOLLM2
from integrations.tasks import TASKS, AnyTask, load_task
from integrations.tasks.loading import own_task

MODEL, TASK, DELTAS, SEARCH, OUTPUT = "Model", "Task and data", "Deltas", "Search", "Run and output"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def _json(on: bool) -> bool:
    console.stderr = on
    return on


Model = Annotated[
    str,
    typer.Option(
        help=f"Folder with a saved model, Hub name, or {SMOLLM2} (98 MB download).",
        rich_help_panel=MODEL,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(DTYPES)}; by default float32, on a GPU bfloat16.", rich_help_panel=MODEL
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Such as cuda:1; by default a GPU if there is one.", rich_help_panel=MODEL),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        help="Longest prompt in tokens; by default 512 or what the model can take.",
        rich_help_panel=MODEL,
    ),
]
TaskName = Annotated[
    str,
    typer.Option(
        help=f"One of {', '.join(TASKS)}, or its Hub name; or module:name of a task of your own, "
        "or of a function that returns one.",
        rich_help_panel=TASK,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder with train, test and possibly dev as .jsonl or .csv, or one such file; by "
        "default the Hub.",
        rich_help_panel=TASK,
    ),
]
Shots = Annotated[
    int,
    typer.Option(
        help="Training examples a class (of a text task: in all), and as many for dev.",
        rich_help_panel=TASK,
    ),
]
Seed = Annotated[int, typer.Option(help="All randomness comes from it.", rich_help_panel=TASK)]
LabelWords = Annotated[
    str | None,
    typer.Option(
        help="Label words, separated by commas, in label order; by default the task's.",
        rich_help_panel=TASK,
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="FIELD=COLUMN",
        help="Local column of a field, label or reference, such as text=sentence; several of one "
        "field are joined. By default the field's own name.",
        rich_help_panel=TASK,
    ),
]
TestLimit = Annotated[
    int | None,
    typer.Option(
        help="Score the first so many test examples only; by default all.", rich_help_panel=TASK
    ),
]
LossName = Annotated[
    str | None,
    typer.Option(
        help=f"One of {', '.join(LOSS_NAMES)}, or module:name of a function of label logits and "
        "labels; by default ce, or what a text task has.",
        rich_help_panel=SEARCH,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object on standard output, and all else on standard error.",
        is_eager=True,
        callback=_json,
        rich_help_panel=OUTPUT,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="YAML file with options by name, such as the config.yaml of an earlier run; by "
        "default none. Options on the command line come before it.",
        is_eager=True,
        callback=read_config,
        rich_help_panel=OUTPUT,
    ),
]


def task_of(
    name: str,
    data: Path | None,
    shots: int,
    seed: int,
    label_words: str | None,
    columns: list[str] | None,
    test_limit: int | None,
) -> AnyTask:
    """The task that the shared options describe."""
    own = own_task(name)
    return load_task(
        own or name,
        data,
        shots=shots,
        seed=seed,
        label_words=words(label_words),
        columns=pairs(columns),
        test_limit=test_limit,
    )


def loss_of(name: str | None) -> str | Loss | None:
    """The loss that ``--loss`` says: a name, or a function of the user's own."""
    if name is None or name in LOSS_NAMES:
        return name
    if not is_import(name):
        raise unknown("loss", name, LOSS_NAMES)
    expected = "a function of label logits and labels"
    found: Loss = imported(name, "loss", expected)
    if not callable(found):
        raise UserError(f"loss {name!r} is a {type(found).__name__}; expected {expected}.")
    return found


def words(text: str | None) -> tuple[str, ...] | None:
    """Words separated by commas."""
    return None if text is None else tuple(word.strip() for word in text.split(","))


def layer_list(text: str | None) -> tuple[int, ...] | str | None:
    """Indices separated by commas, or ``"all"``."""
    if text is None or text == "all":
        return text
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise UserError(
            f"--layers takes all, or numbers separated by commas; got {text!r}."
        ) from None


def pairs(texts: list[str] | None) -> dict[str, str | list[str]]:
    """``FIELD=COLUMN`` texts as a mapping from fields to their columns."""
    found: dict[str, list[str]] = {}
    for text in texts or ():
        name, equals, column = text.partition("=")
        if not (name and equals and column):
            raise UserError(f"--column takes FIELD=COLUMN, such as text=sentence; got {text!r}.")
        found.setdefault(name, []).append(column)
    return {name: columns if len(columns) > 1 else columns[0] for name, columns in found.items()}


def count_or_none(text: str) -> int:
    """A whole number; none is 0."""
    try:
        return 0 if str(text).lower() == "none" else int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number or none.") from None


def byte_count(text: str) -> int:
    """Bytes of a size such as ``2GB``, ``500 MB``, ``1.5GiB`` or ``4000000``."""
    match = re.fullmatch(r"([\d.]+) *([KMGT]I?|)B?", str(text).strip().upper())
    try:
        return int(float(match[1]) * _UNITS[match[2]])  # type: ignore[index]
    except (TypeError, ValueError):
        raise typer.BadParameter(f"{text!r} is not a size such as 2GB or 500MiB.") from None


def require_folder(folder: Path) -> None:
    """Raise UserError, before any work, if files cannot be written to a folder."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"--out {folder}: {there} is a file; pass a folder.")
    if not os.access(there, os.W_OK):
        raise UserError(f"--out {folder}: {there} cannot be written to; pass another folder.")
