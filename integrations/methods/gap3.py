"""GAP3: a genetic search for the words of a prompt (Zhao, Wang & Yang 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from integrations.adapter import Adapter
from integrations.batches import PromptBatch
from integrations.errors import UserError
from integrations.methods.prompt_chunks import HOLE, ChunkedPrompts, Chunks
from integrations.methods.trial import Trial
from integrations.metrics import METRICS, cross_entropy
from integrations.patches import Patches
from integrations.population import PopulationEvaluator
from integrations.prompts import Prompt
from integrations.tasks import Example


@dataclass(frozen=True)
class _Individual:
    """Chunks and how well they answer the training set.

    Attributes:
        chunks: The prompt's chunks.
        score: The task's metric.
        fitness: Mean probability of the right label word among all; tells equal scores apart.
        loss: Mean cross-entropy over the label words.
    """

    chunks: Chunks
    score: float
    fitness: float
    loss: float

    @property
    def rank(self) -> tuple[float, float]:
        """What is compared, higher is better."""
        return self.score, self.fitness


@dataclass(frozen=True)
class _Potentials:
    """What the language model makes of the tokens for a hole, summed over the training set.

    Attributes:
        labelled: (V,) log-probabilities with the label words in place.
        bare: (V,) log-probabilities without them.
        label: Log-probability of the right label words without the token.
    """

    labelled: Tensor
    bare: Tensor
    label: float


class GAP3:
    """Genetic Algorithm for Predictive Probability guided Prompting (Zhao et al., IJCAI 2023).

    A prompt is an example's texts with a chunk of tokens before each of them and before the label
    word; the task's own pattern gives their order only, and all chunks are empty at first. The
    square root of a generation's size survive, and the best ever if it is better. Two of them,
    drawn with the exponential of their scores as weights, swap each chunk with the probability
    ``crossover``; in each of the two children, with the probability ``mutation``, a random place
    of a random chunk becomes a hole, by insertion or replacement. The hole gets the token with the
    largest sum over the training set of

        log P(token | texts, label word) - log P(token | texts) + bias(token)

    that gives a prompt not seen before. By Bayes' rule the difference is what the token adds to
    log P(label word | texts), if the model were consistent; the bias, at most 0, is by how much
    less than that a token was once found to add.

    One step is one individual: up to two passes over the training set for its hole and one for
    the individual itself, each of which counts one evaluation. Holes that several individuals of
    a generation have in common are looked at once. The best individual so far is in place.

    Operators and defaults are those of the authors' code (github.com/zjjhit/gap3,
    ``run_roberta.sh``, ``GAPrompt/petri.py``, ``individual.py`` and ``thread_utils.py``). What
    differs:

    - The model that is tuned also fills the holes. The code takes RoBERTa-large for that even
      where GPT-2 is tuned. A causal model sees nothing of what follows a hole, so for this purpose
      it reads texts and label word first and then the chunk up to the hole.
    - The best individual ever stays among the parents until it is beaten. So it is meant in the
      code, but its comparison returns a difference, which is true for worse ones as well.
    - The bias compares each example's own label word before and after; the code sums every
      example's log-probability of every example's label word before, which keeps the bias at 0.
    - Chunks are tokens throughout, where the code decodes them and encodes the text anew; tokens
      with a special meaning are left out; texts are cut to fit, where the code leaves long
      examples out; chunks have at most a quarter of the longest prompt's tokens.

    Args:
        trial: The trial.
        popsize: Individuals of a generation.
        generations: Generations after the first.
        crossover: Probability that a chunk is swapped; 0 if there is only one chunk.
        mutation: Probability that a child gets a hole; 1 if there is only one chunk.

    Attributes:
        evaluations: Passes over the training set.

    Raises:
        UserError: If the model is an encoder-decoder, or an argument does not fit.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        popsize: int = 64,
        generations: int = 50,
        crossover: float = 0.5,
        mutation: float = 0.75,
    ) -> None:
        if popsize < 4:
            raise UserError(f"popsize must be 4 or more, for two parents; got {popsize!r}.")
        for name, value in {"crossover": crossover, "mutation": mutation}.items():
            if not 0 <= value <= 1:
                raise UserError(f"{name} must be a probability, 0 to 1; got {value!r}.")
        self.arch = trial.arch
        self.arch.model.train(False)
        self.task = trial.encoder.task
        self.pad_id = trial.encoder.pad_id
        self.prompts = ChunkedPrompts(trial.encoder)
        single = self.prompts.slots == 1
        self.crossover, self.mutation = (0.0, 1.0) if single else (crossover, mutation)
        self.popsize, self.generations = popsize, generations
        self.rng = np.random.default_rng(trial.seed)
        self.evaluations: float = 0
        self.generation = 0
        self.chunks: Chunks = ((),) * self.prompts.slots
        self.best: _Individual | None = None
        self._done: list[_Individual] = []
        self._seen: set[Chunks] = set()
        self._bias: dict[int, float] = {}
        self._found_bias: list[tuple[int, float]] = []
        self._potentials: dict[Chunks, _Potentials] = {}
        self._waiting = [self._with_hole(self.chunks) for _ in range(popsize)]
        self._allowed = cache(self._is_allowed)

    @property
    def parameters(self) -> int:
        """Tokens of the chunks in place."""
        return sum(map(len, self.chunks))

    def step(self) -> float | None:
        """One individual; None after the last generation."""
        if not self._waiting and not self._breed():
            return None
        individual = self._evaluate(self._waiting.pop(0))
        self._done.append(individual)
        if self.best is None or individual.rank > self.best.rank:
            self.best, self.chunks = individual, individual.chunks
        return self.best.loss

    def logits(self, examples: Sequence[Example]) -> np.ndarray:
        """Label logits (N, C) with the chunks in place."""
        prompts = [self.prompts.answering(example, self.chunks) for example in examples]
        return self._evaluator(prompts).logits(Adapter(self.arch))

    def state(self) -> Chunks:
        """The chunks in place."""
        return self.chunks

    def restore(self, state: Chunks) -> None:
        """Put chunks in place."""
        self.chunks = state

    @property
    def texts(self) -> list[str]:
        """The chunks in place as text."""
        return [self.prompts.text(chunk) for chunk in self.chunks]

    # -- breeding ------------------------------------------------------------------------------

    def _breed(self) -> bool:
        """Make the next generation's individuals of the last one's; false if there is none."""
        if self.generation == self.generations:
            return False
        self.generation += 1
        elites = sorted(self._done, key=lambda each: each.rank, reverse=True)
        elites = elites[: math.isqrt(self.popsize)]
        if self.best is not None and self.best.rank > elites[0].rank:
            elites.append(self.best)
        self._done.clear()
        self._potentials.clear()
        for token, bias in self._found_bias:
            self._bias[token] = min(self._bias.get(token, 0.0), bias)
        self._found_bias.clear()
        weights = np.exp([each.score for each in elites])
        weights /= weights.sum()
        for _ in range(10 * self.popsize):
            first, second = self.rng.choice(len(elites), size=2, replace=False, p=weights)
            for child in self._cross(elites[first].chunks, elites[second].chunks):
                if self.rng.random() < self.mutation:
                    child = self._with_hole(child)
                elif child in self._seen:
                    continue
                else:
                    self._seen.add(child)
                self._waiting.append(child)
            if len(self._waiting) >= self.popsize:
                break
        del self._waiting[self.popsize :]
        return bool(self._waiting)

    def _cross(self, first: Chunks, second: Chunks) -> tuple[Chunks, Chunks]:
        """Two children that swap each chunk with the probability of a crossover."""
        swapped = self.rng.random(len(first)) < self.crossover
        pairs = list(zip(first, second, swapped, strict=True))
        return tuple(b if s else a for a, b, s in pairs), tuple(a if s else b for a, b, s in pairs)

    def _with_hole(self, chunks: Chunks) -> Chunks:
        """The chunks with a hole at a random place, inserted or instead of a token."""
        slot = int(self.rng.integers(len(chunks)))
        chunk = chunks[slot]
        full = sum(map(len, chunks)) >= self.prompts.most_tokens
        if not chunk or (self.rng.random() < 0.5 and not full):
            place = int(self.rng.integers(len(chunk) + 1))
            changed = (*chunk[:place], HOLE, *chunk[place:])
        else:
            place = int(self.rng.integers(len(chunk)))
            changed = (*chunk[:place], HOLE, *chunk[place + 1 :])
        return (*chunks[:slot], changed, *chunks[slot + 1 :])

    # -- evaluation ----------------------------------------------------------------------------

    def _evaluate(self, chunks: Chunks) -> _Individual:
        """Fill the hole, if there is one, and evaluate what comes of it."""
        train, token, expected = self.task.train, None, 0.0
        if any(HOLE in chunk for chunk in chunks):
            potentials = self._look_at(chunks)
            chunks, token = self._fill(chunks, potentials)
            gain = potentials.labelled[token] - potentials.bare[token]
            expected = potentials.label + float(gain)
        (log_p,) = self._log_probabilities([self.prompts.answering(e, chunks) for e in train])
        self.evaluations += 1
        labels = torch.tensor([example.label for example in train])
        words = log_p[:, self.prompts.label_ids]
        if token is not None:
            found = float(_right(words, labels).double().sum())
            self._found_bias.append((token, found - expected))
        return _Individual(
            chunks,
            score=float(METRICS[self.task.metric](labels.numpy(), words.argmax(dim=1).numpy())),
            fitness=float(_right(words.softmax(dim=1), labels).mean()),
            loss=float(cross_entropy(words, labels)),
        )

    def _look_at(self, chunks: Chunks) -> _Potentials:
        """What the model makes of the tokens for the chunks' hole."""
        if chunks not in self._potentials:
            train = self.task.train
            labelled = [self.prompts.filling(e, chunks, labelled=True)[0] for e in train]
            bare, places = zip(
                *(self.prompts.filling(e, chunks, labelled=False) for e in train), strict=True
            )
            away = [place - prompt.answer for prompt, place in zip(bare, places, strict=True)]
            (with_label,) = self._log_probabilities(labelled)
            without, label = self._log_probabilities(bare, away)
            right = torch.tensor([self.prompts.label_ids[example.label] for example in train])
            self._potentials[chunks] = _Potentials(
                labelled=with_label.double().sum(dim=0),
                bare=without.double().sum(dim=0),
                label=float(_right(label, right).double().sum()),
            )
            self.evaluations += 2
        return self._potentials[chunks]

    def _fill(self, chunks: Chunks, potentials: _Potentials) -> tuple[Chunks, int]:
        """The chunks with the best token in the hole that makes them new, and that token."""
        gains = potentials.labelled - potentials.bare
        for token, bias in self._bias.items():
            gains[token] += bias
        for token in filter(self._allowed, gains.argsort(descending=True).tolist()):
            filled = tuple(tuple(token if t == HOLE else t for t in chunk) for chunk in chunks)
            if filled not in self._seen:
                break
        self._seen.add(filled)
        return filled, token

    def _is_allowed(self, token: int) -> bool:
        """Whether a token may stand in a prompt: it has a text, and none of a label word's."""
        tokenizer = self.prompts.tokenizer
        if token >= len(tokenizer) or token in tokenizer.all_special_ids:
            return False
        text = self.prompts.text([token]).strip().lower()
        words = [self.prompts.text([word]).strip().lower() for word in self.prompts.label_ids]
        return not any(w in text or w.startswith(text) or w.endswith(text) for w in words)

    @torch.inference_mode()
    def _log_probabilities(self, prompts: Sequence[Prompt], *away: Sequence[int]) -> Tensor:
        """Log-probabilities of all tokens (K, N, V), on the CPU.

        Args:
            prompts: N prompts.
            away: More positions to read of each prompt, K - 1 beside its answer, by how many
                tokens after it they are.
        """
        distances = torch.tensor([[0] * len(prompts), *away])
        parts, order = [], []
        for batch in self._evaluator(prompts).batches:
            places = batch.answers + distances[:, batch.order].to(batch.answers.device)
            with Patches() as patches:
                patches.before(self.arch.head, _reading(batch, places))
                logits = batch.run(self.arch.model).logits
            parts.append(logits.view(*places.shape, -1).float().log_softmax(dim=-1).cpu())
            order.append(batch.order)
        return torch.cat(parts, dim=1)[:, torch.cat(order).argsort()]

    def _evaluator(self, prompts: Sequence[Prompt]) -> PopulationEvaluator:
        return PopulationEvaluator(
            self.arch, prompts, self.prompts.label_ids, pad_id=self.pad_id, loss=cross_entropy
        )


def _reading(batch: PromptBatch, places: Tensor) -> Callable[[Tensor], Tensor]:
    """Cuts a batch's hidden states (R, T, h) to places (K, N) of its prompts, (K * N, 1, h)."""
    return lambda x: x[batch.answer_rows, places].flatten(0, 1).unsqueeze(1)


def _right(values: Tensor, labels: Tensor) -> Tensor:
    """The (N,) of values (N, C) that labels (N,) point at."""
    return values.gather(1, labels[:, None]).squeeze(1)
