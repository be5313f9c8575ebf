"""Prompts that go through a model together, with as little padding as the model allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from integrations.architectures import Kind
from integrations.errors import UserError
from integrations.packing import Segment, attend_within
from integrations.prompts import Prompt

Layout = Literal["packed", "grouped", "padded"]
"""End to end in one row; a row each, with others of like length; a row each, all to the longest."""

CPU_MOST_TOKENS = 512
"""Tokens in a pass; more of them in a row gain nothing on a CPU, and what they take grows on."""

MOST_TOKENS: dict[Layout, int] = {"packed": CPU_MOST_TOKENS, "grouped": 4096, "padded": 4096}
"""Tokens in a batch."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts in R rows of T tokens: a row each, padded on the right, or one row for all.

    N answers are read from them: one a prompt, or one for each token to predict.

    Attributes:
        order: (N,) where each answer stood among those of the prompts that were batched.
        ids: (R, T) token ids.
        real: (R, T) whether a token belongs to a prompt; the others are padding.
        mask: (R, T) the same as 1 and 0, or None where the model needs none.
        positions: (R, T) place of each token in its prompt as the model counts it, or None where
            it counts right by itself.
        segments: Where prompts lie in the row, if they share one.
        answer_rows: (N,) row of each answer.
        answers: (N,) answer position in that row; with a decoder, in its input's.
        labels: (N,) right labels, or the tokens to predict.
        soft: (K, n) where each prompt's soft-prompt tokens are among the R * T tokens.
        decoder_ids: (R, S) input of the decoder; None for models without one.
    """

    order: Tensor
    ids: Tensor
    real: Tensor
    mask: Tensor | None
    positions: Tensor | None
    segments: tuple[Segment, ...]
    answer_rows: Tensor
    answers: Tensor
    labels: Tensor
    soft: Tensor
    decoder_ids: Tensor | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def rows(self) -> int:
        """Rows R."""
        return self.ids.shape[0]

    @property
    def tokens(self) -> int:
        """Tokens, padding among them, of encoder or decoder, whichever has more."""
        decoder = 0 if self.decoder_ids is None else self.decoder_ids.numel()
        return max(self.ids.numel(), decoder)

    @property
    def decoder_real(self) -> Tensor:
        """(R, S) whether a token of the decoder's input counts: it ends where it answers."""
        assert self.decoder_ids is not None
        places = torch.arange(self.decoder_ids.shape[1], device=self.ids.device)
        last = torch.zeros_like(self.answers[: self.rows])
        last = last.scatter_reduce(0, self.answer_rows, self.answers, "amax")
        return places <= last[:, None]

    def run(self, model: PreTrainedModel, copies: int = 1) -> Any:
        """Call a model on the batch.

        Args:
            model: The model.
            copies: How often the rows are repeated, once a candidate.

        Returns:
            The model's output, of (copies * R, T) tokens.
        """
        inputs = {
            "input_ids": self.ids,
            "attention_mask": self.mask,
            "position_ids": self.positions,
            "decoder_input_ids": self.decoder_ids,
        }
        given = {name: x.repeat(copies, 1) for name, x in inputs.items() if x is not None}
        with attend_within(model, self.segments):
            return model(**given, use_cache=False)

    def at_answers(self, x: Tensor) -> Tensor:
        """What (P * R, T, width) has at the answer positions, (P * N, 1, width)."""
        cells = x.view(-1, self.rows, *x.shape[1:])[:, self.answer_rows, self.answers]
        return cells.flatten(0, 1).unsqueeze(1)

    def put_back(self, y: Tensor) -> Tensor:
        """The (P * R, T, width) that has (P * N, 1, width) at the answers and zeros elsewhere."""
        copies = len(y) // len(self)
        ids = self.ids if self.decoder_ids is None else self.decoder_ids
        x = y.new_zeros(copies, *ids.shape, y.shape[-1])
        x[:, self.answer_rows, self.answers] = y.view(copies, len(self), -1)
        return x.flatten(0, 1)

    def add_at_soft(self, x: Tensor, offsets: Tensor) -> Tensor:
        """The (P * R, T, h) that has offsets (P, n, h) added at each prompt's soft-prompt tokens.

        Offsets (1, n, h) are added to all copies alike.

        Raises:
            UserError: If the offsets have another length or width.
        """
        expected = (self.soft.shape[1], x.shape[-1])
        if offsets.shape[1:] != expected:
            raise UserError(
                f"the prompts have {expected[0]} soft-prompt tokens of width {expected[1]} at this "
                f"layer; got offsets of shape {tuple(offsets.shape[1:])}."
            )
        y = x.reshape(-1, self.ids.numel(), x.shape[-1]).clone()
        y[:, self.soft] += offsets.to(y.dtype).unsqueeze(1)
        return y.reshape(x.shape)


