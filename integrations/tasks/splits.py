"""True few-shot splits: k examples a class for training and k others for development."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from integrations.errors import UserError


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
    if shots < 1:
        raise UserError(f"shots must be at least 1 example a class; got {shots}.")
    rng = np.random.default_rng(seed)
    drawn: list[list[int]] = [[] for _ in range(parts)]
    for label, word in enumerate(label_words):
        rows = np.flatnonzero(np.asarray(labels) == label)
        if len(rows) < shots * parts:
            use = "train and dev sets" if parts == 2 else "set"
            raise UserError(
                f"class {label} ({word!r}) has {len(rows)} examples, but {shots}-shot {use} need "
                f"{shots * parts}; add examples or lower the shots to {len(rows) // parts}."
            )
        order = rng.permutation(len(rows))
        for part in range(parts):
            drawn[part].extend(rows[order[part * shots : (part + 1) * shots]].tolist())
    return drawn
