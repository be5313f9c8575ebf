"""Many low-rank (LoRA) deltas in one pass: random projections to factors, and their application.

`project` maps candidates' vectors to factors through a stored or seeded `Projection`;
`apply_deltas` adds each candidate's delta to the output of a frozen projection, and
`apply_deltas_grouped` those of several targets that share an input. `project_and_apply` is both in
one call. All are torch.library ops with a Triton, a CPU and a reference implementation.
"""

from lora_kernels.deltas import Delta, Factors, apply_deltas, apply_deltas_grouped
from lora_kernels.fused import project_and_apply
from lora_kernels.ops import Availability, backends
from lora_kernels.projection import Projection, SeededProjection, StoredProjection, project

__all__ = [
    "Availability",
    "Delta",
    "Factors",
    "Projection",
    "SeededProjection",
    "StoredProjection",
    "apply_deltas",
    "apply_deltas_grouped",
    "backends",
    "project",
    "project_and_apply",
]
