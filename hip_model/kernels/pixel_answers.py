"""The reconstruction head over position codes in one pass; naive twin: ``naive_answer_pixels``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import layer_norm, linear

from hip_model.kernels.device import shares
from hip_model.kernels.token_slots import WIDE_CHANNELS, TokenSlots

MOST_KEYS = 128
# The fastest on an H200 of all three kernels (bench/results/gpu_kernels_h200.json).
_BLOCK_TOKENS, _WARPS = 64, 4


@dataclass(frozen=True)
class HeadWeights:
    """What makes an answer of what a query attended: norm, MLP of the same width (squared ReLU), un-embedding."""

    norm_weight: Tensor
    norm_bias: Tensor
    hidden_weight: Tensor
    hidden_bias: Tensor
    output_weight: Tensor
    output_bias: Tensor
    unembed_weight: Tensor
    unembed_bias: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the kernels' order."""
        mlp = (self.hidden_weight, self.hidden_bias, self.output_weight, self.output_bias)
        return (self.norm_weight, self.norm_bias, *mlp, self.unembed_weight, self.unembed_bias)


def answer_pixels(
    code: Tensor, where: TokenSlots, keys: Tensor, answers: Tensor, weights: HeadWeights, epsilon: float
) -> Tensor:
    """Raw values for the slots of ``code [G * l, E]``, from ``keys`` and ``answers [B, G, n, E]``: ``[B, G, s, C]``.

    A query is its normed code plus 1 and meets the keys as they are (see ``QueryNorm``). Empty slots give arbitrary
    values and send no gradient.
    """
    result: Tensor = _AnswerPixels.apply(code, keys, answers, *weights.tensors(), where, epsilon)
    return result


def naive_answer_pixels(
    code: Tensor, where: TokenSlots, keys: Tensor, answers: Tensor, weights: HeadWeights, epsilon: float
) -> Tensor:
    """What ``answer_pixels`` returns, every query and score written out."""
    slots = where.slots
    if slots is None:
        slots = torch.arange(where.group_tokens, device=code.device).expand(1, 1, -1)
    slots = slots.expand(where.batch, where.groups, -1)
    rows = slots + torch.arange(where.groups, device=code.device).view(1, -1, 1) * where.group_tokens
    queries = layer_norm(code[rows.masked_fill(slots < 0, 0)], code.shape[-1:], None, None, epsilon) + 1.0
    attended = (queries @ keys.transpose(-1, -2)).softmax(dim=-1) @ answers
    hidden = layer_norm(attended, attended.shape[-1:], weights.norm_weight, weights.norm_bias, epsilon)
    hidden = linear(hidden, weights.hidden_weight, weights.hidden_bias).relu().square()
    final = attended + linear(hidden, weights.output_weight, weights.output_bias)
    return linear(final, weights.unembed_weight, weights.unembed_bias)


