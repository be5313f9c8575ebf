"""True few-shot splits: k examples a class for training and k others for development."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from integrations.errors import UserError
from integrations.tasks.task import Example


def draw_shots(
    pool: Sequence[Example], shots: int, label_words: Sequence[str], seed: int, parts: int
) -> list[list[Example]]:
    """Draw disjoint sets of ``shots`` examples a class.

    Args:
        pool: Examples to draw from.
        shots: Examples a class in each set.
        label_words: One a class; says how many classes there are and names them in errors.
        seed: The same seed draws the same sets.
        parts: How many sets.

    Returns:
        ``parts`` lists, each with ``shots`` examples of every class.

    Raises:
        UserError: If a class has fewer than ``shots * parts`` examples.
    """
    if shots < 1:
        raise UserError(f"shots must be at least 1 example a class; got {shots}.")
    rng = np.random.default_rng(seed)
    drawn: list[list[Example]] = [[] for _ in range(parts)]
    for label, word in enumerate(label_words):
        rows = [example for example in pool if example.label == label]
        if len(rows) < shots * parts:
            use = "train and dev sets" if parts == 2 else "set"
            raise UserError(
                f"class {label} ({word!r}) has {len(rows)} examples, but {shots}-shot {use} need "
                f"{shots * parts}; add examples or lower the shots to {len(rows) // parts}."
            )
        order = rng.permutation(len(rows))
        for part in range(parts):
            chosen = order[part * shots : (part + 1) * shots]
            drawn[part].extend(rows[i] for i in chosen)
    return drawn
