"""LoRA, prompt tuning and P-Tuning v2 as PEFT has them, trained with a gradient."""

from __future__ import annotations

from typing import Any

from integrations.batches import PromptBatch
from integrations.errors import UserError
from integrations.methods.gradient import GradientLearner, freeze
from integrations.methods.seeding import seeded
from integrations.methods.trial import Trial


class LoRA(GradientLearner):
    """Low-rank deltas of the targets are trained, with PEFT's modules.

    Hu et al. 2022 (arXiv 2106.09685), section 4.1. Rank, scale and learning rate are those of
    MeZO's comparison on 16 examples a class (Malladi et al. 2023, arXiv 2305.17333;
    ``medium_models/README.md``: rank 8, alpha 16, 1e-4, batches of 8), on the query and value
    projections. PEFT adapts whole modules: where one computes q, k and v (gpt2), all three.

    Args:
        trial: The model and the split.
        rank: Of the deltas.
        alpha: Deltas are scaled by alpha / rank.
        learning_rate: Of AdamW.
        batch_size: Examples in a step.
        weight_decay: Of AdamW.

    Raises:
        UserError: If PEFT is missing, or no gradient passes through the model's layers.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        learning_rate: float = 1e-4,
        batch_size: int = 8,
        weight_decay: float = 0.0,
    ) -> None:
        paths = [target.path for layer in trial.arch.targets for target in layer.values()]
        config = _peft("LoRA").LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.0,
            target_modules=list(dict.fromkeys(paths)),
            fan_in_fan_out=trial.arch.model.config.model_type == "gpt2",
        )
        model = _wrap(trial, config, "LoRA")
        super().__init__(
            trial,
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            learning_rate=learning_rate,
            batch_size=batch_size,
            weight_decay=weight_decay,
        )


class _VirtualTokens(GradientLearner):
    """Trains what PEFT puts before prompts, one vector a token or one a token and layer."""

    def __init__(
        self,
        trial: Trial,
        title: str,
        config: str,
        tokens: int,
        settings: dict[str, Any],
        **training: Any,
    ) -> None:
        kind = trial.arch.kind
        if kind == "seq2seq":
            raise UserError(f"{title} is for causal and masked models, not encoder-decoders.")
        # PEFT has no class for masked models; that for features calls them as they are.
        task = "CAUSAL_LM" if kind == "causal" else "FEATURE_EXTRACTION"
        settings = {"task_type": task, "num_virtual_tokens": tokens} | settings
        self._model = _wrap(trial, getattr(_peft(title), config)(**settings), title)
        tuned = self._model.prompt_encoder.parameters()
        super().__init__(trial, tuned, new_tokens=tokens, **training)

    def _run(self, batch: PromptBatch) -> Any:
        mask = None
        if self._arch.kind == "masked":
            # Without one, a masked model would take the mask to be as long as the prompt alone.
            mask = batch.real.long()
        return self._model(input_ids=batch.ids, attention_mask=mask, use_cache=False)


class PromptTuning(_VirtualTokens):
    """Embeddings of virtual tokens before the prompt are trained.

    Lester, Al-Rfou & Constant 2021 (arXiv 2104.08691), sections 2 and 3.2: they begin as those of
    words drawn from the vocabulary. 50 tokens are what BBT has (Sun et al. 2022, arXiv 2201.03514,
    Table 2), whose prompts begin the same way. The learning rate is ours: 0.3 in the authors' code
    belongs to Adafactor.

    Args:
        trial: The model and the split. Prompts are cut so that the virtual tokens fit as well.
        tokens: How many virtual tokens.
        learning_rate: Of AdamW.
        batch_size: Examples in a step.
        weight_decay: Of AdamW.

    Raises:
        UserError: If PEFT is missing, the model is an encoder-decoder, or no gradient passes
            through its layers.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        tokens: int = 50,
        learning_rate: float = 1e-2,
        batch_size: int = 8,
        weight_decay: float = 0.0,
    ) -> None:
        self.shift = tokens
        super().__init__(
            trial,
            "prompt tuning",
            "PromptTuningConfig",
            tokens,
            {"prompt_tuning_init": "SAMPLE_VOCAB"},
            learning_rate=learning_rate,
            batch_size=batch_size,
            weight_decay=weight_decay,
        )


class PTuningV2(_VirtualTokens):
    """Keys and values of virtual tokens are trained in every layer.

    Liu et al. 2022 (arXiv 2110.07602), section 3: prefix tuning without reparametrization. PEFT
    draws them from a standard normal distribution, as the authors' code does; the learning rate of
    5e-3 is that of its ``run_script/run_rte_roberta.sh``. 20 tokens because, by section 4.3, simple
    classification does best with fewer than 20 or so; that script has 128.

    Args:
        trial: The model and the split. Prompts are cut so that the virtual tokens fit as well.
        tokens: How many virtual tokens.
        learning_rate: Of AdamW.
        batch_size: Examples in a step.
        weight_decay: Of AdamW.

    Raises:
        UserError: If PEFT is missing, the model is an encoder-decoder, or no gradient passes
            through its layers.
    """

    def __init__(
        self,
        trial: Trial,
        *,
        tokens: int = 20,
        learning_rate: float = 5e-3,
        batch_size: int = 8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            trial,
            "P-Tuning v2",
            "PrefixTuningConfig",
            tokens,
            {"prefix_projection": False},
            learning_rate=learning_rate,
            batch_size=batch_size,
            weight_decay=weight_decay,
        )


def _peft(title: str) -> Any:
    """The package, imported when a method needs it."""
    try:
        import peft
    except ImportError:
        raise UserError(f"{title} needs the package peft; pip install peft.") from None
    return peft


def _wrap(trial: Trial, config: Any, title: str) -> Any:
    """The trial's model with PEFT's modules in it, drawn by its seed."""
    freeze(trial.arch)
    with seeded(trial.seed):
        return _peft(title).get_peft_model(trial.arch.model, config)
