"""The file from which `minimize` continues."""

from __future__ import annotations

from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from dfo_core.bounds import Box
from dfo_core.evaluation import Objective
from dfo_core.optimizer import Optimizer
from dfo_core.serialization import load_state, save_state

NUMBERS = ("x0", "bounds", "sigma0")  # in which 1 is the same as 1.0


class Checkpoint:
    """A file with the optimizer's state and the arguments of the run it belongs to.

    Args:
        path: The file.
        arguments: What must be the same for a run to continue.
    """

    def __init__(self, path: Path, arguments: dict[str, Any]) -> None:
        self._path = path
        # As text, so that any argument can be compared; arrays in full and exactly.
        self._arguments = {
            name: _describe(value, numbers=name in NUMBERS) for name, value in arguments.items()
        }

    def resume(self, opt: Optimizer, objective: Objective) -> None:
        """Continue from the file if there is one and its run had begun.

        Raises:
            NotImplementedError: If the optimizer cannot be saved.
            ValueError: If the file is of another run or not one of ours.
        """
        if not opt.supports_state:
            opt.state_dict()  # raises, and says why
        if not self._path.exists():
            return
        state = load_state(self._path)
        missing = {"arguments", "objective", "optimizer"} - state.keys()
        if missing:
            raise ValueError(
                f"{str(self._path)!r} is not a checkpoint of minimize: it lacks "
                f"{', '.join(sorted(missing))}"
            )
        if not len(state["optimizer"]["shared"]["_told"]):
            return  # written before anything was evaluated, so that there is nothing to keep
        for name, ours in self._arguments.items():
            theirs = state["arguments"].get(name)
            if theirs != ours:
                raise ValueError(
                    f"checkpoint {str(self._path)!r} is of a run with {name}={theirs}, this call "
                    f"has {name}={ours}: use the same arguments, another file, or delete this one"
                )
        opt.load_state_dict(state["optimizer"])
        objective.set_state(state["objective"])

    def write(self, opt: Optimizer, objective: Objective) -> None:
        """Replace the file by one with the present state; its folder is made if it is missing."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        state = {"arguments": self._arguments, "objective": objective.get_state()}
        save_state(self._path, {**state, "optimizer": opt.state_dict()})


def _describe(value: Any, numbers: bool) -> str:
    """An argument as text, the same for all ways to write the same numbers."""
    if isinstance(value, (np.random.Generator, np.random.BitGenerator, np.random.RandomState)):
        return type(value).__name__  # whose state the optimizer's own state holds
    if hasattr(value, "lb") and hasattr(value, "ub"):
        value = (value.lb, value.ub)
    if isinstance(value, Box):
        value = (value.lower, value.upper)
    if hasattr(value, "__array__"):  # torch's and pandas' text would leave numbers out
        value = np.asarray(value).tolist()
    if isinstance(value, (list, tuple)):
        return repr([_describe(item, numbers) for item in value])
    if numbers and isinstance(value, Real):
        return repr(float(value))
    return repr(value)
