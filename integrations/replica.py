"""A second copy of a run's evaluator, somewhere else: z goes in, losses come out.

Nothing but the frozen model is large, and it is sent once. After that each message is a `Share`:
vectors z of the candidates and of the deltas in place, since the projections that turn them into
factors are seeded and held by every replica.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar

import cloudpickle
import numpy as np
import torch

from dfo_core.validation import FloatArray
from integrations.adapter import Adapter
from integrations.candidates import Candidates, project_candidates
from integrations.errors import UserError
from integrations.objective import Evaluator, block_size_known
from integrations.spaces import LayerSpace

P = ParamSpec("P")
R = TypeVar("R")


class WorkerError(RuntimeError):
    """A worker failed, or none is left; the message has the worker's own traceback."""


@dataclass(frozen=True)
class Share:
    """What a replica evaluates of one generation.

    Attributes:
        layers: The layers whose deltas the candidates replace.
        z: (P, d) all candidates of the generation. All are projected, since the last digits of a
            matrix product depend on its size; a few kilobytes each.
        chosen: Which of them to evaluate.
        block_size: Candidates in one forward pass.
        placed: The z (d,) in place of each layer that has a delta. All of them, so that it does
            not matter what a replica was told before.
    """

    layers: tuple[int, ...]
    z: FloatArray
    chosen: slice
    block_size: int
    placed: Mapping[int, FloatArray]


class Replica:
    """A frozen model with deltas in place, told by their z alone.

    Args:
        evaluator: Gives candidates their losses on the training prompts.
        spaces: Each layer's search space.
    """

    def __init__(self, evaluator: Evaluator, spaces: Sequence[LayerSpace]) -> None:
        self.evaluator = evaluator
        self.spaces = spaces
        self.adapter = Adapter(evaluator.arch)
        self._placed: dict[int, FloatArray] = {}

    def evaluate(self, share: Share) -> FloatArray:
        """Losses of the chosen candidates, as `PopulationEvaluator.losses` gives them."""
        self._place(share.placed)
        candidates = self._candidates(share.layers, share.z)
        self.evaluator.block_size, self.evaluator.chosen_for = share.block_size, None
        return self.evaluator.losses(candidates[share.chosen], self.adapter)

    def pass_size(
        self,
        layers: tuple[int, ...],
        z: FloatArray,
        placed: Mapping[int, FloatArray],
        workers: int,
    ) -> int:
        """How many of z (P, d) go into a forward pass, see `PopulationEvaluator`."""
        if not block_size_known(self.evaluator, len(z)):
            self._place(placed)
            candidates = self._candidates(layers, z)
            self.evaluator.choose_block_size(candidates, self.adapter, workers)
        return self.evaluator.pass_size

    def save(self, file: Path | IO[bytes]) -> None:
        """Write the model, the prompts and the spaces for `load`.

        Raises:
            UserError: If there is no room, or something in the model cannot be sent.
        """
        try:
            # A script's or a notebook's own loss or score goes with its code.
            torch.save(Replica(self.evaluator, self.spaces), file, pickle_module=cloudpickle)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            raise UserError(
                f"the model cannot be written for the workers to read: {error}. Set TMPDIR to a "
                "folder with room for it."
            ) from error
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise UserError(
                f"{type(self.evaluator.arch.model).__name__} cannot be sent to workers: {error}. "
                "Run with workers=None."
            ) from error

    @classmethod
    def load(cls, file: Path | IO[bytes], device: torch.device, threads: int) -> Replica:
        """The replica that `save` wrote.

        Args:
            file: The file. Replicas that read it by its path share the memory of weights that
                stay on the CPU.
            device: Where the model goes if it was on a GPU.
            threads: CPU threads of this process.
        """
        torch.set_num_threads(threads)
        replica: Replica = torch.load(
            file,
            map_location=lambda storage, place: _restore(storage, place, device),
            mmap=isinstance(file, Path),
            weights_only=False,  # our own file, of objects and not only of tensors
        )
        return replica

    def _place(self, placed: Mapping[int, FloatArray]) -> None:
        for layer, z in placed.items():
            if layer not in self._placed or not np.array_equal(z, self._placed[layer]):
                self._candidates((layer,), z[np.newaxis]).place(self.adapter)
                self._placed[layer] = z
        for layer in self._placed.keys() - placed.keys():
            self.adapter.place(layer, None)
            del self._placed[layer]

    def _candidates(self, layers: tuple[int, ...], z: FloatArray) -> Candidates:
        return project_candidates(self.evaluator.arch, self.spaces, layers, z)


def _restore(storage: Any, place: str, device: torch.device) -> Any:
    """What was on a GPU goes to the replica's; None, torch's default, leaves the rest in place."""
    if device.type == "cpu" or not place.startswith(device.type):
        return None
    return torch.serialization.default_restore_location(  # type: ignore[no-untyped-call]
        storage, str(device)
    )


def with_traceback(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call something in a worker; what it raises goes out as text, which any process can read.

    Raises:
        WorkerError: If the call raises.
    """
    try:
        return call(*args, **kwargs)
    except Exception:
        raise WorkerError(traceback.format_exc()) from None
