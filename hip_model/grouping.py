"""Which tokens share a group: a pure function of token counts (HiP paper, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hip_model.errors import ConfigError
from hip_model.modality import Modality


@dataclass(frozen=True)
class ModalityGroups:
    """The run of groups one modality owns, and how its tokens fill them."""

    name: str
    num_tokens: int
    offset: int
    """Index of the modality's first group."""
    groups: int
    """Groups it owns."""
    group_tokens: int
    """Token slots ``l`` of each of its groups."""
    group_padding: int
    """Empty slots after those, up to the length all groups of the model share."""

    @property
    def final_padding(self) -> int:
        """Slots left over at the modality's end; more than ``group_tokens`` of them leave whole groups empty."""
        return self.groups * self.group_tokens - self.num_tokens

    def tokens_in_group(self, group: int) -> int:
        """Real tokens in the modality's ``group``-th group."""
        return min(self.group_tokens, max(0, self.num_tokens - group * self.group_tokens))


@dataclass(frozen=True)
class GroupPlan:
    """Every modality's groups, in modality order."""

    num_groups: int
    group_length: int
    """Slots ``L`` of every group, padding included."""
    modalities: tuple[ModalityGroups, ...]

    def __getitem__(self, name: str) -> ModalityGroups:
        for modality in self.modalities:
            if modality.name == name:
                return modality
        raise KeyError(name)


def plan_groups(num_groups: int, modalities: Sequence[Modality]) -> GroupPlan:
    """Share ``num_groups`` groups out so that the longest group is as short as possible.

    Every modality starts with one group; each further group goes to the modality whose groups are longest, the first of
    them on a tie. Groups never hold two modalities.

    Raises:
        ConfigError: more modalities than groups.
    """
    if len(modalities) > num_groups:
        names = [modality.name for modality in modalities]
        raise ConfigError(
            f"block 0 has {num_groups} groups for {len(modalities)} modalities {names}; "
            f"each needs a group of its own, so use num_groups[0] >= {len(modalities)}"
        )
    counts = [1] * len(modalities)
    loads = [float(modality.num_tokens) for modality in modalities]
    for _ in range(num_groups - len(modalities)):
        longest = loads.index(max(loads))
        counts[longest] += 1
        loads[longest] = modalities[longest].num_tokens / counts[longest]
    group_length = math.ceil(max(loads))
    plan, offset = [], 0
    for modality, groups in zip(modalities, counts, strict=True):
        group_tokens = -(-modality.num_tokens // groups)
        padding = group_length - group_tokens
        plan.append(ModalityGroups(modality.name, modality.num_tokens, offset, groups, group_tokens, padding))
        offset += groups
    return GroupPlan(num_groups, group_length, tuple(plan))


def plan_single_group(modalities: Sequence[Modality]) -> GroupPlan:
    """Perceiver IO's plan: all tokens in one group; selections see each modality as a group of its own."""
    groups = tuple(
        ModalityGroups(modality.name, modality.num_tokens, 0, 1, modality.num_tokens, 0) for modality in modalities
    )
    return GroupPlan(1, sum(modality.num_tokens for modality in modalities), groups)


def regroup(latents: Tensor, num_groups: int, kind: str) -> Tensor:
    """``[B, G, N, C] -> [B, num_groups, G * N / num_groups, C]`` between two levels.

    ``reshape`` merges consecutive groups or cuts a group into consecutive parts; ``transpose_reshape`` swaps groups and
    items first, so that merged groups take items from all groups.
    """
    batch, _, _, channels = latents.shape
    if kind == "transpose_reshape":
        latents = latents.transpose(1, 2)
    return latents.reshape(batch, num_groups, -1, channels)
