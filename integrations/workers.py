"""Candidates evaluated by several replicas of the model at once: ``tune(..., workers=...)``.

The population is cut at the borders of the blocks that a single process would evaluate it in, so
losses don't depend on how many workers there are, to the last bit where these have the same kind of
processor and as many threads. `ProcessWorkers` are processes of this machine, `RayWorkers`
(:mod:`integrations.ray_workers`) are spread over a cluster; `Fleet` gives either of them its work.
"""

from __future__ import annotations

import multiprocessing
import operator
import os
import signal
import sys
import tempfile
import threading
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from dfo_core.validation import FloatArray
from integrations.errors import UserError
from integrations.objective import Evaluator
from integrations.replica import Replica, Share, WorkerError, with_traceback
from integrations.spaces import LayerSpace


class WorkerWarning(UserWarning):
    """A worker died; the others do its work."""


class Worker(ABC):
    """One replica of the model in a process of its own.

    Attributes:
        name: What messages call it.
        death: What a call to a worker that has died raises.
    """

    name: str
    death: type[Exception] | tuple[type[Exception], ...]

    @abstractmethod
    def submit(self, share: Share) -> Future[FloatArray]:
        """Start to evaluate a share; raises nothing itself."""


class Workers(ABC):
    """Where replicas run.

    Args:
        count: How many; at least 1.

    Raises:
        UserError: If the count does not fit.
    """

    def __init__(self, count: int) -> None:
        try:
            self.count = operator.index(count)
        except TypeError:
            self.count = 0
        if self.count < 1:
            raise UserError(f"workers must be a whole number of 1 or more; got {count!r}.")

    @abstractmethod
    def start(self, replica: Replica) -> AbstractContextManager[Sequence[Worker]]:
        """Workers with copies of a replica, ended with the context."""


class Fleet:
    """Evaluates candidates with workers, which are started when there is something to evaluate.

    A context; leaving it ends the workers.

    Args:
        workers: Where replicas run.
        evaluator: What they are replicas of; measures how many candidates go into a block.
        spaces: Each layer's search space.

    Attributes:
        lost: Workers that have died.
    """

    def __init__(
        self, workers: Workers, evaluator: Evaluator, spaces: Sequence[LayerSpace]
    ) -> None:
        self.workers = workers
        self.lost = 0
        self._replica = Replica(evaluator, spaces)
        self._alive: list[Worker] | None = None
        self._context = ExitStack()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._context.close()

    def evaluate(
        self, layers: tuple[int, ...], z: FloatArray, placed: Mapping[int, FloatArray]
    ) -> FloatArray:
        """Losses (P,) of candidates z (P, d) of one layer, or of several at once.

        A worker that dies is left out from then on, and another one evaluates its share.

        Args:
            layers: The layers in which they differ.
            z: The candidates; of several layers, what each takes side by side.
            placed: The z (d,) in place of each layer that has a delta.

        Raises:
            WorkerError: If a worker raises, or all have died.
        """
        if self._alive is None:
            self._alive = [*self._context.enter_context(self.workers.start(self._replica))]
        size = self._replica.pass_size(layers, z, placed, self.workers.count)
        waiting = deque(cut(len(z), size, len(self._alive)))
        idle = deque(self._alive)
        busy: dict[Future[FloatArray], tuple[Worker, slice]] = {}
        losses = np.empty(len(z))
        while waiting or busy:
            while waiting and idle:
                worker, chosen = idle.popleft(), waiting.popleft()
                busy[worker.submit(Share(layers, z, chosen, size, placed))] = worker, chosen
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                worker, chosen = busy.pop(future)
                try:
                    losses[chosen] = future.result()
                except worker.death as death:
                    self._leave_out(worker, chosen, death)
                    waiting.append(chosen)
                except WorkerError as error:
                    raise WorkerError(f"{worker.name} failed:\n{error}") from None
                else:
                    idle.append(worker)
        return losses

    def _leave_out(self, worker: Worker, chosen: slice, death: Exception) -> None:
        assert self._alive is not None
        self._alive.remove(worker)
        self.lost += 1
        if not self._alive:
            raise WorkerError(
                f"all workers died, {worker.name} last ({death}); did they run out of memory? "
                "Start again with fewer; a run with checkpoint=... goes on where it was."
            ) from death
        warnings.warn(
            f"{worker.name} died; {len(self._alive)} of {self.workers.count} workers are left, "
            f"and evaluate its {chosen.stop - chosen.start} candidates.",
            WorkerWarning,
            stacklevel=2,
        )


def cut(count: int, size: int, parts: int) -> Iterator[slice]:
    """Cut candidates into parts of about equal size, none of them empty, at borders of blocks.

    Args:
        count: Candidates.
        size: Candidates in a block.
        parts: Most parts.
    """
    borders = [*range(0, count, size), count]
    for blocks in np.array_split(np.arange(len(borders) - 1), parts):
        if len(blocks):
            yield slice(borders[blocks[0]], borders[blocks[-1] + 1])


