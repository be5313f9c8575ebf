"""What passes between an optimizer and its caller: candidates to evaluate, and the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dfo_core.validation import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class Batch:
    """Candidates to evaluate.

    `batch[index]` with a slice, a mask or an array of positions is a smaller Batch, so that parts
    can be evaluated in different places and told on their own.

    Attributes:
        x: (n, d) float64, one candidate a row.
        ids: (n,) int64, unique within one optimizer's life and increasing.
    """

    x: FloatArray
    ids: IntArray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Batch:
        ids = self.ids[index]
        if np.ndim(ids) == 0:  # one position: a batch of one, not a bare number
            return Batch(self.x[index][np.newaxis], np.atleast_1d(ids))
        return Batch(self.x[index], ids)


@dataclass(frozen=True, eq=False)
class Result:
    """What an optimizer knows at one moment.

    Attributes:
        x: (d,) the best point told so far; all NaN while no finite loss is known.
        fun: Its loss; +inf while no finite loss is known.
        nfev: Number of candidates told, invalid ones included.
        nit: Number of completed generations.
        stop: Stop reasons as `Optimizer.stop` gives them; empty while running.
        n_invalid: How many of the losses told were NaN or infinite.
    """

    x: FloatArray
    fun: float
    nfev: int
    nit: int
    stop: Mapping[str, Any]
    n_invalid: int
