"""Ways to evaluate a population of one layer's candidates, ours and those of others.

Each is a function ``prepare(problem, layer, candidates) -> run`` with ``run() -> losses``; only the
run is timed. Others get a model into whose weights the deltas of all other layers are merged
already, so that they only have to deal with the candidates; ours carries those deltas along, and
brings its prefix cache forward from the layer below in every run, as in a sweep.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from integrations.adapter import Adapter
from integrations.architectures import Architecture, Target
from integrations.batches import PromptBatch, make_batches
from integrations.metrics import LOSSES
from integrations.population import PopulationEvaluator, Speedups
from integrations.prompts import Prompt
from integrations.weights import weight_of
from lora_kernels import Factors

Candidates = Mapping[str, Factors]
Run = Callable[[], np.ndarray]
Way = Callable[["Problem", int, Candidates], Run]


@dataclass(frozen=True)
class Problem:
    """What all ways are given alike.

    Attributes:
        arch: The frozen model.
        prompts: The training prompts.
        label_ids: Token of each label word.
        pad_id: Token that fills up shorter prompts.
        adapter: Deltas in place in every layer but the tuned one.
    """

    arch: Architecture
    prompts: Sequence[Prompt]
    label_ids: Sequence[int]
    pad_id: int
    adapter: Adapter

    def without(self, layer: int) -> Adapter:
        """The deltas in place when a layer is tuned."""
        adapter = self.adapter.copy()
        adapter.place(layer, None)
        return adapter

    def merged(self, layer: int) -> nn.Module:
        """A copy of the model with those deltas in its weights."""
        model = copy.deepcopy(self.arch.model)
        for target, factors in self.without(layer).deltas(self.arch, 0, len(self.arch.layers)):
            weight(model, target)[:] += delta(target, factors, model)
        return model

    def padded(self) -> PromptBatch:
        """All prompts in one batch, padded to the longest."""
        device = self.arch.model.device
        (batch,) = make_batches(
            self.prompts, self.pad_id, "masked", device, layout="padded", max_tokens=1 << 30
        )
        return batch

    def loss(self, logits: Tensor, batch: PromptBatch) -> Tensor:
        """Mean loss of logits (N, T, vocabulary) on the padded batch."""
        rows = torch.arange(len(batch), device=logits.device)
        labels = logits[rows, batch.answers][:, list(self.label_ids)]
        return F.cross_entropy(labels.float(), batch.labels)


def weight(model: nn.Module, target: Target) -> Tensor:
    """The weight of a target, (o, h) seen from the projection, as a view."""
    return weight_of(model.get_submodule(target.path)).detach()[target.columns]


def delta(target: Target, factors: Factors, model: nn.Module) -> Tensor:
    """B A as a matrix (o, h)."""
    return (factors.B[0].T @ factors.A[0]).to(weight(model, target).dtype)


def ours(speedups: Speedups) -> Way:
    """The population evaluator, with some of its steps."""

    def prepare(problem: Problem, layer: int, candidates: Candidates) -> Run:
        evaluator = PopulationEvaluator(
            problem.arch,
            problem.prompts,
            problem.label_ids,
            pad_id=problem.pad_id,
            loss=LOSSES["ce"],
            speedups=speedups,
        )
        adapter = problem.without(layer)
        below = max(layer - 1, 0)
        evaluator.evaluate(layer, candidates, adapter)  # measures the block size
        if layer > 0:
            evaluator.evaluate(below, problem.adapter.factors[below], adapter)

        def run() -> np.ndarray:
            if layer > 0:  # what a visit of the layer below leaves behind
                adapter.place(below, problem.adapter.factors[below])
            return evaluator.evaluate(layer, candidates, adapter)

        return run

    return prepare


def naive(problem: Problem, layer: int, candidates: Candidates) -> Run:
    """The plain loop: set a candidate's weights, run the whole model, all logits, padded."""
    batch, model = problem.padded(), problem.merged(layer)
    targets = [problem.arch.targets[layer][name] for name in candidates]
    frozen = [weight(model, target).clone() for target in targets]

    @torch.inference_mode()
    def run() -> np.ndarray:
        losses = []
        for p in range(count(candidates)):
            for target, base, factors in zip(targets, frozen, candidates.values(), strict=True):
                weight(model, target)[:] = base + delta(target, factors[p : p + 1], model)
            logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
            losses.append(problem.loss(logits, batch).item())
        return np.array(losses)

    return run


def peft_mixed_batch(problem: Problem, layer: int, candidates: Candidates) -> Run:
    """PEFT, one adapter a candidate, all in one batch through ``adapter_names``."""
    import peft

    batch, model = problem.padded(), problem.merged(layer)
    targets = [problem.arch.targets[layer][name] for name in candidates]
    rank = next(iter(candidates.values())).rank
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=[t.path for t in targets])
    wrapped: Any = peft.get_peft_model(model, config, adapter_name="c0").eval()
    for p in range(1, count(candidates)):
        wrapped.add_adapter(f"c{p}", config)
    for target, factors in zip(targets, candidates.values(), strict=True):
        module = wrapped.base_model.model.get_submodule(target.path)
        for p in range(count(candidates)):
            module.lora_A[f"c{p}"].weight.data = factors.A[p]
            module.lora_B[f"c{p}"].weight.data = factors.B[p].T.contiguous()

    def logits(rows: Sequence[int]) -> Tensor:
        out: Tensor = wrapped(
            input_ids=batch.ids.repeat(len(rows), 1),
            attention_mask=batch.mask.repeat(len(rows), 1),
            adapter_names=[f"c{p}" for p in rows for _ in range(len(batch))],
            use_cache=False,
        ).logits
        return out

    return in_chunks(problem, batch, count(candidates), logits)


