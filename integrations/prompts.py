"""From a task's examples to token ids, answer positions and label tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from integrations.architectures import Kind, family_of
from integrations.errors import UserError
from integrations.metrics import LOSS_NAMES
from integrations.patterns import PatternEncoder
from integrations.tasks.example import Example
from integrations.tasks.task import MASK, Task, pattern_fields

MAX_LENGTH = 512
SENTINEL = "<extra_id_0>"
"""What T5 puts in the place of a masked span, and then says before the span itself."""


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
        answer: Position whose output predicts the label word, or the first of several tokens;
            with a decoder, in its input.
        label: Index of the right label word; -1 if there is none.
        decoder_ids: Input of the decoder; empty for models without one.
        targets: Tokens to predict, from ``answer`` on; empty for one of the label words.
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
        """Positions that are read: one for a label word, or one for each token to predict."""
        return len(self.targets) or 1


class SameToken(UserError):
    """Two label words begin with the same token, where one token is read."""


class LabelEncoder(PatternEncoder):
    """Fills a task's pattern, and knows where the label word stands and what its tokens are.

    An encoder-decoder gets the same prompt as a masked model, and its decoder what it would have
    said before the label word in pretraining: the sentinel that marks the span (T5, arXiv
    1910.10683, section 3.1.4), or the text up to the mask (BART, arXiv 1910.13461, section 2.2,
    where the decoder says the whole text).

    Args:
        task: The task.
        tokenizer: The model's tokenizer.
        kind: ``"causal"``, ``"masked"`` or ``"seq2seq"``.
        max_length: Longest prompt in tokens (default 512). Longer ones lose the end of their
            longest field, never a part of the pattern.

    Attributes:
        blank: What stands in the place of the label word; None for causal models.
        words: The tokens of each label word.

    Raises:
        UserError: If the tokenizer has no mask token for a masked model or an encoder-decoder, or a
            label word is unknown to it.
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
        self.words = self._words()
        self._accept_words()

    def _accept_words(self) -> None:
        """Refuse words that cannot be told apart in the way they are read."""
        raise NotImplementedError

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

    def _text(self, fields: dict[str, str]) -> str:
        """The filled pattern."""
        if self.blank is None:
            return self.pattern.format(**fields)
        # A mask in a field would be taken for the answer.
        fields = {name: text.replace(self.blank, "") for name, text in fields.items()}
        return self.pattern.format(**fields, **{MASK: self.blank})

    def _ids(self, fields: dict[str, str]) -> list[int]:
        text = self._text(fields)
        if self.blank is None:
            return self._open_ids(text)
        return list(self.tokenizer(text)["input_ids"])

    def _place(self, ids: list[int]) -> int:
        """Where in a prompt the label word comes: the blank's place, or the end."""
        return len(ids) if self.blank is None else ids.index(self._id(self.blank))

    def _prompt(self, ids: list[int], label: int, word: tuple[int, ...] = ()) -> Prompt:
        """The prompt whose answer is one token, or all tokens of a label word.

        Args:
            ids: Token ids of the filled pattern.
            label: Index of the right label word.
            word: The tokens to predict; none for one, whichever it is.
        """
        place = self._place(ids)
        if self.kind == "causal":
            return Prompt((*ids, *word[:-1]), place - 1, label, targets=word)
        if self.kind == "seq2seq":
            before = self._decoder_ids(ids[:place])
            return Prompt(tuple(ids), len(before) - 1, label, (*before, *word[:-1]), targets=word)
        blanks = [ids[place]] * max(1, len(word))
        return Prompt((*ids[:place], *blanks, *ids[place + 1 :]), place, label, targets=word)

    def _words(self) -> list[tuple[int, ...]]:
        """Tokens of each label word after what comes before it, whatever follows."""
        fields = dict.fromkeys(set(pattern_fields(self.pattern)) - {MASK}, "It")
        ids, text = self._ids(fields), self._text(fields)
        before = ids[: self._place(ids)]
        if self.blank is None:
            text += " "
        else:
            text = text[: text.index(self.blank)]
            if self._open_ids(text) != before:
                # The blank took the white space before it along, as RoBERTa's mask does.
                text = f"{text.rstrip()} "
        return [
            self._word_ids(word, before, self._open_ids(text + word))
            for word in self.task.label_words
        ]


class Encoder(LabelEncoder):
    """Encodes an example as one prompt, whose answer is read from one position.

    Args:
        task: The task.
        tokenizer: The model's tokenizer.
        kind: ``"causal"``, ``"masked"`` or ``"seq2seq"``.
        max_length: Longest prompt in tokens (default 512). Longer ones lose the end of their
            longest field, never a part of the pattern.

    Attributes:
        label_ids: First token of each label word.

    Raises:
        UserError: If the tokenizer has no mask token for a masked model or an encoder-decoder, a
            label word is unknown to it, or two label words begin with the same token.
    """

    label_ids: tuple[int, ...]

    def encode(self, examples: Sequence[Example]) -> list[Prompt]:
        """Token ids, answer position and label of each example."""
        return [self._prompt(self._fit(dict(e.fields)), e.label) for e in examples]

    def arguments(self) -> dict[str, str]:
        """What of the task a run depends on beside its prompts, as text by name."""
        return {"metric": self.task.metric, "label tokens": str(self.label_ids)}

    def _accept_words(self) -> None:
        found: dict[int, str] = {}
        for word, (token, *_) in zip(self.task.label_words, self.words, strict=True):
            if token in found:
                raise SameToken(
                    f"label words {found[token]!r} and {word!r} begin with the same token "
                    f"{self.tokenizer.convert_ids_to_tokens(token)!r}; choose words whose first "
                    "tokens differ."
                )
            found[token] = word
        self.label_ids = tuple(found)
