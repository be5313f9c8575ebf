"""The command ``dfo-lora``."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from integrations.adapter import Adapter
from integrations.architectures import TARGETS, describe
from integrations.checkpoint import CheckpointWarning, holds_run
from integrations.demo import DEMO_BUDGET, demo_task
from integrations.errors import UserError, unknown
from integrations.metrics import LOSS_NAMES
from integrations.models import DTYPES, load_model
from integrations.optimizers import can_save
from integrations.peft_format import CONFIG, load_adapter
from integrations.prompts import Encoder, longest_prompt
from integrations.report import Watch, console, finish, score_table, score_with_bar
from integrations.schedule import SCHEDULES
from integrations.scoring import Score, Scorer
from integrations.smollm2 import NAME as SMOLLM2
from integrations.spaces import INIT_STD
from integrations.tasks import TASKS, Task, load_task
from integrations.tuning import tune as tune_model

SPLITS = ("train", "dev", "test")
CHECKPOINT = "checkpoint"

app = typer.Typer(
    help="Tune low-rank modules of frozen language models without gradients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str, typer.Option(help=f"Folder with a saved model, Hub name, or {SMOLLM2} (98 MB download).")
]
TaskName = Annotated[str, typer.Option(help=f"One of {', '.join(TASKS)}, or its Hub name.")]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder with train, test and possibly dev as .jsonl or .csv, or one such file; else "
        "the Hub."
    ),
]
Shots = Annotated[int, typer.Option(help="Training examples a class, and as many for dev.")]
Seed = Annotated[int, typer.Option(help="All randomness comes from it.")]
LabelWords = Annotated[
    str | None, typer.Option(help="Other label words, separated by commas, in label order.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="Local column of a field, such as text=sentence; repeatable."),
]
TestLimit = Annotated[int | None, typer.Option(help="Score the first so many test examples only.")]
MaxLength = Annotated[int | None, typer.Option(help="Longest prompt in tokens; 512 by default.")]
Dtype = Annotated[str | None, typer.Option(help=f"{', '.join(DTYPES)}; by device if not given.")]
Device = Annotated[str | None, typer.Option(help="Such as cuda:1; a GPU if there is one.")]
Loss = Annotated[str, typer.Option(help=f"One of {', '.join(LOSS_NAMES)}.")]


@app.command()
def tune(
    model: Model,
    task: TaskName,
    data: Data = None,
    optimizer: Annotated[
        str,
        typer.Option(
            help="lotfwa, cma-es, sep-cma-es, random, pycma, nevergrad:NAME, or module:name of "
            "a factory f(dim, seed)."
        ),
    ] = "lotfwa",
    budget: Annotated[int, typer.Option(help="Candidates to evaluate.")] = 6000,
    rank: Annotated[int, typer.Option(help="Rank of each delta.")] = 4,
    dim: Annotated[int, typer.Option(help="Length of each layer's vector z.")] = 500,
    targets: Annotated[str, typer.Option(help="Projections among q, k, v, o.")] = "q,v",
    layers: Annotated[
        str | None,
        typer.Option(
            help="Indices in the order of a sweep, such as 29,28; or all. Else the upper half."
        ),
    ] = None,
    popsize: Annotated[int | None, typer.Option(help="Candidates a generation.")] = None,
    schedule: Annotated[str, typer.Option(help=f"{', '.join(SCHEDULES)}.")] = "generation-major",
    loss: Loss = "ce",
    init: Annotated[str, typer.Option(help=f"{', '.join(INIT_STD)}.")] = "calibrated",
    init_std: Annotated[float | None, typer.Option(help="Scale of the init.")] = None,
    dev_every: Annotated[int, typer.Option(help="Evaluations between looks at dev.")] = 50,
    patience: Annotated[int, typer.Option(help="Evaluations without gain before the end.")] = 1500,
    shots: Shots = 16,
    seed: Seed = 0,
    label_words: LabelWords = None,
    column: Columns = None,
    test_limit: TestLimit = None,
    max_length: MaxLength = None,
    dtype: Dtype = None,
    device: Device = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for adapter and plot; one under runs/ if not given.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Start anew and replace an earlier run's files.")
    ] = False,
) -> None:
    """Tune a model on a task; save a PEFT adapter, the history and a plot.

    A run that was interrupted goes on when the same command is given again.
    """
    name = re.sub("[/:]", "-", f"{Path(model).name}-{task}-{optimizer}-seed{seed}")
    folder = Path("runs") / name if out is None else out
    _require_free(folder, overwrite)
    data_task = load_task(
        task,
        data,
        shots=shots,
        seed=seed,
        label_words=_words(label_words),
        columns=_pairs(column),
        test_limit=test_limit,
    )
    checkpoint = _checkpoint(folder, overwrite, optimizer, dim, popsize)
    _tune(
        folder,
        load_model(model, dtype=dtype, device=device),
        data_task,
        checkpoint=checkpoint,
        resume=not overwrite,
        optimizer=optimizer,
        budget=budget,
        rank=rank,
        dim=dim,
        targets=_words(targets) or (),
        layers=_layers(layers),
        popsize=popsize,
        schedule=schedule,
        loss=loss,
        init=init,
        init_std=init_std,
        dev_every=dev_every,
        patience=patience,
        seed=seed,
        max_length=max_length,
    )


@app.command("eval")
def evaluate(
    model: Model,
    task: TaskName,
    data: Data = None,
    adapter: Annotated[
        Path | None, typer.Option(help="Folder with a PEFT LoRA adapter; zero-shot without one.")
    ] = None,
    split: Annotated[str, typer.Option(help=f"One of {', '.join(SPLITS)}.")] = "test",
    loss: Loss = "ce",
    shots: Shots = 16,
    seed: Seed = 0,
    label_words: LabelWords = None,
    column: Columns = None,
    test_limit: TestLimit = None,
    max_length: MaxLength = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Score a model on a task, with and without an adapter."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if loss not in LOSS_NAMES:
        raise unknown("loss", loss, LOSS_NAMES)
    data_task = load_task(
        task,
        data,
        shots=shots,
        seed=seed,
        label_words=_words(label_words),
        columns=_pairs(column),
        test_limit=test_limit,
    )
    frozen, tokenizer = load_model(model, dtype=dtype, device=device)
    arch = describe(frozen, TARGETS)
    deltas = None if adapter is None else load_adapter(arch, adapter)
    length = longest_prompt(frozen) if max_length is None else max_length
    encoder = Encoder(data_task, tokenizer, arch.kind, length)
    scorer = Scorer(arch, encoder, getattr(data_task, split), loss)
    table = score_table(f"{split} {data_task.metric}", f"{split} loss", "examples")
    for name, score in _scores(scorer, deltas).items():
        table.add_row(name, f"{score.score:.3f}", f"{score.loss:.4f}", str(score.examples))
    console.print(table)


@app.command()
def demo(
    budget: Annotated[int, typer.Option(help="Candidates to evaluate.")] = DEMO_BUDGET,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for adapter and plot.")] = Path("runs/demo"),
) -> None:
    """Tune SmolLM2-135M with LoTFWA on a small sentiment task that comes along."""
    task = demo_task(seed)
    console.print(
        f"SmolLM2-135M-Instruct, {task.name}: {len(task.train)} training, {len(task.dev)} "
        f"development and {len(task.test)} test sentences; LoTFWA, {budget} evaluations"
    )
    _tune(out, load_model(SMOLLM2), task, optimizer="lotfwa", budget=budget, seed=seed)


def main() -> None:
    """Run the command; input that cannot work is one line on stderr and exit status 2."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.showwarning = partial(_show_warning, warnings.showwarning)
        try:
            app()
        except UserError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(2)


