"""How strong the random deltas are, measured on the model by other means."""

import numpy as np
import pytest
import torch
from tiny import (
    HIDDEN,
    LABEL_IDS,
    LAYERS,
    PAD,
    build_model,
    columns,
    inputs_of,
    projection,
    random_adapter,
    random_prompts,
)

from integrations import PopulationEvaluator, UserError
from integrations.architectures import describe, embedding_scale
from integrations.batches import make_batches
from integrations.metrics import cross_entropy
from integrations.spaces import INIT_STD, _applied_rank, hidden_std, make_spaces
from lora_kernels import SeededProjection

CPU, FLOAT = torch.device("cpu"), torch.float32
MIXED, EQUAL = (9, 5, 12, 5, 7), (8, 8, 8, 8)


def test_ranks_add_up_where_targets_take_turns_in_a_projection():
    assert _applied_rank(describe(build_model("gpt_neox")), 40) == 80
    for family in ("llama", "gpt2"):
        assert _applied_rank(describe(build_model(family)), 40) == 40


def spaces_of(arch, prompts, **settings):
    settings = {"rank": 4, "dim": 40, "seed": 0} | settings
    evaluator = PopulationEvaluator(arch, prompts, LABEL_IDS, pad_id=PAD, loss=cross_entropy)
    return make_spaces(arch, evaluator.batches, **settings)


@torch.no_grad()
def record(model, prompts, modules):
    """Inputs and outputs (tokens, width) of modules, the model called prompt by prompt."""
    seen = {module: ([], []) for module in modules}

    def hook(module, args, output):
        for kept, value in zip(seen[module], (args[0], output), strict=True):
            kept.append((value[0] if isinstance(value, tuple) else value)[0])

    handles = [module.register_forward_hook(hook) for module in modules]
    for prompt in prompts:
        model(**inputs_of(prompt))
    for handle in handles:
        handle.remove()
    return {m: (torch.cat(x), torch.cat(y)) for m, (x, y) in seen.items()}


def rms(values):
    return values.double().square().mean().sqrt().item()


# -- calibrated ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [MIXED, EQUAL], ids=["padded", "not padded"])
@pytest.mark.parametrize(
    ("family", "freeze_a"),
    [
        *((f, False) for f in ("llama", "qwen3", "gpt2", "bert", "falcon", "deberta-v2", "t5")),
        *((f, True) for f in ("llama", "gpt2", "bert")),
    ],
)
def test_calibrated_deltas_are_the_wanted_fraction_of_the_projections_output(
    family, lengths, freeze_a
):
    model = build_model(family)
    arch = describe(model, ("q", "k", "v", "o"))
    prompts = random_prompts(arch.kind, lengths)
    # Wide enough that a projection drawn once behaves like the average one; a frozen A has the rank
    # as its only width, so that is large and several are drawn.
    seeds, rank, dim, count = (8, 128, 400, 10) if freeze_a else (1, 8, 4000, 200)
    spaces = [
        spaces_of(arch, prompts, rank=rank, dim=dim, std=0.3, freeze_a=freeze_a, seed=seed)
        for seed in range(seeds)
    ]
    z = np.random.default_rng(0).standard_normal((count, dim))
    for layer in range(LAYERS):
        drawn = [space[layer].factors(z, CPU, FLOAT) for space in spaces]
        for name in arch.targets[layer]:
            module = projection(model, layer, name)
            x, y = record(model, prompts, [module])[module]
            deltas = torch.stack([x @ f[name].A.mT @ f[name].B for f in drawn])
            assert rms(deltas) / rms(y[:, columns(model, name)]) == pytest.approx(0.3, rel=0.1)


def test_calibration_knows_what_the_default_strength_is():
    arch = describe(build_model("llama"))
    prompts = random_prompts("causal")
    default, named = (spaces_of(arch, prompts, std=std) for std in (None, INIT_STD["calibrated"]))
    assert [s.projections for s in default] == [s.projections for s in named]


