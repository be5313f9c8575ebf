"""From a task's examples to token ids, answer positions and label tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from integrations.architectures import Kind, family_of
from integrations.errors import UserError
from integrations.metrics import LOSS_NAMES
from integrations.tasks.example import Example
from integrations.tasks.task import MASK, Task, pattern_fields

MAX_LENGTH = 512
SENTINEL = "<extra_id_0>"
"""What T5 puts in the place of a masked span, and then says before the span itself."""

# Texts longer than these many characters a token of the prompt are cut before they are tokenized,
# so that a book takes no longer than a page. Text in no language comes near it.
CHARACTERS_PER_TOKEN = 32


def free_positions(model: PreTrainedModel, new_tokens: int = 0) -> float:
    """Positions that a model was made for, less those of some tokens; inf if it counts none.

    Raises:
        UserError: If none is left.
    """
    config = getattr(model.config, "text_config", model.config)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:  # relative positions only
        return math.inf
    free = int(positions - family_of(model.config.model_type).reserved_positions - new_tokens)
    if free < 1:
        raise UserError(
            f"{new_tokens} new tokens leave no room for a prompt in the model's {positions} "
            "positions; lower max_new_tokens."
        )
    return free


def longest_prompt(
    model: PreTrainedModel, new_tokens: int = 0, max_length: int | None = None
) -> int:
    """Tokens a prompt may have: as many as asked for, or 512, or fewer if the model takes fewer.

    Args:
        model: The model.
        new_tokens: Tokens that are to follow the prompt.
        max_length: What is asked for; None for 512, or as many as the model has positions for.

    Raises:
        UserError: If the model has a table of positions with fewer rows, or was made for fewer with
            the new ones among them, or none is left for a prompt.
    """
    free = free_positions(model, new_tokens)
    if max_length is None:
        return int(min(MAX_LENGTH, free))
    if max_length > free and (new_tokens or _has_position_table(model)):
        beside = f" beside {new_tokens} new ones" if new_tokens else ""
        raise UserError(
            f"max_length must not exceed the {free} tokens that the model has positions for"
            f"{beside}; got {max_length}."
        )
    return max_length


def _has_position_table(model: PreTrainedModel) -> bool:
    """Whether positions are looked up, rather than turned into angles or distances."""
    embeddings = (name for name, part in model.named_modules() if isinstance(part, nn.Embedding))
    names = (*embeddings, *(name for name, _ in model.named_buffers()))
    of_text = (name for name in names if "vision" not in name and "position_ids" not in name)
    return any(re.search(r"(^|\.)wpe$|position", name) for name in of_text)


@dataclass(frozen=True)
class Prompt:
    """One example as the model sees it.

    Attributes:
        ids: Token ids.
        answer: Position whose output predicts the label word, or the first token that is to
            follow; with a decoder, in its input.
        label: Index of the right label word; -1 if there is none.
        decoder_ids: Input of the decoder; empty for models without one.
        targets: Tokens that are to follow, predicted from ``answer`` on; empty for a label word.
        soft: Place of the first soft-prompt token among the ids, and how many there are. Their own
            embeddings are where the soft prompt starts.
    """

    ids: tuple[int, ...]
    answer: int
    label: int = -1
    decoder_ids: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    soft: tuple[int, int] = (0, 0)

    @property
    def length(self) -> int:
        """Tokens that it takes, of encoder or decoder, whichever has more."""
        return max(len(self.ids), len(self.decoder_ids))

    @property
    def answers(self) -> int:
        """Positions that are read: one for a label word, or one for each token to follow."""
        return len(self.targets) or 1


class SameToken(UserError):
    """Two label words begin with the same token, where one token is read."""


class PatternEncoder:
    """Fills a pattern's fields so that the prompt has no more tokens than the model takes.

    Args:
        tokenizer: The model's tokenizer.
        kind: ``"causal"``, ``"masked"`` or ``"seq2seq"``.
        pattern: How the fields become a prompt.
        max_length: Longest prompt in tokens. Longer ones lose the end of their longest field,
            never a part of the pattern.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, kind: Kind, pattern: str, max_length: int
    ) -> None:
        self.tokenizer = tokenizer
        self.kind = kind
        self.pattern = pattern
        self.max_length = max_length

    @property
    def pad_id(self) -> int:
        """Token that fills up shorter prompts; which one makes no difference."""
        found = self.tokenizer.pad_token_id
        return 0 if found is None else int(found)

    def _ids(self, fields: dict[str, str], answer: str | None = None) -> list[int]:
        """Token ids of the filled pattern, with an answer in place if one is given.

        A closing special token would stand between the prompt and its answer.
        """
        return self._open_ids(self.pattern.format(**fields) + (f" {answer}" if answer else ""))

    def _open_ids(self, text: str) -> list[int]:
        """Token ids of a text that goes on: no special token closes it."""
        ids = list(self.tokenizer(text)["input_ids"])
        while ids and ids[-1] in (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id):
            ids.pop()
        return ids

    def _word_ids(self, word: str, before: Sequence[int], ids: Sequence[int]) -> tuple[int, ...]:
        """What follows a prompt's tokens in those of the same prompt with a label word.

        Raises:
            UserError: If the word changes the tokens before it, or is unknown.
        """
        count = len(before)
        if list(ids[:count]) != list(before) or len(ids) <= count:
            raise UserError(
                f"label word {word!r} merges with the text before it in {self.pattern!r}; "
                "change the pattern so that a space comes before the answer."
            )
        if ids[count] == self.tokenizer.unk_token_id:
            raise UserError(f"label word {word!r} is unknown to the tokenizer; choose another.")
        return tuple(ids[count:])

    def _id(self, token: str) -> int:
        found: Any = self.tokenizer.convert_tokens_to_ids(token)
        return int(found)

    def _fit(self, fields: dict[str, str], reserved: int = 0) -> list[int]:
        """Token ids of the filled pattern, the longest fields cut to as much as fits.

        Args:
            fields: The texts.
            reserved: Tokens of the longest prompt that are kept free.
        """
        room = self.max_length - reserved
        limit = max(room, 1) * CHARACTERS_PER_TOKEN
        ids = self._ids(_cut(fields, limit))
        if len(ids) <= room:
            return ids
        # Bisect for how many characters a field may have: `least` fits, `most` does not.
        least, most = 1, min(limit, max(map(len, fields.values()), default=1))
        ids = self._ids(_cut(fields, least))
        if len(ids) > room:
            raise UserError(
                f"the pattern {self.pattern!r} leaves no room for text in {room} tokens; "
                "raise max_length."
            )
        while most - least > 1:
            middle = (least + most) // 2
            found = self._ids(_cut(fields, middle))
            if len(found) <= room:
                least, ids = middle, found
            else:
                most = middle
        return ids