def _tune(
    folder: Path, loaded: tuple[PreTrainedModel, Any], task: Task, budget: int, **settings: Any
) -> None:
    """Tune with a progress bar, score on the test set, save and show."""
    model, tokenizer = loaded
    with Watch(budget) as watch:
        result = tune_model(
            model, task, tokenizer=tokenizer, budget=budget, callback=watch, **settings
        )
    if not watch.generations:
        console.print("This run had ended already; --overwrite starts anew. What it gave:")
    elif watch.interrupted and settings.get("checkpoint"):
        console.print("The same command goes on from here.")
    test = {}
    if task.test:
        loss = result.settings["loss"]
        test = _scores(Scorer(result.adapter.arch, result.encoder, task.test, loss), result.adapter)
    finish(result, folder, test)


def _scores(scorer: Scorer, adapter: Adapter | None) -> dict[str, Score]:
    """Scores without and with deltas."""
    scores = {"zero-shot": score_with_bar(scorer, None, "zero-shot")}
    if adapter is not None:
        scores["tuned"] = score_with_bar(scorer, adapter, "tuned")
    return scores


def _require_free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder with an adapter, unless it is of a run that can go on."""
    if (folder / CONFIG).exists() and not overwrite and not holds_run(folder / CHECKPOINT):
        raise _taken(folder)


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


def _show_warning(
    show: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    *where: Any,
    **options: Any,
) -> None:
    """Show ours as plain lines, the others as Python does."""
    if issubclass(category, CheckpointWarning):
        console.print(f"note: {message}", markup=False, soft_wrap=True)
    else:
        show(message, category, *where, **options)


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(","))


def _layers(text: str | None) -> tuple[int, ...] | str | None:
    if text is None or text == "all":
        return text
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise UserError(
            f"--layers takes all, or numbers separated by commas; got {text!r}."
        ) from None


def _pairs(texts: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in texts or ():
        name, equals, column = text.partition("=")
        if not (name and equals and column):
            raise UserError(f"--column takes FIELD=COLUMN, such as text=sentence; got {text!r}.")
        pairs[name] = column
    return pairs
