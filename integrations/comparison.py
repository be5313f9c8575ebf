"""Methods side by side: each on the same few-shot splits, with the same limits and selection."""

from __future__ import annotations

import json
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from integrations.architectures import Architecture, describe
from integrations.arguments import positive, whole, whole_or_none
from integrations.environment import versions
from integrations.errors import UserError
from integrations.files import append_line, read_lines, replace_file
from integrations.history import best_of, plain
from integrations.methods.registry import METHODS, choose_methods
from integrations.methods.trial import Trial, fit
from integrations.models import hush, load_model
from integrations.objective import Score
from integrations.patches import evaluating
from integrations.peak_memory import PeakMemory
from integrations.prompts import Encoder, longest_prompt
from integrations.tasks import Task, load_task
from integrations.tasks.files import Columns
from integrations.workers import end_with_parent

RESULTS = "results.jsonl"
SETTINGS = "settings.json"
Found = TypeVar("Found")


@dataclass(frozen=True)
class Comparison:
    """What all methods are given.

    Attributes:
        model: What `load_model` takes.
        task: What `load_task` takes, by name.
        data: Folder with the task's data; None for the Hub.
        shots: Training examples a class, and as many for development.
        label_words: Other label words than the task's own.
        columns: Column of each field, or several, where it is called otherwise.
        test_limit: Score the first so many test examples only.
        budget: Most passes over the training set for a method; None for no limit.
        seconds: Most wall time for a method's learning; None for no limit.
        marks: Shares of the limit after which what a method has by then is tested too.
        max_length: Longest prompt in tokens; None for 512 or what the model can take.
        dtype: Type of the weights, as for `load_model`.
        device: Where the model is, as for `load_model`.

    Raises:
        UserError: If there is no limit, or a number does not fit.
    """

    model: str
    task: str
    data: str | None = None
    shots: int = 16
    label_words: tuple[str, ...] | None = None
    columns: Columns = field(default_factory=dict)
    test_limit: int | None = None
    budget: int | None = 6000
    seconds: float | None = None
    marks: tuple[float, ...] = ()
    max_length: int | None = None
    dtype: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.budget is None and self.seconds is None:
            raise UserError("a comparison needs a limit: pass budget, seconds or both.")
        # What JSON holds.
        object.__setattr__(self, "data", None if self.data is None else str(self.data))
        for name in ("max_length", "test_limit", "budget"):
            object.__setattr__(self, name, whole_or_none(name, getattr(self, name)))
        object.__setattr__(self, "shots", whole("shots", self.shots))
        object.__setattr__(self, "seconds", positive("seconds", self.seconds))
        if any(not 0 < mark < 1 for mark in self.marks) or list(self.marks) != sorted(self.marks):
            raise UserError(f"marks must rise from 0 to 1; got {self.marks!r}.")

    def split(self, seed: int) -> Task:
        """The task with the examples that a seed draws."""
        return load_task(
            self.task,
            self.data,
            shots=self.shots,
            seed=seed,
            label_words=self.label_words,
            columns=dict(self.columns),
            test_limit=self.test_limit,
        )


@dataclass(frozen=True)
class Outcome:
    """What came of one method with one seed.

    Attributes:
        method: Its name in `METHODS`.
        seed: What drew the split and all else.
        score: The task's metric on the test set; None if it failed.
        loss: Cross-entropy on the test set.
        dev_score: The metric on the development set of what was chosen.
        marked: Test scores of what was chosen at each of the comparison's marks.
        evaluations: Passes over the training set.
        seconds: Wall time of learning.
        memory: Bytes at the peak while learning, beyond the loaded model.
        parameters: Numbers that were tuned.
        course: Looks at the development set, as plain dictionaries of `DevScore`; None for what is
            not known.
        error: Why it failed; None if it did not.
    """

    method: str
    seed: int
    score: float | None = None
    loss: float | None = None
    dev_score: float | None = None
    marked: Sequence[float] = ()
    evaluations: float | None = None
    seconds: float | None = None
    memory: int | None = None
    parameters: int | None = None
    course: Sequence[Mapping[str, Any]] = ()
    error: str | None = None


def _prepare(comparison: Comparison, seed: int) -> tuple[Architecture, Encoder]:
    """The model, and what makes prompts of a seed's split for it.

    Raises:
        UserError: If something that the comparison was given cannot be used.
    """
    model, tokenizer = load_model(
        comparison.model, dtype=comparison.dtype, device=comparison.device
    )
    arch = describe(model)
    task = comparison.split(seed)
    if not isinstance(task, Task) or not (task.train and task.dev and task.test):
        raise UserError(
            f"task {task.name!r} needs label words, and examples to train on, for development and "
            "for the test, to be compared."
        )
    most = longest_prompt(model, max_length=comparison.max_length)
    return arch, Encoder(task, tokenizer, arch.kind, most)


def _check(comparison: Comparison, seed: int) -> None:
    """Raise UserError if something that the comparison was given cannot be used."""
    _prepare(comparison, seed)


