"""Makes tables and plots of comparisons for the page that shows them.

    python docs/scripts/comparison_tables.py docs/results/*/

Each folder is the ``--out`` of a `dfo-lora compare`; its name is the task's. One that differs from
another in the type of the weights only has its rows in that one's table. Writes
docs/results/tables.md, which docs/comparison.md takes in, and a plot beside the results.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

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


def titled(folder: Path, row: Row) -> str:
    """A method's name, with the type of the weights where it is not the usual one."""
    dtype = read_settings(folder)["comparison"]["dtype"]
    return row.title if dtype is None else f"{row.title}, {dtype}"


def table_rows(folder: Path) -> list[str]:
    """The rows of a comparison."""
    outcomes, marks = read_outcomes(folder), read_settings(folder)["comparison"]["marks"]
    lines = []
    for row in summarize(outcomes):
        first, *rest = cells(row)
        at_marks = marked(outcomes, row) if row.score is not None else []
        at_marks = at_marks or ["-"] * len(marks)
        lines.append(markdown_row([titled(folder, row), first, *at_marks, *rest]))
    return lines


def overview(groups: list[list[Path]]) -> str:
    """Test scores of the methods that ran on all tasks, and their means, the best first."""
    scores: dict[str, list[float]] = {}
    for folder in (folder for group in groups for folder in group):
        for row in summarize(read_outcomes(folder)):
            if row.score is not None:
                scores.setdefault(titled(folder, row), []).append(100 * row.score)
    everywhere = {title: found for title, found in scores.items() if len(found) == len(groups)}
    ranked = sorted(everywhere.items(), key=lambda item: sum(item[1]), reverse=True)
    names = [group[0].name for group in groups]
    return "\n".join(
        [
            "## Over the tasks",
            "",
            "Test %, mean over seeds, of the methods that ran on all tasks.",
            "",
            markdown_row(["method", "mean", *names]),
            markdown_row(["---", *["--:"] * (len(names) + 1)]),
            *(
                markdown_row([title, *(f"{x:.1f}" for x in (sum(found) / len(found), *found))])
                for title, found in ranked
            ),
            "",
        ]
    )


def marked(outcomes: list[Outcome], row: Row) -> list[str]:
    """Mean test scores at the marks, in percent."""
    mine = [o.marked for o in outcomes if o.method == row.method and o.error is None]
    return [f"{100 * sum(scores) / len(scores):.1f}" for scores in zip(*mine, strict=True)]


def read_settings(folder: Path) -> dict[str, Any]:
    """What a comparison was given, and where it ran."""
    about: dict[str, Any] = json.loads((folder / SETTINGS).read_text())
    return about


def other_types(folder: Path, folders: list[Path]) -> list[Path]:
    """Folders of the same comparison with weights of another type."""
    mine = read_settings(folder)["comparison"]
    return [
        other
        for other in folders
        if other != folder and read_settings(other)["comparison"] | {"dtype": None} == mine
    ]


def section(folder: Path, others: list[Path]) -> str:
    """A comparison's heading, table and plot."""
    about, outcomes = read_settings(folder), read_outcomes(folder)
    settings = about["comparison"]
    plot_comparison(outcomes, folder / "comparison.png", metric="score")
    limits = [
        f"{settings['budget']:,.0f} evaluations" if settings["budget"] else "",
        duration(settings["seconds"]) if settings["seconds"] else "",
    ]
    marks = [f"after {100 * mark:.0f} %" for mark in settings["marks"]]
    seeds = sorted({outcome.seed for outcome in outcomes})
    plot = f"{folder.relative_to(TARGET.parents[1]).as_posix()}/comparison.png"
    return "\n".join(
        [
            f"## {folder.name}",
            "",
            f"{settings['model']}, {settings['shots']} examples a class, seeds "
            f"{', '.join(map(str, seeds))}, {' and '.join(filter(None, limits))} a run, "
            f"{settings['test_limit'] or 'all'} test examples, {about['threads']} threads, "
            f"PyTorch {about['versions']['torch']}; mean and, in brackets, standard deviation.",
            "",
            markdown_row(["method", *HEADS[:1], *marks, *HEADS[1:]]),
            markdown_row(["---", *["--:"] * (len(HEADS) + len(marks))]),
            *table_rows(folder),
            *(row for other in others for row in table_rows(other)),
            "",
            f"![Methods on {folder.name}]({plot})",
            "",
        ]
    )


def main(folders: Annotated[list[Path], typer.Argument()]) -> None:
    """Write the tables and plots."""
    folders = [folder.resolve() for folder in folders if (folder / SETTINGS).exists()]
    usual = [f for f in folders if read_settings(f)["comparison"]["dtype"] is None]
    groups = [[folder, *other_types(folder, folders)] for folder in usual]
    sections = [overview(groups), *(section(folder, others) for folder, *others in groups)]
    TARGET.write_text("\n".join(sections))
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    typer.run(main)
