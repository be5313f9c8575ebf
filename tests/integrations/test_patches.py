"""A frozen model is left exactly as it was, whatever happens in between."""

from contextlib import ExitStack

import pytest
import torch
from tiny import (
    LABEL_IDS,
    PAD,
    build_model,
    kind_of,
    random_adapter,
    random_factors,
    random_prompts,
)
from torch import nn

from integrations import NAIVE, PopulationEvaluator, Speedups
from integrations.architectures import FAMILIES, Target, describe
from integrations.metrics import cross_entropy
from integrations.patches import Patches, add_deltas, evaluating
from lora_kernels import Factors


def test_an_interrupt_between_two_of_the_undos_leaves_none_of_them(monkeypatch):
    layer, own, calls = nn.Linear(2, 2), ExitStack.__exit__, []

    def interrupted(self, *details):
        calls.append(self)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return own(self, *details)

    monkeypatch.setattr(ExitStack, "__exit__", interrupted)
    patches = Patches()
    patches.before(layer, lambda x: x + 1)
    patches.replace(layer, lambda x: x)
    with pytest.raises(KeyboardInterrupt):
        patches.__exit__(None, None, None)
    assert "forward" not in vars(layer)
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "places",
    [[slice(None)], [slice(0, 4), slice(8, 12)], [torch.tensor([0, 1, 6, 7]), slice(8, 12)]],
    ids=["alone", "fused", "interleaved"],
)
def test_deltas_are_the_products_of_their_factors(places, count, contiguous):
    torch.manual_seed(0)
    x, y = torch.randn(2 * count, 5, 6), torch.randn(2 * count, 5, 12)
    if not contiguous:
        y = y.mT.contiguous().mT
    expected, members = y.clone(), []
    for columns in places:
        width = y[..., columns].shape[-1]
        target = Target("q", nn.Linear(6, 12), "", "", 6, 12, width, columns)
        factors = Factors(torch.randn(count, 3, 6), torch.randn(count, 3, width))
        members.append((target, factors))
        for p, rows in enumerate(torch.arange(2 * count).chunk(count)):
            expected[rows[0] : rows[-1] + 1, :, columns] += x[rows] @ factors.A[p].T @ factors.B[p]
    torch.testing.assert_close(add_deltas(members)(x, y), expected)


class Untouched:
    """Notes what a model is and computes; ``check`` finds any difference."""

    def __init__(self, model):
        self.model = model
        self.ids = torch.arange(10, 40).view(3, 10)
        self.before = self.look()

    @torch.no_grad()
    def look(self):
        hooks = [
            [len(value) for name, value in sorted(vars(module).items()) if "_hooks" in name]
            for module in self.model.modules()
        ]
        modes = [module.training for module in self.model.modules()]
        weights = {name: w.clone() for name, w in self.model.state_dict().items()}
        grads = [parameter.requires_grad for parameter in self.model.parameters()]
        inputs = {"input_ids": self.ids}
        if self.model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = self.ids[:, :4]
        return hooks, modes, grads, weights, self.model(**inputs).logits

    def check(self):
        *plain, weights, logits = self.look()
        *plain_before, weights_before, logits_before = self.before
        assert plain == plain_before
        assert weights.keys() == weights_before.keys()
        assert all(torch.equal(weights[name], weights_before[name]) for name in weights)
        assert torch.equal(logits, logits_before)
        assert not any("forward" in vars(module) for module in self.model.modules())


def evaluate(model, loss=cross_entropy, speedups=NAIVE):
    arch = describe(model, ("q", "v", "o"))
    prompts = random_prompts(arch.kind)
    evaluator = PopulationEvaluator(
        arch, prompts, LABEL_IDS, pad_id=PAD, loss=loss, speedups=speedups
    )
    adapter = random_adapter(arch)
    for layer in (2, 0):
        evaluator.evaluate(layer, random_factors(arch, layer, 3, seed=1), adapter)
    evaluator.logits(adapter)


SPEEDUPS = [Speedups(), NAIVE]


@pytest.mark.parametrize("speedups", SPEEDUPS, ids=["fast", "naive"])
@pytest.mark.parametrize("family", FAMILIES)
def test_after_an_evaluation(family, speedups):
    model = build_model(family)
    untouched = Untouched(model)
    evaluate(model, speedups=speedups)
    untouched.check()


@pytest.mark.parametrize("speedups", SPEEDUPS, ids=["fast", "naive"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_after_a_loss_that_raises(family, speedups):
    model = build_model(family)
    untouched = Untouched(model)
    calls = []

    def loss(logits, labels):
        calls.append(logits)
        if len(calls) == 2:
            raise ZeroDivisionError
        return cross_entropy(logits, labels)

    with pytest.raises(ZeroDivisionError):
        evaluate(model, loss, speedups)
    untouched.check()


@pytest.mark.parametrize("speedups", SPEEDUPS, ids=["fast", "naive"])
@pytest.mark.parametrize("layer", range(4))
def test_after_a_layer_that_raises(layer, speedups):
    """As running out of memory does, in the middle of a forward pass."""
    model = build_model("llama")
    untouched = Untouched(model)
    calls = []

    def fail(module, args):
        calls.append(module)
        if len(calls) == 2:
            raise MemoryError

    handle = model.get_submodule(f"model.layers.{layer}.mlp").register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        evaluate(model, speedups=speedups)
    handle.remove()
    untouched.check()


def test_an_evaluation_after_one_that_raised_is_not_misled_by_it():
    """What the failed one had cached is whole, or not there."""
    arch = describe(build_model("llama"))
    prompts = random_prompts(arch.kind)
    adapter, candidates = random_adapter(arch), random_factors(arch, 3, 2, seed=1)

    def evaluator():
        return PopulationEvaluator(arch, prompts, LABEL_IDS, pad_id=PAD, loss=cross_entropy)

    expected = evaluator().evaluate(3, candidates, adapter)
    for layer in range(4):
        stopped = evaluator()
        module = arch.layers[layer]
        handle = module.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stopped.evaluate(3, candidates, adapter)
        handle.remove()
        assert stopped.evaluate(3, candidates, adapter) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_of_others_stay_and_still_see_the_modules_run(family):
    model = build_model(family)
    arch = describe(model)
    seen = []
    for target in arch.targets[2].values():
        target.module.register_forward_hook(lambda *_: seen.append(kind_of(family)))
    untouched = Untouched(model)
    seen.clear()
    evaluate(model, speedups=Speedups())
    assert seen
    untouched.check()


def test_a_forward_that_another_library_wrapped_is_put_back():
    model = nn.Linear(2, 2)
    own = model.forward

    def wrapped(x):
        return own(x) + 1

    model.forward = wrapped
    with Patches() as patches:
        patches.replace(model, lambda x: x)
        assert torch.equal(model(torch.ones(2)), torch.ones(2))
    assert model.forward is wrapped


def test_changes_are_undone_last_first():
    module = nn.Identity()
    x = torch.ones(1)
    with Patches() as patches:
        patches.before(module, lambda x: 2 * x)
        patches.replace(module, lambda x: 3 * x)
        patches.replace(module, lambda x: 5 * x)
        patches.after(module, lambda x, y: y + x)
        assert module(x) == 12  # 5 * 2 + 2
    assert module(x) == 1
    assert "forward" not in vars(module)


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_each_module_goes_back_to_its_own_mode(error):
    model = build_model("llama").train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    try:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            if error:
                raise error
    except ZeroDivisionError:
        pass
    assert [module.training for module in model.modules()] == modes
