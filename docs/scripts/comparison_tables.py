"""Makes tables and plots of comparisons for the page that shows them.

    python docs/scripts/comparison_tables.py docs/results/*/

Each folder is the ``--out`` of a `dfo-lora compare`; its name is the task's. One that differs from
another in the type of the weights only has its rows in that one's table. Writes the tables into
docs/comparison.md, between two marks, and a plot beside the results.

    python docs/scripts/comparison_tables.py --compact docs/results/four-minutes/*/

writes one table of all folders, between two other marks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from integrations.comparison import SETTINGS, Outcome, read_outcomes
from integrations.comparison_plots import plot_comparison
from integrations.comparison_summary import Row, cells, summarize
from integrations.report import duration

PAGE = Path(__file__).parents[1] / "comparison.md"
HEADS = ("test %", "dev %", "evaluations", "seconds", "extra MB", "tuned numbers")


@dataclass(frozen=True)
class Compared:
    """What a folder holds.

    Attributes:
        folder: The folder.
        about: What the comparison was given, and where it ran.
        outcomes: What came of each method and seed.
        rows: Each method over its seeds.
    """

    folder: Path
    about: dict[str, Any]
    outcomes: list[Outcome]
    rows: list[Row]

    @classmethod
    def read(cls, folder: Path) -> Compared:
        """Read a folder."""
        outcomes = read_outcomes(folder)
        return cls(
            folder, json.loads((folder / SETTINGS).read_text()), outcomes, summarize(outcomes)
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What the comparison was given."""
        settings: dict[str, Any] = self.about["comparison"]
        return settings

    def title(self, row: Row) -> str:
        """A method's name, with the type of the weights where it is not the usual one."""
        return ", ".join(filter(None, (row.title, self.settings["dtype"])))

    def lines(self) -> list[str]:
        """The rows of its table."""
        lines = []
        for row in self.rows:
            first, *rest = cells(row)
            at_marks = self._marked(row) or ["-"] * len(self.settings["marks"])
            lines.append(markdown_row([self.title(row), first, *at_marks, *rest]))
        return lines

    def _marked(self, row: Row) -> list[str]:
        """Mean test scores at the marks, in percent; nothing if the method failed."""
        mine = [o.marked for o in self.outcomes if o.method == row.method and o.error is None]
        return [f"{100 * sum(scores) / len(scores):.1f}" for scores in zip(*mine, strict=True)]


def markdown_row(cells: list[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def grouped(found: list[Compared]) -> list[list[Compared]]:
    """Each comparison in the usual type, and behind it the same one in others."""
    return [
        [
            usual,
            *(
                x
                for x in found
                if x is not usual and x.settings | {"dtype": None} == usual.settings
            ),
        ]
        for usual in found
        if usual.settings["dtype"] is None
    ]


def overview(groups: list[list[Compared]]) -> str:
    """Test scores of the methods that ran on all tasks, and their means, the best first."""
    scores: dict[str, list[float]] = {}
    for compared in (compared for group in groups for compared in group):
        for row in compared.rows:
            if row.score is not None:
                scores.setdefault(compared.title(row), []).append(100 * row.score)
    everywhere = {title: found for title, found in scores.items() if len(found) == len(groups)}
    ranked = sorted(everywhere.items(), key=lambda item: sum(item[1]), reverse=True)
    names = [usual.folder.name for usual, *_ in groups]
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


def section(group: list[Compared]) -> str:
    """A comparison's heading, table and plot, with rows of other types of weights."""
    usual = group[0]
    folder, settings = usual.folder, usual.settings
    plot_comparison(usual.outcomes, folder / "comparison.png", metric="score")
    limits = [
        f"{settings['budget']:,.0f} evaluations" if settings["budget"] else "",
        duration(settings["seconds"]) if settings["seconds"] else "",
    ]
    limit = f"at most {settings['test_limit']}" if settings["test_limit"] else "all"
    marks = [f"after {100 * mark:.0f} %" for mark in settings["marks"]]
    seeds = sorted({outcome.seed for outcome in usual.outcomes})
    plot = f"{folder.relative_to(PAGE.parent).as_posix()}/comparison.png"
    return "\n".join(
        [
            f"## {folder.name}",
            "",
            f"{settings['model']}, {settings['shots']} examples a class, seeds "
            f"{', '.join(map(str, seeds))}, {' and '.join(filter(None, limits))} a run, "
            f"{limit} test examples, {usual.about['threads']} threads, PyTorch "
            f"{usual.about['versions']['torch']}; mean and, in brackets, standard deviation; of "
            "memory the most of any seed.",
            "",
            markdown_row(["method", *HEADS[:1], *marks, *HEADS[1:]]),
            markdown_row(["---", *["--:"] * (len(HEADS) + len(marks))]),
            *(line for compared in group for line in compared.lines()),
            "",
            f"![Methods on {folder.name}]({plot})",
            "",
        ]
    )


def one_table(found: list[Compared]) -> str:
    """All comparisons as one table."""
    lines = [
        markdown_row(["task", "seeds", "method", *HEADS]),
        markdown_row(["---", "--:", "---", *["--:"] * len(HEADS)]),
    ]
    for compared in found:
        seeds = str(len({outcome.seed for outcome in compared.outcomes}))
        lines += [
            markdown_row([compared.folder.name, seeds, compared.title(row), *cells(row)])
            for row in compared.rows
        ]
    return "\n".join([*lines, ""])


def main(
    folders: Annotated[list[Path], typer.Argument()],
    compact: Annotated[bool, typer.Option(help="One table of all folders")] = False,
) -> None:
    """Write the tables and plots."""
    there = [folder.resolve() for folder in folders if (folder / SETTINGS).exists()]
    found = [Compared.read(folder) for folder in there]
    if compact:
        put("table", one_table(found))
    else:
        groups = grouped(found)
        put("tables", "\n".join([overview(groups), *map(section, groups)]))


def put(mark: str, text: str) -> None:
    """Write text into the page, between ``<!-- mark: ... -->`` and ``<!-- end of mark -->``."""
    page = PAGE.read_text()
    before, start, rest = page.partition(f"<!-- {mark}: ")
    first, close, rest = rest.partition(" -->\n")
    _, end, after = rest.partition(f"<!-- end of {mark} -->")
    if not (start and close and end):
        raise ValueError(f"{PAGE} has no marks for {mark!r}")
    PAGE.write_text(f"{before}{start}{first}{close}\n{text.strip()}\n\n{end}{after}")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    typer.run(main)
