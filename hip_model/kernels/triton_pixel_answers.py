"""The reconstruction head over position codes: norm, attend, MLP and un-embed in one pass, forward and backward.

As in ``triton_pixel_keys``, with one thing kept per query: what it attended and the logarithm of its summed scores, so
that the backward pass starts in the middle. Sums go to places of their own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hip_model.kernels.triton_common import LOG2_E, dot, norm_rows, norm_rows_backward, token_rows


@triton.jit
def _queries(code, row, valid, width: tl.constexpr, epsilon: tl.constexpr):
    """A block's queries ``[t, E]``, their normed codes and one over each code's deviation."""
    column = tl.arange(0, width)
    position = tl.load(code + row[:, None] * width + column[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
    normed, inverse = norm_rows(position, width, epsilon)
    # The free direction of a normed query carries the keys' own scores: see QueryNorm.
    return (normed + 1.0).to(code.dtype.element_ty), normed, inverse


@triton.jit
def _load_keys(keys, answers, num_keys: tl.constexpr, width: tl.constexpr, wide_keys: tl.constexpr):
    """The keys and answers ``[n, E]`` of this program's group."""
    at_key = tl.arange(0, wide_keys)[:, None] * width + tl.arange(0, width)[None, :]
    is_key = (tl.arange(0, wide_keys) < num_keys)[:, None]
    first = tl.program_id(0).to(tl.int64) * num_keys * width
    key = tl.load(keys + first + at_key, mask=is_key, other=0.0)
    return key, tl.load(answers + first + at_key, mask=is_key, other=0.0)


@triton.jit
def answer_kernel(code, slots, keys, answers, norm_weight, norm_bias, hidden_weight, hidden_bias, output_weight,
                  output_bias, unembed_weight, unembed_bias, result, kept, log_sums, groups, num_slots, group_tokens,
                  num_tokens, slot_batch, slot_group, num_keys: tl.constexpr, epsilon: tl.constexpr,
                  has_slots: tl.constexpr, is_kept: tl.constexpr, channels: tl.constexpr, wide_channels: tl.constexpr,
                  width: tl.constexpr, wide_keys: tl.constexpr, block_tokens: tl.constexpr,
                  stages: tl.constexpr):  # fmt: skip
    """``result [B, G, s, C]``; rows of empty slots are arbitrary.

    ``kept [B, G, s, E]``: what each query attended; ``log_sums [B, G, s]``: of its scores, to base 2.
    """
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
    for block in tl.range(share * per_share, tl.minimum((share + 1) * per_share, blocks), num_stages=stages):
        index, row, valid = token_rows(slots, slot_batch, slot_group, example, group, block, num_slots, group_tokens,
                                       num_tokens, has_slots, block_tokens)  # fmt: skip
        query, _, _ = _queries(code, row, valid, width, epsilon)
        score = dot(query, tl.trans(key)) * LOG2_E
        if wide_keys != num_keys:
            score = tl.where((tl.arange(0, wide_keys) < num_keys)[None, :], score, float("-inf"))
        highest = tl.max(score, axis=1)
        weight = tl.exp2(score - highest[:, None])
        total = tl.sum(weight, axis=1)
        rounded = (dot(weight.to(kind), answer) / total[:, None]).to(kind)
        place = tl.program_id(0).to(tl.int64) * num_slots + index
        is_slot = index < num_slots
        if is_kept:
            tl.store(kept + place[:, None] * width + column[None, :], rounded, mask=is_slot[:, None])
            tl.store(log_sums + place, highest + tl.log2(total), mask=is_slot)
        attended = rounded.to(tl.float32)
        normed, _ = norm_rows(attended, width, epsilon)
        hidden = dot((normed * gamma[None, :] + beta[None, :]).to(kind), to_hidden) + bias[None, :]
        positive = tl.maximum(hidden, 0.0)
        final = attended + dot((positive * positive).to(kind), to_output) + end_bias[None, :]
        values = dot(final.to(kind), unembed) + last_bias[None, :]
        tl.store(
            result + place[:, None] * channels + channel[None, :],
            values.to(result.dtype.element_ty),
            mask=is_slot[:, None] & is_channel[None, :],
        )


