"""Many low-rank (LoRA) deltas in one pass: random projections to factors, and their application.

`project` maps candidates' vectors to factors through a stored or seeded `Projection`;
`apply_deltas` adds each candidate's delta to the output of a frozen projection. Both are
torch.library ops with a Triton, a CPU and a reference implementation.
"""

from lora_kernels.deltas import Factors, apply_deltas
from lora_kernels.ops import Availability, backends
from lora_kernels.projection import Projection, SeededProjection, StoredProjection, project

__all__ = [
    "Availability",
    "Factors",
    "Projection",
    "SeededProjection",
    "StoredProjection",
    "apply_deltas",
    "backends",
    "project",
]
