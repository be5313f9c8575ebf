"""Attention over prompts that lie end to end in one row: each attends to itself only.

Without padding every token that a layer computes is one that counts, and a layer's weights are read
once for all prompts. Everything but attention works token by token, so attention is all that has to
know where prompts begin. It enters through transformers' attention interface; within a prompt the
model's own attention function runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "dfo_lora_packed"
OWN = "sdpa"
# Attributes of configurations that limit how far a token sees, which masks would have to express.
WINDOWS = ("sliding_window", "local_attention", "window_size")


class Segment(NamedTuple):
    """Prompts of one length, end to end.

    Attributes:
        start: Place of the first token in the row.
        prompts: How many.
        length: Tokens in each.
    """

    start: int
    prompts: int
    length: int

    @property
    def stop(self) -> int:
        """Place after the last token."""
        return self.start + self.prompts * self.length


def can_pack(model: PreTrainedModel, longest: int) -> bool:
    """Whether prompts may lie end to end.

    Args:
        model: The model.
        longest: Tokens of the longest prompt.

    Returns:
        True if the model takes positions, its attention is torch's in all its parts and can be
        exchanged, and no prompt is longer than a window that the attention is limited to.
    """
    config = model.config.get_text_config()
    windows = [getattr(config, name, None) for name in WINDOWS]
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        # Exchanging it, and putting it back, is for a model with all its parts.
        and all(part._attn_implementation == OWN for part in _parts(model.config))
        and "position_ids" in inspect.signature(model.forward).parameters
        and all(longest <= window for window in windows if isinstance(window, int))
    )


def _parts(config: Any) -> Iterator[Any]:
    """A configuration and those inside it."""
    yield config
    for name in config.sub_configs:
        if (part := getattr(config, name)) is not None:
            yield from _parts(part)


_current: ContextVar[Sequence[Segment]] = ContextVar("segments")


@contextmanager
def attend_within(model: PreTrainedModel, segments: Sequence[Segment]) -> Iterator[None]:
    """Let each prompt of a packed row attend to itself only; no segments change nothing."""
    if not segments:
        yield
        return
    token = _current.set(segments)
    try:
        model.set_attn_implementation(NAME)
        yield
    finally:
        model.set_attn_implementation(OWN)
        _current.reset(token)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, **settings: Any
) -> tuple[Tensor, None]:
    """Attention of (P, heads, T, d) packed rows, (P, T, heads, d)."""
    rows, heads, tokens, _ = query.shape
    own = ALL_ATTENTION_FUNCTIONS[OWN]
    out = query.new_empty(rows, tokens, heads, value.shape[-1])
    for segment in _current.get():
        parts = (_cut(x, segment) for x in (query, key, value))
        found, _ = own(module, *parts, None, **settings)
        place = out[:, segment.start : segment.stop]
        place.copy_(found.reshape(place.shape))
    return out, None


def _cut(x: Tensor, segment: Segment) -> Tensor:
    """A segment's prompts out of (P, heads, T, d), (P * prompts, heads, length, d)."""
    part = x[:, :, segment.start : segment.stop]
    apart = part.view(*part.shape[:2], segment.prompts, segment.length, -1)
    return apart.transpose(1, 2).flatten(0, 1)


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
