import numpy as np
import pytest
import torch
from scipy import stats

from lora_kernels.philox import normal_rows, philox_4x32

tl = pytest.importorskip("triton.language")

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    words = tuple(torch.tensor([int(word, 16)]) for word in counter.split())
    low, high = (int(word, 16) for word in key.split())
    result = philox_4x32(words, low | high << 32)
    assert " ".join(f"{int(word):08x}" for word in result) == expected


def _randint4x_kernel(seed: tl.int64, offset, out, N: tl.constexpr):
    index = tl.arange(0, N)
    words = tl.randint4x(seed, tl.load(offset + index))
    for word in tl.static_range(4):
        tl.store(out + 4 * index + word, words[word])


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**40 + 7, 2**63 - 1])
def test_same_words_as_triton(interpreter, seed):
    import triton

    row, group = torch.arange(0, 2**31, 2**27 + 12345)[:16], torch.arange(16) ** 7
    out = torch.empty(16, 4, dtype=torch.int32)
    triton.jit(_randint4x_kernel)[(1,)](seed, row << 32 | group, out, N=16)
    zero = torch.tensor(0)
    words = philox_4x32((group, row, zero, zero), seed)
    np.testing.assert_array_equal(out.numpy().view(np.uint32), torch.stack(words, 1).numpy())


def test_entry_depends_on_its_place_only():
    whole = normal_rows(seed=5, stream=2**33 + 1, start=0, stop=1000, columns=131)
    assert torch.equal(normal_rows(5, 2**33 + 1, 100, 107, 131), whole[100:107])
    assert torch.equal(normal_rows(5, 2**33 + 1, 0, 1000, 7), whole[:, :7])


def test_seeds_and_streams_are_independent():
    entries = [
        normal_rows(seed, stream, 0, 200, 100).flatten()
        for seed in (0, 1, 2**32)
        for stream in (0, 1, 2**32)
    ]
    correlation = torch.corrcoef(torch.stack(entries)) - torch.eye(len(entries))
    assert correlation.abs().max() < 5 / 20_000**0.5


def test_entries_are_standard_normal():
    entries = normal_rows(seed=11, stream=3, start=0, stop=1000, columns=500)
    assert stats.kstest(entries.flatten().numpy(), "norm").pvalue > 0.01
    for axis in (0, 1):  # neighbours, among them the pairs that Box-Muller makes
        pairs = torch.corrcoef(torch.stack([entries.roll(1, axis).flatten(), entries.flatten()]))
        assert pairs[0, 1].abs() < 5 / entries.numel() ** 0.5
    assert entries.abs().max() < 6