class Encoder(PatternEncoder):
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

    losses = LOSS_NAMES

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        kind: Kind,
        max_length: int = MAX_LENGTH,
    ) -> None:
        super().__init__(tokenizer, kind, task.pattern(kind), max_length)
        self.task = task
        self.blank = self._blank()
        self.label_ids = self._label_ids()

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

    def arguments(self) -> dict[str, str]:
        """What of the task a run depends on beside its prompts, as text by name."""
        return {"metric": self.task.metric, "label tokens": str(self.label_ids)}

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

    def _ids(self, fields: dict[str, str], answer: str | None = None) -> list[int]:
        """Token ids of the filled pattern, with a label word in place if one is given."""
        if self.blank is not None:
            # A mask in a field would be taken for the answer.
            fields = {name: text.replace(self.blank, "") for name, text in fields.items()}
            text = self.pattern.format(**fields, **{MASK: answer or self.blank})
            return list(self.tokenizer(text)["input_ids"])
        return super()._ids(fields, answer)

    def _answer(self, ids: list[int]) -> int:
        if self.blank is None:
            return len(ids) - 1
        return ids.index(self._id(self.blank))

    def _label_ids(self) -> tuple[int, ...]:
        """First token of each label word as it is encoded in the pattern."""
        fields = dict.fromkeys(self._field_names(), "It")
        bare = self._ids(fields)
        position = len(bare) if self.blank is None else self._answer(bare)
        found: dict[int, str] = {}
        for word in self.task.label_words:
            token = self._word_ids(word, bare[:position], self._ids(fields, word))[0]
            if token in found:
                raise SameToken(
                    f"label words {found[token]!r} and {word!r} begin with the same token "
                    f"{self.tokenizer.convert_ids_to_tokens(token)!r}; choose words whose first "
                    "tokens differ."
                )
            found[token] = word
        return tuple(found)

    def _field_names(self) -> list[str]:
        return [name for name in pattern_fields(self.pattern) if name != MASK]


def _cut(fields: dict[str, str], length: int) -> dict[str, str]:
    """Fields of at most so many characters; shorter ones stay as they are."""
    return {
        name: text if len(text) <= length else text[:length].rstrip()
        for name, text in fields.items()
    }
