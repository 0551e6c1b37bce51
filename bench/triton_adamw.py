"""AdamW for bfloat16 weights with float32 masters: gradients in, moments, masters and weights out, in one pass.

28 bytes a parameter are moved, where PyTorch's own optimizer between two conversions moves 40.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = 2048


@triton.jit
def adamw_kernel(parts, offsets, weights, gradients, sizes, firsts, master, mean, square, step, rate,
                 beta_mean: tl.constexpr, beta_square: tl.constexpr, epsilon: tl.constexpr, decay: tl.constexpr,
                 block: tl.constexpr):  # fmt: skip
    """One block of one parameter: which, and where in it, say ``parts`` and ``offsets``.

    ``weights`` and ``gradients`` hold addresses; ``firsts`` where a parameter begins in masters and moments.
    """
    part = tl.load(parts + tl.program_id(0))
    offset = tl.multiple_of(tl.load(offsets + tl.program_id(0)), 16)
    place = offset + tl.arange(0, block)
    inside = place < tl.load(sizes + part)
    kind = tl.pointer_type(tl.bfloat16)
    weight = tl.multiple_of(tl.load(weights + part).to(kind), 16)
    gradient = tl.multiple_of(tl.load(gradients + part).to(kind), 16)
    state = tl.multiple_of(tl.load(firsts + part), 16) + place
    sent = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
    count = tl.load(step)
    first = tl.load(mean + state, mask=inside, other=0.0) * beta_mean + sent * (1.0 - beta_mean)
    second = tl.load(square + state, mask=inside, other=0.0) * beta_square + sent * sent * (1.0 - beta_square)
    scale = rate / (1.0 - tl.exp2(count * tl.log2(tl.full([], beta_mean, tl.float32))))
    unbiased = tl.sqrt(second / (1.0 - tl.exp2(count * tl.log2(tl.full([], beta_square, tl.float32)))))
    value = tl.load(master + state, mask=inside, other=0.0) * (1.0 - rate * decay)
    value -= scale * first / (unbiased + epsilon)
    tl.store(mean + state, first, mask=inside)
    tl.store(square + state, second, mask=inside)
    tl.store(master + state, value, mask=inside)
    tl.store(weight + place, value.to(tl.bfloat16), mask=inside)
