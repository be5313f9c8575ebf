"""The deltas that are in place, layer by layer."""

from __future__ import annotations

from itertools import count

from integrations.architectures import Architecture, Target
from integrations.spaces import LayerFactors
from lora_kernels import Factors

_versions = count(1)


class Adapter:
    """One candidate's factors for every layer, and the version of each.

    Args:
        arch: The model the deltas belong to.

    Attributes:
        factors: For each layer its targets' factors (P = 1), or None for no delta.
        versions: For each layer a number that no other factors have, in this adapter or another;
            0 for none from the start. Caches compare it.
    """

    def __init__(self, arch: Architecture) -> None:
        self.arch = arch
        self.factors: list[LayerFactors | None] = [None] * len(arch.layers)
        self.versions = [0] * len(arch.layers)

    def place(self, layer: int, factors: LayerFactors | None) -> None:
        """Put a layer's factors in place of those it had."""
        self.factors[layer] = factors
        self.versions[layer] = next(_versions)

    def copy(self) -> Adapter:
        """The same deltas, unaffected by what is placed later."""
        other = Adapter(self.arch)
        other.factors, other.versions = list(self.factors), list(self.versions)
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
