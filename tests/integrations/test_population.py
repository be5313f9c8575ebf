"""The six steps that make evaluation fast leave the losses as they are."""

import numpy as np
import pytest
import torch
from peft_reference import peft_losses, peft_model
from tiny import (
    CONFIGS,
    HIDDEN,
    LABEL_IDS,
    LAYERS,
    LENGTHS,
    PAD,
    build_model,
    label_logits,
    make_evaluator,
    random_adapter,
    random_factors,
    random_prompts,
)

from integrations import NAIVE, PopulationEvaluator, Speedups, UserError
from integrations.adapter import Adapter
from integrations.architectures import describe
from integrations.batches import CPU_MOST_TOKENS
from integrations.candidates import LayerCandidates
from integrations.memory import bytes_per_token
from integrations.metrics import cross_entropy, error_rate, hinge, make_loss
from integrations.tuned_layer import SharedBase

# -- the six steps --------------------------------------------------------------------------------

STEPS = {
    "all on": Speedups(),
    "all off": NAIVE,
    "no prefix cache": Speedups(prefix_cache=False),
    "no shared base": Speedups(shared_base=False),
    "no answer head": Speedups(answer_head=False),
    "padding": Speedups(no_padding=False),
    "no oneDNN": Speedups(onednn=False),
    "blocks of 1": Speedups(blocks=1),
    "blocks of 3": Speedups(blocks=3),
    "blocks of more than all": Speedups(blocks=100),
}


MEASURED = ["llama", "gpt2", "bert", "gpt_neox", "deberta-v2, convolution, own position keys"]
MEASURED += ["deberta-v2", "t5", "bart"]


@pytest.fixture(scope="module", params=MEASURED)
def measured_by_peft(request):
    """A model with deltas in place, candidates for some layers, and their losses."""
    arch = describe(build_model(request.param), ("q", "v", "o"))
    adapter = random_adapter(arch, [0, 1, 3])
    prompts = random_prompts(arch.kind, LENGTHS)
    cases = {}
    for layer in (0, 2, LAYERS - 1):
        candidates = random_factors(arch, layer, 7, seed=1)
        cases[layer] = (candidates, peft_losses(arch, layer, candidates, adapter, prompts))
    return arch, adapter, cases


@pytest.mark.parametrize("steps", STEPS)
def test_each_step_on_or_off_gives_the_losses_of_peft(measured_by_peft, steps):
    arch, adapter, cases = measured_by_peft
    evaluator = make_evaluator(arch, speedups=STEPS[steps])
    for layer, (candidates, expected) in cases.items():
        # Twice: once as states are computed and once as they are found in the cache.
        for _ in range(2):
            losses = evaluator.evaluate(layer, candidates, adapter)
            assert losses == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("loss", [hinge, error_rate, make_loss("metric", "macro_f1")])
def test_steps_change_nothing_for_other_losses(loss):
    arch = describe(build_model("qwen2"))
    candidates, adapter = random_factors(arch, 1, 5, seed=1), random_adapter(arch)
    fast = make_evaluator(arch, loss=loss).evaluate(1, candidates, adapter)
    naive = make_evaluator(arch, loss=loss, speedups=NAIVE).evaluate(1, candidates, adapter)
    assert fast == pytest.approx(naive, abs=1e-5)


