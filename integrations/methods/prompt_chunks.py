"""Prompts made of an example's texts and chunks of tokens that a search chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from integrations.errors import UserError
from integrations.patterns import CHARACTERS_PER_TOKEN
from integrations.prompts import Encoder, Prompt
from integrations.tasks import Example
from integrations.tasks.task import MASK, pattern_fields

HOLE = -1
"""Stands in a chunk for a token that is still to be chosen."""

Chunks = tuple[tuple[int, ...], ...]
"""Token ids of each chunk."""


class ChunkedPrompts:
    """Lays chunks of tokens and an example's texts out as a prompt.

    Of a task's pattern only the order of texts and label word stays, its own words do not. A chunk
    stands before each of these but before a label word between two texts, as in the templates of
    GAP3's public code.

    Args:
        encoder: Encodes the task's examples for the model.

    Attributes:
        slots: Chunks in a prompt.
        label_ids: Token of each label word, after a space.
        most_tokens: Most tokens that the chunks of a prompt may have together, a quarter of the
            longest prompt; texts are cut to what they leave.

    Raises:
        UserError: If the model is an encoder-decoder, or has no room for any text.
    """

    def __init__(self, encoder: Encoder) -> None:
        if encoder.kind == "seq2seq":
            raise UserError(
                "GAP3 is for causal and masked models, and this one is an encoder-decoder; leave "
                "the method out."
            )
        self.encoder = encoder
        self.tokenizer = encoder.tokenizer
        self.causal = encoder.kind == "causal"
        self.parts = pattern_fields(encoder.pattern) + [MASK] * self.causal
        inner = range(1, len(self.parts) - 1)
        self._chunk_before = [i for i, p in enumerate(self.parts) if p != MASK or i not in inner]
        self.slots = len(self._chunk_before)
        self.most_tokens = encoder.max_length // 4
        bare = " ".join(
            ["It", *(f"{{{part}}}" for part in self.parts[: -1 if self.causal else None])]
        )
        task = replace(encoder.task, patterns={encoder.kind: bare})
        bare_encoder = Encoder(task, self.tokenizer, encoder.kind, encoder.max_length)
        self.label_ids = bare_encoder.label_ids
        opened = list(self.tokenizer("It")["input_ids"])
        inside = list(self.tokenizer("It", add_special_tokens=False)["input_ids"])
        start = opened.index(inside[0])
        self.opening = opened[:start]
        self.closing = [] if self.causal else opened[start + len(inside) :]
        self._anchor = inside
        self.room = encoder.max_length - len(self.opening) - len(self.closing) - 1
        if self.room - self.most_tokens < 1:
            raise UserError(
                f"max_length of {encoder.max_length} leaves no room for text; raise it."
            )
        self._text_ids = cache(self._text_ids_of)

    @property
    def blank_id(self) -> int:
        """The mask token of a masked model."""
        return int(self.tokenizer.mask_token_id)

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens as text."""
        return str(self.tokenizer.decode(list(tokens)))

    def answering(self, example: Example, chunks: Chunks) -> Prompt:
        """The prompt whose answer is the label word."""
        ids, place = self._row(example, chunks, None if self.causal else self.blank_id)
        return Prompt(tuple(ids), place - self.causal, example.label)

    def filling(self, example: Example, chunks: Chunks, *, labelled: bool) -> tuple[Prompt, int]:
        """A prompt whose answer is the token in the hole.

        A masked model finds the hole masked where it is. A causal one sees nothing of what comes
        after it; so it reads texts and label word first, and then the hole's chunk up to the hole.

        Args:
            example: The example.
            chunks: Chunks with one hole.
            labelled: Whether the label word is there; a masked model finds it masked if not.

        Returns:
            The prompt, and the position that predicts the label word if it is not there.
        """
        word = self.label_ids[example.label] if labelled else None
        if self.causal:
            (chunk,) = (chunk for chunk in chunks if HOLE in chunk)
            before = chunk[: chunk.index(HOLE)]
            ids, place = self._row(example, ((),) * self.slots, word, len(before))
            ids += before
            return Prompt(tuple(ids), len(ids) - 1, example.label), place - 1
        ids, place = self._row(example, chunks, self.blank_id if word is None else word)
        hole = ids.index(HOLE)
        ids[hole] = self.blank_id
        return Prompt(tuple(ids), hole, example.label), place

    def _row(
        self, example: Example, chunks: Chunks, word: int | None, reserved: int = 0
    ) -> tuple[list[int], int]:
        """Token ids with a token or nothing in the label word's place, and that place.

        Texts are cut so that ``reserved`` more tokens would fit.
        """
        texts = self._fitting(example, self.room - reserved - sum(map(len, chunks)))
        ids, place, following = list(self.opening), 0, iter(chunks)
        for i, part in enumerate(self.parts):
            if i in self._chunk_before:
                ids += next(following)
            if part == MASK:
                place = len(ids)
                ids += [] if word is None else [word]
            else:
                ids += texts[part]
        return ids + self.closing, place

    def _fitting(self, example: Example, room: int) -> dict[str, tuple[int, ...]]:
        """Token ids of an example's texts, the longest cut until all fit."""
        texts = {part: self._text_ids(example.fields[part]) for part in self.parts if part != MASK}
        while sum(map(len, texts.values())) > room:
            longest = max(texts, key=lambda part: len(texts[part]))
            texts[longest] = texts[longest][:-1]
        return texts

    def _text_ids_of(self, text: str) -> tuple[int, ...]:
        """Token ids of a text that comes after a space."""
        if not self.causal:  # a mask in a text would be taken for the answer
            text = text.replace(str(self.tokenizer.mask_token), "")
        text = f"It {text[: self.encoder.max_length * CHARACTERS_PER_TOKEN]}"
        ids: Sequence[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tuple(ids[len(self._anchor) : len(self._anchor) + self.encoder.max_length])
