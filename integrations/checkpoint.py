"""The folder from which `tune` continues a run that was interrupted.

After a generation one layer's optimizer has changed, so two files are written: that optimizer's
state, and the state of the run, which says which file holds each layer's. Both carry the number
of visits in their names, so nothing that the state before needs is ever replaced, and a process
killed at any moment leaves that one or the new one. The last two are kept.

    layer-07-000019.safetensors    the optimizer of layer 7 after 19 visits
    layer-08-000020.safetensors
    state-000019.safetensors
    state-000020.safetensors       the newest: points, history, and where each layer's state is

Where all layers have one optimizer, its files are called layer-all.
"""

from __future__ import annotations

import copy
import math
import re
import secrets
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dfo_core import Optimizer, load_state, save_state
from dfo_core.adapters.native import NAMES
from dfo_core.validation import FloatArray
from integrations.errors import UserError
from integrations.history import History
from integrations.visit import Stop

FORMAT = 2
KEPT = 2
SHARE = 0.1
"""Most of a run's time that goes into checkpoints; generations are left out if need be."""

_STATE = re.compile(r"state-(\d+)\.safetensors")
_OURS = re.compile(r"\.?(state|layer-(\d+|all))-\d+\.safetensors(\.\d+\.\d+\.tmp)?")


class CheckpointWarning(UserWarning):
    """A run continues, but not from its newest state or not bit for bit."""


class _Unusable(Exception):
    """A file that cannot be used; the message names it and says why."""


@dataclass(frozen=True)
class RunState:
    """What a run knows after a generation, its optimizers' states apart.

    Attributes:
        points: The z (d,) in place in each layer that has a delta.
        chosen: The same for the deltas with the best development score.
        block_size: Candidates a forward pass; None if not chosen yet.
        chosen_for: The most candidates for which that was chosen; None if it holds for any number.
        history: The course of the run, which says how far it is.
        budget: Evaluations of the whole run.
        seconds: Wall time without interruptions.
        stopped: Why the run ended; None if it goes on.
    """

    points: Mapping[int, FloatArray]
    chosen: Mapping[int, FloatArray]
    block_size: int | None
    chosen_for: int | None
    history: History
    budget: int
    seconds: float
    stopped: str | None

    def to_dict(self) -> dict[str, Any]:
        """The state as `save_state` takes it."""
        return vars(self) | {
            "points": {str(layer): z for layer, z in self.points.items()},
            "chosen": {str(layer): z for layer, z in self.chosen.items()},
            "history": self.history.to_dict(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], dims: Mapping[int, int]) -> RunState:
        """The state that `to_dict` turned into a dictionary.

        Args:
            state: The dictionary.
            dims: For each tuned layer the length of its z.

        Raises:
            LookupError, TypeError, ValueError: If it cannot be the state of such a run.
        """

        def points(by_layer: Mapping[str, Any]) -> dict[int, FloatArray]:
            found = {int(layer): np.asarray(z, np.float64) for layer, z in by_layer.items()}
            if any(z.shape != (dims[layer],) for layer, z in found.items()):
                raise ValueError("the points have other shapes")
            return found

        history = History.from_dict(state["history"])
        block_size, chosen_for = state["block_size"], state["chosen_for"]
        budget, seconds = state["budget"], float(state["seconds"])
        if not (history.scores and history.visits and math.isfinite(history.visits[-1].loss)):
            raise ValueError("the history is not that of a run")
        sizes = {type(block_size), type(chosen_for)}
        if type(budget) is not int or not sizes <= {int, type(None)} or seconds < 0:
            raise ValueError(
                f"got {budget=}, {block_size=}, {chosen_for=} and {seconds} seconds",
            )
        if state["stopped"] not in (None, "budget", "patience"):
            raise ValueError(f"it was stopped by {state['stopped']!r}")
        return cls(
            points=points(state["points"]),
            chosen=points(state["chosen"]),
            block_size=block_size,
            chosen_for=chosen_for,
            history=history,
            budget=budget,
            seconds=seconds,
            stopped=state["stopped"],
        )


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run's state, usable or not."""
    return folder.is_dir() and any(_STATE.fullmatch(path.name) for path in folder.iterdir())


def remove_run(folder: Path) -> None:
    """Remove a run's files from a folder, and nothing else."""
    for path in _ours(folder):
        path.unlink(missing_ok=True)