@pytest.mark.parametrize("steps", ["all on", "all off"])
def test_half_precision(steps):
    """bfloat16 keeps 8 bits, so losses agree with those of float32 to a few hundredths only."""
    model = build_model("llama")
    arch = describe(model)
    adapter, candidates = random_adapter(arch, [0, 3]), random_factors(arch, 2, 4, seed=1)
    expected = make_evaluator(arch).evaluate(2, candidates, adapter)
    model.to(torch.bfloat16)
    half, candidates = random_adapter(arch, [0, 3]), random_factors(arch, 2, 4, seed=1)
    losses = make_evaluator(arch, speedups=STEPS[steps]).evaluate(2, candidates, half)
    assert losses == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    ("tokens", "population", "workers", "size"),
    [
        (40, 6, 1, 6),
        (100, 6, 1, 3),  # 512 tokens are 5 candidates', and two passes are even with 3
        (100, 20, 1, 5),
        (100, 6, 2, 3),
        (200, 6, 4, 2),
        (300, 6, 1, 1),
        (600, 6, 1, 1),
    ],
)
def test_on_a_cpu_blocks_fill_512_tokens_evenly(tokens, population, workers, size):
    arch = describe(build_model("llama"))
    evaluator = make_evaluator(arch, lengths=[20] * (tokens // 20))
    candidates = LayerCandidates(1, random_factors(arch, 1, population))
    evaluator.choose_block_size(candidates[:1], Adapter(arch))
    assert evaluator.block_size is None  # one candidate leaves nothing to choose
    evaluator.choose_block_size(candidates, Adapter(arch), workers)
    assert evaluator.block_size == size
    evaluator.choose_block_size(candidates[:2], Adapter(arch))
    assert evaluator.block_size == size


def test_more_candidates_than_before_are_shared_out_anew():
    evaluator = make_evaluator(describe(build_model("llama")), lengths=[20, 20])
    candidates = LayerCandidates(1, random_factors(evaluator.arch, 1, 20))
    for count, size in ((2, 2), (9, 9), (20, 10), (3, 10)):  # a few first, as LoTFWA's places are
        evaluator.choose_block_size(candidates[:count], Adapter(evaluator.arch))
        assert evaluator.block_size == size
    evaluator.block_size, evaluator.chosen_for = 4, None  # as it was said
    evaluator.choose_block_size(candidates, Adapter(evaluator.arch))
    assert evaluator.block_size == 4


@pytest.mark.parametrize("blocks", [0, -1, 2.5, "all"])
def test_blocks_are_whole_numbers(blocks):
    with pytest.raises(UserError, match="blocks must be a whole number of 1 or more; got"):
        Speedups(blocks=blocks)


def test_a_loss_that_works_in_place_leaves_the_labels_alone():
    def hinge(logits, labels):
        signs = labels.mul_(2).sub_(1)
        return (1 - signs * logits.sub_(1)[..., 0]).double().mean(-1)

    arch = describe(build_model("llama"))
    evaluator = make_evaluator(arch, loss=hinge)
    labels, adapter = evaluator.labels.copy(), random_adapter(arch)
    first = evaluator.score(adapter)
    assert evaluator.score(adapter) == first
    evaluator.evaluate(1, random_factors(arch, 1, 3), adapter)
    assert np.array_equal(evaluator.labels, labels)


@pytest.fixture
def elsewhere(monkeypatch):
    """An evaluator and candidates of a model that says it is on a GPU; the test has the clock."""

    def evaluator_and_candidates(seconds, population, **arguments):
        arch = describe(build_model("llama"))
        candidates = LayerCandidates(1, random_factors(arch, 1, population))
        evaluator = make_evaluator(arch, **arguments)
        monkeypatch.setattr(PopulationEvaluator, "_seconds", seconds)
        monkeypatch.setattr(type(arch.model), "device", torch.device("cuda"))
        return evaluator, candidates

    return evaluator_and_candidates


def test_the_block_size_is_measured_on_the_batch_with_most_tokens(elsewhere, monkeypatch):
    measured = []

    def seconds(self, number, block, adapter):
        measured.append(self.batches[number].tokens)
        return len(block)

    monkeypatch.setattr("integrations.population.can_pack", lambda *_: False)
    evaluator, candidates = elsewhere(seconds, 6, lengths=[5] * 100 + [20] * 3 + [60] * 2)
    evaluator.choose_block_size(candidates, Adapter(evaluator.arch))
    assert [batch.tokens for batch in evaluator.batches] == [500, 60, 120]
    assert {*measured} == {500}


@pytest.mark.parametrize(
    ("time", "measured", "best"),
    [
        (lambda size: 1, [20, 10], 20),  # where Python is what takes time
        (lambda size: size**2, [20, 10, 7, 4, 2, 1], 1),
    ],
)
def test_measured_passes_share_the_population_evenly(time, measured, best, elsewhere):
    """A last pass that is nearly empty could take as long as a full one."""
    sizes = []

    def seconds(self, number, block, adapter):
        sizes.append(len(block))
        return time(len(block))

    evaluator, candidates = elsewhere(seconds, 20, lengths=[5] * 2)
    evaluator.choose_block_size(candidates, Adapter(evaluator.arch))
    assert list(dict.fromkeys(sizes)) == measured
    assert evaluator.block_size == best
    evaluator.choose_block_size(candidates[:9], Adapter(evaluator.arch))
    assert evaluator.block_size == best  # measured once
    assert list(dict.fromkeys(sizes)) == measured


def test_a_block_that_does_not_fit_has_lost(elsewhere):
    def seconds(self, number, block, adapter):
        if len(block) > 7:
            raise torch.OutOfMemoryError
        return 1

    evaluator, candidates = elsewhere(seconds, 20, lengths=[5] * 2)
    evaluator.choose_block_size(candidates, Adapter(evaluator.arch))
    assert evaluator.block_size == 7


def test_where_memory_runs_out_later_blocks_are_halved(monkeypatch):
    arch = describe(build_model("llama"))
    candidates, adapter = random_factors(arch, 2, 6, seed=1), random_adapter(arch)
    expected = make_evaluator(arch, speedups=NAIVE).evaluate(2, candidates, adapter)
    own = PopulationEvaluator._logits

    def little_memory(self, arch, number, block, *rest):
        if len(block) > most:
            raise torch.OutOfMemoryError
        return own(self, arch, number, block, *rest)

    monkeypatch.setattr(PopulationEvaluator, "_logits", little_memory)
    evaluator, most = make_evaluator(arch, speedups=Speedups(blocks=6)), 2
    assert evaluator.evaluate(2, candidates, adapter) == pytest.approx(expected, abs=1e-5)
    assert evaluator.block_size == 1
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        evaluator.evaluate(2, candidates, adapter)


def test_what_candidates_share_holds_no_copies(monkeypatch):
    shared = []

    class Kept(SharedBase):
        def __init__(self):
            super().__init__()
            shared.append(self)

    monkeypatch.setattr("integrations.population.SharedBase", Kept)
    arch = describe(build_model("llama"))
    evaluator = make_evaluator(arch, speedups=Speedups(blocks=4))
    evaluator.evaluate(2, random_factors(arch, 2, 8), Adapter(arch))
    used = [base for base in shared if base.input is not None]
    assert used
    for base in used:
        assert base.input.untyped_storage().nbytes() == base.input.nbytes


class Halved(torch.nn.Linear):
    """A head that does more than multiply."""

    def forward(self, x):
        return super().forward(x) / 2


def test_a_head_that_does_more_than_multiply_is_run_as_it_is():
    model = build_model("llama")
    model.lm_head.__class__ = Halved
    arch = describe(model)
    fast = make_evaluator(arch).logits(Adapter(arch))
    expected = label_logits(model, random_prompts("causal", LENGTHS))
    assert fast == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "roberta"])
