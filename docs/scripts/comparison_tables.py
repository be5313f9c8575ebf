"""Makes tables and plots of comparisons for the page that shows them.

    python docs/scripts/comparison_tables.py docs/results/*/

Each folder is the ``--out`` of a `dfo-lora compare`; its name is the task's. Writes
docs/results/tables.md, which docs/comparison.md takes in, and a plot beside each folder's results.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from integrations.comparison import SETTINGS, Outcome, read_outcomes
from integrations.comparison_plots import plot_comparison
from integrations.comparison_summary import Row, cells, summarize
from integrations.report import duration

TARGET = Path(__file__).parents[1] / "results" / "tables.md"
HEADS = ("test %", "dev %", "evaluations", "seconds", "extra MB", "tuned numbers")


def markdown_row(cells: list[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def marked(outcomes: list[Outcome], row: Row) -> list[str]:
    """Mean test scores at the marks, in percent."""
    mine = [o.marked for o in outcomes if o.method == row.method and o.error is None]
    return [f"{100 * sum(scores) / len(scores):.1f}" for scores in zip(*mine, strict=True)]


def section(folder: Path) -> str:
    """A comparison's heading, table and plot."""
    about = json.loads((folder / SETTINGS).read_text())
    settings, outcomes = about["comparison"], read_outcomes(folder)
    rows = summarize(outcomes)
    plot_comparison(outcomes, folder / "comparison.png", metric="score")
    limits = [
        f"{settings['budget']:,.0f} evaluations" if settings["budget"] else "",
        duration(settings["seconds"]) if settings["seconds"] else "",
    ]
    marks = [f"after {100 * mark:.0f} %" for mark in settings["marks"]]
    seeds = sorted({outcome.seed for outcome in outcomes})
    lines = [
        f"## {folder.name}",
        "",
        f"{settings['model']}, {settings['shots']} examples a class, seeds "
        f"{', '.join(map(str, seeds))}, {' and '.join(filter(None, limits))} a run, "
        f"{settings['test_limit'] or 'all'} test examples, {about['threads']} threads, "
        f"PyTorch {about['versions']['torch']}; mean and, in brackets, standard deviation.",
        "",
        markdown_row(["method", *HEADS[:1], *marks, *HEADS[1:]]),
        markdown_row(["---", *["--:"] * (len(HEADS) + len(marks))]),
    ]
    for row in rows:
        first, *rest = cells(row)
        at_marks = marked(outcomes, row) if row.score is not None else []
        at_marks += ["-"] * (len(marks) - len(at_marks))
        lines.append(markdown_row([row.title, first, *at_marks, *rest]))
    plot = f"{folder.relative_to(TARGET.parents[1]).as_posix()}/comparison.png"
    return "\n".join([*lines, "", f"![Methods on {folder.name}]({plot})", ""])


def main(folders: Annotated[list[Path], typer.Argument()]) -> None:
    """Write the tables and plots."""
    sections = [section(folder.resolve()) for folder in folders if (folder / SETTINGS).exists()]
    TARGET.write_text("\n".join(sections))
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    typer.run(main)
