"""The cost model against counts by hand, and the page that quotes it."""

import contextlib
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora_kernels import cost

PAGE = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
PRINTING = re.findall(r"```python\n((?:(?!```).)*)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
H100 = cost.DEVICES["H100"]
SMALL = cost.Sizes(20, tokens=32, hidden=16, out_features=16, rank=4, d_a=16, d_b=16)
LARGE = cost.Sizes(20, tokens=1024, hidden=1024, out_features=1024, rank=4, d_a=125, d_b=125)


def _bytes(*shapes, size=2):
    return size * sum(torch.Size(shape).numel() for shape in shapes)


@pytest.mark.parametrize("x_shared", [True, False])
@pytest.mark.parametrize("base_shared", [True, False])
def test_apply_moves_each_tensor_once(x_shared, base_shared):
    q = cost.Sizes(
        5, 7, 32, 48, 4, 9, 9, torch.bfloat16, x_shared=x_shared, base_shared=base_shared
    )
    v = replace(q, out_features=16, width=32)
    launch = cost.apply([q, v], H100)
    each = (5, 7)
    x, base = (each if not shared else (7,) for shared in (x_shared, base_shared))
    tensors = [(*x, 32), (5, 4, 32), (5, 4, 48), (*base, 48), (*each, 48)]
    tensors += [(5, 4, 32), (5, 4, 16), (*base, 32), (*each, 32)]
    assert launch.bytes == _bytes(*tensors)
    assert launch.flops == 2 * 5 * 7 * 4 * (32 + 48 + 32 + 16)


def test_project_moves_each_tensor_once():
    stored = cost.project(20, 4096, 125, H100, stored=torch.bfloat16)
    assert stored.bytes == _bytes((20, 125), (20, 4096), size=4) + _bytes((4096, 125))
    assert stored.draws == 0
    seeded = cost.project(20, 4096, 125, H100)
    assert seeded.bytes == _bytes((20, 125), (20, 4096), size=4)
    assert seeded.flops == stored.flops == 2 * 20 * 4096 * 125
    assert seeded.draws == 4096 * 128 / 4  # 125 columns take two steps of 64


def test_one_launch_saves_the_factors_and_draws_more():
    apart, at_once = cost.separate(LARGE, H100), cost.fused(LARGE, H100)
    assert at_once.bytes < apart[-1].bytes
    assert at_once.flops == apart[-1].flops
    assert at_once.draws > 10 * sum(launch.draws for launch in apart)


def test_the_slowest_resource_decides():
    launch = cost.Launch(H100.bandwidth, 0, torch.float32, 0, programs=H100.processors)
    assert launch.seconds(H100) == pytest.approx(1 + H100.launch)
    products = replace(launch, flops=2 * H100.matrix[torch.float32])
    assert products.seconds(H100) == pytest.approx(2 + H100.launch)
    drawing = replace(launch, draws=3 * H100.instructions / cost.DRAW_INSTRUCTIONS)
    assert drawing.seconds(H100) == pytest.approx(3 + H100.launch)
    assert replace(launch, programs=H100.processors // 2).work(H100) == launch.work(H100)
    half_idle = replace(launch, programs=H100.processors // 2)
    assert half_idle.seconds(H100) == pytest.approx(2 + H100.launch)
    assert replace(launch, programs=0).seconds(H100) == H100.launch


@pytest.mark.parametrize("device", cost.DEVICES.values(), ids=lambda device: device.name)
def test_one_launch_pays_for_small_layers_only(device):
    assert cost.fusing_pays(SMALL, device)
    assert not cost.fusing_pays(LARGE, device)
    width = cost.crossover(SMALL, device)
    at, above = (replace(SMALL, hidden=w, out_features=w) for w in (width, width + 16))
    assert cost.fusing_pays(at, device)
    assert not cost.fusing_pays(above, device)


def test_no_work_has_a_cost():
    for sizes in (replace(SMALL, candidates=0), replace(SMALL, tokens=0)):
        assert cost.fused(sizes, H100).seconds(H100) == H100.launch
        assert cost.seconds(cost.separate(sizes, H100), H100) >= 3 * H100.launch


def test_devices_are_known_by_name(monkeypatch):
    assert cost.device_for(torch.device("cpu")).name == "generic"
    names = {"NVIDIA H100 80GB HBM3": "H100", "NVIDIA H200": "H200", "?": "generic"}
    names["NVIDIA GeForce RTX 3090"] = "RTX 3090"
    for card, name in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, card=card: card)
        assert cost.device_for(torch.device("cuda")).name == name


@pytest.mark.parametrize(("block", "printed"), PRINTING)
def test_the_page_prints_what_it_says(block, printed):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(block, {})
    assert out.getvalue() == printed
