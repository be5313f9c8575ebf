"""The data set that comes with the package, for the demo."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import as_file, files

from integrations.tasks import Task, load_task

SHOTS = 32
DEMO_BUDGET = 300
"""Evaluations that take about 5 minutes on 2 cores."""


def demo_task(seed: int = 0) -> Task:
    """A small English sentiment task: 32 training and 32 development examples a class.

    Patterns and label words are those of SST-2.

    Args:
        seed: Draws the training and development examples.
    """
    with as_file(files("integrations") / "demo_data") as folder:
        return replace(load_task("sst2", folder, shots=SHOTS, seed=seed), name="demo sentiment")