# One more batch costs about as much as these many tokens, since the weights are streamed from
# memory once more (measured on a 2-core CPU with a 135M model: 46 ms against 1.4 ms a token).
CPU_OVERHEAD_TOKENS = 32
# On a GPU a batch waits for Python, 0.8 ms a layer with deltas, in which products of a layer's
# weights at 650 TFLOP/s would serve so many tokens times weights (measured on an H200); some 16
# candidates share a pass.
GPU_OVERHEAD_PRODUCTS = 0.8e-3 * 650e12 / 2 / 16


def overhead_tokens(device: torch.device, layer: nn.Module) -> int:
    """How many tokens of a candidate cost about as much as one more batch.

    Args:
        device: Where the model is.
        layer: One of its layers.
    """
    if device.type == "cpu":
        return CPU_OVERHEAD_TOKENS
    weights = sum(parameter.numel() for parameter in layer.parameters())
    return round(GPU_OVERHEAD_PRODUCTS / max(1, weights))


def group_by_length(
    lengths: Sequence[int], max_tokens: int, overhead: int = CPU_OVERHEAD_TOKENS
) -> list[list[int]]:
    """Cut prompts, sorted by length, into batches that cost least.

    A batch costs its padded tokens plus an overhead; the cheapest cut of the sorted list is found
    by dynamic programming.

    Args:
        lengths: Tokens in each prompt.
        max_tokens: Most padded tokens in a batch; a longer single prompt is a batch of its own.
        overhead: What one more batch costs, in tokens.

    Returns:
        Indices into ``lengths``, one list a batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    best = [0.0] + [float("inf")] * len(order)
    cut = [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        for start in range(end - 1, -1, -1):
            tokens = (end - start) * longest
            if tokens > max_tokens and end - start > 1:
                break
            cost = best[start] + tokens + overhead
            if cost < best[end]:
                best[end], cut[end] = cost, start
    groups = []
    end = len(order)
    while end > 0:
        groups.append(order[cut[end] : end])
        end = cut[end]
    return groups[::-1]


def make_batches(
    prompts: Sequence[Prompt],
    pad_id: int,
    kind: Kind,
    device: torch.device,
    *,
    layout: Layout = "grouped",
    first_position: int = 0,
    max_tokens: int | None = None,
    new_tokens: int = 0,
    overhead: int = CPU_OVERHEAD_TOKENS,
) -> list[PromptBatch]:
    """Batch prompts for a model.

    Args:
        prompts: What to batch.
        pad_id: Token id that fills up shorter prompts.
        kind: Causal models need no mask: padding comes after the answer and is never attended to.
        device: Where the tensors go.
        layout: How prompts share a batch; packing is for models that `can_pack`.
        first_position: What the model calls the place of a prompt's first token.
        max_tokens: Most tokens in a batch, padding among them, of encoder and decoder each; a
            longer single prompt is a batch of its own. None for `MOST_TOKENS`.
        new_tokens: Tokens that will follow each prompt, and count like its own.
        overhead: What one more batch costs, in tokens; see `overhead_tokens`.

    Raises:
        UserError: If the soft prompts are of different lengths, do not lie in their prompts, or
            are for an encoder-decoder.
    """
    _check_soft(prompts, kind)
    lengths = [prompt.length + new_tokens for prompt in prompts]
    most = MOST_TOKENS[layout] if max_tokens is None else max_tokens
    if layout == "packed":
        groups = _packs(lengths, most)
        return [_pack(prompts, group, first_position, device) for group in groups]
    if layout == "grouped":
        groups = group_by_length(lengths, most, overhead)
    else:
        size = max(1, most // max(lengths))
        groups = [list(range(i, min(i + size, len(lengths)))) for i in range(0, len(lengths), size)]
    return [_pad(prompts, group, pad_id, kind, device) for group in groups]


def _packs(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Cut prompts, sorted by length, into as few batches as it takes, of about the same size."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    total = sum(lengths)
    for packs in count(-(-total // max_tokens)):
        groups: list[list[int]] = [[] for _ in range(packs)]
        start = 0
        for i in order:
            middle = start + lengths[i] / 2
            groups[int(middle * packs / total)].append(i)
            start += lengths[i]
        if all(len(g) <= 1 or sum(lengths[i] for i in g) <= max_tokens for g in groups):
            break
    return [group for group in groups if group]


def _pack(
    prompts: Sequence[Prompt], group: Sequence[int], first_position: int, device: torch.device
) -> PromptBatch:
    """Prompts, sorted by length, end to end."""
    chosen = [prompts[i] for i in group]
    lengths = torch.tensor([len(prompt.ids) for prompt in chosen])
    starts = lengths.cumsum(0) - lengths
    ids = torch.tensor([[token for prompt in chosen for token in prompt.ids]], device=device)
    places = torch.cat([torch.arange(length) for length in lengths.tolist()])
    rows, answers = _answers(chosen)
    return PromptBatch(
        order=_order(prompts, group),
        ids=ids,
        real=torch.ones_like(ids, dtype=torch.bool),
        mask=None,
        positions=(first_position + places)[None].to(device),
        segments=tuple(_segments(lengths.tolist())),
        answer_rows=torch.zeros_like(rows, device=device),
        answers=(starts[rows] + answers).to(device),
        labels=torch.tensor(all_labels(chosen), device=device),
        soft=_soft(chosen, starts).to(device),
    )


def _segments(lengths: Sequence[int]) -> Iterator[Segment]:
    """Runs of prompts of one length."""
    start = 0
    for length, run in groupby(lengths):
        segment = Segment(start, len(list(run)), length)
        yield segment
        start = segment.stop


def _pad(
    prompts: Sequence[Prompt], group: Sequence[int], pad_id: int, kind: Kind, device: torch.device
) -> PromptBatch:
    """A prompt a row, as long as the longest."""
    chosen = [prompts[i] for i in group]
    ids = _padded([prompt.ids for prompt in chosen], pad_id)
    real = _padded([[True] * len(prompt.ids) for prompt in chosen], False)
    needs_mask = kind != "causal" and not bool(real.all())
    # Padding of a decoder's input comes after the answer, which does not look beyond.
    decoder_ids = _padded([prompt.decoder_ids for prompt in chosen], pad_id)
    rows, answers = _answers(chosen)
    return PromptBatch(
        order=_order(prompts, group),
        ids=ids.to(device),
        real=real.to(device),
        mask=real.long().to(device) if needs_mask else None,
        positions=None,
        segments=(),
        answer_rows=rows.to(device),
        answers=answers.to(device),
        labels=torch.tensor(all_labels(chosen), device=device),
        soft=_soft(chosen, ids.shape[1] * torch.arange(len(chosen))).to(device),
        decoder_ids=decoder_ids.to(device) if kind == "seq2seq" else None,
    )


def all_labels(prompts: Sequence[Prompt]) -> list[int]:
    """What each answer of some prompts should be: (N,) labels, or tokens to predict."""
    return [label for p in prompts for label in (p.targets or (p.label,))]


def _soft(chosen: Sequence[Prompt], starts: Tensor) -> Tensor:
    """(K, n) where soft prompts lie among all tokens, given where their prompts (K,) start."""
    begin, length = torch.tensor([prompt.soft for prompt in chosen]).unbind(1)
    return (starts + begin).unsqueeze(1) + torch.arange(int(length[0]))


def _check_soft(prompts: Sequence[Prompt], kind: Kind) -> None:
    """Refuse soft prompts that cannot be found by `_soft`."""
    lengths = {prompt.soft[1] for prompt in prompts}
    if len(lengths) > 1:
        raise UserError(f"all soft prompts must have one length; got {sorted(lengths)}.")
    if any(lengths) and kind == "seq2seq":
        raise UserError("soft prompts are for causal and masked models, not encoder-decoders.")
    for prompt in prompts:
        start, length = prompt.soft
        if start < 0 or start + length > len(prompt.ids):
            raise UserError(
                f"a soft prompt of {length} tokens from place {start} on does not lie in a prompt "
                f"of {len(prompt.ids)} tokens."
            )


def _order(prompts: Sequence[Prompt], group: Sequence[int]) -> Tensor:
    """(N,) where each answer of some of the prompts stands among the answers of all."""
    counts = torch.tensor([prompt.answers for prompt in prompts])
    starts = counts.cumsum(0) - counts
    return torch.cat([starts[i] + torch.arange(prompts[i].answers) for i in group])


def _answers(chosen: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """(N,) index of the prompt of each answer, and (N,) its position in that prompt."""
    rows = [row for row, p in enumerate(chosen) for _ in range(p.answers)]
    places = [p.answer + i for p in chosen for i in range(p.answers)]
    return torch.tensor(rows), torch.tensor(places)


def _padded(rows: Sequence[Sequence[int]], filling: int) -> Tensor:
    """One matrix, short rows filled up on the right."""
    tensors = [torch.tensor(row) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=filling)
