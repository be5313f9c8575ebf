"""Temporary changes to what a frozen model computes, undone whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from integrations.architectures import Target
from lora_kernels import Delta, Factors, apply_deltas_grouped
from lora_kernels.tiles import MAX_RANK

Members = list[tuple[Target, Factors]]
"""The targets of one module, with their factors."""

GPU_SMALL = 1 << 23
"""Entries of an input up to which a GPU is done with any kernel before Python has the next.

On an H200 two products took a GPU 10 to 20 us and Python 40 us, our kernel 10 to 30 and 190; with
more entries the products, which read and write more, are the slower ones.
"""


class Patches(ExitStack):
    """A context in which modules behave otherwise; leaving it restores them exactly.

    Parameters and buffers are never touched: hooks act on a module's input and output, and a
    replaced ``forward`` is an attribute of the instance that is removed again.
    """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        """Undo all changes."""
        try:
            return super().__exit__(kind, error, trace)
        finally:  # what is left if Ctrl-C came between two of them
            super().__exit__(None, None, None)

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
        for module, members in by_module(targets).items():
            self.after(module, add_deltas(members))


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


def by_module(targets: Sequence[tuple[Target, Factors]]) -> dict[nn.Module, Members]:
    """Targets and their factors by the module that computes them."""
    found: dict[nn.Module, Members] = {}
    for target, factors in targets:
        found.setdefault(target.module, []).append((target, factors))
    return found


def add_deltas(members: Members) -> Callable[[Tensor, Tensor], Tensor]:
    """A change of a module's output that adds each candidate's deltas to its share of it.

    Args:
        members: The module's targets with P candidates each.

    Returns:
        A function of the module's input x (P * R, T, h) and output y (P * R, T, width), candidate
        by candidate, that returns the new output; y itself where that is faster.
    """
    deltas = [Delta(factors, columns=target.columns) for target, factors in members]
    candidates = len(members[0][1])
    ranks = [factors.rank for _, factors in members]
    # Where columns lie scattered, all of a module's deltas are applied as one.
    rank = max(ranks) if _in_one_stretch(deltas) else sum(ranks)

    def change(x: Tensor, y: Tensor) -> Tensor:
        if candidates == 1 and _two_products_do(x, y, deltas):
            return _add_in_place(x, y, deltas)
        inputs = x.reshape(candidates, -1, x.shape[-1])
        # Adapters from elsewhere may have ranks that no kernel of ours takes.
        backend = "reference" if rank > MAX_RANK and x.device.type == "cuda" else None
        outputs = (y.reshape(candidates, -1, y.shape[-1]),)
        (out,) = apply_deltas_grouped(inputs, outputs, deltas, backend=backend)
        return out.reshape(y.shape)

    return change


def _two_products_do(x: Tensor, y: Tensor, deltas: Sequence[Delta]) -> bool:
    """Whether one candidate's deltas cost least as plain products, added to y where it is."""
    quick = x.device.type == "cpu" or x.numel() <= GPU_SMALL
    return quick and _in_one_stretch(deltas) and y.is_contiguous()


def _in_one_stretch(deltas: Sequence[Delta]) -> bool:
    """Whether each delta's columns lie side by side."""
    return not any(isinstance(delta.columns, Tensor) for delta in deltas)


def _add_in_place(x: Tensor, y: Tensor, deltas: Sequence[Delta]) -> Tensor:
    inputs, outputs = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    for delta in deltas:
        (a,), (b,) = delta.factors.A, delta.factors.B
        outputs[:, delta.columns].addmm_(inputs @ a.mT, b)
    return y