def require_state(optimizers: Mapping[Stop, Optimizer], name: str) -> None:
    """Raise UserError if an optimizer, called ``name``, cannot be saved."""
    if not all(optimizer.supports_state for optimizer in optimizers.values()):
        raise UserError(
            f"optimizer {name!r} cannot be checkpointed, as its state cannot be saved without "
            f"pickle; dfo_core's own can: {', '.join(NAMES)}. Use one of them, or leave out the "
            "checkpoint."
        )


class Checkpoint:
    """Writes a run's state to a folder and finds it again.

    Args:
        folder: The folder.
        arguments: What must be the same for a run to continue, as text by name.
        budget: Evaluations of the whole run; may be larger than before.
        optimizers: Each tuned layer's optimizer, or that of all; `load` puts continued ones in
            place.
        dims: For each tuned layer the length of its z.

    Raises:
        UserError: If the folder is something else.
    """

    def __init__(
        self,
        folder: str | Path,
        arguments: Mapping[str, str],
        budget: int,
        optimizers: dict[Stop, Optimizer],
        dims: Mapping[int, int],
    ) -> None:
        self.folder = _as_folder(folder)
        self.arguments = dict(arguments)
        self.budget = budget
        self.optimizers = optimizers
        self.dims = dims
        self._run = secrets.token_hex(8)  # tells this run's files from those of another one
        self._layers: dict[Stop, int] = {}  # visits in the name of each layer's newest file
        self._written = 0  # visits in the newest state
        self._needed: list[set[str]] = []  # names of the files that each kept state needs
        self._due = -math.inf

    def start(self) -> None:
        """Make the folder, or remove an earlier run's files from it and nothing else.

        Raises:
            UserError: If it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(error) from None
        remove_run(self.folder)

    def require_writable(self) -> None:
        """Raise UserError if the folder is there and takes no files."""
        if not self.folder.exists():
            return
        probe = self.folder / ".state-000000.safetensors.0.0.tmp"  # one of ours if it stays
        try:
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise _unwritable(error) from None

    def load(self) -> RunState | None:
        """The newest usable state, with the optimizers as they were; None if there is none.

        Raises:
            UserError: If the state is of a run with other arguments, or no file can be used.
        """
        paths = _ours(self.folder)
        states = {int(m[1]): path for path in paths if (m := _STATE.fullmatch(path.name))}
        broken: list[str] = []
        for number in sorted(states, reverse=True):
            try:
                state = self._read(states[number], number)
            except _Unusable as error:
                broken.append(str(error))
                continue
            if broken:
                warnings.warn(
                    f"{'; '.join(broken)}. Continuing from the state before, "
                    f"{states[number]}, after {state.history.visits[-1].evaluations} evaluations.",
                    CheckpointWarning,
                    stacklevel=3,
                )
            return state
        if broken:
            raise UserError(
                f"no checkpoint can be used: {'; '.join(broken)}. Put the files back as they were, "
                "use another folder, or start anew with resume=False (--overwrite)."
            )
        return None

    def write(self, state: RunState, at_once: bool = False) -> None:
        """Save the state after a generation, unless the last write took long and was just now.

        Args:
            state: The state.
            at_once: Save it in any case.
        """
        began = time.monotonic()
        if began < self._due and not at_once:
            return
        visits = state.history.visits
        for layer in {visit.layer for visit in visits[self._written :]}:
            path = self.folder / _layer_file(layer, len(visits))
            self._save(path, len(visits), layer=layer, state=self.optimizers[layer].state_dict())
            self._layers[layer] = len(visits)
        path = self.folder / f"state-{len(visits):06d}.safetensors"
        layers = {_key(layer): number for layer, number in self._layers.items()}
        about = {"arguments": self.arguments, "layers": layers, "state": state.to_dict()}
        self._save(path, len(visits), **about)
        self._written = len(visits)
        self._needed = [*self._needed, {path.name, *self._layer_files(self._layers)}][-KEPT:]
        self._remove_all_but(set().union(*self._needed))
        ended = time.monotonic()
        self._due = ended + (ended - began) * (1 / SHARE - 1)

    def _read(self, path: Path, number: int) -> RunState:
        file = _load(path, {"arguments", "layers", "state"})
        self._compare(path, file)
        try:
            stops = {_key(stop): stop for stop in self.optimizers}
            layers = {stops[key]: int(visits) for key, visits in file["layers"].items()}
            state = RunState.from_dict(file["state"], self.dims)
            visits = {file["visits"], len(state.history.visits)}
            if visits != {number}:
                raise ValueError(f"it is of {len(state.history.visits)} visits")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise _Unusable(f"{path} is damaged or misnamed ({error})") from None
        optimizers = {
            layer: self._read_layer(layer, visits, path, file["run"])
            for layer, visits in layers.items()
        }
        self.optimizers.update(optimizers)  # all are good
        self._run, self._layers, self._written = file["run"], layers, number
        self._needed = [{path.name, *self._layer_files(layers)}]
        return state

    def _compare(self, path: Path, file: Mapping[str, Any]) -> None:
        """Refuse a state of a run with other arguments."""
        there, here = file["arguments"], self.arguments
        try:
            names = [n for n in {**here, **there} if there.get(n) != here.get(n)]
            budget = int(file["state"]["budget"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise _Unusable(f"{path} is damaged ({error})") from None
        differences = [f"{n} (there {there.get(n)}, here {here.get(n)})" for n in names]
        if self.budget < budget:
            differences.append(
                f"budget (there {budget}, here {self.budget}; it may be raised, not lowered)"
            )
        if differences:
            raise UserError(
                f"checkpoint {path} is of another run; what differs: {', '.join(differences)}. Use "
                "the same arguments to continue it, another folder, or start anew with "
                "resume=False (--overwrite)."
            )

    def _read_layer(self, layer: Stop, visits: int, state: Path, run: str) -> Optimizer:
        """The optimizer of a layer that a run's state speaks of."""
        path = self.folder / _layer_file(layer, visits)
        file = _load(path, {"layer", "state"})
        if (file["run"], file["visits"], file["layer"]) != (run, visits, layer):
            raise _Unusable(f"{path} does not belong to {state}")
        # A copy: a state that turns out to be damaged leaves an optimizer of no use.
        optimizer = copy.deepcopy(self.optimizers[layer])
        try:
            optimizer.load_state_dict(file["state"])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise _Unusable(f"{path}: {error}") from None
        return optimizer

    def _save(self, path: Path, visits: int, **content: Any) -> None:
        try:
            save_state(path, {"format": FORMAT, "run": self._run, "visits": visits, **content})
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error}). Make room, and the same call goes on from "
                "the state before."
            ) from error

    def _layer_files(self, layers: Mapping[Stop, int]) -> list[str]:
        return [_layer_file(layer, visits) for layer, visits in layers.items()]

    def _remove_all_but(self, names: set[str]) -> None:
        for path in _ours(self.folder):
            if path.name not in names:
                path.unlink(missing_ok=True)


