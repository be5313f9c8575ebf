"""The base class of all optimizers: it owns everything that algorithms share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar

import numpy as np

from dfo_core.protocol import Batch, Result
from dfo_core.state import check_shared, generator, same
from dfo_core.validation import FloatArray, IntArray, as_float_array, as_points, as_positive_int

STATE_FORMAT = 2


class Optimizer(ABC):
    """Base class of every optimizer: candidates out, losses in, losses are minimised.

    The loop is

        while not opt.stop():
            batch = opt.ask()
            opt.tell(batch, losses_of(batch.x))
        opt.result

    Losses may come in parts, late and in any order. While a generation is incomplete, `ask`
    returns those of its candidates that have no loss yet, under the same ids: nothing is lost
    when a worker dies, and a resumed run asks again for exactly what was under way. (Two callers
    that both ask get the same candidates; share one batch between them instead. Like numpy's
    generators, an optimizer is for one thread at a time.)

    NaN and infinite losses are counted in `Result.n_invalid`, rank behind every finite loss, and
    never enter an average. The last generation is cut so that no more than `budget` candidates
    are ever handed out.

    An algorithm writes two methods, `_sample` and `_update`, and names the attributes that make
    up its state in `_state_fields`.

    Args:
        dim: Number of coordinates.
        seed: What `numpy.random.default_rng` takes; None draws one from the operating system.
            All randomness comes from this one generator, `rng`; numpy's global state is untouched.
        budget: Largest number of evaluations; None for no limit. May be changed at any time
            through the attribute `budget`.
        target: `stop` holds once the best loss is at or below this number; None for no target.

    Attributes:
        accepts_foreign: Whether `tell_foreign` is understood.
        supports_state: Whether `state_dict` and `load_state_dict` work.
    """

    accepts_foreign: ClassVar[bool] = False
    supports_state: ClassVar[bool] = True

    # Attributes saved and restored as they are: numbers, strings, None, arrays, lists of them.
    _state_fields: ClassVar[tuple[str, ...]] = ()
    _shared_fields: ClassVar[tuple[str, ...]] = (
        *("_x", "_losses", "_told", "_first_id", "_handed_out"),
        *("_best_x", "_best_fun", "_nfev", "_nit", "_n_invalid"),
    )

    def __init__(
        self,
        dim: int,
        *,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> None:
        self.dim = as_positive_int("dim", dim)
        self.budget = budget
        self.target = None if target is None else float(target)
        self.rng = np.random.default_rng(seed)
        # The current batch: candidate i has id _first_id + i, and counts as told once _told[i].
        self._x: FloatArray = np.empty((0, self.dim))
        self._losses: FloatArray = np.empty(0)
        self._told = np.empty(0, dtype=np.bool_)
        self._first_id = 0
        self._handed_out = 0  # of the current batch, from its first; a budget may hold some back
        self._best_x: FloatArray = np.full(self.dim, np.nan)
        self._best_fun = np.inf
        self._nfev = 0
        self._nit = 0
        self._n_invalid = 0

    @property
    def budget(self) -> int | None:
        """Largest number of evaluations; None for no limit."""
        return self._budget

    @budget.setter
    def budget(self, budget: int | None) -> None:
        self._budget = None if budget is None else as_positive_int("budget", budget)

    # -- what an algorithm writes ------------------------------------------------------------

    @abstractmethod
    def _sample(self) -> FloatArray:
        """Return the next points to evaluate, (n, dim) with n >= 1."""

    @abstractmethod
    def _update(self, x: FloatArray, losses: FloatArray) -> None:
        """Take in a complete batch, as `_sample` gave it.

        Args:
            x: (n, dim) the points.
            losses: (n,) their losses; +inf stands for NaN and for both infinities.
        """

    def _stop_reasons(self) -> dict[str, Any]:
        """Return the algorithm's own reasons to stop; empty to go on."""
        return {}

    def _inject(self, x: FloatArray, losses: FloatArray) -> None:
        """Take in foreign points (n, dim) with finite losses (n,); see `tell_foreign`."""
        raise NotImplementedError

    def _settings(self) -> dict[str, Any]:
        """Return what must be equal in two optimizers for one to load the other's state."""
        return {"dim": self.dim}

    def _get_state(self) -> dict[str, Any]:
        return {name: deepcopy(getattr(self, name)) for name in self._state_fields}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        for name in self._state_fields:
            setattr(self, name, deepcopy(state[name]))

    # -- ask and tell ------------------------------------------------------------------------

    def ask(self) -> Batch:
        """Return the candidates that need a loss.

        A new batch if every candidate handed out has been told, otherwise those still missing.
        How many there are is the algorithm's choice and may vary from call to call.

        Returns:
            The candidates; a copy that the caller may change.

        Raises:
            ValueError: If the budget is spent.
        """
        left = None if self.budget is None else self.budget - self._nfev
        if left is not None and left <= 0:
            raise ValueError(
                f"the budget of {self.budget} evaluations is spent; "
                "check stop() before ask(), or raise the attribute budget"
            )
        if self._told.all():
            self._first_id += len(self._told)
            self._x = as_points("points sampled", self._sample(), self.dim)
            self._losses = np.full(len(self._x), np.nan)
            self._told = np.zeros(len(self._x), dtype=np.bool_)
            self._handed_out = 0
        waiting = np.flatnonzero(~self._told)[:left]
        self._handed_out = max(self._handed_out, int(waiting[-1]) + 1)
        return Batch(self._x[waiting], self._first_id + waiting.astype(np.int64))

    def tell(self, batch: Batch | Any, losses: Any) -> None:
        """Report losses; parts of a batch, late and in any order, are fine.

        Args:
            batch: A Batch, or ids (n,) as `Batch.ids` has them.
            losses: (n,) real numbers in the batch's order; NaN or an infinity marks a candidate
                that could not be evaluated.

        Raises:
            ValueError: If the lengths differ, an id was never handed out, or a candidate is told
                a second time. Nothing is taken in then.
        """
        ids = np.atleast_1d(np.asarray(batch.ids if isinstance(batch, Batch) else batch))
        values = np.atleast_1d(as_float_array("losses", losses))
        if ids.size and ids.dtype.kind not in "iu":
            raise ValueError(f"ids must be integers; got {ids.dtype}. Pass the batch, or batch.ids")
        if ids.ndim != 1 or values.shape != ids.shape:
            raise ValueError(
                f"losses must have one number a candidate: shape ({ids.size},); got {values.shape}"
            )
        if not ids.size:
            return
        index = self._index_of(ids)
        self._losses[index] = values
        self._told[index] = True
        self._nfev += len(ids)
        self._n_invalid += int(np.count_nonzero(~np.isfinite(values)))
        self._note_best(index)
        if self._told.all():
            self._nit += 1
            self._update(self._x, np.where(np.isfinite(self._losses), self._losses, np.inf))

    def _index_of(self, ids: IntArray) -> IntArray:
        """Return the rows of the current batch that `ids` stand for, all of them still untold."""
        index: IntArray = ids.astype(np.int64) - self._first_id
        unknown = (index < 0) | (index >= self._handed_out)
        if unknown.any():
            first = int(ids[unknown][0])
            known = f"{self._first_id} to {self._first_id + self._handed_out - 1}"
            if 0 <= first < self._first_id:
                raise ValueError(f"candidate {first} was told before; its generation is complete")
            have = f"this optimizer waits for ids {known}" if self._handed_out else "call ask first"
            raise ValueError(f"candidate {first} was never handed out; {have}")
        if np.bincount(index).max() > 1:
            raise ValueError(f"each id may appear once in a tell; got {ids.tolist()}")
        twice = self._told[index]
        if twice.any():
            raise ValueError(f"candidate {int(ids[twice][0])} was told before; tell it once only")
        return index

    def tell_foreign(self, x: Any, losses: Any) -> None:
        """Report losses of points this optimizer did not ask for: "x now has the loss f".

        The best point is updated; if `x` is the best point itself, its loss is replaced even by a
        worse one, because the newest evaluation is the one that holds. What else becomes of the
        points is the algorithm's matter and said in its docstring. Foreign evaluations count
        neither in `nfev` nor against the budget. Points with a NaN or infinite loss are ignored.

        Args:
            x: (n, dim) or (dim,), within the bounds if there are any.
            losses: (n,), or one number for one point.

        Raises:
            NotImplementedError: If `accepts_foreign` is False.
            ValueError: If the shapes do not fit.
        """
        if not self.accepts_foreign:
            raise NotImplementedError(
                f"{type(self).__name__} does not take points it did not ask for "
                "(accepts_foreign is False); tell it its own candidates only"
            )
        points = as_points("foreign points", x, self.dim)
        values = np.atleast_1d(as_float_array("losses", losses))
        if values.shape != (len(points),):
            raise ValueError(f"losses must have shape ({len(points)},); got {values.shape}")
        finite = np.isfinite(values)
        points, values = points[finite], values[finite]
        self._check_foreign(points)
        for point, value in zip(points, values, strict=True):
            if np.array_equal(point, self._best_x):
                self._best_fun = float(value)
        self._keep_best(points, values)
        if len(points):
            self._inject(points, values)

    def _check_foreign(self, x: FloatArray) -> None:  # noqa: B027 (without bounds all points fit)
        """Raise ValueError if foreign points (n, dim) are outside the search space."""

    def _note_best(self, index: IntArray) -> None:
        """Take in the best of the rows of the current batch that were just told."""
        self._keep_best(self._x[index], self._losses[index])

    def _keep_best(self, x: FloatArray, losses: FloatArray) -> None:
        losses = np.where(np.isfinite(losses), losses, np.inf)
        if losses.size:
            i = int(losses.argmin())
            if losses[i] < self._best_fun:
                self._best_x, self._best_fun = x[i].copy(), float(losses[i])

    def reset_best(self) -> None:
        """Forget the best point, because the objective has changed and its loss no longer holds.

        Needed where the objective shifts between generations (one layer of a network, tuned in
        turn with the others: its loss changes when they do). The search distribution, the counts
        and the candidates under way stay. Points whose loss under the new objective is known can
        be told with `tell_foreign` then.
        """
        self._best_x = np.full(self.dim, np.nan)
        self._best_fun = np.inf

    # -- what is known -----------------------------------------------------------------------

    @property
    def remembered(self) -> FloatArray:
        """Points (k, dim) with whose losses new candidates are compared, beside the best; a copy.

        Where the objective shifts between generations their losses no longer hold: evaluate them
        anew and tell them with `tell_foreign`. Empty for algorithms without such a memory.
        """
        return np.empty((0, self.dim))

    @property
    def pending(self) -> int:
        """Number of candidates of the current batch without a loss, whatever the budget."""
        return int(np.count_nonzero(~self._told))

    @property
    def nfev(self) -> int:
        """Number of candidates told so far."""
        return self._nfev

    @property
    def nit(self) -> int:
        """Number of completed generations."""
        return self._nit

    def stop(self) -> dict[str, Any]:
        """Return why to stop: a mapping from reason to threshold, empty (false) to go on.

        "budget" and "target" are common to all; the algorithm's own reasons are in its docstring.
        Only a spent budget is binding; after any other reason `ask` still works.
        """
        reasons = self._stop_reasons()
        if self.budget is not None and self._nfev >= self.budget:
            reasons["budget"] = self.budget
        if self.target is not None and self._best_fun <= self.target:
            reasons["target"] = self.target
        return reasons

    @property
    def result(self) -> Result:
        """What is known now; a snapshot that later tells do not change."""
        return Result(
            x=self._best_x.copy(),
            fun=self._best_fun,
            nfev=self._nfev,
            nit=self.nit,
            stop=self.stop(),
            n_invalid=self._n_invalid,
        )

    # -- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, including the random generator and candidates under way.

        An optimizer built with the same arguments that loads it continues bit for bit, at any
        moment between ask and tell. `dfo_core.save_state` writes it to a file.

        Returns:
            A nested dictionary of numbers, strings, lists and arrays; a copy.

        Raises:
            NotImplementedError: If `supports_state` is False.
        """
        self._require_state()
        return {
            "format": STATE_FORMAT,
            "algorithm": type(self).__name__,
            "settings": deepcopy(self._settings()),
            "generator": deepcopy(dict(self.rng.bit_generator.state)),
            "shared": {name: deepcopy(getattr(self, name)) for name in self._shared_fields},
            "own": self._get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned.

        `budget` and `target` are not part of the state: this optimizer keeps its own.

        Args:
            state: The state, of an optimizer of the same class and settings.

        Raises:
            NotImplementedError: If `supports_state` is False.
            ValueError: If the state is of another algorithm, other settings or another format
                (the optimizer is as before then), or damaged (it is of no more use then).
        """
        self._require_state()
        keys = {"format", "algorithm", "settings", "generator", "shared", "own"}
        if state.get("format") != STATE_FORMAT or not keys <= state.keys():
            raise ValueError(
                f"state must be of format {STATE_FORMAT} and hold {', '.join(sorted(keys))}; got "
                f"format {state.get('format')!r}. Pass what state_dict() returned"
            )
        if state["algorithm"] != type(self).__name__:
            raise ValueError(
                f"state is of {state['algorithm']}; load it into one, not {type(self).__name__}"
            )
        ours, theirs = self._settings(), state["settings"]
        for name in sorted(ours.keys() | theirs.keys()):
            if not same(ours.get(name), theirs.get(name)):
                raise ValueError(
                    f"state has {name}={theirs.get(name)!r}, this optimizer has "
                    f"{name}={ours.get(name)!r}; build it with the same {name}"
                )
        try:
            check_shared(state["shared"], self.dim)
            rng = generator(state["generator"])
            self._set_state(state["own"])
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"state is damaged ({type(error).__name__}: {error}); build a new optimizer and "
                "load a state as state_dict() returned it"
            ) from error
        self.rng = rng
        for name in self._shared_fields:
            setattr(self, name, deepcopy(state["shared"][name]))

    def _require_state(self) -> None:
        if not self.supports_state:
            raise NotImplementedError(
                f"{type(self).__name__} cannot be saved without pickle (supports_state is False); "
                "use one of dfo_core's own optimizers where a run must be resumable"
            )
