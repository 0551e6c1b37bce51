"""What the device kernels share: row norms, positions of a block of tokens, rows summed over examples."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
"""Scores times this, to base 2: the device's own exponential."""


@triton.jit
def dot(left, right):
    """A matrix product with float32 sums; float32 operands are not rounded to tf32."""
    return tl.dot(left, right, input_precision="ieee")


@triton.jit
def norm_rows(x, width: tl.constexpr, epsilon: tl.constexpr):
    """``x [t, E]`` to its normed rows without affine part, and one over each row's deviation."""
    centred = x - (tl.sum(x, axis=1) / width)[:, None]
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / width + epsilon)
    return centred * inverse[:, None], inverse


@triton.jit
def norm_rows_backward(gradient, normed, inverse, width: tl.constexpr):
    """Gradient of the rows from that of their normed form."""
    mean = tl.sum(gradient, axis=1) / width
    along = tl.sum(gradient * normed, axis=1) / width
    return (gradient - mean[:, None] - normed * along[:, None]) * inverse[:, None]


@triton.jit
def token_rows(slots, slot_batch, slot_group, example, group, block, num_slots, group_tokens, num_tokens,
               has_slots: tl.constexpr, block_tokens: tl.constexpr):  # fmt: skip
    """Slots of one block of an example's group: their index, the row of their token (0 if none), and whether any."""
    index = block * block_tokens + tl.arange(0, block_tokens)
    valid = index < num_slots
    if has_slots:
        place = tl.load(slots + example * slot_batch + group * slot_group + index, mask=valid, other=-1).to(tl.int64)
        valid = valid & (place >= 0)
    else:
        place = index.to(tl.int64)
    row = group.to(tl.int64) * group_tokens + place
    valid = valid & (place < group_tokens) & (row < num_tokens)
    return index, tl.where(valid, row, 0), valid


@triton.jit
def sum_rows_kernel(values, inverse, result, batch, groups, num_slots, group_tokens, inverse_batch, inverse_group,
                    width: tl.constexpr, has_inverse: tl.constexpr, block_tokens: tl.constexpr):  # fmt: skip
    """Each token's row of ``values [B, G, s, E]`` summed over examples in order: ``result [G, l, E]``."""
    group = tl.program_id(1).to(tl.int64)  # the axis of few: a grid's second is at most 65,535 long
    place = tl.program_id(0) * block_tokens + tl.arange(0, block_tokens)
    column = tl.arange(0, width)
    inside = place < group_tokens
    total = tl.zeros([block_tokens, width], dtype=tl.float32)
    for example in range(batch):
        if has_inverse:
            slot = tl.load(inverse + example * inverse_batch + group * inverse_group + place, mask=inside, other=-1)
        else:
            slot = tl.where(inside, place, -1)
        first = (example * groups + group) * num_slots
        offset = (first + slot)[:, None] * width + column[None, :]
        total += tl.load(values + offset, mask=(slot >= 0)[:, None], other=0.0).to(tl.float32)
    offset = (group * group_tokens + place)[:, None] * width + column[None, :]
    tl.store(result + offset, total.to(result.dtype.element_ty), mask=inside[:, None])
