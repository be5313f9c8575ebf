"""Adapters: small networks after each part of a layer, trained with a gradient."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from integrations.architectures import Architecture
from integrations.errors import UserError
from integrations.methods.gradient import GradientLearner, freeze_float32
from integrations.methods.seeding import seeded
from integrations.methods.trial import Trial

# Where the feed-forward part ends in families whose row does not say: the row tells what may run
# at the answer position alone, and theirs may not.
FEED_FORWARD_ENDS = {"opt": "fc2"}


class Bottleneck(nn.Module):
    """x + U gelu(D x + d) + u, which is all but x at first.

    Houlsby et al. 2019 (arXiv 1902.00751), section 2.1 and figure 2; weights and activation as in
    ``modeling.py`` of their code: normal with a standard deviation of 1e-3, cut at two of these,
    biases zero, and the tanh form of GELU.

    Args:
        width: Of x.
        size: Of the bottleneck.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, size)
        self.up = nn.Linear(size, width)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=1e-3, a=-2e-3, b=2e-3)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., width) to what takes its place."""
        out: Tensor = x + self.up(F.gelu(self.down(x), approximate="tanh"))
        return out


class BottleneckAdapter(GradientLearner):
    """Adapters after each layer's attention and feed-forward part, and its norms, are trained.

    Houlsby et al. 2019 (arXiv 1902.00751), section 2.1: an adapter follows the projection back to
    the width of the hidden states, before the residual connection, and the layers' norms are
    trained with it. The size of 64 is the default of their code, the learning rate of 3e-4 that of
    the example in its README, which has batches of 32 for whole data sets.

    Args:
        trial: The model and the split. The model is brought to float32.
        size: Of the bottleneck.
        learning_rate: Of AdamW.
        batch_size: Examples in a step.
        weight_decay: Of AdamW.

    Attributes:
        adapters: Those of the first layer, then those of the next; the attention's first.

    Raises:
        UserError: If the model is an encoder-decoder, or its weights are quantized.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        size: int = 64,
        learning_rate: float = 3e-4,
        batch_size: int = 8,
        weight_decay: float = 0.0,
    ) -> None:
        if trial.arch.kind == "seq2seq":
            raise UserError("adapters are for causal and masked models, not encoder-decoders.")
        freeze_float32(trial.arch)
        self.adapters = nn.ModuleList()
        with seeded(trial.seed):
            for module in _part_ends(trial.arch):
                self.adapters.append(Bottleneck(trial.arch.hidden_size, size))
                _follow(module, self.adapters[-1])
        self.adapters.to(trial.arch.model.device)
        super().__init__(
            trial,
            [*self.adapters.parameters(), *_norm_weights(trial.arch)],
            learning_rate=learning_rate,
            batch_size=batch_size,
            weight_decay=weight_decay,
        )


def _follow(module: nn.Module, adapter: nn.Module) -> None:
    """Let an adapter change what a module puts out, from now on."""
    module.register_forward_hook(lambda _, inputs, output: adapter(output))


def _part_ends(arch: Architecture) -> Iterator[nn.Module]:
    """Modules that project back to the hidden states' width, in the order in which they run."""
    family = arch.family
    end = FEED_FORWARD_ENDS.get(arch.model.config.model_type)
    for layer in arch.layers:
        yield layer.get_submodule(str(family.targets["o"]))
        yield layer.get_submodule(family.mlp[1] if family.mlp is not None else str(end))


def _norm_weights(arch: Architecture) -> Iterator[nn.Parameter]:
    """Weights and biases of the norms inside layers."""
    for layer in arch.layers:
        for module in layer.modules():
            if type(module).__name__.endswith("Norm"):
                yield from module.parameters()
