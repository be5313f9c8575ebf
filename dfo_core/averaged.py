"""Noisy objectives: each candidate is evaluated several times and judged by the mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dfo_core.optimizer import Optimizer
from dfo_core.validation import BoolArray, FloatArray, IntArray, as_positive_int


class Averaged(Optimizer):
    """An optimizer whose candidates are each asked `samples` times and told their mean loss.

        opt = Averaged(CMAES(np.zeros(10), seed=0), samples=5)
        minimize(noisy, method=opt, budget=5000)

    The mean of k independent losses has 1 / sqrt(k) of their standard deviation, at k times the
    cost. Copies of a candidate follow each other in a batch, each under an id of its own, so they
    can be evaluated and told like any others. Counts and the budget are of evaluations; the
    optimizer inside sees one candidate where k are asked for, and a k-th of the budget.

    A NaN or infinite loss never enters a mean: the candidate's other losses make it alone. Only a
    candidate without a finite loss is told as invalid.

    The best point is that of the lowest mean, taken once all its losses are told. As the lowest of
    many noisy means it is lower than the point's true loss.

    Foreign points (`tell_foreign`), `remembered` and stop reasons are those of the optimizer
    inside; `accepts_foreign` and `supports_state` are what it can.

    Args:
        optimizer: The optimizer, before its first `ask`.
        samples: Evaluations k of each candidate.
        budget: Largest number of evaluations; None for k times the optimizer's own budget.
        target: Mean loss at which to stop; None for the optimizer's own target.

    Raises:
        TypeError: If `optimizer` is none of this package; `as_optimizer` makes one of others.
        ValueError: If it is in use already, or samples is no whole number above zero.
    """

    _state_fields = ("_ids",)

    def __init__(
        self,
        optimizer: Optimizer,
        samples: int,
        *,
        budget: int | None = None,
        target: float | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be an Optimizer; got {type(optimizer).__name__}. "
                "as_optimizer makes one of another library's"
            )
        if optimizer.nfev or optimizer.pending:
            raise ValueError("optimizer must not have been asked yet; pass a new one")
        self.samples = as_positive_int("samples", samples)
        if budget is None and optimizer.budget is not None:
            budget = self.samples * optimizer.budget
        target = optimizer.target if target is None else target
        # A seed that is the same always, as nothing is drawn here and states are to be equal.
        super().__init__(optimizer.dim, seed=0, budget=budget, target=target)
        optimizer.target = None
        self._inner = optimizer
        self._ids: IntArray = np.empty(0, dtype=np.int64)  # the candidates under way, inside

    def _sample(self) -> FloatArray:
        self._pass_budget_on()
        batch = self._inner.ask()
        self._ids = batch.ids
        return batch.x.repeat(self.samples, axis=0)

    def _update(self, x: FloatArray, losses: FloatArray) -> None:
        self._pass_budget_on()
        self._inner.tell(self._ids, self._means(losses))

    def _pass_budget_on(self) -> None:
        """Budgets may be changed at any time, and some optimizers plan with theirs."""
        self._inner.budget = None if self.budget is None else -(-self.budget // self.samples)

    def _means(self, losses: FloatArray) -> FloatArray:
        """Mean of each candidate's finite losses, (n,) of (n * samples,); NaN without any."""
        values = losses.reshape(-1, self.samples)
        finite = np.isfinite(values)
        first = values[np.arange(len(values)), finite.argmax(axis=1)]
        first[~finite.any(axis=1)] = np.nan
        # As deviations from the first, so that the mean of equal losses is exactly that loss, and
        # by halves, as a deviation may be twice as large as a loss can be.
        half = np.where(finite, values, first[:, np.newaxis]) / 2 - first[:, np.newaxis] / 2
        shift = (half / np.maximum(finite.sum(axis=1), 1)[:, np.newaxis]).sum(axis=1)
        means: FloatArray = first + shift + shift
        return means

    def _note_best(self, index: IntArray) -> None:
        complete: BoolArray = np.all(self._told.reshape(-1, self.samples), axis=1)
        rows = np.unique(index // self.samples)
        rows = rows[complete[rows]]
        self._keep_best(self._x[rows * self.samples], self._means(self._losses)[rows])

    def _stop_reasons(self) -> dict[str, Any]:
        reasons = self._inner.stop()
        reasons.pop("budget", None)  # told from here, in evaluations
        return reasons

    # -- what the optimizer inside does --------------------------------------------------------

    @property
    def accepts_foreign(self) -> bool:  # type: ignore[override]
        """Whether the optimizer inside takes foreign points."""
        return self._inner.accepts_foreign

    @property
    def supports_state(self) -> bool:  # type: ignore[override]
        """Whether the state of the optimizer inside can be saved."""
        return self._inner.supports_state

    def _check_foreign(self, x: FloatArray) -> None:
        self._inner._check_foreign(x)

    def _inject(self, x: FloatArray, losses: FloatArray) -> None:
        self._inner.tell_foreign(x, losses)

    def reset_best(self) -> None:
        """Forget the best point, here and inside."""
        super().reset_best()
        self._inner.reset_best()

    @property
    def remembered(self) -> FloatArray:
        """Points (k, dim) that the optimizer inside compares new candidates with; a copy."""
        return self._inner.remembered

    @property
    def nit(self) -> int:
        """Number of completed generations of the optimizer inside."""
        return self._inner.nit

    # -- state ---------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        inside = {f"optimizer_{name}": value for name, value in self._inner._settings().items()}
        inside |= {"samples": self.samples, "optimizer": type(self._inner).__name__}
        return {**super()._settings(), **inside}

    def _get_state(self) -> dict[str, Any]:
        return {**super()._get_state(), "inner": self._inner.state_dict()}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        self._inner.load_state_dict(state["inner"])
        super()._set_state(state)
