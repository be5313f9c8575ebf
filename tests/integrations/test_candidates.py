"""Candidates that differ in several layers, or in a soft prompt, held against plain models."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from peft_reference import peft_model, set_factors
from test_population import STEPS, make_evaluator
from tiny import (
    CONFIGS,
    HIDDEN,
    LABEL_IDS,
    LAYERS,
    PAD,
    SEQ2SEQ,
    VARIANTS,
    build_model,
    label_logits,
    random_adapter,
    random_factors,
    random_prompts,
)
from torch.nn import functional as F

from integrations import NAIVE, PopulationEvaluator, Speedups, UserError
from integrations.adapter import Adapter
from integrations.architectures import describe
from integrations.candidates import JointCandidates, LayerCandidates, PromptCandidates
from integrations.merging import merge
from integrations.metrics import cross_entropy
from integrations.peft_format import save_adapter

LENGTHS = (9, 5, 12, 5, 7, 20, 6)
SOFT = 3  # tokens of the soft prompts


def random_joint(arch, layers, count, seed=1):
    return JointCandidates(
        {layer: random_factors(arch, layer, count, seed=seed) for layer in layers}
    )


# -- several layers at once ------------------------------------------------------------------------


def joint_losses(arch, candidates, adapter, prompts):
    """Each candidate in place in a model of PEFT's, one prompt at a time."""
    tuned = peft_model(arch.model, adapter)
    labels = torch.tensor([prompt.label for prompt in prompts])
    losses = []
    for p in range(len(candidates)):
        for layer, factors in candidates.factors.items():
            set_factors(tuned, layer, {name: f[p : p + 1] for name, f in factors.items()})
        logits = label_logits(tuned, prompts)
        losses.append(F.cross_entropy(logits.double(), labels).item())
    return losses


@pytest.mark.parametrize("family", [*CONFIGS, *VARIANTS])
def test_joint_candidates_have_the_losses_of_peft(family):
    arch = describe(build_model(family), ("q", "v"))
    adapter, prompts = random_adapter(arch, [0, 1, 2]), random_prompts(arch.kind)
    evaluator = PopulationEvaluator(arch, prompts, LABEL_IDS, pad_id=PAD, loss=cross_entropy)
    candidates = random_joint(arch, (1, LAYERS - 1), 4)
    expected = joint_losses(arch, candidates, adapter, prompts)
    assert evaluator.losses(candidates, adapter) == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 0.02


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta", "deberta-v2", "t5"])
def test_each_step_on_or_off_gives_joint_candidates_the_losses_of_peft(family):
    arch = describe(build_model(family), ("q", "v", "o"))
    adapter, prompts = random_adapter(arch, [0, 1, 3]), random_prompts(arch.kind, LENGTHS)
    cases = [random_joint(arch, layers, 4) for layers in (range(LAYERS), (3, 1))]
    expected = [joint_losses(arch, candidates, adapter, prompts) for candidates in cases]
    for speedups in STEPS.values():
        evaluator = PopulationEvaluator(
            arch, prompts, LABEL_IDS, pad_id=PAD, loss=cross_entropy, speedups=speedups
        )
        for candidates, wanted in zip(cases, expected, strict=True):
            for _ in range(2):  # as states are computed and as they are found in the cache
                losses = evaluator.losses(candidates, adapter)
                assert losses == pytest.approx(wanted, abs=1e-5)


def test_only_the_first_tuned_layer_shares_its_frozen_projections():
    arch = describe(build_model("llama"))
    calls = {}
    for layer in range(LAYERS):
        module = arch.targets[layer]["q"].module
        calls[layer] = 0

        def counted(x, layer=layer, forward=module.forward):
            calls[layer] += 1
            return forward(x)

        module.forward = counted
    evaluator = make_evaluator(arch, speedups=Speedups(blocks=2, side_by_side=False))
    evaluator.losses(random_joint(arch, (1, 3), 6), Adapter(arch))
    batches = len(evaluator.batches)
    assert calls == {0: batches, 1: batches, 2: 3 * batches, 3: 3 * batches}


# -- soft prompts ----------------------------------------------------------------------------------

PROMPTED = [family for family in (*CONFIGS, *VARIANTS) if family.split(",")[0] not in SEQ2SEQ]


def soft_prompts(kind, seed=0):
    """Prompts with a soft prompt somewhere among their tokens."""
    rng = np.random.default_rng(seed)
    return [
        replace(prompt, soft=(int(rng.integers(len(prompt.ids) - SOFT + 1)), SOFT))
        for prompt in random_prompts(kind, LENGTHS, seed)
    ]


