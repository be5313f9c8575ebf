"""Options from a YAML file, and a run's options as one.

A file is what the command line would be: options by name, with - or _::

    model: smollm2-135m
    task: sst2
    targets: [q, v]       # or q,v
    budget: 300
    patience: null        # none
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
import yaml

from integrations.errors import UserError, unknown
from integrations.files import replace_file

CONFIG_FILE = "config.yaml"
COMMANDS = ("tune", "eval", "compare")
"""The commands that take a file. One file serves both, so each leaves the other's options aside."""

_NOT_OF_THE_RUN = {"config", "help", "out", "overwrite", "json", "tensorboard", "workers"}


def read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Callback of ``--config``: what the file says comes in place of the options' defaults.

    Raises:
        UserError: If the file is missing, is no mapping, or has a key that is no option.
    """
    if path is None or ctx.resilient_parsing:
        return path
    given = _load(path)
    group: Any = ctx.parent.command if ctx.parent else None
    known = {name for command in COMMANDS for name in _options(group.commands[command])}
    options = _options(ctx.command)
    defaults = {}
    for key, value in given.items():
        name = str(key).replace("-", "_")
        if name not in known - {"config", "help"}:
            raise UserError(f"{path}: {unknown('option', str(key), known - {'config', 'help'})}")
        if name in options:
            param = options[name]
            if value is not None or param.default is not None:
                defaults[param.name] = _text(path, name, value, param)
    ctx.default_map = defaults
    return path


def write_config(ctx: typer.Context, folder: Path) -> None:
    """Write a command's options so that ``--config`` with the file gives the same run.

    Where its files go is left out.
    """
    options = {name: _plain(ctx.params[p.name]) for name, p in _of_the_run(ctx).items()}
    options = {name: value for name, value in options.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG_FILE
    takes_file = any(param.name == "config" for param in ctx.command.params)
    again = f"dfo-lora {ctx.info_name} --config {CONFIG_FILE}" if takes_file else command_line(ctx)
    head = f"# {again} --out ... repeats this run.\n"
    with replace_file(path) as beside:
        text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
        beside.write_text(head + text, encoding="utf-8")


def writer_of(folder: Path) -> str | None:
    """The command that wrote a folder's options; "" if none of ours did, None if there are none."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    found = re.match(r"# dfo-lora (\w+)", path.read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else ""


def require_no_other(folder: Path, command: str) -> None:
    """Raise UserError if a folder's options are not a command's own, which would replace them."""
    writer = writer_of(folder)
    if writer == "":
        raise UserError(
            f"{folder / CONFIG_FILE} is no run's, and the run's options would replace it; move it "
            "away, or pass another --out."
        )
    if writer not in (None, command):
        raise UserError(f"{folder} holds what dfo-lora {writer} wrote; pass another --out.")


def command_line(ctx: typer.Context) -> str:
    """The command with all options that are not as by default, wherever they came from."""
    parts = ["dfo-lora", str(ctx.info_name)]
    for param in _of_the_run(ctx).values():
        value = _plain(ctx.params[param.name])
        if value is None or value == param.default:
            continue
        if isinstance(value, bool):
            parts += param.opts[:1] if value else param.secondary_opts[:1]
            continue
        for item in value if isinstance(value, list) else [value]:
            parts += [param.opts[0], str(item)]
    return shlex.join(parts)


def _load(path: Path) -> Mapping[Any, Any]:
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--config: the file {str(path)!r} does not exist.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config: {path} cannot be read as YAML: {error}") from None
    if not isinstance(given, dict):
        raise UserError(
            f"--config: {path} must hold options by name, such as 'budget: 300'; got "
            f"{'nothing' if given is None else type(given).__name__}."
        )
    return given


def _options(command: Any) -> dict[str, Any]:
    """A command's parameters by the names of their options, with _ for -."""
    return {param.opts[0].lstrip("-").replace("-", "_"): param for param in command.params}


def _of_the_run(ctx: typer.Context) -> dict[str, Any]:
    options = _options(ctx.command)
    return {name: param for name, param in options.items() if name not in _NOT_OF_THE_RUN}


def _text(path: Path, name: str, value: Any, param: Any) -> Any:
    """A value as it would stand on the command line, so that it is checked like one there."""

    def word(item: Any) -> str:
        if isinstance(item, bool):
            raise UserError(
                f"{path}: {name} has {str(item).lower()}, as which YAML reads yes, no, on and off "
                "too; put such a word in quotes."
            )
        return str(item)

    if isinstance(value, dict) and param.multiple:  # column: {text: [title, review]}
        lists = {key: item if isinstance(item, list) else [item] for key, item in value.items()}
        return [f"{word(key)}={word(item)}" for key, items in lists.items() for item in items]
    if isinstance(value, list | tuple):
        texts = [word(item) for item in value]
        return texts if param.multiple else ",".join(texts)
    if isinstance(value, dict):
        raise UserError(f"{path}: {name} takes one value; got {value!r}.")
    if param.is_flag:
        return value
    text = "none" if value is None else word(value)
    return [text] if param.multiple else text


def _plain(value: Any) -> Any:
    """A parsed option as YAML has it."""
    if isinstance(value, Path):
        return str(value)
    return None if value in ([], ()) else value
