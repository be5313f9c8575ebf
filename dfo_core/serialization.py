"""State dictionaries on disk: one .npz file, arrays as arrays, the rest as JSON, never pickle."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_JSON = "state.json"
_ARRAY = "__array__"


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a state dictionary to a file.

    The file is written beside `path`, flushed to disk and renamed, so that a process killed at
    any moment leaves either the old file or the new one.

    Args:
        path: Where to; the name is used as given.
        state: Nested dictionaries with string keys, lists, numbers, strings, None and arrays of
            numbers or booleans, as `Optimizer.state_dict` returns them.

    Raises:
        ValueError: If the state holds anything else.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    text = json.dumps(_pack(state, "", arrays))
    arrays[_JSON] = np.frombuffer(text.encode(), dtype=np.uint8)
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a state dictionary that `save_state` wrote; equal to it bit for bit.

    Args:
        path: The file.

    Returns:
        The state.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not one of ours.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        state = _unpack(json.loads(arrays[_JSON].tobytes().decode()), arrays)
    except (KeyError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{os.fspath(path)!r} is not a state file of dfo_core ({error})") from None
    return dict(state)


def _pack(value: Any, name: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    """Return `value`, at `name` in the state, as JSON takes it; its arrays move to `arrays`."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise ValueError(f"state{name} must hold numbers or booleans; got {value.dtype}")
        key = f"array{len(arrays)}"
        arrays[key] = value
        return {_ARRAY: key}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key == _ARRAY:
                raise ValueError(f"keys of state{name} must be strings, not {_ARRAY}; got {key!r}")
        return {key: _pack(item, f"{name}/{key}", arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_pack(item, f"{name}/{i}", arrays) for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"state{name} cannot be written without pickle: {type(value).__name__}")


def _unpack(value: Any, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_ARRAY}:
            return arrays[value[_ARRAY]]
        return {key: _unpack(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    return value
