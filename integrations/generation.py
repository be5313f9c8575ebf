"""Greedy answers of many candidates, generated in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from integrations.adapter import Adapter
from integrations.architectures import Architecture
from integrations.batches import PromptBatch, make_batches, overhead_tokens
from integrations.candidates import IN_PLACE, Candidates, LayerCandidates
from integrations.errors import UserError
from integrations.memory import MB, bytes_per_token
from integrations.objective import Score, block_size_known, even_share
from integrations.onednn import use_onednn
from integrations.patches import Patches
from integrations.population import FAST, Speedups
from integrations.spaces import LayerFactors
from integrations.tasks.text import TextExample
from integrations.text_prompts import GenerationEncoder
from integrations.text_scores import make_score

PASS_TOKENS = 8192
"""Tokens, times candidates, that are read or written together unless memory allows fewer. Writing
reads all weights for each token, so many candidates at once pay off on a CPU as well."""


class GenerationEvaluator:
    """Evaluates candidates by the score of what they write.

    A batch holds each prompt once for each candidate, candidate by candidate. Each of these rows
    has its candidate's deltas in the tuned layers and its own part of the key-value cache; the
    model's own `generate` runs, which takes the likeliest token at each step. What the model's
    generation configuration says beyond sampling and beams, such as a repetition penalty, holds.

    Args:
        arch: The frozen model.
        encoder: Makes prompts of the examples.
        examples: What is answered and scored; at least one.
        speedups: ``no_padding`` off pads all prompts to the longest, and ``blocks`` says how many
            candidates generate at once, None for as many as fit, and fewer if the memory limit says
            so; ``onednn`` is for products, and the others have no effect.
        memory_limit: Most bytes beyond the model's weights; None for as much as is fastest.

    Attributes:
        batches: The prompts.
        block_size: Candidates that generate at once; None if that is still to be chosen.
        chosen_for: The most candidates for which it was chosen; None if it holds for any number.

    Raises:
        UserError: If the memory limit is too little for one candidate on the longest prompt.
    """

    def __init__(
        self,
        arch: Architecture,
        encoder: GenerationEncoder,
        examples: Sequence[TextExample],
        *,
        speedups: Speedups = FAST,
        memory_limit: int | None = None,
    ) -> None:
        self.arch = arch
        self.encoder = encoder
        self.examples = list(examples)
        self.scores = make_score(encoder.task.score)
        self.config = _greedy(arch, encoder)
        self._onednn = speedups.onednn
        prompts = encoder.encode(self.examples)
        longest = max(len(prompt.ids) for prompt in prompts)
        new_tokens = encoder.task.max_new_tokens
        pass_tokens = PASS_TOKENS
        if memory_limit is not None:
            token_bytes = bytes_per_token(arch, prompts, all_logits=False) + _cached_bytes(arch)
            pass_tokens = min(pass_tokens, memory_limit // token_bytes)
            if pass_tokens < longest + new_tokens:
                least = (longest + new_tokens) * token_bytes
                raise UserError(
                    f"memory_limit of {memory_limit / MB:.1f} MB is too little: one answer to the "
                    f"longest prompt takes {least / MB:.1f} MB. Raise it, or shorten the prompts "
                    "with max_length or the answers with max_new_tokens."
                )
        self.batches = make_batches(
            prompts,
            encoder.pad_id,
            arch.kind,
            arch.model.device,
            layout="grouped" if speedups.no_padding else "padded",
            max_tokens=pass_tokens,
            new_tokens=new_tokens,
            overhead=overhead_tokens(arch.model.device, arch.layers[0]),
        )
        fitting = pass_tokens // max(
            batch.ids.numel() + batch.rows * new_tokens for batch in self.batches
        )
        self._fitting = max(1, fitting)
        self.block_size = speedups.blocks
        if self.block_size is not None and memory_limit is not None:
            self.block_size = min(self.block_size, self._fitting)
        self.chosen_for = 0 if self.block_size is None else None

    @property
    def pass_size(self) -> int:
        """Candidates that generate at once."""
        return self.block_size or 1

    def choose_block_size(self, candidates: Candidates, adapter: Adapter, workers: int = 1) -> None:
        """Choose how many candidates generate at once: as many as fit, all about as many."""
        count = len(candidates)
        if not block_size_known(self, count):
            self.block_size = even_share(-(-count // workers), self._fitting)
            self.chosen_for = count

    def evaluate(self, layer: int, factors: LayerFactors, adapter: Adapter) -> np.ndarray:
        """Minus the mean score of each candidate for one layer: `losses` in short."""
        return self.losses(LayerCandidates(layer, factors), adapter)

    def losses(self, candidates: Candidates, adapter: Adapter) -> np.ndarray:
        """Minus the mean score of each candidate; see `integrations.objective.Evaluator`."""
        return np.array([self._loss(texts) for texts in self.texts(candidates, adapter)])

    def loss_in_place(self, adapter: Adapter) -> float:
        """Minus the mean score with the deltas in place."""
        return self._loss(self.answers(adapter))

    def score(self, adapter: Adapter, progress: Callable[[int, int], None] | None = None) -> Score:
        """Mean score with the deltas in place, and minus it as the loss."""
        loss = self._loss(self.answers(adapter, progress))
        return Score(-loss, loss, len(self.examples))

    def answers(
        self, adapter: Adapter, progress: Callable[[int, int], None] | None = None
    ) -> list[str]:
        """The answer to each example with the deltas in place.

        Args:
            adapter: The deltas.
            progress: Called with the number of examples done and of all.
        """
        done = 0
        texts = [""] * len(self.examples)
        for batch in self.batches:
            (found,) = self._generate(batch, IN_PLACE, adapter)
            for place, text in zip(batch.order.tolist(), found, strict=True):
                texts[place] = text
            done += len(batch)
            if progress is not None:
                progress(done, len(texts))
        return texts

    def texts(self, candidates: Candidates, adapter: Adapter) -> Iterator[list[str]]:
        """Each candidate's answer to each example; arguments as for `losses`."""
        self.choose_block_size(candidates, adapter)
        size = self.pass_size
        for start in range(0, len(candidates), size):
            block = candidates[start : start + size]
            texts = [[""] * len(self.examples) for _ in range(len(block))]
            for batch in self.batches:
                for mine, found in zip(texts, self._generate(batch, block, adapter), strict=True):
                    for place, text in zip(batch.order.tolist(), found, strict=True):
                        mine[place] = text
            yield from texts

    def _loss(self, texts: Sequence[str]) -> float:
        return -float(np.mean(self.scores(texts, self.examples)))

    @torch.inference_mode()
    def _generate(self, batch: PromptBatch, block: Candidates, adapter: Adapter) -> list[list[str]]:
        """Answers of a block of P candidates to one batch's prompts, (P, N)."""
        copies = len(block)
        ids, mask = _left_padded(batch) if self.arch.kind == "causal" else (batch.ids, batch.real)
        start = ids.shape[1] if self.arch.kind == "causal" else 1
        stop = _Stop(self.encoder, start)
        with Patches() as patches:
            if self._onednn:
                use_onednn(patches, self.arch.layers)
            block.beside(adapter).apply(patches, self.arch, batch)
            block.apply(patches, self.arch, batch, None)
            model: Any = self.arch.model
            tokens = model.generate(
                input_ids=ids.repeat(copies, 1),
                attention_mask=mask.long().repeat(copies, 1),
                generation_config=self.config,
                stopping_criteria=StoppingCriteriaList([stop] if self.encoder.task.stop else []),
            )
        texts = [self._text(row) for row in tokens[:, start:].tolist()]
        return [texts[i : i + batch.rows] for i in range(0, len(texts), batch.rows)]

    def _text(self, tokens: list[int]) -> str:
        """What a row says before the model's end of text, or the first of the task's."""
        ends = self.config.eos_token_id or []
        length = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        text = str(self.encoder.tokenizer.decode(tokens[:length], skip_special_tokens=True))
        for stop in self.encoder.task.stop:
            text = text.partition(stop)[0]
        return text


