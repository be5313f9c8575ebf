"""How much each of the evaluator's six steps saves on a model and task."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from integrations.adapter import Adapter
from integrations.architectures import Architecture
from integrations.int8 import Int8Linear
from integrations.metrics import Loss
from integrations.patches import evaluating
from integrations.population import FAST, NAIVE, PopulationEvaluator, Speedups
from integrations.prompts import Encoder
from integrations.spaces import LayerFactors, LayerSpace, make_spaces
from integrations.tasks import Example

WAYS: Mapping[str, Speedups] = {
    "all speedups": FAST,
    "without prefix cache": replace(FAST, prefix_cache=False),
    "without shared base": replace(FAST, shared_base=False),
    "without answer head": replace(FAST, answer_head=False),
    "with padding": replace(FAST, no_padding=False),
    "one block at a time": replace(FAST, side_by_side=False),
    "without oneDNN": replace(FAST, onednn=False),
    "naive": NAIVE,
}
"""All six steps, each left out alone, and none."""

TOLERANCE = 1e-4
"""Most by which losses of one candidate may differ in a model of 32 bits."""
INT8_TOLERANCE = 0.01
"""The same for weights of eight bits; inputs, which differ in their last digits, keep sixteen."""
COARSE_TOLERANCE = 0.1
"""The same for models of fewer bits, where an activation may be rounded to its neighbour."""


@dataclass(frozen=True)
class Timing:
    """What one way takes.

    Attributes:
        way: A name in `WAYS`.
        seconds: Median over repeats of the time a population takes, averaged over layers.
        candidates_per_second: Candidates evaluated in a second.
        speedup: How many times as fast as the naive loop.
        difference: Most by which a loss differs from the naive loop's.
    """

    way: str
    seconds: float
    candidates_per_second: float
    speedup: float
    difference: float


def measure(
    arch: Architecture,
    encoder: Encoder,
    examples: Sequence[Example],
    *,
    loss: Loss,
    population: int = 5,
    layers: int = 3,
    repeats: int = 3,
    rank: int = 4,
    dim: int = 500,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Timing]:
    """Time the evaluation of a population in every way of `WAYS`, side by side.

    All layers have a delta, and evenly spaced ones are tuned. As in a sweep, the prefix cache has
    been brought up to the layer below and goes one layer forward within the measured time. The
    ways take turns, so that a slow moment of the machine hits all of them.

    Args:
        arch: The frozen model.
        encoder: Makes prompts of the examples.
        examples: What the loss is computed on.
        loss: The loss.
        population: Candidates P of one layer.
        layers: How many layers to average over.
        repeats: Medians of so many.
        rank: Rank of the deltas.
        dim: Length of each layer's z.
        seed: Draws projections and candidates.
        progress: Called with the number of measurements done and of all.

    Returns:
        One timing a way.

    Raises:
        RuntimeError: If two ways find different losses for the same candidates.
    """
    prompts = encoder.encode(examples)
    evaluators = {
        way: PopulationEvaluator(
            arch, prompts, encoder.label_ids, pad_id=encoder.pad_id, loss=loss, speedups=speedups
        )
        for way, speedups in WAYS.items()
    }
    seconds: dict[tuple[str, int], list[float]] = {}
    differences = dict.fromkeys(WAYS, 0.0)
    spread = np.unique(np.linspace(0, len(arch.layers) - 1, layers).round().astype(int)).tolist()
    done, rounds = 0, repeats * len(spread) * len(WAYS)
    rng = np.random.default_rng(seed)
    with evaluating(arch.model):
        batches = evaluators["naive"].batches
        spaces = make_spaces(arch, batches, rank=rank, dim=dim, seed=seed)
        adapter = Adapter(arch)
        for layer, space in enumerate(spaces):
            adapter.place(layer, _draw(arch, space, rng, 1))
        for layer in spread:
            candidates = _draw(arch, spaces[layer], rng, population)
            for evaluator in evaluators.values():
                if evaluator.block_size is None:  # measured the first time
                    evaluator.evaluate(layer, candidates, adapter)
            for _ in range(repeats):
                losses = {}
                for way, evaluator in evaluators.items():
                    losses[way], spent = _timed(evaluator, layer, candidates, adapter)
                    seconds.setdefault((way, layer), []).append(spent)
                    done += 1
                    if progress is not None:
                        progress(done, rounds)
                for way, found in losses.items():
                    gap = float(np.abs(found - losses["naive"]).max())
                    differences[way] = max(differences[way], gap)
    _require_equal(differences, _tolerance(arch))
    means = {
        way: statistics.fmean(statistics.median(seconds[way, layer]) for layer in spread)
        for way in WAYS
    }
    return [
        Timing(way, mean, population / mean, means["naive"] / mean, differences[way])
        for way, mean in means.items()
    ]


def _timed(
    evaluator: PopulationEvaluator, layer: int, candidates: LayerFactors, adapter: Adapter
) -> tuple[np.ndarray, float]:
    """Losses of candidates, and the seconds they took after a visit of the layer below."""
    in_place = adapter.copy()
    if layer > 0:
        below = adapter.factors[layer - 1]
        if evaluator.speedups.prefix_cache:
            evaluator.evaluate(layer - 1, below or {}, in_place)
        in_place.place(layer - 1, below)
    start = time.perf_counter()
    losses = evaluator.evaluate(layer, candidates, in_place)
    return losses, time.perf_counter() - start


def _tolerance(arch: Architecture) -> float:
    if arch.model.dtype.itemsize < 4:
        return COARSE_TOLERANCE
    int8 = any(isinstance(module, Int8Linear) for module in arch.model.modules())
    return INT8_TOLERANCE if int8 else TOLERANCE


def _draw(
    arch: Architecture, space: LayerSpace, rng: np.random.Generator, count: int
) -> LayerFactors:
    z = 0.5 * rng.normal(size=(count, space.dim))
    return space.factors(z, arch.model.device, arch.model.dtype)


def _require_equal(differences: Mapping[str, float], tolerance: float) -> None:
    way, most = max(differences.items(), key=lambda item: item[1])
    if not most <= tolerance:
        raise RuntimeError(
            f"{way!r} and the naive loop find losses that differ by {most:.2g}, more than "
            f"{tolerance:.2g}; please report this as a bug, with the model's name."
        )
