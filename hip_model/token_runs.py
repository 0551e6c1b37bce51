"""Runs of groups of one modality: raw values and position codes, embedded only when attention asks for them.

Attention never crosses groups, so a large input is worked through a run of groups at a time. Only one run's embedded
tokens exist at once; the backward pass embeds them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from hip_model.attention import Keys, hidden_scores
from hip_model.grouping import ModalityGroups
from hip_model.kernels.attention import HIDDEN_SCORE
from hip_model.kernels.select_rows import select_rows
from hip_model.selection import EMPTY_SLOT

# Tokens (batch included) above which a modality is worked through in runs, and the size of a run: what fits a core's
# cache on CPU, what fills a device elsewhere.
_CPU_RUNS = (2**17, 2**15)
# Queries keep less than keys do, so doing them again pays later.
_CPU_QUERY_RUNS = (2**18, 2**15)
_DEVICE_RUNS = (2**23, 2**21)


@dataclass(frozen=True)
class GroupRun:
    """Consecutive groups of one modality.

    ``code [g, l, E]``, ``slots [B or 1, g or 1, s]`` (positions inside groups) or None for all tokens, ``lengths`` real
    tokens per group, ``padding`` further slots up to the length all groups of the model share.
    """

    code: Tensor
    slots: Tensor | None
    lengths: tuple[int, ...]
    padding: int

    @property
    def groups(self) -> int:
        """Groups of the run, ``g``."""
        return self.code.shape[0]

    @property
    def per_group(self) -> int:
        """Tokens of each group that are looked at: all of them, or the selected slots."""
        return self.code.shape[1] if self.slots is None else self.slots.shape[2]

    @property
    def has_short_groups(self) -> bool:
        """Whether some group has fewer tokens than the others."""
        return min(self.lengths) < self.code.shape[1]

    def beyond_end(self, positions: Tensor) -> Tensor:
        """Which ``positions [..., g, s]`` inside groups lie after the group's last real token."""
        return positions >= torch.tensor(self.lengths, device=positions.device).unsqueeze(-1)

    def queries(self) -> Tensor:
        """The position codes of the run's slots: ``[1, g, l, E]``, or ``[B or 1, g, s, E]``."""
        if self.slots is None:
            return self.code.unsqueeze(0)
        rows, empty = self._rows()
        return self._select_code(rows, empty)

    def keys(self, raw: Tensor, embed: Callable[[Tensor], Tensor], mask_padding: bool, has_empty_slots: bool) -> Keys:
        """The run's tokens, ``raw [B, g, l, C]`` embedded and positioned, as keys of its groups.

        Padding is attended to as zero vectors, as in the original, unless ``mask_padding``. A group's padding is all
        the same key, so one zero vector with ``+ log n`` stands for ``n`` of them.
        """
        if self.slots is None:
            # With a batch axis: without it the code's gradient is a sum over the batch, even over one example.
            return self._all_keys(embed(raw) + self.code.unsqueeze(0), mask_padding)
        if self.slots.shape[2] == 0:
            # Attention over no keys at all is not defined everywhere; over one hidden key it is.
            return replace(self, slots=pad(self.slots, (0, 1), value=EMPTY_SLOT)).keys(raw, embed, mask_padding, True)
        rows, empty = self._rows()
        tokens = embed(_select_raw(raw, rows)) + self._select_code(rows, empty)
        hide = has_empty_slots or self.has_short_groups
        if mask_padding or not (self.padding or self.has_short_groups):
            return Keys(tokens, hidden_scores(empty) if hide else None)
        bias = torch.cat(
            [hidden_scores(empty), self._padding_scores(tokens).expand(empty.shape[0], -1, -1, -1)], dim=-1
        )
        return Keys(pad(tokens, (0, 0, 0, 1)), bias)

    def _all_keys(self, tokens: Tensor, mask_padding: bool) -> Keys:
        bias = None
        if self.has_short_groups:
            beyond = self.beyond_end(torch.arange(tokens.shape[2], device=tokens.device).expand(tokens.shape[1], -1))
            if mask_padding:
                bias = hidden_scores(beyond.unsqueeze(0))
            else:
                tokens = tokens.masked_fill(beyond.unsqueeze(-1), 0.0)
        if mask_padding or self.padding == 0:
            return Keys(tokens, bias)
        bias = torch.zeros(1, 1, 1, tokens.shape[2] + 1, device=tokens.device)
        bias[..., -1] = math.log(self.padding)
        return Keys(pad(tokens, (0, 0, 0, 1)), bias)

    def _padding_scores(self, tokens: Tensor) -> Tensor:
        """The score added to the one key that stands for all padding of a group: ``[1, g, 1, 1]``."""
        slots = self.code.shape[1] + self.padding
        counts = [slots - length for length in self.lengths]
        scores = [math.log(count) if count else HIDDEN_SCORE for count in counts]
        return torch.tensor(scores, device=tokens.device).view(1, -1, 1, 1)

    def _rows(self) -> tuple[Tensor, Tensor]:
        """Row of each slot in the run's flattened tokens (0 if empty), and which are empty: ``[B or 1, g, s]``."""
        assert self.slots is not None
        groups, group_tokens = self.code.shape[:2]
        first = torch.arange(groups, device=self.slots.device).view(1, -1, 1) * group_tokens
        rows = self.slots + first
        empty = self.slots.expand_as(rows) < 0
        if self.has_short_groups:
            empty = empty | self.beyond_end(self.slots)
        return rows.masked_fill(empty, 0), empty

    def _select_code(self, rows: Tensor, empty: Tensor) -> Tensor:
        chosen = select_rows(self.code.flatten(0, 1), rows.flatten(1), empty.flatten(1))
        return chosen.view(*rows.shape, self.code.shape[-1])


