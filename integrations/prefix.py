"""Hidden states that enter a layer, kept while the layers before it stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor

from integrations.adapter import Adapter
from integrations.architectures import Architecture
from integrations.batches import PromptBatch
from integrations.onednn import use_onednn
from integrations.patches import Patches


class _ReachedLayer(Exception):
    """Ends a forward pass before a layer."""


class PrefixCache:
    """Hidden states of each batch at the entrance of layers.

    States are valid while what is in place in all earlier layers is what they were computed with.
    Those of several layers are kept as far as memory allows, so a sweep in any order computes
    each layer about once.

    Args:
        arch: The model.
        batches: The prompts.
        max_bytes: Most memory for states.
        least: Layers whose states are kept in any case, as what leaves an encoder is: 1 for the
            one in use, 2 for the lowest that is tuned as well.
        onednn: Whether oneDNN multiplies where that pays (`integrations.onednn`).
    """

    def __init__(
        self,
        arch: Architecture,
        batches: Sequence[PromptBatch],
        max_bytes: int,
        least: int = 1,
        onednn: bool = False,
    ) -> None:
        self.arch = arch
        self.batches = batches
        self.max_bytes = max_bytes
        self.least = least
        self.onednn = onednn
        self._forget()

    def _forget(self) -> None:
        self._states: list[dict[int, tuple[tuple[int, ...], Tensor]]] = [{} for _ in self.batches]
        # By number of the stack: what left an encoder, and what its layers hand on besides states,
        # None where a layer returns the bare states.
        # A decoder's states are dropped with the deltas that they and the encoder's were made of.
        self._left: list[dict[int, Tensor]] = [{} for _ in self.batches]
        self._rest: list[dict[int, tuple[Any, ...] | None]] = [{} for _ in self.batches]

    def __getstate__(self) -> dict[str, Any]:
        """What another process gets: no states, since versions of deltas are this process's own."""
        kept = ("arch", "batches", "max_bytes", "least", "onednn")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def prepare(self, number: int, layer: int, adapter: Adapter) -> None:
        """Have a batch's states at the entrance of a layer ready for `resume`."""
        if layer > 0:
            self.entering(number, layer, adapter)

    def resume(
        self,
        patches: Patches,
        arch: Architecture,
        number: int,
        layer: int,
        adapter: Adapter,
        copies: int,
    ) -> None:
        """Let the model start at a layer with a batch's kept states, repeated for candidates.

        Args:
            patches: Where the change is made.
            arch: The model or a replica of it.
            number: Index of the batch.
            layer: The first layer that runs.
            adapter: What is in place.
            copies: How often the batch is repeated.
        """
        if layer > 0:
            states = self.entering(number, layer, adapter)
            self._skip(patches, arch, number, layer, states, copies)

    def entering(self, number: int, layer: int, adapter: Adapter) -> Tensor:
        """Hidden states (N, T, h) of a batch that enter a layer.

        Args:
            number: Index of the batch.
            layer: Index of the layer, at least 1.
            adapter: What is in place.
        """
        states = self._states[number]
        for kept in [k for k, (versions, _) in states.items() if versions != _below(adapter, k)]:
            del states[kept]
        if layer not in states:
            start = max((kept for kept in states if kept < layer), default=0)
            self._advance(number, start, layer, adapter)
        return states[layer][1]

    def _advance(self, number: int, start: int, stop: int, adapter: Adapter) -> None:
        """Run layers ``start`` to ``stop - 1`` and keep what enters later ones."""
        batch, states = self.batches[number], self._states[number]

        def keep(layer: int) -> Callable[[Tensor], Tensor]:
            def record(x: Tensor) -> Tensor:
                states[layer] = (_below(adapter, layer), x)
                self._evict(number, layer)
                if layer == stop:
                    raise _ReachedLayer
                return x

            return record

        with Patches() as patches:
            if self.onednn:
                use_onednn(patches, self.arch.layers[start:stop])
            if start > 0:
                self._skip(patches, self.arch, number, start, states[start][1])
            self._note(patches, number)
            # Before the adapter, so that what is kept has no layer's own soft prompt added yet.
            for layer in range(start + 1, stop + 1):
                patches.before(self.arch.layers[layer], keep(layer))
            adapter.apply(patches, self.arch, batch, start, stop)
            with suppress(_ReachedLayer):
                batch.run(self.arch.model)

    def _note(self, patches: Patches, number: int) -> None:
        """Note what leaves each stack but the last, and what its first layer hands on."""
        arch = self.arch

        def leave(stack: int) -> Callable[[Tensor, Any], Any]:
            def record(x: Tensor, y: Any) -> Any:
                self._left[number][stack] = y[0] if isinstance(y, tuple) else y
                return y

            return record

        def hand_on(stack: int) -> Callable[[Tensor, Any], Any]:
            def record(x: Tensor, y: Any) -> Any:
                rest = y[1:] if isinstance(y, tuple) else None
                if rest and not arch.family.carries:  # attention weights, which nothing reads
                    rest = (None,) * len(rest)
                self._rest[number][stack] = rest
                return y

            return record

        for stack, members in enumerate(arch.stacks):
            if stack < len(arch.stacks) - 1:
                patches.after(arch.layers[members[-1]], leave(stack))
            patches.after(arch.layers[members[0]], hand_on(stack))

    def _skip(
        self,
        patches: Patches,
        arch: Architecture,
        number: int,
        layer: int,
        states: Tensor,
        copies: int = 1,
    ) -> None:
        """Let layers before ``layer`` do nothing but hand on its entering states.

        Those of an encoder before a decoder's layer hand on what leaves the encoder.
        """
        for stack, members in enumerate(arch.stacks):
            x = states if layer in members else self._left[number][stack]
            x = x.repeat(copies, 1, 1)
            rest = self._rest[number].get(stack)
            for index in members:
                if index < layer:
                    patches.replace(arch.layers[index], _always(x if rest is None else (x, *rest)))
            if stack == 0 and arch.after_first is not None:
                patches.replace(arch.after_first, _always(x))
            if layer in members:
                break

    def _evict(self, number: int, keep: int) -> None:
        """Drop states until each batch has its share of the memory.

        First those that the fewest layers bring back: one layer from the next state below, where
        a sweep kept them all, but all layers before the first that is tuned for the lowest. Of
        equals the highest, as sweeps go on from the lower ones.
        """
        states = self._states[number]
        share = self.max_bytes // len(self.batches)
        while len(states) > self.least and sum(x.nbytes for _, x in states.values()) > share:
            kept = sorted(states)
            layers_back = {
                layer: layer - below
                for below, layer in zip([0, *kept], kept, strict=False)
                if layer != keep
            }
            del states[min(layers_back, key=lambda layer: (layers_back[layer], -layer))]


def _always(output: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: output


def _below(adapter: Adapter, layer: int) -> tuple[int, ...]:
    return tuple(adapter.versions[:layer])
