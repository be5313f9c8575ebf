"""``dfo-lora eval`` and ``dfo-lora bench``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from integrations.architectures import TARGETS, describe
from integrations.bench import measure
from integrations.cli.options import (
    MODEL,
    OUTPUT,
    TASK,
    Columns,
    Config,
    Data,
    Device,
    Dtype,
    Json,
    LabelWords,
    LossName,
    MaxLength,
    Model,
    Seed,
    Shots,
    TaskName,
    TestLimit,
    loss_of,
    require_folder,
    task_of,
)
from integrations.demo import demo_task
from integrations.environment import versions
from integrations.errors import UserError, unknown
from integrations.evaluators import make_encoder
from integrations.files import replace_file
from integrations.history import plain
from integrations.metrics import make_loss
from integrations.models import load_model
from integrations.peft_format import load_adapter
from integrations.prompts import Encoder, longest_prompt
from integrations.report import console, print_json, score_table, score_with_bar
from integrations.scoring import Scorer
from integrations.smollm2 import NAME as SMOLLM2
from integrations.tasks import AnyTask, Task
from integrations.tasks.task import SPLITS


def evaluate(
    model: Model,
    task: TaskName,
    data: Data = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            help="Folder with a PEFT LoRA adapter; by default none: zero-shot.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help=f"One of {', '.join(SPLITS)}.", rich_help_panel=TASK)
    ] = "test",
    loss: LossName = None,
    shots: Shots = 16,
    seed: Seed = 0,
    label_words: LabelWords = None,
    column: Columns = None,
    test_limit: TestLimit = None,
    max_length: MaxLength = None,
    dtype: Dtype = None,
    device: Device = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Score a model on a task, with and without an adapter."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    own_loss = loss_of(loss)
    data_task = task_of(task, data, shots, seed, label_words, column, test_limit)
    examples = getattr(data_task, split)
    if not examples:
        raise UserError(f"task {data_task.name!r} has no {split} examples; choose another --split.")
    frozen, tokenizer = load_model(model, dtype=dtype, device=device)
    arch = describe(frozen, TARGETS)
    deltas = None if adapter is None else load_adapter(arch, adapter)
    encoder = make_encoder(data_task, arch, tokenizer, max_length)
    scorer = Scorer(arch, encoder, examples, own_loss)
    scores = {"zero-shot": score_with_bar(scorer, None, "zero-shot")}
    if deltas is not None:
        scores["tuned"] = score_with_bar(scorer, deltas, "tuned")
    table = score_table(f"{split} {data_task.metric}", f"{split} loss", "examples")
    for name, score in scores.items():
        table.add_row(name, f"{score.score:.3f}", f"{score.loss:.4f}", str(score.examples))
    console.print(table)
    if as_json:
        found = {name: plain(score) for name, score in scores.items()}
        about = {"model": model, "task": data_task.name, "adapter": adapter and str(adapter)}
        about |= {"split": split, "metric": data_task.metric}
        print_json({**about, "scores": found})


def bench(
    model: Model = SMOLLM2,
    task: Annotated[
        str | None,
        typer.Option(
            help="As for tune, with label words; by default the demo's.", rich_help_panel=TASK
        ),
    ] = None,
    data: Data = None,
    examples: Annotated[
        int, typer.Option(min=1, help="Training examples.", rich_help_panel=TASK)
    ] = 8,
    seed: Seed = 0,
    label_words: LabelWords = None,
    column: Columns = None,
    population: Annotated[int, typer.Option(min=1, help="Candidates of one layer.")] = 5,
    layers: Annotated[int, typer.Option(min=1, help="Layers to average over.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Medians of so many.")] = 3,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the deltas.")] = 4,
    max_length: MaxLength = None,
    dtype: Dtype = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option(help="JSON file for the figures; by default none.", rich_help_panel=OUTPUT),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time population evaluation with all speedups, with each left out, and naively.

    All ways must find the same losses. benchmarks/population.py in the repository compares with
    other libraries.
    """
    if out is not None:
        require_folder(out.parent)
    shots = -(-examples // 2)
    chosen: AnyTask
    if task is None:
        for option, value in (("data", data), ("label-words", label_words), ("column", column)):
            if value is not None:
                raise UserError(f"--{option} goes with --task; pass that too.")
        chosen = demo_task(seed)
    else:
        chosen = task_of(task, data, shots, seed, label_words, column, None)
    if not isinstance(chosen, Task):
        raise UserError(
            f"bench takes a task with label words; {chosen.name!r} is answered by text."
        )
    frozen, tokenizer = load_model(model, dtype=dtype, device=device)
    arch = describe(frozen)
    length = longest_prompt(frozen, max_length=max_length)
    # Every so many, as examples come class by class.
    used = chosen.train[:: max(1, len(chosen.train) // examples)][:examples]
    with Progress(
        TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), console=console, transient=True
    ) as bar:
        shown = bar.add_task("", total=None)
        timings = measure(
            arch,
            Encoder(chosen, tokenizer, arch.kind, length),
            used,
            loss=make_loss("ce", chosen.metric),
            population=population,
            layers=layers,
            repeats=repeats,
            rank=rank,
            seed=seed,
            progress=lambda done, total: bar.update(shown, completed=done, total=total),
        )
    table = score_table("seconds", "candidates/s", "speedup", "largest loss difference")
    for timing in timings:
        table.add_row(
            timing.way,
            f"{timing.seconds:.3f}",
            f"{timing.candidates_per_second:.2f}",
            f"{timing.speedup:.2f}",
            f"{timing.difference:.1e}",
        )
    console.print(table)
    console.print(
        f"{model} on {chosen.name}: {population} candidates, {len(used)} examples, {layers} layers "
        f"spread evenly, medians of {repeats}; {frozen.device}, {frozen.dtype}. "
        "benchmarks/population.py compares with other libraries."
    )
    report = {
        "settings": {
            "model": model, "task": chosen.name, "examples": len(used), "population": population,
            "layers": layers, "repeats": repeats, "rank": rank, "seed": seed,
            "device": str(frozen.device), "dtype": str(frozen.dtype),
        },
        "versions": versions(),
        "timings": [asdict(timing) for timing in timings],
    }  # fmt: skip
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(out) as beside:
            beside.write_text(json.dumps(report, indent=2) + "\n")
    if as_json:
        print_json(report)
