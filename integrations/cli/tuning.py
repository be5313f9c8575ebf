"""``dfo-lora tune`` and ``dfo-lora demo``."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import PreTrainedModel

from integrations.callbacks import Callback, Progress, TensorBoard
from integrations.checkpoint import holds_run, remove_run
from integrations.cli.config import command_line, require_no_other, write_config, writer_of
from integrations.cli.options import (
    DELTAS,
    OUTPUT,
    SEARCH,
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
    byte_count,
    count_or_none,
    layer_list,
    loss_of,
    require_folder,
    task_of,
    words,
)
from integrations.demo import DEMO_BUDGET, demo_task
from integrations.errors import UserError
from integrations.model_card import CardWarning
from integrations.models import load_model
from integrations.optimizers import FREEZE_A, can_save
from integrations.peft_format import CONFIG
from integrations.presets import PRESETS
from integrations.report import Watch, console, finish, print_json, score_test, summary
from integrations.run_file import RUN_FILE, RunRecord
from integrations.schedule import SCHEDULES
from integrations.smollm2 import NAME as SMOLLM2
from integrations.spaces import INIT_STD
from integrations.tasks import AnyTask
from integrations.tuning import tune as tune_model

CHECKPOINT = "checkpoint"

Optimizer = Annotated[
    str,
    typer.Option(
        help="lotfwa, cma-es, sep-cma-es, random, pycma, nevergrad:NAME, or module:name of a "
        "factory f(dim, seed); dfo-lora info lists all.",
        rich_help_panel=SEARCH,
    ),
]
Budget = Annotated[int, typer.Option(help="Candidates to evaluate.", rich_help_panel=SEARCH)]
Seconds = Annotated[
    float | None,
    typer.Option(help="Most wall time; by default no limit.", rich_help_panel=SEARCH),
]
Popsize = Annotated[
    int | None,
    typer.Option(
        help="Candidates a generation; by default the optimizer's own.", rich_help_panel=SEARCH
    ),
]
Schedule = Annotated[
    str,
    typer.Option(help=f"What is tuned next: {', '.join(SCHEDULES)}.", rich_help_panel=SEARCH),
]
DevEvery = Annotated[
    int, typer.Option(help="Evaluations between looks at dev.", rich_help_panel=SEARCH)
]
Patience = Annotated[
    int,
    typer.Option(
        help="Evaluations without gain on dev before the end; 0 or none: never.",
        parser=count_or_none,
        metavar="INTEGER",
        rich_help_panel=SEARCH,
    ),
]
Rank = Annotated[int, typer.Option(help="Rank of each delta.", rich_help_panel=DELTAS)]
Dim = Annotated[int, typer.Option(help="Length of each layer's vector z.", rich_help_panel=DELTAS)]
Targets = Annotated[str, typer.Option(help="Projections among q, k, v, o.", rich_help_panel=DELTAS)]
Layers = Annotated[
    str | None,
    typer.Option(
        help="Indices in the order of a sweep, such as 29,28; or all. By default the upper half.",
        rich_help_panel=DELTAS,
    ),
]
Init = Annotated[
    str,
    typer.Option(
        help=f"How projections are scaled: {', '.join(INIT_STD)}.", rich_help_panel=DELTAS
    ),
]
InitStd = Annotated[
    float | None,
    typer.Option(
        help="The scale; by default "
        + ", ".join(f"{std} for {name}" for name, std in INIT_STD.items())
        + ".",
        rich_help_panel=DELTAS,
    ),
]
FreezeA = Annotated[
    bool | None,
    typer.Option(
        "--freeze-a/--search-a",
        help="Search for B alone, with A random and fixed, or for both (the paper); by default B "
        f"alone for {', '.join(FREEZE_A)}, both for others.",
        rich_help_panel=DELTAS,
    ),
]
Incumbent = Annotated[
    bool,
    typer.Option(
        "--incumbent/--best-ever",
        help="Put a candidate in place only if it lowers the loss, or a layer's best so far "
        "(the authors' code).",
        rich_help_panel=SEARCH,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help=f"Settings that go together: {', '.join(PRESETS)}; by default none. Options that are "
        "not as by default come before it.",
        rich_help_panel=SEARCH,
    ),
]
MemoryLimit = Annotated[
    int | None,
    typer.Option(
        help="Most memory that training takes beyond the model, such as 2GB; by default what is "
        "fastest.",
        parser=byte_count,
        metavar="SIZE",
        rich_help_panel=OUTPUT,
    ),
]
WorkerCount = Annotated[
    str | None,
    typer.Option(
        "--workers",
        help="Who evaluates candidates: a number of processes, ray, or ray://host:port; by default "
        "this process alone.",
        rich_help_panel=OUTPUT,
    ),
]
Logs = Annotated[
    Path | None,
    typer.Option(help="Folder for TensorBoard logs; by default none.", rich_help_panel=OUTPUT),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder for adapter and plot; by default one under runs/.", rich_help_panel=OUTPUT
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Start anew and replace an earlier run's files.",
        rich_help_panel=OUTPUT,
    ),
]


def tune(
    ctx: typer.Context,
    model: Model,
    task: TaskName,
    data: Data = None,
    optimizer: Optimizer = "lotfwa",
    budget: Budget = 6000,
    seconds: Seconds = None,
    popsize: Popsize = None,
    schedule: Schedule = "generation-major",
    loss: LossName = None,
    dev_every: DevEvery = 50,
    patience: Patience = 1500,
    rank: Rank = 4,
    dim: Dim = 500,
    targets: Targets = "q,v",
    layers: Layers = None,
    init: Init = "calibrated",
    init_std: InitStd = None,
    freeze_a: FreezeA = None,
    incumbent: Incumbent = True,
    preset: Preset = None,
    shots: Shots = 16,
    seed: Seed = 0,
    label_words: LabelWords = None,
    column: Columns = None,
    test_limit: TestLimit = None,
    max_length: MaxLength = None,
    dtype: Dtype = None,
    device: Device = None,
    memory_limit: MemoryLimit = None,
    workers: WorkerCount = None,
    tensorboard: Logs = None,
    out: Out = None,
    overwrite: Overwrite = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Tune a model on a task; save a PEFT adapter, the history and a plot.

    A run that was interrupted goes on when the same command is given again.
    """
    name = re.sub("[/:]", "-", f"{Path(model).name}-{task}-{optimizer}-seed{seed}")
    folder = Path("runs") / name if out is None else out
    _require_free(folder, overwrite)
    own_loss = loss_of(loss)
    data_task = task_of(task, data, shots, seed, label_words, column, test_limit)
    checkpoint = _checkpoint(folder, overwrite, optimizer, dim, popsize)
    _run(
        ctx,
        folder,
        load_model(model, dtype=dtype, device=device),
        data_task,
        callbacks=[] if tensorboard is None else [TensorBoard(tensorboard)],
        as_json=as_json,
        checkpoint=checkpoint,
        resume=not overwrite,
        optimizer=optimizer,
        budget=budget,
        seconds=seconds,
        rank=rank,
        dim=dim,
        targets=words(targets) or (),
        layers=layer_list(layers),
        popsize=popsize,
        schedule=schedule,
        loss=own_loss,
        init=init,
        init_std=init_std,
        freeze_a=freeze_a,
        incumbent=incumbent,
        preset=preset,
        dev_every=dev_every,
        patience=patience or None,
        seed=seed,
        max_length=max_length,
        memory_limit=memory_limit,
        workers=int(workers) if workers is not None and workers.isdecimal() else workers,
    )


