"""Tiny random models of every family, and random prompts and deltas for them."""

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)

from integrations.adapter import Adapter
from integrations.metrics import cross_entropy
from integrations.population import PopulationEvaluator
from integrations.prompts import Prompt
from lora_kernels import Factors

HIDDEN, LAYERS, VOCABULARY, POSITIONS = 32, 4, 300, 64
SPECIAL = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[EOS]"]
PAD, MASK = SPECIAL.index("[PAD]"), SPECIAL.index("[MASK]")
LABEL_IDS = (20, 10, 30)  # label words of random prompts
LENGTHS = (9, 5, 12, 5, 7, 20, 6, 30)  # of what `make_evaluator` evaluates by default

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.3,
    "bos_token_id": SPECIAL.index("[BOS]"),
    "eos_token_id": SPECIAL.index("[EOS]"),
    "pad_token_id": PAD,
}
_NO_TABLE = {name: size for name, size in _COMMON.items() if name != "max_position_embeddings"}
_GROUPED = _COMMON | {"num_key_value_heads": 2}
_WIDE = _GROUPED | {"head_dim": 16}  # the heads together are wider than the hidden states
_TWO_MASKS = {"layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)}
_GEMMA3 = _WIDE | _TWO_MASKS | {"sliding_window": 4}
_DEBERTA = _COMMON | {
    "relative_attention": True,
    "position_buckets": 4,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "type_vocab_size": 0,
    "legacy": False,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
# The encoder and the decoder have half of the layers each.
_T5 = _NO_TABLE | {
    "num_hidden_layers": LAYERS // 2,
    "num_decoder_layers": LAYERS // 2,
    "d_kv": 16,
    "d_ff": 64,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "decoder_start_token_id": PAD,
}
_BART = _COMMON | {
    "num_hidden_layers": LAYERS // 2,
    "decoder_layers": LAYERS // 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "init_std": 0.3,
}
CONFIGS = {
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _WIDE,
    "gemma": _WIDE,
    "gemma2": _WIDE,
    "gemma3_text": _GEMMA3,
    "gemma3": {"text_config": _GEMMA3, "vision_config": _VISION, "mm_tokens_per_image": 4},
    "smollm3": _GROUPED,
    "olmo2": _GROUPED,
    "phi": _GROUPED,
    "phi3": _GROUPED,
    "gpt2": _COMMON,
    "gpt_neo": _COMMON | {"attention_types": [[["global", "local"], 2]], "window_size": 3},
    "gptj": _COMMON | {"rotary_dim": 4},
    "gpt_neox": _COMMON,
    "opt": _COMMON | {"ffn_dim": 64, "init_std": 0.3, "word_embed_proj_dim": HIDDEN},
    "bloom": _NO_TABLE,
    "falcon": _COMMON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "bert": _COMMON,
    "roberta": _COMMON,
    "electra": _COMMON | {"embedding_size": 16},
    "distilbert": _COMMON | {"hidden_dim": 64},
    "deberta-v2": _DEBERTA,
    "modernbert": _COMMON
    | _TWO_MASKS
    | {"local_attention": 6, "cls_token_id": 2, "sep_token_id": 3},
    "t5": _T5,
    "bart": _BART,
}
# Models of a family that are built otherwise.
VARIANTS = {
    "falcon, one key and value head": ("falcon", {"new_decoder_architecture": False}),
    "falcon, all heads, alibi": (
        "falcon",
        {
            "new_decoder_architecture": False,
            "num_kv_heads": 4,
            "multi_query": False,
            "parallel_attn": False,
            "alibi": True,
        },
    ),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "bloom, residual after norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "deberta-v2, convolution, own position keys": (
        "deberta-v2",
        {"conv_kernel_size": 3, "share_att_key": False},
    ),
    "deberta-v2, legacy head": ("deberta-v2", {"legacy": True}),
    "t5, gated": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
}
MASKED = ("bert", "roberta", "electra", "distilbert", "deberta-v2", "modernbert")
SEQ2SEQ = ("t5", "bart")
FUSED = ("gpt2", "phi3", "gpt_neox", "bloom", "falcon", "modernbert")  # q, k and v in one module

_LAYER_LISTS = {
    "gemma3": "model.language_model.layers",
    "gpt2": "transformer.h",
    "gpt_neo": "transformer.h",
    "gptj": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "bloom": "transformer.h",
    "falcon": "transformer.h",
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "electra": "electra.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "deberta-v2": "deberta.encoder.layer",
}
_LLAMA = {target: f"self_attn.{target}_proj" for target in "qkvo"}
_BERT = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
}
_PROJECTIONS = {
    "phi": _LLAMA | {"o": "self_attn.dense"},
    "phi3": dict.fromkeys("qkv", "self_attn.qkv_proj") | {"o": "self_attn.o_proj"},
    "gpt2": dict.fromkeys("qkv", "attn.c_attn") | {"o": "attn.c_proj"},
    "gpt_neo": {t: f"attn.attention.{t}_proj" for t in "qkv"} | {"o": "attn.attention.out_proj"},
    "gptj": {t: f"attn.{t}_proj" for t in "qkv"} | {"o": "attn.out_proj"},
    "gpt_neox": dict.fromkeys("qkv", "attention.query_key_value") | {"o": "attention.dense"},
    "opt": _LLAMA | {"o": "self_attn.out_proj"},
    "bloom": dict.fromkeys("qkv", "self_attention.query_key_value") | {"o": "self_attention.dense"},
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT,
    "distilbert": {t: f"attention.{t}_lin" for t in "qkv"} | {"o": "attention.out_lin"},
    "deberta-v2": {
        "q": "attention.self.query_proj",
        "k": "attention.self.key_proj",
        "v": "attention.self.value_proj",
        "o": "attention.output.dense",
    },
    "modernbert": dict.fromkeys("qkv", "attn.Wqkv") | {"o": "attn.Wo"},
    "t5": {target: f"layer.0.SelfAttention.{target}" for target in "qkvo"},
    "bart": _LLAMA | {"o": "self_attn.out_proj"},
}
_PROJECTIONS["falcon"] = _PROJECTIONS["bloom"]


