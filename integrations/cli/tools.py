"""``dfo-lora export``, ``dfo-lora plot`` and ``dfo-lora info``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from integrations.architectures import TARGETS, describe
from integrations.cli.options import MODEL, Json, require_folder
from integrations.environment import environment
from integrations.errors import UserError
from integrations.merging import merge
from integrations.model_card import CARD
from integrations.models import DTYPES, load_model
from integrations.peft_format import CONFIG, WEIGHTS, load_adapter, read_adapter_config
from integrations.plots import plot_runs
from integrations.report import console, print_json
from integrations.run_file import RUN_FILE, RunRecord

MERGED_DTYPES = [name for name in DTYPES if name != "int8"]


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of any PEFT LoRA adapter.")],
    merged: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the full model with the deltas in its weights; by default none."
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="Folder for a copy of the PEFT adapter alone; by default none."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hub name of the model; by default what the run or adapter names.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help=f"Type of the merged weights: {', '.join(MERGED_DTYPES)}.", rich_help_panel=MODEL
        ),
    ] = "float32",
    as_json: Json = False,
) -> None:
    """Write a tuned model in full, with its tokenizer, or its adapter alone."""
    if merged is None and adapter is None:
        raise UserError("export needs --merged FOLDER, --adapter FOLDER or both.")
    if dtype not in MERGED_DTYPES:
        raise UserError(
            f"--dtype must be one of {', '.join(MERGED_DTYPES)}, as small deltas would be lost in "
            f"other types; got {dtype!r}. An adapter tuned with int8 goes into float32."
        )
    config = read_adapter_config(run)
    for folder in (merged, adapter):
        if folder is not None:
            _require_empty(folder)
    if adapter is not None:
        adapter.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, WEIGHTS, CARD):
            if (run / name).exists() or name != CARD:
                shutil.copyfile(run / name, adapter / name)
        console.print(f"adapter  {adapter}", soft_wrap=True, markup=False)
    if merged is not None:
        tuned = RunRecord.read(run).settings["model"] if (run / RUN_FILE).exists() else None
        base = model or tuned or config.get("base_model_name_or_path")
        if not base:
            raise UserError(f"{run / CONFIG} doesn't name the adapter's model; pass --model.")
        frozen, tokenizer = load_model(base, dtype=dtype, device="cpu")
        merge(load_adapter(describe(frozen, TARGETS), run))
        frozen.save_pretrained(merged)
        tokenizer.save_pretrained(merged)
        console.print(f"model    {merged}", soft_wrap=True, markup=False)
    if as_json:
        print_json({"adapter": adapter and str(adapter), "merged": merged and str(merged)})


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path, typer.Option(help="The picture; its suffix says which format.")] = Path(
        "curve.png"
    ),
    as_json: Json = False,
) -> None:
    """Draw runs' training losses and dev scores against evaluations and seconds."""
    require_folder(out.parent)
    records = [RunRecord.read(run) for run in runs]
    if len(metrics := {record.metric for record in records}) > 1:
        raise UserError(
            f"the runs have different scores ({', '.join(sorted(metrics))}), which cannot share an "
            "axis; plot them one by one."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    names = _short_names(runs)
    histories = {name: record.history for name, record in zip(names, records, strict=True)}
    plot_runs(histories, out, metric=records[0].metric)
    console.print(f"plot     {out}", soft_wrap=True, markup=False)
    if as_json:
        print_json({"plot": str(out), "runs": [str(run) for run in runs]})


def info(as_json: Json = False) -> None:
    """Show versions, devices, kernels, model families, tasks and optimizers."""
    found = environment()
    if as_json:
        print_json(found)
        return
    table = Table(show_header=False)
    for title, content in found.items():
        table.add_row(title, _lines(content))
        table.add_section()
    console.print(table)


def _lines(content: Any) -> str:
    if not isinstance(content, dict):
        return ", ".join(content)
    return "\n".join(f"{name}  {value or 'not installed'}" for name, value in content.items())


def _require_empty(folder: Path) -> None:
    require_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; pass another folder.")


def _short_names(runs: list[Path]) -> list[str]:
    """The last part of each folder, or as much as tells them apart."""
    parts = [run.absolute().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len({*names}) == len(names):
            return names
    raise UserError("one run is given twice; give each once.")
