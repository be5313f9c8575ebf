"""A pattern whose fields are filled, and cut so that the prompt is no longer than it may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from integrations.architectures import Kind
from integrations.errors import UserError

# Texts longer than these many characters a token of the prompt are cut before they are tokenized,
# so that a book takes no longer than a page. Text in no language comes near it.
CHARACTERS_PER_TOKEN = 32


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

    def _ids(self, fields: dict[str, str]) -> list[int]:
        """Token ids of the filled pattern."""
        raise NotImplementedError

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


def _cut(fields: dict[str, str], length: int) -> dict[str, str]:
    """Fields of at most so many characters; shorter ones stay as they are."""
    return {
        name: text if len(text) <= length else text[:length].rstrip()
        for name, text in fields.items()
    }
