"""Outcomes of a comparison as a table: mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from integrations.comparison import Outcome
from integrations.methods.registry import METHODS


@dataclass(frozen=True)
class Row:
    """A method over its seeds.

    Attributes:
        method: Its name in `METHODS`.
        title: Its name in tables, with the seeds that it finished if others finished more.
        kind: ``"gradient-free"`` or ``"gradient-based"``.
        seeds: Seeds that it finished.
        score: Mean test score; None if it finished none.
        std: Sample standard deviation of it; None with fewer than two seeds.
        dev_score: Mean development score of what was chosen.
        evaluations: Mean passes over the training set.
        seconds: Mean wall time of learning.
        memory: Most bytes beyond the model.
        parameters: Numbers that were tuned, the most of all seeds.
        errors: What went wrong, each once.
    """

    method: str
    title: str
    kind: str
    seeds: int
    score: float | None
    std: float | None
    dev_score: float | None
    evaluations: float | None
    seconds: float | None
    memory: int | None
    parameters: int | None
    errors: tuple[str, ...]


def summarize(outcomes: Sequence[Outcome]) -> list[Row]:
    """One row a method, in the order of `METHODS`."""
    rows = []
    seeds = len({outcome.seed for outcome in outcomes if outcome.error is None})
    for name, method in METHODS.items():
        mine = [outcome for outcome in outcomes if outcome.method == name]
        good = [outcome for outcome in mine if outcome.error is None]
        if not mine:
            continue
        scores = [o.score for o in good if o.score is not None]
        rows.append(
            Row(
                method=name,
                title=_title(method.title, len(good), seeds),
                kind=method.kind,
                seeds=len(good),
                score=_mean(scores),
                std=statistics.stdev(scores) if len(scores) > 1 else None,
                dev_score=_mean([o.dev_score for o in good if o.dev_score is not None]),
                evaluations=_mean([o.evaluations for o in good if o.evaluations is not None]),
                seconds=_mean([o.seconds for o in good if o.seconds is not None]),
                memory=max((o.memory for o in good if o.memory is not None), default=None),
                parameters=max(
                    (o.parameters for o in good if o.parameters is not None), default=None
                ),
                errors=tuple(dict.fromkeys(o.error for o in mine if o.error is not None)),
            )
        )
    return rows


def _title(title: str, finished: int, seeds: int) -> str:
    """A method's name, which says so if its mean is over fewer seeds than others'."""
    return title if finished in (0, seeds) else f"{title} ({finished} of {seeds} seeds)"


def comparison_table(rows: Sequence[Row], metric: str) -> Table:
    """The table that the command shows."""
    table = Table(
        "", "test", "dev", "evaluations", "seconds", "extra MB", "tuned", title=f"{metric}, %"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    table.columns[0].no_wrap = True
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        last = after is not None and after.kind != row.kind
        table.add_row(row.title, *cells(row), end_section=last)
    return table


def cells(row: Row) -> list[str]:
    """A row's figures as text: score, dev, evaluations, seconds, memory, parameters."""
    if row.score is None:
        return [f"failed: {row.errors[0]}" if row.errors else "-", *["-"] * 5]
    spread = "" if row.std is None else f" ({100 * row.std:.1f})"
    return [
        f"{100 * row.score:.1f}{spread}",
        "-" if row.dev_score is None else f"{100 * row.dev_score:.1f}",
        "-" if row.evaluations is None else f"{row.evaluations:,.0f}",
        "-" if row.seconds is None else f"{row.seconds:.0f}",
        "-" if row.memory is None else f"{row.memory / 1e6:,.0f}",
        "-" if row.parameters is None else f"{row.parameters:,}",
    ]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
