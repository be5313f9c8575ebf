"""Any of nevergrad's optimizers behind the protocol."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dfo_core.adapters.foreign import ForeignOptimizer, is_from, require_known
from dfo_core.adapters.start import start_point
from dfo_core.bounds import Box
from dfo_core.libraries import require
from dfo_core.validation import FloatArray, as_positive_float, as_positive_int

WRAPPERS = ("optim", "_optimizer")  # what NGOpt and its like chose, what a rescaled one wraps
METAMODEL = "_optim"  # what a metamodel is built upon


class NevergradOptimizer(ForeignOptimizer):
    """A nevergrad optimizer instance over an `ng.p.Array`.

    A batch has `num_workers` candidates, the last one of nevergrad's budget perhaps fewer. If
    nevergrad's choice is its wrapper of pycma, or a metamodel upon that, a batch has the inner
    strategy's population size, since that wrapper silently drops a generation whose points it did
    not get in that number. Should the wrapper drop one all the same, as it does at any error of
    pycma's, the tell that completes it raises a RuntimeError.

    Two kinds of method drop generations of their inner CMA by themselves now and then, here as in
    nevergrad: metamodels, as their own points take the place of the strategy's; and, with
    `num_workers` above 1, chains and portfolios (`ChainCMAPowell`, `BAR`, `Carola3`, ...), which
    hand each inner method only some of the points. As the latter have no population to go by,
    leave `num_workers` at 1 there.

    Its wrappers of pycma's `fmin` (`CmaFmin2`, which `NGOpt` chooses within bounds from some
    budgets and dimensions on) run in a thread of their own and are seeded by the clock: such a run
    cannot be repeated, whatever the seed.

    Args:
        optimizer: The instance. Its budget is its own plan; `budget` here is what is enforced.
        seed: Seed of its parametrization's random state, and of what its methods draw from numpy's
            global state, which is swapped while nevergrad runs. None leaves both as they are.
        budget: Largest number of evaluations.
        target: Loss at which to stop.

    Raises:
        ValueError: If its parametrization is not a single array.
    """

    def __init__(
        self,
        optimizer: Any,
        *,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> None:
        value = optimizer.parametrization.value
        if not isinstance(value, np.ndarray):
            raise ValueError(
                "nevergrad optimizers must search a single array: build them with "
                f"ng.p.Array(shape=(d,)); got a parametrization of {type(value).__name__}"
            )
        super().__init__(value.size, seed=seed, budget=budget, target=target)
        self._private: np.random.RandomState | None = None
        if seed is not None:
            optimizer.parametrization.random_state = _random_state(self.rng)
            self._private = _random_state(self.rng)
        self._ng = optimizer
        self._asked: list[Any] = []
        with _as_global_state(self._private):
            es = _inner_es(optimizer, (*WRAPPERS, METAMODEL))
        self._upon_cma = es is not None
        self.popsize = int(optimizer.num_workers if es is None else es.popsize)

    @staticmethod
    def builds(obj: Any) -> bool:
        """Whether `from_arguments` takes it: nevergrad's optimizer classes and configured ones."""
        is_class = isinstance(obj, type) and obj.__module__.split(".")[0] == "nevergrad"
        return is_class or is_from("nevergrad", obj, "ConfiguredOptimizer")

    @classmethod
    def from_arguments(
        cls,
        method: Any,
        *,
        dim: int,
        x0: Any = None,
        sigma0: float | None = None,
        bounds: Any = None,
        popsize: int | None = None,
        seed: Any = None,
        budget: int | None = None,
        target: float | None = None,
    ) -> NevergradOptimizer:
        """Build the nevergrad optimizer too.

        Args:
            method: A name of `ng.optimizers.registry`, or one of nevergrad's optimizer classes or
                configured optimizers.
            dim: Number of coordinates.
            x0: (d,) start, nevergrad's `init`; None for the middle of finite bounds,
                else zeros or what the bounds have next to them.
            sigma0: Standard deviation of nevergrad's mutation; None for its own choice. Its CMA
                begins with 0.3 of it within bounds, 0.15 from 18 coordinates on.
            bounds: (lower, upper) or None.
            popsize: nevergrad's `num_workers`: candidates asked for together; None for 1, which
                suits every method. Only a wish, for nevergrad as well: methods that cannot be
                asked in parallel stay at 1, and those upon CMA at its population size (see the
                class), which is at least this.
            seed: Seed of the parametrization's random state.
            budget: Largest number of evaluations; many of nevergrad's methods plan with it.
            target: Loss at which to stop.

        Returns:
            The adapter.

        Raises:
            ImportError: If nevergrad is not installed.
            ValueError: If nevergrad has no optimizer of that name, or the one it has plans with
                its budget and none is given.
        """
        rng = np.random.default_rng(seed)
        # Nevergrad draws from the global state when it is imported and where it builds bounds too.
        with _as_global_state(_random_state(rng)):
            ng = require("nevergrad", "nevergrad", "a nevergrad optimizer")
            if isinstance(method, str):
                registry = ng.optimizers.registry
                where = "ng.optimizers.registry lists all of them"
                require_known("nevergrad", method, list(registry), where)
                method = registry[method]
            array = _array(ng, dim, x0, sigma0, bounds)
            array.random_state = _random_state(rng)
            workers = 1 if popsize is None else as_positive_int("popsize", popsize)
            if getattr(method, "no_parallelization", False):
                workers = 1
            try:
                optimizer = method(array, budget=budget, num_workers=workers)
            except AssertionError as error:
                if budget is not None:
                    raise
                raise _needs_budget(method, error) from error
        try:
            return cls(optimizer, seed=rng, budget=budget, target=target)
        except AssertionError as error:
            if budget is not None:
                raise
            raise _needs_budget(method, error) from error

    def _sample(self) -> FloatArray:
        n = self.popsize
        if not self._upon_cma and self._ng.budget is not None:
            left = int(self._ng.budget) - self._ng.num_ask  # some methods raise beyond their budget
            n = left if 0 < left < n else n
        with _as_global_state(self._private):
            self._asked = [self._ng.ask() for _ in range(n)]
        return np.array([np.ravel(candidate.value) for candidate in self._asked])

    def _update(self, x: FloatArray, losses: FloatArray) -> None:
        with _as_global_state(self._private):
            before = _inner_es(self._ng, WRAPPERS)
            generation = getattr(before, "countiter", None)
            for candidate, loss in zip(self._asked, self._finite(losses), strict=True):
                self._ng.tell(candidate, loss)
            after = _inner_es(self._ng, WRAPPERS)  # another one if nevergrad has restarted it
        if generation is not None and after is before and after.countiter == generation:
            raise RuntimeError(
                f"nevergrad's {self._ng.name} swallowed an error of pycma's and dropped the "
                f"generation of {len(x)} candidates; drive it through this adapter alone, or use "
                'pycma itself: as_optimizer("pycma", ...)'
            )


