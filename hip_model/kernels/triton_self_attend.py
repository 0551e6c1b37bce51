"""Softmax attention of a small group's latents over each other, one head a program; forward and backward.

Queries, keys and values lie side by side in one row of the projection, ``[B G N, 3 H d]``. The backward pass lays
scores out ``[keys, queries]``, as in ``triton_pixel_answers``, and also sums its results over the latents: the
gradients of the projection's biases.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hip_model.kernels.triton_common import LOG2_E, dot


@triton.jit
def _load_head(rows, first, latent, stride, latents: tl.constexpr, head_width: tl.constexpr, wide_head: tl.constexpr):
    """``[n, d]``: some latents' part of a head."""
    column = tl.arange(0, wide_head)
    inside = (latent < latents)[:, None] & (column < head_width)[None, :]
    return tl.load(rows + first + latent[:, None] * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
def _store_head(rows, first, latent, stride, values, latents: tl.constexpr, head_width: tl.constexpr,
                wide_head: tl.constexpr):  # fmt: skip
    column = tl.arange(0, wide_head)
    inside = (latent < latents)[:, None] & (column < head_width)[None, :]
    tl.store(rows + first + latent[:, None] * stride + column[None, :], values.to(rows.dtype.element_ty), mask=inside)


@triton.jit
def self_attend_kernel(projected, result, log_sums, heads: tl.constexpr, latents: tl.constexpr,
                       wide_latents: tl.constexpr, head_width: tl.constexpr, wide_head: tl.constexpr,
                       block_queries: tl.constexpr, stages: tl.constexpr):  # fmt: skip
    """``result [B G N, H d]`` and each query's ``log_sums [B G H, N]``, to base 2, for a share of the queries."""
    group, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    width: tl.constexpr = heads * head_width
    scale: tl.constexpr = LOG2_E / head_width**0.5
    first = group * latents * 3 * width + head * head_width
    key_latent = tl.arange(0, wide_latents)
    key = _load_head(projected, first + width, key_latent, 3 * width, latents, head_width, wide_head)
    value = _load_head(projected, first + 2 * width, key_latent, 3 * width, latents, head_width, wide_head)
    for block in tl.range(tl.program_id(1), tl.cdiv(latents, block_queries), tl.num_programs(1), num_stages=stages):
        query_latent = block * block_queries + tl.arange(0, block_queries)
        query = _load_head(projected, first, query_latent, 3 * width, latents, head_width, wide_head)
        score = dot(query, tl.trans(key)) * scale
        if wide_latents != latents:
            score = tl.where((key_latent < latents)[None, :], score, float("-inf"))
        highest = tl.max(score, axis=1)
        weight = tl.exp2(score - highest[:, None])
        total = tl.sum(weight, axis=1)
        attended = dot(weight.to(query.dtype), value) / total[:, None]
        _store_head(result, group * latents * width + head * head_width, query_latent, width, attended, latents,
                    head_width, wide_head)  # fmt: skip
        place = tl.program_id(0).to(tl.int64) * latents + query_latent
        tl.store(log_sums + place, highest + tl.log2(total), mask=query_latent < latents)


@triton.jit
def self_attend_backward_kernel(projected, result, log_sums, gradient, to_projected, partial, heads: tl.constexpr,
                                latents: tl.constexpr, wide_latents: tl.constexpr, head_width: tl.constexpr,
                                wide_head: tl.constexpr, block_queries: tl.constexpr,
                                stages: tl.constexpr):  # fmt: skip
    """``to_projected [B G N, 3 H d]`` and ``partial [B G, 3 H d]``, its sums over a group's latents."""
    group, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    width: tl.constexpr = heads * head_width
    scale: tl.constexpr = 1.0 / head_width**0.5
    first = group * latents * 3 * width + head * head_width
    first_result = group * latents * width + head * head_width
    key_latent = tl.arange(0, wide_latents)
    key = _load_head(projected, first + width, key_latent, 3 * width, latents, head_width, wide_head)
    value = _load_head(projected, first + 2 * width, key_latent, 3 * width, latents, head_width, wide_head)
    kind = key.dtype
    to_key = tl.zeros([wide_latents, wide_head], dtype=tl.float32)
    to_value = tl.zeros([wide_latents, wide_head], dtype=tl.float32)
    summed = tl.zeros([block_queries, wide_head], dtype=tl.float32)
    for block in tl.range(0, tl.cdiv(latents, block_queries), num_stages=stages):
        query_latent = block * block_queries + tl.arange(0, block_queries)
        query = _load_head(projected, first, query_latent, 3 * width, latents, head_width, wide_head)
        sent = _load_head(gradient, first_result, query_latent, width, latents, head_width, wide_head)
        attended = _load_head(result, first_result, query_latent, width, latents, head_width, wide_head)
        along = tl.sum(sent.to(tl.float32) * attended.to(tl.float32), axis=1)
        place = tl.program_id(0).to(tl.int64) * latents + query_latent
        log_sum = tl.load(log_sums + place, mask=query_latent < latents, other=0.0)
        score = dot(key, tl.trans(query)) * (scale * LOG2_E)
        if wide_latents != latents:
            score = tl.where((key_latent < latents)[:, None], score, float("-inf"))
        weight = tl.exp2(score - log_sum[None, :])
        to_score = (weight * (dot(value, tl.trans(sent)) - along[None, :]) * scale).to(kind)
        to_value += dot(weight.to(kind), sent)
        to_key += dot(to_score, query)
        to_query = dot(tl.trans(to_score), key)
        summed += to_query
        _store_head(to_projected, first, query_latent, 3 * width, to_query, latents, head_width, wide_head)
    _store_head(to_projected, first + width, key_latent, 3 * width, to_key, latents, head_width, wide_head)
    _store_head(to_projected, first + 2 * width, key_latent, 3 * width, to_value, latents, head_width, wide_head)
    column = tl.arange(0, wide_head)
    place = partial + group * 3 * width + head * head_width + column
    tl.store(place, tl.sum(summed, axis=0), mask=column < head_width)
    tl.store(place + width, tl.sum(to_key, axis=0), mask=column < head_width)
    tl.store(place + 2 * width, tl.sum(to_value, axis=0), mask=column < head_width)