def demo(
    ctx: typer.Context,
    budget: Budget = DEMO_BUDGET,
    seed: Seed = 0,
    out: Annotated[
        Path, typer.Option(help="Folder for adapter and plot.", rich_help_panel=OUTPUT)
    ] = Path("runs/demo"),
    as_json: Json = False,
) -> None:
    """Tune SmolLM2-135M with LoTFWA on a small sentiment task that comes along."""
    task = demo_task(seed)
    _require_demo(out, task.name)
    console.print(
        f"SmolLM2-135M-Instruct, {task.name}: {len(task.train)} training, {len(task.dev)} "
        f"development and {len(task.test)} test sentences; LoTFWA, {budget} evaluations"
    )
    loaded = load_model(SMOLLM2)
    _run(ctx, out, loaded, task, budget, as_json=as_json, optimizer="lotfwa", seed=seed)


def _run(
    ctx: typer.Context,
    folder: Path,
    loaded: tuple[PreTrainedModel, Any],
    task: AnyTask,
    budget: int,
    callbacks: list[Callback] | None = None,
    as_json: bool = False,
    **settings: Any,
) -> None:
    """Tune with a progress bar, score on the test set, save and show."""
    model, tokenizer = loaded
    with Watch(budget) as watch:

        def keep_options(progress: Progress) -> None:
            if watch.generations == 0:
                if not settings.get("checkpoint"):
                    remove_run(folder / CHECKPOINT)  # of a run that this one replaces
                write_config(ctx, folder)

        result = tune_model(
            model,
            task,
            tokenizer=tokenizer,
            budget=budget,
            callback=[keep_options, watch, *(callbacks or ())],
            **settings,
        )
    with warnings.catch_warnings():  # what there is to tell, the second save tells
        warnings.simplefilter("ignore", CardWarning)
        # Scoring may take long: what was found is on disk before.
        result.save(folder, command=command_line(ctx))
    if note := _how_to_go_on(watch, result.stopped, settings):
        console.print(note)
    if task.test:
        score_test(result)
    finish(result, folder, command_line(ctx))
    if as_json:
        print_json(summary(result, folder))


