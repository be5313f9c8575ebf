"""What methods that follow a gradient share: the loop, and label logits with what is in place."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from integrations.architectures import Architecture
from integrations.batches import PromptBatch, make_batches
from integrations.errors import UserError
from integrations.int8 import Int8Linear
from integrations.methods.answers import label_logits
from integrations.methods.trial import Trial
from integrations.metrics import cross_entropy
from integrations.patches import evaluating
from integrations.prompts import Encoder, Prompt, free_positions
from integrations.tasks import Example

# What a forward pass holds for the one back is about 2 MB a token in a model of 135M parameters.
# A batch with more tokens than this goes through the model in parts, whose gradients add up.
TRAIN_TOKENS = 512


class GradientLearner:
    """Trains some of a model's parameters on the cross-entropy over the label words.

    A step is one of AdamW's (Loshchilov & Hutter 2019, arXiv 1711.05101) on a batch of the training
    set, whose order is drawn anew for each pass. The learning rate stays what it is. Dropout is
    off, so a step depends on the seed through the order alone, where others leave it at what the
    model was pretrained with. The head runs at the answer position and for the label words only.

    Args:
        trial: The model and the split.
        tuned: What is trained; nothing else changes.
        learning_rate: Of AdamW.
        batch_size: Examples in a step.
        weight_decay: Of AdamW.
        new_tokens: Positions that the method takes before a prompt's own.

    Attributes:
        parameters: How many numbers are trained.
        evaluations: Share of the training set that went through the model, forth and back; more
            than one after the first pass.
    """

    shift = 0
    """Tokens that the model's head sees before those of the prompt."""

    def __init__(
        self,
        trial: Trial,
        tuned: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        batch_size: int,
        weight_decay: float,
        new_tokens: int = 0,
    ) -> None:
        self._arch = trial.arch
        self._encoder = _with_room(trial.encoder, trial.arch, new_tokens)
        self._label_ids = torch.tensor(self._encoder.label_ids, device=trial.arch.model.device)
        self._tuned = list(tuned)
        for parameter in self._tuned:
            parameter.requires_grad_(True)
        self._optimizer = torch.optim.AdamW(
            self._tuned, lr=learning_rate, weight_decay=weight_decay
        )
        self._prompts = self._encoder.encode(trial.encoder.task.train)
        self._batch_size = batch_size
        self._rng = np.random.default_rng(trial.seed)
        self._left: list[int] = []
        self._losses: deque[tuple[float, int]] = deque(maxlen=-(-len(self._prompts) // batch_size))
        self._seen = 0
        self.parameters = sum(parameter.numel() for parameter in self._tuned)

    @property
    def evaluations(self) -> float:
        """Passes over the training set, parts of one among them."""
        return self._seen / len(self._prompts)

    def step(self) -> float:
        """Train on the next batch.

        Returns:
            Mean loss over the batches of the latest pass, each before its own step.
        """
        if not self._left:
            self._left = self._rng.permutation(len(self._prompts)).tolist()
        rows, self._left = self._left[: self._batch_size], self._left[self._batch_size :]
        total = 0.0
        with evaluating(self._arch.model):
            for batch in self._batches([self._prompts[i] for i in rows], TRAIN_TOKENS):
                loss = cross_entropy(self._label_logits(batch), batch.labels) * len(batch)
                (loss / len(rows)).backward()  # type: ignore[no-untyped-call]
                total += loss.item()
        self._optimizer.step()
        self._optimizer.zero_grad()  # gradients shall take no memory while something is scored
        self._seen += len(rows)
        self._losses.append((total, len(rows)))
        sums, counts = zip(*self._losses, strict=True)
        return float(sum(sums) / sum(counts))

    @torch.inference_mode()
    def logits(self, examples: Sequence[Example]) -> np.ndarray:
        """Label logits (N, C) float32 with what is in place."""
        prompts = self._encoder.encode(examples)
        out = np.empty((len(prompts), len(self._label_ids)), dtype=np.float32)
        with evaluating(self._arch.model):
            for batch in self._batches(prompts):
                out[batch.order.numpy()] = self._label_logits(batch).cpu().numpy()
        return out

    def state(self) -> list[Tensor]:
        """Copies of what is trained, in main memory."""
        return [parameter.detach().to("cpu", copy=True) for parameter in self._tuned]

    @torch.no_grad()
    def restore(self, state: list[Tensor]) -> None:
        """Put what `state` returned in place."""
        for parameter, value in zip(self._tuned, state, strict=True):
            parameter.copy_(value)

    def _batches(
        self, prompts: Sequence[Prompt], max_tokens: int | None = None
    ) -> list[PromptBatch]:
        device = self._arch.model.device
        kind, pad_id = self._arch.kind, self._encoder.pad_id
        return make_batches(
            prompts, pad_id, kind, device, max_tokens=max_tokens, new_tokens=self.shift
        )

    def _label_logits(self, batch: PromptBatch) -> Tensor:
        """Label logits (N, C) of a batch, with their graph where one is recorded."""
        return label_logits(self._arch, batch, self._label_ids, self._run, self.shift)

    def _run(self, batch: PromptBatch) -> Any:
        """The model's output for a batch."""
        return batch.run(self._arch.model)


def freeze(arch: Architecture) -> None:
    """Let no parameter of a model ask for a gradient.

    Raises:
        UserError: If no gradient passes through its layers.
    """
    if any(isinstance(module, Int8Linear) for module in arch.model.modules()):
        raise UserError(
            "no gradient passes through layers of dtype 'int8'; load the model with "
            "dtype='float32' for methods that need one."
        )
    arch.model.requires_grad_(False)


def freeze_float32(arch: Architecture) -> None:
    """The same for methods that train parameters of the model itself, or in its type.

    The model is brought to float32: in sixteen bits small steps are rounded away.

    Raises:
        UserError: If no gradient passes through its layers, or their weights are quantized.
    """
    freeze(arch)
    if not all(parameter.is_floating_point() for parameter in arch.model.parameters()):
        raise UserError(
            "this method trains a model in float32, but its weights are quantized; load it without "
            "quantization, or compare with LoRA, prompt tuning or P-Tuning v2."
        )
    arch.model.float()  # type: ignore[no-untyped-call]


def _with_room(encoder: Encoder, arch: Architecture, new_tokens: int) -> Encoder:
    """An encoder whose longest prompt leaves positions free for tokens before it."""
    longest = int(min(encoder.max_length, free_positions(arch.model, new_tokens)))
    if longest == encoder.max_length:
        return encoder
    return Encoder(encoder.task, encoder.tokenizer, encoder.kind, longest)
