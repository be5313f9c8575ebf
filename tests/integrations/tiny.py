"""Tiny random models of every family, and random prompts and deltas for them."""

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from integrations.adapter import Adapter
from integrations.prompts import Prompt
from lora_kernels import Factors

HIDDEN, LAYERS, VOCABULARY, POSITIONS = 32, 4, 300, 64
SPECIAL = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[EOS]"]
PAD, MASK = SPECIAL.index("[PAD]"), SPECIAL.index("[MASK]")
LABEL_IDS = (20, 10, 30)  # label words of random prompts

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
_GROUPED = _COMMON | {"num_key_value_heads": 2}
_WIDE = _GROUPED | {"head_dim": 16}  # the heads together are wider than the hidden states
CONFIGS = {
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _WIDE,
    "gemma": _WIDE,
    "gemma2": _WIDE,
    "smollm3": _GROUPED,
    "olmo2": _GROUPED,
    "gpt2": _COMMON,
    "opt": _COMMON | {"ffn_dim": 64, "init_std": 0.3, "word_embed_proj_dim": HIDDEN},
    "bert": _COMMON,
    "roberta": _COMMON,
}
MASKED = ("bert", "roberta")

_LAYER_LISTS = {
    "gpt2": "transformer.h",
    "opt": "model.decoder.layers",
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
}
_LLAMA = {target: f"self_attn.{target}_proj" for target in "qkvo"}
_BERT = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
}
_PROJECTIONS = {
    "gpt2": dict.fromkeys("qkv", "attn.c_attn") | {"o": "attn.c_proj"},
    "opt": _LLAMA | {"o": "self_attn.out_proj"},
    "bert": _BERT,
    "roberta": _BERT,
}


def kind_of(family):
    return "masked" if family in MASKED else "causal"


def build_model(family, seed=0, **settings):
    """A random model in evaluation mode; the same seed gives the same weights."""
    config = AutoConfig.for_model(family, **CONFIGS[family] | settings)
    auto = AutoModelForMaskedLM if family in MASKED else AutoModelForCausalLM
    torch.manual_seed(seed)
    model = auto.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms, which start as zeros and ones
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def projection_names(model):
    """Names inside a layer of the modules that compute q, k, v and o; gpt2's q, k, v are one."""
    return _PROJECTIONS.get(model.config.model_type, _LLAMA)


def projection(model, layer, target):
    """The module that computes a projection, found by its name."""
    layers = _LAYER_LISTS.get(model.config.model_type, "model.layers")
    return model.get_submodule(f"{layers}.{layer}.{projection_names(model)[target]}")


def columns(model, target):
    """Where a projection lies in its module's output."""
    if model.config.model_type != "gpt2" or target == "o":
        return slice(None)
    start = HIDDEN * "qkv".index(target)
    return slice(start, start + HIDDEN)


def random_prompts(kind, lengths=(9, 5, 12, 5, 7), seed=0):
    """Prompts of random tokens; those for masked models have a mask somewhere."""
    rng = np.random.default_rng(seed)
    prompts = []
    for length in lengths:
        ids, answer = rng.integers(len(SPECIAL), VOCABULARY, size=length), length - 1
        if kind == "masked":
            answer = int(rng.integers(length))
            ids[answer] = MASK
        prompts.append(Prompt(tuple(ids.tolist()), answer, int(rng.integers(len(LABEL_IDS)))))
    return prompts


def random_factors(arch, layer, count, rank=4, seed=0):
    """Factors of candidates whose deltas are about half as strong as their inputs."""
    generator = torch.Generator().manual_seed(1000 * seed + layer)

    def normal(features, std):
        return std * torch.randn(count, rank, features, generator=generator)

    return {
        name: Factors(
            normal(target.in_features, target.in_features**-0.5),
            normal(target.out_features, 0.5 * rank**-0.5),
        )
        for name, target in arch.targets[layer].items()
    }


def random_adapter(arch, layers=None, rank=4, seed=0):
    """Deltas in place in some layers; None: in all."""
    adapter = Adapter(arch)
    for layer in range(len(arch.layers)) if layers is None else layers:
        adapter.place(layer, random_factors(arch, layer, 1, rank, seed))
    return adapter


@torch.no_grad()
def label_logits(model, prompts, label_ids=LABEL_IDS):
    """Label logits (N, C) of a model that is called on one prompt after the other."""
    outputs = [
        model(input_ids=torch.tensor([prompt.ids])).logits[0, prompt.answer] for prompt in prompts
    ]
    return torch.stack(outputs)[:, list(label_ids)]