def functional_vmap(problem: Problem, layer: int, candidates: Candidates) -> Run:
    """torch.func: ``vmap`` of ``functional_call`` over stacked factors."""
    from torch.func import functional_call, vmap

    batch, model = problem.padded(), problem.merged(layer)
    model.set_attn_implementation("eager")  # the fused one has no batching rule for masks
    targets = [problem.arch.targets[layer][name] for name in candidates]

    def loss(factors: list[tuple[Tensor, Tensor]]) -> Tensor:
        weights = {
            f"{target.path}.weight": weight(model, target) + b.T @ a
            for target, (a, b) in zip(targets, factors, strict=True)
        }
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False}
        return problem.loss(functional_call(model, weights, kwargs=inputs).logits, batch)

    @torch.no_grad()
    def run() -> np.ndarray:
        stacked = [(f.A, f.B) for f in candidates.values()]
        return vmap(loss, chunk_size=CHUNK)(stacked).double().cpu().numpy()

    return run


def populora(problem: Problem, layer: int, candidates: Candidates) -> Run:
    """The package populora: each row of a batch is routed to its own individual."""
    from populora import Population

    batch, model = problem.padded(), problem.merged(layer)
    targets = [problem.arch.targets[layer][name] for name in candidates]
    population: Any = Population(
        model,
        pop_size=count(candidates),
        low_rank=next(iter(candidates.values())).rank,
        lora_targets=[target.path for target in targets],
    )
    downs, ups = population.weight_down.values(), population.weight_up.values()
    for down, up, factors in zip(downs, ups, candidates.values(), strict=True):
        down.data.copy_(factors.A.mT)
        up.data.copy_(factors.B.mT)

    def logits(rows: Sequence[int]) -> Tensor:
        with population.route(
            individuals=torch.tensor(rows, device=model.device).repeat_interleave(len(batch))
        ):
            out: Tensor = model(
                input_ids=batch.ids.repeat(len(rows), 1),
                attention_mask=batch.mask.repeat(len(rows), 1),
                use_cache=False,
            ).logits
        return out

    return in_chunks(problem, batch, count(candidates), logits)


def eggroll(problem: Problem, layer: int, candidates: Candidates) -> Run:
    """The package eggroll-es: its own evaluation of a population, one member after the other."""
    from eggroll.core import EggrollConfig
    from eggroll.trainer import EggrollTrainer

    batch, model = problem.padded(), problem.merged(layer)
    targets = {name: problem.arch.targets[layer][name] for name in candidates}

    def reward(model: nn.Module, inputs: PromptBatch) -> float:
        out: Any = model(input_ids=inputs.ids, attention_mask=inputs.mask, use_cache=False)
        return problem.loss(out.logits, inputs).item()

    config = EggrollConfig(
        population_size=count(candidates),
        device=str(model.device),
        target_modules=[f"{target.path}.weight" for target in targets.values()],
    )
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = EggrollTrainer(model, config, reward)

    @torch.no_grad()
    def run() -> np.ndarray:
        members = [
            {
                f"{target.path}.weight": delta(target, candidates[name][p : p + 1], model)
                for name, target in targets.items()
            }
            for p in range(count(candidates))
        ]
        found = trainer._evaluate_population(trainer._get_params(), members, batch)
        return found.double().cpu().numpy()

    return run


def in_chunks(
    problem: Problem, batch: PromptBatch, total: int, logits: Callable[[Sequence[int]], Tensor]
) -> Run:
    """Evaluate some candidates at a time, so that all their logits fit into memory."""

    @torch.no_grad()
    def run() -> np.ndarray:
        losses: list[float] = []
        for start in range(0, total, CHUNK):
            rows = range(start, min(start + CHUNK, total))
            parts = logits(rows).split(len(batch))
            losses += [problem.loss(part, batch).item() for part in parts]
        return np.array(losses)

    return run


CHUNK = 4
"""Candidates a forward pass where all logits are kept, so that they fit into memory."""


def count(candidates: Candidates) -> int:
    """Candidates in the population."""
    return len(next(iter(candidates.values())))


STEPS = ("prefix_cache", "shared_base", "answer_head", "no_padding", "side_by_side", "onednn")
OURS: dict[str, Way] = {
    "ours": ours(Speedups()),
    **{f"ours without {step}": ours(Speedups(**{step: False})) for step in STEPS},
    "ours, whole population at once": ours(Speedups(blocks=1 << 20)),
}
WAYS: dict[str, Way] = {
    "naive loop": naive,
    "PEFT adapter_names": peft_mixed_batch,
    "torch.func vmap": functional_vmap,
    "populora": populora,
    "eggroll-es": eggroll,
    **OURS,
}
