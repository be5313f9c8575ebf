"""A kind of task that this package does not know, tuned all the same."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tiny import build_model, label_logits

from integrations import Speedups, tune
from integrations.batches import make_batches
from integrations.evaluators import make_encoder, make_evaluator
from integrations.objective import Score
from integrations.patches import Patches
from integrations.prompts import Prompt


@dataclass(frozen=True)
class UniformTask:
    """Lower the largest probability of the next token, whichever that is."""

    name: str = "uniform"
    metric: str = "minus largest probability"
    train: tuple[str, ...] = ("the film was", "a plot")
    dev: tuple[str, ...] = ("the cast",)
    test: tuple[str, ...] = ("the story is very", "a")


class UniformEncoder(NamedTuple):
    task: UniformTask
    tokenizer: object
    max_length: int = 20
    losses: tuple[str, ...] = ("largest probability",)

    def encode(self, texts):
        found = [tuple(self.tokenizer(text)["input_ids"]) for text in texts]
        return [Prompt(ids, len(ids) - 1) for ids in found]

    def arguments(self):
        return {}


class UniformEvaluator:
    """The naive loop: one candidate and batch after the other."""

    def __init__(self, arch, prompts):
        self.arch, self.block_size, self.chosen_for = arch, 1, None
        self.batches = make_batches(prompts, 0, arch.kind, arch.model.device)

    @torch.inference_mode()
    def loss_in_place(self, adapter):
        largest = []
        for batch in self.batches:
            with Patches() as patches:
                patches.add_deltas(adapter.deltas(self.arch, 0, len(self.arch.layers)))
                logits = batch.at_answers(batch.run(self.arch.model).logits)
            largest += logits.softmax(dim=-1).amax(dim=-1).flatten().tolist()
        return float(np.mean(largest))

    def losses(self, candidates, adapter):
        losses, adapter = [], adapter.copy()
        for p in range(len(candidates)):
            candidates[p : p + 1].place(adapter)
            losses.append(self.loss_in_place(adapter))
        return np.array(losses)

    def score(self, adapter, progress=None):
        loss = self.loss_in_place(adapter)
        return Score(-loss, loss, sum(map(len, self.batches)))


@make_encoder.register
def _(task: UniformTask, arch, tokenizer, max_length):
    return UniformEncoder(task, tokenizer)


@make_evaluator.register
def _(encoder: UniformEncoder, arch, examples, loss, speedups=None, memory_limit=None):
    return UniformEvaluator(arch, encoder.encode(examples))


def test_a_task_of_one_s_own_kind(word_tokenizer, tmp_path):
    model, tokenizer = build_model("llama", num_hidden_layers=2), word_tokenizer("causal")
    arguments = {"tokenizer": tokenizer, "budget": 30, "dim": 40, "speedups": Speedups(blocks=1)}
    result = tune(model, UniformTask(), checkpoint=tmp_path / "run", **arguments)
    prompts = result.encoder.encode(UniformTask().train)
    logits = label_logits(model, prompts, range(300))
    first, last = result.history.scores[0], result.history.scores[-1]
    expected = logits.softmax(dim=-1).amax(dim=-1).mean().item()
    assert first.train_loss == pytest.approx(expected, rel=1e-5)
    assert last.train_loss < first.train_loss
    assert result.test().examples == 2
    assert result.settings["loss"] == "largest probability"
    result.save(tmp_path / "adapter")
    again = tune(model, UniformTask(), checkpoint=tmp_path / "run", **arguments)
    assert again.history == result.history
