"""Raw units in, normalised units out, and back without loss."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hip_model.errors import ConfigError, InputError
from hip_model.normalisation import Normalisation, normalisations_from_card


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_integers_round_trip_through_normalised_units(dtype):
    info = torch.iinfo(dtype)
    raw = torch.linspace(info.min, info.max, 90).to(dtype).reshape(2, 15, 3)
    normalisation = Normalisation((123.675, 116.28, 103.53), (58.4, 57.1, 57.4))
    normalised = normalisation.normalise(raw)
    assert normalised.dtype == torch.float32
    expected = (raw.double() - torch.tensor(normalisation.mean)) / torch.tensor(normalisation.std)
    torch.testing.assert_close(normalised, expected.float())
    assert torch.equal(normalisation.denormalise(normalised).round().to(dtype), raw)


@given(
    leading=st.lists(st.integers(0, 3), max_size=2),
    tokens=st.sampled_from([0, 1, 7, 32, 48, 64, 192, 200]),
    channels=st.integers(1, 4),
    flipped=st.booleans(),
)
def test_tokens_taken_together_give_the_values_of_each_channel_alone(leading, tokens, channels, flipped):
    raw = torch.randint(0, 255, (*leading, tokens, channels), dtype=torch.uint8)
    if flipped:  # strides that no view of several tokens fits
        raw = raw.transpose(-1, -2).contiguous().transpose(-1, -2)
    mean, std = [float(channel) for channel in range(channels)], [2.0**channel for channel in range(channels)]
    normalised = Normalisation(tuple(mean), tuple(std)).normalise(raw)
    assert normalised.shape == raw.shape
    for channel in range(channels):  # powers of two, so exact
        assert torch.equal(normalised[..., channel], (raw[..., channel].float() - mean[channel]) / std[channel])


def test_floats_are_normalised_only_when_declared_raw():
    values = torch.randn(2, 3, 1)
    assert Normalisation((5.0,), (2.0,)).normalise(values) is values
    assert Normalisation((5.0,), (2.0,), raw_dtype="int16").normalise(values) is values
    torch.testing.assert_close(Normalisation((5.0,), (2.0,), raw_dtype="float32").normalise(values), (values - 5) / 2)


def test_psnr_is_measured_in_raw_units():
    normalisation = Normalisation((100.0, 100.0), (50.0, 25.0), raw_dtype="uint8")
    squared_error = torch.tensor([0.04, 0.16])
    mean_squared_error = (0.04 * 2500 + 0.16 * 625) / 2
    expected = 10 * math.log10(255**2 / mean_squared_error)
    assert normalisation.psnr(squared_error).item() == pytest.approx(expected, rel=1e-6)


def test_peak_follows_statement_then_dtype():
    assert Normalisation((0.0,), (1.0,)).peak_value(torch.int16) == 65535
    assert Normalisation((0.0,), (1.0,)).peak_value(torch.float32) == 1
    assert Normalisation((0.0,), (1.0,), raw_dtype="uint8").peak_value(torch.float32) == 255
    assert Normalisation((0.0,), (1.0,), raw_dtype="uint8", peak=2).peak_value() == 2


def test_a_perfect_reconstruction_has_a_finite_psnr():
    assert Normalisation((0.0,), (1.0,)).psnr(torch.zeros(1)).item() == pytest.approx(120)


def test_data_card_gives_normalisations_with_their_dtype():
    card = {
        "modalities": [{"name": "points", "dtype": "float32"}],
        "normalisation": {"points": {"mean": [0.0, 1.0], "std": [1.0, 2.0]}},
    }
    assert normalisations_from_card(card) == {"points": Normalisation((0.0, 1.0), (1.0, 2.0), raw_dtype="float32")}
    with pytest.raises(InputError, match="no normalisation for points"):
        normalisations_from_card({**card, "normalisation": {}})


def test_errors():
    with pytest.raises(ConfigError, match="every std above 0"):
        Normalisation((0.0,), (0.0,))
    with pytest.raises(ConfigError, match="one mean and one std"):
        Normalisation((0.0,), (1.0, 1.0))
    with pytest.raises(ConfigError, match="peak above 0"):
        Normalisation((0.0,), (1.0,), peak=-1)
    with pytest.raises(InputError, match="2 channels"):
        Normalisation.identity(2).normalise(torch.zeros(4, 3))