class ProcessWorkers(Workers):
    """Processes of this machine.

    Weights on a CPU are in memory once for all workers, which map one file. On GPUs, each worker
    takes the next one, see `replica_device`.

    Args:
        count: How many; at least 1.
        threads: CPU threads of each; None shares this process's out.

    Raises:
        UserError: If a number does not fit.
    """

    def __init__(self, count: int, threads: int | None = None) -> None:
        super().__init__(count)
        if threads is not None and threads < 1:
            raise UserError(f"threads must be 1 or more, or None; got {threads}.")
        self.threads = threads

    @contextmanager
    def start(self, replica: Replica) -> Iterator[Sequence[Worker]]:
        """Processes with copies of a replica, ended with the context."""
        model = replica.evaluator.arch.model
        threads = self.threads or max(1, torch.get_num_threads() // self.count)
        processes = [ProcessWorker(number) for number in range(self.count)]
        try:
            # The file can go as soon as all have it open.
            with tempfile.TemporaryDirectory(prefix="dfo-lora-", ignore_cleanup_errors=True) as tmp:
                file = Path(tmp) / "replica.pt"
                replica.save(file)
                loading = [
                    process.load(file, replica_device(model.device, i, self.count), threads)
                    for i, process in enumerate(processes)
                ]
                for process, loaded in zip(processes, loading, strict=True):
                    process.pid = _started(loaded)
            yield processes
        finally:
            for process in processes:
                process.end()


def _started(loaded: Future[int]) -> int:
    try:
        return loaded.result()
    except BrokenExecutor as error:
        raise WorkerError(
            "a worker died while it started. If memory ran out, ask for fewer workers. A script "
            "that uses workers must call tune() under if __name__ == '__main__':, as each worker "
            "imports it."
        ) from error
    except WorkerError as error:
        raise WorkerError(f"a worker could not start:\n{error}") from None


class ProcessWorker(Worker):
    """A process of this machine: an executor of one, so that no other breaks with it."""

    death = BrokenExecutor

    def __init__(self, number: int) -> None:
        self.name = f"worker {number}"
        self.pid: int | None = None
        self._executor = ProcessPoolExecutor(1, mp_context=_context())

    def load(self, file: Path, device: torch.device, threads: int) -> Future[int]:
        """Start the process, let it load its replica, and get its id."""
        return self._executor.submit(with_traceback, _load, file, device, threads)

    def submit(self, share: Share) -> Future[FloatArray]:
        """Start to evaluate a share; raises nothing itself."""
        try:
            return self._executor.submit(with_traceback, _evaluate, share)
        except BrokenExecutor as error:  # it died with nothing to do
            failed: Future[FloatArray] = Future()
            failed.set_exception(error)
            return failed

    def end(self) -> None:
        """End the process, whatever it does."""
        for process in multiprocessing.active_children():
            if process.pid == self.pid:
                process.kill()
        self._executor.shutdown(cancel_futures=True)


def _context() -> Any:
    """How processes start: where it is safe, from one that has imported everything once."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


# What runs in a worker process, which has one replica.

_replica: Replica


def _load(file: Path, device: torch.device, threads: int) -> int:
    global _replica
    # Ctrl-C reaches all processes of a terminal; the main one decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    _replica = Replica.load(file, device, threads)
    return os.getpid()


def end_with_parent() -> None:
    """Wait for the process that started this one, and end when it does, however that came."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _evaluate(share: Share) -> FloatArray:
    return _replica.evaluate(share)


def replica_device(
    device: torch.device,
    number: int,
    count: int,
    available: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> torch.device:
    """Where a worker's replica goes.

    Args:
        device: Where this process's model is.
        number: Which worker it is, from 0.
        count: How many workers there are.
        available: CUDA devices; None asks torch.
        environ: Environment variables. ``LOCAL_RANK`` is set where torchrun started several runs
            on this machine, each of which then has devices of its own as far as there are enough.

    Returns:
        The next CUDA device for each worker, in turns if there are fewer devices, the model's own
        being the first; any other kind of device as it is.
    """
    if device.type != "cuda":
        return device
    rank = environ.get("LOCAL_RANK")
    first = device.index or 0 if rank is None else int(rank) * count
    total = torch.cuda.device_count() if available is None else available
    return torch.device("cuda", (first + number) % total)


def as_workers(workers: Workers | int | str | None) -> Workers | None:
    """What `tune` takes as workers.

    Args:
        workers: A number of processes, ``"ray"`` or ``"ray://host:port"``, `ProcessWorkers`,
            `RayWorkers`, or None.

    Raises:
        UserError: If it is none of them.
    """
    if workers is None or isinstance(workers, Workers):
        return workers
    if isinstance(workers, str):
        from integrations.ray_workers import RayWorkers

        if workers == "ray":
            return RayWorkers()
        if workers.startswith("ray://"):
            return RayWorkers(address=workers)
        raise UserError(
            f"workers must be a number, 'ray', 'ray://host:port' or RayWorkers(...); got "
            f"{workers!r}."
        )
    return ProcessWorkers(workers)