def soft_evaluator(arch, **settings):
    settings = {"pad_id": PAD, "loss": cross_entropy} | settings
    return PopulationEvaluator(arch, soft_prompts(arch.kind), LABEL_IDS, **settings)


def random_offsets(arch, layer, count, seed=0):
    width = arch.model.get_input_embeddings().embedding_dim if layer == 0 else HIDDEN
    generator = torch.Generator().manual_seed(100 * seed + layer)
    return torch.randn(count, SOFT, width, generator=generator)


@torch.no_grad()
def plain_logits(arch, adapter, offsets, prompts):
    """Label logits of the model itself, called on embeddings and with hooks, prompt by prompt."""
    tuned = arch.model
    if any(adapter.factors):
        tuned = peft_model(tuned, adapter).base_model.model
    paths = {module: path for path, module in arch.model.named_modules()}
    layers = {layer: tuned.get_submodule(paths[arch.layers[layer]]) for layer in offsets if layer}
    rows = []
    for prompt in prompts:
        place = slice(prompt.soft[0], sum(prompt.soft))

        def add(offset, _, args, place=place):
            x = args[0].clone()
            x[:, place] += offset
            return (x, *args[1:])

        embeddings = tuned.get_input_embeddings()(torch.tensor([prompt.ids]))
        if 0 in offsets:
            embeddings[:, place] += offsets[0]
        handles = [
            module.register_forward_pre_hook(partial(add, offsets[layer]))
            for layer, module in layers.items()
        ]
        rows.append(tuned(inputs_embeds=embeddings).logits[0, prompt.answer, list(LABEL_IDS)])
        for handle in handles:
            handle.remove()
    return torch.stack(rows)


def plain_loss(arch, adapter, offsets):
    prompts = soft_prompts(arch.kind)
    labels = torch.tensor([prompt.label for prompt in prompts])
    return F.cross_entropy(plain_logits(arch, adapter, offsets, prompts).double(), labels).item()


@pytest.mark.parametrize("family", PROMPTED)
def test_soft_prompts_have_the_losses_of_the_model_itself(family):
    arch = describe(build_model(family))
    evaluator, adapter = soft_evaluator(arch), Adapter(arch)
    for layer in (0, 1, LAYERS - 1):
        offsets = random_offsets(arch, layer, 4)
        expected = [plain_loss(arch, adapter, {layer: offset}) for offset in offsets]
        losses = evaluator.losses(PromptCandidates(layer, offsets), adapter)
        assert losses == pytest.approx(expected, abs=1e-5)
        assert np.ptp(expected) > 0.005


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_each_step_on_or_off_leaves_soft_prompts_beside_what_is_in_place(family):
    """Deltas and offsets at other layers stay, an offset at the same layer is replaced."""
    arch = describe(build_model(family))
    adapter = random_adapter(arch, [0, 2])
    in_place = {layer: random_offsets(arch, layer, 1, seed=1)[0] for layer in (0, 1, 3)}
    for layer, offset in in_place.items():
        adapter.place_prompt(layer, offset)
    cases = []
    for layer in range(LAYERS):
        offsets = random_offsets(arch, layer, 5)
        losses = [plain_loss(arch, adapter, in_place | {layer: offset}) for offset in offsets]
        cases.append((PromptCandidates(layer, offsets), losses))
    expected = plain_logits(arch, adapter, in_place, soft_prompts(arch.kind))
    for speedups in STEPS.values():
        evaluator = soft_evaluator(arch, speedups=speedups)
        assert evaluator.logits(adapter) == pytest.approx(expected.numpy(), abs=1e-4)
        for candidates, losses in cases:
            for _ in range(2):
                assert evaluator.losses(candidates, adapter) == pytest.approx(losses, abs=1e-5)
        # Deltas are tuned beside the soft prompt that is in place.
        factors = random_factors(arch, 2, 3, seed=2)
        tuned = adapter.copy()
        losses = []
        for p in range(3):
            tuned.place(2, {name: f[p : p + 1] for name, f in factors.items()})
            losses.append(plain_loss(arch, tuned, in_place))
        assert evaluator.evaluate(2, factors, adapter) == pytest.approx(losses, abs=1e-5)


def random_candidates(arch, count, rng):
    """Candidates of any kind."""
    layer, seed = int(rng.integers(LAYERS)), int(rng.integers(1000))
    kind = rng.integers(3)
    if kind == 0:
        return LayerCandidates(layer, random_factors(arch, layer, count, seed=seed))
    if kind == 1:
        return random_joint(arch, sorted({layer, int(rng.integers(LAYERS))}), count, seed)
    return PromptCandidates(layer, random_offsets(arch, layer, count, seed))


