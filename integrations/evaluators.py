"""From a task to its encoder, and from examples to what evaluates deltas on them.

A task of another kind is added by registering both functions for its types:
``make_encoder.register(MyTask, ...)`` and ``make_evaluator.register(MyEncoder, ...)``. What
`make_encoder` returns has the attributes ``task``, ``losses`` and ``max_length``, and the methods
``encode`` and ``arguments`` as `Encoder` has; what `make_evaluator` returns is an
`integrations.objective.Evaluator`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from transformers import PreTrainedTokenizerBase

from integrations.architectures import Architecture
from integrations.continuation import ContinuationEvaluator
from integrations.errors import UserError
from integrations.generation import GenerationEvaluator
from integrations.metrics import Loss, loss_name, make_loss
from integrations.objective import Evaluator
from integrations.population import FAST, PopulationEvaluator, Speedups
from integrations.prompts import Encoder, SameToken, longest_prompt
from integrations.tasks import ContinuationTask, GenerationTask, Task
from integrations.text_prompts import ContinuationEncoder, GenerationEncoder
from integrations.whole_words import WholeWordEncoder, WholeWordEvaluator


@singledispatch
def make_encoder(
    task: Any, arch: Architecture, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> Any:
    """What makes prompts of a task's examples.

    Args:
        task: The task.
        arch: The frozen model.
        tokenizer: Its tokenizer.
        max_length: Longest prompt in tokens; None for as many as the model can take, at most 512.

    Raises:
        UserError: If the task is none, or does not suit the model or tokenizer.
    """
    raise UserError(
        "task must be the name of one, a Task, a GenerationTask or a ContinuationTask; got "
        f"{type(task).__name__}."
    )


@make_encoder.register
def _(
    task: Task, arch: Architecture, tokenizer: Any, max_length: int | None
) -> Encoder | WholeWordEncoder:
    most = longest_prompt(arch.model, max_length=max_length)
    try:
        return Encoder(task, tokenizer, arch.kind, most)
    except SameToken:
        return WholeWordEncoder(task, tokenizer, arch.kind, most)


@make_encoder.register
def _(
    task: GenerationTask, arch: Architecture, tokenizer: Any, max_length: int | None
) -> GenerationEncoder:
    return GenerationEncoder(task, arch.model, tokenizer, arch.kind, max_length)


@make_encoder.register
def _(
    task: ContinuationTask, arch: Architecture, tokenizer: Any, max_length: int | None
) -> ContinuationEncoder:
    return ContinuationEncoder(task, arch.model, tokenizer, arch.kind, max_length)


@singledispatch
def make_evaluator(
    encoder: Any,
    arch: Architecture,
    examples: Sequence[Any],
    loss: str | Loss | None,
    speedups: Speedups = FAST,
    memory_limit: int | None = None,
) -> Evaluator:
    """What evaluates deltas on some examples.

    Args:
        encoder: What `make_encoder` returned.
        arch: The frozen model.
        examples: At least one.
        loss: As in `tune`.
        speedups: Which of the evaluator's steps to take.
        memory_limit: Most bytes beyond the model's weights; None lets speed decide.

    Raises:
        UserError: If the loss does not suit the task.
    """
    raise UserError(f"there is no evaluator for what {type(encoder).__name__} encodes.")


@make_evaluator.register
def _(
    encoder: Encoder,
    arch: Architecture,
    examples: Sequence[Any],
    loss: str | Loss | None,
    speedups: Speedups = FAST,
    memory_limit: int | None = None,
) -> PopulationEvaluator:
    return PopulationEvaluator(
        arch,
        encoder.encode(examples),
        encoder.label_ids,
        pad_id=encoder.pad_id,
        loss=_loss_of_words(loss, encoder),
        metric=encoder.task.metric,
        speedups=speedups,
        memory_limit=memory_limit,
    )


@make_evaluator.register
def _(
    encoder: WholeWordEncoder,
    arch: Architecture,
    examples: Sequence[Any],
    loss: str | Loss | None,
    speedups: Speedups = FAST,
    memory_limit: int | None = None,
) -> WholeWordEvaluator:
    return WholeWordEvaluator(
        arch,
        encoder,
        examples,
        loss=_loss_of_words(loss, encoder),
        speedups=speedups,
        memory_limit=memory_limit,
    )


@make_evaluator.register
def _(
    encoder: GenerationEncoder,
    arch: Architecture,
    examples: Sequence[Any],
    loss: str | Loss | None,
    speedups: Speedups = FAST,
    memory_limit: int | None = None,
) -> GenerationEvaluator:
    loss_name(loss, encoder.losses)
    return GenerationEvaluator(
        arch, encoder, examples, speedups=speedups, memory_limit=memory_limit
    )


@make_evaluator.register
def _(
    encoder: ContinuationEncoder,
    arch: Architecture,
    examples: Sequence[Any],
    loss: str | Loss | None,
    speedups: Speedups = FAST,
    memory_limit: int | None = None,
) -> ContinuationEvaluator:
    loss_name(loss, encoder.losses)
    prompts = encoder.encode(examples)
    return ContinuationEvaluator(
        arch, prompts, pad_id=encoder.pad_id, speedups=speedups, memory_limit=memory_limit
    )


def _loss_of_words(loss: str | Loss | None, encoder: Encoder | WholeWordEncoder) -> Loss:
    chosen = loss if callable(loss) else loss_name(loss, encoder.losses)
    return make_loss(chosen, encoder.task.metric)