def run_trial(comparison: Comparison, method: str, seed: int) -> Outcome:
    """Run one method with one seed, in this process.

    Raises:
        UserError: If the method does not suit the model or task.
    """
    arch, encoder = _prepare(comparison, seed)
    torch.manual_seed(seed)
    memory = PeakMemory(arch.model)
    with evaluating(arch.model):
        trial = Trial(
            arch,
            encoder,
            seed,
            comparison.budget,
            comparison.seconds,
            METHODS[method].dev_every,
            comparison.marks,
        )
        learner = METHODS[method].build(trial)
        states = fit(trial, learner)
        seconds, extra = trial.elapsed, memory.extra()
        parameters = learner.parameters  # of what is in place, which GAP3 looks at
        tested: dict[int, Score] = {}
        for state in reversed(states):  # the last is in place
            if id(state) not in tested:
                if tested:
                    learner.restore(state)
                tested[id(state)] = trial.score(encoder.task.test, learner.logits)
        *marked, last = (tested[id(state)] for state in states)
    return Outcome(
        method=method,
        seed=seed,
        score=last.score,
        loss=last.loss,
        dev_score=best_of(trial.scores).score,
        marked=[score.score for score in marked],
        evaluations=learner.evaluations,
        seconds=seconds,
        memory=extra,
        parameters=parameters,
        course=[plain(look) for look in trial.scores],
    )


def compare(
    comparison: Comparison,
    methods: Sequence[str] | str,
    seeds: Sequence[int],
    folder: str | Path,
    *,
    watch: Callable[[Outcome, bool], None] | None = None,
    isolate: bool = True,
) -> list[Outcome]:
    """Run methods, each with every seed, and keep what came of it.

    A method that fails does not stop the others. What is finished is kept in the folder, so that
    an interrupted comparison goes on with what is missing; failed trials are tried again.

    Args:
        comparison: What all are given.
        methods: Names in `METHODS`, or ``"all"``, ``"gradient-free"``, ``"gradient-based"``.
        seeds: Each draws a split.
        folder: Where results go, one line of JSON a trial.
        watch: Called with each outcome, and whether it was there from an earlier run.
        isolate: Run each trial in a process of its own, so that its peak memory is its own and
            nothing it breaks matters to the next. A script then calls this under
            ``if __name__ == "__main__":``, as each process imports it.

    Returns:
        Outcomes, seed by seed, in the order of `METHODS`.

    Raises:
        UserError: If a name is unknown, the data or the model cannot be used, a seed is given
            twice, or the folder holds results of another comparison.
    """
    names = choose_methods(methods)
    seeds = [whole("seed", seed, least=0) for seed in seeds]
    if not names or not seeds:
        raise UserError("nothing to compare: pass at least one method and one seed.")
    if len({*seeds}) < len(seeds):
        raise UserError(f"seeds must differ; got {seeds!r}.")
    path = Path(folder)
    done = {(outcome.method, outcome.seed): outcome for outcome in read_outcomes(path)}
    _require_same(path, comparison, done.values())
    done = {key: outcome for key, outcome in done.items() if outcome.error is None}
    if any((method, seed) not in done for seed in seeds for method in names):
        _apart(_check, comparison, seeds[0], isolate=isolate)
    _claim(path, comparison)
    outcomes = []
    for seed in seeds:
        for method in names:
            outcome = done.get((method, seed))
            known = outcome is not None
            if outcome is None:
                outcome = _attempt(comparison, method, seed, isolate)
                append_line(path / RESULTS, {"outcome": plain(outcome)})
            outcomes.append(outcome)
            if watch is not None:
                watch(outcome, known)
    return outcomes


def read_outcomes(folder: str | Path) -> list[Outcome]:
    """What a folder holds, the last of each method and seed, in the order they were finished.

    Raises:
        UserError: If its file of results is something else.
    """
    path = Path(folder) / RESULTS
    try:
        found = [Outcome(**row["outcome"]) for row in read_lines(path)]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} holds no comparison's results ({type(error).__name__}); pass another folder."
        ) from None
    return list({(outcome.method, outcome.seed): outcome for outcome in found}.values())


def _attempt(comparison: Comparison, method: str, seed: int, isolate: bool) -> Outcome:
    try:
        return _apart(run_trial, comparison, method, seed, isolate=isolate)
    except Exception as raised:  # one method's failure must not cost the others
        lines = str(raised).strip().splitlines() or [""]
        error = (
            lines[0] if isinstance(raised, UserError) else f"{type(raised).__name__}: {lines[0]}"
        )
    return Outcome(method, seed, error=error)


def _apart(function: Callable[..., Found], *arguments: Any, isolate: bool) -> Found:
    """Call a function, in a process of its own that ends with it if ``isolate``.

    Raises:
        UserError: If the process dies.
    """
    if not isolate:
        return function(*arguments)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_quietly, function, *arguments).result()
    except BrokenProcessPool:
        raise UserError("the process that ran it died, perhaps for lack of memory.") from None


def _quietly(function: Callable[..., Found], *arguments: Any) -> Found:
    """What a process of its own does, without a sign of libraries' own progress."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    hush()
    warnings.simplefilter("ignore")
    return function(*arguments)


def _settings(comparison: Comparison) -> dict[str, Any]:
    """A comparison as JSON gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(comparison)))
    return found


def _require_same(folder: Path, comparison: Comparison, there: Iterable[Outcome]) -> None:
    """Refuse a folder with results of another comparison; failures are none."""
    path, settings = folder / SETTINGS, _settings(comparison)
    if not path.exists() or all(outcome.error is not None for outcome in there):
        return
    before = _read_settings(path)
    for name, value in settings.items():
        if value != before.get(name):
            raise UserError(
                f"{folder} holds results with {name} {before.get(name)!r}, not {value!r}; pass "
                "another folder, or remove that one."
            )


def _claim(folder: Path, comparison: Comparison) -> None:
    """Note the comparison in its folder."""
    path, settings = folder / SETTINGS, _settings(comparison)
    if path.exists():
        if _read_settings(path) == settings:
            return
        (folder / RESULTS).unlink(missing_ok=True)  # failures at most, see `_require_same`
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "comparison": settings,
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with replace_file(path) as beside:
        beside.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8"))["comparison"])
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} is no comparison's ({type(error).__name__}); pass another folder."
        ) from None
    return found
