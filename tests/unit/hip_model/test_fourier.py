"""Fourier features follow the Perceiver's definition; tables survive a change of resolution."""

import math

import pytest
import torch

from hip_model.errors import ConfigError, InputError
from hip_model.fourier import fourier_features, num_fourier_channels, resize_position_table
from hip_model.ordering import token_order


@pytest.mark.parametrize(("shape", "channels"), [((7,), 129), ((5, 3), 258), ((2, 3, 4), 387)])
def test_width_and_token_count(shape, channels):
    features = fourier_features(shape, 64)
    assert features.shape == (math.prod(shape), channels)
    assert num_fourier_channels(len(shape), 64) == channels
    assert fourier_features(shape, 64, concat_position=False).shape[1] == channels - len(shape)


def test_values_written_out_by_hand():
    features = fourier_features((3, 5), 2, max_resolution=(8, 16))
    y, x = 1.0, -0.5
    angles = [y * 1, y * 4, x * 1, x * 8]
    expected = [y, x, *(math.sin(math.pi * a) for a in angles), *(math.cos(math.pi * a) for a in angles)]
    torch.testing.assert_close(features[2 * 5 + 1], torch.tensor(expected), atol=1e-6, rtol=0)


def test_rows_follow_the_token_order():
    order = torch.from_numpy(token_order("hilbert", (6, 7)).copy())
    assert torch.equal(fourier_features((6, 7), 3, order="hilbert"), fourier_features((6, 7), 3)[order])


def test_a_single_cell_sits_in_the_middle():
    assert torch.equal(fourier_features((1,), 2), torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0]]))


@pytest.mark.parametrize("order", ["raster", "hilbert", "time_major", "shuffled"])
@pytest.mark.parametrize(("old", "new"), [((8,), (13,)), ((6, 5), (12, 9)), ((2, 4, 4), (3, 8, 6))])
def test_resizing_a_linear_ramp_gives_a_linear_ramp_inside(order, old, new):
    def ramp(shape):
        axes = [(torch.arange(size) + 0.5) / size for size in shape]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))
        return grid[torch.from_numpy(token_order(order, shape).copy())]

    resized = resize_position_table(ramp(old), old, new, order)
    expected = ramp(new)
    inside = ((expected > 0.5 / min(old)) & (expected < 1 - 0.5 / min(old))).all(dim=1)
    assert inside.any()
    torch.testing.assert_close(resized[inside], expected[inside])


def test_resizing_to_the_same_shape_changes_nothing():
    table = torch.randn(30, 4)
    torch.testing.assert_close(resize_position_table(table, (5, 6), (5, 6), "hilbert"), table)


def test_errors():
    with pytest.raises(ConfigError, match="num_bands=0"):
        fourier_features((4,), 0)
    with pytest.raises(ConfigError, match="1 axes"):
        fourier_features((4, 4), 2, max_resolution=(4,))
    with pytest.raises(InputError, match="16 rows"):
        resize_position_table(torch.zeros(15, 2), (4, 4), (8, 8))
    with pytest.raises(InputError, match="same 1, 2 or 3 axes"):
        resize_position_table(torch.zeros(16, 2), (4, 4), (8,))
