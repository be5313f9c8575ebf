"""Which settings of the search do best in the same time, and by how much?

Each variant differs from the defaults of `integrations.tune` in one respect, so that the table is
an ablation around them: schedule, optimizer, init and its scale, dimension of the subspace, rank,
target matrices, layers, candidates a generation, and the authors' rule of what is put in place.
Every run gets the same seconds of learning, chooses by the development set and is tested once.

Which default is to be preferred is decided by the mean test score over tasks and seeds; differences
within the standard error, shown beside it, decide nothing.

    python benchmarks/defaults.py --data DIR     # DIR/sst2, DIR/rte; on a quiet machine
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated

import torch
import typer
from common import RESULTS, console, recorded, run_cells, write_report
from rich.table import Table

from integrations import load_model, load_task
from integrations.architectures import describe
from integrations.evaluators import make_encoder
from integrations.methods.lora import LayerwiseLora
from integrations.methods.trial import Trial, fit
from integrations.patches import evaluating

VARIANTS = {
    "defaults": {},
    "optimizer cma-es": {"optimizer": "cma-es"},
    "optimizer sep-cma-es": {"optimizer": "sep-cma-es"},
    "optimizer random": {"optimizer": "random"},
    "schedule block": {"schedule": "block"},
    "schedule cost-aware": {"schedule": "cost-aware"},
    "schedule joint": {"schedule": "joint"},
    "layers all": {"layers": "all"},
    "layers upper quarter": {"layers": "upper quarter"},
    "A searched for": {"freeze_a": False},
    "A frozen, optimizer cma-es": {"freeze_a": True, "optimizer": "cma-es"},
    "init paper": {"init": "paper"},
    "init reference-code": {"init": "reference-code"},
    "init normal": {"init": "normal"},
    "init_std 0.1": {"init_std": 0.1},
    "init_std 1": {"init_std": 1.0},
    "dim 100": {"dim": 100},
    "dim 1600": {"dim": 1600},
    "rank 2": {"rank": 2},
    "rank 8": {"rank": 8},
    "targets q, k": {"targets": ("q", "k")},
    "targets v, o": {"targets": ("v", "o")},
    "targets q, k, v, o": {"targets": ("q", "k", "v", "o")},
    "popsize 10": {"popsize": 10},
    "popsize 20": {"popsize": 20},
    "best-ever in place": {"incumbent": False},
    "best-ever, A searched for, init paper": {
        "incumbent": False,
        "freeze_a": False,
        "init": "paper",
    },
}


def main(
    data: Annotated[Path, typer.Option(help="Folder with a folder for each task.")],
    tasks: Annotated[str, typer.Option(help="Separated by commas.")] = "sst2,rte",
    seeds: Annotated[str, typer.Option(help="Separated by commas.")] = "0,1,2",
    seconds: Annotated[float, typer.Option(help="Of learning, a run.")] = 120,
    test_limit: Annotated[int, typer.Option(help="Test examples.")] = 200,
    variants: Annotated[
        str | None, typer.Option(help="Some of them, separated by semicolons.")
    ] = None,
    model: str = "smollm2-135m",
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Of what was measured.")
    ] = False,
    out: Path = RESULTS / "defaults",
) -> None:
    """Measure each variant, and write a table and JSON."""
    names = list(VARIANTS) if variants is None else variants.split(";")
    frozen, tokenizer = load_model(model)
    arch = describe(frozen)

    def run(variant: str, task: str, seed: int, seconds: float, test_limit: int, **_) -> dict:
        split = load_task(task, data / task, seed=seed, test_limit=test_limit)
        encoder = make_encoder(split, arch, tokenizer, None)
        settings = dict(VARIANTS[variant])
        if settings.get("layers") == "upper quarter":
            settings["layers"] = range(3 * len(arch.layers) // 4, len(arch.layers))
        with evaluating(frozen):
            trial = Trial(arch, encoder, seed, None, seconds, dev_every=50)
            learner = LayerwiseLora(trial, **settings)
            fit(trial, learner)
            test = trial.score(split.test, learner.logits)
        return {
            "test": test.score,
            "test_loss": test.loss,
            "dev": max(look.score for look in trial.scores),
            "train_loss": trial.scores[-1].train_loss,
            "evaluations": learner.evaluations,
            "zero_shot_dev": trial.scores[0].score,
        }

    cells = [
        {
            "variant": variant,
            "task": task,
            "seed": int(seed),
            "seconds": seconds,
            "test_limit": test_limit,
            "model": model,
        }
        for seed in seeds.split(",")
        for task in tasks.split(",")
        for variant in names
    ]
    path = out / "runs.jsonl"
    rows = recorded(path, cells) if report_only else run_cells(path, cells, run)
    results = summarize([row for row in rows if "error" not in row], names)
    show(results)
    settings = {"seconds": seconds, "seeds": seeds, "tasks": tasks, "test_limit": test_limit}
    settings |= {"model": model, "threads": torch.get_num_threads()}
    write_report(out / "defaults.json", ["torch", "transformers"], settings, results)


def summarize(rows: list[dict], names: list[str]) -> list[dict]:
    """Means over tasks and seeds, and the mean difference to the defaults on the same splits."""

    def split(row: dict) -> tuple:
        return row["cell"]["task"], row["cell"]["seed"]

    plain = {split(row): row["test"] for row in rows if row["cell"]["variant"] == "defaults"}
    results = []
    for name in names:
        mine = [row for row in rows if row["cell"]["variant"] == name]
        if not mine:
            continue
        result = {"variant": name, "runs": len(mine)}
        for key in ("test", "dev", "train_loss", "evaluations"):
            result[key] = statistics.fmean(row[key] for row in mine)
        for task in dict.fromkeys(row["cell"]["task"] for row in mine):
            scores = [row["test"] for row in mine if row["cell"]["task"] == task]
            result[f"test {task}"] = statistics.fmean(scores)
        gains = [row["test"] - plain[split(row)] for row in mine if split(row) in plain]
        if gains and name != "defaults":
            result["gain"] = statistics.fmean(gains)
            if len(gains) > 1:
                result["standard_error"] = statistics.stdev(gains) / len(gains) ** 0.5
        results.append(result)
    return results


def show(results: list[dict]) -> None:
    """Print the table."""
    tasks = [key for key in results[0] if key.startswith("test ")] if results else []
    table = Table(
        "", "runs", "test %", *tasks, "gain ± standard error", "train loss", "evaluations"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for r in results:
        error = f" ± {100 * r['standard_error']:.1f}" if "standard_error" in r else ""
        table.add_row(
            r["variant"],
            str(r["runs"]),
            f"{100 * r['test']:.1f}",
            *(f"{100 * r[task]:.1f}" if task in r else "-" for task in tasks),
            f"{100 * r['gain']:+.1f}{error}" if "gain" in r else "",
            f"{r['train_loss']:.3f}",
            f"{r['evaluations']:.0f}",
        )
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