@pytest.mark.parametrize("family", ["llama", "bert", "bart"])
def test_the_layout_of_batches_makes_no_difference(family):
    """Padding has hidden states too, which mean nothing."""
    arch = describe(build_model(family))
    prompts = random_prompts(arch.kind, MIXED)
    stds = []
    first = arch.family.reserved_positions
    for layout in ("packed", "grouped", "padded") if family != "bart" else ("grouped", "padded"):
        batches = make_batches(
            prompts,
            PAD,
            arch.kind,
            CPU,
            layout=layout,
            first_position=first,
        )
        spaces = make_spaces(arch, batches, rank=2, dim=8, seed=0)
        stds.append([p.std for s in spaces for pair in s.projections.values() for p in pair])
    for others in stds[:-1]:
        assert others == pytest.approx(stds[-1], rel=1e-4)


# -- the paper's and the code's --------------------------------------------------------------------


def clipped_std(values):
    """Five rounds of clipping to mean +- 3 std, as the authors' code does it."""
    values = values.astype(np.float64)
    for _ in range(5):
        mean, std = values.mean(), values.std()
        values = np.clip(values, mean - 3 * std, mean + 3 * std)
    return values.std()


def hidden_stds(model, arch, prompts):
    states = record(model, prompts, arch.layers)
    table = model.get_input_embeddings().weight.detach().numpy()
    above = [clipped_std(states[layer][0].numpy()) for layer in arch.layers[1:]]
    return [clipped_std(table), *above]


@pytest.mark.parametrize("lengths", [MIXED, EQUAL], ids=["padded", "not padded"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "roberta"])
def test_paper_scales_every_projection_as_equation_6(family, lengths):
    model = build_model(family)
    model.get_input_embeddings().weight.data **= 5  # outliers, so that clipping shows
    arch = describe(model)
    prompts = random_prompts(arch.kind, lengths)
    alpha, dim = 1.5, 40
    spaces = spaces_of(arch, prompts, dim=dim, init="paper", std=alpha)
    for sigma, space in zip(hidden_stds(model, arch, prompts), spaces, strict=True):
        for pair in space.projections.values():
            for to_factor in pair:
                assert to_factor.std == pytest.approx(alpha * sigma / np.sqrt(dim), rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_states_of_few_layers_at_a_time_have_the_same_spread(family, monkeypatch):
    arch = describe(build_model(family))
    prompts = random_prompts(arch.kind, MIXED)
    batches = make_batches(prompts, PAD, arch.kind, CPU)
    together = hidden_std(arch, batches)
    passes = []
    arch.head.register_forward_hook(lambda *_: passes.append(1))
    monkeypatch.setattr("integrations.spaces.STATES_BYTES", 1)
    assert hidden_std(arch, batches) == together
    assert len(passes) == (len(arch.layers) - 1) * len(batches)


def test_embeddings_that_a_model_scales_are_measured_as_they_enter_its_layers():
    model = build_model("gemma2")
    arch = describe(model)
    entering = record(model, random_prompts("causal", [40]), [arch.layers[0]])
    states = next(iter(entering.values()))[0].numpy()
    scale = embedding_scale(arch)
    assert scale == pytest.approx(HIDDEN**0.5)
    table = model.get_input_embeddings().weight.detach().numpy()
    first, *_ = hidden_std(arch, make_batches(random_prompts("causal"), PAD, "causal", CPU))
    assert first == pytest.approx(scale * clipped_std(table), rel=1e-3)
    assert states.std() == pytest.approx(scale * table.std(), rel=0.2)


def test_torchs_own_init_of_a_linear_layer_is_as_the_next_test_has_it():
    weight = torch.nn.Linear(10, 10_000).weight.detach()
    assert weight.abs().max().item() == pytest.approx(10**-0.5, rel=1e-3)
    assert weight.std().item() == pytest.approx((10 * 3) ** -0.5, rel=1e-2)


def test_reference_code_keeps_torchs_own_init_of_b_above_the_first_layer():
    model = build_model("llama")
    arch = describe(model)
    prompts = random_prompts(arch.kind)
    dim = 40
    spaces = spaces_of(arch, prompts, dim=dim, init="reference-code")
    for layer, (sigma, space) in enumerate(
        zip(hidden_stds(model, arch, prompts), spaces, strict=True)
    ):
        for to_a, to_b in space.projections.values():
            assert to_a.std == pytest.approx(sigma / np.sqrt(dim), rel=1e-3)
            if layer == 0:
                assert to_b.std == pytest.approx(sigma / np.sqrt(dim), rel=1e-3)
                continue
            weight, bound = to_b.weight, 1 / np.sqrt(dim / 4)
            assert weight.abs().max() <= bound
            assert weight.min() < -0.95 * bound < 0.95 * bound < weight.max()
            assert weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)