class _AnswerPixels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, code: Tensor, keys: Tensor, answers: Tensor, *rest: Any
    ) -> Tensor:  # the eight weights, the slots, the norm's epsilon
        from hip_model.kernels.triton_pixel_answers import answer_kernel

        *weights, where, epsilon = rest
        code, keys, answers = code.contiguous(), keys.contiguous(), answers.contiguous()
        weights = [weight.contiguous() for weight in weights]
        programs = where.batch * where.groups
        count = shares(programs, -(-where.per_group // _BLOCK_TOKENS), code.device)
        result = code.new_empty(where.batch, where.groups, where.per_group, weights[-1].shape[0])
        answer_kernel[(programs, count)](
            code, where.argument(code), keys, answers, *weights, result, *_sizes(where, keys),
            **_constants(where, keys, epsilon), **_channels(weights), block_tokens=_BLOCK_TOKENS, num_warps=_WARPS,
        )  # fmt: skip
        ctx.save_for_backward(code, keys, answers, *weights)
        ctx.constants = where, epsilon
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        code, keys, answers, *weights = ctx.saved_tensors
        where, epsilon = ctx.constants
        to_attended, of_weights = _mlp_backward(gradient, code, keys, answers, weights, where, epsilon)
        found = _attention_backward(to_attended, code, keys, answers, where, epsilon)
        return *found, *of_weights, None, None


def _mlp_backward(
    gradient: Tensor,
    code: Tensor,
    keys: Tensor,
    answers: Tensor,
    weights: list[Tensor],
    where: TokenSlots,
    epsilon: float,
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of what was attended ``[B, G, s, E]`` and of the weights."""
    from hip_model.kernels.triton_pixel_answers import answer_mlp_backward_kernel

    programs = where.batch * where.groups
    count, width = shares(programs, -(-where.per_group // _BLOCK_TOKENS), code.device), code.shape[-1]
    rows = 2 * width + WIDE_CHANNELS + 5
    to_attended = code.new_empty(where.batch, where.groups, where.per_group, width)
    to_parameters = torch.empty(count * programs, rows, width, dtype=torch.float32, device=code.device)
    answer_mlp_backward_kernel[(programs, count)](
        code, where.argument(code), keys, answers, *weights[:-1], gradient.contiguous(), to_attended, to_parameters,
        where.batch, *_sizes(where, keys), **_constants(where, keys, epsilon), **_channels(weights),
        block_tokens=_BLOCK_TOKENS, num_warps=_WARPS,
    )  # fmt: skip
    return to_attended, _split(to_parameters.sum(0), width, weights)


def _attention_backward(
    to_attended: Tensor, code: Tensor, keys: Tensor, answers: Tensor, where: TokenSlots, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the position codes, the keys and the answers."""
    from hip_model.kernels.triton_pixel_answers import answer_attention_backward_kernel

    programs = where.batch * where.groups
    count = shares(programs, -(-where.per_group // _BLOCK_TOKENS), code.device)
    to_keys, to_answers = torch.empty(2, count, *keys.shape, dtype=torch.float32, device=code.device)
    to_tokens = torch.empty_like(to_attended)
    answer_attention_backward_kernel[(programs, count)](
        code, where.argument(code), keys, answers, to_attended, to_keys, to_answers, to_tokens, where.batch,
        *_sizes(where, keys), **_constants(where, keys, epsilon), block_tokens=_BLOCK_TOKENS, num_warps=_WARPS,
    )  # fmt: skip
    of_keys, of_answers = (part.sum(0) if count > 1 else part[0] for part in (to_keys, to_answers))
    return where.sum_over_examples(to_tokens), of_keys.to(keys.dtype), of_answers.to(answers.dtype)


def _split(summed: Tensor, width: int, weights: list[Tensor]) -> list[Tensor]:
    """The kernel's rows of parameter gradients, in the order of ``HeadWeights.tensors``."""
    channels = weights[-1].shape[0]
    hidden, output, unembed, ends = summed.split([width, width, WIDE_CHANNELS, 5])
    found = (ends[0], ends[1], hidden, ends[2], output, ends[3], unembed[:channels], ends[4, :channels])
    return [part.to(weight.dtype) for part, weight in zip(found, weights, strict=True)]


def _sizes(where: TokenSlots, keys: Tensor) -> tuple[int, ...]:
    """The kernels' run-time sizes after the batch, in their order."""
    return (where.groups, where.per_group, where.group_tokens, where.num_tokens, *where.strides, keys.shape[2])


def _constants(where: TokenSlots, keys: Tensor, epsilon: float) -> dict[str, Any]:
    return {
        "epsilon": epsilon,
        "has_slots": where.slots is not None,
        "width": keys.shape[-1],
        "wide_keys": max(16, 2 ** math.ceil(math.log2(keys.shape[2]))),
    }


def _channels(weights: list[Tensor]) -> dict[str, Any]:
    return {"channels": weights[-1].shape[0], "wide_channels": WIDE_CHANNELS}
