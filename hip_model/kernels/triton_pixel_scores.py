"""Squared errors of answers at slots, targets read where they lie; forward and backward."""

from __future__ import annotations

import triton
import triton.language as tl

from hip_model.kernels.triton_common import token_rows


@triton.jit
def _errors(values, answers, slots, example, group, block, num_slots, group_tokens, num_tokens, slot_batch, slot_group,
            has_slots: tl.constexpr, channels: tl.constexpr, wide_channels: tl.constexpr,
            block_tokens: tl.constexpr):  # fmt: skip
    """A block's ``answers - values [t, c]``, zero at empty slots; where its answers lie, and which of those exist."""
    channel = tl.arange(0, wide_channels)
    index, row, valid = token_rows(slots, slot_batch, slot_group, example, group, block, num_slots, group_tokens,
                                   num_tokens, has_slots, block_tokens)  # fmt: skip
    place = (tl.program_id(0).to(tl.int64) * num_slots + index)[:, None] * channels + channel[None, :]
    source = (example.to(tl.int64) * num_tokens + row)[:, None] * channels + channel[None, :]
    is_scored = valid[:, None] & (channel < channels)[None, :]
    answer = tl.load(answers + place, mask=is_scored, other=0.0).to(tl.float32)
    error = answer - tl.load(values + source, mask=is_scored, other=0.0).to(tl.float32)
    return error, place, (index < num_slots)[:, None] & (channel < channels)[None, :]


@triton.jit
def score_kernel(values, answers, slots, sums, batch, groups, num_slots, group_tokens, num_tokens, slot_batch,
                 slot_group, has_slots: tl.constexpr, channels: tl.constexpr, wide_channels: tl.constexpr,
                 block_tokens: tl.constexpr):  # fmt: skip
    """``sums [programs, C]`` of squares over this program's share of a group's slots."""
    example, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    share, shares = tl.program_id(1), tl.num_programs(1)
    channel = tl.arange(0, wide_channels)
    total = tl.zeros([block_tokens, wide_channels], dtype=tl.float32)
    for block in range(share, tl.cdiv(num_slots, block_tokens), shares):
        error, _, _ = _errors(values, answers, slots, example, group, block, num_slots, group_tokens, num_tokens,
                              slot_batch, slot_group, has_slots, channels, wide_channels, block_tokens)  # fmt: skip
        total += error * error
    program = (share * batch * groups + tl.program_id(0)).to(tl.int64)
    tl.store(sums + program * channels + channel, tl.sum(total, axis=0), mask=channel < channels)


@triton.jit
def score_backward_kernel(values, answers, slots, gradient, to_answers, groups, num_slots, group_tokens, num_tokens,
                          slot_batch, slot_group, has_slots: tl.constexpr, channels: tl.constexpr,
                          wide_channels: tl.constexpr, block_tokens: tl.constexpr):  # fmt: skip
    """``to_answers [B, G, s, C]`` from ``gradient [C]``, zeros at empty slots."""
    example, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    channel = tl.arange(0, wide_channels)
    scale = 2.0 * tl.load(gradient + channel, mask=channel < channels, other=0.0)
    for block in range(tl.program_id(1), tl.cdiv(num_slots, block_tokens), tl.num_programs(1)):
        error, place, inside = _errors(values, answers, slots, example, group, block, num_slots, group_tokens,
                                       num_tokens, slot_batch, slot_group, has_slots, channels, wide_channels,
                                       block_tokens)  # fmt: skip
        tl.store(to_answers + place, (error * scale[None, :]).to(to_answers.dtype.element_ty), mask=inside)
