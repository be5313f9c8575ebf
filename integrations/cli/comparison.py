"""``dfo-lora compare``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from integrations.cli.config import require_no_other, write_config
from integrations.cli.options import (
    OUTPUT,
    SEARCH,
    TASK,
    Columns,
    Config,
    Data,
    Device,
    Dtype,
    Json,
    LabelWords,
    MaxLength,
    Model,
    Shots,
    TaskName,
    TestLimit,
    pairs,
    require_folder,
    words,
)
from integrations.comparison import Comparison, Outcome, read_outcomes
from integrations.comparison import compare as compare_methods
from integrations.comparison_plots import plot_comparison
from integrations.comparison_summary import comparison_table, summarize
from integrations.errors import UserError
from integrations.methods.registry import METHODS, choose_methods
from integrations.report import console, duration, print_json, show_plot

PLOT_FILE = "comparison.png"
Number = TypeVar("Number", int, float)


def compare(
    ctx: typer.Context,
    model: Model,
    task: TaskName,
    data: Data = None,
    methods: Annotated[
        str,
        typer.Option(
            help=f"all, gradient-free, gradient-based, or some of {', '.join(METHODS)}.",
            rich_help_panel=SEARCH,
        ),
    ] = "all",
    seeds: Annotated[
        str,
        typer.Option(
            help="Seeds, separated by commas or spaces; each draws a split.", rich_help_panel=TASK
        ),
    ] = "0,1,2",
    budget: Annotated[
        int | None,
        typer.Option(
            help="Most passes over the training set for a method; by default 6000, or no limit "
            "with --seconds.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="Most seconds of learning for a method; by default no limit.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    marks: Annotated[
        str | None,
        typer.Option(
            help="Shares of the limit, such as 0.33, after which what a method has is tested too; "
            "by default its end alone.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    shots: Shots = 16,
    label_words: LabelWords = None,
    column: Columns = None,
    test_limit: TestLimit = None,
    max_length: MaxLength = None,
    dtype: Dtype = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for results and plots; by default one under runs/. With an earlier "
            "comparison's results it goes on with what is missing.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Compare methods on the same few-shot splits: scores, time, memory, tuned numbers.

    A comparison that was interrupted goes on when the same command is given again.
    """
    comparison = Comparison(
        model=model,
        task=task,
        data=None if data is None else str(data),
        shots=shots,
        label_words=words(label_words),
        columns=pairs(column),
        test_limit=test_limit,
        budget=6000 if budget is None and seconds is None else budget,
        seconds=seconds,
        marks=tuple(_numbers("--marks", marks, float)),
        max_length=max_length,
        dtype=dtype,
        device=device,
    )
    names = choose_methods(words(methods) or ())
    numbers = _numbers("--seeds", seeds, int)
    folder = out or Path("runs") / f"compare-{Path(model).name}-{re.sub('[/:]', '-', task)}"
    require_folder(folder)
    require_no_other(folder, "compare")
    metric = comparison.split(numbers[0]).metric if numbers else "score"
    total = len(names) * len(numbers)
    with _Watch(total) as watch:
        outcomes = compare_methods(comparison, names, numbers, folder, watch=watch)
    write_config(ctx, folder)
    there = read_outcomes(folder)  # what earlier commands added too
    rows = summarize(there)
    console.print(comparison_table(rows, metric))
    console.print(f"results  {folder}", soft_wrap=True, markup=False)
    show_plot(lambda path: plot_comparison(there, path, metric=metric), folder / PLOT_FILE)
    if as_json:
        print_json({"folder": str(folder), "metric": metric, "methods": [asdict(r) for r in rows]})
    if all(outcome.error is not None for outcome in outcomes):
        raise typer.Exit(1)


class _Watch:
    """Shows each trial as it ends, and how long the others will take."""

    def __init__(self, total: int) -> None:
        self._bar = Bar(
            TextColumn("comparing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task = self._bar.add_task("comparing", total=total, left="")
        self._new = 0

    def __enter__(self) -> _Watch:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, outcome: Outcome, known: bool) -> None:
        name = f"{METHODS[outcome.method].title:<19} seed {outcome.seed}"
        self._bar.advance(self._task)
        if known:
            console.print(f"{name}  was there already")
            return
        self._new += 1
        task = self._bar.tasks[0]
        rest = (task.total or 0) - task.completed
        left = duration(rest * (task.elapsed or 0) / self._new)
        self._bar.update(self._task, left=f"{left} left")
        if outcome.error is not None:
            console.print(f"{name}  failed: {outcome.error}", markup=False, soft_wrap=True)
            return
        console.print(
            f"{name}  test {outcome.score:.3f}  dev {outcome.dev_score:.3f}  "
            f"{duration(outcome.seconds or 0)}, {left} left"
        )


def _numbers(option: str, text: str | None, kind: Callable[[str], Number]) -> list[Number]:
    """Numbers separated by commas or spaces."""
    try:
        return [kind(word) for word in (text or "").replace(",", " ").split()]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{option} takes {what} separated by commas; got {text!r}.") from None
