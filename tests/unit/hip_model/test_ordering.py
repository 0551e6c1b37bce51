"""Every token order is a bijection with its inverse, and the curves keep neighbours together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hip_model.errors import ConfigError, InputError
from hip_model.ordering import TOKEN_ORDERS, flatten, inverse, kd_order, token_order, unflatten

GRID_ORDERS = [name for name in TOKEN_ORDERS if name != "kd"]
shapes = st.lists(st.integers(1, 11), min_size=1, max_size=3).map(tuple)


@given(st.sampled_from(GRID_ORDERS), shapes, st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_order_is_a_bijection_and_flatten_round_trips(name, shape, seed):
    order = token_order(name, shape, seed)
    assert np.array_equal(np.sort(order), np.arange(np.prod(shape)))
    assert np.array_equal(order[inverse(order)], np.arange(order.size))
    array = np.arange(np.prod(shape) * 2, dtype=np.int32).reshape(*shape, 2)
    assert np.array_equal(unflatten(flatten(array, order), order, shape), array)


def steps(name, shape):
    coordinates = np.stack(np.unravel_index(token_order(name, shape), shape), axis=1)
    return np.abs(np.diff(coordinates, axis=0)).sum(axis=1)


@pytest.mark.parametrize("shape", [(16,), (8, 8), (32, 32), (8, 8, 8)])
def test_hilbert_neighbours_in_the_sequence_are_neighbours_in_space(shape):
    assert (steps("hilbert", shape) == 1).all()


@pytest.mark.parametrize("name", ["morton", "hilbert"])
@pytest.mark.parametrize("shape", [(224, 224), (28, 30), (8, 56, 56)])
def test_curves_keep_groups_more_compact_than_raster(name, shape):
    def mean_extent(order_name):
        cells = np.stack(np.unravel_index(token_order(order_name, shape), shape), axis=1)
        groups = cells[: len(cells) // 64 * 64].reshape(-1, 64, len(shape))
        return (groups.max(axis=1) - groups.min(axis=1)).max(axis=1).mean()

    assert mean_extent(name) < 0.6 * mean_extent("raster")


def test_morton_of_a_square_visits_quadrants_in_z_order():
    assert token_order("morton", (4, 4)).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def test_time_major_lets_time_run_fastest():
    assert token_order("time_major", (3, 2, 2)).tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert np.array_equal(token_order("frame_major", (3, 2, 2)), np.arange(12))


def test_shuffle_is_fixed_by_its_seed():
    first = token_order("shuffled", (6, 7), seed=1)
    assert np.array_equal(first, token_order("shuffled", (6, 7), seed=1))
    assert not np.array_equal(first, token_order("shuffled", (6, 7), seed=2))


def test_cached_order_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        token_order("raster", (4,))[0] = 3


@given(st.integers(1, 70), st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_kd_order_is_a_bijection_that_ignores_the_given_order(count, axes, seed):
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(count, axes))
    order = kd_order(points)
    assert np.array_equal(np.sort(order), np.arange(count))
    shuffled = points[generator.permutation(count)]
    assert np.array_equal(shuffled[kd_order(shuffled)], points[order])


def test_kd_order_halves_along_the_widest_axis():
    points = np.stack([np.repeat(np.arange(8.0), 4), np.tile(np.arange(4.0) / 10, 8)], axis=1)
    points = points[np.random.default_rng(0).permutation(32)]
    ordered = points[kd_order(points)]
    assert (ordered[:16, 0] < 4).all()
    assert (ordered[:8, 0] < 2).all()


def test_errors_name_the_value_and_the_choices():
    with pytest.raises(ConfigError, match="'zigzag' is unknown; choose one of raster, morton"):
        token_order("zigzag", (4, 4))
    with pytest.raises(ConfigError, match=r"got \(4, 0\)"):
        token_order("raster", (4, 0))
    with pytest.raises(ConfigError, match="kd_order"):
        token_order("kd", (4,))
    with pytest.raises(InputError, match="5 tokens"):
        unflatten(np.zeros((5, 1)), token_order("raster", (2, 2)), (2, 2))
    with pytest.raises(InputError, match="20 cells"):
        flatten(np.zeros((4, 5, 3)), token_order("raster", (2, 2)))
    with pytest.raises(InputError, match="NaN"):
        kd_order(np.array([[0.0, np.nan]]))
    with pytest.raises(InputError, match=r"\[P, D\]"):
        kd_order(np.zeros(4))
