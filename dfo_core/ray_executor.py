"""An executor that runs calls as ray tasks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from dfo_core.libraries import require


class RayExecutor(Executor):
    """ray's tasks as a `concurrent.futures.Executor`, for `minimize(..., executor=RayExecutor())`.

    ray ships no executor of its own (its `ray.util.multiprocessing.Pool` and joblib backend are
    something else), but its references know how to become a `concurrent.futures.Future`. A task
    whose worker dies is run again as often as the option `max_retries` says, three times by
    default, and then fails alone.

    Args:
        options: Options of every task, as `ray.remote` takes them: `num_cpus`, `num_gpus`,
            `max_retries`, ...

    Raises:
        ImportError: If ray is not installed.
    """

    def __init__(self, **options: Any) -> None:
        self._ray = require("ray", "ray", "RayExecutor")
        self._call = self._ray.remote(_call)
        if options:
            self._call = self._call.options(**options)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start `fn(*args, **kwargs)` in a task."""
        future: Future[Any] = self._call.remote(fn, args, kwargs).future()
        return future


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)
