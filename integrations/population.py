"""Losses of many candidates, in as little work as the model allows.

Candidates (`integrations.candidates`) differ from what is in place in one layer, or in several of
which l is the first. So:

1. hidden states that enter layer l are the same for all candidates: computed once and kept
   (`integrations.prefix`), and the layers before l are skipped;
2. where their deltas differ, the inputs of layer l's projections are shared, so the frozen
   projections run once;
3. the head runs at the answer position and for the label words only, and so do the last layer's
   output projection and feed-forward part at the answer position;
4. prompts lie end to end without padding (`integrations.packing`) or are batched by length;
5. candidates run in blocks: on a CPU as many as fill it, several blocks at a time
   (`integrations.lanes`), on other devices as many as a measurement at the start finds best;
6. the library that multiplies matrices is the processor's fastest (`integrations.onednn`).

The model's own code runs everything that is left: masks, rotary tables, norms and residuals.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from integrations.adapter import Adapter
from integrations.architectures import Architecture
from integrations.arguments import whole_or_none
from integrations.batches import (
    CPU_MOST_TOKENS,
    MOST_TOKENS,
    Layout,
    PromptBatch,
    all_labels,
    make_batches,
    overhead_tokens,
)
from integrations.candidates import IN_PLACE, Candidates, LayerCandidates
from integrations.lanes import Lanes
from integrations.memory import plan_memory
from integrations.metrics import METRICS, Loss
from integrations.objective import Score, block_size_known, even_share
from integrations.onednn import use_onednn
from integrations.packing import can_pack
from integrations.patches import Patches
from integrations.prefix import PrefixCache
from integrations.prompts import Prompt
from integrations.spaces import LayerFactors
from integrations.tuned_layer import SharedBase
from integrations.weights import is_plain


@dataclass(frozen=True)
class Speedups:
    """The six steps that make population evaluation fast; all off is the naive loop.

    Attributes:
        prefix_cache: Skip the layers before the first tuned one.
        shared_base: Run that layer's frozen projections once for all candidates.
        answer_head: Run the head at the answer position, for the label words, and what follows
            the last layer's attention at the answer position.
        no_padding: Pack prompts end to end on a CPU, where the model allows it, and batch prompts
            of like length elsewhere; off, all are padded to the longest.
        blocks: Candidates in one forward pass: a number, or None for as many as fill a CPU, and
            on other devices for what a measurement finds best.
        side_by_side: On a CPU, run as many blocks at a time as PyTorch has threads.
        onednn: On AMD's processors, multiply float32 matrices with oneDNN in place of MKL.
    """

    prefix_cache: bool = True
    shared_base: bool = True
    answer_head: bool = True
    no_padding: bool = True
    blocks: int | None = None
    side_by_side: bool = True
    onednn: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", whole_or_none("blocks", self.blocks))


FAST = Speedups()
"""All six steps, the default."""

NAIVE = Speedups(False, False, False, False, blocks=1, side_by_side=False, onednn=False)
"""None of the six: the whole model on padded prompts, candidate by candidate."""


class PopulationEvaluator:
    """Evaluates candidates on a fixed set of prompts.

    Args:
        arch: The frozen model.
        prompts: What the loss is computed on.
        label_ids: Token of each label word.
        pad_id: Token that fills up shorter prompts.
        loss: Loss of the label logits and labels of all prompts.
        metric: Name in `integrations.metrics.METRICS` of what `score` reports.
        speedups: Which of the six steps to take (default all).
        memory_limit: Most bytes beyond the model's weights, for kept hidden states and what a
            forward pass holds; None lets speed decide.
        all_logits: Count the memory of the whole vocabulary's logits.

    Raises:
        UserError: If the memory limit is too little for the longest prompt.
    """

    def __init__(
        self,
        arch: Architecture,
        prompts: Sequence[Prompt],
        label_ids: Sequence[int],
        *,
        pad_id: int,
        loss: Loss,
        metric: str = "accuracy",
        speedups: Speedups = FAST,
        memory_limit: int | None = None,
        all_logits: bool = False,
    ) -> None:
        device = arch.model.device
        self.arch = arch
        self.loss = loss
        self.speedups = speedups
        self.label_ids = torch.tensor(label_ids, device=device)
        self.metric = METRICS[metric]
        self.examples = len(prompts)
        self.labels = np.array(all_labels(prompts))
        self.answers = len(self.labels)
        self.width = len(label_ids)
        all_logits = all_logits or not speedups.answer_head
        plan = plan_memory(arch, prompts, memory_limit, all_logits=all_logits)
        layout = self._layout(max(prompt.length for prompt in prompts))
        frugal = device.type == "cpu" and speedups.no_padding
        self.batches = make_batches(
            prompts,
            pad_id,
            arch.kind,
            device,
            layout=layout,
            first_position=arch.family.reserved_positions,
            max_tokens=min(
                CPU_MOST_TOKENS if frugal else MOST_TOKENS[layout],
                plan.pass_tokens,
                self._most_answers(),
            ),
            overhead=overhead_tokens(device, arch.layers[0]),
        )
        one_at_a_time = any(target.reused for target in arch.targets[0].values())
        self.block_size = 1 if one_at_a_time else speedups.blocks
        self.chosen_for = 0 if self.block_size is None else None
        largest = max(batch.tokens for batch in self.batches)
        self._most_on_cpu = max(1, CPU_MOST_TOKENS // largest)
        self._most_candidates = min(
            plan.pass_tokens // largest,
            max(1, self._most_answers() // max(map(len, self.batches))),
        )
        least = 2 if memory_limit is None else 1
        self._prefix = PrefixCache(arch, self.batches, plan.prefix_bytes, least, speedups.onednn)
        self._lanes = Lanes(arch)

    def _layout(self, longest: int) -> Layout:
        if not self.speedups.no_padding:
            return "padded"
        # A GPU would rather have few launches for many prompts than no padding.
        on_cpu = self.arch.model.device.type == "cpu"
        return "packed" if on_cpu and can_pack(self.arch.model, longest) else "grouped"

    def evaluate(self, layer: int, factors: LayerFactors, adapter: Adapter) -> np.ndarray:
        """Loss of each candidate for one layer's deltas: `losses` in short.

        Args:
            layer: Index of the layer whose deltas the candidates replace.
            factors: Factors of P candidates for each of the layer's targets.
            adapter: What is in place in all layers.

        Returns:
            (P,) float64 losses.
        """
        return self.losses(LayerCandidates(layer, factors), adapter)

    @torch.inference_mode()
    def losses(self, candidates: Candidates, adapter: Adapter) -> np.ndarray:
        """Loss of each candidate, with all that it does not replace as it is in place.

        Args:
            candidates: P candidates.
            adapter: What is in place in all layers.

        Returns:
            (P,) float64 losses.
        """
        self.choose_block_size(candidates, adapter)
        if self.speedups.prefix_cache:
            for number in range(len(self.batches)):
                self._prefix.prepare(number, candidates.first, adapter)
        while True:
            try:
                return self._losses(candidates, adapter)
            except torch.OutOfMemoryError:
                # Others may have taken memory since the size was measured.
                if self.pass_size == 1:
                    raise
                self.block_size = self.pass_size // 2

    def _losses(self, candidates: Candidates, adapter: Adapter) -> np.ndarray:
        count, size = len(candidates), self.pass_size
        shared = [SharedBase() for _ in self.batches]
        # Label logits are few, and a loss may look at all of them at once.
        logits = torch.empty(count, self.answers, self.width)

        @torch.inference_mode()  # which holds for the thread that it is called in
        def run(arch: Architecture, piece: int) -> None:
            rows = slice(piece * size, (piece + 1) * size)
            for number, batch in enumerate(self.batches):
                found = self._logits(arch, number, candidates[rows], adapter, shared[number])
                logits[rows, batch.order] = found.cpu()

        most = self._most_candidates // size if self.speedups.side_by_side else 1
        self._lanes.run(run, -(-count // size), most)
        return self.loss(self._of_examples(logits), torch.tensor(self.labels)).numpy()

    @torch.inference_mode()
    def choose_block_size(self, candidates: Candidates, adapter: Adapter, workers: int = 1) -> None:
        """Choose how many candidates go into a forward pass, unless that is known for so many.

        On a CPU they are as many as fill it, so that the same seed gives the same run; on other
        devices they are measured.

        Args:
            candidates: P candidates.
            adapter: What is in place.
            workers: Who share the candidates out; no block is larger than a share.
        """
        count = len(candidates)
        if count == 1 or block_size_known(self, count):
            return
        share = -(-count // workers)
        if self.arch.model.device.type == "cpu":
            most = min(self._most_candidates, self._most_on_cpu)
            self.block_size = even_share(share, most)
        else:
            typical = candidates[:share].typical(self.arch)
            self.block_size = self._measure_block_size(typical, adapter)
        self.chosen_for = count

    @property
    def pass_size(self) -> int:
        """How many candidates go into a forward pass."""
        return min(self.block_size or 1, self._most_candidates)

    @torch.inference_mode()
    def logits(
        self, adapter: Adapter, progress: Callable[[int, int], None] | None = None
    ) -> np.ndarray:
        """Label logits with the deltas in place, (N, C) float32 in the order of the prompts.

        Args:
            adapter: The deltas.
            progress: Called with the number of prompts done and of all.
        """
        done = 0
        out = torch.empty(self.answers, self.width)
        for number, batch in enumerate(self.batches):
            logits = self._logits(self.arch, number, IN_PLACE, adapter, SharedBase())
            out[batch.order] = logits[0].cpu()
            done += len(batch)
            if progress is not None:
                progress(done, len(out))
        return self._of_examples(out).numpy()

    def loss_in_place(self, adapter: Adapter) -> float:
        """Loss with the deltas in place."""
        logits = torch.from_numpy(self.logits(adapter))
        return float(self.loss(logits, torch.tensor(self.labels)))

    def score(self, adapter: Adapter, progress: Callable[[int, int], None] | None = None) -> Score:
        """Metric and loss with the deltas in place; see `integrations.objective.Evaluator`."""
        logits = self.logits(adapter, progress)
        # Copies: a loss of one's own may change what it is given.
        loss = float(self.loss(torch.tensor(logits), torch.tensor(self.labels)))
        score = float(self.metric(self.labels, logits.argmax(axis=1)))
        return Score(score, loss, self.examples)

    def _logits(
        self,
        arch: Architecture,
        number: int,
        block: Candidates,
        adapter: Adapter,
        shared: SharedBase,
    ) -> Tensor:
        """Label logits (P, N, C) of a block of P candidates on one batch.

        ``arch`` is the model or a replica.
        """
        batch, copies = self.batches[number], len(block)
        start = block.first if self.speedups.prefix_cache else 0
        with Patches() as patches:
            if self.speedups.onednn:
                use_onednn(patches, arch.layers[start:])
            self._prefix.resume(patches, arch, number, start, adapter, copies)
            block.beside(adapter).apply(patches, arch, batch, start)
            block.apply(patches, arch, batch, shared if self.speedups.shared_base else None)
            if self.speedups.answer_head:
                for first, last in arch.tail:
                    patches.before(first, batch.at_answers)
                    patches.after(last, lambda _, y: batch.put_back(y))
                patches.before(arch.head, batch.at_answers)
            self._cut_head(patches, arch)
            logits = batch.run(arch.model, copies).logits
        if not self.speedups.answer_head:
            logits = batch.at_answers(logits)
        return self._read(logits.view(copies, len(batch), -1), batch)

    def _of_examples(self, found: Tensor) -> Tensor:
        """What losses and metrics look at (..., N, C), of what is kept of all answers."""
        return found

    def _most_answers(self) -> int:
        """Most answers in one forward pass, for the memory that the head's output takes."""
        return sys.maxsize

    def _cut_head(self, patches: Patches, arch: Architecture) -> None:
        """Let the head of the model, or of a replica, compute what `_read` needs and no more."""
        if self.speedups.answer_head and arch.output is not None:
            keep_label_words(patches, arch.output, self.label_ids)

    def _read(self, logits: Tensor, batch: PromptBatch) -> Tensor:
        """What is kept (P, N, C) of the head's output (P, N, width) at the answers."""
        cut = self.speedups.answer_head and self.arch.output is not None
        return (logits if cut else logits[..., self.label_ids]).float()

    def _measure_block_size(self, candidates: Candidates, adapter: Adapter) -> int:
        """Candidates a forward pass that take the least time for all of them.

        Measured on the batch with the most tokens, which has to fit into the device's memory too; a
        block that does not has lost. Devices would rather have few passes, so sizes are tried from
        all candidates on down. The next has to win by a tenth, so that noise does not decide.
        """
        number = max(range(len(self.batches)), key=lambda i: self.batches[i].tokens)
        count = len(candidates)
        fewest = -(-count // min(count, self._most_candidates))
        blocks = [1 << i for i in reversed(range((count - 1).bit_length()))]
        passes = [fewest, *(-(-count // block) for block in blocks)]
        best, best_time = 1, float("inf")
        for n in dict.fromkeys(n for n in passes if n >= fewest):
            size = -(-count // n)
            block = candidates[:size]
            try:
                seconds = n * min(self._seconds(number, block, adapter) for _ in range(2))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                continue
            if seconds > 0.9 * best_time:
                break
            best, best_time = size, seconds
        return best

    def _seconds(self, number: int, block: Candidates, adapter: Adapter) -> float:
        start = time.perf_counter()
        logits = self._logits(self.arch, number, block, adapter, SharedBase())
        logits.sum().item()  # reading a value waits for the device
        return time.perf_counter() - start


def keep_label_words(patches: Patches, output: nn.Module, label_ids: Tensor) -> None:
    """Let the head's last layer compute the label words' rows only."""
    frozen = output.forward
    weight: Any = getattr(output, "weight", None)
    bias: Any = getattr(output, "bias", None)
    # A subclass, or a forward that another library put there, may do more than multiply.
    plain = type(output) is nn.Linear and "forward" not in vars(output) and is_plain(output)

    def forward(x: Tensor) -> Tensor:
        if not plain:
            logits: Tensor = frozen(x)[..., label_ids]
            return logits
        return F.linear(x, weight[label_ids], None if bias is None else bias[label_ids])

    patches.replace(output, forward)