def _how_to_go_on(watch: Watch, stopped: str, settings: Mapping[str, Any]) -> str | None:
    """What to do next with a run that can go on, or that had ended before."""
    without = "" if settings.get("resume") else ", without --overwrite,"
    same = f"The same command{without}"
    if not watch.generations:
        if stopped == "seconds":
            return "This run's --seconds were up already; with more it goes on. What it gave:"
        return "This run had ended already; --overwrite starts anew. What it gave:"
    if settings.get("checkpoint") and watch.interrupted:
        return f"{same} goes on from here."
    if settings.get("checkpoint") and stopped == "seconds":
        return f"{same} with more --seconds goes on from here."
    return None


def _require_free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder with an adapter or options, unless it is of a run that can go on."""
    require_folder(folder)
    if overwrite or holds_run(folder / CHECKPOINT):
        return
    if (folder / CONFIG).exists():
        raise _taken(folder)
    require_no_other(folder, "tune")


def _require_demo(folder: Path, name: str) -> None:
    """Refuse a folder with another run than the demo's."""
    require_folder(folder)
    recorded = (folder / RUN_FILE).exists()
    if (
        holds_run(folder / CHECKPOINT)
        or writer_of(folder) not in (None, "demo")
        or (recorded and RunRecord.read(folder).settings.get("task") != name)
        or ((folder / CONFIG).exists() and not recorded)
    ):
        raise UserError(f"{folder} holds something else than a demo; pass another --out.")


def _checkpoint(
    folder: Path, overwrite: bool, optimizer: str, dim: int, popsize: int | None
) -> Path | None:
    """Where checkpoints go; None if the optimizer cannot be saved."""
    if can_save(optimizer, dim, popsize):
        return folder / CHECKPOINT
    if holds_run(folder / CHECKPOINT) and not overwrite:
        raise _taken(folder)
    console.print(f"{optimizer} cannot be saved: this run cannot go on if it is interrupted.")
    return None


def _taken(folder: Path) -> UserError:
    return UserError(
        f"{folder} holds an earlier run already; pass --overwrite to replace it, or another --out."
    )
