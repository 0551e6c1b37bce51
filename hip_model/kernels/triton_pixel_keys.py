"""The first cross-attention over raw tokens: embed, add the position, norm, attend; one pass forward, one backward.

No token-sized tensor is kept; the backward pass makes a block's tokens again. A program works on a share of one group
of one example; what it sums up for others to use goes to a place of its own, so results are the same on every run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hip_model.kernels.triton_common import LOG2_E, dot, norm_rows, norm_rows_backward, token_rows


@triton.jit
def _tokens(raw, code, embed_weight, embed_bias, example, row, valid, num_tokens,
            channels: tl.constexpr, wide_channels: tl.constexpr, width: tl.constexpr,
            epsilon: tl.constexpr):  # fmt: skip
    """A block's raw values ``[t, c]`` and its normed tokens ``[t, E]`` with one over their deviations."""
    channel, column = tl.arange(0, wide_channels), tl.arange(0, width)
    kind = code.dtype.element_ty
    source = (example.to(tl.int64) * num_tokens + row)[:, None] * channels + channel[None, :]
    values = tl.load(raw + source, mask=valid[:, None] & (channel < channels)[None, :], other=0.0).to(kind)
    matrix = tl.load(
        embed_weight + column[None, :] * channels + channel[:, None], mask=(channel < channels)[:, None], other=0.0
    ).to(kind)
    position = tl.load(code + row[:, None] * width + column[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
    bias = tl.load(embed_bias + column).to(tl.float32)
    normed, inverse = norm_rows(dot(values, matrix) + position + bias[None, :], width, epsilon)
    return values, normed, inverse


@triton.jit
def attend_kernel(raw, code, slots, embed_weight, embed_bias, norm_weight, norm_bias, queries, answers, log_sums,
                  scale, batch, groups, num_slots, group_tokens, num_tokens, slot_batch, slot_group, query_batch,
                  num_queries, epsilon: tl.constexpr, has_slots: tl.constexpr, channels: tl.constexpr,
                  wide_channels: tl.constexpr, width: tl.constexpr, wide_queries: tl.constexpr,
                  block_tokens: tl.constexpr, stages: tl.constexpr):  # fmt: skip
    """``answers [S, B, G, N, E]`` and ``log_sums [S, B, G, N]`` of each share ``S`` of a group's tokens."""
    example, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    share, shares = tl.program_id(1), tl.num_programs(1)
    kind = code.dtype.element_ty
    row_of_query, column = tl.arange(0, wide_queries), tl.arange(0, width)
    is_query = row_of_query < num_queries
    at_query = row_of_query[:, None] * width + column[None, :]
    source = queries + example * query_batch + group * num_queries * width + at_query
    query = tl.load(source, mask=is_query[:, None], other=0.0).to(kind)
    gamma, beta = tl.load(norm_weight + column).to(tl.float32), tl.load(norm_bias + column).to(tl.float32)
    highest = tl.full([wide_queries], float("-inf"), dtype=tl.float32)
    total = tl.zeros([wide_queries], dtype=tl.float32)
    summed = tl.zeros([wide_queries, width], dtype=tl.float32)
    blocks = tl.cdiv(num_slots, block_tokens)
    per_share = tl.cdiv(blocks, shares)
    for block in tl.range(share * per_share, tl.minimum((share + 1) * per_share, blocks), num_stages=stages):
        _, row, valid = token_rows(slots, slot_batch, slot_group, example, group, block, num_slots, group_tokens,
                                   num_tokens, has_slots, block_tokens)  # fmt: skip
        _, normed, _ = _tokens(raw, code, embed_weight, embed_bias, example, row, valid, num_tokens, channels,
                               wide_channels, width, epsilon)  # fmt: skip
        token = (normed * gamma[None, :] + beta[None, :]).to(kind)
        score = tl.where(valid[None, :], dot(query, tl.trans(token)) * scale, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, axis=1))
        # A row that has seen no token yet has no highest score to subtract.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        share_of_old = tl.exp(highest - base)
        weight = tl.exp(score - base[:, None])
        total = total * share_of_old + tl.sum(weight, axis=1)
        summed = summed * share_of_old[:, None] + dot(weight.to(kind), token)
        highest = higher
    empty = total == 0.0
    place = (share * batch * groups + tl.program_id(0)).to(tl.int64) * num_queries
    result = summed / tl.where(empty, 1.0, total)[:, None]
    tl.store(answers + place * width + at_query, result, mask=is_query[:, None])
    log_sum = tl.where(empty, -1e30, highest + tl.log(tl.where(empty, 1.0, total)))
    tl.store(log_sums + place + row_of_query, log_sum, mask=is_query)


@triton.jit
def attend_backward_kernel(raw, code, slots, embed_weight, embed_bias, norm_weight, norm_bias, queries, log_sums,
                           gradient, along, to_queries, to_tokens, to_parameters, scale, batch, groups, num_slots,
                           group_tokens, num_tokens, slot_batch, slot_group, query_batch, num_queries,
                           epsilon: tl.constexpr, has_slots: tl.constexpr, channels: tl.constexpr,
                           wide_channels: tl.constexpr, width: tl.constexpr, wide_queries: tl.constexpr,
                           block_tokens: tl.constexpr, stages: tl.constexpr):  # fmt: skip
    """``along [B, G, N]``: what each query's answer and log-sum send back.

    ``to_parameters [programs, c + 1, E]``: the embedding's, in the row after the last channel its bias's, and last the
    norm weight's. The norm bias's needs no sum over tokens, see ``_to_norm_bias``.
    """
    example, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    share, shares = tl.program_id(1), tl.num_programs(1)
    kind = code.dtype.element_ty
    row_of_query, column = tl.arange(0, wide_queries), tl.arange(0, width)
    channel = tl.arange(0, wide_channels)
    is_query = row_of_query < num_queries
    at_query = row_of_query[:, None] * width + column[None, :]
    first_query = tl.program_id(0).to(tl.int64) * num_queries
    source = queries + example * query_batch + group * num_queries * width + at_query
    query = tl.load(source, mask=is_query[:, None], other=0.0).to(kind)
    sent = tl.load(gradient + first_query * width + at_query, mask=is_query[:, None], other=0.0).to(kind)
    sent_along = tl.load(along + first_query + row_of_query, mask=is_query, other=0.0)
    log_sum = tl.load(log_sums + first_query + row_of_query, mask=is_query, other=0.0) * LOG2_E
    gamma, beta = tl.load(norm_weight + column).to(tl.float32), tl.load(norm_bias + column).to(tl.float32)
    to_query = tl.zeros([wide_queries, width], dtype=tl.float32)
    to_embed = tl.zeros([wide_channels, width], dtype=tl.float32)
    # Summed over rows once at the end: a sum across warps in every turn would cost more than the products.
    to_gamma = tl.zeros([block_tokens, width], dtype=tl.float32)
    blocks = tl.cdiv(num_slots, block_tokens)
    per_share = tl.cdiv(blocks, shares)
    for block in tl.range(share * per_share, tl.minimum((share + 1) * per_share, blocks), num_stages=stages):
        index, row, valid = token_rows(slots, slot_batch, slot_group, example, group, block, num_slots, group_tokens,
                                       num_tokens, has_slots, block_tokens)  # fmt: skip
        values, normed, inverse = _tokens(raw, code, embed_weight, embed_bias, example, row, valid, num_tokens,
                                          channels, wide_channels, width, epsilon)  # fmt: skip
        token = (normed * gamma[None, :] + beta[None, :]).to(kind)
        # Rows of zeros beyond the last query add nothing; tokens that are not there must not.
        score = tl.where(valid[:, None], dot(token, tl.trans(query)) * (scale * LOG2_E), float("-inf"))
        weight = tl.exp2(score - log_sum[None, :])
        to_score = (weight * (dot(token, tl.trans(sent)) - sent_along[None, :]) * scale).to(kind)
        to_token = dot(weight.to(kind), sent) + dot(to_score, query)
        to_query += dot(tl.trans(to_score), token)
        to_gamma += to_token * normed
        before = norm_rows_backward(to_token * gamma[None, :], normed, inverse, width)
        before = before.to(kind)
        # One more channel, of ones: its row is the sum over tokens.
        to_embed += dot(tl.trans(tl.where((channel == channels)[None, :], 1.0, values).to(kind)), before)
        place = (tl.program_id(0).to(tl.int64) * num_slots + index)[:, None] * width + column[None, :]
        tl.store(to_tokens + place, before, mask=(index < num_slots)[:, None])
    program = (share * batch * groups + tl.program_id(0)).to(tl.int64)
    tl.store(to_queries + program * num_queries * width + at_query, to_query, mask=is_query[:, None])
    place = to_parameters + program * (wide_channels + 1) * width + column
    tl.store(place[None, :] + channel[:, None] * width, to_embed)
    tl.store(place + wide_channels * width, tl.sum(to_gamma, axis=0))
