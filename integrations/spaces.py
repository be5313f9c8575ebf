"""From a layer's vector z to the low-rank factors of its targets.

Jin, Liu, Tan (arXiv 2403.01754), section 3: z is cut into equal parts, one for each factor A and B
of each target, and every factor is a fixed random projection of its part. With A frozen, as in
LoRA-FA (Zhang et al., arXiv 2308.03303), the parts are for each target's B alone, and A is random.
"""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from integrations.architectures import Architecture, Target, embedding_scale
from integrations.batches import PromptBatch
from integrations.errors import UserError, unknown
from integrations.patches import Patches
from lora_kernels import Factors, Projection, SeededProjection, StoredProjection, project
from lora_kernels.tiles import MAX_RANK

LayerFactors = Mapping[str, Factors]
"""The factors of one layer's targets, P candidates each."""

STATES_BYTES = 1 << 27
"""Hidden states that are kept while their spread is measured, unless one layer has more."""

INIT_STD = {"calibrated": 0.3, "paper": 1.0, "reference-code": 1.0, "normal": 0.05}
"""The known inits and the scale each has unless another is given."""


@dataclass(frozen=True)
class LayerSpace:
    """The search space of one layer.

    Attributes:
        dim: Length d of z.
        rank: Rank r of the deltas.
        targets: The layer's targets by name.
        projections: For each target, the projections that give A and B.
        freeze_a: Whether A is the same for all candidates: the projection of the number 1.
    """

    dim: int
    rank: int
    targets: Mapping[str, Target]
    projections: Mapping[str, tuple[Projection, Projection]]
    freeze_a: bool

    def factors(self, z: np.ndarray, device: torch.device, dtype: torch.dtype) -> LayerFactors:
        """Project candidates to factors.

        Args:
            z: (P, d) candidates.
            device: Where the factors go.
            dtype: Type of the model's activations.

        Returns:
            For each target, A of shape (P, r, h) and B of shape (P, r, o).
        """
        points = torch.as_tensor(z, dtype=torch.float32, device=device)
        parts = iter(points.chunk(count_parts(self.targets, self.freeze_a), dim=1))
        one = points.new_ones(len(points), 1)
        factors = {}
        for name, target in self.targets.items():
            to_a, to_b = self.projections[name]
            part = one if self.freeze_a else next(parts)
            a = project(part, to_a, (self.rank, target.in_features), dtype=dtype)
            b = project(next(parts), to_b, (self.rank, target.out_features), dtype=dtype)
            factors[name] = Factors(a, b)
        return factors


def count_parts(targets: Sized, freeze_a: bool) -> int:
    """Into how many equal parts z is cut: one for each factor that is searched."""
    return len(targets) * (1 if freeze_a else 2)


@dataclass(frozen=True)
class TargetScale:
    """Sizes of a projection's input and output over the training prompts.

    Attributes:
        input_norm: Root mean square over tokens of the input's Euclidean norm.
        output_rms: Root mean square of the output's entries.
    """

    input_norm: float
    output_rms: float


def _applied_rank(arch: Architecture, rank: int) -> int:
    """Rank of what is applied at once: where columns lie scattered, of all a module's targets."""
    scattered = [t.module for t in arch.targets[0].values() if isinstance(t.columns, torch.Tensor)]
    return rank * max(Counter(scattered).values(), default=1)


