"""What a run gives back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integrations.adapter import Adapter
from integrations.errors import UserError
from integrations.files import replace_file
from integrations.generation import GenerationEvaluator
from integrations.history import History
from integrations.metrics import Loss
from integrations.patches import evaluating
from integrations.peft_format import save_adapter
from integrations.plots import plot_history
from integrations.scoring import Score, Scorer
from integrations.tasks import TextExample
from integrations.text_prompts import GenerationEncoder

RUN_FILE = "dfo_lora.json"


@dataclass(frozen=True)
class TuneResult:
    """Tuned deltas and how they came about.

    Attributes:
        adapter: The deltas with the best development score.
        history: The course of the run.
        encoder: Makes prompts of examples as the run did; its ``task`` is the run's task.
        settings: The run's settings by the names of `tune`'s arguments.
        stopped: Why the run ended: ``"budget"``, ``"patience"`` or ``"callback"``.
        loss: The run's loss as `tune` was given it; None for the task's own.
    """

    adapter: Adapter
    history: History
    encoder: Any
    settings: Mapping[str, Any]
    stopped: str
    loss: str | Loss | None = None

    def test(
        self,
        examples: Sequence[Any] | None = None,
        *,
        frozen: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Score:
        """Score the deltas.

        Args:
            examples: What to score on; None for the task's test set.
            frozen: Score the model without the deltas, for comparison (zero-shot).
            progress: Called with the number of examples done and of all.

        Raises:
            UserError: If there are no examples.
        """
        scorer = Scorer(self.adapter.arch, self.encoder, self._or_test(examples), self.loss)
        return scorer(None if frozen else self.adapter, progress)

    def answers(
        self, examples: Sequence[TextExample] | None = None, *, frozen: bool = False
    ) -> list[str]:
        """What the model writes with the deltas; for generation tasks.

        Args:
            examples: What to answer; None for the task's test set.
            frozen: Answer without the deltas, for comparison.

        Raises:
            UserError: If the task is no generation task, or there are no examples.
        """
        task, arch = self.encoder.task, self.adapter.arch
        if not isinstance(self.encoder, GenerationEncoder):
            raise UserError(
                f"only a GenerationTask is answered by text; {task.name!r} is a "
                f"{type(task).__name__}. test() scores it."
            )
        evaluator = GenerationEvaluator(arch, self.encoder, self._or_test(examples))
        with evaluating(arch.model):
            return evaluator.answers(Adapter(arch) if frozen else self.adapter)

    def _or_test(self, examples: Sequence[Any] | None) -> Sequence[Any]:
        task = self.encoder.task
        examples = task.test if examples is None else examples
        if not examples:
            raise UserError(f"task {task.name!r} has no test examples; pass some to test().")
        return examples

    def save(self, folder: str | Path) -> Path:
        """Write the deltas as a PEFT adapter, with the run's settings and history beside it.

        ``PeftModel.from_pretrained(model, folder)`` loads it.

        Args:
            folder: Where to; made if it is missing. Files of an earlier run are replaced.

        Returns:
            The folder.
        """
        folder = Path(folder)
        save_adapter(self.adapter, folder, self.settings["rank"])
        record = {
            "settings": dict(self.settings),
            "stopped": self.stopped,
            "history": self.history.to_dict(),
        }
        with replace_file(folder / RUN_FILE) as beside:
            beside.write_text(json.dumps(record, indent=1) + "\n")
        return folder

    def plot(self, path: str | Path, test: Mapping[str, float] | None = None) -> None:
        """Draw the run's losses and scores against evaluations.

        Args:
            path: Where the picture goes; its suffix says which format.
            test: Test scores to draw as level lines, by name.

        Raises:
            UserError: If matplotlib is missing or doesn't know the suffix.
        """
        model, optimizer = (self.settings[key] for key in ("model", "optimizer"))
        task = self.encoder.task
        plot_history(
            self.history,
            path,
            title=f"{Path(model).name} on {task.name}, {optimizer}",
            metric=task.metric,
            test=test,
        )
