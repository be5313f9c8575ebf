"""Where things are inside a model: one table row a family.

The rest of the package reaches a model only through :class:`Architecture`, so a new family is one
row of :data:`FAMILIES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from integrations.errors import UserError, unknown

Kind = Literal["causal", "masked"]
TARGETS = ("q", "k", "v", "o")


class Fused(NamedTuple):
    """One of several projections computed by a single module: equal parts, side by side."""

    path: str
    part: int
    parts: int


@dataclass(frozen=True)
class Family:
    """Module paths of one model family.

    Attributes:
        layers: Path of the list of transformer layers, from the model with its language head.
        targets: Path inside a layer of the projections q, k, v and o.
        head: Path of the module that turns last hidden states into logits. Its input is cut to
            the answer position.
        mlp: Paths inside a layer of the first and the last module of the feed-forward part, which
            in the last layer runs at the answer position only.
        kind: Whether the model predicts the next token or a masked one.
        reserved_positions: Rows of the position table that no token gets.
    """

    layers: str
    targets: dict[str, str | Fused]
    head: str
    mlp: tuple[str, str] | None = None
    kind: Kind = "causal"
    reserved_positions: int = 0


def _separate(prefix: str, q: str, k: str, v: str, o: str) -> dict[str, str | Fused]:
    return {t: f"{prefix}.{name}" for t, name in zip(TARGETS, (q, k, v, o), strict=True)}


_LLAMA = Family(
    layers="model.layers",
    targets=_separate("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),
    head="lm_head",
    mlp=("mlp", "mlp"),
)
_BERT_TARGETS = _separate("attention", "self.query", "self.key", "self.value", "output.dense")

FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "smollm3": _LLAMA,
    "olmo2": _LLAMA,
    "gpt2": Family(
        layers="transformer.h",
        targets={
            **{t: Fused("attn.c_attn", i, 3) for i, t in enumerate("qkv")},
            "o": "attn.c_proj",
        },
        head="lm_head",
        mlp=("mlp", "mlp"),
    ),
    "opt": Family(
        layers="model.decoder.layers",
        targets=_separate("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
        head="lm_head",
    ),
    "bert": Family(
        layers="bert.encoder.layer",
        targets=_BERT_TARGETS,
        head="cls",
        mlp=("intermediate", "output.dense"),
        kind="masked",
    ),
    "roberta": Family(
        layers="roberta.encoder.layer",
        targets=_BERT_TARGETS,
        head="lm_head",
        mlp=("intermediate", "output.dense"),
        kind="masked",
        reserved_positions=2,
    ),
}


@dataclass(frozen=True)
class Target:
    """One projection of one layer: the module that computes it and its columns in the output.

    Attributes:
        name: ``"q"``, ``"k"``, ``"v"`` or ``"o"``.
        module: The module whose output the delta is added to.
        path: The module's full name in the model, as PEFT names it.
        place: The module's name inside its layer.
        in_features: Width h of the module's input.
        width: Width of the module's output.
        out_features: Width o of this projection.
        columns: Where the projection lies in the module's output; None if it is all of it.
    """

    name: str
    module: nn.Module
    path: str
    place: str
    in_features: int
    width: int
    out_features: int
    columns: tuple[int, int] | None = None


@dataclass(frozen=True)
class Architecture:
    """A model seen through its family's row.

    Attributes:
        model: The model with its language head; never edited.
        kind: ``"causal"`` or ``"masked"``.
        layers: The transformer layers, first to last.
        targets: For each layer, its targets by name.
        head: The module that turns hidden states into logits.
        tail: First and last module of each part of the last layer that works position by position;
            the answer position is all that is needed of them.
        output: The last linear layer of the head, one row a vocabulary entry.
        first_position: What the model calls the place of a prompt's first token.
    """

    model: PreTrainedModel
    kind: Kind
    layers: tuple[nn.Module, ...]
    targets: tuple[dict[str, Target], ...]
    head: nn.Module
    tail: tuple[tuple[nn.Module, nn.Module], ...]
    output: nn.Module
    first_position: int

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states between layers."""
        return int(self.model.config.get_text_config().hidden_size)


def family_of(model_type: str) -> Family:
    """The table's row for ``config.model_type``.

    Raises:
        UserError: If there is none; says how to add it.
    """
    if model_type not in FAMILIES:
        raise UserError(
            f"model family {model_type!r} is not supported; add a row {model_type!r} to FAMILIES "
            f"in integrations/architectures.py. Known: {', '.join(sorted(FAMILIES))}."
        )
    return FAMILIES[model_type]


def describe(model: PreTrainedModel, targets: tuple[str, ...] = ("q", "v")) -> Architecture:
    """Find a model's layers, target projections and head.

    Args:
        model: A model with a language head (``...ForCausalLM`` or ``...ForMaskedLM``).
        targets: Which of q, k, v, o get a delta.

    Raises:
        UserError: If the family is not in the table, the model has no language head, or a target
            is unknown or named twice.
    """
    if not targets or len(set(targets)) != len(targets):
        raise UserError(f"targets must name one or more projections once each; got {targets!r}.")
    family = family_of(model.config.model_type)
    for target in targets:
        if target not in family.targets:
            raise unknown("target", target, family.targets)
    output: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    try:
        layers = tuple(model.get_submodule(family.layers).children())
        head = model.get_submodule(family.head)
    except AttributeError:
        output = None
    if output is None:
        wanted = "ForCausalLM" if family.kind == "causal" else "ForMaskedLM"
        raise UserError(
            f"{type(model).__name__} has no language head to read label words from; load the "
            f"model with AutoModel{wanted}."
        )
    return Architecture(
        model=model,
        kind=family.kind,
        layers=layers,
        targets=tuple(
            {t: _target(t, layer, f"{family.layers}.{i}", family.targets[t]) for t in targets}
            for i, layer in enumerate(layers)
        ),
        head=head,
        tail=_tail(family, layers[-1]),
        output=output,
        first_position=family.reserved_positions,
    )


def _tail(family: Family, last: nn.Module) -> tuple[tuple[nn.Module, nn.Module], ...]:
    o = family.targets["o"]
    parts = [] if isinstance(o, Fused) else [(o, o)]
    if family.mlp is not None:
        parts.append(family.mlp)
    return tuple((last.get_submodule(first), last.get_submodule(end)) for first, end in parts)


def _target(name: str, layer: nn.Module, layer_path: str, place: str | Fused) -> Target:
    fused = place if isinstance(place, Fused) else Fused(place, 0, 1)
    module = layer.get_submodule(fused.path)
    in_features, width = _features(module)
    out_features = width // fused.parts
    start = fused.part * out_features
    return Target(
        name=name,
        module=module,
        path=f"{layer_path}.{fused.path}",
        place=fused.path,
        in_features=in_features,
        width=width,
        out_features=out_features,
        columns=(start, start + out_features) if fused.parts > 1 else None,
    )


def _features(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    # Quantized linear layers pack their weights, so the attributes are asked, not the shape.
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
