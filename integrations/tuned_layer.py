"""The layer whose deltas differ from candidate to candidate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from integrations.architectures import Target
from integrations.patches import Members, Patches, add_deltas, by_module
from lora_kernels import Delta, Factors, apply_deltas_grouped


@dataclass
class SharedBase:
    """What all candidates share at the tuned layer for one batch, kept for one generation.

    Attributes:
        input: (R * T, h) input of the projections; None until it is first there.
        outputs: For each frozen projection its (R * T, width) output.
    """

    input: Tensor | None = None
    outputs: Sequence[Tensor] = ()


def tune_layer(
    patches: Patches,
    targets: Sequence[tuple[Target, Factors]],
    shared: SharedBase | None,
    rows: int,
) -> None:
    """Give each candidate its own deltas.

    Args:
        patches: Where the changes are made.
        targets: The layer's targets with P candidates each.
        shared: Where what they share is kept; None computes it for every candidate.
        rows: Rows R of the batch; inputs are (P * R, T, h).
    """
    together: dict[nn.Module, Members] = {}
    for module, members in by_module(targets).items():
        # The output projection's input already depends on the candidate, and a reused module has
        # several.
        if shared is None or any(target.name == "o" or target.reused for target, _ in members):
            patches.after(module, add_deltas(members))
        else:
            together[module] = members
    if shared is not None and together:
        _share_input(patches, together, shared, rows)


def _share_input(
    patches: Patches, together: Mapping[nn.Module, Members], shared: SharedBase, rows: int
) -> None:
    """Compute modules that have one input together: the frozen part once, all deltas in one pass.

    The first that the layer calls computes, the others find their outputs ready.
    """
    frozen = [module.forward for module in together]
    deltas = [
        Delta(factors, base, target.columns)
        for base, members in enumerate(together.values())
        for target, factors in members
    ]
    ready: dict[nn.Module, Tensor] = {}

    def compute(x: Tensor) -> None:
        if shared.input is None:
            # A copy, as a view would keep all candidates' rows for as long.
            once = x[:rows].clone()
            shared.outputs = [forward(once).flatten(0, 1) for forward in frozen]
            shared.input = once.flatten(0, 1)
        outputs = apply_deltas_grouped(shared.input, shared.outputs, deltas)
        ready.update(zip(together, outputs, strict=True))

    def forward_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            if module not in ready:
                compute(x)
            return ready.pop(module).reshape(*x.shape[:-1], -1)

        return forward

    for module in together:
        patches.replace(module, forward_of(module))