def _needs_budget(method: Any, error: AssertionError) -> ValueError:
    """What to raise in place of an assertion of nevergrad's, which a budget would have met."""
    name = getattr(method, "name", None) or getattr(method, "__name__", method)
    return ValueError(f"nevergrad's {name} plans with its budget: give budget=... ({error})")


def _inner_es(optimizer: Any, through: Collection[str]) -> Any:
    """The strategy of pycma's that it is or holds in one of these attributes, or None."""
    inner = optimizer
    while inner is not None:
        es = getattr(inner, "es", None)
        if es is not None:
            return es
        wrapped = (getattr(inner, name, None) for name in through)
        inner = next((each for each in wrapped if each is not None and each is not inner), None)
    return None


def _array(ng: Any, dim: int, x0: Any, sigma0: float | None, bounds: Any) -> Any:
    """The search space as nevergrad's parametrization."""
    box = Box.parse((None, None) if bounds is None else bounds, dim)
    init = start_point(dim, x0, box)
    for side in (box.lower, box.upper):
        if np.isinf(side).any() and not np.isinf(side).all():
            raise ValueError(
                "nevergrad takes a bound for all coordinates or for none; got "
                f"{side.tolist()}. Give finite bounds, or leave that side open everywhere"
            )
    limits = [None if np.isinf(side).all() else side for side in (box.lower, box.upper)]
    array = ng.p.Array(init=init, lower=limits[0], upper=limits[1])
    if sigma0 is not None:
        array.set_mutation(sigma=as_positive_float("sigma0", sigma0))
    return array


def _random_state(rng: np.random.Generator) -> np.random.RandomState:
    """A generator of numpy's old interface, as nevergrad wants it, seeded from ours."""
    return np.random.RandomState(rng.integers(2**32, dtype=np.uint32))


@contextmanager
def _as_global_state(private: np.random.RandomState | None) -> Iterator[None]:
    """Let `private` stand in for numpy's global generator; None changes nothing."""
    if private is None:
        yield
        return
    outside = np.random.get_state()  # noqa: NPY002
    np.random.set_state(private.get_state())  # noqa: NPY002
    try:
        yield
    finally:
        private.set_state(np.random.get_state())  # noqa: NPY002
        np.random.set_state(outside)  # noqa: NPY002
