"""`tune(model, task)`: the product."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from integrations.architectures import describe
from integrations.arguments import positive, real, whole, whole_or_none
from integrations.callbacks import Callback, Progress, as_callback
from integrations.checkpoint import Checkpoint, require_state
from integrations.errors import UserError
from integrations.evaluators import make_encoder, make_evaluator
from integrations.fingerprint import fingerprint
from integrations.history import History
from integrations.metrics import Loss, loss_name
from integrations.model_names import portable_name
from integrations.models import load_model, require_tunable
from integrations.optimizers import freezes_a, make_optimizers, optimizer_name
from integrations.patches import evaluating
from integrations.population import FAST, Speedups
from integrations.presets import with_preset
from integrations.result import TuneResult
from integrations.schedule import choose_layers, coordinates, make_schedule
from integrations.scoring import Scorer
from integrations.search import LayerwiseSearch
from integrations.selection import Selection, require_finite
from integrations.spaces import make_spaces
from integrations.tasks import AnyTask, load_task
from integrations.tasks.loading import own_task
from integrations.tasks.text import TextTask
from integrations.visit import Visit
from integrations.workers import Fleet, Workers, as_workers


def tune(
    model: PreTrainedModel | str,
    task: AnyTask | str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    optimizer: Any = "lotfwa",
    rank: int = 4,
    dim: int = 500,
    targets: Sequence[str] = ("q", "v"),
    layers: Sequence[int] | str | None = None,
    budget: int = 6000,
    seconds: float | None = None,
    popsize: int | None = None,
    schedule: str = "generation-major",
    loss: str | Loss | None = None,
    init: str = "calibrated",
    init_std: float | None = None,
    freeze_a: bool | None = None,
    incumbent: bool = True,
    dev_every: int = 50,
    patience: int | None = 1500,
    seed: int = 0,
    max_length: int | None = None,
    memory_limit: int | None = None,
    callback: Callback | Sequence[Callback] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = True,
    speedups: Speedups = FAST,
    workers: Workers | int | str | None = None,
    preset: str | None = None,
) -> TuneResult:
    """Tune low-rank modules of a frozen language model without gradients.

    Jin, Liu & Tan, Derivative-Free Optimization for Low-Rank Adaptation in Large Language Models
    (arXiv 2403.01754). Each layer has an optimizer of its own over a vector z of length `dim`,
    which fixed random projections turn into the low-rank factors of the layer's targets. Layers
    take turns; a candidate takes its layer's place only if it lowers the training loss. The deltas
    with the best development score are kept.

    The model is not edited: its outputs afterwards are those from before, bit for bit.

    Args:
        model: A model with its language head, or what `load_model` takes.
        task: A task with training and development examples, answered by a label word (`Task`), by
            text that is scored (`GenerationTask`) or by text that is to be likely
            (`ContinuationTask`); or the name of a built-in one, whose 16-shot splits are then
            drawn from the Hub's data with `seed`; or ``"module:name"`` of any of these.
        tokenizer: The model's tokenizer; None loads it from where the model came from.
        optimizer: ``"lotfwa"``, ``"cma-es"`` or whatever else `dfo_core.as_optimizer` takes: a
            name, a factory f(dim, seed), or an object with ask and tell, which is copied for each
            layer.
        rank: Rank r of each delta.
        dim: Length d of each layer's z; divides into equal parts, two for each target, or one
            with `freeze_a`.
        targets: Which of the projections ``"q"``, ``"k"``, ``"v"`` and ``"o"`` get a delta.
        layers: Indices of the layers to tune in the order of a sweep, negative ones from the end;
            ``"all"``, first to last; None for the upper half, where a candidate costs a third of
            what it costs in the lower half and lowers the loss at least as much.
        budget: Candidates to evaluate, each on the whole training set.
        seconds: Most wall time, with setting up and looks at the development set; the generation in
            which it is up is finished. None for no limit.
        popsize: Candidates a generation; None for `optimizers.POPSIZES`.
        schedule: ``"generation-major"``, one generation a layer in turn; ``"block"``, three in a
            row; ``"cost-aware"``, more where they lower the loss most for what they cost
            (`integrations.schedule.CostAware`); or ``"joint"``, one optimizer for the z of all
            layers, which then has as many coordinates as they have together.
        loss: Of a task with label words: ``"ce"`` (cross-entropy over them; the default),
            ``"hinge"`` (margin 2), ``"error"`` (share of wrong answers), ``"metric"`` (minus the
            task's metric), or a function of label logits (..., N, C) and labels (N,) that returns
            losses (...). Other tasks have one loss only, and take None: minus the score of what is
            generated, or the mean negative log-likelihood of the references.
        init: How the projections are scaled: ``"calibrated"``, ``"paper"``, ``"reference-code"``
            or ``"normal"``; see `integrations.spaces.make_spaces`.
        init_std: The scale that `init` speaks of; None for `integrations.spaces.INIT_STD`.
        freeze_a: Whether A is random and fixed, and B alone is searched for, as LoRA-FA does with
            gradients (Zhang et al., arXiv 2308.03303), or both are, as in the paper. None: B alone
            for ``"lotfwa"``, both for others; docs/method.md says why.
        incumbent: Whether a candidate has to lower the loss to be put in place. False: a layer's
            best candidate so far is, as in the authors' code, whatever other layers' deltas were
            when it was evaluated.
        dev_every: Evaluations between looks at the development set.
        patience: Evaluations without a better development score after which the run ends; None
            never ends it early.
        seed: All randomness comes from it.
        max_length: Longest prompt in tokens; None for 512 or what the model can take.
        memory_limit: Most bytes that training may take beyond the model's weights, for kept hidden
            states and what a forward pass holds; None lets speed decide.
        callback: Called after each generation with a `Progress`; returns True to end the run. Or
            several of them; `integrations.callbacks` has some.
        checkpoint: A folder, made if it is missing, for one run at a time. The run's state is saved
            there after each generation (after fewer, if saving would take more than a tenth of
            the time). A call with the same arguments continues from there, and ends with the same
            history and deltas, bit for bit, as if it had never been interrupted. ``budget`` may
            be larger than before; a run that had ended because it was spent then goes on from its
            end. So does one that `callback` ended, or ``seconds`` if there are more of them now;
            any other that ended is returned at once.
            Needs an optimizer of `dfo_core`'s own, since those of other libraries cannot be
            saved; an object given as one must have been built with a seed.
        resume: False starts anew, and removes the state of an earlier run.
        speedups: Which of the evaluator's six steps to take. How many candidates go into one
            forward pass can change the last digit of a loss, and where it is measured, on a GPU,
            it can be another in another run; what ``settings["block_size"]`` says, given as
            ``Speedups(blocks=...)``, repeats a run exactly whose batches do not grow.
        workers: Who evaluates candidates, each with a replica of the model: a number of processes
            of this machine, or ``"ray"``, ``"ray://host:port"`` or `RayWorkers` for a Ray cluster;
            None for this process alone. With the same ``blocks`` a loss is the same whoever
            computes it, to the last bit if processor and threads are. A worker that dies (a
            `WorkerWarning`) costs its share of one generation. Processes need what Python's
            multiprocessing needs: a script calls `tune` under ``if __name__ == "__main__":``.
        preset: ``"paper"`` for the paper's settings in place of the defaults; see
            `integrations.presets`. Arguments with other values than their defaults keep them.

    Returns:
        The tuned deltas, history, scores and ways to save and plot them.

    Raises:
        UserError: If an argument does not fit; before any long work starts.
        WorkerError: If a worker raises, or all of them have died.
    """
    given = dict(locals())
    if preset is not None:
        return tune(model, task, **with_preset(preset, given, tune.__kwdefaults__ or {}))
    others = as_workers(workers)
    if isinstance(model, str):
        if tokenizer is not None:
            raise UserError("tokenizer has no effect on a model given by name; pass the model too.")
        model, tokenizer = load_model(model)
    require_tunable(model)
    if not isinstance(targets, Sequence):
        raise UserError(f"targets must be a list such as ['q', 'v']; got {targets!r}.")
    arch = describe(model, tuple(targets))
    chosen = choose_layers(layers, len(arch.layers))
    seconds, init_std = positive("seconds", seconds), real(init_std)
    budget, dev_every = whole("budget", budget), whole("dev_every", dev_every)
    rank, dim, seed = whole("rank", rank), whole("dim", dim), whole("seed", seed, least=0)
    popsize, patience = whole_or_none("popsize", popsize), whole_or_none("patience", patience)
    max_length = whole_or_none("max_length", max_length)
    memory_limit = whole_or_none("memory_limit", memory_limit)
    listener = as_callback(callback)
    freeze_a, incumbent = freezes_a(optimizer, freeze_a), bool(incumbent)
    plan = make_schedule(schedule, chosen, len(arch.layers))
    size = coordinates(plan, dim)
    optimizers = make_optimizers(optimizer, plan.stops, size, seed, budget, popsize)
    if checkpoint is not None:
        require_state(optimizers, optimizer_name(optimizer))
    if isinstance(task, str):
        own = own_task(task)
        task = own if isinstance(own, TextTask) else load_task(own or task, seed=seed)
    encoder = make_encoder(task, arch, tokenizer or _tokenizer_of(model), max_length)
    _check_task(task)
    settings = {
        "model": portable_name(model.name_or_path or ""),
        "task": task.name,
        "optimizer": optimizer_name(optimizer),
        "rank": rank,
        "dim": dim,
        "targets": list(targets),
        "layers": list(chosen),
        "budget": budget,
        "seconds": seconds,
        "popsize": popsize,
        "schedule": schedule,
        "loss": loss_name(loss, encoder.losses),
        "init": init,
        "init_std": init_std,
        "freeze_a": freeze_a,
        "incumbent": incumbent,
        "dev_every": dev_every,
        "patience": patience,
        "seed": seed,
        "max_length": encoder.max_length,
        "memory_limit": memory_limit,
    }
    saved, state = None, None
    if checkpoint is not None:
        same = fingerprint(settings, speedups, model, encoder, optimizers)
        saved = Checkpoint(checkpoint, same, budget, optimizers, dict.fromkeys(chosen, dim))
        state = saved.load() if resume else None
        if state is None or state.stopped is None or budget > state.budget:
            saved.require_writable()
    started = time.perf_counter()
    with evaluating(model), ExitStack() as stack:
        evaluator = make_evaluator(encoder, arch, task.train, loss, speedups, memory_limit)
        spaces = make_spaces(
            arch,
            evaluator.batches,
            rank=rank,
            dim=dim,
            init=init,
            std=init_std,
            seed=seed,
            freeze_a=freeze_a,
        )
        fleet = None
        if others is not None:
            fleet = stack.enter_context(Fleet(others, evaluator, spaces))
        elsewhere = None if fleet is None else fleet.evaluate
        search = LayerwiseSearch(evaluator, spaces, optimizers, plan, budget, elsewhere, incumbent)
        objective = loss or getattr(task, "score", None)
        require_finite(search.loss, "training", objective)
        selection = Selection(search, Scorer(arch, encoder, task.dev, loss), started)
        if state is not None:
            selection.restore(state)
        else:
            selection.look()
            require_finite(selection.history.scores[0].loss, "development", objective)
            if saved is not None:
                saved.start()
        stopped = selection.stopped or _run(
            search, selection, dev_every, patience, seconds or math.inf, listener, saved
        )
    return TuneResult(
        adapter=search.adapter_of(selection.chosen),
        history=selection.history,
        encoder=encoder,
        settings=settings | {"block_size": evaluator.block_size},
        stopped=stopped,
        lost_workers=0 if fleet is None else fleet.lost,
        loss=loss,
    )


def _run(
    search: LayerwiseSearch,
    selection: Selection,
    dev_every: int,
    patience: int | None,
    seconds: float,
    callback: Callback | None,
    saved: Checkpoint | None,
) -> str:
    """Visit layer after layer; returns why it ended."""
    history = selection.history
    end = None
    paused = "seconds" if history.visits and selection.seconds >= seconds else None
    while not (ended_by := end or paused):
        visit = search.visit()
        history.visits.append(visit)
        end = None if search.left > 0 else "budget"
        # Before patience ends a run, what is in place may turn out to be the best.
        new_dev = bool(end) or selection.unseen >= dev_every or _waited(history, visit, patience)
        if new_dev:
            selection.look()
        if _waited(history, visit, patience):
            end = end or "patience"
        progress = Progress(
            visit=visit,
            dev=history.scores[-1],
            new_dev=new_dev,
            best=history.best,
            budget=search.budget,
            seconds=selection.seconds,
            most_seconds=seconds,
        )
        if callback is not None and callback(progress):
            paused = "callback"
        elif selection.seconds >= seconds:
            paused = "seconds"
        if saved is not None:
            # What is paused can go on, so the look below is no part of its state.
            saved.write(selection.state(end), at_once=bool(end or paused))
    if selection.unseen:
        selection.look()
    return ended_by


def _waited(history: History, visit: Visit, patience: int | None) -> bool:
    """Whether as many evaluations as patience allows have passed since the best look."""
    return patience is not None and visit.evaluations - history.best.evaluations >= patience


def _tokenizer_of(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(model.name_or_path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no tokenizer found where the model came from ({model.name_or_path!r}); pass "
            "tokenizer=..."
        ) from error


def _check_task(task: AnyTask) -> None:
    for split in ("train", "dev"):
        if not getattr(task, split):
            raise UserError(
                f"task {task.name!r} has no {split} examples; give it some with with_splits(), or "
                "use load_task()."
            )