def test_normal_uses_the_std_as_it_is():
    spaces = spaces_of(
        describe(build_model("bert")), random_prompts("masked"), init="normal", std=0.07
    )
    for space in spaces:
        assert {p.std for pair in space.projections.values() for p in pair} == {0.07}


# -- all of them -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama():
    return describe(build_model("llama"))


@pytest.mark.parametrize("init", INIT_STD)
def test_factors_are_projections_of_parts_of_z(llama, init):
    """Each quarter of z drives one factor: A and B of the first target, then of the second."""
    space = spaces_of(llama, random_prompts("causal"), init=init)[1]
    z = np.random.default_rng(0).standard_normal((3, 40))
    whole = space.factors(z, CPU, FLOAT)
    for number, (name, side) in enumerate([("q", "A"), ("q", "B"), ("v", "A"), ("v", "B")]):
        part = np.zeros_like(z)
        part[:, 10 * number : 10 * number + 10] = z[:, 10 * number : 10 * number + 10]
        alone = space.factors(part, CPU, FLOAT)
        to_factor = space.projections[name]["AB".index(side)]
        if isinstance(to_factor, SeededProjection):
            to_factor = to_factor.materialize()
        expected = torch.from_numpy(part[:, 10 * number : 10 * number + 10]).float()
        expected = expected @ to_factor.weight.T
        for other in whole:
            for s in "AB":
                factor = getattr(alone[other], s)
                if (other, s) == (name, side):
                    assert torch.allclose(factor, getattr(whole[other], s))
                    assert torch.allclose(factor, expected.view(factor.shape), atol=1e-6)
                else:
                    assert not factor.any()


@pytest.mark.parametrize("init", INIT_STD)
def test_zero_is_no_delta(llama, init):
    for space in spaces_of(llama, random_prompts("causal"), init=init):
        for f in space.factors(np.zeros((2, 40)), CPU, FLOAT).values():
            assert not f.A.any()
            assert not f.B.any()


@pytest.mark.parametrize("init", INIT_STD)
def test_with_a_frozen_each_half_of_z_drives_b_of_one_target(llama, init):
    space = spaces_of(llama, random_prompts("causal"), init=init, freeze_a=True)[1]
    z = np.random.default_rng(0).standard_normal((3, 40))
    whole = space.factors(z, CPU, FLOAT)
    for number, name in enumerate(("q", "v")):
        columns = slice(20 * number, 20 * number + 20)
        part = np.zeros_like(z)
        part[:, columns] = z[:, columns]
        to_b = space.projections[name][1]
        if isinstance(to_b, SeededProjection):
            to_b = to_b.materialize()
        expected = torch.from_numpy(z[:, columns]).float() @ to_b.weight.T
        for other, f in space.factors(part, CPU, FLOAT).items():
            if other == name:
                assert torch.allclose(f.B, whole[name].B)
                assert torch.allclose(f.B, expected.view(f.B.shape), atol=1e-6)
            else:
                assert not f.B.any()


