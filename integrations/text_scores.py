"""Scores of generated texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from integrations.errors import UserError, unknown
from integrations.metrics import name_of

if TYPE_CHECKING:
    from integrations.tasks.text import TextExample

TextScore = Callable[[Sequence[str], Sequence["TextExample"]], Sequence[float]]
"""Maps N generated texts and their N examples to N scores, higher being better."""


def exact_match(texts: Sequence[str], examples: Sequence[TextExample]) -> list[float]:
    """1 where a text is the reference but for space around both, else 0."""
    return [
        float(text.strip() == str(example.reference).strip())
        for text, example in zip(texts, examples, strict=True)
    ]


def rouge_l(texts: Sequence[str], examples: Sequence[TextExample]) -> list[float]:
    """F-measure of the longest common subsequence of words (Lin 2004, ROUGE-L), without stemming.

    Words are of Latin letters and digits, as in rouge-score.

    Raises:
        UserError: If rouge-score is not installed.
    """
    scorer = _rouge_scorer()
    return [
        float(scorer.score(str(example.reference), text)["rougeL"].fmeasure)
        for text, example in zip(texts, examples, strict=True)
    ]


SCORES: dict[str, TextScore] = {"exact": exact_match, "rougeL": rouge_l}
REFERENCED = tuple(SCORES)
"""Scores that compare with a reference."""


def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UserError(
            "the score 'rougeL' needs the package rouge-score; pip install 'dfo-lora[rouge]'."
        ) from error
    return RougeScorer(["rougeL"])


def make_score(score: str | TextScore) -> TextScore:
    """A score by name, or one's own, checked.

    Raises:
        UserError: If there is no such score, or its package is missing. When called: if a
            function of one's own does not return one number a text.
    """
    if callable(score):
        return partial(_checked, score)
    if score not in SCORES:
        raise unknown("score", str(score), SCORES)
    if score == "rougeL":
        _rouge_scorer()
    return SCORES[score]


def _checked(
    function: TextScore, texts: Sequence[str], examples: Sequence[TextExample]
) -> Sequence[float]:
    found: Any = function(texts, examples)
    try:
        scores = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError):
        scores = None
    if scores is None or scores.shape != (len(texts),):
        got = repr(found)[:60] if scores is None else f"shape {scores.shape}"
        raise UserError(
            f"score {name_of(function)!r} must return one number for each of the {len(texts)} "
            f"texts; got {got}. Return a list of {len(texts)} numbers, higher being better."
        )
    listed: list[float] = scores.tolist()
    return listed
