"""Feature-MLP and Feature-BiLSTM: small classifiers on what the frozen model makes of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence

from integrations.batches import make_batches
from integrations.errors import UserError
from integrations.methods.seeding import seeded
from integrations.methods.trial import Trial
from integrations.patches import Patches, evaluating
from integrations.tasks import Example

Keep = Callable[[Tensor, int], Tensor]
"""What is kept of a prompt's states (T, h), given where its label word is predicted from."""

CHUNK = 256  # examples whose features are held at a time, beside those of training and development


@torch.no_grad()
def frozen_features(trial: Trial, examples: Sequence[Example], keep: Keep) -> list[Tensor]:
    """Last hidden states of each example's prompt, as the model's head gets them.

    Args:
        trial: The model and its encoder.
        examples: At least one.
        keep: What is kept of a prompt's states.

    Returns:
        Float32 tensors on the CPU.
    """
    arch, encoder = trial.arch, trial.encoder
    prompts = encoder.encode(examples)
    found: list[Tensor] = [torch.empty(0)] * len(prompts)
    for batch in make_batches(prompts, encoder.pad_id, arch.kind, arch.model.device):
        states: list[Tensor] = []

        def record(x: Tensor, states: list[Tensor] = states) -> Tensor:
            states.append(x)
            return x[:, :1]  # the head shall have next to nothing to do

        with evaluating(arch.model), Patches() as patches:
            patches.before(arch.head, record)
            batch.run(arch.model)
        for i, row in zip(batch.order.tolist(), states[0], strict=True):
            prompt = prompts[i]
            kept = keep(row[: len(prompt.ids)], prompt.answer)
            found[i] = kept.to("cpu", torch.float32, copy=True)
    return found


class FeatureLearner:
    """Trains a classifier on features that are computed once.

    A step is one pass over the training set in batches; the loss is cross-entropy over the
    classes. Adam, its learning rate and the batch size are ours.

    Args:
        trial: The model and the split.
        classifier: Makes the classifier for h features and C classes.
        learning_rate: Of Adam.
        batch_size: Examples in a step of Adam.

    Attributes:
        parameters: The classifier's weights.
        evaluations: Passes over the training set's features.

    Raises:
        UserError: If the model is an encoder-decoder.
    """

    def __init__(
        self,
        trial: Trial,
        classifier: Callable[[int, int], nn.Module],
        learning_rate: float,
        batch_size: int,
    ) -> None:
        if trial.encoder.kind == "seq2seq":
            raise UserError("features are for causal and masked models, not encoder-decoders.")
        self._trial = trial
        task = trial.encoder.task
        self._train = frozen_features(trial, task.train, self._keep)
        self._dev: list[Tensor] = []
        self._labels = torch.tensor([example.label for example in task.train])
        with seeded(trial.seed):
            width = self._train[0].shape[-1]
            self._classifier = classifier(width, len(task.label_words))
        self._optimizer = torch.optim.Adam(self._classifier.parameters(), lr=learning_rate)
        self._rng = np.random.default_rng(trial.seed)
        self._batch_size = batch_size
        self.parameters = sum(p.numel() for p in self._classifier.parameters())
        self.evaluations = 0.0

    @staticmethod
    def _keep(states: Tensor, answer: int) -> Tensor:
        """The features of a prompt with states (T, h)."""
        raise NotImplementedError

    def _batches(self) -> Iterator[Tensor]:
        order = torch.from_numpy(self._rng.permutation(len(self._labels)))
        return iter(torch.split(order, self._batch_size))

    def step(self) -> float:
        """Train on all examples once; returns the mean of their losses, each before its step."""
        total = 0.0
        for rows in self._batches():
            logits = self._classifier([self._train[i] for i in rows.tolist()])
            loss = F.cross_entropy(logits, self._labels[rows])
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            total += loss.item() * len(rows)
        self.evaluations += 1
        return total / len(self._labels)

    def logits(self, examples: Sequence[Example]) -> np.ndarray:
        """The classifier's logits (N, C) float32."""
        task = self._trial.encoder.task
        if examples is task.train:
            return self._classify(self._train)
        if examples is task.dev:  # looked at again and again
            self._dev = self._dev or frozen_features(self._trial, examples, self._keep)
            return self._classify(self._dev)
        chunks = [examples[i : i + CHUNK] for i in range(0, len(examples), CHUNK)]
        return np.concatenate(
            [self._classify(frozen_features(self._trial, c, self._keep)) for c in chunks]
        )

    @torch.no_grad()
    def _classify(self, features: list[Tensor]) -> np.ndarray:
        found: np.ndarray = self._classifier(features).numpy()
        return found

    def state(self) -> dict[str, Tensor]:
        """A copy of the classifier's weights."""
        return {name: x.clone() for name, x in self._classifier.state_dict().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put the weights of a state in place."""
        self._classifier.load_state_dict(state)


class FeatureMLP(FeatureLearner):
    """A perceptron with one hidden layer on the state that the label word is predicted from.

    Feature-MLP of BBT (Sun et al. 2022, arXiv 2201.03514), Table 3. Its Table 4 says that 128 KB
    of features are fetched for the 32 examples of SST-2, so one vector of RoBERTa-large's 1024
    floats an example, and that 20 MB are used beside the model, which is about what a square hidden
    layer takes with its gradients and Adam's moments. No code of it is public; what else there is,
    is ours.

    Args:
        trial: The model and the split.
        hidden: Width of the hidden layer; None for that of the features.
        learning_rate: Of Adam.
        batch_size: Examples in a step of Adam.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        hidden: int | None = None,
        learning_rate: float = 3e-4,
        batch_size: int = 16,
    ) -> None:
        def classifier(width: int, classes: int) -> nn.Module:
            inner = width if hidden is None else hidden
            return _MLP(width, inner, classes)

        super().__init__(trial, classifier, learning_rate, batch_size)

    @staticmethod
    def _keep(states: Tensor, answer: int) -> Tensor:
        return states[answer]


class _MLP(nn.Sequential):
    """Class logits of vectors."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, classes))

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        logits: Tensor = super().forward(torch.stack(list(vectors)))  # type: ignore[no-untyped-call]
        return logits


class FeatureBiLSTM(FeatureLearner):
    """A bidirectional LSTM over the states of all tokens, and a linear layer on its two ends.

    Feature-BiLSTM of BBT (Sun et al. 2022, arXiv 2201.03514), Table 3. Its Table 4 says that 6016
    KB of features are fetched for the 32 examples of SST-2, so one vector a token of 47. No code of
    it is public; what else there is, is ours.

    Args:
        trial: The model and the split.
        hidden: Width of each direction; None for half of the features', so that both together are
            as wide as these.
        learning_rate: Of Adam.
        batch_size: Examples in a step of Adam.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        hidden: int | None = None,
        learning_rate: float = 3e-4,
        batch_size: int = 16,
    ) -> None:
        def classifier(width: int, classes: int) -> nn.Module:
            return _BiLSTM(width, width // 2 if hidden is None else hidden, classes)

        super().__init__(trial, classifier, learning_rate, batch_size)

    @staticmethod
    def _keep(states: Tensor, answer: int) -> Tensor:
        return states


class _BiLSTM(nn.Module):
    """Class logits of sequences of states, from where each direction ends."""

    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, bidirectional=True)
        self.output = nn.Linear(2 * hidden, classes)

    def forward(self, sequences: Sequence[Tensor]) -> Tensor:
        packed = pack_sequence(list(sequences), enforce_sorted=False)
        _, (ends, _) = self.lstm(packed)
        logits: Tensor = self.output(torch.cat([ends[0], ends[1]], dim=1))
        return logits
