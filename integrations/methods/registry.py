"""The methods that can be compared, as the paper's Table 1 names them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from integrations.errors import unknown
from integrations.methods.trial import Learner, Trial

FREE, BASED = "gradient-free", "gradient-based"


@dataclass(frozen=True)
class Method:
    """A method and where it comes from.

    Attributes:
        title: Its name in tables.
        kind: ``"gradient-free"`` or ``"gradient-based"``.
        learner: ``module:class`` within this package; imported when it is used, as some need
            libraries that others do without.
        dev_every: Passes over the training set between looks at the development set.
        source: The paper.
        settings: Arguments of the class besides the trial, where they are not its defaults.
    """

    title: str
    kind: str
    learner: str
    dev_every: float
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self, trial: Trial) -> Learner:
        """The learner for one trial.

        Raises:
            UserError: If the method does not suit the model or needs a package that is missing.
        """
        module, _, name = self.learner.partition(":")
        cls = getattr(importlib.import_module(f"integrations.methods.{module}"), name)
        learner: Learner = cls(trial, **self.settings)
        return learner


_PAPER = "Jin, Liu & Tan 2024, arXiv 2403.01754"

METHODS: Mapping[str, Method] = {
    "model-tuning": Method(
        "Model tuning",
        BASED,
        "model_weights:ModelTuning",
        2,
        "Devlin et al. 2019, arXiv 1810.04805",
    ),
    "adapter": Method(
        "Adapter", BASED, "bottleneck:BottleneckAdapter", 2, "Houlsby et al. 2019, arXiv 1902.00751"
    ),
    "bitfit": Method(
        "BitFit", BASED, "model_weights:BitFit", 2, "Ben Zaken et al. 2022, arXiv 2106.10199"
    ),
    "lora": Method("LoRA", BASED, "peft_methods:LoRA", 2, "Hu et al. 2021, arXiv 2106.09685"),
    "prompt-tuning": Method(
        "Prompt Tuning",
        BASED,
        "peft_methods:PromptTuning",
        2,
        "Lester et al. 2021, arXiv 2104.08691",
    ),
    "p-tuning-v2": Method(
        "P-Tuning v2", BASED, "peft_methods:PTuningV2", 2, "Liu et al. 2021, arXiv 2110.07602"
    ),
    "manual": Method(
        "Manual prompt", FREE, "manual:ManualPrompt", 1, "Schick & Schütze 2021, arXiv 2001.07676"
    ),
    "in-context": Method(
        "In-context", FREE, "in_context:InContext", 1, "Brown et al. 2020, arXiv 2005.14165"
    ),
    "feature-mlp": Method(
        "Feature-MLP", FREE, "features:FeatureMLP", 10, "Sun et al. 2022, arXiv 2201.03514"
    ),
    "feature-bilstm": Method(
        "Feature-BiLSTM", FREE, "features:FeatureBiLSTM", 5, "Sun et al. 2022, arXiv 2201.03514"
    ),
    "gap3": Method("GAP3", FREE, "gap3:GAP3", 50, "Zhao, Wang & Yang 2023, IJCAI"),
    "bbt": Method("BBT", FREE, "bbt:BBT", 40, "Sun et al. 2022, arXiv 2201.03514"),
    "bbtv2": Method("BBTv2", FREE, "bbtv2:BBTv2", 40, "Sun et al. 2022, arXiv 2205.11200"),
    "mezo": Method("MeZO (LoRA)", FREE, "mezo:MeZO", 50, "Malladi et al. 2023, arXiv 2305.17333"),
    "eggroll": Method(
        "EGGROLL", FREE, "eggroll:EGGROLL", 48, "Sarkar et al. 2025, arXiv 2511.16652"
    ),
    "c-lora": Method("C-LoRA", FREE, "lora:LayerwiseLora", 50, _PAPER, {"optimizer": "cma-es"}),
    "f-lora": Method("F-LoRA", FREE, "lora:LayerwiseLora", 50, _PAPER, {"optimizer": "lotfwa"}),
}
"""By the names that `compare` takes, in the order of its tables."""


def choose_methods(names: Sequence[str] | str) -> tuple[str, ...]:
    """Methods by name, in the order of `METHODS`.

    Args:
        names: Names in `METHODS`, or ``"all"``, ``"gradient-free"`` or ``"gradient-based"``.

    Raises:
        UserError: If a name is unknown.
    """
    names = [names] if isinstance(names, str) else names
    chosen: set[str] = set()
    for name in names:
        if name in ("all", FREE, BASED):
            chosen |= {key for key, method in METHODS.items() if name in ("all", method.kind)}
        elif name in METHODS:
            chosen.add(name)
        else:
            raise unknown("method", name, ["all", FREE, BASED, *METHODS])
    return tuple(name for name in METHODS if name in chosen)
