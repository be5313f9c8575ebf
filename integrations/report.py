"""What the command shows: progress while it runs, a table and files at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from integrations.adapter import Adapter
from integrations.callbacks import EndOnInterrupt, Progress
from integrations.errors import UserError
from integrations.files import replace_file
from integrations.history import plain
from integrations.peft_format import CONFIG
from integrations.result import TuneResult
from integrations.scoring import Score, Scorer

console = Console(highlight=False)
"""Where the command shows things: standard output, or standard error beside ``--json``."""
SCORES_FILE = "scores.json"
PLOT_FILE = "curve.png"


class Watch(EndOnInterrupt):
    """Shows a run's progress, and lets Ctrl-C end it with the best deltas so far.

    Args:
        budget: Evaluations of the whole run.

    Attributes:
        generations: How many were seen; none if the run had ended before.
    """

    def __init__(self, budget: int) -> None:
        super().__init__(console.print)
        self.generations = 0
        self._bar = Bar(
            TextColumn("tuning"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
        )
        self._task = self._bar.add_task("tuning", total=budget, state="starting")

    def __enter__(self) -> Self:
        self._bar.start()
        return super().__enter__()

    def __exit__(self, *details: object) -> None:
        self._bar.stop()
        super().__exit__(*details)

    def __call__(self, progress: Progress) -> bool:
        """Show a generation; True if the run should end."""
        done = progress.visit.evaluations
        if self.generations == 0 and progress.visit.number > 0:
            console.print(f"Continuing an earlier run after {progress.visit.number} generations.")
        self.generations += 1
        rate = done / progress.seconds
        left = duration(progress.seconds_left)
        total = done + round(rate * progress.seconds_left)
        state = (
            f"loss {progress.visit.loss:.4f}  dev {progress.dev.score:.3f}  "
            f"{rate:.1f} evaluations/s  {left} left"
        )
        self._bar.update(self._task, completed=done, total=total, state=state)
        if progress.new_dev:
            chosen = "  best so far" if progress.dev.best else ""
            console.print(
                f"{done:>6} evaluations  loss {progress.visit.loss:.4f}  "
                f"dev loss {progress.dev.loss:.4f}  dev {progress.dev.score:.3f}  "
                f"{left} left{chosen}"
            )
        return self.interrupted


def score_with_bar(scorer: Scorer, adapter: Adapter | None, what: str) -> Score:
    """Score deltas on many examples, with a bar that goes away."""
    with Bar(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task(what, total=None)
        return scorer(adapter, lambda done, total: bar.update(task, completed=done, total=total))


def score_test(result: TuneResult) -> None:
    """Score a run's deltas, and the frozen model, on the task's test set, with a bar."""
    test = result.encoder.task.test
    scorer = Scorer(result.adapter.arch, result.encoder, test, result.loss)
    for name, adapter in {"zero-shot": None, "tuned": result.adapter}.items():
        result.tested[name] = score_with_bar(scorer, adapter, name)


def finish(result: TuneResult, folder: Path, command: str) -> None:
    """Save the adapter, scores and plot, and print what came out.

    Args:
        result: The run, with its test scores if there are test examples.
        folder: Where the files go.
        command: The command line that made it.
    """
    test = result.tested
    result.save(folder, command=command)
    scores = {name: plain(score) for name, score in test.items()}
    with replace_file(folder / SCORES_FILE) as beside:
        beside.write_text(json.dumps(scores, indent=2) + "\n")
    history = result.history
    dev = {"zero-shot": history.scores[0], "tuned": history.best}
    metric = result.encoder.task.metric
    table = score_table(f"dev {metric}", "dev loss", f"test {metric}", "test loss")
    for name, look in dev.items():
        cells = [f"{look.score:.3f}", f"{look.loss:.4f}"]
        if name in test:
            cells += [f"{test[name].score:.3f}", f"{test[name].loss:.4f}"]
        table.add_row(name, *cells)
    console.print(table)
    seconds, evaluations = history.scores[-1].seconds, history.scores[-1].evaluations
    console.print(
        f"{evaluations} evaluations in {duration(seconds)} ({evaluations / seconds:.1f} a second); "
        f"ended by: {result.stopped}; deltas chosen at {history.best.evaluations} evaluations."
    )
    if history.invalid:
        console.print(f"{history.invalid} candidates had a loss that was not finite.")
    console.print(f"adapter  {folder / CONFIG}", soft_wrap=True, markup=False)
    levels = {name: score.score for name, score in test.items()}
    show_plot(lambda path: result.plot(path, levels), folder / PLOT_FILE)


def show_plot(draw: Callable[[Path], None], path: Path) -> None:
    """Draw a plot at the end of long work and say where it is, or why there is none.

    Args:
        draw: Draws it into a file.
        path: The file.
    """
    try:
        draw(path)
    except UserError as error:
        console.print(f"no plot: {error}", soft_wrap=True, markup=False)
    else:
        console.print(f"plot     {path}", soft_wrap=True, markup=False)


def summary(result: TuneResult, folder: Path) -> dict[str, Any]:
    """What ``dfo-lora tune --json`` prints: where the files are and what came out."""
    history = result.history
    dev = {"zero-shot": history.scores[0], "tuned": history.best}
    return {
        "folder": str(folder),
        "settings": dict(result.settings),
        "metric": result.encoder.task.metric,
        "dev": {name: {"score": look.score, "loss": look.loss} for name, look in dev.items()},
        "test": {name: plain(score) for name, score in result.tested.items()},
        "evaluations": history.scores[-1].evaluations,
        "chosen_at": history.best.evaluations,
        "seconds": history.scores[-1].seconds,
        "invalid": history.invalid,
        "stopped": result.stopped,
    }


def print_json(value: Any) -> None:
    """Print one JSON object on standard output, where nothing else is beside ``--json``."""
    print(json.dumps(value, indent=2), flush=True)


def score_table(*columns: str) -> Table:
    """An empty table of scores, one row a set of deltas."""
    table = Table("", *columns)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def duration(seconds: float) -> str:
    """Seconds as people read them, such as ``"3 min 12 s"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts: list[tuple[int, Any]] = [(hours, "h"), (minutes, "min"), (rest, "s")]
    shown = [f"{value} {unit}" for value, unit in parts if value][:2]
    return " ".join(shown) or "0 s"