@triton.jit
def answer_mlp_backward_kernel(slots, kept, norm_weight, norm_bias, hidden_weight, hidden_bias, output_weight,
                               output_bias, unembed_weight, gradient, to_attended, along, to_parameters, batch, groups,
                               num_slots, group_tokens, num_tokens, slot_batch, slot_group, epsilon: tl.constexpr,
                               has_slots: tl.constexpr, channels: tl.constexpr, wide_channels: tl.constexpr,
                               width: tl.constexpr, block_tokens: tl.constexpr, stages: tl.constexpr):  # fmt: skip
    """From ``gradient [B, G, s, C]`` back to what was attended, ``[B, G, s, E]``, zeros for empty slots.

    ``along [B, G, s]``: that gradient times what was attended, which softmax's backward pass needs.
    ``to_parameters [programs, 2E + c + 2, E]``: the order is the stores' below; ``_split`` makes gradients of them.
    """
    example, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    share, shares = tl.program_id(1), tl.num_programs(1)
    kind = kept.dtype.element_ty
    column, channel = tl.arange(0, width), tl.arange(0, wide_channels)
    straight = column[:, None] * width + column[None, :]
    gamma, beta = tl.load(norm_weight + column).to(tl.float32), tl.load(norm_bias + column).to(tl.float32)
    hidden_matrix, bias = tl.load(hidden_weight + straight), tl.load(hidden_bias + column).to(tl.float32)
    output_matrix, end_bias = tl.load(output_weight + straight), tl.load(output_bias + column).to(tl.float32)
    is_channel = channel < channels
    unembed = tl.load(unembed_weight + channel[:, None] * width + column[None, :], mask=is_channel[:, None], other=0.0)
    to_hidden, to_output = tl.zeros([width, width], dtype=tl.float32), tl.zeros([width, width], dtype=tl.float32)
    to_unembed = tl.zeros([wide_channels, width], dtype=tl.float32)
    # Summed over rows once at the end: a sum across warps in every turn would cost more than the products.
    to_bias = tl.zeros([block_tokens, width], dtype=tl.float32)
    to_last_bias = tl.zeros([block_tokens, wide_channels], dtype=tl.float32)
    blocks = tl.cdiv(num_slots, block_tokens)
    per_share = tl.cdiv(blocks, shares)
    for block in tl.range(share * per_share, tl.minimum((share + 1) * per_share, blocks), num_stages=stages):
        index, _, valid = token_rows(slots, slot_batch, slot_group, example, group, block, num_slots, group_tokens,
                                     num_tokens, has_slots, block_tokens)  # fmt: skip
        place = tl.program_id(0).to(tl.int64) * num_slots + index
        is_slot = index < num_slots
        at_row = place[:, None] * width + column[None, :]
        attended = tl.load(kept + at_row, mask=valid[:, None], other=0.0).to(tl.float32)
        source = place[:, None] * channels + channel[None, :]
        sent = tl.load(gradient + source, mask=valid[:, None] & is_channel[None, :], other=0.0).to(kind)
        normed, inverse = norm_rows(attended, width, epsilon)
        rounded = normed.to(kind)
        entering = (normed * gamma[None, :] + beta[None, :]).to(kind)
        positive = tl.maximum(dot(entering, tl.trans(hidden_matrix)) + bias[None, :], 0.0)
        squared = (positive * positive).to(kind)
        final = (attended + dot(squared, tl.trans(output_matrix)) + end_bias[None, :]).to(kind)
        to_unembed += dot(tl.trans(sent), final)
        to_last_bias += sent.to(tl.float32)
        to_final = dot(sent, unembed)
        sent_on = to_final.to(kind)
        to_output += dot(tl.trans(sent_on), squared)
        before = dot(sent_on, output_matrix) * 2.0 * positive
        to_bias += before
        turned = before.to(kind)
        to_hidden += dot(tl.trans(turned), rounded)
        to_entering = dot(turned, hidden_matrix)
        found = (to_final + norm_rows_backward(to_entering * gamma[None, :], normed, inverse, width)).to(kind)
        tl.store(to_attended + at_row, found, mask=is_slot[:, None])
        tl.store(along + place, tl.sum(found.to(tl.float32) * attended, axis=1), mask=is_slot)
    program = (share * batch * groups + tl.program_id(0)).to(tl.int64)
    place = to_parameters + program * (2 * width + wide_channels + 2) * width
    tl.store(place + straight, to_hidden)
    tl.store(place + width * width + straight, to_output)
    tl.store(place + 2 * width * width + channel[:, None] * width + column[None, :], to_unembed)
    end = place + (2 * width + wide_channels) * width
    tl.store(end + column, tl.sum(to_bias, axis=0))
    tl.store(end + width + channel, tl.sum(to_last_bias, axis=0))


