"""The methods that can be compared, as the paper's Table 1 names them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from integrations.errors import unknown
from integrations.methods.trial import Learner, Trial

FREE, BASED = "gradient-free", "gradient-based"


@dataclass(frozen=True)
class Method:
    """A method and where it comes from.

    Attributes:
        title: Its name in tables.
        kind: ``"gradient-free"`` or ``"gradient-based"``.
        learner: ``module:class`` within this package; imported when it is used, as some need
            libraries that others do without.
        dev_every: Passes over the training set between looks at the development set.
        source: The paper.
        settings: Arguments of the class besides the trial, where they are not its defaults.
    """

    title: str
    kind: str
    learner: str
    dev_every: float
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self, trial: Trial) -> Learner:
        """The learner for one trial.

        Raises:
            UserError: If the method does not suit the model or needs a package that is missing.
        """
        module, _, name = self.learner.partition(":")
        cls = getattr(importlib.import_module(f"integrations.methods.{module}"), name)
        learner: Learner = cls(trial, **self.settings)
        return learner


METHODS: Mapping[str, Method] = {
    "c-lora": Method(
        "C-LoRA", FREE, "lora:LayerwiseLora", 50, "Jin, Liu & Tan 2024, arXiv 2403.01754",
        {"optimizer": "cma-es"},
    ),
    "f-lora": Method(
        "F-LoRA", FREE, "lora:LayerwiseLora", 50, "Jin, Liu & Tan 2024, arXiv 2403.01754",
        {"optimizer": "lotfwa"},
    ),
}  # fmt: skip
"""By the names that `compare` takes, in the order of its tables."""


def choose_methods(names: Sequence[str] | str) -> tuple[str, ...]:
    """Methods by name, in the order of `METHODS`.

    Args:
        names: Names in `METHODS`, or ``"all"``, ``"gradient-free"`` or ``"gradient-based"``.

    Raises:
        UserError: If a name is unknown.
    """
    names = [names] if isinstance(names, str) else names
    chosen: set[str] = set()
    for name in names:
        if name in ("all", FREE, BASED):
            chosen |= {key for key, method in METHODS.items() if name in ("all", method.kind)}
        elif name in METHODS:
            chosen.add(name)
        else:
            raise unknown("method", name, ["all", FREE, BASED, *METHODS])
    return tuple(name for name in METHODS if name in chosen)
