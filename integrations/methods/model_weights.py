"""Model tuning and BitFit: training with a gradient of all weights, or of biases only."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from integrations.architectures import Architecture
from integrations.methods.gradient import GradientLearner, freeze_float32
from integrations.methods.trial import Trial


class ModelTuning(GradientLearner):
    """All weights of the model are trained.

    Defaults are those of LM-BFF (Gao et al. 2021, arXiv 2012.15723; ``run_experiment.sh`` there
    recommends learning rates of 1e-5 to 5e-5 and batches of 2 to 8 for 16 examples a class) and of
    MeZO's comparison with it (Malladi et al. 2023, arXiv 2305.17333;
    ``medium_models/finetune.sh``: 1e-5 and 8). Both keep dropout, and lower the learning rate to
    zero over a fixed number of steps.

    Args:
        trial: The model and the split. The model is brought to float32.
        learning_rate: Of AdamW.
        batch_size: Examples in a step.
        weight_decay: Of AdamW.

    Raises:
        UserError: If the model's weights are quantized.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        learning_rate: float = 1e-5,
        batch_size: int = 8,
        weight_decay: float = 0.0,
    ) -> None:
        freeze_float32(trial.arch)
        super().__init__(
            trial,
            trial.arch.model.parameters(),
            learning_rate=learning_rate,
            batch_size=batch_size,
            weight_decay=weight_decay,
        )


class BitFit(GradientLearner):
    """The biases of the model are trained, and nothing else.

    Ben Zaken, Ravfogel & Goldberg 2022 (arXiv 2106.10199), section 3; defaults are those of their
    ``run_glue.py``: a learning rate of 1e-3 and batches of 8. The bias of the output layer, one
    number a word, stays as it is: with a few label words it would only shift their logits.

    A model whose layers have no bias at all (llama, mistral, gemma, modernbert) gets one in each
    linear layer, zero at first, so that it computes what it did before (ours; it is what an
    architecture with biases would have there). Where some linear layers have one (qwen2's q, k and
    v), these are trained.

    Args:
        trial: The model and the split. The model is brought to float32.
        learning_rate: Of AdamW.
        batch_size: Examples in a step.
        weight_decay: Of AdamW.

    Raises:
        UserError: If the model's weights are quantized.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        learning_rate: float = 1e-3,
        batch_size: int = 8,
        weight_decay: float = 0.0,
    ) -> None:
        freeze_float32(trial.arch)
        if not any(_biases(layer) for layer in trial.arch.layers):
            _add_biases(trial.arch)
        words = trial.arch.model.config.get_text_config().vocab_size
        super().__init__(
            trial,
            [bias for bias in _biases(trial.arch.model) if len(bias) != words],
            learning_rate=learning_rate,
            batch_size=batch_size,
            weight_decay=weight_decay,
        )


def _biases(module: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in module.named_parameters() if name.endswith(".bias")]


def _add_biases(arch: Architecture) -> None:
    """Give each linear layer a bias of zero."""
    for module in _linear_layers(arch):
        weight = module.weight
        module.bias = nn.Parameter(
            torch.zeros(len(weight), dtype=weight.dtype, device=weight.device)
        )


def _linear_layers(arch: Architecture) -> Iterator[nn.Linear]:
    for layer in arch.layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                yield module
