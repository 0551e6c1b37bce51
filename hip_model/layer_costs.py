"""Parameters, matrix-product FLOPs and saved activations of each kind of layer (performance model, per sample).

``saved_elements`` are the values autograd keeps for the backward pass: a linear map and a layer norm keep their input,
attention keeps queries, keys, values and its result, squared ReLU keeps what it squares. Parameters do not count there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Parameters, forward FLOPs (2 per multiply-add) and values kept for the backward pass, for one sample."""

    parameters: int = 0
    flops: int = 0
    saved_elements: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.flops + other.flops,
            self.saved_elements + other.saved_elements,
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(self.parameters * times, self.flops * times, self.saved_elements * times)


def linear(items: int, fan_in: int, fan_out: int, bias: bool = True, keeps_input: bool = True) -> Cost:
    """An affine map over ``items`` rows; maps that read the same input keep it once (``keeps_input``)."""
    parameters = fan_in * fan_out + (fan_out if bias else 0)
    return Cost(parameters, 2 * items * fan_in * fan_out, items * fan_in if keeps_input else 0)


def layer_norm(items: int, channels: int) -> Cost:
    """Scale and offset; keeps its input and each row's mean and inverse deviation."""
    return Cost(2 * channels, 0, items * (channels + 2))


def mlp(items: int, channels: int, widening: int) -> Cost:
    """``channels -> widening * channels``, squared ReLU, and back; keeps the hidden values once."""
    hidden = widening * channels
    return linear(items, channels, hidden) + linear(items, hidden, channels)


def attention_products(groups: int, queries: int, keys: int, width: int, heads: int) -> Cost:
    """Scores and weighted values within each group; keeps queries, keys, values and one log-sum per query and head."""
    flops = 4 * groups * queries * keys * width
    saved = groups * (width * (queries + 2 * keys) + heads * queries)
    return Cost(0, flops, saved)


@dataclass(frozen=True)
class Looking:
    """``groups`` groups in each of which ``queries`` items look at ``keys`` items."""

    groups: int
    queries: int
    keys: int


def cross_attention(
    parts: Sequence[Looking], query_channels: int, key_channels: int, heads: int, widening: int
) -> Cost:
    """One cross-attention layer over groups of one or more sizes; its inner width is ``key_channels``."""
    asking = sum(part.groups * part.queries for part in parts)
    asked = sum(part.groups * part.keys for part in parts)
    cost = (
        layer_norm(asking, query_channels)
        + layer_norm(asked, key_channels)
        + linear(asking, query_channels, key_channels)
        + linear(asked, key_channels, key_channels)
        + linear(asked, key_channels, key_channels, keeps_input=False)
        + linear(asking, key_channels, query_channels)
        + layer_norm(asking, query_channels)
        + mlp(asking, query_channels, widening)
    )
    for part in parts:
        cost = cost + attention_products(part.groups, part.queries, part.keys, key_channels, heads)
    return cost


def self_attention(groups: int, latents: int, channels: int, heads: int, widening: int) -> Cost:
    """One self-attention layer within each group."""
    items = groups * latents
    shared_input = linear(items, channels, channels, keeps_input=False)
    return (
        layer_norm(items, channels)
        + linear(items, channels, channels)
        + shared_input * 2
        + attention_products(groups, latents, latents, channels, heads)
        + linear(items, channels, channels)
        + layer_norm(items, channels)
        + mlp(items, channels, widening)
    )
