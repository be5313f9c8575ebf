"""The deltas and soft prompts that are in place, layer by layer."""

from __future__ import annotations

from itertools import count

from torch import Tensor

from integrations.architectures import Architecture, Target
from integrations.batches import PromptBatch
from integrations.patches import Patches
from integrations.soft_prompt import add_offsets
from integrations.spaces import LayerFactors
from lora_kernels import Factors

_versions = count(1)


class Adapter:
    """One candidate's factors and soft prompts for every layer, and the version of each.

    Args:
        arch: The model the deltas belong to.

    Attributes:
        factors: For each layer its targets' factors (P = 1), or None for no delta.
        prompts: For each layer what is added to the soft prompt's hidden states (n, h) that enter
            it, at layer 0 to its word embeddings; None for nothing.
        versions: For each layer a number that no other factors and prompts have, in this adapter
            or another; 0 for none from the start. Caches compare it.
    """

    def __init__(self, arch: Architecture) -> None:
        self.arch = arch
        self.factors: list[LayerFactors | None] = [None] * len(arch.layers)
        self.prompts: list[Tensor | None] = [None] * len(arch.layers)
        self.versions = [0] * len(arch.layers)

    def place(self, layer: int, factors: LayerFactors | None) -> None:
        """Put a layer's factors in place of those it had."""
        self.factors[layer] = factors
        self.versions[layer] = next(_versions)

    def place_prompt(self, layer: int, offset: Tensor | None) -> None:
        """Put what is added to the soft prompt (n, h) at a layer in place of what was."""
        self.prompts[layer] = offset
        self.versions[layer] = next(_versions)

    @property
    def prompted(self) -> list[int]:
        """Layers at which something is added to the soft prompt."""
        return [layer for layer, offset in enumerate(self.prompts) if offset is not None]

    def copy(self) -> Adapter:
        """The same deltas and soft prompts, unaffected by what is placed later."""
        other = Adapter(self.arch)
        other.factors, other.prompts = list(self.factors), list(self.prompts)
        other.versions = list(self.versions)
        return other

    def deltas(self, arch: Architecture, start: int, stop: int) -> list[tuple[Target, Factors]]:
        """Targets and factors of layers ``start`` to ``stop - 1``.

        Args:
            arch: The model, or a replica of it, whose targets they shall be.
            start: First layer.
            stop: Layer after the last.
        """
        return [
            (arch.targets[layer][name], factors)
            for layer in range(start, stop)
            for name, factors in (self.factors[layer] or {}).items()
        ]

    def apply(
        self,
        patches: Patches,
        arch: Architecture,
        batch: PromptBatch,
        start: int = 0,
        stop: int | None = None,
    ) -> None:
        """Let what is in place act on all copies of a batch.

        Args:
            patches: Where the changes are made.
            arch: The model or a replica of it.
            batch: What the model is called on.
            start: First layer in which it acts.
            stop: Layer after the last; None for all.
        """
        stop = len(self.factors) if stop is None else stop
        patches.add_deltas(self.deltas(arch, start, stop))
        for layer in range(start, stop):
            offset = self.prompts[layer]
            if offset is not None:
                add_offsets(patches, arch, batch, layer, offset.unsqueeze(0))