class _Stop(StoppingCriteria):
    """Ends the rows whose new text holds one of the task's stop texts."""

    def __init__(self, encoder: GenerationEncoder, start: int) -> None:
        self.tokenizer = encoder.tokenizer
        self.stop = encoder.task.stop
        self.start = start
        self.done: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:
        if self.done is None:
            self.done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for row in (~self.done).nonzero().flatten().tolist():
            text = self.tokenizer.decode(input_ids[row, self.start :], skip_special_tokens=True)
            self.done[row] = any(stop in text for stop in self.stop)
        return self.done


def _greedy(arch: Architecture, encoder: GenerationEncoder) -> GenerationConfig:
    """The model's own way to generate, but the likeliest token at each step and no sampling."""
    own: Any = arch.model.generation_config
    ends = encoder.tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id
    config: Any = GenerationConfig
    greedy: GenerationConfig = config(
        max_new_tokens=int(encoder.task.max_new_tokens),
        do_sample=False,
        num_beams=1,
        # What only sampling reads, as it is when not set; generate() warns of other values.
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        min_new_tokens=0,
        use_cache=True,
        pad_token_id=encoder.pad_id,
        eos_token_id=[ends] if isinstance(ends, int) else ends,
        decoder_start_token_id=encoder.start_id if arch.kind == "seq2seq" else None,
        return_dict_in_generate=False,
    )
    return greedy


def _left_padded(batch: PromptBatch) -> tuple[Tensor, Tensor]:
    """Token ids (R, T) and which are real, with the padding before the prompts."""
    length = batch.ids.shape[1]
    padding = length - batch.real.sum(dim=1, keepdim=True)
    index = (torch.arange(length, device=batch.ids.device) - padding) % length
    return batch.ids.gather(1, index), batch.real.gather(1, index)


def _cached_bytes(arch: Architecture) -> int:
    """Most bytes that a token takes in the cache: a key and a value in each layer."""
    width = max(arch.hidden_size, *(target.width for target in arch.targets[0].values()))
    return 2 * width * len(arch.layers) * arch.model.dtype.itemsize