def make_spaces(
    arch: Architecture,
    batches: Sequence[PromptBatch],
    *,
    rank: int,
    dim: int,
    seed: int,
    init: str = "calibrated",
    std: float | None = None,
    freeze_a: bool = False,
) -> list[LayerSpace]:
    """Search spaces of all layers.

    Args:
        arch: The model.
        batches: Training prompts, on which the scale of the deltas is measured.
        rank: Rank r of the deltas.
        dim: Length d of each layer's z; must divide into equal parts, two for each target, or one
            with A frozen.
        seed: Draws the projections.
        init: How the projections are scaled:

            - ``"calibrated"``: for z ~ N(0, I), the delta's root mean square is ``std`` times that
              of the frozen projection's output.
            - ``"paper"``: Eq. 6, ``std * sigma_hidden / sqrt(d)`` for all projections, with
              ``sigma_hidden`` the clipped standard deviation of the layer's hidden states.
            - ``"reference-code"``: as the authors' code: in layers above the first, B keeps
              torch.nn.Linear's uniform init.
            - ``"normal"``: ``std`` itself (the paper's ablation).
        std: The factor above (alpha in Eq. 6); None for `INIT_STD`.
        freeze_a: Search for B only. A is drawn once, with the spread that its entries would have
            for a z ~ N(0, I) that had a part for A too. The delta is then linear in z. With both
            searched for it is a product, of which each factor is zero at z = 0: there the loss does
            not tell z from -z.

    Raises:
        UserError: If the init is unknown, or rank, dim or std don't fit.
    """
    parts = count_parts(arch.targets[0], freeze_a)
    if init not in INIT_STD:
        raise unknown("init", init, INIT_STD)
    std = INIT_STD[init] if std is None else std
    if rank < 1:
        raise UserError(f"rank must be at least 1; got {rank}.")
    if dim < parts or dim % parts:
        factors = "B" if freeze_a else "A and B"
        raise UserError(
            f"dim must divide into {parts} equal parts ({factors} of {len(arch.targets[0])} "
            f"targets); got {dim}, try {max(parts, dim - dim % parts)}."
        )
    if not (isinstance(std, numbers.Real) and math.isfinite(std) and std > 0):
        raise UserError(f"init_std must be a positive number; got {std!r}.")
    if arch.model.device.type == "cuda" and (most := _applied_rank(arch, rank)) > MAX_RANK:
        sharing = f", and targets that share a projection {most} together" if most > rank else ""
        raise UserError(
            f"the kernels on a GPU apply ranks up to {MAX_RANK}; rank is {rank}{sharing}. Lower it "
            f"to {rank * MAX_RANK // most}."
        )
    part_dim = dim // parts
    scales = _measure_targets(arch, batches) if init == "calibrated" else []
    hidden = hidden_std(arch, batches) if init in ("paper", "reference-code") else []
    spaces = []
    for index, targets in enumerate(arch.targets):
        projections = {}
        for place, (name, target) in enumerate(targets.items()):
            stream = 2 * (index * len(targets) + place)
            if init == "calibrated":
                scale = scales[index][name]
                # Entries of A and B have variance (std_A^2 or std_B^2) * part_dim for z ~ N(0, I),
                # so an entry of (x A^T) B has std sqrt(r) * |x| * std_A * std_B * part_dim.
                unit = math.sqrt(rank) * scale.input_norm * part_dim
                std_a = std_b = math.sqrt(std * scale.output_rms / unit)
            elif init == "normal":
                std_a = std_b = std
            else:
                std_a = std_b = std * hidden[index] / math.sqrt(dim)
            a_dim = 1 if freeze_a else part_dim
            to_a: Projection = SeededProjection(
                rank * target.in_features,
                a_dim,
                seed=seed,
                std=std_a * math.sqrt(part_dim / a_dim),
                stream=stream,
            )
            to_b: Projection = SeededProjection(
                rank * target.out_features, part_dim, seed=seed, std=std_b, stream=stream + 1
            )
            if init == "reference-code" and index > 0:
                to_b = _linear_default(
                    rank * target.out_features, part_dim, seed, stream + 1
                ).materialize(device=arch.model.device)
            projections[name] = (to_a, to_b)
        spaces.append(LayerSpace(dim, rank, targets, projections, freeze_a))
    return spaces


def _linear_default(n: int, part_dim: int, seed: int, stream: int) -> StoredProjection:
    """The uniform weights that torch.nn.Linear(part_dim, n) starts with."""
    rng = np.random.default_rng((seed, stream))
    bound = 1 / math.sqrt(part_dim)
    weight = rng.uniform(-bound, bound, size=(n, part_dim)).astype(np.float32)
    return StoredProjection(torch.from_numpy(weight))


def _real(arch: Architecture, layer: int, batch: PromptBatch) -> torch.Tensor:
    """Which positions of a layer's (R, T, width) belong to real tokens, (R, T)."""
    return batch.real if layer in arch.stacks[0] else batch.decoder_real


