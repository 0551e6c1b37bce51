"""Rows of activations: layer norm with the additions before it, squared ReLU, sums over rows."""

from __future__ import annotations

import triton
import triton.language as tl

from hip_model.kernels.triton_common import norm_rows_backward


@triton.jit
def norm_kernel(x, plus, plus_bias, weight, bias, total, result, means, inverses, rows, width: tl.constexpr,
                wide: tl.constexpr, epsilon: tl.constexpr, has_plus: tl.constexpr, has_plus_bias: tl.constexpr,
                block_rows: tl.constexpr):  # fmt: skip
    """``result [R, C]`` is ``x + plus + plus_bias`` normed; ``total`` the sum; each row's mean and 1 / deviation."""
    row = (tl.program_id(0) * block_rows + tl.arange(0, block_rows)).to(tl.int64)
    column = tl.arange(0, wide)
    place = row[:, None] * width + column[None, :]
    inside = (row < rows)[:, None] & (column < width)[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if has_plus:
        value += tl.load(plus + place, mask=inside, other=0.0).to(tl.float32)
        if has_plus_bias:
            value += tl.load(plus_bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
        # The sum as it is kept, so that the backward pass norms the same numbers.
        value = value.to(total.dtype.element_ty)
        tl.store(total + place, value, mask=inside)
        value = value.to(tl.float32)
    mean = tl.sum(value, axis=1) / width
    centred = tl.where((column < width)[None, :], value - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / width + epsilon)
    gamma = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    beta = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    normed = centred * inverse[:, None] * gamma[None, :] + beta[None, :]
    tl.store(result + place, normed.to(result.dtype.element_ty), mask=inside)
    tl.store(means + row, mean, mask=row < rows)
    tl.store(inverses + row, inverse, mask=row < rows)


@triton.jit
def norm_backward_kernel(total, weight, means, inverses, gradient, through, to_x, partial, rows, width: tl.constexpr,
                         wide: tl.constexpr, has_through: tl.constexpr, has_plus_bias: tl.constexpr,
                         block_rows: tl.constexpr, stages: tl.constexpr):  # fmt: skip
    """``to_x`` from the gradients of the normed rows and (``through``) of the sum.

    ``partial [programs, 2 or 3, C]``: of weight, bias and, with ``has_plus_bias``, the sum of ``to_x`` over the rows.
    """
    column = tl.arange(0, wide)
    is_column = column < width
    gamma = tl.load(weight + column, mask=is_column, other=0.0).to(tl.float32)
    to_gamma = tl.zeros([block_rows, wide], dtype=tl.float32)
    to_beta = tl.zeros([block_rows, wide], dtype=tl.float32)
    to_plus_bias = tl.zeros([block_rows, wide], dtype=tl.float32)
    for block in tl.range(tl.program_id(0), tl.cdiv(rows, block_rows), tl.num_programs(0), num_stages=stages):
        row = (block * block_rows + tl.arange(0, block_rows)).to(tl.int64)
        place = row[:, None] * width + column[None, :]
        inside = (row < rows)[:, None] & is_column[None, :]
        value = tl.load(total + place, mask=inside, other=0.0).to(tl.float32)
        sent = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(means + row, mask=row < rows, other=0.0)
        inverse = tl.load(inverses + row, mask=row < rows, other=0.0)
        normed = tl.where(is_column[None, :], (value - mean[:, None]) * inverse[:, None], 0.0)
        to_gamma += sent * normed
        to_beta += sent
        found = norm_rows_backward(sent * gamma[None, :], normed, inverse, width)
        if has_through:
            found += tl.load(through + place, mask=inside, other=0.0).to(tl.float32)
        if has_plus_bias:
            to_plus_bias += tl.where(inside, found, 0.0)
        tl.store(to_x + place, found.to(to_x.dtype.element_ty), mask=inside)
    place = partial + tl.program_id(0).to(tl.int64) * (3 if has_plus_bias else 2) * width + column
    tl.store(place, tl.sum(to_gamma, axis=0), mask=is_column)
    tl.store(place + width, tl.sum(to_beta, axis=0), mask=is_column)
    if has_plus_bias:
        tl.store(place + 2 * width, tl.sum(to_plus_bias, axis=0), mask=is_column)


@triton.jit
def sum_kernel(x, plus, plus_bias, total, rows, width: tl.constexpr, wide: tl.constexpr, block_rows: tl.constexpr):
    """``total = x + plus + plus_bias``, each ``[R, C]`` but the bias, ``[C]``."""
    row = (tl.program_id(0) * block_rows + tl.arange(0, block_rows)).to(tl.int64)
    column = tl.arange(0, wide)
    place = row[:, None] * width + column[None, :]
    inside = (row < rows)[:, None] & (column < width)[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(plus + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(plus_bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    tl.store(total + place, value.to(total.dtype.element_ty), mask=inside)


@triton.jit
def squared_relu_kernel(x, result, count, block: tl.constexpr):
    """``max(x, 0)^2``."""
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    positive = tl.maximum(tl.load(x + place, mask=place < count, other=0.0).to(tl.float32), 0.0)
    tl.store(result + place, (positive * positive).to(result.dtype.element_ty), mask=place < count)


@triton.jit
def squared_relu_backward_kernel(squares, gradient, to_x, partial, rows, width, block_rows: tl.constexpr,
                                 block_columns: tl.constexpr, stages: tl.constexpr):  # fmt: skip
    """``to_x = 2 sqrt(squares) gradient``, ``[R, C]``, and its sums over shares of the rows: ``partial [S, C]``."""
    column = tl.program_id(0) * block_columns + tl.arange(0, block_columns)
    total = tl.zeros([block_rows, block_columns], dtype=tl.float32)
    for block in tl.range(tl.program_id(1), tl.cdiv(rows, block_rows), tl.num_programs(1), num_stages=stages):
        row = (block * block_rows + tl.arange(0, block_rows)).to(tl.int64)
        place = row[:, None] * width + column[None, :]
        inside = (row < rows)[:, None] & (column < width)[None, :]
        positive = tl.sqrt(tl.load(squares + place, mask=inside, other=0.0).to(tl.float32))
        found = 2.0 * positive * tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(to_x + place, found.to(to_x.dtype.element_ty), mask=inside)
        total += found
    tl.store(partial + tl.program_id(1) * width + column, tl.sum(total, axis=0), mask=column < width)


@triton.jit
def column_sums_kernel(x, partial, rows, width, block_rows: tl.constexpr, block_columns: tl.constexpr,
                       stages: tl.constexpr):  # fmt: skip
    """Sums over this program's share of the rows: ``partial [shares, C]``."""
    column = tl.program_id(0) * block_columns + tl.arange(0, block_columns)
    total = tl.zeros([block_rows, block_columns], dtype=tl.float32)
    for block in tl.range(tl.program_id(1), tl.cdiv(rows, block_rows), tl.num_programs(1), num_stages=stages):
        row = (block * block_rows + tl.arange(0, block_rows)).to(tl.int64)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        total += tl.load(x + row[:, None] * width + column[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(partial + tl.program_id(1) * width + column, tl.sum(total, axis=0), mask=column < width)


@triton.jit
def finish_sums_kernel(partial, result, shares, width, block_shares: tl.constexpr, block_columns: tl.constexpr):
    """``partial [S, C]`` summed over its shares, always in the same order, and rounded: ``result [C]``."""
    column = tl.program_id(0) * block_columns + tl.arange(0, block_columns)
    total = tl.zeros([block_shares, block_columns], dtype=tl.float32)
    for block in range(0, tl.cdiv(shares, block_shares)):
        share = (block * block_shares + tl.arange(0, block_shares)).to(tl.int64)
        inside = (share < shares)[:, None] & (column < width)[None, :]
        total += tl.load(partial + share[:, None] * width + column[None, :], mask=inside, other=0.0)
    tl.store(result + column, tl.sum(total, axis=0).to(result.dtype.element_ty), mask=column < width)
