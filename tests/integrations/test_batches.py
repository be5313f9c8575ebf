"""Batches: which prompts go through the model together, and where each lies."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import (
    LABEL_IDS,
    PAD,
    build_model,
    kind_of,
    label_logits,
    random_prompts,
)
from transformers import Gemma3Config

from integrations.architectures import FAMILIES, describe
from integrations.batches import group_by_length, make_batches, overhead_tokens
from integrations.packing import NAME, can_pack
from integrations.prompts import Prompt

CPU = torch.device("cpu")

# -- groups of like length -------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 100), min_size=1, max_size=9)
OVERHEADS = st.sampled_from([0, 32, 1000])


def cost(groups, lengths, overhead):
    padded = sum(len(group) * max(lengths[i] for i in group) for group in groups)
    return padded + overhead * len(groups)


@given(LENGTHS, st.integers(1, 400), OVERHEADS)
@settings(deadline=None, derandomize=True)
def test_groups_are_a_partition_within_the_limit(lengths, max_tokens, overhead):
    groups = group_by_length(lengths, max_tokens, overhead)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        tokens = len(group) * max(lengths[i] for i in group)
        assert tokens <= max_tokens or len(group) == 1


@given(LENGTHS, st.integers(1, 400), OVERHEADS)
@settings(deadline=None, derandomize=True)
def test_no_cut_of_the_sorted_prompts_is_cheaper(lengths, max_tokens, overhead):
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    best = float("inf")
    for cuts in product([False, True], repeat=len(lengths) - 1):
        groups = [order[:1]]
        for i, cut in zip(order[1:], cuts, strict=True):
            if cut:
                groups.append([i])
            else:
                groups[-1].append(i)
        sizes = [(len(g) * max(lengths[i] for i in g), len(g)) for g in groups]
        if all(tokens <= max_tokens or n == 1 for tokens, n in sizes):
            best = min(best, cost(groups, lengths, overhead))
    found = group_by_length(lengths, max_tokens, overhead)
    assert cost(found, lengths, overhead) == best


def test_on_a_gpu_the_batches_of_a_small_model_are_fewer():
    small, large = torch.nn.Linear(1000, 1000), torch.nn.Linear(10000, 10000)
    overheads = [overhead_tokens(torch.device("cuda"), layer) for layer in (small, large)]
    assert overheads[0] == pytest.approx(100 * overheads[1], rel=0.05)
    assert overhead_tokens(CPU, small) == overhead_tokens(CPU, large) == 32


# -- layouts ---------------------------------------------------------------------------------------


def prompts_of(*lengths):
    return [
        Prompt(tuple(range(10, 10 + length)), answer=length - 1, label=i)
        for i, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("layout", ["grouped", "padded"])
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_prompts_are_padded_on_the_right(kind, layout):
    prompts = prompts_of(3, 90, 5, 4, 88)
    batches = make_batches(prompts, PAD, kind, CPU, layout=layout)
    assert len(batches) == (2 if layout == "grouped" else 1)
    seen = []
    for batch in batches:
        assert len(batch) == len(batch.order) == batch.rows
        for n, place in enumerate(batch.order.tolist()):
            length = len(prompts[place].ids)
            assert tuple(batch.ids[n, :length].tolist()) == prompts[place].ids
            assert (batch.ids[n, length:] == PAD).all()
            real = [True] * length + [False] * (batch.ids.shape[1] - length)
            assert batch.real[n].tolist() == real
            assert batch.answer_rows[n] == n
            assert (batch.answers[n], batch.labels[n]) == (prompts[place].answer, place)
            if kind == "masked":
                assert batch.mask[n].bool().tolist() == real
            seen.append(place)
    assert sorted(seen) == list(range(5))


@given(LENGTHS, st.integers(1, 400), st.integers(0, 2))
@settings(deadline=None, derandomize=True)
def test_packed_prompts_lie_end_to_end(lengths, max_tokens, first_position):
    prompts = prompts_of(*lengths)
    batches = make_batches(
        prompts,
        PAD,
        "masked",
        CPU,
        layout="packed",
        max_tokens=max_tokens,
        first_position=first_position,
    )
    seen = []
    for batch in batches:
        assert batch.rows == 1
        assert batch.mask is None
        assert batch.real.all()
        assert batch.ids.numel() <= max_tokens or len(batch) == 1
        starts = [
            segment.start + i * segment.length
            for segment in batch.segments
            for i in range(segment.prompts)
        ]
        assert len(starts) == len(batch)
        for n, (start, place) in enumerate(zip(starts, batch.order.tolist(), strict=True)):
            prompt = prompts[place]
            lies = slice(start, start + len(prompt.ids))
            assert tuple(batch.ids[0, lies].tolist()) == prompt.ids
            positions = range(first_position, first_position + len(prompt.ids))
            assert batch.positions[0, lies].tolist() == list(positions)
            assert (batch.answer_rows[n], batch.answers[n]) == (0, start + prompt.answer)
            assert batch.labels[n] == place
            seen.append(place)
    assert sorted(seen) == list(range(len(lengths)))


def test_decoder_inputs_are_padded_on_the_right_too():
    prompts = [
        replace(prompt, decoder_ids=(PAD, *prompt.ids[:n]), answer=n)
        for n, prompt in enumerate(prompts_of(3, 5, 4))
    ]
    (batch,) = make_batches(prompts, PAD, "seq2seq", CPU, layout="padded")
    assert batch.decoder_ids.tolist() == [[PAD, PAD, PAD], [PAD, 10, PAD], [PAD, 10, 11]]
    assert batch.decoder_real.sum(dim=1).tolist() == [1, 2, 3]
    assert batch.answers.tolist() == [0, 1, 2]
    assert batch.mask.sum(dim=1).tolist() == [3, 5, 4]


def test_a_mask_is_there_only_where_it_changes_anything():
    """A causal answer attends to nothing after it; prompts of one length have no padding."""
    (mixed,) = make_batches(prompts_of(3, 4), PAD, "masked", CPU)
    (equal,) = make_batches(prompts_of(4, 4), PAD, "masked", CPU)
    (causal,) = make_batches(prompts_of(3, 4), PAD, "causal", CPU)
    assert mixed.mask is not None
    assert equal.mask is None
    assert causal.mask is None


@pytest.mark.parametrize("layout", ["packed", "grouped", "padded"])
def test_batches_hold_so_many_tokens_at_most(layout):
    batches = make_batches(prompts_of(*[10] * 7), PAD, "causal", CPU, layout=layout, max_tokens=30)
    assert sorted(len(batch) for batch in batches) in ([1, 3, 3], [2, 2, 3])


@pytest.mark.parametrize("layout", ["packed", "grouped"])
@pytest.mark.parametrize("copies", [1, 3])
def test_what_is_at_the_answers_goes_back_to_them(layout, copies):
    (batch,) = make_batches(prompts_of(3, 4, 4), PAD, "causal", CPU, layout=layout)
    x = torch.randn(copies * batch.rows, batch.ids.shape[1], 2)
    y = batch.at_answers(x)
    assert y.shape == (copies * len(batch), 1, 2)
    back = batch.put_back(y)
    assert back.shape == x.shape
    assert torch.equal(batch.at_answers(back), y)
    assert torch.count_nonzero(back) == torch.count_nonzero(y)


# -- packed prompts in a model ---------------------------------------------------------------------

PACKING = [family for family in FAMILIES if can_pack(build_model(family), 1)]


def test_most_families_can_pack():
    assert {"llama", "qwen2", "qwen3", "gemma", "mistral", "gpt2", "bert", "roberta"} <= {*PACKING}


@pytest.mark.parametrize("family", PACKING)
@pytest.mark.parametrize("copies", [1, 2])
def test_packed_prompts_do_not_see_each_other(family, copies):
    """More tokens in the row than the model has positions."""
    model = build_model(family)
    arch = describe(model)
    lengths = [n for n in (9, 5, 3, 30, 2, 5, 4, 7, 40, 9) if can_pack(model, n)]
    prompts = random_prompts(kind_of(family), lengths)
    (batch,) = make_batches(
        prompts, PAD, arch.kind, CPU, layout="packed", first_position=arch.family.reserved_positions
    )
    with torch.inference_mode():
        logits = batch.at_answers(batch.run(model, copies).logits)
    expected = label_logits(model, [prompts[i] for i in batch.order])
    for one in logits.view(copies, len(prompts), -1)[..., list(LABEL_IDS)]:
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)


def test_a_model_attends_as_before_after_a_packed_row_and_after_an_error():
    model = build_model("llama")
    prompts = random_prompts("causal")
    (batch,) = make_batches(prompts, PAD, "causal", CPU, layout="packed")
    before, config = label_logits(model, prompts), model.config.to_dict()
    with torch.inference_mode():
        batch.run(model)
        handle = model.lm_head.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            batch.run(model)
        handle.remove()
    assert model.config._attn_implementation != NAME
    assert model.config.to_dict() == config
    assert torch.equal(label_logits(model, prompts), before)


def test_models_that_mask_attention_by_themselves_are_not_packed():
    assert not can_pack(build_model("mistral", sliding_window=16), 17)
    assert can_pack(build_model("mistral", sliding_window=16), 16)
    eager = build_model("llama")
    eager.set_attn_implementation("eager")
    assert not can_pack(eager, 5)


def test_a_model_whose_parts_have_other_attention_is_not_packed():
    """Its attention could not be put back as it was."""

    class Model:
        _supports_attention_backend = True

        def __init__(self, vision):
            self.config = Gemma3Config()
            for part in (self.config, self.config.text_config, self.config.vision_config):
                part._attn_implementation = "sdpa"
            self.config.vision_config._attn_implementation = vision

        def forward(self, position_ids):
            pass

    assert can_pack(Model("sdpa"), 5)
    assert not can_pack(Model("eager"), 5)
