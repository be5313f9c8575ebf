"""From a task's examples to token ids, answer positions and label tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from integrations.architectures import Kind, family_of
from integrations.errors import UserError
from integrations.tasks.task import MASK, Example, Task, pattern_fields

MAX_LENGTH = 512
SENTINEL = "<extra_id_0>"
"""What T5 puts in the place of a masked span, and then says before the span itself."""


def longest_prompt(model: PreTrainedModel) -> int:
    """Tokens a prompt may have: 512, or fewer if the model has fewer positions."""
    config = getattr(model.config, "text_config", model.config)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:  # relative positions only
        return MAX_LENGTH
    return int(min(MAX_LENGTH, positions - family_of(model.config.model_type).reserved_positions))


@dataclass(frozen=True)
class Prompt:
    """One example as the model sees it.

    Attributes:
        ids: Token ids.
        answer: Position whose output predicts the label word; with a decoder, in its input.
        label: Index of the right label word.
        decoder_ids: Input of the decoder; empty for models without one.
    """

    ids: tuple[int, ...]
    answer: int
    label: int
    decoder_ids: tuple[int, ...] = ()


class Encoder:
    """Encodes a task's examples for one tokenizer and kind of model.

    An encoder-decoder gets the same prompt as a masked model, and its decoder what it would have
    said before the label word in pretraining: the sentinel that marks the span (T5, arXiv
    1910.10683, section 3.1.4), or the text up to the mask (BART, arXiv 1910.13461, section 2.2,
    where the decoder says the whole text).

    Args:
        task: The task.
        tokenizer: The model's tokenizer.
        kind: ``"causal"``, ``"masked"`` or ``"seq2seq"``.
        max_length: Longest prompt in tokens. Longer ones lose the end of their longest field,
            never a part of the pattern.

    Raises:
        UserError: If the tokenizer has no mask token for a masked model or an encoder-decoder, a
            label word is unknown to it, or two label words begin with the same token.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        kind: Kind,
        max_length: int = MAX_LENGTH,
    ) -> None:
        self.task = task
        self.tokenizer = tokenizer
        self.kind = kind
        self.pattern = task.pattern(kind)
        self.max_length = max_length
        self.blank = self._blank()
        self.label_ids = self._label_ids()

    @property
    def pad_id(self) -> int:
        """Token that fills up shorter prompts; which one makes no difference."""
        found = self.tokenizer.pad_token_id
        return 0 if found is None else int(found)

    def encode(self, examples: Sequence[Example]) -> list[Prompt]:
        """Token ids, answer position and label of each example."""
        prompts = []
        for example in examples:
            ids = self._fit(dict(example.fields))
            answer = self._answer(ids)
            decoder_ids: tuple[int, ...] = ()
            if self.kind == "seq2seq":
                decoder_ids = self._decoder_ids(ids[:answer])
                answer = len(decoder_ids) - 1
            prompts.append(Prompt(tuple(ids), answer, example.label, decoder_ids))
        return prompts

    def _blank(self) -> str | None:
        """What stands in the place of the label word; None for causal models."""
        if self.kind == "causal":
            return None
        if self.kind == "seq2seq" and SENTINEL in self.tokenizer.all_special_tokens:
            return SENTINEL
        needed = {"mask": self.tokenizer.mask_token}
        if self.kind == "seq2seq":  # a decoder begins with it
            needed["closing"] = self.tokenizer.eos_token
        for name, token in needed.items():
            if token is None:
                raise UserError(
                    f"task {self.task.name!r} asks a {self.kind} model, but the tokenizer has no "
                    f"{name} token; use a model with a masked-language head or a causal one with "
                    "its tokenizer."
                )
        return str(self.tokenizer.mask_token)

    def _decoder_ids(self, before: list[int]) -> tuple[int, ...]:
        """The decoder's input up to the answer, given the prompt's tokens before the blank."""
        if self.blank == SENTINEL:
            return self.pad_id, self._id(SENTINEL)
        return self._id(str(self.tokenizer.eos_token)), *before

    def _id(self, token: str) -> int:
        found: Any = self.tokenizer.convert_tokens_to_ids(token)
        return int(found)

    def _ids(self, fields: dict[str, str], answer: str | None = None) -> list[int]:
        """Token ids of the filled pattern, with a label word in place if one is given."""
        if self.blank is not None:
            # A mask in a field would be taken for the answer.
            fields = {name: text.replace(self.blank, "") for name, text in fields.items()}
            text = self.pattern.format(**fields, **{MASK: answer or self.blank})
            return list(self.tokenizer(text)["input_ids"])
        text = self.pattern.format(**fields) + (f" {answer}" if answer else "")
        ids = list(self.tokenizer(text)["input_ids"])
        # A closing special token would stand between the prompt and its answer.
        while ids and ids[-1] in (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id):
            ids.pop()
        return ids

    def _answer(self, ids: list[int]) -> int:
        if self.blank is None:
            return len(ids) - 1
        return ids.index(self._id(self.blank))

    def _fit(self, fields: dict[str, str]) -> list[int]:
        ids = self._ids(fields)
        while len(ids) > self.max_length:
            longest = max(fields, key=lambda name: len(fields[name]))
            text = fields[longest]
            # Cut in proportion to the excess, a little more each round, until the prompt fits.
            keep = min(int(len(text) * self.max_length / len(ids)), len(text) - 1)
            if keep <= 0:
                raise UserError(
                    f"the pattern {self.pattern!r} alone is longer than {self.max_length} tokens."
                )
            fields[longest] = text[:keep]
            ids = self._ids(fields)
        return ids

    def _label_ids(self) -> tuple[int, ...]:
        """First token of each label word as it is encoded in the pattern."""
        fields = dict.fromkeys(self._field_names(), "It")
        bare = self._ids(fields)
        position = len(bare) if self.blank is None else self._answer(bare)
        found: dict[int, str] = {}
        for word in self.task.label_words:
            ids = self._ids(fields, word)
            if ids[:position] != bare[:position] or len(ids) <= position:
                raise UserError(
                    f"label word {word!r} merges with the text before it in {self.pattern!r}; "
                    "change the pattern so that a space comes before the answer."
                )
            token = ids[position]
            if token == self.tokenizer.unk_token_id:
                raise UserError(f"label word {word!r} is unknown to the tokenizer; choose another.")
            if token in found:
                raise UserError(
                    f"label words {found[token]!r} and {word!r} begin with the same token "
                    f"{self.tokenizer.convert_ids_to_tokens(token)!r}; choose words whose first "
                    "tokens differ."
                )
            found[token] = word
        return tuple(found)

    def _field_names(self) -> list[str]:
        return [name for name in pattern_fields(self.pattern) if name != MASK]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts of about one length, padded on the right.

    Attributes:
        rows: (N,) where each prompt stood in the list that was grouped.
        ids: (N, T) token ids.
        lengths: (N,) tokens of each prompt; what comes after is padding.
        mask: (N, T) 1 for real tokens, or None where the model needs none.
        answers: (N,) answer positions.
        labels: (N,) right labels.
        decoder_ids: (N, S) input of the decoder, in which the answer positions are; None for
            models without one.
    """

    rows: torch.Tensor
    ids: torch.Tensor
    lengths: torch.Tensor
    mask: torch.Tensor | None
    answers: torch.Tensor
    labels: torch.Tensor
    decoder_ids: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.ids.shape[0]

    def inputs(self, copies: int = 1) -> dict[str, torch.Tensor | None]:
        """What the model is called with, the whole batch repeated for so many candidates."""
        tensors = {"input_ids": self.ids, "attention_mask": self.mask}
        if self.decoder_ids is not None:
            tensors["decoder_input_ids"] = self.decoder_ids
        return {name: t if t is None else t.repeat(copies, 1) for name, t in tensors.items()}


# One more batch costs about as much as these many tokens, since the weights are streamed from
# memory once more (measured on a 2-core CPU with a 135M model: 46 ms against 1.4 ms a token).
BATCH_OVERHEAD_TOKENS = 32


def group_by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut prompts, sorted by length, into batches that cost least.

    A batch costs its padded tokens plus :data:`BATCH_OVERHEAD_TOKENS`; the cheapest cut of the
    sorted list is found by dynamic programming.

    Args:
        lengths: Tokens in each prompt.
        max_tokens: Most padded tokens in a batch; a longer single prompt is a batch of its own.

    Returns:
        Indices into ``lengths``, one list a batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    best = [0.0] + [float("inf")] * len(order)
    cut = [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        for start in range(end - 1, -1, -1):
            tokens = (end - start) * longest
            if tokens > max_tokens and end - start > 1:
                break
            cost = best[start] + tokens + BATCH_OVERHEAD_TOKENS
            if cost < best[end]:
                best[end], cut[end] = cost, start
    groups = []
    end = len(order)
    while end > 0:
        groups.append(order[cut[end] : end])
        end = cut[end]
    return groups[::-1]


def make_batches(
    prompts: Sequence[Prompt],
    pad_id: int,
    kind: Kind,
    device: torch.device,
    *,
    grouped: bool = True,
    max_tokens: int = 4096,
) -> list[PromptBatch]:
    """Batch prompts for a model.

    Args:
        prompts: What to batch.
        pad_id: Token id that fills up shorter prompts.
        kind: Causal models need no mask: padding comes after the answer and is never attended to.
        device: Where the tensors go.
        grouped: Batch prompts of like length; False pads all to the longest.
        max_tokens: Most padded tokens in a batch.
    """
    lengths = [len(p.ids) for p in prompts]
    if grouped:
        groups = group_by_length(lengths, max_tokens)
    else:
        size = max(1, max_tokens // max(lengths))
        groups = [list(range(i, min(i + size, len(lengths)))) for i in range(0, len(lengths), size)]
    batches = []
    for group in groups:
        width = max(lengths[i] for i in group)
        mask = torch.zeros((len(group), width), dtype=torch.long)
        for row, i in enumerate(group):
            mask[row, : lengths[i]] = 1
        needs_mask = kind != "causal" and not bool(mask.all())
        batches.append(
            PromptBatch(
                rows=torch.tensor(group),
                ids=_padded([prompts[i].ids for i in group], pad_id).to(device),
                lengths=torch.tensor([lengths[i] for i in group], device=device),
                mask=mask.to(device) if needs_mask else None,
                answers=torch.tensor([prompts[i].answer for i in group], device=device),
                labels=torch.tensor([prompts[i].label for i in group], device=device),
                # Padding comes after the answer, which a decoder does not look beyond.
                decoder_ids=_padded([prompts[i].decoder_ids for i in group], pad_id).to(device)
                if kind == "seq2seq"
                else None,
            )
        )
    return batches


def _padded(rows: Sequence[Sequence[int]], pad_id: int) -> torch.Tensor:
    """One matrix, short rows filled up on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=pad_id)
