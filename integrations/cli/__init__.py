"""The command ``dfo-lora``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import typer

from integrations.checkpoint import CheckpointWarning
from integrations.cli.comparison import compare
from integrations.cli.evaluation import bench, evaluate
from integrations.cli.tools import export, info, plot
from integrations.cli.tuning import demo, tune
from integrations.errors import UserError
from integrations.model_card import CardWarning
from integrations.models import hush
from integrations.replica import WorkerError
from integrations.report import console
from integrations.workers import WorkerWarning

FAILED = 1
INTERRUPTED = 130

app = typer.Typer(
    help="Tune low-rank modules of frozen language models without gradients.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(tune)
app.command("eval")(evaluate)
app.command()(compare)
app.command()(export)
app.command()(plot)
app.command()(bench)
app.command()(demo)
app.command()(info)


def main() -> None:
    """Run the command; input that cannot work is one line on stderr and exit status 2."""
    hush()
    console.stderr = False
    with warnings.catch_warnings():
        warnings.showwarning = partial(_show_warning, warnings.showwarning)
        try:
            status = app(standalone_mode=False)
        except typer.TyperException as error:
            status = _refuse(error.format_message())
        except (UserError, OSError) as error:
            status = _refuse(str(error))
        except WorkerError as error:  # with the worker's own traceback, which is of use
            print(f"error: {error}", file=sys.stderr)
            status = FAILED
    if status == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    sys.exit(status)


def _refuse(message: str) -> int:
    if line := " ".join(message.split()):  # empty where the help was shown instead
        print(f"error: {line}", file=sys.stderr)
    return 2


def _show_warning(
    show: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    *where: Any,
    **options: Any,
) -> None:
    """Show ours as plain lines, the others as Python does."""
    if issubclass(category, (CardWarning, CheckpointWarning, WorkerWarning)):
        console.print(f"note: {message}", markup=False, soft_wrap=True)
    else:
        show(message, category, *where, **options)


__all__ = ["app", "main"]