def test_which_token_pads_makes_no_difference(family):
    arch = describe(build_model(family))
    candidates, adapter = random_factors(arch, 2, 3, seed=1), random_adapter(arch)
    losses = [
        make_evaluator(arch, pad_id=pad_id, speedups=Speedups(no_padding=False)).evaluate(
            2, candidates, adapter
        )
        for pad_id in (0, PAD, 200)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[2] == pytest.approx(losses[1], abs=1e-5)


# -- kept hidden states ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
def test_losses_are_the_same_bits_whatever_is_in_the_cache(family):
    """A resumed run starts with an empty cache; one left alone has states of several layers."""
    arch = describe(build_model(family), ("q", "v"))
    adapter = random_adapter(arch, [0, 2])

    def losses(evaluator, layer):
        return evaluator.evaluate(layer, random_factors(arch, layer, 5, seed=1), adapter).tolist()

    def evaluator():
        return make_evaluator(arch, speedups=Speedups(blocks=2))

    afresh = {layer: losses(evaluator(), layer) for layer in range(LAYERS)}
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 2, 3]):
        advanced = evaluator()
        for layer in order:
            assert losses(advanced, layer) == afresh[layer]
    adapter.place(1, random_factors(arch, 1, 1, seed=2))
    assert losses(advanced, 3) == losses(evaluator(), 3) != afresh[3]


@pytest.mark.parametrize("prefix_bytes", [1, 40_000, 1 << 30])
@pytest.mark.parametrize("family", ["llama", "bert", "t5", "bart"])
def test_layers_in_any_order_between_changes_in_any_layer(family, prefix_bytes):
    arch = describe(build_model(family))
    evaluator = make_evaluator(arch, speedups=Speedups(blocks=2))
    evaluator._prefix.max_bytes = prefix_bytes
    adapter = Adapter(arch)
    rng = np.random.default_rng(0)
    for step in range(20):
        placed, tuned = rng.integers(LAYERS, size=2).tolist()
        adapter.place(placed, random_factors(arch, placed, 1, seed=step))
        if step % 5 == 4:
            adapter.place(rng.integers(LAYERS), None)
        candidates = random_factors(arch, tuned, 2, seed=100 + step)
        losses = evaluator.evaluate(tuned, candidates, adapter)
        fresh = make_evaluator(arch, speedups=NAIVE).evaluate(tuned, candidates, adapter)
        assert losses == pytest.approx(fresh, abs=1e-5)


