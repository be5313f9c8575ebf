"""What differs from candidate to candidate: deltas of one layer or of several, or a soft prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from torch import Tensor

from integrations.adapter import Adapter
from integrations.architectures import Architecture, Target
from integrations.batches import PromptBatch
from integrations.errors import UserError
from integrations.patches import Patches
from integrations.soft_prompt import add_offsets
from integrations.spaces import LayerFactors, LayerSpace
from integrations.tuned_layer import SharedBase, tune_layer
from lora_kernels import Factors


class Candidates(ABC):
    """P candidates, each of which would take the place of something in an `Adapter`."""

    @property
    @abstractmethod
    def layers(self) -> tuple[int, ...]:
        """Layers in which they differ, in the model's order."""

    @property
    def first(self) -> int:
        """The first of these layers; what enters it is the same for all."""
        return min(self.layers, default=0)

    @abstractmethod
    def __len__(self) -> int:
        """How many candidates P there are."""

    @abstractmethod
    def __getitem__(self, rows: slice) -> Self:
        """Some of them."""

    @abstractmethod
    def place(self, adapter: Adapter) -> None:
        """Put the only candidate in place."""

    @abstractmethod
    def beside(self, adapter: Adapter) -> Adapter:
        """What stays in place: the adapter without what the candidates take the place of."""

    @abstractmethod
    def apply(
        self, patches: Patches, arch: Architecture, batch: PromptBatch, shared: SharedBase | None
    ) -> None:
        """Let each candidate act on its own copy of a batch's rows.

        Args:
            patches: Where the changes are made.
            arch: The model or a replica of it.
            batch: What the model is called on, with a copy for each candidate.
            shared: Where what they share at the first layer is kept; None computes it for each.
        """

    def typical(self, arch: Architecture) -> Candidates:
        """Candidates on which the best size of a block is measured."""
        return self


@dataclass(frozen=True, eq=False)
class LayerCandidates(Candidates):
    """Candidates for the deltas of one layer.

    Attributes:
        layer: Index of the layer.
        factors: Factors of P candidates for each of the layer's targets.
    """

    layer: int
    factors: LayerFactors

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer."""
        return (self.layer,)

    def __len__(self) -> int:
        return len(next(iter(self.factors.values())))

    def __getitem__(self, rows: slice) -> LayerCandidates:
        return LayerCandidates(self.layer, {name: f[rows] for name, f in self.factors.items()})

    def place(self, adapter: Adapter) -> None:
        """Put the only candidate in place."""
        adapter.place(self.layer, self.factors)

    def beside(self, adapter: Adapter) -> Adapter:
        """The adapter without the layer's deltas."""
        rest = adapter.copy()
        rest.place(self.layer, None)
        return rest

    def apply(
        self, patches: Patches, arch: Architecture, batch: PromptBatch, shared: SharedBase | None
    ) -> None:
        """Give each candidate its own deltas in the layer; see `Candidates.apply`."""
        targets = [(arch.targets[self.layer][name], f) for name, f in self.factors.items()]
        tune_layer(patches, targets, shared, batch.rows)

    def typical(self, arch: Architecture) -> LayerCandidates:
        """The same for the middle layer, whichever comes first."""
        layer = len(arch.layers) // 2
        targets = arch.targets[layer].values()
        members = zip(self.factors.values(), targets, strict=True)
        return LayerCandidates(layer, {t.name: _resized(factors, t) for factors, t in members})


@dataclass(frozen=True, eq=False)
class JointCandidates(Candidates):
    """Candidates for the deltas of several layers at once.

    Without a layer there is one candidate, which is what is in place.

    Attributes:
        factors: For each layer, factors of P candidates for each of its targets.

    Raises:
        UserError: If the layers have different numbers of candidates.
    """

    factors: Mapping[int, LayerFactors]

    def __post_init__(self) -> None:
        counts = {layer: len(LayerCandidates(layer, f)) for layer, f in self.factors.items()}
        if len(set(counts.values())) > 1:
            raise UserError(f"each layer must have as many candidates; got {counts}.")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers, in the model's order."""
        return tuple(sorted(self.factors))

    @property
    def _each(self) -> list[LayerCandidates]:
        return [LayerCandidates(layer, self.factors[layer]) for layer in self.layers]

    def __len__(self) -> int:
        return max(map(len, self._each), default=1)

    def __getitem__(self, rows: slice) -> JointCandidates:
        return JointCandidates({part.layer: part[rows].factors for part in self._each})

    def place(self, adapter: Adapter) -> None:
        """Put the only candidate in place."""
        for part in self._each:
            part.place(adapter)

    def beside(self, adapter: Adapter) -> Adapter:
        """The adapter without the deltas of all the layers."""
        for part in self._each:
            adapter = part.beside(adapter)
        return adapter

    def apply(
        self, patches: Patches, arch: Architecture, batch: PromptBatch, shared: SharedBase | None
    ) -> None:
        """Give each candidate its own deltas in all the layers; see `Candidates.apply`.

        Only the first layer's input is shared; that of the others differs already.
        """
        for part in self._each:
            part.apply(patches, arch, batch, shared if part.layer == self.first else None)


IN_PLACE = JointCandidates({})
"""One candidate that changes nothing: what is in place."""


@dataclass(frozen=True, eq=False)
class PromptCandidates(Candidates):
    """Candidates for what is added to the soft prompt on its way into a layer.

    A candidate takes the place of the offset in place at that layer; those at other layers stay.

    Attributes:
        layer: The layer; at 0 it is the word embeddings that are changed.
        offsets: (P, n, h), one row for each of a prompt's n soft-prompt tokens (`Prompt.soft`).
    """

    layer: int
    offsets: Tensor

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer."""
        return (self.layer,)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, rows: slice) -> PromptCandidates:
        return PromptCandidates(self.layer, self.offsets[rows])

    def place(self, adapter: Adapter) -> None:
        """Put the only candidate in place."""
        (offset,) = self.offsets
        adapter.place_prompt(self.layer, offset)

    def beside(self, adapter: Adapter) -> Adapter:
        """The adapter without the layer's offset."""
        rest = adapter.copy()
        rest.place_prompt(self.layer, None)
        return rest

    def apply(
        self, patches: Patches, arch: Architecture, batch: PromptBatch, shared: SharedBase | None
    ) -> None:
        """Add each candidate's own offsets; see `Candidates.apply`."""
        add_offsets(patches, arch, batch, self.layer, self.offsets)


def project_candidates(
    arch: Architecture, spaces: Sequence[LayerSpace], layers: Sequence[int], z: np.ndarray
) -> LayerCandidates | JointCandidates:
    """Candidates of one layer or of several from their vectors z.

    Args:
        arch: The model.
        spaces: Each layer's search space.
        layers: The layers in which they differ.
        z: (P, d), or for several layers (P, layers * d), their parts side by side.
    """
    factors = {
        layer: spaces[layer].factors(part, arch.model.device, arch.model.dtype)
        for layer, part in zip(layers, np.split(z, len(layers), axis=1), strict=True)
    }
    if len(layers) == 1:
        return LayerCandidates(layers[0], factors[layers[0]])
    return JointCandidates(factors)


def _resized(factors: Factors, target: Target) -> Factors:
    """Factors as they are if they fit the target, else of its size; used for timing only."""
    if factors.A.shape[2] == target.in_features and factors.B.shape[2] == target.out_features:
        return factors
    a = factors.A.new_zeros(*factors.A.shape[:2], target.in_features)
    b = factors.B.new_zeros(*factors.B.shape[:2], target.out_features)
    return Factors(a, b)
