"""oneDNN's products in place of MKL's: same numbers, and only where they are meant."""

import numpy as np
import pytest
import torch
from quantized import QUANTIZED
from tiny import build_model, make_evaluator, random_adapter, random_factors
from torch import nn
from transformers.pytorch_utils import Conv1D

from integrations import Speedups, onednn, population
from integrations.architectures import describe
from integrations.onednn import use_onednn
from integrations.patches import Patches

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN"
)


@pytest.fixture
def pays(monkeypatch):
    """Use it whatever the processor."""
    monkeypatch.setattr(onednn, "pays", lambda: True)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def linear(bias):
    return nn.Linear(96, 130, bias=bias)


LAYERS = {
    "linear": lambda: linear(True),
    "linear without bias": lambda: linear(False),
    "Conv1D": lambda: Conv1D(130, 96),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("shape", [(96,), (1, 96), (7, 96), (3, 50, 96), (0, 96), (2, 0, 96)])
@torch.inference_mode()
def test_products_are_those_of_float64(make, shape, pays):
    layer, x = make(), torch.randn(shape)
    with Patches() as patches:
        use_onednn(patches, [layer])
        assert "forward" in vars(layer)
        y = layer(x)
    assert "forward" not in vars(layer)
    expected = layer.double()(x.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_an_input_whose_memory_is_in_another_order(pays):
    layer, x = linear(True), torch.randn(5, 96, 7).transpose(1, 2)
    expected = layer(x)
    with Patches() as patches:
        use_onednn(patches, [layer])
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_the_bits_do_not_depend_on_the_number_of_threads(pays):
    layer, x = nn.Linear(576, 1536), torch.randn(409, 576)
    threads, found = torch.get_num_threads(), []
    with Patches() as patches:
        use_onednn(patches, [layer])
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(layer(x))
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_layers_that_do_more_or_have_another_type_stay_as_they_are(pays):
    wrapped = linear(True)
    wrapped.forward = lambda x: x
    model = nn.ModuleList([Doubled(4, 4), nn.Linear(4, 4).half(), nn.Linear(4, 4).double()])
    with Patches() as patches:
        use_onednn(patches, [model, wrapped])
        assert not any("forward" in vars(module) for module in model)
        assert wrapped.forward(1) == 1
    assert wrapped.forward(1) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_losses_are_those_of_mkl_and_the_model_is_left_as_it_was(family, pays, monkeypatch):
    used = []
    monkeypatch.setattr(
        population, "use_onednn", lambda *given: (used.append(1), use_onednn(*given))
    )
    arch = describe(build_model(family))
    candidates, adapter = random_factors(arch, 2, 5, seed=1), random_adapter(arch)
    fast = make_evaluator(arch).evaluate(2, candidates, adapter)
    assert used
    used.clear()
    plain = make_evaluator(arch, speedups=Speedups(onednn=False)).evaluate(2, candidates, adapter)
    assert not used
    np.testing.assert_allclose(fast, plain, atol=1e-5)
    assert not any("forward" in vars(module) for module in arch.model.modules())


@pytest.mark.parametrize("how", QUANTIZED)
def test_weights_quantized_by_another_library_stay_with_it(how, pays):
    layer = QUANTIZED[how](linear(False))
    with Patches() as patches:
        use_onednn(patches, [layer])
        assert "forward" not in vars(layer)


def test_where_it_does_not_pay_nothing_changes(monkeypatch):
    monkeypatch.setattr(onednn, "pays", lambda: False)
    layer = linear(True)
    with Patches() as patches:
        use_onednn(patches, [layer])
        assert "forward" not in vars(layer)


@pytest.mark.parametrize(
    ("info", "expected"),
    [("vendor_id : AuthenticAMD", True), ("vendor_id : GenuineIntel", False), ("", False)],
)
def test_it_is_for_processors_of_amd(info, expected, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text(info)
    monkeypatch.setattr(onednn, "_CPU_INFO", path)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert onednn.pays.__wrapped__() is expected
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not onednn.pays.__wrapped__()
