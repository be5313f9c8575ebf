"""Methods compared: scores against evaluations, seconds and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from integrations.comparison import Outcome
from integrations.comparison_summary import summarize
from integrations.methods.registry import FREE
from integrations.plots import new_figure, save_figure


def plot_comparison(outcomes: Sequence[Outcome], path: str | Path, *, metric: str) -> None:
    """Draw methods' scores against evaluations, seconds and memory.

    The curves are development scores of what is chosen so far, the mean over seeds; points on the
    right are test scores, mean and standard deviation.

    Args:
        outcomes: Of one comparison; failed ones are left out.
        path: Where the picture goes; its suffix says which format (``.png``, ``.svg``, ``.pdf``).
        metric: Name of the score.

    Raises:
        UserError: If matplotlib is missing or doesn't know the suffix.
    """
    figure = new_figure(figsize=(14, 5))
    by_count, by_time, by_memory = figure.subplots(1, 3)
    for i, row in enumerate(row for row in summarize(outcomes) if row.score is not None):
        mine = [o for o in outcomes if o.method == row.method and o.error is None]
        free = row.kind == FREE
        style: dict[str, Any] = {
            "color": f"C{i % 10}",
            "marker": "os^Dv"[i // 10] if free else "Xs^Dv"[i // 10],
            "linestyle": "-" if free else "--",
        }
        for axes, unit in ((by_count, "evaluations"), (by_time, "seconds")):
            x, y = _mean_course(mine, unit)
            axes.plot(x, y, drawstyle="steps-post", markevery=[len(x) - 1], **style)
        by_memory.errorbar(
            [(row.memory or 0) / 1e6], [row.score], yerr=[row.std or 0], capsize=3, ms=8,
            **style, label=row.title,
        )  # fmt: skip
    by_count.set_xscale("symlog", linthresh=1)
    by_time.set_xscale("symlog", linthresh=1)
    by_memory.set_xscale("symlog", linthresh=10)
    by_count.set_ylabel(f"dev {metric} of what is chosen")
    by_memory.set_ylabel(f"test {metric}")
    by_count.set_xlabel("evaluations: passes over the training set")
    by_time.set_xlabel("seconds of learning")
    by_memory.set_xlabel("MB at the peak, beyond the model")
    for axes in (by_count, by_time, by_memory):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    save_figure(figure, path)


def _mean_course(outcomes: Sequence[Outcome], unit: str) -> tuple[list[float], list[float]]:
    """Where any of some trials looked, and the mean over trials of the best score until then."""
    places = sorted({look[unit] for outcome in outcomes for look in outcome.course})

    def best(course: Sequence[Mapping[str, Any]], place: float) -> float:
        # The first look, of the frozen model, stands for all that is before it.
        chosen = [look["score"] for look in course[1:] if look["best"] and look[unit] <= place]
        return float(chosen[-1] if chosen else course[0]["score"])

    return places, [fmean(best(o.course, place) for o in outcomes) for place in places]