@pytest.mark.parametrize("prefix_bytes", [1, 1 << 30])
@pytest.mark.parametrize(
    "family", ["llama", "roberta", "deberta-v2, convolution, own position keys"]
)
def test_candidates_of_any_kind_between_changes_of_any_kind(family, prefix_bytes):
    """Whatever is kept from before, a candidate's loss is that of the candidate in place."""
    arch = describe(build_model(family))
    evaluator = soft_evaluator(arch, speedups=Speedups(blocks=2))
    evaluator._prefix.max_bytes = prefix_bytes
    adapter, rng = Adapter(arch), np.random.default_rng(0)
    for step in range(24):
        random_candidates(arch, 1, rng).place(adapter)
        if step % 5 == 4:
            adapter.place_prompt(int(rng.integers(LAYERS)), None)
        candidates = random_candidates(arch, 3, rng)
        losses = evaluator.losses(candidates, adapter)
        fresh = soft_evaluator(arch, speedups=NAIVE)
        for p in range(3):
            tuned = adapter.copy()
            candidates[p : p + 1].place(tuned)
            assert fresh.loss_in_place(tuned) == pytest.approx(losses[p], abs=1e-5)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_layers_before_the_soft_prompt_s_run_once(layer):
    arch = describe(build_model("llama"))
    calls = [0] * LAYERS
    for index, module in enumerate(arch.layers):

        def count(module, args, index=index):
            calls[index] += 1

        module.self_attn.register_forward_pre_hook(count, with_kwargs=False)
    evaluator = soft_evaluator(arch, speedups=Speedups(blocks=2))
    evaluator.losses(PromptCandidates(layer, random_offsets(arch, layer, 6)), Adapter(arch))
    batches = len(evaluator.batches)
    assert calls == [batches] * layer + [3 * batches] * (LAYERS - layer)


# -- what does not fit -----------------------------------------------------------------------------


def test_layers_with_different_numbers_of_candidates():
    arch = describe(build_model("llama"))
    factors = {0: random_factors(arch, 0, 2), 1: random_factors(arch, 1, 3)}
    with pytest.raises(UserError, match=r"as many candidates; got \{0: 2, 1: 3\}"):
        JointCandidates(factors)


@pytest.mark.parametrize("shape", [(2, SOFT + 1, HIDDEN), (2, SOFT, HIDDEN + 1)])
@pytest.mark.parametrize("layer", [0, 2])
def test_offsets_of_another_length_or_width(shape, layer):
    arch = describe(build_model("llama"))
    with pytest.raises(UserError, match=r"have 3 soft-prompt tokens of width 32 .*got offsets of"):
        soft_evaluator(arch).losses(PromptCandidates(layer, torch.zeros(shape)), Adapter(arch))


def test_offsets_for_prompts_without_a_soft_prompt():
    arch = describe(build_model("t5"))
    candidates = PromptCandidates(1, torch.zeros(2, SOFT, HIDDEN))
    with pytest.raises(UserError, match="the prompts have 0 soft-prompt tokens"):
        make_evaluator(arch).losses(candidates, Adapter(arch))


@pytest.mark.parametrize(
    ("family", "soft", "message"),
    [
        ("llama", [(0, 3), (0, 2)], r"must have one length; got \[2, 3\]"),
        ("llama", [(0, 3), (3, 3)], "3 tokens from place 3 on does not lie in a prompt of 5"),
        ("llama", [(-1, 3), (0, 3)], "from place -1 on"),
        ("t5", [(0, 3), (0, 3)], "soft prompts are for causal and masked models"),
    ],
)
def test_soft_prompts_that_cannot_be(family, soft, message):
    arch = describe(build_model(family))
    prompts = random_prompts(arch.kind, (5, 5))
    prompts = [replace(prompt, soft=s) for prompt, s in zip(prompts, soft, strict=True)]
    with pytest.raises(UserError, match=message):
        PopulationEvaluator(arch, prompts, LABEL_IDS, pad_id=PAD, loss=cross_entropy)


def test_a_soft_prompt_is_not_lost_in_what_has_no_room_for_it(tmp_path):
    arch = describe(build_model("llama"))
    adapter = random_adapter(arch)
    adapter.place_prompt(2, torch.zeros(SOFT, HIDDEN))
    with pytest.raises(UserError, match=r"soft prompt in place at layers \[2\]"):
        save_adapter(adapter, tmp_path / "adapter", 4)
    with pytest.raises(UserError, match=r"soft prompt in place at layers \[2\]"):
        merge(adapter)
    assert not (tmp_path / "adapter").exists()
