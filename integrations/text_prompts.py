"""From the examples of text tasks to token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from integrations.architectures import Kind
from integrations.errors import UserError
from integrations.patterns import PatternEncoder
from integrations.prompts import Prompt, longest_prompt
from integrations.tasks.text import ContinuationTask, GenerationTask, TextExample, TextTask


class TextEncoder(PatternEncoder):
    """What the encoders of both kinds of text task have in common.

    Args:
        task: The task.
        model: The frozen model.
        tokenizer: Its tokenizer.
        kind: ``"causal"`` or ``"seq2seq"``.
        max_length: Longest prompt in tokens, a reference among them; None for as many as the
            model can take, at most 512.
        new_tokens: How many tokens a causal model generates after the prompt.

    Raises:
        UserError: If the model cannot write text, or not that much.
    """

    losses: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        task: TextTask,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        kind: Kind,
        max_length: int | None,
        new_tokens: int = 0,
    ) -> None:
        if kind == "masked":
            raise UserError(
                f"task {task.name!r} needs a model that writes text, and a {kind} one does not; "
                "use a causal model or an encoder-decoder."
            )
        most = longest_prompt(model, new_tokens if kind == "causal" else 0, max_length)
        super().__init__(tokenizer, kind, task.pattern, most)
        self.task = task
        start: Any = getattr(model.generation_config, "decoder_start_token_id", None)
        if start is None:
            start = getattr(model.config, "decoder_start_token_id", None)
        self.start_id = self.pad_id if start is None else int(start)

    def _ids(self, fields: dict[str, str], answer: str = "") -> list[int]:
        text = self.pattern.format(**fields) + answer
        if self.kind == "seq2seq":
            return list(self.tokenizer(text)["input_ids"])
        return self._open_ids(text)

    def _prompt(self, example: TextExample, reserved: int = 0) -> list[int]:
        ids = self._fit(dict(example.fields), reserved)
        if not ids:
            raise UserError(
                f"task {self.task.name!r}: the pattern {self.pattern!r} gives no token to go on "
                "from; let it begin with some text."
            )
        return ids


class GenerationEncoder(TextEncoder):
    """Encodes the prompts of a generation task; see `TextEncoder`."""

    losses = ("score",)
    task: GenerationTask

    def __init__(
        self,
        task: GenerationTask,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        kind: Kind,
        max_length: int | None = None,
    ) -> None:
        super().__init__(task, model, tokenizer, kind, max_length, int(task.max_new_tokens))

    def encode(self, examples: Sequence[TextExample]) -> list[Prompt]:
        """Token ids of each example's prompt, as long as they may be."""
        prompts = []
        for example in examples:
            ids = self._prompt(example)
            if self.kind == "seq2seq":
                prompts.append(Prompt(tuple(ids), 0, decoder_ids=(self.start_id,)))
            else:
                prompts.append(Prompt(tuple(ids), len(ids) - 1))
        return prompts

    def arguments(self) -> dict[str, str]:
        """What of the task a run depends on beside its prompts, as text by name."""
        task = self.task
        examples = [(dict(e.fields), e.reference) for e in (*task.train, *task.dev)]
        text = json.dumps(examples, sort_keys=True, default=str)
        return {
            "score": task.metric,
            "max_new_tokens": str(task.max_new_tokens),
            "stop": str(list(task.stop)),
            "examples": hashlib.sha256(text.encode()).hexdigest()[:16],
        }


class ContinuationEncoder(TextEncoder):
    """Encodes prompts and what is to follow them; see `TextEncoder`."""

    losses = ("nll",)
    task: ContinuationTask

    def encode(self, examples: Sequence[TextExample]) -> list[Prompt]:
        """Token ids of each example's prompt and reference.

        Raises:
            UserError: If a reference has no tokens, too many, or ones that depend on where the
                prompt ends.
        """
        return [self._encode(example) for example in examples]

    def _encode(self, example: TextExample) -> Prompt:
        if self.kind == "seq2seq":
            targets = self._seq2seq_targets(str(example.reference))
            ids = self._prompt(example)
            decoder_ids = (self.start_id, *targets[:-1])
            return Prompt(tuple(ids), 0, decoder_ids=decoder_ids, targets=targets)
        targets = self._causal_targets(example)
        ids = self._prompt(example, reserved=len(targets))
        return Prompt((*ids, *targets[:-1]), len(ids) - 1, targets=targets)

    def arguments(self) -> dict[str, str]:
        """What of the task a run depends on beside its prompts, as text by name."""
        return {"metric": self.task.metric}

    def _causal_targets(self, example: TextExample) -> tuple[int, ...]:
        """The reference's tokens as they come after the whole prompt."""
        fields = dict(example.fields)
        bare = self._ids(fields)
        ids = self._ids(fields, f"{self.task.delimiter}{example.reference}")
        if ids[: len(bare)] != bare:
            raise UserError(
                f"task {self.task.name!r}: the reference {_short(example.reference)} merges with "
                f"the text before it in {self.pattern!r} and delimiter {self.task.delimiter!r}; "
                "let the pattern end without a space, or change the delimiter."
            )
        return self._checked(ids[len(bare) :], example.reference)

    def _seq2seq_targets(self, reference: str) -> tuple[int, ...]:
        return self._checked(list(self.tokenizer(text_target=reference)["input_ids"]), reference)

    def _checked(self, targets: list[int], reference: str | None) -> tuple[int, ...]:
        if not 0 < len(targets) < self.max_length:
            raise UserError(
                f"task {self.task.name!r}: the reference {_short(reference)} has {len(targets)} "
                f"tokens, and there may be 1 to {self.max_length - 1}; shorten it or raise "
                "max_length."
            )
        return tuple(targets)


def _short(text: str | None, most: int = 40) -> str:
    return repr(text if text is None or len(text) <= most else f"{text[:most]}...")