def test_deltas_of_different_adapters_are_told_apart():
    """Each adapter had one change in layer 0, so a count of changes would be the same."""
    arch = describe(build_model("llama"))
    evaluator = make_evaluator(arch)
    candidates = random_factors(arch, 3, 2, seed=9)
    original = random_adapter(arch, [0])
    copied = original.copy()
    other = random_adapter(arch, [0], seed=1)
    copied.place(1, random_factors(arch, 1, 1, seed=2))
    original.place(1, random_factors(arch, 1, 1, seed=3))
    for adapter in (original, copied, other, original):
        fresh = make_evaluator(arch, speedups=NAIVE).evaluate(3, candidates, adapter)
        assert evaluator.evaluate(3, candidates, adapter) == pytest.approx(fresh, abs=1e-5)


@pytest.mark.parametrize("order", [range(LAYERS), range(LAYERS)[::-1], [2, 1, 3, 1, 2]])
@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_kept_states_stay_within_their_memory_but_for_those_in_use(order, kept):
    arch = describe(build_model("llama"))
    batches = make_evaluator(arch).batches
    state_bytes = [batch.ids.numel() * HIDDEN * 4 for batch in batches]
    prefix_bytes = kept * len(batches) * max(state_bytes)
    evaluator = make_evaluator(arch, speedups=Speedups(blocks=2), memory_limit=10**9)
    evaluator._prefix.max_bytes = prefix_bytes
    held = []

    def hold(module, args):
        states = [x for batch in evaluator._prefix._states for _, x in batch.values()]
        held.append(sum(x.nbytes for x in states))

    for layer in arch.layers:
        layer.register_forward_pre_hook(hold)
    for layer in order:
        evaluator.evaluate(layer, random_factors(arch, layer, 2), Adapter(arch))
    assert 0 < max(held) <= max(prefix_bytes, sum(state_bytes))


def test_the_states_that_are_dearest_to_compute_anew_are_kept():
    """Coming back to the first tuned layer after a sweep costs no pass through those before it."""
    arch = describe(build_model("llama", num_hidden_layers=6))
    evaluator = make_evaluator(arch, speedups=Speedups(blocks=2))
    (batch,) = evaluator.batches
    evaluator._prefix.max_bytes = 2 * batch.ids.numel() * HIDDEN * 4
    for layer in range(3, 6):
        evaluator.evaluate(layer, random_factors(arch, layer, 2), Adapter(arch))
    assert evaluator._prefix._states[0].keys() == {3, 5}


def test_two_layers_states_are_kept_however_much_they_take():
    """In each batch, though a share of a tiny model's weights would hold none."""
    arch = describe(build_model("llama", num_hidden_layers=6))
    evaluator = make_evaluator(arch, [60, *20 * [40]], speedups=Speedups(blocks=1))
    for layer in range(3, 6):
        evaluator.evaluate(layer, random_factors(arch, layer, 1), Adapter(arch))
    assert len({batch.ids.numel() for batch in evaluator.batches}) > 1
    assert all(states.keys() == {3, 5} for states in evaluator._prefix._states)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_on_a_cpu_no_pass_holds_more_tokens_than_gain_time(family, monkeypatch):
    """Even if noise in the measurement of the block's size speaks for ever larger ones."""
    times = iter(0.5**i for i in range(1000))
    monkeypatch.setattr(PopulationEvaluator, "_seconds", lambda *_: next(times))
    arch = describe(build_model(family))
    for lengths in (LENGTHS, 60 * [40]):
        evaluator = make_evaluator(arch, lengths)
        evaluator.evaluate(1, random_factors(arch, 1, 64), Adapter(arch))
        tokens = max(batch.ids.numel() for batch in evaluator.batches)
        assert CPU_MOST_TOKENS / 2 < evaluator.pass_size * tokens <= CPU_MOST_TOKENS


def test_a_sweep_runs_each_frozen_layer_once_and_the_tuned_ones_for_each_block():
    """What the prefix cache saves, counted: without it a candidate costs all layers."""
    arch = describe(build_model("llama"))
    calls = [0] * LAYERS

    def count(layer):
        def hook(module, args, output):
            calls[layer] += 1

        return arch.layers[layer].self_attn.register_forward_hook(hook)

    handles = [count(layer) for layer in range(LAYERS)]
    evaluator = make_evaluator(arch, speedups=Speedups(blocks=2))
    for layer in range(LAYERS):
        evaluator.evaluate(layer, random_factors(arch, layer, 6), Adapter(arch))
    for handle in handles:
        handle.remove()
    batches = len(evaluator.batches)
    # Layer l runs for the 3 blocks of each layer up to l, and once to pass on what enters l + 1.
    assert calls == [batches * (3 * (layer + 1) + (layer < LAYERS - 1)) for layer in range(LAYERS)]


