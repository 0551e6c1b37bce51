"""Rows of activations: layer norm with an optional addition before it, squared ReLU, sums over rows."""

from __future__ import annotations

import triton
import triton.language as tl

from hip_model.kernels.triton_common import norm_rows_backward


@triton.jit
def norm_kernel(x, plus, weight, bias, total, result, means, inverses, rows, width: tl.constexpr, wide: tl.constexpr,
                epsilon: tl.constexpr, has_plus: tl.constexpr, block_rows: tl.constexpr):  # fmt: skip
    """``result [R, C]`` is ``x + plus`` normed; ``total`` the sum, and each row's mean and one over its deviation."""
    row = (tl.program_id(0) * block_rows + tl.arange(0, block_rows)).to(tl.int64)
    column = tl.arange(0, wide)
    place = row[:, None] * width + column[None, :]
    inside = (row < rows)[:, None] & (column < width)[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if has_plus:
        value += tl.load(plus + place, mask=inside, other=0.0).to(tl.float32)
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
                         wide: tl.constexpr, has_through: tl.constexpr, block_rows: tl.constexpr):  # fmt: skip
    """``to_x`` from the gradients of the normed rows and (``through``) of the sum; ``partial [programs, 2, wide]``."""
    column = tl.arange(0, wide)
    is_column = column < width
    gamma = tl.load(weight + column, mask=is_column, other=0.0).to(tl.float32)
    to_gamma, to_beta = tl.zeros([wide], dtype=tl.float32), tl.zeros([wide], dtype=tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, block_rows), tl.num_programs(0)):
        row = (block * block_rows + tl.arange(0, block_rows)).to(tl.int64)
        place = row[:, None] * width + column[None, :]
        inside = (row < rows)[:, None] & is_column[None, :]
        value = tl.load(total + place, mask=inside, other=0.0).to(tl.float32)
        sent = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        mean = tl.load(means + row, mask=row < rows, other=0.0)
        inverse = tl.load(inverses + row, mask=row < rows, other=0.0)
        normed = tl.where(is_column[None, :], (value - mean[:, None]) * inverse[:, None], 0.0)
        to_gamma += tl.sum(sent * normed, axis=0)
        to_beta += tl.sum(sent, axis=0)
        found = norm_rows_backward(sent * gamma[None, :], normed, inverse, width)
        if has_through:
            found += tl.load(through + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(to_x + place, found.to(to_x.dtype.element_ty), mask=inside)
    first = tl.program_id(0) * 2 * wide + column
    tl.store(partial + first, to_gamma)
    tl.store(partial + first + wide, to_beta)


@triton.jit
def squared_relu_kernel(x, result, count, block: tl.constexpr):
    """``max(x, 0)^2``."""
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    positive = tl.maximum(tl.load(x + place, mask=place < count, other=0.0).to(tl.float32), 0.0)
    tl.store(result + place, (positive * positive).to(result.dtype.element_ty), mask=place < count)


@triton.jit
def squared_relu_backward_kernel(x, gradient, to_x, squared, count, block: tl.constexpr):
    """``2 max(x, 0) gradient``, and the squares again in the same pass."""
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    positive = tl.maximum(tl.load(x + place, mask=place < count, other=0.0).to(tl.float32), 0.0)
    sent = tl.load(gradient + place, mask=place < count, other=0.0).to(tl.float32)
    tl.store(to_x + place, (2.0 * positive * sent).to(to_x.dtype.element_ty), mask=place < count)
    tl.store(squared + place, (positive * positive).to(squared.dtype.element_ty), mask=place < count)


@triton.jit
def column_sums_kernel(x, partial, rows, width, block_rows: tl.constexpr, block_columns: tl.constexpr):
    """Sums over this program's share of the rows: ``partial [shares, C]``."""
    column = tl.program_id(0) * block_columns + tl.arange(0, block_columns)
    total = tl.zeros([block_rows, block_columns], dtype=tl.float32)
    for block in range(tl.program_id(1), tl.cdiv(rows, block_rows), tl.num_programs(1)):
        row = (block * block_rows + tl.arange(0, block_rows)).to(tl.int64)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        total += tl.load(x + row[:, None] * width + column[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(partial + tl.program_id(1) * width + column, tl.sum(total, axis=0), mask=column < width)
