"""The integer hash is splitmix64, bit for bit."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hip_model.random_bits import as_int64, random_bits, unit_interval

MASK = (1 << 64) - 1


def splitmix64(seed, count):
    """The generator written with Python's integers."""
    outputs = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        value = seed
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        outputs.append(value ^ (value >> 31))
    return outputs


@given(st.integers(-(1 << 63), (1 << 63) - 1))
@settings(max_examples=50, deadline=None)
def test_equals_the_generator_on_python_integers(seed):
    ours = random_bits(torch.tensor([seed]), 5)[0].tolist()
    assert ours == [as_int64(value) for value in splitmix64(seed & MASK, 5)]


def test_known_first_output_for_seed_zero():
    assert random_bits(torch.zeros(1, dtype=torch.int64), 1).item() == as_int64(0xE220A8397B1DCDAF)


def test_unit_interval_is_open_and_uniform():
    values = unit_interval(random_bits(torch.arange(8), 4096))
    assert 0 < values.min() < values.max() < 1
    assert abs(values.mean().item() - 0.5) < 0.01
    assert unit_interval(torch.tensor([0, -1])).tolist() == [2**-53, 1 - 2**-53]
