"""Convergence plots: of one run, and of several side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    figure = new_figure(figsize=(8, 6))
    above, below = figure.subplots(2, 1, sharex=True)
    evaluations = [score.evaluations for score in history.scores]
    above.step(*_train_losses(history), where="post", label="train, in place")
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
        # Beside the axes: inside it would cover points, the chosen one among them.
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(figure, path)


def plot_runs(histories: Mapping[str, History], path: str | Path, *, metric: str) -> None:
    """Draw training losses and development scores of runs, against evaluations and seconds.

    Args:
        histories: Each run's history by the run's name.
        path: Where the picture goes; its suffix says which format (``.png``, ``.svg``, ``.pdf``).
        metric: Name of the score.

    Raises:
        UserError: If matplotlib is missing or doesn't know the suffix.
    """
    figure = new_figure(figsize=(10, 6))
    grid = figure.subplots(2, 2, sharex="col", sharey="row")
    (loss_by_count, loss_by_time), (score_by_count, score_by_time) = grid
    for i, (name, history) in enumerate(histories.items()):
        looks, best = history.scores, history.best
        style: dict[str, Any] = {"color": f"C{i}", "label": name}
        loss_by_count.step(*_train_losses(history), where="post", **style)
        loss_by_time.step(
            [look.seconds for look in looks], [look.train_loss for look in looks], where="post",
            **style,
        )  # fmt: skip
        for axes, unit in ((score_by_count, "evaluations"), (score_by_time, "seconds")):
            x = [getattr(look, unit) for look in looks]
            axes.plot(x, [look.score for look in looks], ".-", lw=1, alpha=0.8, **style)
            axes.plot(
                [getattr(best, unit)], [best.score], "*", ms=14, color=f"C{i}", mec="black", mew=0.5
            )
    loss_by_count.set_ylabel("training loss")
    score_by_count.set_ylabel(f"dev {metric} (star: chosen)")
    score_by_count.set_xlabel("candidates evaluated")
    score_by_time.set_xlabel("seconds")
    for axes in grid.flat:
        axes.grid(alpha=0.3)
    loss_by_time.legend()
    save_figure(figure, path)


def new_figure(**settings: Any) -> Any:
    """An empty matplotlib figure.

    Raises:
        UserError: If matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UserError("plots need matplotlib; pip install 'dfo-lora[demo]'.") from None
    return Figure(layout="constrained", **settings)


def _train_losses(history: History) -> tuple[list[int], list[float]]:
    """Evaluations, and the training loss with the deltas that were then in place."""
    steps = [0, *(visit.evaluations for visit in history.visits)]
    return steps, [history.scores[0].train_loss, *(visit.loss for visit in history.visits)]


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure; the path's suffix says which format.

    Raises:
        UserError: If matplotlib doesn't know the suffix or the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"the plot cannot be saved as {str(path)!r}: {error}.") from None