def kind_of(family):
    return "masked" if family in MASKED else "seq2seq" if family in SEQ2SEQ else "causal"


def build_model(family, seed=0, **settings):
    """A random model in evaluation mode; the same seed gives the same weights."""
    if family in VARIANTS:
        family, others = VARIANTS[family]
        settings = others | settings
    config = AutoConfig.for_model(family, **CONFIGS[family] | settings)
    autos = {"masked": AutoModelForMaskedLM, "seq2seq": AutoModelForSeq2SeqLM}
    torch.manual_seed(seed)
    model = autos.get(kind_of(family), AutoModelForCausalLM).from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms, which start as zeros and ones
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def projection_names(model):
    """Names inside a layer of the modules that compute q, k, v and o; some compute several."""
    return _PROJECTIONS.get(model.config.model_type, _LLAMA)


def projection(model, layer, target):
    """The module that computes a projection, found by its name."""
    family = model.config.model_type
    if family in SEQ2SEQ:
        stack = "encoder" if layer < LAYERS // 2 else "decoder"
        layers, layer = f"{'model.' * (family == 'bart')}{stack}.", layer % (LAYERS // 2)
        layers += "block" if family == "t5" else "layers"
    else:
        layers = _LAYER_LISTS.get(family, "model.layers")
    return model.get_submodule(f"{layers}.{layer}.{projection_names(model)[target]}")


def columns(model, target):
    """Which outputs of its module are a projection's: the model's own reshaping, of their numbers.

    What comes back indexes the columns.
    """
    config, family = model.config, model.config.model_type
    names = projection_names(model)
    if target == "o" or names["q"] != names["k"]:
        return slice(None)
    every = torch.arange(projection(model, 0, "q").weight.numel() // HIDDEN)
    head = HIDDEN // 4
    if family in ("gpt2", "modernbert"):
        q, k, v = every.view(3, HIDDEN)
    elif family == "phi3":
        q, k, v = every.split([HIDDEN, HIDDEN // 2, HIDDEN // 2])
    elif family == "falcon" and config.new_decoder_architecture:
        groups = every.view(2, 4, head)
        q, k, v = groups[:, :-2], groups[:, -2], groups[:, -1]
    elif family == "falcon" and config.multi_query:
        q, k, v = every.split([HIDDEN, head, head])
    else:
        q, k, v = every.view(4, 3, head).unbind(1)
    return {"q": q, "k": k, "v": v}[target].flatten()


def random_prompts(kind, lengths=(9, 5, 12, 5, 7), seed=0):
    """Prompts of random tokens; those for masked models have a mask somewhere.

    A decoder is given the text up to the mask.
    """
    rng = np.random.default_rng(seed)
    prompts = []
    for length in lengths:
        ids, answer = rng.integers(len(SPECIAL), VOCABULARY, size=length), length - 1
        if kind != "causal":
            answer = int(rng.integers(length))
            ids[answer] = MASK
        label, ids = int(rng.integers(len(LABEL_IDS))), tuple(ids.tolist())
        decoder_ids = (PAD, *ids[:answer]) if kind == "seq2seq" else ()
        prompts.append(Prompt(ids, answer, label, decoder_ids))
    return prompts


def random_factors(arch, layer, count, rank=4, seed=0):
    """Factors of candidates whose deltas are about half as strong as their inputs.

    The same numbers in every type and on every device, which are the model's.
    """
    generator = torch.Generator().manual_seed(1000 * seed + layer)

    def normal(features, std):
        return std * torch.randn(count, rank, features, generator=generator)

    return {
        name: Factors(
            normal(target.in_features, target.in_features**-0.5),
            normal(target.out_features, 0.5 * rank**-0.5),
        ).to(arch.model.device, arch.model.dtype)
        for name, target in arch.targets[layer].items()
    }


def random_adapter(arch, layers=None, rank=4, seed=0):
    """Deltas in place in some layers; None: in all."""
    adapter = Adapter(arch)
    for layer in range(len(arch.layers)) if layers is None else layers:
        adapter.place(layer, random_factors(arch, layer, 1, rank, seed))
    return adapter


def make_evaluator(arch, lengths=LENGTHS, **settings):
    """An evaluator of prompts of some lengths, mixed by default."""
    settings = {"pad_id": PAD, "loss": cross_entropy} | settings
    return PopulationEvaluator(arch, random_prompts(arch.kind, lengths), LABEL_IDS, **settings)


def inputs_of(prompt):
    """What a model is called with for one prompt."""
    inputs = {"input_ids": torch.tensor([prompt.ids])}
    if prompt.decoder_ids:
        inputs["decoder_input_ids"] = torch.tensor([prompt.decoder_ids])
    return inputs


@torch.no_grad()
def label_logits(model, prompts, label_ids=LABEL_IDS):
    """Label logits (N, C) of a model that is called on one prompt after the other."""
    outputs = [model(**inputs_of(prompt)).logits[0, prompt.answer] for prompt in prompts]
    return torch.stack(outputs)[:, list(label_ids)]
