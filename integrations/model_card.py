"""README.md of a saved adapter: what it is, how it was made and how to load it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from integrations.architectures import Kind
from integrations.files import replace_file
from integrations.history import DevScore, History
from integrations.model_names import hub_name
from integrations.scoring import Score
from integrations.tasks import Task

CARD = "README.md"
PAPER = "2403.01754"
_AUTO = {"causal": "CausalLM", "masked": "MaskedLM", "seq2seq": "Seq2SeqLM"}


class CardWarning(UserWarning):
    """A file of somebody else's stands where a model card would go, and stays."""


def write_card(folder: Path, card: str) -> None:
    """Write a model card; what stands in its place stays if it is none of ours.

    Args:
        folder: Where to; it exists.
        card: What `model_card` returned.
    """
    path = folder / CARD
    if path.exists() and not _is_ours(path.read_text(encoding="utf-8", errors="replace")):
        warnings.warn(
            f"{path} is no model card of dfo-lora and stays as it is; the adapter's own was not "
            "written. Save to another folder to get it.",
            CardWarning,
            stacklevel=3,
        )
        return
    with replace_file(path) as beside:
        beside.write_text(card, encoding="utf-8")


def _is_ours(text: str) -> bool:
    """Whether a README.md has the header that our cards begin with."""
    header = text.split("---\n")[1] if text.startswith("---\n") else ""
    return "library_name: peft\n" in header and "- dfo-lora\n" in header


def model_card(
    settings: Mapping[str, Any],
    task: Any,
    kind: Kind,
    history: History,
    test: Mapping[str, Score],
    command: str | None = None,
) -> str:
    """A model card in Markdown, with the header that the Hub reads.

    A model that was loaded from a folder is named by the folder's last part, and is not in the
    header, as the Hub would not find it.

    Args:
        settings: The run's settings by the names of `tune`'s arguments.
        task: The run's task, of any kind.
        kind: ``"causal"``, ``"masked"`` or ``"seq2seq"``.
        history: The course of the run.
        test: Test scores by name; empty if the test set was not scored.
        command: The command line that made the adapter; None shows the settings instead.
    """
    base = hub_name(settings["model"])
    shown = base or Path(settings["model"]).name or "the model it was made for"
    header: dict[str, Any] = {
        "library_name": "peft",
        **({"base_model": base} if base else {}),
        "tags": ["lora", "dfo-lora", "derivative-free-optimization", f"arxiv:{PAPER}"],
    }
    sizes = {split: len(getattr(task, split, ())) for split in ("train", "dev", "test")}
    counts = ", ".join(f"{size} {split}" for split, size in sizes.items())
    first, best = history.scores[0], history.best
    rows: list[tuple[str, str, DevScore | Score]]
    rows = [("dev", "zero-shot", first), ("dev", "tuned", best)]
    rows += [("test", name, score) for name, score in test.items()]
    scores = "\n".join(
        f"| {split} | {name} | {score.score:.4f} | {score.loss:.4f} |"
        for split, name, score in rows
    )
    if command is None:
        made = yaml.safe_dump(dict(settings) | {"model": shown}, sort_keys=False)
        made = f"Settings of `tune(model, task)`:\n\n```yaml\n{made.strip()}\n```"
    else:
        made = f"```sh\n{command}\n```"
    auto = f"AutoModelFor{_AUTO[kind]}"
    return f"""\
---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {shown}, tuned on {task.name} without gradients

A LoRA adapter for {shown}, found by a derivative-free optimizer ({settings["optimizer"]}) with \
dfo-lora, after Jin, Liu & Tan, *Derivative-Free Optimization for Low-Rank Adaptation in Large \
Language Models* ([arXiv {PAPER}](https://arxiv.org/abs/{PAPER})).

- Task: {task.name}; {counts} examples; seed {settings["seed"]}
{_prompt(task, kind)}
- Deltas: rank {settings["rank"]} on {", ".join(settings["targets"])}; tuned layers \
{", ".join(map(str, settings["layers"]))}
- {history.scores[-1].evaluations} evaluations; these deltas were chosen on the development \
examples after {best.evaluations}

| split | | {task.metric} | loss |
|---|---|---:|---:|
{scores}

## Load it

```python
from peft import PeftModel
from transformers import {auto}

model = {auto}.from_pretrained("{shown}")
model = PeftModel.from_pretrained(model, "this folder, or its name on the Hub")
```

## How it was made

{made}
"""


def _prompt(task: Any, kind: Kind) -> str:
    """What the model is asked, if the task says so."""
    if isinstance(task, Task):
        words = ", ".join(f"`{word}`" for word in task.label_words)
        return f"- Prompt: `{task.pattern(kind)!r}`; answers in the order of the labels: {words}"
    pattern = getattr(task, "pattern", None)
    return f"- Task of kind {type(task).__name__}" + (f"; prompt: `{pattern!r}`" if pattern else "")
