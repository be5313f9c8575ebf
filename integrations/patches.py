"""Temporary changes to what a frozen model computes, undone whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from integrations.architectures import Target
from lora_kernels import Factors, apply_deltas


class Patches(ExitStack):
    """A context in which modules behave otherwise; leaving it restores them exactly.

    Parameters and buffers are never touched: hooks act on a module's input and output, and a
    replaced ``forward`` is an attribute of the instance that is removed again.
    """

    def before(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        """Replace a module's first input x by ``change(x)``."""
        handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
        self.callback(handle.remove)

    def after(self, module: nn.Module, change: Callable[[Tensor, Any], Any]) -> None:
        """Replace a module's output y by ``change(x, y)``, x being its first input."""
        handle = module.register_forward_hook(lambda _, args, output: change(args[0], output))
        self.callback(handle.remove)

    def replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        """Run ``forward`` in place of the module's own; hooks still apply."""
        own = module.__dict__.get("forward")  # set where another library wrapped the instance

        def restore() -> None:
            if own is None:
                del module.forward
            else:
                module.forward = own

        module.forward = forward
        self.callback(restore)

    def add_deltas(self, targets: Sequence[tuple[Target, Factors]]) -> None:
        """Add P candidates' deltas to the outputs of their targets, each to its share of rows."""
        for target, factors in targets:

            def change(
                x: Tensor, y: Tensor, target: Target = target, factors: Factors = factors
            ) -> Tensor:
                return add_delta(target, factors, x, y)

            self.after(target.module, change)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep a model in evaluation mode; each module goes back to the mode it had."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def add_delta(target: Target, factors: Factors, x: Tensor, y: Tensor) -> Tensor:
    """Add each candidate's delta to its share of a projection's output.

    Args:
        target: The projection.
        factors: P candidates.
        x: (P * N, T, h) inputs, candidate by candidate.
        y: (P * N, T, width) outputs of the frozen projection.

    Returns:
        (P * N, T, width).
    """
    candidates = len(factors)
    out = apply_deltas(
        x.reshape(candidates, -1, x.shape[-1]),
        y.reshape(candidates, -1, y.shape[-1]),
        factors,
        columns=target.columns,
    )
    return out.reshape(y.shape)
