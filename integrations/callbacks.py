"""What a run tells after each generation, and listeners that write it down.

A callback is any function of a `Progress`. `integrations.tune` takes one or several, and the run
ends if one of them returns True::

    def enough(progress):
        return progress.dev.score > 0.9

    tune(model, task, callback=[enough, TensorBoard("logs/"), JSONLines("run.jsonl")])
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

from integrations.errors import UserError
from integrations.files import append_line
from integrations.history import DevScore, plain
from integrations.visit import Visit


@dataclass(frozen=True)
class Progress:
    """What a callback of `tune` is told after each generation.

    Attributes:
        visit: The generation.
        dev: The latest look at the development set.
        new_dev: Whether that look came with this generation.
        best: The look that chose the deltas so far.
        budget: Evaluations of the whole run.
        seconds: Wall time since the run began, interruptions not counted.
        most_seconds: Wall time after which it ends; infinite for no limit.
    """

    visit: Visit
    dev: DevScore
    new_dev: bool
    best: DevScore
    budget: int
    seconds: float
    most_seconds: float = math.inf

    @property
    def seconds_left(self) -> float:
        """Wall time to the end of the run at its pace so far, unless patience ends it."""
        evaluations = self.visit.evaluations
        for_budget = self.seconds / evaluations * (self.budget - evaluations)
        return max(0.0, min(for_budget, self.most_seconds - self.seconds))


Callback = Callable[[Progress], bool | None]
"""Called after each generation; the run ends if it returns True."""


def as_callback(given: Callback | Sequence[Callback] | None) -> Callback | None:
    """One callback that calls all of them, or None for none.

    Args:
        given: A callback, a sequence of callbacks, or None. All are called, in order, whatever
            those before returned.

    Raises:
        UserError: If something among them cannot be called.
    """
    several = isinstance(given, Sequence)
    callbacks: list[Any] = [*given] if several else [] if given is None else [given]  # type: ignore[misc]
    for callback in callbacks:
        if not callable(callback):
            raise UserError(
                "callback must be a function of a Progress, or a sequence of such; got "
                f"{type(callback).__name__}."
            )
    if not callbacks:
        return None

    def call_all(progress: Progress) -> bool:
        answers = [callback(progress) for callback in callbacks]
        return any(answers)

    return call_all


class TensorBoard:
    """Writes losses, scores and speed for TensorBoard, against evaluations.

    What it has written can be seen after each generation, so it need not be closed.

    Args:
        logdir: Folder of the event files; made if it is missing. A run that goes on after an
            interruption adds a file of its own.

    Raises:
        UserError: If tensorboard is not installed.
    """

    def __init__(self, logdir: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(
                "logs for TensorBoard need the package tensorboard; "
                "pip install 'dfo-lora[tensorboard]'."
            ) from None
        self._writer: Any = SummaryWriter(str(logdir))

    def __call__(self, progress: Progress) -> None:
        """Write one generation."""
        visit, dev = progress.visit, progress.dev
        values = {
            "train/loss": visit.loss,
            "train/best_candidate": visit.best,
            "train/invalid_candidates": visit.invalid,
            "speed/evaluations_per_second": visit.evaluations / max(progress.seconds, 1e-9),
        }
        if progress.new_dev:
            values |= {"dev/loss": dev.loss, "dev/score": dev.score}
            values["dev/best_score"] = progress.best.score
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, visit.evaluations)
        self._writer.flush()


class JSONLines:
    """Appends one JSON object a generation to a file.

    It has the fields of `Visit`, ``seconds``, and with a new look at the development set ``dev``,
    an object with the fields of `DevScore`. A loss that is not finite is null.

    Args:
        path: The file; it and its folder are made if they are missing. A run that goes on after
            an interruption may write a generation again, with the same ``number``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, progress: Progress) -> None:
        """Write one generation."""
        row = plain(progress.visit) | {"seconds": progress.seconds}
        if progress.new_dev:
            row["dev"] = plain(progress.dev)
        append_line(self.path, row)


class EndOnInterrupt:
    """Lets the first Ctrl-C end a run after its generation, with the best deltas so far.

    A context manager and a callback::

        with EndOnInterrupt() as ending:
            result = tune(model, task, callback=ending)

    The second Ctrl-C is a KeyboardInterrupt, as the first is without this.

    Args:
        tell: Called with what to say at the first (default: print).

    Attributes:
        interrupted: Whether Ctrl-C was pressed.

    Raises:
        ValueError: If entered in a thread that is not the main one, which signals go to.
    """

    def __init__(self, tell: Callable[[str], object] = print) -> None:
        self.interrupted = False
        self._tell = tell

    def __enter__(self) -> Self:
        self.interrupted = False
        self._previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        self._tell("Ending after this generation; press Ctrl-C again to quit at once.")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __call__(self, progress: Progress) -> bool:
        """True if the run should end."""
        return self.interrupted
