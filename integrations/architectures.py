"""Where things are inside a model: one table row a family.

The rest of the package reaches a model only through `Architecture`, so a new family is one
row of `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain, pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from integrations.errors import UserError, unknown

Kind = Literal["causal", "masked", "seq2seq"]
AUTO_MODELS: dict[Kind, Any] = {
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}
TARGETS = ("q", "k", "v", "o")


class Fused(NamedTuple):
    """q, k and v computed by one module.

    Attributes:
        path: Path of the module inside a layer.
        layout: From a model's configuration, whose the module's output is: a word of the letters
            q, k and v, each of which stands for an equal share of the columns, in order. ``"qkv"``
            is three equal parts side by side, ``"qkvqkv"`` two heads with their own q, k and v,
            ``"qqqqkv"`` four query heads that share a key and a value head.
    """

    path: str
    layout: Callable[[Any], str]


@dataclass(frozen=True)
class Family:
    """Module paths of one model family, and where its layers differ from a plain decoder's.

    Attributes:
        layers: Path of the list of transformer layers, from the model with its language head; for
            an encoder-decoder the encoder's and the decoder's.
        targets: Path inside a layer of the projections q, k, v and o.
        head: Path of the module that turns last hidden states into logits. Its input is cut to
            the answer position. May depend on the configuration.
        mlp: Paths inside a layer of the first and the last module of the feed-forward part, which
            in the last layer runs at the answer position only.
        kind: Whether the model predicts the next token, a masked one, or with a decoder what its
            encoder finds masked.
        reserved_positions: Rows of the position table that no token gets.
        carries: Whether more than hidden states goes from layer to layer: what the first computes
            once (T5's position biases).
        after_first: Path of a module that changes what the first layer passes to the second, in
            models that have it (DeBERTa's convolution).
        reused: Targets whose module a layer also runs on something that all prompts share
            (DeBERTa's relative positions). A forward pass then has room for one candidate only.
        label_rows: Whether the head's last layer may compute the label words' logits only: it is
            linear, and nothing of the vocabulary's width is added to its output.
        settings: Configuration that a model is loaded with whatever its own says.
    """

    layers: str | tuple[str, str]
    targets: Mapping[str, str | Fused]
    head: str | Callable[[Any], str]
    mlp: tuple[str, str] | None = None
    kind: Kind = "causal"
    reserved_positions: int = 0
    carries: bool = False
    after_first: str | None = None
    reused: str = ""
    label_rows: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)


def _separate(prefix: str, q: str, k: str, v: str, o: str) -> dict[str, str | Fused]:
    return {t: f"{prefix}.{name}" for t, name in zip(TARGETS, (q, k, v, o), strict=True)}


def _fused(qkv: str, o: str, layout: Callable[[Any], str]) -> dict[str, str | Fused]:
    return {**dict.fromkeys("qkv", Fused(qkv, layout)), "o": o}


def _parts(config: Any) -> str:
    return "qkv"


def _grouped_parts(config: Any) -> str:
    heads, groups = int(config.num_attention_heads), int(config.num_key_value_heads)
    return "q" * heads + "k" * groups + "v" * groups


def _by_head(config: Any) -> str:
    return "qkv" * int(config.num_attention_heads)


def _falcon_layout(config: Any) -> str:
    heads = int(config.num_attention_heads)
    if config.new_decoder_architecture:
        groups = int(config.num_kv_heads)
        return ("q" * (heads // groups) + "kv") * groups
    return "q" * heads + "kv" if config.multi_query else _by_head(config)


def _deberta_head(config: Any) -> str:
    return "cls" if config.legacy else "lm_predictions"


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
    "gemma3_text": _LLAMA,
    "gemma3": replace(_LLAMA, layers="model.language_model.layers"),
    "smollm3": _LLAMA,
    "olmo2": _LLAMA,
    "phi": replace(_LLAMA, targets=_separate("self_attn", "q_proj", "k_proj", "v_proj", "dense")),
    "phi3": replace(
        _LLAMA, targets=_fused("self_attn.qkv_proj", "self_attn.o_proj", _grouped_parts)
    ),
    "gpt2": Family(
        layers="transformer.h",
        targets=_fused("attn.c_attn", "attn.c_proj", _parts),
        head="lm_head",
        mlp=("mlp", "mlp"),
    ),
    "gpt_neo": Family(
        layers="transformer.h",
        targets=_separate("attn.attention", "q_proj", "k_proj", "v_proj", "out_proj"),
        head="lm_head",
        mlp=("mlp", "mlp"),
    ),
    "gptj": Family(
        layers="transformer.h",
        targets=_separate("attn", "q_proj", "k_proj", "v_proj", "out_proj"),
        head="lm_head",
        mlp=("mlp", "mlp"),
    ),
    "gpt_neox": Family(
        layers="gpt_neox.layers",
        targets=_fused("attention.query_key_value", "attention.dense", _by_head),
        head="lm_head",
        mlp=("mlp", "mlp"),
    ),
    "opt": Family(
        layers="model.decoder.layers",
        targets=_separate("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
        head="lm_head",
    ),
    "bloom": Family(
        layers="transformer.h",
        targets=_fused("self_attention.query_key_value", "self_attention.dense", _by_head),
        head="lm_head",
        mlp=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ),
    "falcon": Family(
        layers="transformer.h",
        targets=_fused("self_attention.query_key_value", "self_attention.dense", _falcon_layout),
        head="lm_head",
        mlp=("mlp", "mlp"),
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
    "electra": Family(
        layers="electra.encoder.layer",
        targets=_BERT_TARGETS,
        head="generator_predictions",
        mlp=("intermediate", "output.dense"),
        kind="masked",
    ),
    "distilbert": Family(
        layers="distilbert.transformer.layer",
        targets=_separate("attention", "q_lin", "k_lin", "v_lin", "out_lin"),
        head="vocab_transform",
        mlp=("ffn", "ffn"),
        kind="masked",
    ),
    "deberta-v2": Family(
        layers="deberta.encoder.layer",
        targets=_separate(
            "attention", "self.query_proj", "self.key_proj", "self.value_proj", "output.dense"
        ),
        head=_deberta_head,
        mlp=("intermediate", "output.dense"),
        kind="masked",
        after_first="deberta.encoder.conv",
        reused="qk",
        label_rows=False,
        settings={"legacy": False},  # the published weights have the other head
    ),
    "modernbert": Family(
        layers="model.layers",
        targets=_fused("attn.Wqkv", "attn.Wo", _parts),
        head="head",
        mlp=("mlp", "mlp"),
        kind="masked",
    ),
    "t5": Family(
        layers=("encoder.block", "decoder.block"),
        targets=_separate("layer.0.SelfAttention", "q", "k", "v", "o"),
        head="lm_head",
        kind="seq2seq",
        carries=True,
    ),
    "bart": Family(
        layers=("model.encoder.layers", "model.decoder.layers"),
        targets=_separate("self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
        head="lm_head",
        mlp=("fc1", "fc2"),
        kind="seq2seq",
        label_rows=False,
    ),
}


@dataclass(frozen=True, eq=False)
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
        columns: Where the projection lies in the module's output, as an index of columns: a slice,
            or (o,) integers where heads of q, k and v take turns.
        reused: Whether the layer also runs the module on something that all prompts share.
    """

    name: str
    module: nn.Module
    path: str
    place: str
    in_features: int
    width: int
    out_features: int
    columns: slice | Tensor
    reused: bool = False

    def columns_on(self, device: torch.device) -> slice | Tensor:
        """The columns as an index of tensors on a device; they are where the module was."""
        return self.columns.to(device) if isinstance(self.columns, Tensor) else self.columns


@dataclass(frozen=True)
class Architecture:
    """A model seen through its family's row.

    Attributes:
        model: The model with its language head; never edited.
        family: The row.
        layers: The transformer layers, first to last; a decoder's after its encoder's.
        stacks: Which layers follow each other directly: all, or the encoder's and the decoder's.
        targets: For each layer, its targets by name.
        after_first: The module between the first layer and the second; None in most models.
        head: The module that turns hidden states into logits.
        tail: First and last module of each part of the last layer that works position by position;
            the answer position is all that is needed of them.
        output: The last linear layer of the head, one row a vocabulary entry; None if it cannot be
            cut to the label words' rows.
    """

    model: PreTrainedModel
    family: Family
    layers: tuple[nn.Module, ...]
    stacks: tuple[range, ...]
    targets: tuple[dict[str, Target], ...]
    after_first: nn.Module | None
    head: nn.Module
    tail: tuple[tuple[nn.Module, nn.Module], ...]
    output: nn.Module | None

    @property
    def kind(self) -> Kind:
        """``"causal"``, ``"masked"`` or ``"seq2seq"``."""
        return self.family.kind

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
        model: A model with a language head (``...ForCausalLM``, ``...ForMaskedLM`` or
            ``...ForConditionalGeneration``).
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
    paths = (family.layers,) if isinstance(family.layers, str) else family.layers
    head_path = family.head if isinstance(family.head, str) else family.head(model.config)
    output: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    try:
        stacks = [tuple(model.get_submodule(path).children()) for path in paths]
        head = model.get_submodule(head_path)
    except AttributeError:
        output = None
    if output is None:
        raise UserError(
            f"{type(model).__name__} has no language head to read label words from; load the "
            f"model with {AUTO_MODELS[family.kind].__name__}."
        )
    bounds = accumulate(map(len, stacks), initial=0)
    layers = tuple(layer for stack in stacks for layer in stack)
    modules = dict(model.named_modules())
    return Architecture(
        model=model,
        family=family,
        layers=layers,
        stacks=tuple(range(start, stop) for start, stop in pairwise(bounds)),
        targets=tuple(
            {t: _target(t, layer, f"{path}.{i}", family, model.config) for t in targets}
            for path, stack in zip(paths, stacks, strict=True)
            for i, layer in enumerate(stack)
        ),
        after_first=modules.get(family.after_first) if family.after_first else None,
        head=head,
        tail=_tail(family, layers[-1]),
        output=output if family.label_rows else None,
    )


def embedding_scale(arch: Architecture) -> float:
    """What word embeddings are multiplied with on their way to the first layer (Gemma, BART)."""
    return float(getattr(arch.model.get_input_embeddings(), "embed_scale", 1.0))


def _tail(family: Family, last: nn.Module) -> tuple[tuple[nn.Module, nn.Module], ...]:
    o: Any = family.targets["o"]
    parts = [(o, o), *([] if family.mlp is None else [family.mlp])]
    return tuple((last.get_submodule(first), last.get_submodule(end)) for first, end in parts)


def _target(name: str, layer: nn.Module, layer_path: str, family: Family, config: Any) -> Target:
    place = family.targets[name]
    path = place.path if isinstance(place, Fused) else place
    module = layer.get_submodule(path)
    in_features, width = _features(module)
    columns: slice | Tensor = slice(None)
    out_features = width
    if isinstance(place, Fused):
        layout = place.layout(config)
        share = width // len(layout)
        columns = _columns(layout, name, share)
        if isinstance(columns, Tensor):  # where the deltas are, as each pass reads them
            kept = chain(module.parameters(), module.buffers())
            places = (tensor.device for tensor in kept if not tensor.is_meta)  # or offloaded
            columns = columns.to(next(places, columns.device))
        out_features = share * layout.count(name)
    return Target(
        name=name,
        module=module,
        path=f"{layer_path}.{path}",
        place=path,
        in_features=in_features,
        width=width,
        out_features=out_features,
        columns=columns,
        reused=name in family.reused,
    )


def _columns(layout: str, name: str, share: int) -> slice | Tensor:
    """Columns of a projection in a fused module's output, each letter having ``share`` of them."""
    owned = [i for i, letter in enumerate(layout) if letter == name]
    if owned[-1] - owned[0] + 1 == len(owned):
        return slice(owned[0] * share, (owned[-1] + 1) * share)
    return (share * torch.tensor(owned)[:, None] + torch.arange(share)).flatten()


def _features(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    # Quantized linear layers pack their weights, so the attributes are asked, not the shape.
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
