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
# By width, tokens of a block, warps of a program and its loop's stages: the fastest on an H200
# (bench/results/gpu_kernels_h200_settings.json).
_FORWARD = {16: (64, 4, 3), 32: (64, 4, 3)}
_MLP_BACKWARD = {16: (32, 1, 3), 32: (64, 2, 3)}
_ATTENTION_BACKWARD = {16: (64, 1, 2), 32: (64, 4, 2)}


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
    result: Tensor = _AnswerPixels.apply(
        code, keys, answers, *weights.tensors(), where, epsilon, torch.is_grad_enabled()
    )
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
    ) -> Tensor:  # the eight weights, the slots, the norm's epsilon, whether a backward pass may follow
        from hip_model.kernels.triton_pixel_answers import answer_kernel

        *weights, where, epsilon, is_kept = rest
        code, keys, answers = code.contiguous(), keys.contiguous(), answers.contiguous()
        weights = [weight.contiguous() for weight in weights]
        programs, (block_tokens, warps, stages) = where.batch * where.groups, _FORWARD[code.shape[-1]]
        count = shares(programs, -(-where.per_group // block_tokens), code.device)
        shape = (where.batch, where.groups, where.per_group)
        result = code.new_empty(*shape, weights[-1].shape[0])
        kept = code.new_empty(*shape, code.shape[-1]) if is_kept else result
        log_sums = torch.empty(shape, dtype=torch.float32, device=code.device) if is_kept else result
        answer_kernel[(programs, count)](
            code, where.argument(code), keys, answers, *weights, result, kept, log_sums, *_sizes(where),
            **_constants(where, code, epsilon), **_channels(weights), **_keys(keys), is_kept=is_kept,
            block_tokens=block_tokens, stages=stages, num_warps=warps,
        )  # fmt: skip
        if is_kept:
            ctx.save_for_backward(code, keys, answers, kept, log_sums, *weights)
        ctx.constants = where, epsilon
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        code, keys, answers, kept, log_sums, *weights = ctx.saved_tensors
        where, epsilon = ctx.constants
        to_attended, along, of_weights = _mlp_backward(gradient, kept, weights, where, epsilon)
        found = _attention_backward(to_attended, along, log_sums, code, keys, answers, where, epsilon)
        return *found, *of_weights, None, None, None


def _mlp_backward(
    gradient: Tensor, kept: Tensor, weights: list[Tensor], where: TokenSlots, epsilon: float
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The gradients of what was attended ``[B, G, s, E]``, their products with it ``[B, G, s]``, and the weights'."""
    from hip_model.kernels.triton_pixel_answers import answer_mlp_backward_kernel

    programs, (block_tokens, warps, stages) = where.batch * where.groups, _MLP_BACKWARD[kept.shape[-1]]
    count, width = shares(programs, -(-where.per_group // block_tokens), kept.device), kept.shape[-1]
    rows = 2 * width + WIDE_CHANNELS + 2
    to_attended = torch.empty_like(kept)
    along = torch.empty(kept.shape[:-1], dtype=torch.float32, device=kept.device)
    to_parameters = torch.empty(count * programs, rows, width, dtype=torch.float32, device=kept.device)
    answer_mlp_backward_kernel[(programs, count)](
        where.argument(kept), kept, *weights[:-1], gradient.contiguous(), to_attended, along, to_parameters,
        where.batch, *_sizes(where), **_constants(where, kept, epsilon), **_channels(weights),
        block_tokens=block_tokens, stages=stages, num_warps=warps,
    )  # fmt: skip
    return to_attended, along, _split(to_parameters.sum(0), width, weights)


def _attention_backward(
    to_attended: Tensor,
    along: Tensor,
    log_sums: Tensor,
    code: Tensor,
    keys: Tensor,
    answers: Tensor,
    where: TokenSlots,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the position codes, the keys and the answers."""
    from hip_model.kernels.triton_pixel_answers import answer_attention_backward_kernel

    programs, (block_tokens, warps, stages) = where.batch * where.groups, _ATTENTION_BACKWARD[code.shape[-1]]
    count = shares(programs, -(-where.per_group // block_tokens), code.device)
    to_keys, to_answers = torch.empty(2, count, *keys.shape, dtype=torch.float32, device=code.device)
    to_tokens = torch.empty_like(to_attended)
    answer_attention_backward_kernel[(programs, count)](
        code, where.argument(code), keys, answers, log_sums, to_attended, along, to_keys, to_answers, to_tokens,
        where.batch, *_sizes(where), **_constants(where, code, epsilon), **_keys(keys),
        block_tokens=block_tokens, stages=stages, num_warps=warps,
    )  # fmt: skip
    of_keys, of_answers = (part.sum(0) if count > 1 else part[0] for part in (to_keys, to_answers))
    return where.sum_over_examples(to_tokens), of_keys.to(keys.dtype), of_answers.to(answers.dtype)


def _split(summed: Tensor, width: int, weights: list[Tensor]) -> list[Tensor]:
    """The kernel's rows of sums to gradients, in the order of ``HeadWeights.tensors``.

    The kernel sums ``before' normed`` and ``before``; the gradients of the norm's weight and bias and of the hidden
    matrix follow from those without another sum over tokens, and the output bias's from the last bias's.
    """
    channels = weights[-1].shape[0]
    gamma, beta, hidden_matrix, unembed_matrix = (weights[index].float() for index in (0, 1, 2, 6))
    by_normed, output, unembed, (to_bias, to_last) = summed.split([width, width, WIDE_CHANNELS, 2])
    hidden = by_normed * gamma + to_bias.unsqueeze(1) * beta
    to_gamma = (hidden_matrix * by_normed).sum(0)
    to_end_bias = to_last[:channels] @ unembed_matrix
    found = (to_gamma, to_bias @ hidden_matrix, hidden, to_bias, output, to_end_bias, unembed[:channels],
             to_last[:channels])  # fmt: skip
    return [part.to(weight.dtype) for part, weight in zip(found, weights, strict=True)]


def _sizes(where: TokenSlots) -> tuple[int, ...]:
    """The kernels' run-time sizes after the batch, in their order."""
    return (where.groups, where.per_group, where.group_tokens, where.num_tokens, *where.strides)


def _constants(where: TokenSlots, code: Tensor, epsilon: float) -> dict[str, Any]:
    return {"epsilon": epsilon, "has_slots": where.slots is not None, "width": code.shape[-1]}


def _keys(keys: Tensor) -> dict[str, Any]:
    return {"num_keys": keys.shape[2], "wide_keys": max(16, int(2 ** math.ceil(math.log2(keys.shape[2]))))}


def _channels(weights: list[Tensor]) -> dict[str, Any]:
    return {"channels": weights[-1].shape[0], "wide_channels": WIDE_CHANNELS}
