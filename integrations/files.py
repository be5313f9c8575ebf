"""Files that a process may be killed while writing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; renamed to ``path`` if all goes well.

    A process killed at any moment leaves the old file or the new one.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def append_line(path: Path, row: Any) -> None:
    """Append one line of JSON; half a line, which a killed process left, makes room for it."""
    with path.open("a+b") as file:
        end = file.tell()
        file.seek(max(end - 1, 0))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(f"{json.dumps(row)}\n".encode())


def read_lines(path: Path) -> list[Any]:
    """What the whole lines of a file of JSON lines hold; nothing if there is no file."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]
