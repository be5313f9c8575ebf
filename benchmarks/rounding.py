"""How much does rounding move the loss, and what does a search make of it?

A search compares losses that differ by a thousandth. Where weights or activations have few bits,
rounding moves each candidate's loss by chance, and the luckiest rounding wins. For each type of
numbers this script measures

- the roughness: losses at points z = t d on lines from the frozen model, t from 0 to 1, in one
  layer, and the standard deviation of what a polynomial of degree 6 leaves of them;
- what F-LoRA reaches in a number of evaluations, with all of `tune`'s defaults.

A type other than float32 also changes the model itself, a little and once for all candidates: that
shows in the loss at t = 0 and is no roughness.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from common import RESULTS, console, run_cells, save_plot, write_report
from rich.table import Table

from integrations import load_model, load_task, tune
from integrations.adapter import Adapter
from integrations.architectures import describe
from integrations.candidates import project_candidates
from integrations.evaluators import make_encoder, make_evaluator
from integrations.patches import evaluating
from integrations.population import Speedups
from integrations.spaces import make_spaces

POINTS = 25
DEGREE = 6
DIM = 500
# One candidate a pass, as how many there are moves the last digit.
ALONE = Speedups(blocks=1)


def measure(data: Path, model: str, dtype: str, lines: int, budget: int, seed: int) -> dict:
    """Losses along lines, and the course of a run, in one type of numbers."""
    loaded, tokenizer = load_model(model, dtype=dtype)
    task = load_task("sst2", data, seed=seed)
    arch = describe(loaded)
    layer = 2 * len(arch.layers) // 3
    with evaluating(loaded):
        evaluator = make_evaluator(
            make_encoder(task, arch, tokenizer, None), arch, task.train, None, ALONE, None
        )
        spaces = make_spaces(arch, evaluator.batches, rank=4, dim=DIM, seed=seed, freeze_a=True)
        t = np.linspace(0, 1, POINTS)[:, np.newaxis]
        losses = []
        for line in range(lines):
            z = t * np.random.default_rng(line).uniform(-1, 1, DIM)
            candidates = project_candidates(arch, spaces, (layer,), z)
            losses.append(evaluator.losses(candidates, Adapter(arch)).tolist())
    run = tune(loaded, task, tokenizer=tokenizer, dim=DIM, budget=budget, seed=seed, speedups=ALONE)
    visits = run.history.visits
    return {
        "layer": layer,
        "lines": losses,
        "course": [(visit.evaluations, visit.loss) for visit in visits],
        "seconds": run.history.scores[-1].seconds,
    }


def roughness(line: list[float]) -> float:
    """Standard deviation of what a polynomial leaves of losses at evenly spaced points."""
    t = np.linspace(0, 1, len(line))
    left = line - np.polyval(np.polyfit(t, line, DEGREE), t)
    return float(np.sqrt((left**2).sum() / (len(line) - DEGREE - 1)))


def summarize(rows: list[dict]) -> dict:
    """Of each type: roughness, range and first loss of its lines, and where its run ended."""
    return {
        row["cell"]["dtype"]: {
            "roughness": float(np.sqrt(np.mean([roughness(line) ** 2 for line in row["lines"]]))),
            "range": float(np.mean([np.ptp(line) for line in row["lines"]])),
            "loss_frozen": row["lines"][0][0],
            "loss_tuned": row["course"][-1][1],
            "evaluations": row["course"][-1][0],
            "seconds": row["seconds"],
        }
        for row in rows
    }


def table(summary: dict) -> Table:
    """A row a type."""
    table = Table(title="What rounding does to the training loss")
    heads = ("type", "roughness", "range along a line", "frozen", "tuned", "evaluations", "seconds")
    for head in heads:
        table.add_column(head, justify="left" if head == "type" else "right")
    for dtype, of in summary.items():
        table.add_row(
            dtype,
            f"{of['roughness']:.1e}",
            f"{of['range']:.4f}",
            f"{of['loss_frozen']:.4f}",
            f"{of['loss_tuned']:.4f}",
            str(of["evaluations"]),
            f"{of['seconds']:.0f}",
        )
    return table


def plot(rows: list[dict], path: Path) -> None:
    """Losses along the first line, and the courses of the runs."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    t = np.linspace(0, 1, POINTS)
    for row in rows:
        dtype, line = row["cell"]["dtype"], np.array(row["lines"][0])
        left.plot(t, line - line[0], "o-", markersize=3, label=dtype)
        right.step(*zip(*row["course"], strict=True), where="post", label=dtype)
    left.set(xlabel="t", ylabel="loss at z = t d, less that at z = 0")
    right.set(xlabel="evaluations", ylabel="training loss in place")
    for ax in (left, right):
        ax.grid(alpha=0.3)
        ax.legend()
    save_plot(figure, path)


def main(
    data: Annotated[Path, typer.Option(help="Folder with SST-2.")],
    model: Annotated[str, typer.Option(help="What load_model takes.")] = "smollm2-135m",
    dtypes: Annotated[
        str, typer.Option(help="Separated by commas; float16 is slow on most CPUs.")
    ] = "float32,int8,bfloat16",
    lines: Annotated[int, typer.Option(help="Lines from the frozen model.")] = 3,
    budget: Annotated[int, typer.Option(help="Evaluations of a run.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the split and the run.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for what is measured")] = RESULTS,
) -> None:
    """Measure, and write a table, JSON and a plot."""
    settings = {"model": model, "lines": lines, "budget": budget, "seed": seed}
    cells = [settings | {"dtype": dtype} for dtype in dtypes.split(",")]
    rows = run_cells(out / "rounding.jsonl", cells, partial(measure, data))
    summary = summarize(rows)
    console.print(table(summary))
    write_report(
        out / "rounding.json",
        ("torch", "transformers"),
        settings
        | {
            "layer": rows[0]["layer"],
            "points": POINTS,
            "degree": DEGREE,
        },
        summary,
    )
    plot(rows, out / "rounding.png")


if __name__ == "__main__":
    typer.run(main)