@triton.jit
def answer_attention_backward_kernel(code, slots, keys, answers, log_sums, to_attended, along, to_keys, to_answers,
                                     to_tokens, batch, groups, num_slots, group_tokens, num_tokens, slot_batch,
                                     slot_group, num_keys: tl.constexpr, epsilon: tl.constexpr,
                                     has_slots: tl.constexpr, width: tl.constexpr, wide_keys: tl.constexpr,
                                     block_tokens: tl.constexpr, stages: tl.constexpr):  # fmt: skip
    """From ``to_attended [B, G, s, E]`` back to keys and answers ``[shares, B, G, n, E]`` and to position codes.

    Scores are laid out ``[n, t]``: then only one of the three products with their gradients needs them turned.
    """
    example, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    share, shares = tl.program_id(1), tl.num_programs(1)
    kind = code.dtype.element_ty
    column, row_of_key = tl.arange(0, width), tl.arange(0, wide_keys)
    key, answer = _load_keys(keys, answers, num_keys, width, wide_keys)
    to_key, to_answer = tl.zeros([wide_keys, width], dtype=tl.float32), tl.zeros([wide_keys, width], dtype=tl.float32)
    blocks = tl.cdiv(num_slots, block_tokens)
    per_share = tl.cdiv(blocks, shares)
    for block in tl.range(share * per_share, tl.minimum((share + 1) * per_share, blocks), num_stages=stages):
        index, row, valid = token_rows(slots, slot_batch, slot_group, example, group, block, num_slots, group_tokens,
                                       num_tokens, has_slots, block_tokens)  # fmt: skip
        query, normed, inverse = _queries(code, row, valid, width, epsilon)
        place = tl.program_id(0).to(tl.int64) * num_slots + index
        is_slot = index < num_slots
        at_row = place[:, None] * width + column[None, :]
        sent = tl.load(to_attended + at_row, mask=is_slot[:, None], other=0.0)
        log_sum = tl.load(log_sums + place, mask=is_slot, other=0.0)
        sent_along = tl.load(along + place, mask=is_slot, other=0.0)
        score = dot(key, tl.trans(query)) * LOG2_E
        if wide_keys != num_keys:
            score = tl.where((row_of_key < num_keys)[:, None], score, float("-inf"))
        weight = tl.exp2(score - log_sum[None, :])
        to_score = (weight * (dot(answer, tl.trans(sent)) - sent_along[None, :])).to(kind)
        to_answer += dot(weight.to(kind), sent)
        to_key += dot(to_score, query)
        to_code = norm_rows_backward(dot(tl.trans(to_score), key), normed, inverse, width)
        tl.store(to_tokens + at_row, to_code.to(kind), mask=is_slot[:, None])
    program = (share * batch * groups + tl.program_id(0)).to(tl.int64)
    at_key = program * num_keys * width + row_of_key[:, None] * width + column[None, :]
    is_key = (row_of_key < num_keys)[:, None]
    tl.store(to_keys + at_key, to_key, mask=is_key)
    tl.store(to_answers + at_key, to_answer, mask=is_key)