# -- label logits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "roberta", "gemma2"])
@pytest.mark.parametrize("tuned", [False, True])
def test_logits_come_in_the_order_of_the_prompts(family, tuned):
    model = build_model(family)
    arch = describe(model)
    adapter = random_adapter(arch) if tuned else Adapter(arch)
    plain = peft_model(model, adapter) if tuned else model
    expected = label_logits(plain, random_prompts(arch.kind, LENGTHS))
    for speedups in (Speedups(), Speedups(answer_head=False), NAIVE):
        logits = make_evaluator(arch, speedups=speedups).logits(adapter)
        assert logits.dtype == np.float32
        assert logits == pytest.approx(expected.numpy(), abs=1e-4)


def test_progress_counts_prompts():
    arch = describe(build_model("llama"))
    prompts = random_prompts(arch.kind, [60] * 40)
    evaluator = PopulationEvaluator(arch, prompts, LABEL_IDS, pad_id=PAD, loss=cross_entropy)
    told = []
    evaluator.logits(Adapter(arch), lambda done, of: told.append((done, of)))
    assert len(told) > 1
    assert told == sorted(told)
    assert {of for _, of in told} == {40}
    assert told[-1][0] == 40


def test_the_loss_in_place_is_that_of_the_only_candidate_who_is_in_place():
    arch = describe(build_model("mistral"))
    adapter = random_adapter(arch)
    evaluator = make_evaluator(arch)
    in_place = evaluator.loss_in_place(adapter)
    for layer in range(LAYERS):
        losses = evaluator.evaluate(layer, adapter.factors[layer], adapter)
        assert losses == pytest.approx([in_place], abs=1e-5)


def test_prompts_as_long_as_the_model_can_take():
    """RoBERTa's first positions belong to no token."""
    for family, longest in (("llama", 64), ("bert", 64), ("roberta", 62), ("opt", 64)):
        model = build_model(family)
        arch = describe(model)
        prompts = random_prompts(arch.kind, [longest, 5])
        evaluator = PopulationEvaluator(
            arch, prompts, LABEL_IDS, pad_id=PAD, loss=cross_entropy, speedups=NAIVE
        )
        expected = label_logits(model, prompts)
        assert evaluator.logits(Adapter(arch)) == pytest.approx(expected.numpy(), abs=1e-4)


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", ["all on", "no answer head", "padding"])
@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_a_memory_limit_cuts_batches_and_blocks_and_leaves_the_losses(family, steps):
    arch = describe(build_model(family))
    candidates, adapter = random_factors(arch, 1, 6, seed=1), random_adapter(arch)
    expected = make_evaluator(arch, speedups=NAIVE).evaluate(1, candidates, adapter)
    passes = []
    arch.layers[2].register_forward_pre_hook(lambda _, args: passes.append(args[0].numel()))
    widest = []
    for limit in (None, 2_000_000, 200_000):
        passes.clear()
        evaluator = make_evaluator(arch, speedups=STEPS[steps], memory_limit=limit)
        evaluator.block_size, evaluator.chosen_for = 6, None
        assert evaluator.evaluate(1, candidates, adapter) == pytest.approx(expected, abs=1e-5)
        widest.append(max(passes))
    assert widest == sorted(widest, reverse=True)
    assert widest[0] > widest[-1]


def test_bytes_per_token_are_what_the_widest_layer_returns():
    """A llama layer: two norms, q, k, v, o, three parts of the MLP and its activation."""
    arch = describe(build_model("llama"))
    prompts = random_prompts("causal")
    heads, groups, hidden, inner = HIDDEN, HIDDEN // 2, HIDDEN, 64
    floats = 2 * hidden + heads + 2 * groups + hidden + 2 * inner + inner + hidden
    assert bytes_per_token(arch, prompts, all_logits=False) == 4 * floats


def test_a_limit_below_the_longest_prompt_says_what_is_needed():
    arch = describe(build_model("llama"))
    with pytest.raises(UserError, match=r"memory_limit of 0\.0 MB is too little: .* take 0\.\d MB"):
        make_evaluator(arch, memory_limit=5_000)
