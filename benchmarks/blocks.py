"""How many candidates should share a forward pass on a CPU?

For a few prompts the losses of a population are measured with every even share of it in a pass,
in the middle layer and the sizes in turn. Beside the best stands the size that `Speedups()` takes,
which follows from the prompts' tokens (`PopulationEvaluator.choose_block_size`). With more than 256
in a batch one candidate fills a pass: sizes above it are what that rule says no to.

    python benchmarks/blocks.py --data DIR     # SST-2; on a quiet machine
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from common import RESULTS, console, run_cells, write_report
from rich.table import Table

from integrations import load_model, load_task
from integrations.adapter import Adapter
from integrations.architectures import Architecture, describe
from integrations.candidates import project_candidates
from integrations.evaluators import make_encoder, make_evaluator
from integrations.patches import evaluating
from integrations.population import Speedups
from integrations.prompts import Encoder
from integrations.spaces import make_spaces

DIM = 500


def measure(
    arch: Architecture, encoder: Encoder, prompts: int, population: int, repeats: int
) -> dict:
    """Median seconds for a population with each number of candidates in a pass."""
    examples = encoder.task.train[:prompts]
    make = partial(make_evaluator, encoder, arch, examples, None)
    layer = len(arch.layers) // 2
    with evaluating(arch.model):
        ours = make(Speedups(), None)
        spaces = make_spaces(arch, ours.batches, rank=4, dim=DIM, seed=0)
        z = 0.5 * np.random.default_rng(0).normal(size=(population, DIM))
        candidates = project_candidates(arch, spaces, (layer,), z)
        ours.losses(candidates, Adapter(arch))
        sizes = sorted({-(-population // passes) for passes in range(1, population + 1)})
        evaluators = {size: make(Speedups(blocks=size), None) for size in sizes}
        seconds: dict[int, list[float]] = {size: [] for size in sizes}
        for evaluator in evaluators.values():
            evaluator.losses(candidates, Adapter(arch))
        for _ in range(repeats):
            for size, evaluator in evaluators.items():
                start = time.perf_counter()
                evaluator.losses(candidates, Adapter(arch))
                seconds[size].append(time.perf_counter() - start)
    return {
        "tokens": max(batch.tokens for batch in ours.batches),
        "ours": ours.block_size,
        "seconds": {str(size): statistics.median(spent) for size, spent in seconds.items()},
    }


def summarize(rows: list[dict]) -> list[dict]:
    """Each size's time as a multiple of the best's."""
    results = []
    for row in rows:
        least = min(row["seconds"].values())
        times = {size: spent / least for size, spent in row["seconds"].items()}
        results.append(
            {"prompts": row["cell"]["prompts"], "population": row["cell"]["population"]}
            | {"tokens": row["tokens"], "best_seconds": least, "times": times, "ours": row["ours"]}
        )
    return results


def show(results: list[dict]) -> None:
    """Print the table."""
    table = Table("prompts", "tokens", "population", "time by candidates in a pass", "ours")
    for r in results:
        times = ", ".join(f"{size}: {time:.2f}" for size, time in r["times"].items())
        ours = f"{r['ours']}: {r['times'][str(r['ours'])]:.2f}"
        table.add_row(*(str(r[key]) for key in ("prompts", "tokens", "population")), times, ours)
    console.print(table)


def main(
    data: Annotated[Path, typer.Option(help="Folder with SST-2.")],
    model: Annotated[str, typer.Option(help="What load_model takes.")] = "smollm2-135m",
    prompts: Annotated[str, typer.Option(help="Separated by commas.")] = "2,4,8",
    populations: Annotated[str, typer.Option(help="Separated by commas.")] = "5,20",
    repeats: Annotated[int, typer.Option(help="Medians of so many.")] = 7,
    out: Annotated[Path, typer.Option(help="Folder for what is measured")] = RESULTS,
) -> None:
    """Measure, and write a table and JSON."""
    frozen, tokenizer = load_model(model)
    arch = describe(frozen)
    encoder = make_encoder(load_task("sst2", data), arch, tokenizer, None)
    cells = [
        {"model": model, "prompts": int(n), "population": int(p), "repeats": repeats}
        for n in prompts.split(",")
        for p in populations.split(",")
    ]

    def run(prompts: int, population: int, repeats: int, **_: object) -> dict:
        return measure(arch, encoder, prompts, population, repeats)

    results = summarize(run_cells(out / "blocks.jsonl", cells, run))
    show(results)
    settings = {"model": model, "repeats": repeats, "threads": torch.get_num_threads()}
    write_report(out / "blocks.json", ("torch", "transformers"), settings, results)


if __name__ == "__main__":
    typer.run(main)
