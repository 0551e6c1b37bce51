"""Where tokens sit for the device kernels, and their gradients summed over examples without atomics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WIDE_CHANNELS = 16
"""Channels are padded to this; the head takes at most so many, the first cross-attention one fewer."""
_BLOCK_TOKENS = 64


@dataclass(frozen=True)
class TokenSlots:
    """The tokens of one modality that take part.

    ``slots [B or 1, G or 1, s]`` positions inside groups of ``group_tokens``, below 0 where empty; None: all of them.
    """

    slots: Tensor | None
    batch: int
    groups: int
    group_tokens: int
    num_tokens: int

    @property
    def per_group(self) -> int:
        """Tokens of each group that are looked at."""
        return self.group_tokens if self.slots is None else self.slots.shape[2]

    def argument(self, otherwise: Tensor) -> Tensor:
        """What a kernel is given for the slots; something it never reads where there are none."""
        return otherwise if self.slots is None else self.slots

    @property
    def strides(self) -> tuple[int, int]:
        """Steps from example to example and from group to group, 0 along an axis of 1."""
        return (0, 0) if self.slots is None else _steps(self.slots)

    def sum_over_examples(self, values: Tensor) -> Tensor:
        """``values [B, G, s, E]``, one row a slot, summed by token: ``[G * l, E]``; the same bits on every run."""
        from hip_model.kernels.triton_common import sum_rows_kernel

        inverse = self._inverse()
        steps = (0, 0) if inverse is None else _steps(inverse)
        width = values.shape[-1]
        result = values.new_empty(self.groups * self.group_tokens, width)
        grid = (-(-self.group_tokens // _BLOCK_TOKENS), self.groups)
        sum_rows_kernel[grid](
            values, values if inverse is None else inverse, result, self.batch, self.groups, self.per_group,
            self.group_tokens, *steps, width=width, has_inverse=inverse is not None, block_tokens=_BLOCK_TOKENS,
        )  # fmt: skip
        return result

    def _inverse(self) -> Tensor | None:
        """Which slot holds each token, -1 where none does: int32 ``[B or 1, G or 1, l]``."""
        if self.slots is None:
            return None
        examples, groups, count = self.slots.shape
        targets = torch.where(self.slots < 0, self.group_tokens, self.slots)
        shape = (examples, groups, self.group_tokens + 1)
        inverse = torch.full(shape, -1, dtype=torch.int32, device=self.slots.device)
        index = torch.arange(count, dtype=torch.int32, device=self.slots.device)
        return inverse.scatter_(2, targets, index.expand(examples, groups, -1))


def _steps(values: Tensor) -> tuple[int, int]:
    sizes, steps = values.shape, values.stride()
    return (steps[0] if sizes[0] > 1 else 0, steps[1] if sizes[1] > 1 else 0)