def _run_all(
    patches: Patches,
    arch: Architecture,
    batches: Sequence[PromptBatch],
    current: list[PromptBatch],
) -> None:
    """Run the model on each batch, which is then the last of ``current``.

    Nobody reads the logits; those of all positions would take more memory than all else.
    """
    patches.before(arch.head, lambda x: current[-1].at_answers(x))
    for batch in batches:
        current.append(batch)
        batch.run(arch.model)


@torch.inference_mode()
def _measure_targets(
    arch: Architecture, batches: Sequence[PromptBatch]
) -> list[dict[str, TargetScale]]:
    """Input norm and output root mean square of every target over the prompts."""
    sums: dict[tuple[int, str], np.ndarray] = {}
    seen: set[tuple[int, int, str]] = set()
    with Patches() as patches:
        current: list[PromptBatch] = []
        for index, targets in enumerate(arch.targets):
            for name, target in targets.items():
                total = sums[index, name] = np.zeros(3)

                def record(
                    x: torch.Tensor,
                    y: torch.Tensor,
                    total: np.ndarray = total,
                    index: int = index,
                    target: Target = target,
                ) -> torch.Tensor:
                    place = (len(current), index, target.name)
                    if place in seen:  # a module's reuse on what is no prompt
                        return y
                    seen.add(place)
                    real = _real(arch, index, current[-1])
                    inputs, outputs = x[real], y[real][:, target.columns]
                    total += (
                        inputs.float().square().sum().item(),
                        outputs.float().square().mean(dim=1).sum().item(),
                        inputs.shape[0],
                    )
                    return y

                patches.after(target.module, record)
        _run_all(patches, arch, batches, current)
    for (index, name), total in sums.items():
        if not np.isfinite(total).all():
            raise UserError(
                f"what goes through {arch.targets[index][name].path} of the frozen model is not "
                "finite; load it in a type that does not overflow, such as bfloat16 or float32."
            )
    return [
        {
            name: TargetScale(
                math.sqrt(sums[index, name][0] / sums[index, name][2]),
                math.sqrt(sums[index, name][1] / sums[index, name][2]),
            )
            for name in targets
        }
        for index, targets in enumerate(arch.targets)
    ]


@torch.inference_mode()
def hidden_std(arch: Architecture, batches: Sequence[PromptBatch]) -> list[float]:
    """Standard deviation of each layer's hidden states after five rounds of clipping (Eq. 6).

    The first layer's is that of the embedding matrix, as in the authors' code.
    """
    table: Any = arch.model.get_input_embeddings().weight
    embedding = embedding_scale(arch) * _clipped_std(table.float().flatten())
    return [embedding, *later_hidden_std(arch, batches)]


@torch.inference_mode()
def later_hidden_std(arch: Architecture, batches: Sequence[PromptBatch]) -> list[float]:
    """The same for all layers but the first."""
    most = max(batch.tokens for batch in batches) * len(batches)
    # Each pass over the prompts keeps the states of as many layers as may be kept.
    together = max(1, STATES_BYTES // (4 * most * arch.hidden_size))
    found: list[float] = []
    for start in range(1, len(arch.layers), together):
        kept = range(start, min(start + together, len(arch.layers)))
        states: dict[int, list[torch.Tensor]] = {index: [] for index in kept}
        with Patches() as patches:
            current: list[PromptBatch] = []
            for index in kept:

                def record(
                    x: torch.Tensor,
                    index: int = index,
                    states: dict[int, list[torch.Tensor]] = states,
                    current: list[PromptBatch] = current,
                ) -> torch.Tensor:
                    states[index].append(x[_real(arch, index, current[-1])].float().flatten())
                    return x

                patches.before(arch.layers[index], record)
            _run_all(patches, arch, batches, current)
        found += [_clipped_std(torch.cat(states.pop(index))) for index in kept]
    return found


def _clipped_std(values: torch.Tensor, rounds: int = 5) -> float:
    values = values.clone()
    for _ in range(rounds):
        mean, std = values.mean(), values.std()
        values.clamp_(mean - 3 * std, mean + 3 * std)
    return float(values.std())