@pytest.mark.parametrize("init", INIT_STD)
def test_a_frozen_a_is_the_same_for_all_and_spread_as_a_searched_one(llama, init):
    prompts = random_prompts("causal")
    searched, frozen = (
        spaces_of(llama, prompts, init=init, rank=64, dim=2000, freeze_a=freeze_a)[1]
        for freeze_a in (False, True)
    )
    rng = np.random.default_rng(0)
    drawn = searched.factors(rng.standard_normal((20, 2000)), CPU, FLOAT)
    fixed = frozen.factors(rng.standard_normal((2, 2000)), CPU, FLOAT)
    none = frozen.factors(np.zeros((1, 2000)), CPU, FLOAT)
    for name in ("q", "v"):
        assert torch.equal(fixed[name].A[0], fixed[name].A[1])
        assert torch.equal(fixed[name].A[:1], none[name].A)
        assert not none[name].B.any()
        if init != "calibrated":  # which shares the delta's spread out among factors as it likes
            # 2000 / 2 coordinates for B where both are searched for have 2000 / 4.
            assert rms(fixed[name].A) == pytest.approx(2**0.5 * rms(drawn[name].A), rel=0.1)


@pytest.mark.parametrize("init", INIT_STD)
def test_the_seed_decides_and_layers_targets_and_factors_differ(llama, init):
    def drawn(seed):
        spaces = spaces_of(llama, random_prompts("causal"), init=init, seed=seed)
        z = np.tile(np.random.default_rng(0).standard_normal(10), 4)[np.newaxis]
        # Up to their scale, which may be that of the layer alone.
        return [
            torch.nn.functional.normalize(factor.flatten()[:64], dim=0)
            for space in spaces
            for f in space.factors(z, CPU, FLOAT).values()
            for factor in (f.A, f.B)
        ]

    first, again, other = drawn(3), drawn(3), drawn(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    alike = torch.stack(first + other) @ torch.stack(first + other).T
    assert alike.fill_diagonal_(0).abs().max() < 0.7


def test_deltas_in_place_do_not_change_what_is_measured(llama):
    prompts = random_prompts("causal")
    first = spaces_of(llama, prompts)
    evaluator = PopulationEvaluator(llama, prompts, LABEL_IDS, pad_id=PAD, loss=cross_entropy)
    evaluator.loss_in_place(random_adapter(llama))
    assert [s.projections for s in spaces_of(llama, prompts)] == [s.projections for s in first]


@pytest.mark.parametrize("init", INIT_STD)
def test_what_is_measured_takes_no_memory_for_logits_that_nobody_reads(init):
    arch = describe(build_model("llama"))
    prompts = random_prompts("causal")
    seen = []
    arch.head.register_forward_hook(lambda module, inputs, logits: seen.append(logits.shape[:-1]))
    spaces_of(arch, prompts, init=init)
    assert all(rows * tokens <= len(prompts) for rows, tokens in seen)
    assert bool(seen) == (init != "normal")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": "calibratd"}, "unknown init 'calibratd'; did you mean 'calibrated'"),
        ({"rank": 0}, "rank must be at least 1; got 0"),
        ({"dim": 42}, r"4 equal parts \(A and B of 2 targets\); got 42, try 40"),
        ({"dim": 3}, "got 3, try 4"),
        ({"dim": 3, "freeze_a": True}, r"2 equal parts \(B of 2 targets\); got 3, try 2"),
        ({"std": 0.0}, "init_std must be a positive number; got 0.0"),
        ({"std": -1.0}, "init_std must be a positive number"),
        ({"std": float("nan")}, "init_std must be a positive number"),
    ],
)
def test_errors_say_what_came_and_what_fits(llama, settings, message):
    with pytest.raises(UserError, match=message):
        spaces_of(llama, random_prompts("causal"), **settings)
