"""Adapters on disk: what we save PEFT loads, and what PEFT saves we load."""

import copy
import json

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    FUSED,
    LABEL_IDS,
    LAYERS,
    PAD,
    VARIANTS,
    build_model,
    kind_of,
    label_logits,
    projection_names,
    random_adapter,
    random_prompts,
)

from integrations import PopulationEvaluator, UserError
from integrations.adapter import Adapter
from integrations.architectures import FAMILIES, describe
from integrations.metrics import cross_entropy
from integrations.peft_format import CONFIG, WEIGHTS, load_adapter, save_adapter

ALL = ("q", "k", "v", "o")


def logits_of(arch, adapter):
    prompts = random_prompts(arch.kind)
    evaluator = PopulationEvaluator(arch, prompts, LABEL_IDS, pad_id=PAD, loss=cross_entropy)
    return evaluator.logits(adapter)


def logits_in_peft(model, folder):
    tuned = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    return label_logits(tuned, random_prompts(kind_of(model.config.model_type))).numpy()


def deltas_of(adapter):
    """Every delta of the weights as one matrix, by layer and target."""
    return {
        (layer, name): (f.A[0].mT @ f.B[0]).numpy()
        for layer, factors in enumerate(adapter.factors)
        for name, f in (factors or {}).items()
    }


# -- ours in PEFT ----------------------------------------------------------------------------------

CASES = [(family, ("q", "v")) for family in FAMILIES]
CASES += [(family, ALL) for family in ("qwen3", "bert", "t5", *FUSED, *VARIANTS)]
CASES += [("gpt2", ("o", "q", "v")), ("gpt2", ("v",)), ("llama", ("o",))]


@pytest.mark.parametrize(("family", "targets"), CASES)
def test_peft_loads_what_we_save_and_answers_alike(family, targets, tmp_path, recwarn):
    model = build_model(family)
    arch = describe(model, targets)
    adapter = random_adapter(arch, [0, 1, LAYERS - 1])
    save_adapter(adapter, tmp_path / "new" / "folder", rank=4)
    in_peft = logits_in_peft(model, tmp_path / "new" / "folder")
    assert in_peft == pytest.approx(logits_of(arch, adapter), abs=1e-4)
    assert np.abs(in_peft - logits_of(arch, Adapter(arch))).max() > 0.1
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "new" / "folder")
    merged = merged.merge_and_unload().eval()
    assert not any(isinstance(module, peft.tuners.lora.LoraLayer) for module in merged.modules())
    prompts = random_prompts(arch.kind)
    assert label_logits(merged, prompts).numpy() == pytest.approx(in_peft, abs=1e-4)
    complaints = [str(w.message) for w in recwarn if "adapter" in str(w.message).lower()]
    assert not complaints  # PEFT warns of missing and unexpected keys


@pytest.mark.parametrize(("family", "targets"), CASES)
def test_we_load_what_we_save(family, targets, tmp_path):
    arch = describe(build_model(family), targets)
    adapter = random_adapter(arch, [0, 1, LAYERS - 1])
    save_adapter(adapter, tmp_path, rank=4)
    found = deltas_of(load_adapter(describe(arch.model, ALL), tmp_path))
    expected = deltas_of(adapter)
    assert found.keys() == expected.keys()
    for key, delta in expected.items():
        assert found[key] == pytest.approx(delta, abs=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_of_a_fused_projection_each_target_gets_its_own_rows(family, tmp_path):
    arch = describe(build_model(family))
    save_adapter(random_adapter(arch), tmp_path, rank=4)
    for factors in load_adapter(arch, tmp_path).factors:
        assert {f.rank for f in factors.values()} == {4}


def test_an_adapter_without_deltas(tmp_path):
    arch = describe(build_model("llama"))
    save_adapter(Adapter(arch), tmp_path, rank=4)
    assert logits_in_peft(arch.model, tmp_path) == pytest.approx(
        logits_of(arch, Adapter(arch)), abs=1e-5
    )
    assert load_adapter(arch, tmp_path).factors == [None] * LAYERS


def test_a_model_in_half_precision_gets_and_takes_its_deltas_in_it(tmp_path):
    arch = describe(build_model("llama").to(torch.bfloat16))
    save_adapter(random_adapter(arch), tmp_path, rank=4)
    loaded = load_adapter(arch, tmp_path)
    assert {f.A.dtype for factors in loaded.factors for f in factors.values()} == {torch.bfloat16}
    assert {t.dtype for t in load_file(tmp_path / WEIGHTS).values()} == {torch.float32}


def test_saving_again_replaces_and_leaves_nothing_else(tmp_path):
    arch = describe(build_model("llama"))
    first, second = random_adapter(arch), random_adapter(arch, seed=1)
    save_adapter(first, tmp_path, rank=4)
    save_adapter(second, tmp_path, rank=4)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG, WEIGHTS}
    found, expected = deltas_of(load_adapter(arch, tmp_path)), deltas_of(second)
    assert all(np.allclose(found[key], expected[key]) for key in expected)


