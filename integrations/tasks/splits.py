"""True few-shot splits: k examples, or k a class, for training and k others for development."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from integrations.errors import UserError

Pool = TypeVar("Pool")


def draw_shots(
    labels: Sequence[int], shots: int, label_words: Sequence[str], seed: int, parts: int
) -> list[list[int]]:
    """Draw disjoint sets of ``shots`` examples a class.

    Args:
        labels: Labels of the examples to draw from; those without a label word are never drawn.
        shots: Examples a class in each set.
        label_words: One a class; says how many classes there are and names them in errors.
        seed: The same seed draws the same sets.
        parts: How many sets.

    Returns:
        ``parts`` lists of indices into ``labels``, ``shots`` of every class in each.

    Raises:
        UserError: If a class has fewer than ``shots * parts`` examples.
    """
    _require_shots(shots, "example a class")
    rng = np.random.default_rng(seed)
    drawn: list[list[int]] = [[] for _ in range(parts)]
    for label, word in enumerate(label_words):
        rows = np.flatnonzero(np.asarray(labels) == label)
        _require_enough(f"class {label} ({word!r})", len(rows), shots, parts)
        for part, chosen in zip(drawn, _sets(rows, shots, parts, rng), strict=True):
            part.extend(chosen)
    return drawn


def draw_examples(count: int, shots: int, seed: int, parts: int) -> list[list[int]]:
    """Draw disjoint sets of ``shots`` examples that have no classes.

    Args:
        count: How many there are to draw from.
        shots: Examples in each set.
        seed: The same seed draws the same sets.
        parts: How many sets.

    Returns:
        ``parts`` lists of indices.

    Raises:
        UserError: If there are fewer than ``shots * parts`` examples.
    """
    _require_shots(shots, "example")
    _require_enough("the data", count, shots, parts)
    return list(_sets(np.arange(count), shots, parts, np.random.default_rng(seed)))


def draw_parts(
    pool: Pool, dev_pool: Pool | None, draw: Callable[[Pool, int], list[list[int]]]
) -> tuple[list[int], list[int]]:
    """Rows for training, and rows for development, of one pool or of two.

    Args:
        pool: What training examples come from.
        dev_pool: What those for development come from; None if from the same pool.
        draw: Draws so many disjoint sets of rows of a pool.
    """
    if dev_pool is None:
        train, dev = draw(pool, 2)
    else:
        (train,), (dev,) = draw(pool, 1), draw(dev_pool, 1)
    return train, dev


def _sets(
    rows: np.ndarray, shots: int, parts: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    order = rng.permutation(len(rows))
    for part in range(parts):
        yield rows[order[part * shots : (part + 1) * shots]].tolist()


def _require_shots(shots: int, of: str) -> None:
    if shots < 1:
        raise UserError(f"shots must be at least 1 {of}; got {shots}.")


def _require_enough(where: str, count: int, shots: int, parts: int) -> None:
    if count < shots * parts:
        use = "train and dev sets" if parts == 2 else "set"
        most = count // parts
        mend = f"; add examples or lower the shots to {most}." if most else "; add examples."
        raise UserError(
            f"{where} has {count} examples, but {shots}-shot {use} need {shots * parts}{mend}"
        )
