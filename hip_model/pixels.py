"""Both ends of a model on the device kernels: latents that look at raw tokens, and positions that ask for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from hip_model.attention import CrossAttention
from hip_model.grouping import ModalityGroups
from hip_model.kernels.attention import HIDDEN_SCORE
from hip_model.kernels.device import compute_dtype, has_device_kernels, is_whole
from hip_model.kernels.pixel_answers import MOST_KEYS, HeadWeights, answer_pixels
from hip_model.kernels.pixel_keys import (
    MOST_QUERIES,
    WIDTHS,
    PixelWeights,
    attend_pixels,
    with_padding,
)
from hip_model.kernels.token_slots import WIDE_CHANNELS, TokenSlots
from hip_model.norm import NORM_EPSILON


@dataclass(frozen=True)
class PixelKeys:
    """One modality's raw tokens ``[B, T, C]`` and position codes ``[G * l, E]``, not yet embedded."""

    raw: Tensor
    code: Tensor
    where: TokenSlots
    embed: nn.Module
    padding: tuple[float, ...] | None
    """Score of the one key that stands for each group's padding; None where padding is not looked at."""
    has_empty_slots: bool

    def fits(self, queries: Tensor, norm: nn.LayerNorm) -> bool:
        """Whether the kernels take these queries ``[B or 1, G, N, E]`` and their keys' norm."""
        return queries.shape[2] <= MOST_QUERIES and is_whole(norm.weight, norm.bias)

    def attend(self, queries: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor | None]:
        """``queries [B or 1, G, N, E]`` over the normed tokens, which are keys and values: ``[B, G, N, E]``.

        Also whether a query saw any key, ``[B, G, N, 1]``, or None where all did.
        """
        kind = compute_dtype(self.code)
        embed: dict[str, Tensor] = dict(self.embed.named_parameters())
        weights = PixelWeights(
            embed["weight"].to(kind), embed["bias"].to(kind), norm.weight.to(kind), norm.bias.to(kind)
        )
        queries, scale = queries.to(kind), queries.shape[-1] ** -0.5
        answers, log_sums = attend_pixels(
            queries, self.raw, self.code.to(kind), self.where, weights, scale, NORM_EPSILON
        )
        if self.padding is not None:
            # Padding is a zero vector before the norm, hence the norm's bias after it.
            score = (queries @ weights.norm_bias).float() * scale + _scores(self.padding, queries.device)
            answers = with_padding(answers, log_sums, score, weights.norm_bias)
            log_sums = torch.logaddexp(log_sums, score)
        seen = (log_sums > HIDDEN_SCORE / 2).unsqueeze(-1) if self.has_empty_slots else None
        return answers, seen


def pixel_keys(
    raw: Tensor,
    code: Tensor,
    groups: ModalityGroups,
    slots: Tensor | None,
    embed: nn.Module,
    mask_padding: bool,
    has_empty_slots: bool,
) -> PixelKeys | None:
    """A modality's tokens for the kernels, ``code [G, l, E]``; None where the plain form has to do."""
    parameters = dict(embed.named_parameters())
    fits = code.shape[-1] in WIDTHS and raw.shape[-1] < WIDE_CHANNELS and is_whole(*parameters.values())
    if not (fits and len(parameters) == 2 and _has_kernels(code)):
        return None
    where = token_slots(groups, slots, raw.shape[0])
    lengths = [groups.tokens_in_group(group) for group in range(groups.groups)]
    missing = [groups.group_tokens + groups.group_padding - length for length in lengths]
    padding = None
    if not mask_padding and any(missing):
        padding = tuple(math.log(count) if count else HIDDEN_SCORE for count in missing)
    may_be_empty = has_empty_slots or min(lengths) == 0
    return PixelKeys(raw, code.flatten(0, 1), where, embed, padding, may_be_empty)


def answer_on_device(
    head: CrossAttention,
    unembed: nn.Module,
    code: Tensor,
    groups: ModalityGroups,
    slots: Tensor | None,
    latents: Tensor,
) -> Tensor | None:
    """``code [G, l, E]`` at ``slots``, answered from ``latents [B, G, n, D]`` and un-embedded: ``[B, G, s, C]``.

    None where the plain form has to do.
    """
    width, weights = code.shape[-1], _head_weights(head, unembed)
    fits = width in WIDTHS and head.heads == 1 and not head.residual and latents.shape[2] <= MOST_KEYS
    if not (fits and _has_kernels(code) and is_whole(*weights) and latents.shape[1] == code.shape[0]):
        return None
    hidden, unembedding = weights[2], weights[6]
    if hidden.shape != (width, width) or unembedding.shape[0] > WIDE_CHANNELS:
        return None
    kind = compute_dtype(code)
    keys, answers = head.fold_into_keys(head.key_norm(latents))
    where = token_slots(groups, slots, latents.shape[0])
    cast = HeadWeights(*(weight.to(kind) for weight in weights))
    return answer_pixels(code.flatten(0, 1).to(kind), where, keys.to(kind), answers.to(kind), cast, NORM_EPSILON)


def _has_kernels(code: Tensor) -> bool:
    """In 16 bits only: float32 products without rounding use no matrix units, and the plain form is faster."""
    return has_device_kernels(code) and (not code.is_cuda or compute_dtype(code).itemsize == 2)


def _head_weights(head: CrossAttention, unembed: nn.Module) -> list[Tensor]:
    """In the order of ``HeadWeights``."""
    linears = (head.mlp.hidden, head.mlp.output, unembed)
    norm = [head.mlp_norm.weight, head.mlp_norm.bias]
    return [
        *norm,
        *(part for linear in linears for part in (linear.get_parameter("weight"), linear.get_parameter("bias"))),
    ]


def token_slots(groups: ModalityGroups, slots: Tensor | None, batch: int) -> TokenSlots:
    """A modality's ``slots [B or 1, g or 1, s]`` as the kernels take them; None: all of its tokens."""
    if slots is not None and slots.stride(-1) != 1:
        slots = slots.contiguous()
    return TokenSlots(slots, batch, groups.groups, groups.group_tokens, groups.num_tokens)


@lru_cache(maxsize=64)
def _scores(padding: tuple[float, ...], device: torch.device) -> Tensor:
    """``[1, G, 1]``; kept, so that a step copies nothing to the device."""
    return torch.tensor(padding, device=device).view(1, -1, 1)
