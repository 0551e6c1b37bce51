"""The reconstruction head over position codes: norm, attend, MLP and un-embed in one pass, forward and backward.

As in ``triton_pixel_keys``: no token-sized tensor is kept but the answers, and sums go to places of their own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hip_model.kernels.triton_common import dot, norm_rows, norm_rows_backward, token_rows


@triton.jit
def _attended(code, keys, answers, row, valid, num_keys, width: tl.constexpr, wide_keys: tl.constexpr,
              epsilon: tl.constexpr):  # fmt: skip
    """A block's queries ``[t, E]`` with their deviations, their attention weights ``[t, n]`` and what they attended."""
    column = tl.arange(0, width)
    kind = code.dtype.element_ty
    position = tl.load(code + row[:, None] * width + column[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
    normed, inverse = norm_rows(position, width, epsilon)
    # The free direction of a normed query carries the keys' own scores: see QueryNorm.
    query = (normed + 1.0).to(kind)
    score = dot(query, tl.trans(keys))
    score = tl.where((tl.arange(0, wide_keys) < num_keys)[None, :], score, float("-inf"))
    weight = tl.exp(score - tl.max(score, axis=1)[:, None])
    weight = weight / tl.sum(weight, axis=1)[:, None]
    return normed, inverse, query, weight, dot(weight.to(kind), answers)


@triton.jit
def _load_keys(keys, answers, num_keys, width: tl.constexpr, wide_keys: tl.constexpr):
    """The keys and answers ``[n, E]`` of this program's group."""
    at_key = tl.arange(0, wide_keys)[:, None] * width + tl.arange(0, width)[None, :]
    is_key = (tl.arange(0, wide_keys) < num_keys)[:, None]
    first = tl.program_id(0).to(tl.int64) * num_keys * width
    key = tl.load(keys + first + at_key, mask=is_key, other=0.0)
    return key, tl.load(answers + first + at_key, mask=is_key, other=0.0)


@triton.jit
def answer_kernel(code, slots, keys, answers, norm_weight, norm_bias, hidden_weight, hidden_bias, output_weight,
                  output_bias, unembed_weight, unembed_bias, result, groups, num_slots, group_tokens, num_tokens,
                  slot_batch, slot_group, num_keys, epsilon: tl.constexpr, has_slots: tl.constexpr,
                  channels: tl.constexpr, wide_channels: tl.constexpr, width: tl.constexpr, wide_keys: tl.constexpr,
                  block_tokens: tl.constexpr):  # fmt: skip
    """``result [B, G, s, C]``; rows of empty slots are arbitrary."""
    example, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    share, shares = tl.program_id(1), tl.num_programs(1)
    kind = code.dtype.element_ty
    column, channel = tl.arange(0, width), tl.arange(0, wide_channels)
    square = column[:, None] + column[None, :] * width
    key, answer = _load_keys(keys, answers, num_keys, width, wide_keys)
    gamma, beta = tl.load(norm_weight + column).to(tl.float32), tl.load(norm_bias + column).to(tl.float32)
    to_hidden, bias = tl.load(hidden_weight + square), tl.load(hidden_bias + column).to(tl.float32)
    to_output, end_bias = tl.load(output_weight + square), tl.load(output_bias + column).to(tl.float32)
    is_channel = channel < channels
    unembed = tl.load(unembed_weight + channel[None, :] * width + column[:, None], mask=is_channel[None, :], other=0.0)
    last_bias = tl.load(unembed_bias + channel, mask=is_channel, other=0.0).to(tl.float32)
    blocks = tl.cdiv(num_slots, block_tokens)
    per_share = tl.cdiv(blocks, shares)
    for block in range(share * per_share, tl.minimum((share + 1) * per_share, blocks)):
        index, row, valid = token_rows(slots, slot_batch, slot_group, example, group, block, num_slots, group_tokens,
                                       num_tokens, has_slots, block_tokens)  # fmt: skip
        _, _, _, _, attended = _attended(code, key, answer, row, valid, num_keys, width, wide_keys, epsilon)
        normed, _ = norm_rows(attended, width, epsilon)
        hidden = dot((normed * gamma[None, :] + beta[None, :]).to(kind), to_hidden) + bias[None, :]
        positive = tl.maximum(hidden, 0.0)
        final = attended + dot((positive * positive).to(kind), to_output) + end_bias[None, :]
        values = dot(final.to(kind), unembed) + last_bias[None, :]
        place = (tl.program_id(0).to(tl.int64) * num_slots + index)[:, None] * channels + channel[None, :]
        tl.store(
            result + place, values.to(result.dtype.element_ty), mask=(index < num_slots)[:, None] & is_channel[None, :]
        )


@triton.jit
def answer_mlp_backward_kernel(code, slots, keys, answers, norm_weight, norm_bias, hidden_weight, hidden_bias,
                               output_weight, output_bias, unembed_weight, gradient, to_attended, to_parameters, batch,
                               groups, num_slots, group_tokens, num_tokens, slot_batch, slot_group, num_keys,
                               epsilon: tl.constexpr, has_slots: tl.constexpr, channels: tl.constexpr,
                               wide_channels: tl.constexpr, width: tl.constexpr, wide_keys: tl.constexpr,
                               block_tokens: tl.constexpr):  # fmt: skip
    """From ``gradient [B, G, s, C]`` back to what was attended, ``[B, G, s, E]``, zeros for empty slots.

    ``to_parameters [programs, 2E + c + 5, E]``: the order is the stores' below.
    """
    example, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    share, shares = tl.program_id(1), tl.num_programs(1)
    kind = code.dtype.element_ty
    column, channel = tl.arange(0, width), tl.arange(0, wide_channels)
    straight = column[:, None] * width + column[None, :]
    key, answer = _load_keys(keys, answers, num_keys, width, wide_keys)
    gamma, beta = tl.load(norm_weight + column).to(tl.float32), tl.load(norm_bias + column).to(tl.float32)
    hidden_matrix, bias = tl.load(hidden_weight + straight), tl.load(hidden_bias + column).to(tl.float32)
    output_matrix, end_bias = tl.load(output_weight + straight), tl.load(output_bias + column).to(tl.float32)
    is_channel = channel < channels
    unembed = tl.load(unembed_weight + channel[:, None] * width + column[None, :], mask=is_channel[:, None], other=0.0)
    to_hidden, to_output = tl.zeros([width, width], dtype=tl.float32), tl.zeros([width, width], dtype=tl.float32)
    to_unembed, to_last_bias = tl.zeros([wide_channels, width], dtype=tl.float32), tl.zeros([wide_channels], tl.float32)
    to_gamma, to_beta = tl.zeros([width], dtype=tl.float32), tl.zeros([width], dtype=tl.float32)
    to_bias, to_end_bias = tl.zeros([width], dtype=tl.float32), tl.zeros([width], dtype=tl.float32)
    blocks = tl.cdiv(num_slots, block_tokens)
    per_share = tl.cdiv(blocks, shares)
    for block in range(share * per_share, tl.minimum((share + 1) * per_share, blocks)):
        index, row, valid = token_rows(slots, slot_batch, slot_group, example, group, block, num_slots, group_tokens,
                                       num_tokens, has_slots, block_tokens)  # fmt: skip
        _, _, _, _, attended = _attended(code, key, answer, row, valid, num_keys, width, wide_keys, epsilon)
        normed, inverse = norm_rows(attended, width, epsilon)
        entering = (normed * gamma[None, :] + beta[None, :]).to(kind)
        positive = tl.maximum(dot(entering, tl.trans(hidden_matrix)) + bias[None, :], 0.0)
        squared = (positive * positive).to(kind)
        final = (attended + dot(squared, tl.trans(output_matrix)) + end_bias[None, :]).to(kind)
        source = (tl.program_id(0).to(tl.int64) * num_slots + index)[:, None] * channels + channel[None, :]
        sent = tl.load(gradient + source, mask=valid[:, None] & is_channel[None, :], other=0.0).to(kind)
        to_unembed += dot(tl.trans(sent), final)
        to_last_bias += tl.sum(sent.to(tl.float32), axis=0)
        to_final = dot(sent, unembed)
        to_end_bias += tl.sum(to_final, axis=0)
        to_output += dot(tl.trans(to_final.to(kind)), squared)
        before = dot(to_final.to(kind), output_matrix) * 2.0 * positive
        to_bias += tl.sum(before, axis=0)
        to_hidden += dot(tl.trans(before.to(kind)), entering)
        to_entering = dot(before.to(kind), hidden_matrix)
        to_gamma += tl.sum(to_entering * normed, axis=0)
        to_beta += tl.sum(to_entering, axis=0)
        found = to_final + norm_rows_backward(to_entering * gamma[None, :], normed, inverse, width)
        place = (tl.program_id(0).to(tl.int64) * num_slots + index)[:, None] * width + column[None, :]
        tl.store(to_attended + place, found.to(kind), mask=(index < num_slots)[:, None])
    program = (share * batch * groups + tl.program_id(0)).to(tl.int64)
    place = to_parameters + program * (2 * width + wide_channels + 5) * width
    tl.store(place + straight, to_hidden)
    tl.store(place + width * width + straight, to_output)
    tl.store(place + 2 * width * width + channel[:, None] * width + column[None, :], to_unembed)
    end = place + (2 * width + wide_channels) * width
    tl.store(end + column, to_gamma)
    tl.store(end + width + column, to_beta)
    tl.store(end + 2 * width + column, to_bias)
    tl.store(end + 3 * width + column, to_end_bias)
    tl.store(end + 4 * width + channel, to_last_bias)


@triton.jit
def answer_attention_backward_kernel(code, slots, keys, answers, to_attended, to_keys, to_answers, to_tokens, batch,
                                     groups, num_slots, group_tokens, num_tokens, slot_batch, slot_group, num_keys,
                                     epsilon: tl.constexpr, has_slots: tl.constexpr, width: tl.constexpr,
                                     wide_keys: tl.constexpr, block_tokens: tl.constexpr):  # fmt: skip
    """From ``to_attended [B, G, s, E]`` back to keys and answers ``[shares, B, G, n, E]`` and to position codes."""
    example, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    share, shares = tl.program_id(1), tl.num_programs(1)
    kind = code.dtype.element_ty
    column, row_of_key = tl.arange(0, width), tl.arange(0, wide_keys)
    key, answer = _load_keys(keys, answers, num_keys, width, wide_keys)
    to_key, to_answer = tl.zeros([wide_keys, width], dtype=tl.float32), tl.zeros([wide_keys, width], dtype=tl.float32)
    blocks = tl.cdiv(num_slots, block_tokens)
    per_share = tl.cdiv(blocks, shares)
    for block in range(share * per_share, tl.minimum((share + 1) * per_share, blocks)):
        index, row, valid = token_rows(slots, slot_batch, slot_group, example, group, block, num_slots, group_tokens,
                                       num_tokens, has_slots, block_tokens)  # fmt: skip
        normed, inverse, query, weight, _ = _attended(
            code, key, answer, row, valid, num_keys, width, wide_keys, epsilon
        )
        place = (tl.program_id(0).to(tl.int64) * num_slots + index)[:, None] * width + column[None, :]
        sent = tl.load(to_attended + place, mask=(index < num_slots)[:, None], other=0.0)
        to_weight = dot(sent, tl.trans(answer))
        to_score = (weight * (to_weight - tl.sum(weight * to_weight, axis=1)[:, None])).to(kind)
        to_answer += dot(tl.trans(weight.to(kind)), sent)
        to_key += dot(tl.trans(to_score), query)
        to_code = norm_rows_backward(dot(to_score, key), normed, inverse, width)
        tl.store(to_tokens + place, to_code.to(kind), mask=(index < num_slots)[:, None])
    program = (share * batch * groups + tl.program_id(0)).to(tl.int64)
    at_key = program * num_keys * width + row_of_key[:, None] * width + column[None, :]
    is_key = (row_of_key < num_keys)[:, None]
    tl.store(to_keys + at_key, to_key, mask=is_key)
    tl.store(to_answers + at_key, to_answer, mask=is_key)
