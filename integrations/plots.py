"""The convergence plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from integrations.errors import UserError
from integrations.history import History


def plot_history(
    history: History,
    path: str | Path,
    *,
    title: str,
    metric: str,
    test: Mapping[str, float] | None = None,
) -> None:
    """Draw losses and scores against evaluations.

    Args:
        history: A run's history.
        path: Where the picture goes; its suffix says which format (``.png``, ``.svg``, ``.pdf``).
        title: What the run was.
        metric: Name of the score.
        test: Test scores to draw as level lines, by name.

    Raises:
        UserError: If matplotlib is missing or doesn't know the suffix.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError("plots need matplotlib; pip install 'dfo-lora[demo]'.") from None
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    evaluations = [score.evaluations for score in history.scores]
    steps = [0, *(visit.evaluations for visit in history.visits)]
    losses = [history.scores[0].train_loss, *(visit.loss for visit in history.visits)]
    above.step(steps, losses, where="post", label="train, in place")
    above.plot(evaluations, [score.loss for score in history.scores], "o-", ms=4, label="dev")
    above.set_ylabel("loss")
    above.set_title(title)
    below.plot(
        evaluations, [score.score for score in history.scores], "o-", ms=4, color="C1", label="dev"
    )
    below.plot(
        [history.best.evaluations], [history.best.score], "*", ms=14, color="C1", label="chosen"
    )
    for i, (name, value) in enumerate((test or {}).items()):
        below.axhline(value, color=f"C{i + 2}", linestyle="--", label=f"test, {name}")
    below.set_ylabel(metric)
    below.set_xlabel("candidates evaluated")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise UserError(f"the plot cannot be saved as {str(path)!r}: {error}.") from None
