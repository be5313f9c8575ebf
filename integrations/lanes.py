"""Candidates side by side on a CPU: each on a replica of the model, which shares its weights.

Products of the size that one candidate needs do not keep several cores busy all the time; several
candidates do.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import PreTrainedModel

from integrations.architectures import Architecture, describe

Work = Callable[[Architecture, int], None]
"""Does piece number i on a model."""


def replicate(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same parameters and buffers in modules of its own, in evaluation mode."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    replica = copy.deepcopy(model, shared)
    replica.train(False)
    return replica


class Lanes:
    """A model and replicas of it that work at the same time.

    Args:
        arch: The model.
    """

    def __init__(self, arch: Architecture) -> None:
        self._archs = [arch]

    def __getstate__(self) -> dict[str, Any]:
        """Without the replicas, which are made where they are needed."""
        return {"_archs": self._archs[:1]}

    def run(self, work: Work, pieces: int, most: int) -> None:
        """Do a number of pieces, each once, in any order.

        As many at a time as PyTorch has threads for its operations, each with one thread; those
        that are left over share the threads evenly.

        Args:
            work: Called with a model that nobody else uses meanwhile, and the piece's number.
            pieces: How many there are.
            most: Most at a time.
        """
        threads = torch.get_num_threads()
        width = min(threads, most) if self._archs[0].model.device.type == "cpu" else 1
        done = 0
        while done < pieces:
            left = pieces - done
            stop = done + left // width * width if left >= width else pieces
            self._together(work, range(done, stop), min(width, left), threads)
            done = stop

    def _together(self, work: Work, pieces: range, width: int, threads: int) -> None:
        if width == 1:
            for piece in pieces:
                work(self._archs[0], piece)
            return
        while len(self._archs) < width:
            first = self._archs[0]
            self._archs.append(describe(replicate(first.model), tuple(first.targets[0])))
        left = deque(pieces)

        def take_turns(arch: Architecture) -> None:
            # Said in each thread: small operations and matrix products of a new thread do not ask
            # what was said in another and take all cores.
            torch.set_num_threads(threads // width)
            while True:
                try:
                    piece = left.popleft()
                except IndexError:
                    return
                try:
                    work(arch, piece)
                except BaseException:
                    left.clear()
                    raise

        # This thread takes a lane too: what a thread frees, the allocator keeps for that thread.
        try:
            with ThreadPoolExecutor(width - 1) as pool:
                futures = [pool.submit(take_turns, arch) for arch in self._archs[1:width]]
                take_turns(self._archs[0])
                for future in futures:
                    future.result()
        finally:
            torch.set_num_threads(threads)