# -- PEFT's in ours --------------------------------------------------------------------------------


SETTINGS = [(family, {"lora_alpha": 16}) for family in FAMILIES]
SETTINGS += [(family, {}) for family in ("llama", "gpt2")]
SETTINGS += [(family, {"use_rslora": True}) for family in ("llama", "gpt2")]


@pytest.mark.parametrize(("family", "settings"), SETTINGS)
def test_we_load_what_peft_saves(family, settings, tmp_path):
    model = build_model(family)
    names = projection_names(model)
    config = peft.LoraConfig(
        r=4,
        target_modules=[names["q"], names["v"]],
        exclude_modules=".*vision.*" if family == "gemma3" else None,
        init_lora_weights="gaussian",
        fan_in_fan_out=family == "gpt2",
        **settings,
    )
    torch.manual_seed(0)
    tuned = peft.get_peft_model(copy.deepcopy(model), config).eval()
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tuned.save_pretrained(tmp_path)
    # Through a fused module the deltas of PEFT reach k as well.
    arch = describe(model, ALL)
    expected = label_logits(tuned, random_prompts(arch.kind)).numpy()
    assert logits_of(arch, load_adapter(arch, tmp_path)) == pytest.approx(expected, abs=1e-4)


# -- what cannot be loaded -------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """The model, and a folder with an adapter of it."""
    arch = describe(build_model("llama"), ALL)
    save_adapter(random_adapter(arch), tmp_path, rank=4)
    return arch, tmp_path


def refused(saved, message):
    with pytest.raises(UserError, match=message):
        load_adapter(*saved)


def change_config(saved, **settings):
    path = saved[1] / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_a_folder_without_an_adapter(saved):
    (saved[1] / CONFIG).unlink()
    refused(saved, f"holds no adapter: {CONFIG} is missing")
    refused((saved[0], saved[1] / "nowhere"), "nowhere holds no adapter")


def test_missing_weights(saved):
    (saved[1] / WEIGHTS).unlink()
    refused(saved, f"holds no {WEIGHTS}; save the adapter as safetensors")
    (saved[1] / "adapter_model.bin").write_bytes(b"")
    refused(saved, "pickled .bin files are refused, as they can run code")


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_damaged_weights(saved, length):
    path = saved[1] / WEIGHTS
    path.write_bytes(path.read_bytes()[:length])
    refused(saved, "is damaged or no safetensors file")


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_damaged_configuration(saved, text):
    (saved[1] / CONFIG).write_text(text)
    refused(saved, CONFIG)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_lora_weights": "lora_ga"}, "with init_lora_weights=lora_ga. Merge it"),
        ({"peft_type": "IA3"}, "only plain LoRA adapters can be read; this one is 'IA3'"),
        ({"use_dora": True}, "'LORA' with use_dora. Merge"),
        ({"rank_pattern": {"q_proj": 2}}, "with rank_pattern"),
        ({"alora_invocation_tokens": [7]}, "with alora_invocation_tokens"),
        ({"r": 0}, "r must be a positive number; got 0"),
        ({"lora_alpha": None}, "lora_alpha must be a positive number; got None"),
    ],
)
def test_adapters_that_are_more_than_plain_lora(saved, settings, message):
    change_config(saved, **settings)
    refused(saved, message)


def test_dora_as_peft_saves_it(saved):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    peft.get_peft_model(copy.deepcopy(saved[0].model), config).save_pretrained(saved[1])
    refused(saved, "with use_dora")


def test_an_adapter_of_a_model_of_other_sizes(saved):
    change_config(saved, base_model_name_or_path="the/other")
    other = describe(build_model("llama", hidden_size=64, intermediate_size=32), ALL)
    refused(
        (other, saved[1]),
        r"does not fit model\.layers\.0\.self_attn\.q_proj: its matrices have shapes \(4, 32\) and "
        r"\(32, 4\), which must be \(4, 64\) and \(64, 4\) .*made for: 'the/other'",
    )


def test_an_adapter_of_a_deeper_model(saved):
    shallow = describe(build_model("llama", num_hidden_layers=2), ALL)
    refused((shallow, saved[1]), r"has '.*layers\.2\.self_attn.*', which is not an attention")


def test_an_adapter_of_other_modules(saved):
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "gate_proj"])
    peft.get_peft_model(copy.deepcopy(saved[0].model), config).save_pretrained(saved[1])
    refused(saved, "gate_proj.*, which is not an attention projection of LlamaForCausalLM")


def test_half_a_delta_is_no_delta(saved):
    tensors = load_file(saved[1] / WEIGHTS)
    del tensors[next(key for key in tensors if "layers.1.self_attn.v_proj.lora_A" in key)]
    save_file(tensors, saved[1] / WEIGHTS)
    refused(saved, r"layers\.1\.self_attn\.v_proj\.lora_B")


def test_factors_of_another_rank_than_the_configuration_says(saved):
    change_config(saved, r=8)
    refused(saved, r"\(4, 32\) and \(32, 4\), which must be \(8, 32\) and \(32, 8\) .* r = 8")