def group_runs(code: Tensor, groups: ModalityGroups, slots: Tensor | None, size: int) -> list[GroupRun]:
    """A modality's groups, ``code [g, l, E]``, in runs of ``size`` groups."""
    lengths = tuple(groups.tokens_in_group(group) for group in range(groups.groups))
    codes = in_runs(code, size, dim=0)
    parts = [slots] * len(codes) if slots is None or slots.shape[1] == 1 else in_runs(slots, size, dim=1)
    return [
        GroupRun(codes[i], parts[i], lengths[i * size : i * size + codes[i].shape[0]], groups.group_padding)
        for i in range(len(codes))
    ]


def in_runs(x: Tensor, size: int, dim: int) -> Sequence[Tensor]:
    """``x`` in pieces of ``size``; itself where one piece is all, for the gradient of a split of one is a copy.

    A split, not slices: its gradient is one concatenation, where each slice would fill a tensor of the whole size.
    """
    return (x,) if x.shape[dim] <= size else x.split(size, dim)


def raw_runs(raw: Tensor, groups: ModalityGroups, size: int) -> Sequence[Tensor]:
    """A modality's raw values ``[B, T, C]`` in runs ``[B, size, l, C]`` of groups."""
    if groups.final_padding:
        raw = pad(raw, (0, 0, 0, groups.final_padding))
    return in_runs(raw.unflatten(1, (groups.groups, groups.group_tokens)), size, dim=1)


def run_groups(
    batch: int, groups: ModalityGroups, slots: Tensor | None, device: torch.device, asking: bool = False
) -> int:
    """Groups of a modality worked on at once; all of them if few tokens take part or a compiler plans memory.

    ``slots [B or 1, g or 1, s]`` are those that take part, None for all tokens; ``asking``: as queries, not as keys.
    """
    on_cpu = _CPU_QUERY_RUNS if asking else _CPU_RUNS
    threshold, run_tokens = on_cpu if device.type == "cpu" else _DEVICE_RUNS
    per_group = batch * (groups.group_tokens if slots is None else max(1, slots.shape[2]))
    if torch.compiler.is_compiling() or per_group * groups.groups <= threshold:
        return groups.groups
    return max(1, min(groups.groups, run_tokens // per_group))


def by_group(code: Tensor, groups: ModalityGroups) -> Tensor:
    """Position codes ``[T, E]`` by group, ``[g, l, E]``, with zeros after the last token."""
    if groups.final_padding:
        code = pad(code, (0, 0, 0, groups.final_padding))
    return code.view(groups.groups, groups.group_tokens, -1)


def _select_raw(raw: Tensor, rows: Tensor) -> Tensor:
    """``raw [B, g, l, C]`` at ``rows [B or 1, g, v]`` of its flattened tokens: ``[B, g, v, C]``."""
    batch, _, _, channels = raw.shape
    flat = raw.flatten(1, 2)
    if rows.shape[0] == 1:
        chosen = flat.index_select(1, rows.flatten())
    else:
        chosen = flat.gather(1, rows.flatten(1).unsqueeze(-1).expand(-1, -1, channels))
    return chosen.view(batch, *rows.shape[1:], channels)