def _as_folder(folder: Any) -> Path:
    try:
        path = Path(folder)
    except TypeError:
        raise UserError(f"checkpoint must be the name of a folder; got {folder!r}.") from None
    if path.exists() and not path.is_dir():
        raise UserError(f"checkpoint must be a folder; {path} is a file.")
    return path


def _unwritable(error: OSError) -> UserError:
    return UserError(f"checkpoint must be a folder that can be written: {error}.")


def _ours(folder: Path) -> list[Path]:
    """The files in a folder that are a run's."""
    if not folder.exists():
        return []
    return [path for path in folder.iterdir() if _OURS.fullmatch(path.name)]


def _key(layer: Stop) -> str:
    return "all" if layer is None else str(layer)


def _layer_file(layer: Stop, visits: int) -> str:
    return f"layer-{_key(layer):0>2}-{visits:06d}.safetensors"


def _load(path: Path, keys: set[str]) -> dict[str, Any]:
    """A file of ours with these entries beside the header."""
    try:
        file = load_state(path)
    except FileNotFoundError:
        raise _Unusable(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise _Unusable(f"{path} cannot be read: {error}") from None
    if file.get("format") != FORMAT:
        raise _Unusable(
            f"{path} is of format {file.get('format')!r}; this version reads format {FORMAT}"
        )
    if lacks := {"run", "visits", *keys} - file.keys():
        raise _Unusable(f"{path} is not a checkpoint of tune: it lacks {', '.join(sorted(lacks))}")
    return file
