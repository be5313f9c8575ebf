"""State dictionaries on disk without pickle, and with a checksum: .npz, .safetensors or .json."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dfo_core.libraries import require

Array = np.ndarray[Any, Any]

_STATE, _DIGEST, _ARRAY = "state.json", "sha256", "__array__"


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a state dictionary to a file.

    The suffix of the name says how: `.safetensors` (needs that package), `.json` (one text, arrays
    in base64), or numpy's `.npz`, which any other name gets too. In each of them are the arrays,
    the rest as JSON, and a SHA-256 of both.

    The file is written beside `path`, flushed to disk and renamed, so that a process killed at
    any moment leaves either the old file or the new one.

    Args:
        path: Where to; the name is used as given.
        state: Nested dictionaries with string keys, lists, numbers, strings, None and arrays of
            numbers or booleans, as `Optimizer.state_dict` returns them.

    Raises:
        ValueError: If the state holds anything else.
        ImportError: If the name ends in .safetensors and that package is not installed.
    """
    arrays: dict[str, Array] = {}
    text = json.dumps(_pack(state, "", arrays))
    target = Path(path)
    named = {_STATE: text.encode(), _DIGEST: _digest(text, arrays)}
    members = {name: np.frombuffer(content, np.uint8) for name, content in named.items()}
    write, _ = _FORMATS.get(target.suffix, _NPZ)
    content = write({**arrays, **members})
    # Processes and threads that save to the same file do not get into each other's way.
    beside = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(content)
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
        ValueError: If the file is not one of ours, is cut short, or was altered.
        ImportError: If the name ends in .safetensors and that package is not installed.
    """
    source = Path(path)
    content = source.read_bytes()
    try:
        _, read = _FORMATS.get(source.suffix, _NPZ)
        arrays = read(content)
        digest, text = arrays.pop(_DIGEST).tobytes(), arrays.pop(_STATE).tobytes().decode()
        if digest != _digest(text, arrays):
            raise ValueError("its SHA-256 is another: it was altered after it was written")
        return dict(_unpack(json.loads(text), arrays))
    except ImportError:
        raise
    except Exception as error:  # whatever numpy, zipfile and the others make of foreign bytes
        raise ValueError(
            f"{str(source)!r} is not a state file of dfo_core, or is damaged ({error})"
        ) from None


def state_digest(state: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a state dictionary in hexadecimal; equal states have equal ones.

    Raises:
        ValueError: If the state holds what `save_state` does not take.
    """
    arrays: dict[str, Array] = {}
    return _digest(json.dumps(_pack(state, "", arrays)), arrays).hex()


# -- a state as JSON text and arrays, and back ---------------------------------------------------


def _pack(value: Any, name: str, arrays: dict[str, Array]) -> Any:
    """Return `value`, at `name` in the state, as JSON takes it; its arrays move to `arrays`."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise ValueError(f"state{name} must hold numbers or booleans; got {value.dtype}")
        key = f"array{len(arrays)}"
        # Shapes of no dimensions become one of one in ascontiguousarray.
        native = value.astype(value.dtype.newbyteorder("="), copy=False)
        arrays[key] = np.ascontiguousarray(native).reshape(value.shape)
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


def _unpack(value: Any, arrays: Mapping[str, Array]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_ARRAY}:
            return arrays[value[_ARRAY]]
        return {key: _unpack(item, arrays) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    return value


def _digest(text: str, arrays: Mapping[str, Array]) -> bytes:
    """SHA-256 of all there is in a state."""
    sha = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        sha.update(repr((name, array.dtype.str, array.shape)).encode())
        sha.update(array.tobytes())
    return sha.digest()


# -- file formats: named arrays as bytes, and back -----------------------------------------------


def _write_npz(members: dict[str, Array]) -> bytes:
    file = io.BytesIO()
    arrays: Any = members  # of numbers, so nothing is pickled
    np.savez(file, **arrays)
    return file.getvalue()


def _read_npz(content: bytes) -> dict[str, Array]:
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _write_safetensors(members: dict[str, Array]) -> bytes:
    return bytes(_safetensors().save(members))


def _read_safetensors(content: bytes) -> dict[str, Array]:
    return dict(_safetensors().load(content))


def _safetensors() -> Any:
    return require("safetensors.numpy", "safetensors", "a name in .safetensors")


def _write_json(members: dict[str, Array]) -> bytes:
    text, digest = members[_STATE].tobytes(), members[_DIGEST].tobytes()
    arrays = {
        name: [array.dtype.str, array.shape, base64.b64encode(array.tobytes()).decode()]
        for name, array in members.items()
        if name not in (_STATE, _DIGEST)
    }
    content = {_DIGEST: digest.hex(), "state": json.loads(text), "arrays": arrays}
    return json.dumps(content, indent=1).encode()


def _read_json(content: bytes) -> dict[str, Array]:
    file = json.loads(content)
    members = {
        name: np.frombuffer(base64.b64decode(text), dtype).reshape(shape).copy()
        for name, (dtype, shape, text) in file["arrays"].items()
    }
    members[_DIGEST] = np.frombuffer(bytes.fromhex(file[_DIGEST]), np.uint8)
    members[_STATE] = np.frombuffer(json.dumps(file["state"]).encode(), np.uint8)
    return members


_NPZ = (_write_npz, _read_npz)
_FORMATS = {
    ".json": (_write_json, _read_json),
    ".safetensors": (_write_safetensors, _read_safetensors),
}
