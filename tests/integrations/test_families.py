"""Every row of the family table, held against PEFT on a tiny random model of the family."""

import numpy as np
import pytest
import torch
from peft_reference import peft_losses
from tiny import (
    CONFIGS,
    HIDDEN,
    LABEL_IDS,
    LAYERS,
    PAD,
    VARIANTS,
    build_model,
    columns,
    kind_of,
    projection,
    random_adapter,
    random_factors,
    random_prompts,
)
from transformers import AutoModel, StableLmConfig, StableLmForCausalLM

from integrations import PopulationEvaluator, UserError
from integrations.architectures import FAMILIES, describe
from integrations.metrics import cross_entropy

ALL = ("q", "k", "v", "o")
WIDE = ("qwen3", "gemma", "gemma2", "gemma3_text", "t5")  # heads wider than the hidden states


def test_every_family_is_tested():
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize("family", [*FAMILIES, *VARIANTS])
def test_layers_targets_and_shapes(family):
    model = build_model(family)
    arch = describe(model, ALL)
    heads, groups = heads_of(model)
    shapes = {"q": (HIDDEN, heads), "k": (HIDDEN, groups), "v": (HIDDEN, groups)}
    shapes["o"] = (heads, HIDDEN)
    assert (len(arch.layers), len(arch.targets)) == (LAYERS, LAYERS)
    assert arch.kind == kind_of(model.config.model_type)
    for layer, targets in enumerate(arch.targets):
        assert list(targets) == list(ALL)
        for name, target in targets.items():
            assert target.module is projection(model, layer, name)
            assert target.module is model.get_submodule(target.path)
            assert target.module is arch.layers[layer].get_submodule(target.place)
            assert (target.in_features, target.out_features) == shapes[name]
            every = torch.arange(target.width)
            assert torch.equal(every[target.columns], every[columns(model, name)])


def heads_of(model):
    """Widths of q and of k and v."""
    config = getattr(model.config, "text_config", model.config)
    head = config.head_dim if config.model_type in WIDE else HIDDEN // 4
    groups = getattr(config, "num_key_value_heads", None) or 4
    if config.model_type == "falcon":
        one = config.multi_query and not config.new_decoder_architecture
        groups = 1 if one else config.num_kv_heads
    return 4 * head, groups * head


CASES = [(family, ("q", "v"), 4) for family in FAMILIES]
CASES += [(family, ("q", "v"), 1) for family in ("llama", "gpt2", "bloom", "roberta", "t5")]
CASES += [(family, ALL, 4) for family in (*FAMILIES, *VARIANTS)]


@pytest.mark.parametrize(("family", "targets", "rank"), CASES)
def test_losses_are_those_of_peft_one_candidate_and_prompt_at_a_time(family, targets, rank):
    arch = describe(build_model(family), targets)
    prompts = random_prompts(arch.kind)
    # The candidates' own layer has deltas in place as well, which they replace.
    adapter = random_adapter(arch, [0, 2, 3], rank)
    evaluator = PopulationEvaluator(arch, prompts, LABEL_IDS, pad_id=PAD, loss=cross_entropy)
    for layer in (1, LAYERS // 2, LAYERS - 1):
        candidates = random_factors(arch, layer, 6, rank, seed=1)
        losses = evaluator.evaluate(layer, candidates, adapter)
        expected = peft_losses(arch, layer, candidates, adapter, prompts)
        assert losses == pytest.approx(expected, abs=1e-5)
        assert np.ptp(expected) > 0.02  # the candidates differ, so the comparison says something


@pytest.mark.parametrize("targets", [(), ("q", "q"), ("q", "gate")])
def test_targets_must_be_known_and_named_once(targets):
    with pytest.raises(UserError, match="target"):
        describe(build_model("llama"), targets)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_its_language_head_says_which_class_has_one(family):
    wanted = {"masked": "MaskedLM", "causal": "CausalLM", "seq2seq": "Seq2SeqLM"}[kind_of(family)]
    bare = AutoModel.from_config(build_model(family).config)
    with pytest.raises(UserError, match=f"Model has no language head.*AutoModelFor{wanted}"):
        describe(bare)


def test_an_unknown_family_says_which_row_to_add():
    model = StableLmForCausalLM(StableLmConfig(vocab_size=9, hidden_size=64, num_hidden_layers=1))
    with pytest.raises(
        UserError, match=r"add a row 'stablelm' to FAMILIES.*Known: bart, .*roberta"
    ):
        describe(model)


def test_columns_are_found_where_weights_are_offloaded():
    """Their modules hold tensors without data then; columns are data of our own."""
    model = build_model("bloom")
    for layer in model.transformer.h:
        layer.self_attention.query_key_value.to("meta")
    for targets in describe(model).targets:
        assert {target.columns.device.type for target in targets.values()} == {"cpu"}
