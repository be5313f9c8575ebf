"""Workers spread over a Ray cluster: one actor, one replica of the model."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from dfo_core.libraries import require
from dfo_core.validation import FloatArray
from integrations.errors import UserError
from integrations.replica import Replica, Share, WorkerError, with_traceback
from integrations.workers import Worker, Workers


class RayWorkers(Workers):
    """Ray actors with a replica each.

    The model goes into Ray's object store once and from there to each node; dfo-lora has to be
    installed on all of them. Actors run on the kind of device that this process's model is on.

    Args:
        count: How many; None for one a GPU of the cluster, or one a node if the model is on a CPU.
        address: The cluster, as `ray.init` takes it; None for the one this process is connected
            to, the one that ``RAY_ADDRESS`` names or that runs on this machine, or else a new one.
        options: Options of each actor, as Ray takes them: ``num_cpus`` (default 1), which is also
            its number of threads, ``num_gpus`` (default 1 if the model is on a GPU), ``resources``,
            ``runtime_env``, ...

    Raises:
        UserError: If Ray is missing, or the count does not fit.
    """

    def __init__(
        self, count: int | None = None, address: str | None = None, **options: Any
    ) -> None:
        try:
            self._ray = require("ray", "dfo-lora[distributed]", "a run with Ray workers")
        except ImportError as error:
            raise UserError(f"{error}.") from None
        super().__init__(1 if count is None else count)
        self.every = count is None
        self.address = address
        self.options = options

    @contextmanager
    def start(self, replica: Replica) -> Iterator[Sequence[Worker]]:
        """Actors with copies of a replica, ended with the context.

        Raises:
            UserError: If the cluster cannot be reached or is too small.
        """
        ray = self._ray
        connected = ray.is_initialized()
        if not connected:
            try:
                ray.init(address=self.address, log_to_driver=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"the Ray cluster {self.address!r} cannot be reached: {error}"
                ) from error
        actors: list[Any] = []
        try:
            on_gpu = replica.evaluator.arch.model.device.type == "cuda"
            options = {"num_cpus": 1, "num_gpus": int(on_gpu)} | self.options
            if self.every:
                self.count = self._as_many_as_fit(on_gpu)
            self._check_size(options)
            actor = ray.remote(_Actor).options(**options)
            actors += [actor.remote() for _ in range(self.count)]
            workers = [RayWorker(ray, number, a) for number, a in enumerate(actors)]
            self._load(workers, replica, on_gpu, max(1, int(options["num_cpus"])))
            yield workers
        finally:
            for a in actors:
                ray.kill(a)
            if not connected:
                ray.shutdown()

    def _as_many_as_fit(self, on_gpu: bool) -> int:
        if on_gpu:
            return max(1, int(self._ray.cluster_resources().get("GPU", 0)))
        return sum(node["Alive"] for node in self._ray.nodes())

    def _check_size(self, options: Mapping[str, Any]) -> None:
        """Refuse what would wait for ever."""
        needs = Counter(
            {"CPU": options["num_cpus"], "GPU": options["num_gpus"], **options.get("resources", {})}
        )
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        needed = {name: amount for name, amount in needs.items() if amount}

        def room(node: Mapping[str, float], names: Iterable[str]) -> int:
            return min(
                (int(node.get(name, 0) / needed[name]) for name in names), default=sys.maxsize
            )

        for names in (*([name] for name in needed), needed):
            if sum(room(node, names) for node in nodes) < self.count:
                wanted = " and ".join(f"{needed[name]} {name}" for name in names)
                has = " and ".join(f"{sum(node.get(n, 0) for node in nodes):g}" for n in names)
                raise UserError(
                    f"{self.count} workers of {wanted} are more than the Ray cluster's {has} on "
                    f"{len(nodes)} nodes have room for; ask for fewer, or for less with "
                    "RayWorkers(count, num_cpus=...)."
                )

    def _load(
        self, workers: Sequence[RayWorker], replica: Replica, on_gpu: bool, threads: int
    ) -> None:
        file = io.BytesIO()
        replica.save(file)
        data = self._ray.put(np.frombuffer(file.getbuffer(), np.uint8))
        loading = [worker.load(data, on_gpu, threads) for worker in workers]
        for worker, loaded in zip(workers, loading, strict=True):
            failures: tuple[type[Exception], ...] = (*worker.death, WorkerError)
            try:
                loaded.result()
            except failures as error:
                raise WorkerError(f"{worker.name} could not start:\n{error}") from error


class RayWorker(Worker):
    """A Ray actor."""

    death: tuple[type[Exception], ...]

    def __init__(self, ray: Any, number: int, actor: Any) -> None:
        self.name = f"Ray worker {number}"
        self.death = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
        self._actor = actor

    def load(self, data: Any, on_gpu: bool, threads: int) -> Future[None]:
        """Let the actor load its replica from the object store."""
        future: Future[None] = self._actor.load.remote(data, on_gpu, threads).future()
        return future

    def submit(self, share: Share) -> Future[FloatArray]:
        """Start to evaluate a share; raises nothing itself."""
        future: Future[FloatArray] = self._actor.evaluate.remote(share).future()
        return future


class _Actor:
    """What runs on the cluster."""

    replica: Replica

    def load(self, data: np.ndarray, on_gpu: bool, threads: int) -> None:
        # Ray shows an actor none but its own GPUs, so the first is the one.
        device = torch.device("cuda:0" if on_gpu else "cpu")
        self.replica = with_traceback(Replica.load, io.BytesIO(data.data), device, threads)

    def evaluate(self, share: Share) -> FloatArray:
        return with_traceback(self.replica.evaluate, share)
