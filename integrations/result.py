"""What a run gives back."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import HfApi

from integrations.adapter import Adapter
from integrations.environment import circumstances
from integrations.errors import UserError
from integrations.evaluators import make_evaluator
from integrations.generation import GenerationEvaluator
from integrations.history import History
from integrations.metrics import Loss
from integrations.model_card import model_card, write_card
from integrations.model_names import hub_name
from integrations.patches import evaluating
from integrations.peft_format import save_adapter
from integrations.plots import plot_history
from integrations.population import PopulationEvaluator
from integrations.run_file import RunRecord
from integrations.scoring import Score, Scorer
from integrations.tasks import Example, Task, TextExample
from integrations.text_prompts import GenerationEncoder


@dataclass(frozen=True)
class TuneResult:
    """Tuned deltas and how they came about.

    Attributes:
        adapter: The deltas with the best development score.
        history: The course of the run.
        encoder: Makes prompts of examples as the run did; its ``task`` is the run's task.
        settings: The run's settings by the names of `tune`'s arguments.
        stopped: Why the run ended: ``"budget"``, ``"patience"``, ``"seconds"`` or ``"callback"``.
        tested: Scores on the task's test set so far, by name: ``"zero-shot"`` for the frozen
            model, ``"tuned"`` for the deltas.
        lost_workers: Workers that died; others did their work.
        loss: The run's loss as `tune` was given it; None for the task's own.
    """

    adapter: Adapter
    history: History
    encoder: Any
    settings: Mapping[str, Any]
    stopped: str
    tested: dict[str, Score] = field(default_factory=dict)
    lost_workers: int = 0
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
        score = scorer(None if frozen else self.adapter, progress)
        if examples is None:
            self.tested["zero-shot" if frozen else "tuned"] = score
        return score

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

    def predict(
        self, examples: Sequence[Mapping[str, str] | Example], *, frozen: bool = False
    ) -> np.ndarray:
        """The class of each example with the deltas; for tasks with label words.

        Args:
            examples: N mappings of the pattern's fields to texts, such as ``{"text": "..."}``, or
                examples, whose labels are not looked at.
            frozen: Predict without the deltas, for comparison.

        Returns:
            (N,) indices into the task's label words.

        Raises:
            UserError: As `logits`.
        """
        classes: np.ndarray = self.logits(examples, frozen=frozen).argmax(axis=1)
        return classes

    def logits(
        self, examples: Sequence[Mapping[str, str] | Example], *, frozen: bool = False
    ) -> np.ndarray:
        """What the model makes of each label word; arguments as for `predict`.

        Returns:
            (N, C) float32 logits of C label words; where whole words are read, log-likelihoods.

        Raises:
            UserError: If the task has no label words, there are no examples, or one lacks a field.
        """
        task, arch = self.encoder.task, self.adapter.arch
        if not isinstance(task, Task):
            raise UserError(
                f"only a task with label words has classes; {task.name!r} is a "
                f"{type(task).__name__}. test() scores it."
            )
        listed = isinstance(examples, Sequence) and len(examples) > 0
        if not listed or not all(isinstance(e, Mapping | Example) for e in examples):
            given = ", ".join(f"{name!r}: ..." for name in task.fields)
            raise UserError(
                f"what to predict must be a list of fields such as [{{{given}}}], one a text; got "
                f"{examples!r:.80}."
            )
        fields = [e.fields if isinstance(e, Example) else e for e in examples]
        asked = task.with_splits((), (), [Example(texts, 0) for texts in fields])
        evaluator = make_evaluator(self.encoder, arch, asked.test, None)
        assert isinstance(evaluator, PopulationEvaluator)
        with evaluating(arch.model):
            return evaluator.logits(Adapter(arch) if frozen else self.adapter)

    def _or_test(self, examples: Sequence[Any] | None) -> Sequence[Any]:
        task = self.encoder.task
        examples = task.test if examples is None else examples
        if not examples:
            raise UserError(f"task {task.name!r} has no test examples; pass some to test().")
        return examples

    def save(self, folder: str | Path, *, command: str | None = None) -> Path:
        """Write the deltas as a PEFT adapter, with the run's settings and history beside it.

        ``PeftModel.from_pretrained(model, folder)`` loads it. A model card says what it is, with
        the test scores if the test set was scored before.

        Args:
            folder: Where to; made if it is missing. Files of an earlier run are replaced, but a
                README.md of somebody else's stays, with a `CardWarning`.
            command: The command line that made it, for the model card; None shows the settings.

        Returns:
            The folder.
        """
        folder = Path(folder)
        save_adapter(self.adapter, folder, self.settings["rank"])
        task = self.encoder.task
        RunRecord(
            self.settings,
            task.metric,
            self.stopped,
            self.history,
            self.lost_workers,
            circumstances(self.adapter.arch.model),
        ).write(folder)
        card = model_card(
            self.settings, task, self.adapter.arch.kind, self.history, self.tested, command
        )
        write_card(folder, card)
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        message: str = "Add the adapter",
    ) -> str:
        """Upload what `save` writes to a model repository of the Hugging Face Hub.

        Args:
            repo_id: ``"user/name"``; made if it is missing.
            private: Whether a new repository is private; None for the account's default.
            token: An access token; None for that of ``hf auth login``.
            message: First line of the commit.

        Returns:
            The commit's address.

        Raises:
            UserError: If the Hub cannot be reached or refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            hub = HfApi(token=token)
            try:
                hub.create_repo(repo_id, private=private, exist_ok=True)
                commit = hub.upload_folder(
                    repo_id=repo_id, folder_path=folder, commit_message=message
                )
            except Exception as error:  # its HTTP client's errors come through as they are
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise UserError(
                    f"the adapter cannot be uploaded to {repo_id!r} ({reason}); check the "
                    "connection and the name, and log in with: hf auth login."
                ) from error
        return str(commit.commit_url)

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
            title=f"{Path(hub_name(model) or model).name} on {task.name}, {optimizer}",
            metric=task.metric,
            test=test,
        )
